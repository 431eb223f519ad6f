# mypy: ignore-errors
"""One token through a GPT-2 on a GPU, five kernels a block; importing this module imports triton.

Vectors between the kernels are float32. Each kernel asks for its weights first and only then waits for the
one before it to end (``EARLY``, programmatic dependent launch): what a token costs is reading the weights.
So before ``gdc_wait`` a kernel may touch only what no kernel of the same token writes; but for ``place``,
which only the last one does, when all others have ended.

What is left after the wait is short because no thread waits for another warp's. Of a weight a warp takes
whole rows, ROWS of them, or with SHARES of more than 1 a share of their columns; its 32 lanes take 4 columns
each at a time. Tensors are (lanes, warps with rows of their own, shares, ...): in this order Triton deals
them out to threads if a thread's own columns, the last dimension, are side by side. Where an index lacks a
dimension, each lane or warp reads for itself.
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
def _words(pointer):
    """The same memory as words of two elements: elements would be unpacked, so waited for, at once."""
    if pointer.dtype.element_ty == tl.float32:
        words = pointer.to(tl.pointer_type(tl.int64))
    else:
        words = pointer.to(tl.pointer_type(tl.int32))
    return words


@triton.jit
def _two(word, KIND: tl.constexpr):
    """A word's two elements of this dtype, in float32."""
    if KIND == tl.float32:
        first, second = word.to(tl.int32), (word >> 32).to(tl.int32)
    elif KIND == tl.bfloat16:  # a float32's upper half
        first, second = word << 16, word & -65536
    else:
        first = word.to(tl.int16).to(KIND, bitcast=True).to(tl.float32)
        second = (word >> 16).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)
    return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)


@triton.jit
def _places(n_out, WARPS: tl.constexpr, SHARES: tl.constexpr, ROWS: tl.constexpr):
    """A program's rows (1, WARPS, 1, ROWS), its first columns (32, 1, SHARES, 1), and who stores results."""
    lane, share = tl.arange(0, 32)[:, None, None, None], tl.arange(0, SHARES)[None, None, :, None]
    warp, number = tl.arange(0, WARPS)[None, :, None, None], tl.arange(0, ROWS)[None, None, None, :]
    row = (warp * ROWS + number) * tl.num_programs(0) + tl.program_id(0)
    return row, 4 * (32 * share + lane), (lane == 0) & (share == 0) & (row < n_out)


@triton.jit
def _load(pointer, place, inside, WHOLE: tl.constexpr):
    """0 where nothing is."""
    return tl.load(pointer + place) if WHOLE else tl.load(pointer + place, mask=inside, other=0)


