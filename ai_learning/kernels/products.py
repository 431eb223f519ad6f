"""Products of float32 matrices on a CPU's tile registers (Intel AMX), as exact as those of its AVX-512.

PyTorch's libraries use these registers for bfloat16 alone. `loops.amx` says how three bfloat16 stand for a
float32; `product_kernels` has the loops, which this module tells what to do.

As exact means: errors relative to the result are no larger than those of PyTorch's library, mostly half. That
holds away from the ends of float32's range. A part of a number below 1.2e-38 counts as 0, and a product of
parts, too: inputs below 1e-32 and results below 1e-30 lose digits, and below 1e-37 all. Above 3.39e38 numbers
and products of their high parts are infinite a little early, and infinity makes NaN (whoever means it takes
`by_pytorch`, as the loss does).
"""

import ctypes
import sys
import threading
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .loops import Loops, processor_has, ready, run, usable

# What the loop is told, in this order. *Own* is the matrix of which each thread takes some panels, or some k;
# *other* the one that it takes whole.
(
    PARTS,  # of the work, one a thread
    SCRATCH,  # address of memory for panels
    SCRATCH_BYTES,  # of each part
    OWN,  # address
    OWN_ROW,  # bytes from row to row, as it lies
    OWN_PANELS,  # how many
    OWN_IN_PAIRS,  # whether its rows are k's, not the product's
    OWN_TURNED,  # whether its tiles must be the transpose of what lies in memory
    OTHER,
    OTHER_ROW,
    OTHER_PANELS,
    OTHER_IN_PAIRS,
    OTHER_TURNED,
    OWN_IS_LEFT,
    OWN_AT_ONCE,  # panels that are made before they are used
    OTHER_AT_ONCE,
    STEPS,  # of k, 32 numbers each
    STEPS_AT_ONCE,
    OUT,
    OUT_ROW,
    START,  # address of what to add to, or 0
    START_ROW,
    PART_BYTES,  # of each part's own sums, where k is divided; 0: the panels are
) = range(23)

PANEL = 32
"""rows or columns of a panel, and numbers k of a step: only whole ones are the loop's"""
STEP_BYTES = 6 * 1024
"""of a panel, in three parts"""
# What is made before it is used stays in a core's second cache: at most 1.3 MB
_OWN_AT_ONCE, _OTHER_AT_ONCE, _STEPS_AT_ONCE = 2, 16, 12
_WORTH_IT = 2**26  # products of two numbers; fewer take as long as by PyTorch's library
_FEW_PARTS = 4  # sums of more parts of k would take too long to add up
_SUMS_BYTES = 32 * 2**20  # of all parts together, at most
_LOOPS = Loops("kernels.product_kernels")


@cache
def has_tiles() -> bool:
    """Whether this machine has tile registers, and Linux lets this process use them.

    The first call loads the loops, or has them compiled (some seconds).
    """
    if not sys.platform.startswith("linux") or not processor_has("amx-tile", "amx-bf16", "avx512bw"):
        return False
    return _are_permitted() and ready(_LOOPS.multiply, _LOOPS.add_parts)


def _are_permitted() -> bool:
    """Ask Linux, which saves the tiles of no process that has not asked."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def can_tile(M: int, K: int, N: int) -> bool:
    """Whether (M, K) · (K, N) gains by tiles."""
    whole = M // PANEL * (K // PANEL) * (N // PANEL) * PANEL**3
    return whole >= max(_WORTH_IT, 1) and 8 * whole >= 7 * M * K * N and has_tiles()


def mm(a: Tensor, b: Tensor, out: Tensor | None = None, add: Tensor | None = None) -> Tensor:
    """``a @ b``, or ``add + a @ b``, by tiles where that gains; without gradients.

    Args:
        a: (M, K).
        b: (K, N).
        out: (M, N), written to; may be ``add`` itself, but must not overlap any of the others otherwise.
        add: (M, N) or (N,).

    Returns:
        ``out``, or a new tensor.

    Example:
        >>> mm(torch.ones(2, 3), torch.ones(3, 2), add=torch.tensor([0.0, 1.0]))
        tensor([[3., 4.],
                [3., 4.]])
    """
    if not takes(a, b, out, add):
        return by_pytorch(a, b, out, add)
    (M, K), N = a.shape, b.size(1)
    if out is None:
        out = torch.empty(M, N, dtype=torch.float32, device="cpu")  # whatever the defaults are
    m, k, n = M // PANEL * PANEL, K // PANEL * PANEL, N // PANEL * PANEL
    if (m, k, n) == (M, K, N):
        _by_tiles(a, b, out, add)
        return out
    above, below = (add, add) if add is None or add.dim() == 1 else (add[:m], add[m:])
    _by_tiles(a[:m, :k], b[:k, :n], out[:m, :n], above if above is None else above[..., :n])
    # What is left over at the ends
    if k < K:
        whole = out[:m, :n]
        by_pytorch(a[:m, k:], b[k:, :n], whole, whole)
    if n < N:
        by_pytorch(a[:m], b[:, n:], out[:m, n:], above if above is None else above[..., n:])
    if m < M:
        by_pytorch(a[m:], b, out[m:], below)
    return out


def takes(a: Tensor, b: Tensor, out: Tensor | None = None, add: Tensor | None = None) -> bool:
    """Whether `mm` of these is by tiles."""
    if torch.compiler.is_compiling() or not a.is_cpu or not a.dim() == b.dim() == 2:
        return False
    return can_tile(a.size(0), a.size(1), b.size(1)) and _lie_well(a, b, out, add)


@torch.no_grad()
def by_pytorch(a: Tensor, b: Tensor, out: Tensor | None = None, add: Tensor | None = None) -> Tensor:
    """What `mm` gives, by PyTorch's library: slower, and infinity stays what it is."""
    return torch.mm(a, b, out=out) if add is None else torch.addmm(add, a, b, out=out)


