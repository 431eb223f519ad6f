# mypy: ignore-errors
"""One token through a GPT-2 on a GPU, five kernels a block; importing this module imports triton.

Vectors between the kernels are float32. Each kernel asks for its weights first and only then waits for the
one before it to end (``EARLY``, programmatic dependent launch): what a token costs is reading the weights.
So before ``gdc_wait`` a kernel may touch only what no kernel of the same token writes.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def _wait(EARLY: tl.constexpr):
    if EARLY:
        gdc_wait()


@triton.jit
def _go_on(EARLY: tl.constexpr):
    """Let the next kernel start as soon as there is room."""
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def _rows_of(weight, n_out, n_in, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's rows of a weight (n_out, n_in), and which they are."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    mask = (row < n_out)[:, None] & (column < n_in)[None, :]
    W = tl.load(weight + row.to(tl.int64)[:, None] * n_in + column[None, :], mask=mask, other=0.0)
    return W, row, column


@triton.jit
def _add_bias(y, bias, row, n_out, BIAS: tl.constexpr):
    if BIAS:
        y += tl.load(bias + row, mask=row < n_out, other=0.0).to(tl.float32)
    return y


@triton.jit
def embed(token, place, wte, wpe, x, n, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """x (n,) = wte[token] + wpe[place]."""
    column = tl.arange(0, BLOCK)
    there = column < n
    _go_on(EARLY)
    _wait(EARLY)
    of_token = tl.load(wte + tl.load(token) * n + column, mask=there, other=0.0).to(tl.float32)
    of_place = tl.load(wpe + tl.load(place) * n + column, mask=there, other=0.0).to(tl.float32)
    tl.store(x + column, of_token + of_place, mask=there)


@triton.jit
def norm_linear(
    x, gain, weight, fixed, out, best, n_out, n_in, eps,
    GELU: tl.constexpr, BEST: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (n_out,) = W · layer_norm(x) + bias, or GELU of it; with BEST also a program's largest and its row.

    fixed (n_out,) is W · shift + bias, so that only the norm's gain is left to be done.
    """
    _go_on(EARLY)
    W, row, column = _rows_of(weight, n_out, n_in, ROWS, BLOCK)
    inside, there = column < n_in, row < n_out
    g = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
    plus = tl.load(fixed + row, mask=there, other=0.0)
    _wait(EARLY)
    x_here = tl.load(x + column, mask=inside, other=0.0)
    centred = tl.where(inside, x_here - tl.sum(x_here, axis=0) / n_in, 0.0)
    variance = tl.sum(centred * centred, axis=0) / n_in
    y = tl.sum(W.to(tl.float32) * (g * centred)[None, :], axis=1) * tl.rsqrt(variance + eps) + plus
    if GELU == "tanh":  # y · sigmoid(2u) is y · (1 + tanh u) / 2
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif GELU == "none":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    tl.store(out + row, y, mask=there)
    if BEST:
        y = tl.where(y == y, y, float("inf"))  # NaN is the largest, as in PyTorch
        y = tl.where(there, y, float("-inf"))
        tl.store(best + 2 * tl.program_id(0), tl.max(y, axis=0))
        first = tl.min(tl.where(y == tl.max(y, axis=0), row, n_out), axis=0)
        tl.store(best + 2 * tl.program_id(0) + 1, first.to(tl.float32))


