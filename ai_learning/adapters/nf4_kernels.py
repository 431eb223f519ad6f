"""The numba loops behind `nf4_fast`; importing this module imports numba.

Each takes the address of a job (see `loops.compiler`) and the range of blocks to work on. The job: elements a
block, elements in all, then the addresses of the tensors.
"""

import numba
import numpy as np

from ..kernels.loops.compiler import array, fields, loop, on_stack

BLOCKSIZE, N, POINTERS = range(3)
"""places in a job"""

_TINIEST = np.float32(1e-38)
_ONE = np.float32(1)
_ZERO = np.float32(0)
_U32 = np.uint32
_MAGNITUDE = _U32(0x7FFFFFFF)
_INFINITY = _U32(0x7F800000)
_HALF = _U32(0x3F000000)  # 0.5
# fp16 has its exponent 15, where float32 has 127; 13 places fall away, rounded by adding just below a half.
_REBIAS = _U32(2**32 - ((127 - 15) << 23) + 0xFFF)
_SMALLEST_NORMAL = _U32((127 - 14) << 23)
_TOO_LARGE = _U32((127 + 16) << 23)
_PLACE = np.uint64
_PIECE = 512  # elements of a block at a time


@numba.njit(inline="always")
def _count_below(v, m):  # type: ignore[no-untyped-def]
    """How many of the 15 midpoints are below v. ``not <=``: NaN counts as above all, like torch.bucketize."""
    u = np.uint8
    low = u(not (v <= m[0])) + u(not (v <= m[1])) + u(not (v <= m[2])) + u(not (v <= m[3]))
    mid = u(not (v <= m[4])) + u(not (v <= m[5])) + u(not (v <= m[6])) + u(not (v <= m[7]))
    high = u(not (v <= m[8])) + u(not (v <= m[9])) + u(not (v <= m[10])) + u(not (v <= m[11]))
    return low + mid + high + u(not (v <= m[12])) + u(not (v <= m[13])) + u(not (v <= m[14]))


