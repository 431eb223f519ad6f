"""Tensors in main memory whose numbers compiled loops can reach by address; large ones in large pages.

Linux hands memory out when it is first written to, a page at a time, and clears each page: 64 MB are 16,384
interruptions, which take longer than most of what is computed into such a tensor. Asked beforehand, it takes
32 pages of 2 MB instead (``madvise``, "transparent huge pages").
"""

import ctypes
import mmap
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

WORTH_ASKING = 4 * 2**20
"""bytes; smaller tensors mostly get memory that was in use before"""
_ADVICE = 14  # MADV_HUGEPAGE


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """``torch.empty`` in main memory, whatever the default device; in large pages where it is large.

    Example:
        >>> tuple(empty((2, 3)).shape)
        (2, 3)
    """
    out = torch.empty(shape, dtype=dtype, device="cpu")
    if out.nbytes >= WORTH_ASKING and is_plain(out) and (madvise := _madvise()):
        first = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        madvise(first, out.data_ptr() + out.nbytes - first, _ADVICE)  # where it is refused, pages are small
    return out


def is_plain(*tensors: Tensor, contiguous: bool = True) -> bool:
    """Whether each is an ordinary tensor in main memory: its numbers lie one after another at its address.

    With ``contiguous=False`` they may lie apart, as its strides say.
    """
    for t in tensors:  # a loop, not all(…): this stands before work of microseconds
        if type(t) is not Tensor and type(t) is not nn.Parameter:
            return False
        # Sparse tensors and others without one storage; those that stand for zeros, or for the negative of
        # what is stored.
        if t.layout is not torch.strided or not torch._C._has_storage(t) or t._is_zerotensor() or t.is_neg():
            return False
        if not t.is_cpu or (contiguous and not t.is_contiguous()):
            return False
        if t.untyped_storage().nbytes() == 0 and t.numel():  # freed, as FSDP and offloading do
            return False
    return True


@cache
def _madvise() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
