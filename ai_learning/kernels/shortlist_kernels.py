"""The compiled loops behind `shortlist`; importing this module imports numba."""

import numpy as np

from .loops.amx import configure, multiply_bytes, release
from .loops.compiler import array, fields, loop, on_stack
from .loops.registers import (
    LANES,
    add,
    fma,
    larger,
    load,
    load_whole,
    multiply,
    not_below,
    splat,
    store,
    subtract,
)

STATES, ROWS, DEPTH = 16, 32, 64
"""states, rows of the weight, and numbers of each, that are multiplied at once"""
_LINE = 64
_SPACE = 2 * ROWS * STATES + LANES


@loop(fastmath=True)
def round_rows(job, first, last):  # type: ignore[no-untyped-def]
    """Rows first … last−1 of a weight (V, C) → codes (V, C) int8, scales (V,), errors (V,).

    The job: V, C, then the addresses of the four. ``errors`` holds ``‖row − codes · scale‖``.
    """
    job = fields(job)
    V, C = job[0], job[1]
    weight = array(job, 2, V * C, np.float32)
    codes = array(job, 3, V * C, np.int8)
    scales = array(job, 4, V, np.float32)
    errors = array(job, 5, V, np.float32)
    for row in range(first, last):
        values, own = weight[row * C : row * C + C], codes[row * C : row * C + C]
        largest = np.float32(0)
        for i in range(C):
            largest = max(largest, abs(values[i]))
        scale = max(largest, np.float32(1e-30)) / np.float32(127)
        inverse = np.float32(1) / scale
        square = np.float32(0)
        for i in range(C):
            code = np.int8(np.rint(values[i] * inverse))
            own[i] = code
            off = values[i] * inverse - np.float32(code)  # in units of the scale: no square vanishes
            square += off * off
        scales[row], errors[row] = scale, np.sqrt(square) * scale


@loop(fastmath=True)
def bound_logits(job, first, last):  # type: ignore[no-untyped-def]
    """Rows first … last−1: ``codes · x · scale ∓ ‖x‖ · error`` → low (V,) and high (V,).

    The job: V, C, then the addresses of x (C,), codes, scales, errors, low and high.
    """
    job = fields(job)
    V, C = job[0], job[1]
    x = array(job, 2, C, np.float32)
    codes = array(job, 3, V * C, np.int8)
    scales = array(job, 4, V, np.float32)
    errors = array(job, 5, V, np.float32)
    low = array(job, 6, V, np.float32)
    high = array(job, 7, V, np.float32)
    square = 0.0  # in float64: squares of small numbers vanish in float32
    for i in range(C):
        square += np.float64(x[i]) * np.float64(x[i])
    norm = np.float32(np.sqrt(square))
    # Four rows at a time, far from each other: a processor fetches four streams faster than one.
    quarter = (last - first + 3) // 4
    for r in range(first, first + quarter):
        row = (r, min(r + quarter, last - 1), min(r + 2 * quarter, last - 1), min(r + 3 * quarter, last - 1))
        a, b, c, d = codes[row[0] * C :], codes[row[1] * C :], codes[row[2] * C :], codes[row[3] * C :]
        dot_a = dot_b = dot_c = dot_d = np.float32(0)
        for i in range(C):
            dot_a += np.float32(a[i]) * x[i]
            dot_b += np.float32(b[i]) * x[i]
            dot_c += np.float32(c[i]) * x[i]
            dot_d += np.float32(d[i]) * x[i]
        for k, dot in enumerate((dot_a, dot_b, dot_c, dot_d)):
            logit, off = dot * scales[row[k]], norm * errors[row[k]]
            low[row[k]], high[row[k]] = logit - off, logit + off


