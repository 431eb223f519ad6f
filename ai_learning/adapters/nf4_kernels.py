"""The numba loops behind `nf4_fast`; importing this module imports numba."""

import numba
import numpy as np

_TINIEST = np.float32(1e-38)
_ONE = np.float32(1)
_ZERO = np.float32(0)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


@numba.njit(nogil=True, cache=True, inline="always")
def _count_below(v, m):  # type: ignore[no-untyped-def]
    """How many of the 15 midpoints are below v. ``not <=``: NaN counts as above all, like torch.bucketize."""
    u = np.uint8
    low = u(not (v <= m[0])) + u(not (v <= m[1])) + u(not (v <= m[2])) + u(not (v <= m[3]))
    mid = u(not (v <= m[4])) + u(not (v <= m[5])) + u(not (v <= m[6])) + u(not (v <= m[7]))
    high = u(not (v <= m[8])) + u(not (v <= m[9])) + u(not (v <= m[10])) + u(not (v <= m[11]))
    return low + mid + high + u(not (v <= m[12])) + u(not (v <= m[13])) + u(not (v <= m[14]))


@numba.njit(nogil=True, cache=True)
def quantize(x, packed, absmax, midpoints, codes, blocksize, first, last):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of x (n,) float32 → packed (⌈n/2⌉,) uint8, absmax (blocks,) float32.

    ``midpoints`` are 15 floats in a tuple, so that they stay in registers; ``codes`` is (16,) uint8.
    """
    n = x.shape[0]
    below = np.empty(blocksize, np.int32)  # as wide as the floats it is compared from: no shuffling of lanes
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
        out = packed[start // 2 : (start + count + 1) // 2]
        if count == blocksize:
            scale = _ONE / divisor
            for i in range(count):
                below[i] = _count_below(values[i] * scale, midpoints)
        else:
            absmax[block] = divisor
            for i in range(count):
                below[i] = _count_below(values[i] / divisor, midpoints)
            if count % 2:
                below[count] = _count_below(_ZERO, midpoints)
        for i in range(out.shape[0]):
            out[i] = (codes[below[2 * i]] << 4) | codes[below[2 * i + 1]]


@numba.njit(nogil=True, cache=True)
def dequantize(packed, absmax, pairs, table, out, blocksize, first, last):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of packed (⌈n/2⌉,) uint8 → out (n,) float32.

    ``pairs`` (256,) uint64 holds the two float32 values that each byte of codes stands for, side by side;
    ``table`` is (16,) float32.
    """
    # Blocks are ranges of the whole arrays: making a slice for each block would cost more than its work.
    n = out.shape[0]
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
