"""Two norms over the features of one token; ``GPTConfig.norm`` names one."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """``x / √(mean(x²) + eps) · weight`` (Zhang & Sennrich 2019, equation 4): no mean, no shift.

    Args:
        width: number of features, the last axis.
        eps: inside the root.

    Example:
        >>> RMSNorm(2, eps=0.0)(torch.tensor([3.0, 4.0])).square().mean().item()
        1.0
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) → (…, width); in float32 whatever x is, as in the code that Llama was trained with."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight


def layer_norm(width: int, eps: float, bias: bool) -> nn.Module:
    """Layer norm (Ba et al. 2016): mean 0 and variance 1, then a gain and, with ``bias``, a shift."""
    return nn.LayerNorm(width, eps=eps, bias=bias)


def rms_norm(width: int, eps: float, bias: bool) -> nn.Module:
    """RMSNorm; it never has a shift."""
    return RMSNorm(width, eps)


NORM = {"layernorm": layer_norm, "rmsnorm": rms_norm}
