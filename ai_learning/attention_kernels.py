"""Causal attention as compiled loops, head by head within the nearest caches; importing this imports numba.

What FlashAttention (Dao et al. 2022) does on a GPU: the weights (T, T) of a head are never all there. Rows of
queries are taken a few at a time, with the keys that they may see and no others; the backward pass computes
their weights anew from the logarithm of each row's sum.

All products are `multiply_tile`'s. Its right side must have its columns side by side, so keys and values are
turned first where a product runs over their features.
"""

import math

import numba
import numpy as np

from .cpu_attention import FIELDS, LONGEST, MOST_TURNED, PAD
from .loops.compiler import at, fields, loop, on_stack
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

_ROW = 4 * (LONGEST + PAD)  # bytes of a row of weights
_BLOCK = 32  # rows whose weights the backward pass holds
_FEW, _MANY = ROWS * (LONGEST + PAD) + LANES, _BLOCK * (LONGEST + PAD) + LANES  # numbers of rows of weights
_TURNED = MOST_TURNED + LANES
_HIDDEN = np.float32(-math.inf)
_ZERO, _ONE = np.float32(0), np.float32(1)


@numba.njit(inline="always")
def _head(layout, tensor, number):  # type: ignore[no-untyped-def]
    """(address, bytes from a position to the next) of a tensor (B, H, T, D) at the head with a number."""
    H, place = layout[0], 3 + FIELDS * tensor
    batch, head = number // H, number % H
    return layout[place] + batch * layout[place + 1] + head * layout[place + 2], layout[place + 3]


@numba.njit(inline="always")
def _floats(address, length):  # type: ignore[no-untyped-def]
    return at(address, length, np.float32)


