"""Small linear layers, and MLPs of them, on a CPU's tile registers, some rows at a time.

Matrix by matrix, what lies between two products comes back from a cache that is far away, and small matrices
take as long to fetch as to multiply. Here each thread keeps the weights, cut for the tiles, in its core's
second cache, with the sums of their gradients, and takes 32 rows through all that is to be done with them
(`row_kernels`). What fits there is a layer of a model that is a few hundred wide; larger products are
`products.mm`'s.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .host_memory import is_plain
from .loops import Loops, StoredLoop, ready, run
from .products import PANEL, STEP_BYTES, has_tiles, scratch

# What the loops are told, in this order; sizes in panels of 32, addresses, 0 for what is not there. A linear
# layer alone is the first one of an MLP.
(
    PARTS,  # of the rows, one a thread
    ROWS,  # R
    IN,  # C
    HIDDEN,  # H
    OUT,  # O
    SCRATCH,
    SCRATCH_BYTES,  # of each part
    SUMS,  # the parts' sums of gradients: of both weights, then of both biases
    SUMS_BYTES,  # of each part
    X,  # (R, C)
    FC,  # (H, C)
    FC_BIAS,  # (H,)
    PROJ,  # (O, H)
    PROJ_BIAS,  # (O,)
    WIDE,  # what GELU is given, in blocks of 32 × 32; a linear layer's (R, H) output, or its gradient
    Y,  # (R, O); in the backward pass its gradient
    GRAD_X,
    GRAD_FC,
    GRAD_FC_BIAS,
    GRAD_PROJ,
    GRAD_PROJ_BIAS,
) = range(21)

_MOST_WEIGHTS = 2**17
"""cut, and with the sums of their gradients, they fill two thirds of a second cache of 2 MB"""
_ROWS_OF_A_THREAD = 4 * PANEL
"""fewer would not pay for cutting the weights"""
_ENOUGH_ROWS = 2 * _ROWS_OF_A_THREAD
_SHARES = 8  # in which the parts' sums are added up
_LOOPS = Loops("kernels.row_kernels")


class Form(NamedTuple):
    """Of GELU: PyTorch's name of it, and the loops of an MLP that has it."""

    approximate: str
    forward: StoredLoop
    backward: StoredLoop


FORMS = {
    "none": Form("none", _LOOPS.mlp, _LOOPS.mlp_backward),
    "tanh": Form("tanh", _LOOPS.mlp_new, _LOOPS.mlp_new_backward),
}


def may_fit(*weights: Tensor) -> bool:
    """Whether weights (N, K) are whole panels, and leave room in the cache."""
    if any(w.dim() != 2 or w.numel() == 0 or w.size(0) % PANEL or w.size(1) % PANEL for w in weights):
        return False
    return sum(w.numel() for w in weights) <= _MOST_WEIGHTS


def are_enough(rows: int) -> bool:
    """Whether so many gain."""
    return rows % PANEL == 0 and rows >= _ENOUGH_ROWS


@cache
def has_loops() -> bool:
    """Whether this machine can run them; the first call loads them, or has them compiled (some seconds)."""
    loops = [loop for form in FORMS.values() for loop in (form.forward, form.backward)]
    return has_tiles() and ready(_LOOPS.linear, _LOOPS.linear_backward, *loops, _LOOPS.add_gradients)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., C) → (..., H)."""
    y = x.new_empty(*x.shape[:-1], weight.size(0))
    _, _, C, H, _ = sizes = _sizes(x, weight)
    n_bytes = (H * C + C) * STEP_BYTES
    _run(_LOOPS.linear, sizes, n_bytes, 0, (x, weight, bias, None, None), (y,))
    return y


def linear_backward(
    x: Tensor, weight: Tensor, grad: Tensor, wants_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and, where wanted, bias, from the output's (..., H)."""
    _, _, C, H, _ = sizes = _sizes(x, weight)
    d_x, d_weight = x.new_empty(x.shape), weight.new_empty(weight.shape)
    d_bias = weight.new_empty(len(weight)) if wants_bias else None
    n_bytes = (H * C + 2 * H + C) * STEP_BYTES
    sums_bytes = 4 * (weight.numel() + len(weight))
    given, made = (x, weight, None, None, None, grad, None), (d_x, d_weight, d_bias)
    _run(_LOOPS.linear_backward, sizes, n_bytes, sums_bytes, given, made)
    return d_x, d_weight, d_bias


def mlp(
    form: Form, x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(..., C) → the output (..., O), and (..., H) what GELU was given, in blocks for `mlp_backward`."""
    _, _, C, H, out = sizes = _sizes(x, fc, proj)
    wide, y = (x.new_empty(*x.shape[:-1], layer.size(0)) for layer in (fc, proj))
    n_bytes = (H * C + out * H + C + H) * STEP_BYTES
    _run(form.forward, sizes, n_bytes, 0, (x, fc, fc_bias, proj, proj_bias), (wide, y))
    return y, wide


def mlp_backward(
    form: Form, x: Tensor, fc: Tensor, proj: Tensor, wide: Tensor, grad: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, and of both layers' weight and bias, from the output's (..., O)."""
    _, _, C, H, out = sizes = _sizes(x, fc, proj)
    d_x, d_fc, d_proj = (t.new_empty(t.shape) for t in (x, fc, proj))
    d_fc_bias, d_proj_bias = (weight.new_empty(len(weight)) for weight in (fc, proj))
    grads = (d_x, d_fc, d_fc_bias, d_proj, d_proj_bias)
    n_bytes = (H * C + out * H + 2 * out + C + H + 2) * STEP_BYTES
    sums_bytes = 4 * (fc.numel() + proj.numel() + fc.size(0) + proj.size(0))
    _run(form.backward, sizes, n_bytes, sums_bytes, (x, fc, None, proj, None, wide, grad), grads)
    return grads


def _sizes(x: Tensor, fc: Tensor, proj: Tensor | None = None) -> tuple[int, ...]:
    """From PARTS to OUT."""
    rows = x.numel() // x.size(-1)
    parts = min(torch.get_num_threads(), rows // _ROWS_OF_A_THREAD)
    widths = (fc.size(1), fc.size(0), 0 if proj is None else proj.size(0))
    return parts, rows // PANEL, *(width // PANEL for width in widths)


def _run(
    loop: StoredLoop,
    sizes: tuple[int, ...],
    n_bytes: int,
    sums_bytes: int,
    given: Sequence[Tensor | None],
    made: Sequence[Tensor | None],
) -> None:
    """The loop for all rows, then the sums of all parts, if there are any."""
    given = [None if t is None else t.contiguous() for t in given]
    assert is_plain(*(t for t in (*given, *made) if t is not None))
    parts, rows, width, hidden, out = sizes
    space = scratch(parts * (n_bytes + sums_bytes))
    sums = space + parts * n_bytes if sums_bytes else 0
    addresses = [0 if t is None else t.data_ptr() for t in (*given, *made)]
    numbers = (*sizes, space, n_bytes, sums, sums_bytes, *addresses)
    run(loop, 0, parts, rows * (width + out) * hidden * PANEL**2, numbers, ())
    if sums_bytes:
        numbers = (parts, _SHARES, *numbers[2:])
        run(_LOOPS.add_gradients, 0, _SHARES, sums_bytes * parts, numbers, ())