@loop()
def quantize(job, first, last):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of x (n,) float32 → packed (⌈n/2⌉,) uint8, absmax (blocks,) float32.

    The job's pointers: packed, absmax, x, the 15 midpoints (float32), the 16 codes (uint8).
    """
    job = fields(job)
    n, blocksize = job[N], job[BLOCKSIZE]
    packed = array(job, POINTERS, (n + 1) // 2, np.uint8)
    absmax = array(job, POINTERS + 1, (n + blocksize - 1) // blocksize, np.float32)
    x = array(job, POINTERS + 2, n, np.float32)
    m = array(job, POINTERS + 3, 15, np.float32)
    low = (m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7])
    midpoints = (*low, m[8], m[9], m[10], m[11], m[12], m[13], m[14])  # they stay in registers
    codes = array(job, POINTERS + 4, 16, np.uint8)
    below = on_stack(_PIECE, np.int32)  # as wide as the floats that are compared: no shuffling
    for block in range(first, last):
        start = block * blocksize
        values = x[start : min(start + blocksize, n)]
        bits = values.view(np.uint32)
        count = values.shape[0]
        # Magnitudes compare like their bits, and NaN is above Inf: the maximum of a block with a NaN is NaN.
        largest = np.uint32(0)
        for i in range(count):
            largest = max(largest, bits[i] & _MAGNITUDE)
        absmax[block : block + 1].view(np.uint32)[0] = largest
        divisor = absmax[block]
        if divisor < _TINIEST:
            divisor = _TINIEST
        if count < blocksize:
            absmax[block] = divisor
        for begin in range(0, count, _PIECE):
            piece = values[begin : min(begin + _PIECE, count)]
            length = piece.shape[0]
            if count == blocksize:
                scale = _ONE / divisor
                for i in range(length):
                    below[i] = _count_below(piece[i] * scale, midpoints)
            else:
                for i in range(length):
                    below[i] = _count_below(piece[i] / divisor, midpoints)
                if length % 2:
                    below[length] = _count_below(_ZERO, midpoints)
            out = packed[(start + begin) // 2 : (start + begin + length + 1) // 2]
            for i in range(out.shape[0]):
                out[i] = (codes[below[2 * i]] << 4) | codes[below[2 * i + 1]]


@loop()
def dequantize_fp32(job, first, last):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of packed (⌈n/2⌉,) uint8 → out (n,) float32.

    The job's pointers: packed, absmax, the table's 16 values, out, and (256,) uint64 with the two float32
    values that each byte of codes stands for, side by side.
    """
    job = fields(job)
    n, blocksize = job[N], job[BLOCKSIZE]
    packed = array(job, POINTERS, (n + 1) // 2, np.uint8)
    absmax = array(job, POINTERS + 1, (n + blocksize - 1) // blocksize, np.float32)
    table = array(job, POINTERS + 2, 16, np.float32)
    out = array(job, POINTERS + 3, n, np.float32)
    pairs = array(job, POINTERS + 4, 256, np.uint64)
    # Blocks are ranges of the whole arrays: making a slice for each block would cost more than its work.
    two = out[: n // 2 * 2].view(np.uint64)
    words = packed[: n // 8 * 4].view(np.uint32)  # four bytes of codes at once (little-endian)
    for block in range(first, last):
        start = block * blocksize
        stop = min(start + blocksize, n)
        done = start // 2
        if blocksize % 8 == 0:
            for i in range(start // 8, stop // 8):
                word = words[i]
                two[4 * i] = pairs[word & 255]
                two[4 * i + 1] = pairs[(word >> 8) & 255]
                two[4 * i + 2] = pairs[(word >> 16) & 255]
                two[4 * i + 3] = pairs[word >> 24]
            done = stop // 8 * 4
        for i in range(done, stop // 2):
            two[i] = pairs[packed[i]]
        if stop % 2:
            out[stop - 1] = table[packed[stop // 2] >> 4]
        scale = absmax[block]
        values = out[start:stop]
        for i in range(values.shape[0]):
            values[i] *= scale


# Each step is cut back to 32 bits: numba would go on in 64, in half as many lanes.
@numba.njit(inline="always")
def _to_bf16(bits):  # type: ignore[no-untyped-def]
    odd = _U32((bits >> _U32(16)) & _U32(1))
    rounded = _U32(_U32(bits + _U32(0x7FFF) + odd) >> _U32(16))
    return _U32(0x7FC0) if _U32(bits & _MAGNITUDE) > _INFINITY else rounded


@numba.njit(inline="always")
def _to_fp16(bits):  # type: ignore[no-untyped-def]
    magnitude = _U32(bits & _MAGNITUDE)
    odd = _U32((magnitude >> _U32(13)) & _U32(1))
    normal = _U32(_U32(magnitude + _REBIAS + odd) >> _U32(13))
    # The last place of |x| + 0.5 is that of fp16's subnormal numbers: the addition rounds.
    small = _U32(np.float32(magnitude.view(np.float32) + np.float32(0.5)).view(np.uint32) - _HALF)
    finite = small if magnitude < _SMALLEST_NORMAL else normal
    over = _U32(0x7E00) if magnitude > _INFINITY else _U32(0x7C00)
    return _U32((over if magnitude >= _TOO_LARGE else finite) | _U32((bits >> _U32(16)) & _U32(0x8000)))


@numba.njit(inline="always")
def _look_up(packed, values, two, block, start, count):  # type: ignore[no-untyped-def]
    """``count`` bytes of a block's codes → pairs of values, found at ``values[16 * code + block]``."""
    for i in range(count):
        place = start + _PLACE(i)
        codes = _PLACE(packed[place])
        low = values[(codes & _PLACE(0xF0)) + block]
        two[place] = low | (values[((codes << _PLACE(4)) & _PLACE(0xF0)) + block] << _U32(16))


@numba.njit(inline="always")
def _dequantize_16bit(job, first, last, rounding):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of packed (⌈n/2⌉,) uint8 → out (n,) uint16, the bits of floats.

    The job's pointers: packed, absmax, the table's 16 values (float32), out. ``rounding`` takes the bits of a
    float32 to those of 16, ties to even.
    """
    job = fields(job)
    n, blocksize = job[N], job[BLOCKSIZE]
    packed = array(job, POINTERS, (n + 1) // 2, np.uint8)
    absmax = array(job, POINTERS + 1, (n + blocksize - 1) // blocksize, np.float32)
    table = array(job, POINTERS + 2, 16, np.float32)
    out = array(job, POINTERS + 3, n, np.uint16)
    # The 16 values of each block are rounded first, then looked up: for 16 blocks at a time, those of one
    # code side by side, which suits vector units. Places are unsigned and in whole arrays: a slice for
    # each block, or the question whether to count from an array's end, would cost more than the work.
    half, pairs = blocksize // 2, n // 2
    scales, product = on_stack(16, np.float32), on_stack(256, np.float32)
    bits, values = product.view(np.uint32), on_stack(256, np.uint32)
    scales[:] = _ZERO
    two = out[: 2 * pairs].view(np.uint32)  # (little-endian)
    for group in range(first, last, 16):
        blocks = min(16, last - group)
        for b in range(blocks):
            scales[b] = absmax[group + b]
        for code in range(16):
            for b in range(16):
                product[16 * code + b] = table[code] * scales[b]
        for i in range(256):
            values[i] = rounding(bits[i])
        if half == 32 and (group + blocks) * half <= pairs:  # the usual size on its own: unrolled
            for b in range(blocks):
                _look_up(packed, values, two, _PLACE(b), _PLACE((group + b) * 32), 32)
        else:
            for b in range(blocks):
                start = (group + b) * half
                _look_up(packed, values, two, _PLACE(b), _PLACE(start), min(half, pairs - start))
        if n % 2 and (group + blocks) * half > pairs:
            out[2 * pairs] = values[(packed[pairs] & 0xF0) + blocks - 1]


@loop()
def dequantize_bf16(job, first, last):  # type: ignore[no-untyped-def]
    """See `_dequantize_16bit`."""
    _dequantize_16bit(job, first, last, _to_bf16)


@loop()
def dequantize_fp16(job, first, last):  # type: ignore[no-untyped-def]
    """See `_dequantize_16bit`."""
    _dequantize_16bit(job, first, last, _to_fp16)
