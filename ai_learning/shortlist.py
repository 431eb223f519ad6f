"""The likeliest token without all the logits: an int8 copy of the head says which few tokens it could be.

A greedy step of a small model with a large vocabulary mostly reads the head's weight. Here a copy of it in
8 bits is read instead, a quarter of the bytes. What the rounding can have changed is bounded: with row
``w = ŵ + e``, by the inequality of Cauchy and Schwarz

    |x·w − x·ŵ| ≤ ‖x‖ ‖e‖

so a token whose upper bound is below another's lower bound is not the likeliest. The few that are left (two
or three, mostly) get their logits from the weight itself: the token is the one that all logits would give.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from .kernels.host_memory import empty, is_plain
from .kernels.linear import PLAIN
from .kernels.loops import Loops, ready, run

WORTH_STEPS = 32
"""greedy steps from which on making a ``Shortlist`` of the head, the work of some ten, pays"""
WORTH_A_BATCH = 8
"""rows of hidden states from which on `likeliest_of_batch` is faster than all logits, then their largest"""
_LOOPS = Loops("kernels.shortlist_kernels")
_WORTH_IT = 2**22  # elements of the weight: smaller ones stay in the cache
_TOO_MANY = 8  # a shortlist longer than V / 8 saves nothing
_TINY = 1e-15  # below, products vanish in float32, and the bounds with them


def suits(head: nn.Module) -> bool:
    """Whether a head is large enough for what is here, simple enough, and watched by nobody."""
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


def likeliest_of_batch(head: nn.Linear, x: Tensor) -> Tensor:
    """(B, C) hidden states → (B,): where each row of ``head(x)`` is largest.

    The product is taken the other way round, ``W xᵀ``: for some ten rows the library is faster at that.
    """
    logits = head.weight.detach() @ x.detach().float().T  # (V, B)
    rows, best = (torch.empty(logits.size(1), dtype=t, device="cpu") for t in (torch.int64, logits.dtype))
    one_thread = 1  # waking others is not worth it
    run(_LOOPS.largest_of_columns, 0, rows.numel(), one_thread, logits.shape, (logits, rows, best))
    return rows


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

    def likeliest(self, x: Tensor) -> Tensor:
        """(1, C) hidden state → (1,): where ``head(x)`` is largest, the first of several."""
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