def _lie_well(a: Tensor, b: Tensor, out: Tensor | None, add: Tensor | None) -> bool:
    """Whether addresses and distances say all: rows lie in one piece, of ``a`` and ``b`` rows or columns."""
    given = [t for t in (a, b, out, add) if t is not None]
    if not usable(*given, contiguous=False) or any(t.stride(-1) != 1 for t in given[2:]):
        return False
    (M, K), N = a.shape, b.size(1)  # what does not fit together is left for PyTorch to complain of
    fits = b.size(0) == K and (add is None or add.shape in ((M, N), (N,)))
    fits = fits and (out is None or (out.shape == (M, N) and out.stride(0) >= N))
    return fits and 1 in a.stride() and 1 in b.stride()


class _Side(NamedTuple):
    """A matrix of a product."""

    row: int
    panels: int
    in_pairs: bool
    turned: bool


class _Plan(NamedTuple):
    """What a product needs whose matrices have certain sizes and lie in a certain way."""

    divides_k: bool
    own_is_left: bool
    parts: int
    scratch_bytes: int
    own: _Side
    other: _Side
    rest: tuple[int, ...]  # from OWN_IS_LEFT to STEPS_AT_ONCE


@lru_cache(1024)
def _plan(M: int, K: int, N: int, a_steps: tuple[int, ...], b_steps: tuple[int, ...], threads: int) -> _Plan:
    a_in_pairs, b_in_pairs = a_steps[1] != 1, b_steps[1] == 1
    left = _Side(4 * a_steps[a_in_pairs], M // PANEL, a_in_pairs, turned=a_in_pairs)
    right = _Side(4 * b_steps[not b_in_pairs], N // PANEL, b_in_pairs, turned=not b_in_pairs)
    own, other = (left, right) if M >= N else (right, left)
    steps = K // PANEL
    # A gradient of weights sums over the batch: a thread that takes some of k reads what it has written
    # before, which to fetch from another's cache takes as long as half the product.
    sums_over_batch = a_in_pairs and K >= max(M, N) and threads <= _FEW_PARTS
    divides_k = sums_over_batch or K > 8 * max(M, N)
    divides_k = divides_k and threads > 1 and 4 * M * N * min(threads, steps) <= _SUMS_BYTES
    parts = min(threads, steps if divides_k else own.panels)
    own_at_once = min(own.panels, _OWN_AT_ONCE if own.in_pairs else 1)
    other_at_once = min(other.panels, _OTHER_AT_ONCE)
    own_steps = -(-steps // parts) if divides_k else steps
    steps_at_once = -(-own_steps // -(-own_steps // _STEPS_AT_ONCE))  # equal ones
    scratch_bytes = (own_at_once + other_at_once) * steps_at_once * STEP_BYTES
    rest = (own is left, own_at_once, other_at_once, steps, steps_at_once)
    return _Plan(divides_k, own is left, parts, scratch_bytes, own, other, rest)


def _by_tiles(a: Tensor, b: Tensor, out: Tensor, start: Tensor | None) -> None:
    """(M, K) · (K, N) of whole panels; see `mm`."""
    (M, K), N = a.shape, out.size(1)
    plan = _plan(M, K, N, a.stride(), b.stride(), torch.get_num_threads())
    parts = plan.parts
    own, other = a.data_ptr(), b.data_ptr()
    if not plan.own_is_left:
        own, other = other, own
    to = (out.data_ptr(), 4 * out.stride(0))
    begin = (0, 0) if start is None else (start.data_ptr(), 4 * start.stride(0) if start.dim() == 2 else 0)
    sums_bytes = 4 * M * N if plan.divides_k else 0
    space = scratch(parts * (plan.scratch_bytes + sums_bytes))
    sums = space + parts * plan.scratch_bytes
    target = (sums, 4 * N, 0, 0, sums_bytes) if plan.divides_k else (*to, *begin, 0)
    numbers = (
        parts, space, plan.scratch_bytes, own, *plan.own, other, *plan.other, *plan.rest, *target
    )  # fmt: skip
    run(_LOOPS.multiply, 0, parts, M * K * N // 16, numbers, ())
    if plan.divides_k:
        run(_LOOPS.add_parts, 0, M, M * N * parts, (parts, M, N, *begin, *to, sums), ())


_own = threading.local()


def scratch(n_bytes: int) -> int:
    """An address where this thread, and those that it calls, may write; kept, as new memory is slow."""
    held: Tensor | None = getattr(_own, "scratch", None)
    if held is None or held.numel() < n_bytes + 64:
        held = _own.scratch = torch.empty(n_bytes + 64, dtype=torch.uint8, device="cpu")
    return -(-held.data_ptr() // 64) * 64
