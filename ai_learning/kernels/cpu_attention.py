"""Causal attention for training on a processor with AVX-512: both passes as compiled loops.

PyTorch's own kernel for CPUs hands matrices of a few rows to a library made for large ones; these loops
(`attention_kernels`) take 0.5 to 0.8 of its time.
"""

import math
from array import array
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import Heads
from .compile_ops import constant_in_graphs, define_gradient, is_exporting, operation
from .host_memory import is_plain
from .loops import Loops, StoredLoop, processor_has, ready, run, usable

# What a loop is told: these numbers, then `FIELDS` for each of its tensors, then the marks of taken scratch.
HEADS = 0  # H
PLACES = 1  # T
WIDTH = 2  # D
ROW = 3  # bytes of a row of scratch
SCRATCH = 4  # its address
THREAD_BYTES = 5  # of scratch for each thread
TAKEN = 6  # address of an int64 for each thread: whether its scratch is taken
SIZES = 7  # how many these are
FIELDS = 4  # of a tensor: address; bytes from row to row of the batch, from head to head, from place to place

TILE_ROWS, TILE_COLUMNS = 8, 32
"""of the products (`loops.tile`)"""
BLOCK = 32
"""queries at a time: a whole number of tiles"""
_PAD = 16  # numbers behind each row of scratch: rows a power of two apart share a place in the cache
_LONGEST = 1024  # places; with more, PyTorch's matrices are large enough
_WORTH_IT = 2**21  # products of two numbers; fewer take less time than calling the loops
_LOOPS = Loops("kernels.attention_kernels")


def can_loop(q: Heads, k: Heads, v: Heads) -> bool:
    """Whether `causal_attention` takes these and gains: float32, for a gradient, T and D in whole tiles."""
    if not torch.is_grad_enabled() or is_exporting():
        return False
    if not (q.requires_grad or k.requires_grad or v.requires_grad):
        return False
    if not (q.shape == k.shape == v.shape and q.dim() == 4):
        return False
    B, H, T, D = q.shape
    compiling = torch.compiler.is_compiling()
    if compiling:  # sizes last: a graph holds for those alone that would have had the same answers
        if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (q, k, v)) or not _are_wanted():
            return False
    elif B * H * T * T * D < _WORTH_IT:
        return False
    if T % TILE_ROWS or D % TILE_COLUMNS or T > _LONGEST or B * H < _threads():  # each takes whole heads
        return False
    return compiling or (_lie_well(q, k, v) and _are_wanted())


def causal_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """``softmax(QKᵀ / √D) V`` where no position sees a later one.

    Args:
        q: (B, H, T, D) queries.
        k: (B, H, T, D) keys.
        v: (B, H, T, D) values; `can_loop` says whether the three will do.

    Returns:
        (B, H, T, D), laid out as (B, T, H, D).
    """
    if torch.compiler.is_compiling():
        return _in_a_graph(q, k, v)[0].transpose(1, 2)
    out: Tensor = _CausalAttention.apply(q, k, v)
    return out


@constant_in_graphs
def _threads() -> int:
    return torch.get_num_threads()


@constant_in_graphs
def _are_wanted() -> bool:
    wishes = torch.is_autocast_enabled("cpu") or not torch.backends.cuda.flash_sdp_enabled()
    return not wishes and has_loops()


def has_loops() -> bool:
    """Whether this machine can run them; the first call loads them, or has them compiled (some seconds)."""
    return processor_has("avx512f") and ready(_LOOPS.causal_attention, _LOOPS.causal_attention_backward)


def _lie_well(*tensors: Tensor) -> bool:
    return usable(*tensors, contiguous=False) and all(tensor.stride(-1) == 1 for tensor in tensors)


class _CausalAttention(torch.autograd.Function):
    """Both passes; the weights are computed anew in the second."""

    @staticmethod
    def forward(ctx: Any, q: Heads, k: Heads, v: Heads) -> Heads:
        out, stats = _forward(q, k, v)
        ctx.save_for_backward(q, k, v, out, stats)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Heads) -> tuple[Heads, ...]:
        q, k, v, out, stats = ctx.saved_tensors
        # A gradient of the gradient, or a batch of them; and hooks may have kept other tensors than these.
        if (
            torch.is_grad_enabled()
            or not usable(grad, contiguous=False)
            or not _lie_well(q, k, v, out, stats)
        ):
            return _gradients(q, k, v, grad)
        return tuple(
            d.transpose(1, 2) for d in _backward(q, k, v, out, stats, grad.transpose(1, 2)).unbind(2)
        )


