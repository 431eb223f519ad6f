"""Large tensors on a CPU in pages of 2 MB instead of 4 kB.

Linux hands memory out when it is first written to, a page at a time, and clears each page: 64 MB are 16,384
interruptions, which take longer than most of what is computed into such a tensor. Asked beforehand, it takes
32 large pages instead (``madvise``, "transparent huge pages").
"""

import ctypes
import sys
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

WORTH_ASKING = 4 * 2**20
"""bytes; smaller tensors mostly get memory that was in use before"""
_ADVICE = 14  # MADV_HUGEPAGE
_SMALL_PAGE = 4096


def empty(
    shape: Sequence[int], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """``torch.empty``; a large tensor in main memory lies in large pages where Linux has them.

    Example:
        >>> tuple(empty((2, 3)).shape)
        (2, 3)
    """
    out = torch.empty(shape, dtype=dtype, device=device)
    if out.device.type != "cpu" or torch.compiler.is_compiling() or type(out) is not Tensor:
        return out
    if out.nbytes >= WORTH_ASKING and (madvise := _madvise()):
        first = -(-out.data_ptr() // _SMALL_PAGE) * _SMALL_PAGE
        length = out.data_ptr() + out.nbytes - first
        madvise(first, length, _ADVICE)  # advice: where it is refused, pages are small
    return out


@cache
def _madvise() -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
