"""Causal attention as compiled loops, head by head within the nearest caches; importing this imports numba.

What FlashAttention (Dao et al. 2022) does on a GPU: the weights (T, T) of a head are never all there. Rows of
queries are taken a few at a time, with the keys that they may see and no others; the backward pass computes
their weights anew from each row's largest score and sum.

All products are `multiply_tile`'s. Its right side must have its columns side by side, so keys and values are
transposed first where a product runs over their features. Addresses and distances are in bytes.

Letters: t a query, s a key, r a row of a block of queries, d a feature.
"""

import math

import numba
import numpy as np

from .cpu_attention import (
    BLOCK,
    FIELDS,
    HEADS,
    PLACES,
    ROW,
    SCRATCH,
    SIZES,
    TAKEN,
    THREAD_BYTES,
    TILE_COLUMNS,
    TILE_ROWS,
    WIDTH,
)
from .loops.compiler import at, exchange, fields, loop
from .loops.registers import (
    LANES,
    add,
    exp,
    fma,
    keep_first,
    larger,
    largest_of,
    load,
    multiply,
    splat,
    store,
    subtract,
    sum_of,
)
from .loops.tile import COLUMNS, ROWS, multiply_tile, transpose_tile

assert (ROWS, COLUMNS) == (TILE_ROWS, TILE_COLUMNS) and BLOCK % ROWS == 0
Q, K, V, OUT, ROW_MAX, INV_SUM, GRAD, GRAD_Q, GRAD_K, GRAD_V = range(10)
"""the tensors that a loop is told of, in order; the last four are the backward pass's"""
_HIDDEN = np.float32(-math.inf)
_ZERO, _ONE = np.float32(0), np.float32(1)


@numba.njit(inline="always")
def _sizes(job):  # type: ignore[no-untyped-def]
    """The numbers that `cpu_attention` made for a call; those of the tensors lie behind them."""
    return at(fields(job)[0], SIZES, np.int64)


@numba.njit(inline="always")
def _head(sizes, tensor, number):  # type: ignore[no-untyped-def]
    """Of a tensor (B, H, T, D), the head with a number: its address, and the distance between places."""
    batch, head = number // sizes[HEADS], number % sizes[HEADS]
    first = SIZES + FIELDS * tensor
    own = at(sizes.ctypes.data + 8 * first, FIELDS, np.int64)
    return own[0] + batch * own[1] + head * own[2], own[3]


@numba.njit(inline="always")
def _floats(address, length):  # type: ignore[no-untyped-def]
    return at(address, length, np.float32)


@numba.njit(inline="always")
def _take_scratch(sizes):  # type: ignore[no-untyped-def]
    """Memory that no other thread has: its number. There is one for each, so one is free."""
    number = 0
    while exchange(sizes[TAKEN] + 8 * number, 1):
        number += 1
    return number


