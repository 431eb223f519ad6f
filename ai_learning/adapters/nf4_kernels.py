"""The numba loops behind `nf4_fast`; importing this module imports numba."""

from collections.abc import Callable

import numba
import numpy as np
import torch

_TINIEST = np.float32(1e-38)
_ONE = np.float32(1)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


@numba.njit(nogil=True, cache=True)
def quantize(x, packed, absmax, midpoints, codes, blocksize, first, last):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of x (n,) float32 → packed (⌈n/2⌉,) uint8, absmax (blocks,) float32."""
    n = x.shape[0]
    bits = x.view(np.uint32)
    below = np.empty(blocksize, np.uint8)
    for block in range(first, last):
        start = block * blocksize
        stop = min(start + blocksize, n)
        # Magnitudes compare like their bits, and NaN is above Inf: the maximum of a block with a NaN is NaN.
        largest = np.uint32(0)
        for i in range(start, stop):
            largest = max(largest, bits[i] & _MAGNITUDE)
        absmax[block : block + 1].view(np.uint32)[0] = largest
        divisor = absmax[block]
        if divisor < _TINIEST:
            divisor = _TINIEST
        count = stop - start
        if count == blocksize:
            scale = _ONE / divisor
            for i in range(count):
                v = x[start + i] * scale
                c = np.uint8(0)
                for k in range(15):
                    c += np.uint8(not (v <= midpoints[k]))  # NaN counts as above all, like torch.bucketize
                below[i] = c
        else:
            absmax[block] = divisor
            for i in range(count):
                v = x[start + i] / divisor
                c = np.uint8(0)
                for k in range(15):
                    c += np.uint8(not (v <= midpoints[k]))
                below[i] = c
            if count % 2:
                c = np.uint8(0)
                for k in range(15):
                    c += np.uint8(not (np.float32(0) <= midpoints[k]))
                below[count] = c
        for i in range((count + 1) // 2):
            packed[start // 2 + i] = (codes[below[2 * i]] << 4) | codes[below[2 * i + 1]]


@numba.njit(nogil=True, cache=True)
def dequantize_fp32(packed, absmax, table, out, blocksize, first, last):  # type: ignore[no-untyped-def]
    """Blocks first … last−1 of packed (⌈n/2⌉,) uint8 → out (n,) float32."""
    n = out.shape[0]
    scaled = np.empty(16, np.float32)
    for block in range(first, last):
        start = block * blocksize
        stop = min(start + blocksize, n)
        for k in range(16):
            scaled[k] = table[k] * absmax[block]
        for i in range(start // 2, stop // 2):
            byte = packed[i]
            out[2 * i] = scaled[byte >> 4]
            out[2 * i + 1] = scaled[byte & 15]
        if stop % 2:
            out[stop - 1] = scaled[packed[stop // 2] >> 4]


OUTPUTS: dict[torch.dtype, Callable[..., None]] = {torch.float32: dequantize_fp32}
