"""Linear layers whose products run on a CPU's tile registers where it has some (`products`)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loops import usable
from .products import can_tile, mm


class Linear(nn.Linear):
    """``nn.Linear``; on a CPU with tile registers large products in float32 take two thirds of the time.

    Example:
        >>> Linear(8, 2)(torch.ones(3, 8)).shape
        torch.Size([3, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        return linear(input, self.weight, self.bias)


PLAIN = (nn.Linear, Linear)
"""classes of layers that do nothing but ``x Wᵀ + b``"""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``, as ``F.linear``.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether tiles gain; what does not fit together is left for PyTorch to complain of."""
    N, K = weight.shape
    if x.dim() == 0 or x.size(-1) != K or not x.is_cpu or not can_tile(x.numel() // K, K, N):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return usable(x, weight) if bias is None else bias.shape == (N,) and usable(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Both passes by tiles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        N, K = weight.shape
        return mm(x.view(-1, K), weight.t(), add=bias).view(*x.shape[:-1], N)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.size(-1))  # (..., N) → (B, N)
        product = torch.mm if torch.is_grad_enabled() else mm  # for a gradient of the gradient
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(rows, weight).view(x.shape) if needs_x else None,
            product(rows.t(), x.reshape(-1, x.size(-1))) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
