"""Causal attention on a processor with AVX-512, both passes as compiled loops (`attention_kernels`).

PyTorch's own kernel for CPUs multiplies small matrices through a library made for large ones, and hidden
scores with the others: these loops take half of its time.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .loops import Loops, StoredLoop, processor_has, ready, run, usable
from .shapes import Heads

FIELDS = 4
"""what a layout says of a tensor: its address; bytes from row to row, from head to head, from place to place"""
LONGEST, PAD = 1024, 16
"""positions; and numbers behind each row of scratch: rows a power of two apart share a place in the cache"""
MOST_TURNED = 64 * (LONGEST + PAD)
"""numbers of a head's keys, each feature a row with its pad"""
_LOOPS = Loops("attention_kernels")
_TILE_ROWS, _TILE_COLUMNS = 8, 32
_WORTH_IT = 2**22
"""products of two numbers from which on the loops are used; calling them takes longer than PyTorch's kernel"""


def can_loop(q: Heads, k: Heads, v: Heads) -> bool:
    """Whether `causal_attention` takes these."""
    if not (q.shape == k.shape == v.shape and q.dim() == 4):
        return False
    B, H, T, D = q.shape
    if T % _TILE_ROWS or D % _TILE_COLUMNS or T > LONGEST or B * H * T * T * D < _WORTH_IT:
        return False
    columns = -(-T // _TILE_COLUMNS) * _TILE_COLUMNS + PAD
    if D * columns > MOST_TURNED or not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        return False
    return usable(q, k, v, contiguous=False) and _has_loops()


def causal_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """``softmax(QKᵀ / √D) V`` where no position sees a later one.

    Args:
        q: (B, H, T, D) queries.
        k: (B, H, T, D) keys.
        v: (B, H, T, D) values; `can_loop` says whether the three will do.

    Returns:
        (B, H, T, D), laid out as (B, T, H, D).
    """
    out: Tensor = _CausalAttention.apply(q, k, v)
    return out


def _has_loops() -> bool:
    return processor_has("avx512f") and ready(_LOOPS.causal_attention, _LOOPS.causal_attention_backward)


class _CausalAttention(torch.autograd.Function):
    """Both passes; the weights are computed anew in the second."""

    @staticmethod
    def forward(ctx: Any, q: Heads, k: Heads, v: Heads) -> Heads:
        B, H, T, D = q.shape
        out = q.new_empty(B, T, H, D).transpose(1, 2)
        log_sum = q.new_empty(B, H, T)
        _run(_LOOPS.causal_attention, q, k, v, out, log_sum)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Heads) -> tuple[Heads, ...]:
        q, k, v, out, log_sum = ctx.saved_tensors
        B, H, T, D = q.shape
        if grad.stride(3) != 1 or not usable(grad, contiguous=False):
            grad = torch.empty_like(out).copy_(grad)
        grads = q.new_empty(3, B, T, H, D).transpose(2, 3).unbind(0)
        _run(_LOOPS.causal_attention_backward, q, k, v, out, log_sum, grad, *grads)
        return grads


def _run(loop: StoredLoop, *tensors: Tensor) -> None:
    """Call a loop for each head of (B, H, T, D) tensors, or (B, H, T)."""
    B, H, T, D = tensors[0].shape
    layout = [H, T, D]
    for tensor in tensors:
        rows, heads, places = tensor.stride()[:3]
        layout += (tensor.data_ptr(), 4 * rows, 4 * heads, 4 * places)
    numbers = (ctypes.c_int64 * len(layout))(*layout)
    run(loop, 0, B * H, B * H * T * T * D // 16, (ctypes.addressof(numbers),), ())
