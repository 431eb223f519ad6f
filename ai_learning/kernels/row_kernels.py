"""Layers on tile registers, some rows at a time, as compiled loops; importing this imports numba.

`row_layers` names the numbers of a job. Of 32 rows everything stays in a core's nearest caches; the weights,
cut for the tiles, and the sums of their gradients in the second one.
"""

import numba
import numpy as np

from .gelu_kernels import derivative, derivative_new, share, share_new
from .loops.amx import PANEL, STEP, configure, multiply_panels, release
from .loops.compiler import fields, loop, on_stack
from .loops.registers import LANES, add, load, multiply, splat, store
from .product_kernels import make_panels, multiply_and_add
from .row_layers import (
    FC,
    FC_BIAS,
    GRAD_FC,
    GRAD_FC_BIAS,
    GRAD_PROJ,
    GRAD_PROJ_BIAS,
    GRAD_X,
    HIDDEN,
    IN,
    OUT,
    PARTS,
    PROJ,
    PROJ_BIAS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SUMS,
    SUMS_BYTES,
    WIDE,
    X,
    Y,
)

_LINE = 64
_ROW = 4 * PANEL
"""bytes of a row of a block, which is 32 × 32"""
_BLOCK = PANEL * _ROW
_SPACE = 3 * PANEL * PANEL + LANES
_ZERO = np.float32(0)


@numba.njit(inline="always")
def _add_bias(to, to_row, bias, width):  # type: ignore[no-untyped-def]
    """To (32, width) numbers, rows ``to_row`` bytes apart; where the bias's address is 0 there is none."""
    if bias:
        for n in range(PANEL):
            for place in range(0, 4 * width, _LINE):
                at = to + n * to_row + place
                store(at, add(load(at), load(bias + place)))


@numba.njit(inline="always")
def _add_product(to, left, right, block, is_first):  # type: ignore[no-untyped-def]
    """Of two panels of one step, added to a block of sums, which the first begins."""
    multiply_and_add(to, _ROW, 0 if is_first else to, _ROW, left, right, 1, block)


@numba.njit(inline="always")
def _sum_rows(to, block, block_row, width, is_first):  # type: ignore[no-untyped-def]
    """(32, width) → (width,), added to what is there."""
    for place in range(0, 4 * width, _LINE):
        total = splat(_ZERO)
        for n in range(PANEL):
            total = add(total, load(block + n * block_row + place))
        store(to + place, total if is_first else add(load(to + place), total))