def _forward(q: Heads, k: Heads, v: Heads) -> tuple[Tensor, Tensor]:
    """(B, T, H, D) output; (2, B, H, T) each query's largest score, and one over its sum."""
    B, H, T, D = q.shape
    out, stats = q.new_empty(B, T, H, D), q.new_empty(2, B, H, T)
    _run(_LOOPS.causal_attention, D + BLOCK, q, k, v, out.transpose(1, 2), *stats.unbind(0))
    return out, stats


def _backward(q: Heads, k: Heads, v: Heads, out: Tensor, stats: Tensor, grad: Tensor) -> Tensor:
    """(B, T, H, D) gradient of the output → (B, T, 3, H, D) those of q, k and v, as `split` likes them."""
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    B, H, T, D = q.shape
    grads = q.new_empty(B, T, 3, H, D)
    given = (q, k, v, out.transpose(1, 2), *stats.unbind(0), grad.transpose(1, 2))
    rows = 2 * (D + BLOCK) + 1
    _run(_LOOPS.causal_attention_backward, rows, *given, *grads.transpose(1, 3).unbind(2))
    return grads


def _gradients(q: Heads, k: Heads, v: Heads, grad: Heads) -> tuple[Heads, Heads, Heads]:
    """The same by PyTorch's operations, which can be differentiated again."""
    T, D = q.shape[-2:]
    hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(hidden, -math.inf)
    weights = F.softmax(scores, dim=-1)  # (B, H, T, T)
    d_weights = grad @ v.transpose(-2, -1)
    d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) / math.sqrt(D)
    return d_scores @ k, d_scores.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ grad


def _run(loop: StoredLoop, scratch_rows: int, *tensors: Tensor) -> None:
    """Call a loop for each head of (B, H, T, D) tensors, or (B, H, T); each thread has rows of scratch."""
    B, H, T, D = tensors[0].shape
    row = 4 * (-(-T // TILE_COLUMNS) * TILE_COLUMNS + _PAD)
    thread_bytes, threads = scratch_rows * row, torch.get_num_threads()
    scratch = torch.empty(threads * thread_bytes + 64, dtype=torch.uint8, device="cpu")
    begin = -(-scratch.data_ptr() // 64) * 64  # where a register's numbers lie in one line of the cache
    told = [H, T, D, row, begin, thread_bytes, 0]
    for tensor in tensors:
        rows, heads, places = tensor.stride()[:3]
        told += (tensor.data_ptr(), 4 * rows, 4 * heads, 4 * places)
    numbers = array("q", (*told, *[0] * threads))  # 0: not taken
    numbers[TAKEN] = numbers.buffer_info()[0] + 8 * len(told)
    run(loop, 0, B * H, B * H * T * T * D // 16, (numbers.buffer_info()[0],), ())


# --- in a graph that torch.compile makes, which calls both passes without looking inside --------------------


def _like_output(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    return q.new_empty(B, T, H, D), q.new_empty(2, B, H, T)


@operation("causal_attention", _like_output)
def _in_a_graph(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What `_forward` does.

    Raises:
        TypeError: other tensors than its loop takes.
    """
    return _forward(*_checked(q, k, v))


def _like_gradients(q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, grad: Tensor) -> Tensor:
    return q.new_empty(*out.shape[:2], 3, *out.shape[2:])


@operation("causal_attention_gradients", _like_gradients)
def _backward_in_a_graph(q: Tensor, k: Tensor, v: Tensor, out: Tensor, stats: Tensor, grad: Tensor) -> Tensor:
    """What `_backward` does.

    Raises:
        TypeError: other tensors than its loop takes, as hooks of saved tensors may have made them.
    """
    B, H, T, D = q.shape
    if not out.shape == grad.shape == (B, T, H, D) or stats.shape != (2, B, H, T):
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, out, stats, grad))
        raise TypeError(f"attention's gradient needs (B, H, T, D), output, sums and gradient; got {shapes}")
    q, k, v = _checked(q, k, v)
    return _backward(q, k, v, *_in_rows(out, stats, grad))


def _checked(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    fits = q.dim() == 4 and q.size(-2) % TILE_ROWS == 0 and q.size(-1) % TILE_COLUMNS == 0
    if not fits or not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
        raise TypeError(f"attention's loops need equal (B, H, T, D), T and D in whole tiles; got {shapes}")
    return _in_rows(q, k, v)


def _in_rows(*tensors: Tensor) -> list[Tensor]:
    if not is_plain(*tensors, contiguous=False) or any(t.dtype != torch.float32 for t in tensors):
        raise TypeError(f"attention's loops need float32 in main memory, not {[t.dtype for t in tensors]}")
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients_in_a_graph(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return tuple(d.transpose(1, 2) for d in _backward_in_a_graph(*ctx.saved_tensors, grad).unbind(2))


define_gradient(_in_a_graph, _gradients_in_a_graph, setup_context=_keep)
