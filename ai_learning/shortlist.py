"""The likeliest token without all the logits: an int8 copy of the head says which few tokens it could be.

A greedy step of a small model with a large vocabulary mostly reads the head's weight. Here a copy of it in
8 bits is read instead, a quarter of the bytes. What the rounding can have changed is bounded: with row
``w = ŵ + e``, by the inequality of Cauchy and Schwarz

    |x·w − x·ŵ| ≤ ‖x‖ ‖e‖

so a token whose upper bound is below another's lower bound is not the likeliest. The few that are left (two
or three, mostly) get their logits from the weight itself: the token is the one that all logits would give.

For a batch the states become whole numbers as well, ``x = x̂ + e'``, and the products are taken on a
processor's tile registers; the bound grows by ``‖e'‖ ‖ŵ‖``.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from .kernels.host_memory import empty, is_plain
from .kernels.linear import PLAIN
from .kernels.loops import Loops, processor_has, ready, run
from .kernels.products import has_tiles

WORTH_STEPS = 32
"""greedy steps from which on making a ``Shortlist`` of the head, the work of some ten, pays"""
WORTH_A_BATCH = 8
"""rows of hidden states from which on `likeliest_of_batch` is faster than all logits, then their largest,
where `takes_batches` does not hold"""
_LOOPS = Loops("kernels.shortlist_kernels")
_WORTH_IT = 2**22  # elements of the weight: smaller ones stay in the cache
_TOO_MANY = 8  # a shortlist longer than V / 8 saves nothing
_STATES, _ROWS, _DEPTH = 16, 32, 64  # that `bound_logits_of_batch` multiplies at once
_NO_BOUND = 3e38  # more than any, but not infinite
_TINY = 1e-15  # below, products vanish in float32, and the bounds with them


def suits(head: nn.Module) -> bool:
    """Whether a shortlist pays for a head: large enough, float32 without bias, and without hooks."""
    watched = (
        head._forward_hooks
        or head._forward_pre_hooks
        or every_module._global_forward_hooks
        or every_module._global_forward_pre_hooks
        or "forward" in vars(head)
    )
    return (
        type(head) in PLAIN
        and head.bias is None
        and head.weight.numel() >= _WORTH_IT
        and is_plain(head.weight)
        and head.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not watched
        and ready(_LOOPS.round_rows, _LOOPS.bound_logits, _LOOPS.largest_of_columns)
    )


def takes_batches(head: nn.Linear) -> bool:
    """Whether a `Shortlist` of a head that `suits` is faster for batches, too: on a CPU with AMX tiles."""
    V, C = head.weight.shape
    fits = V >= _ROWS and C % _DEPTH == 0
    loops = (_LOOPS.split_states, _LOOPS.bound_logits_of_batch)
    return fits and processor_has("amx-int8", "avx512f") and has_tiles() and ready(*loops)


def likeliest_of_batch(head: nn.Linear, x: Tensor) -> Tensor:
    """(B, C) hidden states → (B,): where each row of ``head(x)`` is largest.

    The product is taken the other way round, ``W xᵀ``: for some ten rows the library is faster at that.
    """
    return _likeliest_of_all(head.weight.detach(), x.detach().float())


def _likeliest_of_all(weight: Tensor, x: Tensor) -> Tensor:
    logits = weight @ x.T  # (V, B)
    rows, best = (torch.empty(logits.size(1), dtype=t, device="cpu") for t in (torch.int64, logits.dtype))
    one_thread = 1  # waking others is not worth it
    run(_LOOPS.largest_of_columns, 0, rows.numel(), one_thread, logits.shape, (logits, rows, best))
    return rows


class _Space(NamedTuple):
    """What the loops of a batch write to."""

    states: int
    tiles: Tensor  # of states: (groups of 16, C / 64, 2, 16, 64) int8
    factors: Tensor  # (groups, 4, 16)
    best: Tensor  # (parts, groups, 16)
    counts: Tensor  # (parts, groups)
    rows: Tensor  # (parts, groups, room)
    high: Tensor  # (parts, groups, room, 16)


class Shortlist:
    """What `likeliest` needs beside a head: its rows in 8 bits, and how far each is from itself.

    For one thread at a time. Logits that are equal but for rounding may be told apart otherwise than by
    ``head(x)``, whose own rounding depends on the library; equal rows give the first.

    Args:
        head: linear layer (V, C) in float32 without bias, in main memory. Later changes of its weight are
            not noticed.

    Example:
        >>> head = nn.Linear(8, 100, bias=False)
        >>> x = torch.ones(1, 8)
        >>> bool(Shortlist(head).likeliest(x) == head(x).argmax(-1))
        True
    """

    def __init__(self, head: nn.Linear) -> None:
        self.weight = head.weight.detach().float().contiguous()
        V, C = self.weight.shape
        self.codes = empty((V, C), torch.int8)
        self.scales, self.errors, self.low, self.high = (empty((V,)) for _ in range(4))
        tensors = (self.weight, self.codes, self.scales, self.errors)
        run(_LOOPS.round_rows, 0, V, V * C, (V, C), tensors)
        # Sums in float32 are off as well, by at most C roundings of ‖x‖ ‖w‖, here and in the exact logits.
        self.errors += (2 * C * torch.finfo(torch.float32).eps) * (127 * C**0.5) * self.scales
        self.largest = float(self.scales.max()) * 127
        self._takes_batches = takes_batches(head)
        self._space: _Space | None = None

    def likeliest(self, x: Tensor) -> Tensor:
        """(B, C) hidden states → (B,): where each row of ``head(x)`` is largest, the first of several."""
        if len(x) == 1:
            return self._of_one(x)
        return (
            self._of_batch(x) if self._takes_batches else _likeliest_of_all(self.weight, x.detach().float())
        )

    def _of_one(self, x: Tensor) -> Tensor:
        V, C = self.codes.shape
        x = x.detach().float().reshape(C).contiguous()  # the loops read float32 at its address
        tensors = (x, self.codes, self.scales, self.errors, self.low, self.high)
        run(_LOOPS.bound_logits, 0, V, V * C, (V, C), tensors)
        # NumPy from here on: its calls are shorter than PyTorch's, and there is next to nothing to compute.
        state, weight = x.numpy(), self.weight.numpy()
        could_be = np.flatnonzero(self.high.numpy() >= self.low.numpy().max())
        vanishing = min(np.abs(state).max(), self.largest) < _TINY
        if vanishing or not 0 < len(could_be) <= V // _TOO_MANY:  # none: NaN
            return torch.from_numpy(np.atleast_1d((self.weight @ x).numpy().argmax()))
        if len(could_be) > 1:
            logits = np.einsum("rc,c->r", weight[could_be], state)  # each row alike: ties stay ties
            could_be = could_be[logits.argmax(keepdims=True)]
        return torch.from_numpy(could_be)

    def _of_batch(self, x: Tensor) -> Tensor:
        (V, C), B = self.codes.shape, len(x)
        x = x.detach().float().contiguous()
        space = self._space_for(B)
        parts, groups, room = space.rows.shape
        run(_LOOPS.split_states, 0, B, B * C, (C,), (x, space.tiles, space.factors))
        lanes = np.arange(B)
        best = space.best.numpy()
        best[:] = _NO_BOUND  # lanes without a state find nothing
        best.reshape(parts, -1)[:, :B] = -_NO_BOUND
        tensors = (self.codes, self.scales, self.errors, *space[1:])
        run(_LOOPS.bound_logits_of_batch, 0, parts, V * C * groups, (V, C, parts, groups, room), tensors)
        counts, scales = space.counts.numpy(), space.factors.numpy()[:, 0].reshape(-1)[:B]
        vanishing = min(127 * scales.min(), self.largest) < _TINY
        found = counts.max()
        if vanishing or found > room:
            return _likeliest_of_all(self.weight, x)
        # What each part found, and of that what no other part's bounds exclude
        kept = np.arange(found) < counts[..., None]  # (parts, groups, found)
        kept = kept[..., None] & (np.arange(groups * _STATES) < B).reshape(groups, 1, _STATES)
        could_be = kept & ~(space.high.numpy()[:, :, :found] < best.max(0)[:, None])
        _, group, _, lane = places = np.nonzero(could_be)
        rows, states = space.rows.numpy()[places[:3]], group * _STATES + lane
        if not np.bincount(states, minlength=B).all():  # all logits of one are beyond float32
            return _likeliest_of_all(self.weight, x)
        logits = np.einsum("rc,rc->r", self.weight.numpy()[rows], x.numpy()[states])
        # As argmax has it, NaN is the largest
        order = np.lexsort((rows, -np.nan_to_num(logits, nan=np.inf, posinf=_NO_BOUND), states))
        first = np.searchsorted(states[order], lanes)
        return torch.from_numpy(rows[order[first]])

    def _space_for(self, B: int) -> _Space:
        if self._space is None or self._space.states != B:
            (V, C), parts, groups = self.codes.shape, torch.get_num_threads(), -(-B // _STATES)
            room = max(256, V // (_TOO_MANY * parts))
            self._space = _Space(
                B,
                torch.zeros(groups, C // _DEPTH, 2, _STATES, _DEPTH, dtype=torch.int8, device="cpu"),
                torch.zeros(groups, 4, _STATES, dtype=torch.float32, device="cpu"),
                empty((parts, groups, _STATES)),
                empty((parts, groups), torch.int64),
                empty((parts, groups, room), torch.int64),
                empty((parts, groups, room, _STATES)),
            )
        return self._space
