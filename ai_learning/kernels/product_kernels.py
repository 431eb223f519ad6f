"""Products of float32 matrices on tile registers, as compiled loops; importing this imports numba."""

import numba
import numpy as np

from .loops.amx import PANEL, STEP, TILE, configure, expect, multiply_panels, release, split_pair, split_row
from .loops.compiler import fields, loop, on_stack
from .loops.registers import LANES, add, load, store
from .loops.tile import transpose_tile
from .products import (
    OTHER,
    OTHER_AT_ONCE,
    OTHER_IN_PAIRS,
    OTHER_PANELS,
    OTHER_ROW,
    OTHER_TURNED,
    OUT,
    OUT_ROW,
    OWN,
    OWN_AT_ONCE,
    OWN_IN_PAIRS,
    OWN_IS_LEFT,
    OWN_PANELS,
    OWN_ROW,
    OWN_TURNED,
    PART_BYTES,
    PARTS,
    SCRATCH,
    SCRATCH_BYTES,
    START,
    START_ROW,
    STEPS,
    STEPS_AT_ONCE,
)
from .products import PANEL as THEIR_PANEL
from .products import STEP_BYTES as THEIR_STEP

assert (PANEL, STEP) == (THEIR_PANEL, THEIR_STEP)

_HALF = PANEL // 2
_LINE = 64
"""bytes of a line of the cache"""
_BLOCK_SPACE = PANEL * PANEL + _LINE


