"""The position-wise feed-forward layer, plain and gated; ``GPTConfig.mlp`` names one."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.cpu_mlp import can_mlp, mlp
from ..kernels.gelu import gelu, gelu_new
from ..kernels.linear import Linear
from ..shapes import Hidden

if TYPE_CHECKING:
    from .gpt import GPTConfig


def relu2(x: Tensor) -> Tensor:
    """The square of ReLU (So et al. 2021, "Primer")."""
    return F.relu(x).square()


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_new,
    "gelu": gelu,
    "relu": F.relu,
    "relu2": relu2,
    "silu": F.silu,
}


class MLP(nn.Module):
    """Position-wise feed-forward layer: widen four times, bend, narrow (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: "GPTConfig") -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.activation = ACTIVATION[config.activation]
        self.c_proj = Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Hidden) -> Hidden:
        """(B, T, C) → (B, T, 4C) → (B, T, C)."""
        # The last line in one go, its wide middle never leaving the cache: on a CPU that can, in training.
        if can_mlp(x, self.c_fc, self.activation, self.c_proj):
            return self.dropout(mlp(x, self.c_fc, self.activation, self.c_proj))
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class GatedMLP(nn.Module):
    """One half opens the other: with SiLU it is SwiGLU (Shazeer 2020, equation 6), Llama's and Qwen's MLP."""

    def __init__(self, config: "GPTConfig") -> None:
        super().__init__()
        self.c_gate = Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.c_fc = Linear(config.n_embd, config.mlp_width, bias=config.bias)
        self.activation = ACTIVATION[config.activation]
        self.c_proj = Linear(config.mlp_width, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Hidden) -> Hidden:
        """(B, T, C) → 2 × (B, T, mlp_width) → (B, T, C)."""
        return self.dropout(self.c_proj(self.activation(self.c_gate(x)) * self.c_fc(x)))


MLPS: dict[str, Callable[["GPTConfig"], nn.Module]] = {"plain": MLP, "gated": GatedMLP}
