"""Scaled dot-product attention, written out and fast, and the causal multi-head module around it.

Attention is a plain function: queries, keys, values and a mask in, ``(output, weights)`` out. The module
below makes q, k and v, calls whichever function it was given, and knows nothing of how it works.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.cpu_attention import can_loop, causal_attention
from ..kernels.linear import Linear
from ..kernels.split import split
from ..shapes import Heads, Hidden, Mask, Weights
from .norms import RMSNorm
from .rotary import Angles, rotate

if TYPE_CHECKING:
    from .cache import LayerCache
    from .gpt import GPTConfig

MASK_SIZE = 1024
"""rows of the mask that a layer begins with: a context of 128k would take 16 GB a layer, used or not"""

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]


def reference_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    mask: Mask | None = None,
    *,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> tuple[Heads, Weights]:
    """``softmax(QKᵀ / √D) V``, formula 1 of "Attention Is All You Need" (Vaswani et al. 2017).

    Args:
        q: (B, H, T, D) queries.
        k: (B, H, S, D) keys.
        v: (B, H, S, D) values.
        mask: broadcasts to (B, H, T, S); zero hides a key from a query, ``None`` hides nothing. A query that
            may see no key at all gets NaN here and zeros from the fused kernel: leave it one.
        is_causal: a promise that ``mask`` is the plain triangle, for functions that can use it; the mask
            itself must be given all the same.
        dropout_p: share of the weights set to zero, the others scaled up.

    Returns:
        (B, H, T, D) output and (B, H, T, S) weights, whose rows sum to 1 before dropout.

    Raises:
        ValueError: shapes that do not belong together.
    """
    check_heads(q, k, v, mask, is_causal)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(mask == 0, float("-inf"))
    weights = F.softmax(scores, dim=-1)
    weights = F.dropout(weights, dropout_p, training=dropout_p > 0)
    return weights @ v, weights  # (B, H, T, D), (B, H, T, S)


def fast_attention(
    q: Heads,
    k: Heads,
    v: Heads,
    mask: Mask | None = None,
    *,
    is_causal: bool = False,
    dropout_p: float = 0.0,
) -> tuple[Heads, None]:
    """The same output by a fused kernel, which never holds all the weights (so returns ``None``).

    It is PyTorch's; where a CPU with AVX-512 trains in float32, for the plain triangle, our own if the sizes
    are whole tiles of it (`cpu_attention`).

    ``is_causal`` lets the kernel skip the hidden half without reading the mask. PyTorch aligns that triangle
    top-left, which is wrong for T ≠ S (one new token would see only the first key), so it is passed on
    only where T = S.
    """
    check_heads(q, k, v, mask, is_causal)
    if mask is not None:
        if is_causal and q.size(-2) == k.size(-2):
            mask = None
        else:
            is_causal, mask = False, mask.bool()
    if is_causal and not dropout_p and can_loop(q, k, v):
        return causal_attention(q, k, v), None
    return F.scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal), None


ATTENTION: dict[str, AttentionFunction] = {"reference": reference_attention, "fast": fast_attention}


def check_heads(q: Heads, k: Heads, v: Heads, mask: Mask | None, is_causal: bool) -> None:
    """Raise unless q is (B, H, T, D), k and v are (B, H, S, D), and a promised mask is there."""
    if is_causal and mask is None:
        raise ValueError("is_causal=True promises what the mask is: give the mask too, or the future leaks")
    if not (q.dim() == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.size(-1) == k.size(-1)):
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise ValueError(f"attention needs q (B, H, T, D), k and v (B, H, S, D); got {shapes}")


def causal_mask(block_size: int) -> Mask:
    """(block_size, block_size) lower triangle: position t may see positions 0 to t."""
    return torch.ones(block_size, block_size, dtype=torch.bool).tril()


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which no position sees a later one (Vaswani et al. 2017, section 3.2).

    Args:
        config: sizes, ``bias``, ``dropout``, ``qk_norm`` and the name of the ``attention`` function.

    Example:
        >>> from ai_learning.model import GPTConfig
        >>> layer = CausalSelfAttention(GPTConfig(n_embd=8, n_head=2, block_size=4, attention="reference"))
        >>> output, weights = layer(torch.zeros(1, 3, 8))
        >>> tuple(output.shape), weights[0, 0, 0].tolist()
        ((1, 3, 8), [1.0, 0.0, 0.0])
    """

    mask: Tensor

    def __init__(self, config: "GPTConfig") -> None:
        super().__init__()
        self.n_head, self.kv_heads, self.head_size = config.n_head, config.kv_heads, config.head_size
        self.n_embd = config.n_embd
        self.dropout = config.dropout
        heads = config.n_head + 2 * config.kv_heads
        self.c_attn = Linear(config.n_embd, heads * config.head_size, bias=config.bias)  # q, k, v at once
        self.c_proj = Linear(config.n_head * config.head_size, config.n_embd, bias=config.bias)
        self.q_norm = RMSNorm(config.head_size, config.layer_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, config.layer_norm_eps) if config.qk_norm else None
        self.resid_dropout = nn.Dropout(config.dropout)
        self.block_size = config.block_size
        self.register_buffer("mask", causal_mask(min(config.block_size, MASK_SIZE)), persistent=False)
        self.attention = ATTENTION[config.attention]

    def forward(
        self,
        x: Hidden,
        cache: "LayerCache | None" = None,
        mask: Mask | None = None,
        angles: Angles | None = None,
    ) -> tuple[Hidden, Weights | None]:
        """Attend from each position to itself and those before it.

        Args:
            x: (B, T, C).
            cache: keys and values of earlier positions; the new ones are appended.
            mask: broadcasts to (B, 1, T, S): what to hide besides the future (padding, other documents).
            angles: of the T positions, where they are rotary.

        Returns:
            (B, T, C) output, and (B, H, T, S) weights where the attention function gives them.

        Raises:
            ValueError: ``x`` is not (B, T, n_embd), or T + cached positions exceed ``block_size``.
        """
        if x.dim() != 3 or x.size(-1) != self.n_embd:
            raise ValueError(f"expected x of shape (B, T, {self.n_embd}), got {tuple(x.shape)}")
        B, T, _ = x.shape
        counts = (self.n_head, self.kv_heads, self.kv_heads)
        heads = self.c_attn(x).view(B, T, sum(counts), self.head_size)
        q, k, v = split(heads, counts, dim=2)  # (B, T, H, D), 2 × (B, T, kv_heads, D)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, D)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        S = T if cache is None else cache.length + T
        if S > self.block_size:
            raise ValueError(f"{S} positions exceed block_size={self.block_size}: shorten the input")
        if S > self.mask.size(0):
            self.mask = causal_mask(min(2 * S, self.block_size)).to(self.mask.device)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, H, S, D)
        if self.kv_heads < self.n_head:  # each key and value serves several queries (Ainslie et al. 2023)
            group = self.n_head // self.kv_heads
            if T == 1:  # then those can be rows of one head: no key of a long cache is copied
                q = q.reshape(B, self.kv_heads, group, -1)  # (B, H, 1, D) → (B, kv_heads, group, D)
            else:
                k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
        is_causal = mask is None and T > 1
        if T > 1:  # a single new token may see all that is there
            causal = self.mask[S - T : S, :S]  # (T, S): the last query sees every key
            mask = causal if mask is None else causal & mask
        dropout_p = self.dropout if self.training else 0.0
        output, weights = self.attention(q, k, v, mask, is_causal=is_causal, dropout_p=dropout_p)
        if q.size(1) < self.n_head:
            output = output.reshape(B, self.n_head, 1, self.head_size)
            weights = None if weights is None else weights.reshape(B, self.n_head, 1, S)
        output = output.transpose(1, 2)  # (B, H, T, D) → (B, T, H, D)
        output = output.reshape(B, T, self.n_head * self.head_size)
        return self.resid_dropout(self.c_proj(output)), weights
