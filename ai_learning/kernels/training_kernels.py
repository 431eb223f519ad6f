"""The compiled loops of a training step on a CPU; importing this module imports numba."""

import numba
import numpy as np

from .fast_adamw import CHUNK_FIELDS, RATES
from .loops.compiler import array, at, fields, loop
from .loops.math import exp, maximum

_ZERO = np.float32(0)

# --- the loss ---------------------------------------------------------------------------------------------

_BLOCK = 4096  # logits: sums of float32 lose little over so many, and they stay in the nearest cache


@loop(fastmath={"contract", "reassoc", "nsz"})
def unnormalised_softmax(job, first, last):  # type: ignore[no-untyped-def]
    """Rows first … last−1 of logits (N, V), in place: ``exp(logit − largest)``, less the sum at the target.

    The job: N, V, then the addresses of the logits, targets (N,) int64, and the two results: sums (N,) and
    losses (N,). Divided by its sum, a row is ``softmax − one_hot``.
    """
    job = fields(job)
    N, V = job[0], job[1]
    logits = array(job, 2, N * V, np.float32)
    targets = array(job, 3, N, np.int64)
    sums = array(job, 4, N, np.float32)
    losses = array(job, 5, N, np.float32)
    for n in range(first, last):
        row = logits[n * V : n * V + V]
        wanted, largest = row[targets[n]], row[0]
        for i in range(V):
            largest = maximum(largest, row[i])
        total = np.float64(0)
        for start in range(0, V, _BLOCK):
            block = row[start : min(start + _BLOCK, V)]
            part = _ZERO
            for i in range(len(block)):
                block[i] = exp(block[i] - largest)
                part += block[i]
            total += part
        sums[n], losses[n] = total, np.log(total) + (largest - wanted)
        row[targets[n]] -= np.float32(total)


@loop(fastmath={"contract", "reassoc", "nsz"})
def running_softmax(job, first, last):  # type: ignore[no-untyped-def]
    """Rows first … last−1 of the next columns of logits (N, V), in place: ``exp(logit − largest so far)``.

    Sums and the d_hidden of the columns before are scaled to the new largest. The job: N, V, C, the first
    column's id, then the addresses of the logits, targets (N,) int64, what is known of each row (N, 3)
    float64: largest, sum, the target's logit; and of d_hidden (N, C).
    """
    job = fields(job)
    N, V, C, start = job[0], job[1], job[2], job[3]
    logits = array(job, 4, N * V, np.float32)
    targets = array(job, 5, N, np.int64)
    known = array(job, 6, 3 * N, np.float64)
    d_hidden = array(job, 7, N * C, np.float32)
    for n in range(first, last):
        row, mine = logits[n * V : n * V + V], known[3 * n : 3 * n + 3]
        if start <= targets[n] < start + V:
            mine[2] = row[targets[n] - start]
        before = np.float32(mine[0])
        largest = before
        for i in range(len(row)):
            largest = maximum(largest, row[i])
        total = _ZERO
        for i in range(len(row)):
            row[i] = exp(row[i] - largest)
            total += row[i]
        if largest > before:
            scale = exp(before - largest)  # 0 before the first columns, when d_hidden holds nothing yet
            mine[0], mine[1] = largest, mine[1] * scale
            wide = d_hidden[n * C : n * C + C]
            for i in range(len(wide) if start else 0):
                wide[i] *= scale
        mine[1] += total


# --- AdamW ------------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _chunk(job, place, number):  # type: ignore[no-untyped-def]
    return at(job[place] + 8 * CHUNK_FIELDS * number, CHUNK_FIELDS, np.int64)


@loop(fastmath={"contract", "reassoc", "nsz"})
def sum_squares(job, first, last):  # type: ignore[no-untyped-def]
    """Chunks first … last−1 of the gradients → their sums of squares (chunks,) float64.

    The job: chunks, then the addresses of the chunks and of the sums.
    """
    job = fields(job)
    sums = array(job, 2, job[0], np.float64)
    for number in range(first, last):
        chunk = _chunk(job, 1, number)
        grad = at(chunk[1], chunk[4], np.float32)
        total = _ZERO
        for i in range(len(grad)):
            total += grad[i] * grad[i]
        sums[number] = total


@loop(fastmath={"contract"})
def adamw(job, first, last):  # type: ignore[no-untyped-def]
    """One step of AdamW on chunks first … last−1 of the parameters, their gradients times ``scale``.

    The job: groups, then the addresses of the chunks and of the rates (groups, RATES) float32.
    """
    job = fields(job)
    rates = array(job, 2, RATES * job[0], np.float32)
    for number in range(first, last):
        chunk = _chunk(job, 1, number)
        length, own = chunk[4], rates[RATES * chunk[5] : RATES * chunk[5] + RATES]
        p, grad = at(chunk[0], length, np.float32), at(chunk[1], length, np.float32)
        mean, square = at(chunk[2], length, np.float32), at(chunk[3], length, np.float32)
        keep, size, root, eps = own[0], own[1], own[2], own[3]
        new_mean, beta2, new_square, scale = own[4], own[5], own[6], own[7]
        for i in range(length):
            g = grad[i] * scale
            m = mean[i] + new_mean * (g - mean[i])
            v = beta2 * square[i] + new_square * g * g
            mean[i], square[i] = m, v
            p[i] = p[i] * keep - size * m / (np.sqrt(v) * root + eps)
