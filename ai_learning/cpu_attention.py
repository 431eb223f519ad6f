"""Causal attention on a processor with AVX-512, both passes as compiled loops (`attention_kernels`).

PyTorch's own kernel for CPUs hands matrices of a few rows to a library made for large ones, and takes about
twice as long.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .loops import Loops, StoredLoop, processor_has, ready, run, usable
from .shapes import Heads

HEADS, PLACES, WIDTH, ROW, SCRATCH, SHARE, THREADS, SIZES = range(8)
"""places in a layout: H, T and D; bytes from row to row of scratch; where scratch begins, the bytes of each
thread's, and where it is noted which are taken; then of each tensor `FIELDS`, and those notes"""
FIELDS = 4
"""of a tensor: its address, and the bytes from row to row, from head to head, from place to place"""
BLOCK = 32
"""queries whose weights the backward pass holds"""
_LOOPS = Loops("attention_kernels")
_TILE_ROWS, _TILE_COLUMNS = 8, 32
_PAD = 16  # numbers behind each row of scratch: rows a power of two apart share a place in the cache
_LONGEST = 1024  # places; with more, PyTorch's matrices are large enough
_WORTH_IT = 2**21  # products of two numbers; fewer take less time than calling the loops


def can_loop(q: Heads, k: Heads, v: Heads) -> bool:
    """Whether `causal_attention` takes these, and gains."""
    if not (q.shape == k.shape == v.shape and q.dim() == 4):
        return False
    B, H, T, D = q.shape
    if T % _TILE_ROWS or D % _TILE_COLUMNS or T > _LONGEST or B * H * T * T * D < _WORTH_IT:
        return False
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        return False
    return usable(q, k, v, contiguous=False) and has_loops()


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


def has_loops() -> bool:
    """Whether this machine can run them; the first call loads them, or has them compiled."""
    return processor_has("avx512f") and ready(_LOOPS.causal_attention, _LOOPS.causal_attention_backward)


class _CausalAttention(torch.autograd.Function):
    """Both passes; the weights are computed anew in the second."""

    @staticmethod
    def forward(ctx: Any, q: Heads, k: Heads, v: Heads) -> Heads:
        B, H, T, D = q.shape
        out = q.new_empty(B, T, H, D).transpose(1, 2)
        largest, share = q.new_empty(2, B, H, T).unbind(0)
        _run(_LOOPS.causal_attention, D + BLOCK, q, k, v, out, largest, share)
        ctx.save_for_backward(q, k, v, out, largest, share)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Heads) -> tuple[Heads, ...]:
        q, k, v, out, largest, share = ctx.saved_tensors
        B, H, T, D = q.shape
        if grad.stride(3) != 1 or not usable(grad, contiguous=False):
            grad = torch.empty_like(out).copy_(grad)
        grads = q.new_empty(3, B, T, H, D).transpose(2, 3).unbind(0)
        known = (q, k, v, out, largest, share)
        _run(_LOOPS.causal_attention_backward, 2 * (D + BLOCK), *known, grad, *grads)
        return grads


def _run(loop: StoredLoop, scratch_rows: int, *tensors: Tensor) -> None:
    """Call a loop for each head of (B, H, T, D) tensors, or (B, H, T); each thread has rows of scratch."""
    B, H, T, D = tensors[0].shape
    row = 4 * (-(-T // _TILE_COLUMNS) * _TILE_COLUMNS + _PAD)
    share, threads = (scratch_rows + 1) * row, torch.get_num_threads()
    scratch = torch.empty(threads * share + 64, dtype=torch.uint8)
    layout = [H, T, D, row, -(-scratch.data_ptr() // 64) * 64, share, 0]
    for tensor in tensors:
        rows, heads, places = tensor.stride()[:3]
        layout += (tensor.data_ptr(), 4 * rows, 4 * heads, 4 * places)
    numbers = (ctypes.c_int64 * (len(layout) + threads))(*layout)  # what is left out is 0: not taken
    numbers[THREADS] = ctypes.addressof(numbers) + 8 * len(layout)
    run(loop, 0, B * H, B * H * T * T * D // 16, (ctypes.addressof(numbers),), ())