@loop()
def linear(job, first, last):  # type: ignore[no-untyped-def]
    """Parts first … last−1: x → y."""
    job = fields(job)
    space = on_stack(_SPACE, np.float32)
    width, out = job[IN], job[HIDDEN]
    x_row, y_row = width * _ROW, out * _ROW
    configure(-(-space.ctypes.data // _LINE) * _LINE)
    for part in range(first, last):
        weight = job[SCRATCH] + part * job[SCRATCH_BYTES]
        x_panel = weight + out * width * STEP
        make_panels(weight, job[FC], x_row, out, width, 0, 1)
        for panel in range(job[ROWS] * part // job[PARTS], job[ROWS] * (part + 1) // job[PARTS]):
            make_panels(x_panel, job[X] + panel * PANEL * x_row, x_row, 1, width, 0, 0)
            y = job[WIDE] + panel * PANEL * y_row
            for j in range(out):
                multiply_panels(y + j * _ROW, y_row, x_panel, weight + j * width * STEP, width)
            _add_bias(y, y_row, job[FC_BIAS], out * PANEL)
    release()


@loop()
def linear_backward(job, first, last):  # type: ignore[no-untyped-def]
    """Parts first … last−1: x and the gradient of y → that of x, and the part's sums of the others."""
    job = fields(job)
    space = on_stack(_SPACE, np.float32)
    block = -(-space.ctypes.data // _LINE) * _LINE
    width, out = job[IN], job[HIDDEN]
    x_row, y_row = width * _ROW, out * _ROW
    configure(block)
    for part in range(first, last):
        weight = job[SCRATCH] + part * job[SCRATCH_BYTES]
        grad_rows = weight + out * width * STEP  # y's gradient, as A
        grad_columns = grad_rows + out * STEP  # its transpose, as A
        x_pairs = grad_columns + out * STEP  # x, as B
        grad_weight = job[SUMS] + part * job[SUMS_BYTES]
        grad_bias = grad_weight + out * width * _BLOCK
        make_panels(weight, job[FC], x_row, width, out, 1, 0)
        begin = job[ROWS] * part // job[PARTS]
        for panel in range(begin, job[ROWS] * (part + 1) // job[PARTS]):
            is_first = panel == begin
            grad, x = job[WIDE] + panel * PANEL * y_row, job[X] + panel * PANEL * x_row
            make_panels(grad_rows, grad, y_row, 1, out, 0, 0)
            for i in range(width):
                to = job[GRAD_X] + panel * PANEL * x_row + i * _ROW
                multiply_panels(to, x_row, grad_rows, weight + i * out * STEP, out)
            make_panels(grad_columns, grad, y_row, out, 1, 1, 1)
            make_panels(x_pairs, x, x_row, width, 1, 1, 0)
            for j in range(out):
                for i in range(width):
                    to = grad_weight + (j * width + i) * _BLOCK
                    _add_product(to, grad_columns + j * STEP, x_pairs + i * STEP, block, is_first)
            _sum_rows(grad_bias, grad, y_row, out * PANEL, is_first)
    release()


@numba.njit(inline="always")
def _forward(job, first, last, activation):  # type: ignore[no-untyped-def]
    """Parts first … last−1: x → h and y."""
    job = fields(job)
    space = on_stack(_SPACE, np.float32)
    block = -(-space.ctypes.data // _LINE) * _LINE
    width, hidden, out = job[IN], job[HIDDEN], job[OUT]
    x_row, h_row, y_row = width * _ROW, hidden * _ROW, out * _ROW
    configure(block)
    for part in range(first, last):
        fc = job[SCRATCH] + part * job[SCRATCH_BYTES]
        proj = fc + hidden * width * STEP
        x_panel = proj + out * hidden * STEP
        g_panel = x_panel + width * STEP
        make_panels(fc, job[FC], x_row, hidden, width, 0, 1)
        make_panels(proj, job[PROJ], h_row, out, hidden, 0, 1)
        for panel in range(job[ROWS] * part // job[PARTS], job[ROWS] * (part + 1) // job[PARTS]):
            make_panels(x_panel, job[X] + panel * PANEL * x_row, x_row, 1, width, 0, 0)
            for j in range(hidden):
                wide = job[WIDE] + (panel * hidden + j) * _BLOCK
                multiply_panels(block, _ROW, x_panel, fc + j * width * STEP, width)
                bias = job[FC_BIAS] + j * _ROW
                for place in range(0, _BLOCK, _LINE):
                    value = load(block + place)
                    if job[FC_BIAS]:
                        value = add(value, load(bias + place % _ROW))
                    store(wide + place, value)
                    store(block + place, multiply(value, activation(value)))
                make_panels(g_panel + j * STEP, block, _ROW, 1, 1, 0, 0)
            for j in range(out):
                y = job[Y] + panel * PANEL * y_row + j * _ROW
                multiply_panels(y, y_row, g_panel, proj + j * hidden * STEP, hidden)
                _add_bias(y, y_row, job[PROJ_BIAS] + j * _ROW if job[PROJ_BIAS] else 0, PANEL)
    release()


@numba.njit(inline="always")
def _backward(job, first, last, activation, slope):  # type: ignore[no-untyped-def]
    """Parts first … last−1: x, h and the gradient of y → that of x, and the part's sums of the others."""
    job = fields(job)
    space = on_stack(_SPACE, np.float32)
    d_block = -(-space.ctypes.data // _LINE) * _LINE
    g_block = d_block + _BLOCK
    sums_block = g_block + _BLOCK
    width, hidden, out = job[IN], job[HIDDEN], job[OUT]
    x_row, h_row, y_row = width * _ROW, hidden * _ROW, out * _ROW
    configure(d_block)
    for part in range(first, last):
        fc = job[SCRATCH] + part * job[SCRATCH_BYTES]
        proj = fc + hidden * width * STEP
        grad_rows = proj + out * hidden * STEP  # y's gradient, as A
        grad_columns = grad_rows + out * STEP  # its transpose, as A
        x_pairs = grad_columns + out * STEP  # x, as B
        d_rows = x_pairs + width * STEP  # h's gradient, as A
        d_columns = d_rows + hidden * STEP  # its transpose, a panel of it
        g_pairs = d_columns + STEP
        grad_fc = job[SUMS] + part * job[SUMS_BYTES]
        grad_proj = grad_fc + hidden * width * _BLOCK
        grad_fc_bias = grad_proj + out * hidden * _BLOCK
        grad_proj_bias = grad_fc_bias + h_row
        make_panels(fc, job[FC], x_row, width, hidden, 1, 0)
        make_panels(proj, job[PROJ], h_row, hidden, out, 1, 0)
        begin = job[ROWS] * part // job[PARTS]
        for panel in range(begin, job[ROWS] * (part + 1) // job[PARTS]):
            is_first = panel == begin
            grad = job[Y] + panel * PANEL * y_row
            make_panels(grad_rows, grad, y_row, 1, out, 0, 0)
            make_panels(grad_columns, grad, y_row, out, 1, 1, 1)
            make_panels(x_pairs, job[X] + panel * PANEL * x_row, x_row, width, 1, 1, 0)
            _sum_rows(grad_proj_bias, grad, y_row, out * PANEL, is_first)
            for j in range(hidden):
                wide = job[WIDE] + (panel * hidden + j) * _BLOCK
                multiply_panels(d_block, _ROW, grad_rows, proj + j * out * STEP, out)
                for place in range(0, _BLOCK, _LINE):
                    value = load(wide + place)
                    store(g_block + place, multiply(value, activation(value)))
                    store(d_block + place, multiply(load(d_block + place), slope(value)))
                _sum_rows(grad_fc_bias + j * _ROW, d_block, _ROW, PANEL, is_first)
                make_panels(d_rows + j * STEP, d_block, _ROW, 1, 1, 0, 0)
                make_panels(d_columns, d_block, _ROW, 1, 1, 1, 1)
                make_panels(g_pairs, g_block, _ROW, 1, 1, 1, 0)
                for i in range(out):
                    to = grad_proj + (i * hidden + j) * _BLOCK
                    _add_product(to, grad_columns + i * STEP, g_pairs, sums_block, is_first)
                for i in range(width):
                    to = grad_fc + (j * width + i) * _BLOCK
                    _add_product(to, d_columns, x_pairs + i * STEP, sums_block, is_first)
            for i in range(width):
                to = job[GRAD_X] + panel * PANEL * x_row + i * _ROW
                multiply_panels(to, x_row, d_rows, fc + i * hidden * STEP, hidden)
    release()


@loop()
def mlp(job, first, last):  # type: ignore[no-untyped-def]
    """See `_forward`."""
    _forward(job, first, last, share)


@loop()
def mlp_backward(job, first, last):  # type: ignore[no-untyped-def]
    """See `_backward`."""
    _backward(job, first, last, share, derivative)


@loop()
def mlp_new(job, first, last):  # type: ignore[no-untyped-def]
    """See `_forward`."""
    _forward(job, first, last, share_new)


@loop()
def mlp_new_backward(job, first, last):  # type: ignore[no-untyped-def]
    """See `_backward`."""
    _backward(job, first, last, share_new, derivative_new)


@numba.njit(inline="always")
def _add_up(to, sums, distance, parts):  # type: ignore[no-untyped-def]
    """A register's numbers: the sums of all parts."""
    total = load(sums)
    for part in range(1, parts):
        total = add(total, load(sums + part * distance))
    store(to, total)


@loop()
def add_gradients(job, first, last):  # type: ignore[no-untyped-def]
    """The parts' sums → gradients of weights and biases; of each every one of ROWS shares does its part."""
    job = fields(job)
    width, hidden, out = job[IN], job[HIDDEN], job[OUT]
    parts, shares, sums, distance = job[PARTS], job[ROWS], job[SUMS], job[SUMS_BYTES]
    for layer in range(2):
        to, high, wide = (job[GRAD_PROJ], out, hidden) if layer else (job[GRAD_FC], hidden, width)
        blocks = high * wide
        for block in range(blocks * first // shares, blocks * last // shares):
            place = to + (block // wide * PANEL * wide + block % wide) * _ROW
            for n in range(PANEL):
                for line in range(0, _ROW, _LINE):
                    source = sums + block * _BLOCK + n * _ROW + line
                    _add_up(place + n * wide * _ROW + line, source, distance, parts)
        sums += blocks * _BLOCK
    for layer in range(2):
        to, lines = (job[GRAD_PROJ_BIAS], 2 * out) if layer else (job[GRAD_FC_BIAS], 2 * hidden)
        if to:
            for line in range(lines * first // shares, lines * last // shares):
                _add_up(to + line * _LINE, sums + line * _LINE, distance, parts)
        sums += lines * _LINE