@numba.njit(inline="always")
def make_panels(to, source, row, panels, steps, in_pairs, turned):  # type: ignore[no-untyped-def]
    """32 rows of a matrix for each panel, or where it is ``in_pairs`` 32 columns, one panel after another.

    Rows become tiles of A and pairs tiles of B, or where ``turned`` the other's.
    """
    size = steps * STEP
    if in_pairs:
        for pair in range(steps * LANES):  # as they lie in memory
            first = source + 2 * pair * row
            tile_row = to + pair // LANES * STEP + pair % LANES * _LINE
            for half in range(2 * panels):
                place = first + half * _LINE
                split_pair(tile_row + half // 2 * size + half % 2 * TILE, place, place + row)
    else:
        for n in range(panels * PANEL):
            tile_row = to + n // PANEL * size + n % PANEL // _HALF * TILE + n % _HALF * _LINE
            for step in range(steps):
                split_row(tile_row + step * STEP, source + n * row + step * 4 * PANEL)
    if turned:
        for tile in range(to, to + panels * size, TILE):
            transpose_tile(tile, _LINE, tile, _LINE)


@numba.njit(inline="always")
def _distances(row, in_pairs):  # type: ignore[no-untyped-def]
    """Bytes from panel to panel of a matrix, and from step to step."""
    return (4 * PANEL, PANEL * row) if in_pairs else (PANEL * row, 4 * PANEL)


@numba.njit(inline="always")
def _expect_rows(source, row, first, last, width):  # type: ignore[no-untyped-def]
    """Have rows of lines brought nearer: across rows the processor does not look ahead by itself."""
    for n in range(first, last):
        for line in range(width):
            expect(source + n * row + line * _LINE)


@numba.njit(inline="always")
def multiply_and_add(to, to_row, start, start_row, left, right, steps, block):  # type: ignore[no-untyped-def]
    """``start + A·B`` of two panels; where there is no start, A·B.

    Each block's sums begin at 0: of many k, their errors are smaller than those of one long sum.
    """
    if not start:
        multiply_panels(to, to_row, left, right, steps)
        return
    multiply_panels(block, 4 * PANEL, left, right, steps)
    for row in range(PANEL):
        for column in range(0, 4 * PANEL, _LINE):
            sums = load(block + row * 4 * PANEL + column)
            store(to + row * to_row + column, add(load(start + row * start_row + column), sums))


@loop()
def multiply(job, first, last):  # type: ignore[no-untyped-def]
    """Parts first … last−1 of a product: see `products`, which names the job's numbers."""
    job = fields(job)
    block_space = on_stack(_BLOCK_SPACE, np.float32)
    block = -(-block_space.ctypes.data // _LINE) * _LINE
    own_panel, own_step = _distances(job[OWN_ROW], job[OWN_IN_PAIRS])
    other_panel, other_step = _distances(job[OTHER_ROW], job[OTHER_IN_PAIRS])
    configure(block)
    for part in range(first, last):
        own = job[SCRATCH] + part * job[SCRATCH_BYTES]
        others = own + job[OWN_AT_ONCE] * job[STEPS_AT_ONCE] * STEP
        out = job[OUT] + part * job[PART_BYTES]
        n_first, n_last, k_first, k_last = 0, job[OWN_PANELS], 0, job[STEPS]
        if job[PART_BYTES]:
            k_first, k_last = k_last * part // job[PARTS], k_last * (part + 1) // job[PARTS]
        else:
            n_first, n_last = n_last * part // job[PARTS], n_last * (part + 1) // job[PARTS]
        for m_first in range(0, job[OTHER_PANELS], job[OTHER_AT_ONCE]):
            n_others = min(job[OTHER_AT_ONCE], job[OTHER_PANELS] - m_first)
            start, start_row = job[START], job[START_ROW]
            for k in range(k_first, k_last, job[STEPS_AT_ONCE]):
                steps = min(job[STEPS_AT_ONCE], k_last - k)
                source = job[OTHER] + m_first * other_panel + k * other_step
                row, in_pairs, turned = job[OTHER_ROW], job[OTHER_IN_PAIRS], job[OTHER_TURNED]
                make_panels(others, source, row, n_others, steps, in_pairs, turned)
                row, in_pairs, turned = job[OWN_ROW], job[OWN_IN_PAIRS], job[OWN_TURNED]
                for n in range(n_first, n_last, job[OWN_AT_ONCE]):
                    n_own = min(job[OWN_AT_ONCE], n_last - n)
                    source = job[OWN] + n * own_panel + k * own_step
                    make_panels(own, source, row, n_own, steps, in_pairs, turned)
                    blocks = n_own * n_others
                    # Before each block some rows of the panels that come next
                    ahead = source + n_own * own_panel
                    n_ahead = min(job[OWN_AT_ONCE], n_last - n - n_own)
                    rows, width = (steps * PANEL, n_ahead * 2) if in_pairs else (n_ahead * PANEL, steps * 2)
                    for b in range(blocks):
                        _expect_rows(ahead, row, rows * b // blocks, rows * (b + 1) // blocks, width)
                        left, right = own + b // n_others * steps * STEP, others + b % n_others * steps * STEP
                        i, j = n + b // n_others, m_first + b % n_others
                        if not job[OWN_IS_LEFT]:
                            left, right, i, j = right, left, j, i
                        to = out + i * PANEL * job[OUT_ROW] + j * 4 * PANEL
                        given = start + i * PANEL * start_row + j * 4 * PANEL if start else 0
                        multiply_and_add(to, job[OUT_ROW], given, start_row, left, right, steps, block)
                start, start_row = out, job[OUT_ROW]
    release()


@loop()
def add_parts(job, first, last):  # type: ignore[no-untyped-def]
    """Rows first … last−1 of the parts' sums (parts, rows, width) → out.

    The job: parts, rows, width, address and bytes from row to row of what to add to, the same of out; then
    the parts.
    """
    parts, rows, width, start, start_row, out, out_row, sums = fields(job)[:8]
    for row in range(first, last):
        for column in range(0, 4 * width, _LINE):
            place = sums + 4 * row * width + column
            total = load(place)
            for part in range(1, parts):
                total = add(total, load(place + 4 * part * rows * width))
            if start:
                total = add(load(start + row * start_row + column), total)
            store(out + row * out_row + column, total)