@triton.jit
def attend(
    qkv, k_cache, v_cache, place, part, capacity, n, scale,
    SPLITS, D: tl.constexpr, CHUNK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head's query over CHUNK keys; `project` puts these together (FlashDecoding, Dao et al. 2023).

    part (2, SPLITS, n): the softmax-weighted mean of these values, and the logarithm of the sum of
    exponentials, which is written once for each of the head's columns so that they are read like the means.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    _go_on(EARLY)
    at = tl.load(place)
    if split * CHUNK <= at:
        row, d = split * CHUNK + tl.arange(0, CHUNK), tl.arange(0, D)
        cached = (head * capacity + row[:, None]) * D + d[None, :]
        k = tl.load(k_cache + cached, mask=(row < at)[:, None], other=0.0)
        v = tl.load(v_cache + cached, mask=(row < at)[:, None], other=0.0)
        _wait(EARLY)
        q = tl.load(qkv + head * D + d)
        k_new = tl.load(qkv + n + head * D + d).to(k.dtype)
        v_new = tl.load(qkv + 2 * n + head * D + d).to(v.dtype)
        is_new = (row == at)[:, None]
        k, v = tl.where(is_new, k_new[None, :], k), tl.where(is_new, v_new[None, :], v)
        score = tl.sum(k.to(tl.float32) * q[None, :], axis=1) * scale
        score = tl.where(row <= at, score, float("-inf"))
        top = tl.max(score, axis=0)
        p = tl.exp(score - top)
        total = tl.sum(p, axis=0)
        slot = part + split * n + head * D + d
        tl.store(slot, tl.sum(p[:, None] * v.to(tl.float32), axis=0) / total)
        tl.store(slot + SPLITS * n, tl.zeros((D,), tl.float32) + (top + tl.log(total)))
        if at < (split + 1) * CHUNK:
            own = (head * capacity + at) * D + d
            tl.store(k_cache + own, k_new)
            tl.store(v_cache + own, v_new)


@triton.jit
def project(
    part, place, SPLITS, weight, bias, x, n_out, n_in,
    CHUNK: tl.constexpr, MOST: tl.constexpr,
    BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """x (n_out,) += W · attention's output + bias; of the chunks of keys, MOST are put together at once."""
    _go_on(EARLY)
    W, row, column = _rows_of(weight, n_out, n_in, ROWS, BLOCK)
    fixed = _add_bias(tl.zeros((ROWS,), tl.float32), bias, row, n_out, BIAS)
    inside, there = column < n_in, row < n_out
    _wait(EARLY)
    used = tl.load(place) // CHUNK + 1
    largest = tl.full((BLOCK,), -1e30, tl.float32)  # finite, for columns where nothing is
    total, values = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, used, MOST):
        split = begin + tl.arange(0, MOST)[:, None]
        mask = (split < used) & inside[None, :]
        slot = part + split * n_in + column[None, :]
        log_sum = tl.load(slot + SPLITS * n_in, mask=mask, other=-1e30)
        mean = tl.load(slot, mask=mask, other=0.0)
        larger = tl.maximum(largest, tl.max(log_sum, axis=0))
        share, before = tl.exp(log_sum - larger[None, :]), tl.exp(largest - larger)
        total = total * before + tl.sum(share, axis=0)
        values = values * before + tl.sum(share * mean, axis=0)
        largest = larger
    y = tl.sum(W.to(tl.float32) * (values / total)[None, :], axis=1) + fixed
    tl.store(x + row, tl.load(x + row, mask=there, other=0.0) + y, mask=there)


@triton.jit
def add_linear(
    a, weight, bias, x, n_out, n_in,
    BIAS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """x (n_out,) += W · a + bias."""
    _go_on(EARLY)
    W, row, column = _rows_of(weight, n_out, n_in, ROWS, BLOCK)
    fixed = _add_bias(tl.zeros((ROWS,), tl.float32), bias, row, n_out, BIAS)
    _wait(EARLY)
    a = tl.load(a + column, mask=column < n_in, other=0.0)
    y = tl.sum(W.to(tl.float32) * a[None, :], axis=1) + fixed
    there = row < n_out
    tl.store(x + row, tl.load(x + row, mask=there, other=0.0) + y, mask=there)


@triton.jit
def choose(best, n, token, V, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """The likeliest token, of n programs' best; of equals the first."""
    _go_on(EARLY)
    _wait(EARLY)
    number = tl.arange(0, BLOCK)
    value = tl.load(best + 2 * number, mask=number < n, other=float("-inf"))
    row = tl.load(best + 2 * number + 1, mask=number < n, other=1e9)
    chosen = tl.min(tl.where(value == tl.max(value, axis=0), row, 1e9), axis=0)
    tl.store(token, tl.minimum(chosen.to(tl.int64), V - 1))
