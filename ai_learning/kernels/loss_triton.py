"""The loss of a language model's head on a GPU: large chunks of logits, each turned in place into gradients.

What differs from a CPU: a product must be large to fill the processor, rows of a matrix should begin where a
vector load may (a vocabulary of 50,257 is filled up to 50,304), and what PyTorch does to logits in several
passes through memory is one kernel that reads them twice and writes them once.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from .triton_use import launch

CHUNK_BYTES = 2**30
"""of a chunk's logits"""
_ALIGNED = 128
"""rows of the head are filled up to a multiple of it"""
_BLOCK, _WARPS = 4096, 32
"""columns that a program takes at once, and its warps: two rows a multiprocessor stay in the second cache"""


def loss_and_gradients(
    hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``Σ share · cross_entropy(hidden @ weight.T, target)``, with what the backward pass will ask for.

    Args:
        hidden: (N, C), in the dtype of the products.
        weight: (V, C), in any float dtype.
        targets: (N,) int64; one that is not in range(V) makes the loss NaN, for to look would stall the GPU.
        shares: (N,) float32; where it is 0, logits and target have no influence.
        needs: whether the gradients of hidden and of weight are wanted.

    Returns:
        Loss () in float32, gradients (N, C) like hidden and (V, C) in float32, or ``None``.
    """
    targets, shares = targets.contiguous(), shares.contiguous()
    N, V = len(hidden), len(weight)
    head = _padded(weight, hidden.dtype)  # (V', C)
    losses = torch.empty(N, dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if needs[0] else None
    d_weight: Tensor | None = None
    chunk = _chunk(N, V, hidden.element_size())
    buffer = hidden.new_empty(min(chunk, N), len(head))
    for start in range(0, N, chunk):
        rows = slice(start, min(start + chunk, N))
        part, p = hidden[rows], buffer[: rows.stop - start]  # (n, C), (n, V')
        torch.mm(part, head.T, out=p)
        launch(
            _kernels().softmax_gradient, (len(p),), p, targets[rows], shares[rows], losses[rows], p.stride(0),
            V, len(head), GRADIENT=any(needs), BLOCK=_BLOCK, num_warps=_WARPS,
        )  # fmt: skip
        if d_hidden is not None:
            torch.mm(p, head, out=d_hidden[rows])
        if needs[1]:
            d_weight = _add_product(d_weight, p.T, part)
    return losses.sum(), d_hidden, None if d_weight is None else d_weight[:V]


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` in float32, whatever a and b are: over many chunks bfloat16 would lose too much."""
    if a.dtype == torch.float32:
        return a @ b if total is None else total.addmm_(a, b)
    if total is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``, with rows of zeros at its end."""
    V, C = weight.shape
    if _filled_up(V) == V:
        return weight.to(dtype)
    head = torch.empty(_filled_up(V), C, dtype=dtype, device=weight.device)
    head[:V] = weight
    head[V:] = 0
    return head


def _filled_up(vocab_size: int) -> int:
    return -(-vocab_size // _ALIGNED) * _ALIGNED


def _chunk(N: int, V: int, itemsize: int) -> int:
    """Positions of a chunk, all but the last alike and whole tiles of a product."""
    fitting = max(1, CHUNK_BYTES // (_filled_up(V) * itemsize))
    equal = -(-N // -(-N // fitting))
    return -(-equal // _ALIGNED) * _ALIGNED


@cache
def _kernels() -> Any:
    """The compiled functions; importing Triton waits until somebody needs them."""
    from . import loss_triton_kernels

    return loss_triton_kernels
