"""The compiled loops behind `shortlist`; importing this module imports numba."""

import numpy as np

from .loops.compiler import array, fields, loop


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
