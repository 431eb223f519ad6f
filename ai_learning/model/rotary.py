"""Rotary position embedding (Su et al. 2021): positions as angles, so that q·k depends on their distance.

Each pair of features of a query or key is a point in a plane, turned by ``position · theta^(-2i/D)``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import plain_numbers
from ..shapes import Heads

Angles = tuple[Tensor, Tensor]
"""cos and sin of each position's angles, broadcasting to (B, H, T, D)"""


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of slow angles, for contexts longer than those of pre-training."""

    factor: float = 8.0
    """how many times longer"""
    low_freq_factor: float = 1.0
    """wave lengths above original_block_size / this are stretched fully"""
    high_freq_factor: float = 4.0
    """wave lengths below original_block_size / this stay as they are"""
    original_block_size: int = 8192
    """context of pre-training, in tokens"""

    def __post_init__(self) -> None:
        plain_numbers(self)
        ordered = 0 < self.low_freq_factor < self.high_freq_factor < math.inf
        if not 1 <= self.factor < math.inf or not ordered:
            raise ValueError(
                f"rope_scaling needs factor ≥ 1 and 0 < low_freq_factor < high_freq_factor, got {self}"
            )


class RotaryEmbedding(nn.Module):
    """Cosines and sines of every position's angles.

    Args:
        head_dim: D, even.
        theta: base of the angles; larger turns more slowly.
        scaling: for longer contexts.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, theta: float = 10000.0, scaling: RopeScaling | None = None) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary positions turn pairs of features: head_dim={head_dim} must be even")
        inv_freq = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)
        self.register_buffer(
            "inv_freq", stretch(inv_freq, scaling) if scaling else inv_freq, persistent=False
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RotaryEmbedding":
        """Moved with the model, but never rounded with it: far from the start an angle is many turns."""
        kept = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != kept.dtype:
            self.inv_freq = kept.to(self.inv_freq.device)
        return self

    def forward(self, positions: Tensor) -> Angles:
        """(T,) or (B, T) positions → cos and sin, (1, 1, T, D) or (B, 1, T, D) float32."""
        angles = positions[..., None].float() * self.inv_freq  # (…, T, D/2)
        angles = torch.cat([angles, angles], dim=-1)  # the two features of a pair stand D/2 apart
        angles = angles[None, None] if positions.dim() == 1 else angles[:, None]
        return angles.cos(), angles.sin()


def stretch(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow angles slowed down ``factor`` times, fast ones kept, those between blended (Llama 3.1)."""
    wavelength = 2 * math.pi / inv_freq
    slowest = scaling.original_block_size / scaling.low_freq_factor
    fastest = scaling.original_block_size / scaling.high_freq_factor
    smooth = (scaling.original_block_size / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * inv_freq / scaling.factor + smooth * inv_freq
    stretched = torch.where(wavelength > slowest, inv_freq / scaling.factor, inv_freq)
    return torch.where((wavelength <= slowest) & (wavelength >= fastest), blended, stretched)


def rotate(x: Heads, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Heads:
    """Turn every pair of features by its angle (Su et al. 2021, equation 34).

    Args:
        x: (B, H, T, D) queries or keys.
        cos: broadcasts to (B, 1, T, D), as ``RotaryEmbedding`` gives it.
        sin: the same.
        interleaved: pairs are neighbours (2i, 2i + 1), as in the paper, and not (i, i + D/2), as in Llama.

    Example:
        >>> cos, sin = RotaryEmbedding(2)(torch.tensor([1]))
        >>> [round(v, 2) for v in rotate(torch.tensor([[[[1.0, 0.0]]]]), cos, sin).flatten().tolist()]
        [0.54, 0.84]
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if interleaved:
        halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)  # (…, D): even ones, then odd ones
        return rotate(halves, cos, sin).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    first, second = x.chunk(2, dim=-1)  # 2 × (B, H, T, D/2)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
