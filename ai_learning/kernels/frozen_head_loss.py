"""The loss before a frozen head: not even a chunk's logits are all held.

As FlashAttention (Dao et al. 2022) does with keys, columns of logits are taken a few at a time, and sums are
scaled when a larger logit comes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .loops import Loops, ready, run, usable

BLOCK_BYTES = 8 * 2**20
"""a block of logits, positions × ids, that stays in the cache"""
_BLOCK_POSITIONS = 1024
_LOOPS = Loops("kernels.training_kernels")


def by_columns(n_logits: int, *tensors: Tensor) -> bool:
    """Whether `_columns_at_a_time` takes these, and gains: few logits stay in the cache in any case."""
    return usable(*tensors) and 4 * n_logits > BLOCK_BYTES and ready(_LOOPS.running_softmax)


def _columns_at_a_time(
    hidden: Tensor, weight: Tensor, targets: Tensor, d_hidden: Tensor | None, product: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """A chunk of positions, a block of ids at a time, each block's logits in the same small buffer.

    Args:
        hidden: (n, C).
        weight: (V, C).
        targets: (n, 1).
        d_hidden: (n, C), filled with ``sums · softmax(hidden @ weight.T) @ weight``; ``None``: not computed.
        product: `products.mm`, or what does the same.

    Returns:
        Each row's loss (n, 1), and ``sums`` (n, 1).
    """
    n, V = len(hidden), len(weight)
    columns = min(V, max(1, BLOCK_BYTES // (4 * n)))
    buffer = hidden.new_empty(n * columns)
    known = hidden.new_zeros(n, 3, dtype=torch.float64)  # largest logit, sum, the target's logit
    known[:, 0] = torch.finfo(hidden.dtype).min  # finite: less than any logit but one that is ruled out
    nothing = hidden.new_empty(n, 0)
    for first in range(0, V, columns):
        part = weight[first : first + columns]
        p = buffer[: n * len(part)].view(n, len(part))
        product(hidden, part.T, p)
        gradient = nothing if d_hidden is None else d_hidden
        numbers = (n, len(part), gradient.size(1), first)
        run(_LOOPS.running_softmax, 0, n, p.numel(), numbers, (p, targets, known, gradient))
        if d_hidden is not None:
            product(p, part, d_hidden, add=d_hidden if first else None)
    largest, sums, wanted = known.split(1, dim=1)
    return (sums.log() + (largest - wanted)).float(), sums.float()


def with_frozen_head(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    shares: Tensor,
    needs_hidden: bool,
    product: Callable[..., Tensor],
) -> tuple[Tensor, Tensor | None]:
    """The loss and its gradient with respect to ``hidden``, by `_columns_at_a_time`."""
    total, N = torch.zeros((), device=hidden.device), len(hidden)
    d_hidden = torch.empty_like(hidden) if needs_hidden else None
    chunk = -(-N // -(-N // _BLOCK_POSITIONS))  # equal ones
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        share, d_rows = shares[rows].unsqueeze(1), None if d_hidden is None else d_hidden[rows]
        loss, sums = _columns_at_a_time(hidden[rows], weight, targets[rows].unsqueeze(1), d_rows, product)
        total += (loss * share).masked_fill_(share == 0, 0).sum()
        if d_rows is not None:
            d_rows.mul_(share / sums).sub_(F.embedding(targets[rows], weight) * share)
    return total, d_hidden