@triton.jit
def _vectors(weight, row, column, N: tl.constexpr, SHARES: tl.constexpr):
    """What a thread needs of rows of N elements, as words: a tuple of (32, WARPS, SHARES, ROWS, 2)."""
    begin = (row.to(tl.int64) * (N // 2))[:, :, :, :, None] + tl.arange(0, 2)[None, None, None, None, :]
    loaded = ()
    for at in tl.static_range(0, N, 128 * SHARES):
        here = (column + at)[:, :, :, :, None]
        loaded += (_load(_words(weight), begin + here // 2, here < N, at + 128 * SHARES <= N),)
    return loaded


@triton.jit
def _pairs(x, column, at: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr, SHARES: tl.constexpr):
    """Of float32 x (N,) a thread's even, and odd columns, from ``at`` on: 2 × (32, WARPS, SHARES, 2)."""
    here = column + at + tl.zeros((1, WARPS, 1, 1), tl.int32)
    four = _load(x, here + tl.arange(0, 4)[None, None, None, :], here < N, at + 128 * SHARES <= N)
    return tl.split(tl.reshape(four, (32, WARPS, SHARES, 2, 2)))


@triton.jit
def _products(W, first, second, KIND: tl.constexpr):
    """A thread's part of W · x, (32, WARPS, SHARES, ROWS)."""
    W_first, W_second = _two(W, KIND)
    return tl.sum(W_first * first[:, :, :, None, :] + W_second * second[:, :, :, None, :], axis=4)


@triton.jit
def _whole(part):
    """The sum over lanes and shares."""
    return tl.sum(tl.sum(part, axis=0, keep_dims=True), axis=2, keep_dims=True)


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
    x, gain, weight, fixed, out, best, n_out, eps,
    N: tl.constexpr, GELU: tl.constexpr, BEST: tl.constexpr,
    WARPS: tl.constexpr, SHARES: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """out (n_out,) = W · layer_norm(x) + bias, or GELU of it; with BEST also a program's largest and its row.

    fixed (2, n_out) is W · gain, and W · shift + bias. With these, and d = x - x[0], all sums are taken at
    once: of d, of d² (from which the variance is precise enough: no element is further from the mean than √N
    deviations), and of W · gain · d.
    """
    _go_on(EARLY)
    row, column, stores = _places(n_out, WARPS, SHARES, ROWS)
    safe = tl.minimum(row, n_out - 1)
    W = _vectors(weight, safe, column, N, SHARES)
    G = _vectors(gain, tl.zeros((1, WARPS, 1, 1), tl.int32), column, N, SHARES)
    everywhere = safe + 0 * column
    of_gain, plus = tl.load(fixed + everywhere), tl.load(fixed + n_out + everywhere)
    _wait(EARLY)
    origin = tl.load(x)
    y = tl.zeros((32, WARPS, SHARES, ROWS), tl.float32)
    total, squares = (
        tl.zeros((32, WARPS, SHARES, 1), tl.float32),
        tl.zeros((32, WARPS, SHARES, 1), tl.float32),
    )
    for at in tl.static_range(0, N, 128 * SHARES):
        a, b = _pairs(x, column, at, N, WARPS, SHARES)
        a, b = a - origin, b - origin
        if at + 128 * SHARES > N:
            a, b = tl.where(column + at < N, a, 0.0), tl.where(column + at < N, b, 0.0)
        total += tl.sum(a + b, axis=3, keep_dims=True)
        squares += tl.sum(a * a + b * b, axis=3, keep_dims=True)
        g, h = _two(G[at // (128 * SHARES)], gain.dtype.element_ty)
        g, h = tl.sum(g, axis=3), tl.sum(h, axis=3)
        y += _products(W[at // (128 * SHARES)], a * g, b * h, weight.dtype.element_ty)
    mean = _whole(total) / N
    deviation = tl.rsqrt(tl.maximum(_whole(squares) / N - mean * mean, 0.0) + eps)
    y = (_whole(y) - mean * of_gain) * deviation + plus
    if GELU == "tanh":  # y · sigmoid(2u) is y · (1 + tanh u) / 2
        y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
    elif GELU == "none":
        y = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    tl.store(out + everywhere, y, mask=stores)
    if BEST:
        y = tl.where(y == y, y, float("inf"))  # NaN is the largest, as in PyTorch
        y = tl.where(row < n_out, y, float("-inf"))
        top = tl.max(tl.max(y, axis=3, keep_dims=True), axis=1, keep_dims=True)
        first = tl.where(y == top, row, n_out)
        first = tl.min(tl.min(first, axis=3, keep_dims=True), axis=1, keep_dims=True)
        slot = best + 2 * tl.program_id(0) + 0 * first
        tl.store(slot, top)
        tl.store(slot + 1, first.to(tl.float32))


@triton.jit
def _softmaxes(top, total, first, second, other_top, other_total, other_first, other_second):
    """Of two sets of keys: the largest score, the sum of exponentials, and weighted sums of values."""
    larger = tl.maximum(top, other_top)
    a, b = tl.exp(top - larger), tl.exp(other_top - larger)
    return larger, total * a + other_total * b, first * a + other_first * b, second * a + other_second * b


@triton.jit
def _of_head(vector, d, VEC: tl.constexpr):
    """Of a float32 vector a thread's VEC elements: those of even, and of odd number."""
    four = tl.load(vector + d[:, :, :, :, None] + tl.arange(0, 4)[None, None, None, None, :])
    return tl.split(tl.reshape(four, (d.shape[0], d.shape[1], d.shape[2], VEC // 2, 2)))


@triton.jit
def _store_vector(pointer, first, second, d, mask, VEC: tl.constexpr):
    """The reverse of `_of_head`."""
    four = tl.reshape(tl.join(first, second), (d.shape[0], d.shape[1], d.shape[2], VEC // 4, 4))
    place = d[:, :, :, :, None] + tl.arange(0, 4)[None, None, None, None, :]
    tl.store(pointer + place, four.to(pointer.dtype.element_ty), mask=mask[:, :, :, :, None])


@triton.jit
def attend(
    qkv, k_cache, v_cache, place, part, log_sum, capacity, scale,
    D: tl.constexpr, CHUNK: tl.constexpr, WARPS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """One head's query over CHUNK keys; `project` puts these together (FlashDecoding, Dao et al. 2023).

    part (splits, n): the softmax-weighted mean of these values. log_sum (splits, n_head): the logarithm of
    the sum of exponentials. A thread reads 16 bytes of a key at once, NEAR threads a key, and a warp AT_ONCE
    keys; tensors are (AT_ONCE, NEAR, WARPS, a warp's steps, elements).
    """
    KIND: tl.constexpr = k_cache.dtype.element_ty
    VEC: tl.constexpr = 4 if KIND == tl.float32 else 8
    NEAR: tl.constexpr = D // VEC
    AT_ONCE: tl.constexpr = 32 // NEAR if NEAR < 32 else 1
    KEYS: tl.constexpr = CHUNK // (WARPS * AT_ONCE)
    head, split, n = tl.program_id(0), tl.program_id(1), tl.num_programs(0) * D
    _go_on(EARLY)
    at = tl.load(place)
    if split * CHUNK <= at:
        lane, near = tl.arange(0, AT_ONCE)[:, None, None, None], tl.arange(0, NEAR)[None, :, None, None]
        warp, number = tl.arange(0, WARPS)[None, None, :, None], tl.arange(0, KEYS)[None, None, None, :]
        key = split * CHUNK + (warp * KEYS + number) * AT_ONCE + lane
        word = ((head * capacity + key) * (D // 2) + near * (VEC // 2))[:, :, :, :, None]
        word += tl.arange(0, VEC // 2)[None, None, None, None, :]
        k = tl.load(_words(k_cache) + word, mask=(key < at)[:, :, :, :, None], other=0)
        v = tl.load(_words(v_cache) + word, mask=(key < at)[:, :, :, :, None], other=0)
        _wait(EARLY)
        d = near * VEC + 4 * tl.arange(0, VEC // 4)[None, None, None, :] + 0 * (lane + warp)
        q0, q1 = _of_head(qkv + head * D, d, VEC)
        new_k0, new_k1 = _of_head(qkv + n + head * D, d, VEC)
        new_v0, new_v1 = _of_head(qkv + 2 * n + head * D, d, VEC)
        new_k0, new_k1 = new_k0.to(KIND).to(tl.float32), new_k1.to(KIND).to(tl.float32)
        new_v0, new_v1 = new_v0.to(KIND).to(tl.float32), new_v1.to(KIND).to(tl.float32)
        k0, k1 = _two(k, KIND)
        score = tl.sum(k0 * q0[:, :, :, None, :] + k1 * q1[:, :, :, None, :], axis=4)
        new = tl.sum(new_k0 * q0 + new_k1 * q1, axis=3, keep_dims=True)
        score, new = tl.sum(score, axis=1, keep_dims=True), tl.sum(new, axis=1, keep_dims=True)
        score = tl.where(key < at, score, tl.where(key == at, new, float("-inf"))) * scale
        top = tl.max(tl.max(score, axis=3, keep_dims=True), axis=0, keep_dims=True)
        top = tl.maximum(top, -1e30)  # finite, for a warp without keys
        p = tl.exp(score - top)
        of_new = tl.sum(tl.where(key == at, p, 0.0), axis=3, keep_dims=True)
        v0, v1 = _two(v, KIND)
        v0 = tl.sum(p[:, :, :, :, None] * v0, axis=3) + of_new * new_v0
        v1 = tl.sum(p[:, :, :, :, None] * v1, axis=3) + of_new * new_v1
        v0, v1 = tl.sum(v0, axis=0, keep_dims=True), tl.sum(v1, axis=0, keep_dims=True)
        total = tl.sum(tl.sum(p, axis=3, keep_dims=True), axis=0, keep_dims=True)
        if WARPS > 1:
            both = (tl.broadcast_to(top, v0.shape), tl.broadcast_to(total, v0.shape), v0, v1)
            top, total, v0, v1 = tl.reduce(both, 2, _softmaxes, keep_dims=True)
            top, total = (
                tl.max(top, axis=3, keep_dims=True),
                tl.max(total, axis=3, keep_dims=True),
            )  # all alike
        one, inverse = (lane == 0) & (warp == 0), 1.0 / total
        v0 = tl.broadcast_to(v0 * inverse, new_v0.shape)
        v1 = tl.broadcast_to(v1 * inverse, new_v0.shape)
        _store_vector(part + split * n + head * D, v0, v1, d, one, VEC)
        slot = log_sum + split * tl.num_programs(0) + head + 0 * (lane + near + warp)
        tl.store(slot, tl.broadcast_to(top + tl.log(total), slot.shape), mask=one & (near == 0))
        if at < (split + 1) * CHUNK:
            own = (head * capacity + at) * D
            _store_vector(k_cache + own, new_k0, new_k1, d, one, VEC)
            _store_vector(v_cache + own, new_v0, new_v1, d, one, VEC)


@triton.jit
def _join(state, part, log_sum, begin, used, column, N: tl.constexpr, D: tl.constexpr, MOST: tl.constexpr):
    """MOST more chunks of keys to the softmaxes so far, of a thread's four columns, which are of one head."""
    top, total, first, second = state
    split = begin + tl.arange(0, MOST)[None, None, None, :] + tl.zeros(total.shape, tl.int32)
    there = (split < used) & (column < N)
    log_total = tl.load(log_sum + split * (N // D) + column // D, mask=there, other=-1e30)
    place = (split * N + column)[:, :, :, :, None] + tl.arange(0, 4)[None, None, None, None, :]
    mean = tl.load(part + place, mask=there[:, :, :, :, None], other=0.0)
    mean = tl.reshape(mean, (total.shape[0], total.shape[1], total.shape[2], MOST, 2, 2))
    mean_first, mean_second = tl.split(mean)
    larger = tl.maximum(top, tl.max(log_total, axis=3, keep_dims=True))
    share, before = tl.exp(log_total - larger), tl.exp(top - larger)
    total = total * before + tl.sum(share, axis=3, keep_dims=True)
    first = first * before + tl.sum(share[:, :, :, :, None] * mean_first, axis=3)
    second = second * before + tl.sum(share[:, :, :, :, None] * mean_second, axis=3)
    return larger, total, first, second


@triton.jit
def project(
    part, log_sum, place, weight, bias, x, n_out,
    N: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, MOST: tl.constexpr, BIAS: tl.constexpr,
    WARPS: tl.constexpr, SHARES: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """x (n_out,) += W · attention's output + bias; of the chunks of keys, MOST are put together at once."""
    _go_on(EARLY)
    row, column, stores = _places(n_out, WARPS, SHARES, ROWS)
    safe = tl.minimum(row, n_out - 1)
    W = _vectors(weight, safe, column, N, SHARES)
    everywhere = safe + 0 * column
    plus = tl.load(bias + everywhere) if BIAS else 0.0
    used = tl.load(place) // CHUNK + 1
    _wait(EARLY)
    before = tl.load(x + everywhere)
    state = ()
    for _ in tl.static_range(0, N, 128 * SHARES):
        one, two = tl.zeros((32, WARPS, SHARES, 1), tl.float32), tl.zeros((32, WARPS, SHARES, 2), tl.float32)
        state += ((one - 1e30, one, two, two),)  # finite, for columns where nothing is
    for begin in range(0, used, MOST):
        joined = ()
        for at in tl.static_range(0, N, 128 * SHARES):
            joined += (
                _join(state[at // (128 * SHARES)], part, log_sum, begin, used, column + at, N, D, MOST),
            )
        state = joined
    y = tl.zeros((32, WARPS, SHARES, ROWS), tl.float32)
    for at in tl.static_range(0, N, 128 * SHARES):
        _, total, first, second = state[at // (128 * SHARES)]
        inverse = 1.0 / total
        y += _products(W[at // (128 * SHARES)], first * inverse, second * inverse, weight.dtype.element_ty)
    if BIAS:
        before += plus.to(tl.float32)
    tl.store(x + everywhere, before + _whole(y), mask=stores)


@triton.jit
def add_linear(
    a, weight, bias, x, n_out, N: tl.constexpr, BIAS: tl.constexpr,
    WARPS: tl.constexpr, SHARES: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """x (n_out,) += W · a + bias."""
    _go_on(EARLY)
    row, column, stores = _places(n_out, WARPS, SHARES, ROWS)
    safe = tl.minimum(row, n_out - 1)
    W = _vectors(weight, safe, column, N, SHARES)
    everywhere = safe + 0 * column
    plus = tl.load(bias + everywhere) if BIAS else 0.0
    _wait(EARLY)
    y = tl.zeros((32, WARPS, SHARES, ROWS), tl.float32)
    before = tl.load(x + everywhere)
    for at in tl.static_range(0, N, 128 * SHARES):
        first, second = _pairs(a, column, at, N, WARPS, SHARES)
        y += _products(W[at // (128 * SHARES)], first, second, weight.dtype.element_ty)
    if BIAS:
        before += plus.to(tl.float32)
    tl.store(x + everywhere, before + _whole(y), mask=stores)


@triton.jit
def choose(best, n, token, place, V, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """The likeliest token, of n programs' best; of equals the first. The next place is one further."""
    _go_on(EARLY)
    _wait(EARLY)
    number = tl.arange(0, BLOCK)
    value = tl.load(best + 2 * number, mask=number < n, other=float("-inf"))
    row = tl.load(best + 2 * number + 1, mask=number < n, other=1e9)
    chosen = tl.min(tl.where(value == tl.max(value, axis=0), row, 1e9), axis=0)
    tl.store(token, tl.minimum(chosen.to(tl.int64), V - 1))
    tl.store(place, tl.load(place) + 1)