@numba.njit(inline="always")
def _aligned(address):  # type: ignore[no-untyped-def]
    """The next place where a register's numbers lie in one line of the cache."""
    return -(-address // (4 * LANES)) * 4 * LANES


@numba.njit(inline="always")
def _turn(to, to_row, source, source_row, T, D):  # type: ignore[no-untyped-def]
    """(T, D) → (D, T up to a whole number of tiles), zeros at the end."""
    whole = T // LANES * LANES
    for t in range(0, whole, LANES):
        for d in range(0, D, LANES):
            transpose_tile(to + d * to_row + 4 * t, to_row, source + t * source_row + 4 * d, source_row)
    ends = -(-T // COLUMNS) * COLUMNS
    for d in range(D):
        last = _floats(to + d * to_row + 4 * whole, ends - whole)
        for t in range(len(last)):
            last[t] = _floats(source + (whole + t) * source_row, D)[d] if whole + t < T else _ZERO


@numba.njit(inline="always")
def _hide(row, first, width):  # type: ignore[no-untyped-def]
    """−∞ from a place of a row on: what the query must not see."""
    whole = first // LANES * LANES
    if whole < width:
        store(row + 4 * whole, keep_first(load(row + 4 * whole), first - whole, _HIDDEN))
    for s in range(whole + LANES, width, LANES):
        store(row + 4 * s, splat(_HIDDEN))


@loop(fastmath={"contract", "reassoc", "nsz"})
def causal_attention(job, first, last):  # type: ignore[no-untyped-def]
    """Heads first … last−1. The job: the address of a layout, whose tensors are q, k, v, out, and log_sum (B, H, T)."""
    layout = at(fields(job)[0], 3 + 5 * FIELDS, np.int64)
    T, D = layout[1], layout[2]
    scale = np.float32(1 / math.sqrt(D))
    turned = _aligned(on_stack(_TURNED, np.float32).ctypes.data)
    weights = _aligned(on_stack(_FEW, np.float32).ctypes.data)
    largest, sums = on_stack(ROWS, np.float32), on_stack(ROWS, np.float32)
    turned_row = 4 * (-(-T // COLUMNS) * COLUMNS + PAD)
    for number in range(first, last):
        q, q_row = _head(layout, 0, number)
        k, k_row = _head(layout, 1, number)
        v, v_row = _head(layout, 2, number)
        out, out_row = _head(layout, 3, number)
        log_sum = _floats(layout[3 + 4 * FIELDS] + 4 * number * T, T)
        _turn(turned, turned_row, k, k_row, T, D)
        for t in range(0, T, ROWS):
            seen = t + ROWS
            width = -(-seen // COLUMNS) * COLUMNS
            for s in range(0, width, COLUMNS):
                multiply_tile(
                    weights + 4 * s, _ROW, q + t * q_row, q_row, 4, turned + 4 * s, turned_row, D, 0
                )
            # All rows a step at a time: within a row each step waits for the one before.
            for r in range(ROWS):
                row, most = weights + r * _ROW, splat(_HIDDEN)
                _hide(row, t + r + 1, width)
                for s in range(0, width, LANES):
                    most = larger(most, load(row + 4 * s))
                largest[r] = largest_of(most) * scale
            for r in range(ROWS):
                row, less, total = weights + r * _ROW, splat(-largest[r]), splat(_ZERO)
                for s in range(0, width, LANES):
                    weight = exp(fma(load(row + 4 * s), splat(scale), less))
                    total = add(total, weight)
                    store(row + 4 * s, weight)
                sums[r] = sum_of(total)
            for r in range(ROWS):
                log_sum[t + r] = largest[r] + np.log(sums[r])
            for d in range(0, D, COLUMNS):
                multiply_tile(
                    out + t * out_row + 4 * d, out_row, weights, _ROW, 4, v + 4 * d, v_row, seen, 0
                )
            for r in range(ROWS):
                row, share = out + (t + r) * out_row, splat(_ONE / sums[r])
                for d in range(0, D, LANES):
                    store(row + 4 * d, multiply(load(row + 4 * d), share))


@loop(fastmath={"contract", "reassoc", "nsz"})
def causal_attention_backward(job, first, last):  # type: ignore[no-untyped-def]
    """Heads first … last−1 → the gradients of q, k and v.

    The job: the address of a layout, whose tensors are q, k, v, out, log_sum (B, H, T), the gradient of out,
    and those of q, k and v.
    """
    layout = at(fields(job)[0], 3 + 9 * FIELDS, np.int64)
    T, D = layout[1], layout[2]
    scale = np.float32(1 / math.sqrt(D))
    keys = _aligned(on_stack(_TURNED, np.float32).ctypes.data)
    values = _aligned(on_stack(_TURNED, np.float32).ctypes.data)
    weights = _aligned(on_stack(_MANY, np.float32).ctypes.data)
    scores = _aligned(on_stack(_MANY, np.float32).ctypes.data)  # their gradients
    mean = on_stack(_BLOCK, np.float32)
    turned_row = 4 * (-(-T // COLUMNS) * COLUMNS + PAD)
    for number in range(first, last):
        q, q_row = _head(layout, 0, number)
        k, k_row = _head(layout, 1, number)
        v, v_row = _head(layout, 2, number)
        out, out_row = _head(layout, 3, number)
        log_sum = _floats(layout[3 + 4 * FIELDS] + 4 * number * T, T)
        grad, grad_row = _head(layout, 5, number)
        grad_q, grad_q_row = _head(layout, 6, number)
        grad_k, grad_k_row = _head(layout, 7, number)
        grad_v, grad_v_row = _head(layout, 8, number)
        _turn(keys, turned_row, k, k_row, T, D)
        _turn(values, turned_row, v, v_row, T, D)
        for t in range(0, T, _BLOCK):
            rows = min(_BLOCK, T - t)
            width = -(-(t + rows) // COLUMNS) * COLUMNS
            for r in range(0, rows, ROWS):
                for s in range(0, width, COLUMNS):
                    multiply_tile(
                        weights + r * _ROW + 4 * s, _ROW,
                        q + (t + r) * q_row, q_row, 4,
                        keys + 4 * s, turned_row, D, 0,
                    )  # fmt: skip
                    multiply_tile(
                        scores + r * _ROW + 4 * s, _ROW,
                        grad + (t + r) * grad_row, grad_row, 4,
                        values + 4 * s, turned_row, D, 0,
                    )  # fmt: skip
            for r in range(rows):
                mine, asked = out + (t + r) * out_row, grad + (t + r) * grad_row
                total = splat(_ZERO)
                for d in range(0, D, LANES):
                    total = fma(load(mine + 4 * d), load(asked + 4 * d), total)
                mean[r] = sum_of(total)  # of the weights' gradients: softmax takes it away
            for r in range(rows):
                row, score = weights + r * _ROW, scores + r * _ROW
                _hide(row, t + r + 1, width)
                less, own = splat(-log_sum[t + r]), splat(mean[r])
                for s in range(0, width, LANES):
                    weight = exp(fma(load(row + 4 * s), splat(scale), less))
                    store(row + 4 * s, weight)
                    change = multiply(subtract(load(score + 4 * s), own), splat(scale))
                    store(score + 4 * s, multiply(weight, change))
            for d in range(0, D, COLUMNS):
                for r in range(0, rows, ROWS):
                    multiply_tile(
                        grad_q + (t + r) * grad_q_row + 4 * d, grad_q_row,
                        scores + r * _ROW, _ROW, 4,
                        k + 4 * d, k_row, t + r + ROWS, 0,
                    )  # fmt: skip
                for s in range(0, t + rows, ROWS):
                    # Keys of this very block are seen by its later rows only, and by no row before.
                    skip = max(0, s - t)
                    multiply_tile(
                        grad_v + s * grad_v_row + 4 * d, grad_v_row,
                        weights + skip * _ROW + 4 * s, 4, _ROW,
                        grad + (t + skip) * grad_row + 4 * d, grad_row, rows - skip, int(s < t),
                    )  # fmt: skip
                    multiply_tile(
                        grad_k + s * grad_k_row + 4 * d, grad_k_row,
                        scores + skip * _ROW + 4 * s, 4, _ROW,
                        q + (t + skip) * q_row + 4 * d, q_row, rows - skip, int(s < t),
                    )  # fmt: skip