@loop()
def split_states(job, first, last):  # type: ignore[no-untyped-def]
    """States first … last−1 (B, C) → two int8 for each number, and four factors for each state.

    With scale s a number is ``s · (high + low / 254)``, but for an error. The job: C, then the addresses of
    the states; of tiles (groups of 16 states, C / 64, 2, 16, 16, 4): high and low of fours of numbers; and of
    factors (groups, 4, 16): ``s``, ``s / 254``, ``‖x‖`` and what multiplied by a row's scale bounds the rest.
    """
    job = fields(job)
    C = job[0]
    states = array(job, 1, last * C, np.float32)
    groups = (last + STATES - 1) // STATES
    tiles = array(job, 2, groups * STATES * C * 2, np.int8)
    factors = array(job, 3, groups * 4 * STATES, np.float32)
    for n in range(first, last):
        x, group, lane = states[n * C : n * C + C], n // STATES, n % STATES
        largest = np.float32(0)
        for i in range(C):
            largest = max(largest, abs(x[i]))
        scale = largest / np.float32(127)
        low_scale = scale / np.float32(254)
        square, rest = 0.0, 0.0
        for i in range(C):
            units = x[i] / scale
            high = np.rint(units)
            low = np.rint((units - high) * np.float32(254))
            off = np.float64(x[i]) - (np.float64(scale) * high + np.float64(low_scale) * low)
            square += np.float64(x[i]) * np.float64(x[i])
            rest += off * off
            step, k = i // DEPTH, i % DEPTH
            place = (((group * (C // DEPTH) + step) * 2) * STATES + k // 4) * DEPTH + lane * 4 + k % 4
            tiles[place] = np.int8(high)
            tiles[place + STATES * DEPTH] = np.int8(low)
        own = group * 4 * STATES + lane
        factors[own], factors[own + STATES] = scale, low_scale
        factors[own + 2 * STATES] = np.sqrt(square) * (1 + 1e-6)
        factors[own + 3 * STATES] = np.sqrt(rest) * (1 + 1e-6) * 127 * np.sqrt(np.float64(C))


@loop()
def bound_logits_of_batch(job, first, last):  # type: ignore[no-untyped-def]
    """Parts first … last−1 of the rows: those that can be the likeliest of a state, as far as the part knows.

    The job: V, C, parts, groups, room; then the addresses of codes, scales, errors; tiles and factors
    (`split_states`); best (parts, groups, 16), at first what no bound is below, then the largest lower bound;
    counts (parts, groups) int64 of the rows found, of which at most ``room`` are kept; rows (parts, groups,
    room) int64, and high (parts, groups, room, 16), their upper bounds.
    """
    job = fields(job)
    V, C, parts, groups, room = job[0], job[1], job[2], job[3], job[4]
    scales = array(job, 6, V, np.float32)
    errors = array(job, 7, V, np.float32)
    counts = array(job, 11, parts * groups, np.int64)
    rows = array(job, 12, parts * groups * room, np.int64)
    space = on_stack(_SPACE, np.float32)
    sums = -(-space.ctypes.data // _LINE) * _LINE
    configure(sums)
    units = (V + ROWS - 1) // ROWS
    for part in range(first, last):
        for group in range(groups):
            counts[part * groups + group] = 0
        for unit in range(units * part // parts, units * (part + 1) // parts):
            begin = min(unit * ROWS, V - ROWS)  # the last ones may have been looked at before
            for group in range(groups):
                own = part * groups + group
                multiply_bytes(sums, job[5] + begin * C, C, job[8] + group * STATES * C * 2, C // DEPTH)
                factors = job[9] + group * 4 * _LINE
                high_scale, low_scale = load(factors), load(factors + _LINE)
                norm, rest = load(factors + 2 * _LINE), load(factors + 3 * _LINE)
                best = load(job[10] + own * _LINE)
                count = counts[own]
                for n in range(ROWS):
                    scale, error = splat(scales[begin + n]), splat(errors[begin + n])
                    line = sums + 2 * n * _LINE
                    dot = fma(high_scale, load_whole(line), multiply(low_scale, load_whole(line + _LINE)))
                    logit, off = multiply(scale, dot), fma(error, norm, multiply(scale, rest))
                    high = add(logit, off)
                    best = larger(subtract(logit, off), best)
                    if not_below(high, best):
                        if count < room:
                            rows[own * room + count] = begin + n
                            store(job[13] + (own * room + count) * _LINE, high)
                        count += 1
                counts[own] = count
                store(job[10] + own * _LINE, best)
    release()


@loop()
def largest_of_columns(job, first, last):  # type: ignore[no-untyped-def]
    """Columns first … last−1 of logits (V, B) → rows (B,) int64: where each is largest, the first of several.

    The job: V, B, then the addresses of both and of room for (B,) float32. NaN is larger than any number.
    """
    job = fields(job)
    V, B = job[0], job[1]
    logits = array(job, 2, V * B, np.float32)
    rows = array(job, 3, B, np.int64)
    best = array(job, 4, B, np.float32)
    for b in range(first, last):
        best[b], rows[b] = logits[b], 0
    for v in range(1, V):
        larger = False  # rarely, after the first rows: so that the usual turn is one comparison of vectors
        for b in range(first, last):
            larger |= not (logits[v * B + b] <= best[b])
        if larger:
            for b in range(first, last):
                if not (logits[v * B + b] <= best[b]) and best[b] == best[b]:
                    best[b], rows[b] = logits[v * B + b], v