@numba.njit(inline="always")
def _transpose(to, to_row, source, source_row, T, D):  # type: ignore[no-untyped-def]
    """(T, D) → (D, T), and zeros up to a whole number of tiles."""
    whole = T // LANES * LANES
    for t in range(0, whole, LANES):
        for d in range(0, D, LANES):
            transpose_tile(to + d * to_row + 4 * t, to_row, source + t * source_row + 4 * d, source_row)
    ends = -(-T // COLUMNS) * COLUMNS
    for d in range(D):
        rest = _floats(to + d * to_row + 4 * whole, ends - whole)
        for t in range(len(rest)):
            rest[t] = _floats(source + (whole + t) * source_row, D)[d] if whole + t < T else _ZERO


@numba.njit(inline="always")
def _hide_future(row, first, width):  # type: ignore[no-untyped-def]
    """−∞ from a place of a row of scores on: what the query must not see."""
    whole = first // LANES * LANES
    if whole < width:
        store(row + 4 * whole, keep_first(load(row + 4 * whole), first - whole, _HIDDEN))
    for s in range(whole + LANES, width, LANES):
        store(row + 4 * s, splat(_HIDDEN))


@numba.njit(inline="always")
def _multiply_features(to, to_row, left, left_row, right, rows, width, D):  # type: ignore[no-untyped-def]
    """(rows, D) · (D, width) → (rows, width); the right side and the result are scratch."""
    for s in range(0, width, COLUMNS):
        for r in range(0, rows, ROWS):
            multiply_tile(
                to + r * to_row + 4 * s, to_row, left + r * left_row, left_row, 4, right + 4 * s, to_row, D, 0
            )


@loop(fastmath={"contract", "reassoc", "nsz"})
def causal_attention(job, first, last):  # type: ignore[no-untyped-def]
    """Heads first … last−1: q, k, v → out, and of each row (B, H, T) its largest score and 1 / the sum of its
    weights.
    """
    sizes = _sizes(job)
    T, D, row_bytes = sizes[PLACES], sizes[WIDTH], sizes[ROW]
    scale = np.float32(1 / math.sqrt(D))
    mine = _take_scratch(sizes)
    keys = sizes[SCRATCH] + mine * sizes[THREAD_BYTES]
    weights = keys + D * row_bytes
    for number in range(first, last):
        q, q_row = _head(sizes, Q, number)
        k, k_row = _head(sizes, K, number)
        v, v_row = _head(sizes, V, number)
        out, out_row = _head(sizes, OUT, number)
        row_max = _floats(_head(sizes, ROW_MAX, number)[0], T)
        inv_sum = _floats(_head(sizes, INV_SUM, number)[0], T)
        _transpose(keys, row_bytes, k, k_row, T, D)
        for t in range(0, T, BLOCK):
            rows = min(BLOCK, T - t)
            width = -(-(t + rows) // COLUMNS) * COLUMNS
            _multiply_features(weights, row_bytes, q + t * q_row, q_row, keys, rows, width, D)
            # All rows a step at a time: within a row each step waits for the one before.
            for r in range(rows):
                row, most = weights + r * row_bytes, splat(_HIDDEN)
                _hide_future(row, t + r + 1, width)
                for s in range(0, width, LANES):
                    most = larger(most, load(row + 4 * s))
                row_max[t + r] = largest_of(most)
            for r in range(rows):
                row, most, total = weights + r * row_bytes, splat(row_max[t + r]), splat(_ZERO)
                for s in range(0, width, LANES):
                    weight = exp(multiply(subtract(load(row + 4 * s), most), splat(scale)))
                    total = add(total, weight)
                    store(row + 4 * s, weight)
                inv_sum[t + r] = _ONE / sum_of(total)
            for d in range(0, D, COLUMNS):
                for r in range(0, rows, ROWS):
                    multiply_tile(
                        out + (t + r) * out_row + 4 * d, out_row,
                        weights + r * row_bytes, row_bytes, 4,
                        v + 4 * d, v_row, t + r + ROWS, 0,
                    )  # fmt: skip
            for r in range(rows):
                row, own = out + (t + r) * out_row, splat(inv_sum[t + r])
                for d in range(0, D, LANES):
                    store(row + 4 * d, multiply(load(row + 4 * d), own))
    exchange(sizes[TAKEN] + 8 * mine, 0)


@loop(fastmath={"contract", "reassoc", "nsz"})
def causal_attention_backward(job, first, last):  # type: ignore[no-untyped-def]
    """Heads first … last−1: what `causal_attention` had and made, and the gradient of out → those of q, k, v.

    With weights P and scores S: dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − δ), where δ is a row's sum of
    dO ∘ O (algorithm 4 of the paper).
    """
    sizes = _sizes(job)
    T, D, row_bytes = sizes[PLACES], sizes[WIDTH], sizes[ROW]
    scale = np.float32(1 / math.sqrt(D))
    mine = _take_scratch(sizes)
    keys = sizes[SCRATCH] + mine * sizes[THREAD_BYTES]
    values = keys + D * row_bytes
    weights = values + D * row_bytes
    d_scores = weights + BLOCK * row_bytes
    delta = _floats(d_scores + BLOCK * row_bytes, BLOCK)
    for number in range(first, last):
        q, q_row = _head(sizes, Q, number)
        k, k_row = _head(sizes, K, number)
        v, v_row = _head(sizes, V, number)
        out, out_row = _head(sizes, OUT, number)
        row_max = _floats(_head(sizes, ROW_MAX, number)[0], T)
        inv_sum = _floats(_head(sizes, INV_SUM, number)[0], T)
        grad, grad_row = _head(sizes, GRAD, number)
        grad_q, grad_q_row = _head(sizes, GRAD_Q, number)
        grad_k, grad_k_row = _head(sizes, GRAD_K, number)
        grad_v, grad_v_row = _head(sizes, GRAD_V, number)
        _transpose(keys, row_bytes, k, k_row, T, D)
        _transpose(values, row_bytes, v, v_row, T, D)
        for t in range(0, T, BLOCK):
            rows = min(BLOCK, T - t)
            width = -(-(t + rows) // COLUMNS) * COLUMNS
            _multiply_features(weights, row_bytes, q + t * q_row, q_row, keys, rows, width, D)  # S
            _multiply_features(
                d_scores, row_bytes, grad + t * grad_row, grad_row, values, rows, width, D
            )  # dP
            for r in range(rows):
                given, asked, total = out + (t + r) * out_row, grad + (t + r) * grad_row, splat(_ZERO)
                for d in range(0, D, LANES):
                    total = fma(load(given + 4 * d), load(asked + 4 * d), total)
                delta[r] = sum_of(total)
            for r in range(rows):
                row, d_row = weights + r * row_bytes, d_scores + r * row_bytes
                _hide_future(row, t + r + 1, width)
                most, own = splat(row_max[t + r]), splat(inv_sum[t + r])
                for s in range(0, width, LANES):
                    weight = exp(multiply(subtract(load(row + 4 * s), most), splat(scale)))
                    weight = multiply(weight, own)
                    store(row + 4 * s, weight)
                    change = multiply(subtract(load(d_row + 4 * s), splat(delta[r])), splat(scale))
                    store(d_row + 4 * s, multiply(weight, change))
            for d in range(0, D, COLUMNS):
                for r in range(0, rows, ROWS):
                    multiply_tile(
                        grad_q + (t + r) * grad_q_row + 4 * d, grad_q_row,
                        d_scores + r * row_bytes, row_bytes, 4,
                        k + 4 * d, k_row, t + r + ROWS, 0,
                    )  # fmt: skip
                for s in range(0, t + rows, ROWS):
                    # Keys of this very block are seen by its later rows only, and by no row before.
                    skip = max(0, s - t)
                    multiply_tile(
                        grad_v + s * grad_v_row + 4 * d, grad_v_row,
                        weights + skip * row_bytes + 4 * s, 4, row_bytes,
                        grad + (t + skip) * grad_row + 4 * d, grad_row, rows - skip, int(s < t),
                    )  # fmt: skip
                    multiply_tile(
                        grad_k + s * grad_k_row + 4 * d, grad_k_row,
                        d_scores + skip * row_bytes + 4 * s, 4, row_bytes,
                        q + (t + skip) * q_row + 4 * d, q_row, rows - skip, int(s < t),
                    )  # fmt: skip
    exchange(sizes[TAKEN] + 8 * mine, 0)
