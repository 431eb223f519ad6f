"""Compiled (numba) loops on PyTorch's own threads, where those are GNU's; importing this imports numba.

Those threads wait close by: they start in a few microseconds, a thread of Python's in a third of a
millisecond. ``GOMP_parallel`` of the library that PyTorch has loaded calls one C function on all of them;
that function takes one share of the range after another until none is left.

A job is one int64 array: which shares are taken, then what the loop needs, sizes and addresses of tensors.
"""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_TAKEN, _SHARES, _FIRST, _LAST, FIELDS = range(5)
"""places in a job: shares begun, shares in all, the range first … last−1; the loop's own begin at FIELDS"""
_LENGTH = FIELDS + 10
_Job = ctypes.c_int64 * _LENGTH
_WORTH_A_THREAD, _WORTH_A_PYTHON_THREAD = 2**15, 2**20  # elements
_SHARES_A_THREAD = 4  # a thread that is held up leaves its later shares to the others


@intrinsic
def _pointer(typingctx, address):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def _take(typingctx, counter):  # type: ignore[no-untyped-def]
    """Add 1 to the int64 at an address, in one step for all threads; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), generate


@numba.njit(cache=True, inline="always")
def fields(address):  # type: ignore[no-untyped-def]
    """The job at an address."""
    return numba.carray(_pointer(address), (_LENGTH,), np.int64)


@numba.njit(cache=True, inline="always")
def array(job, place, length, dtype):  # type: ignore[no-untyped-def]
    """The (length,) array whose address stands at a place of the job."""
    return numba.carray(_pointer(job[place]), (length,), dtype)


@cache
def _task(loop: Any) -> Any:
    """The loop as a C function of a job's address, for any number of threads at once."""

    @numba.cfunc("void(int64)", cache=True)
    def task(address):  # type: ignore[no-untyped-def]
        job = fields(address)
        length = job[_LAST] - job[_FIRST]
        while True:
            share = _take(address)  # _TAKEN stands first
            if share >= job[_SHARES]:
                return
            first = job[_FIRST] + length * share // job[_SHARES]
            loop(address, first, job[_FIRST] + length * (share + 1) // job[_SHARES])

    return task


@cache
def _gomp_parallel() -> Callable[..., None] | None:
    """``GOMP_parallel`` of PyTorch's own library; ``None`` where it has another kind of threads."""
    packages = Path(torch.__file__).parent.parent
    found = [*packages.glob("torch/lib/libgomp*.so*"), *packages.glob("torch.libs/libgomp*.so*")]
    try:
        parallel = ctypes.CDLL(str(found[0])).GOMP_parallel
    except (IndexError, OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def run(loop: Any, first: int, last: int, elements: int, fields: Sequence[int]) -> None:
    """Call ``loop`` for first … last−1, on as many threads as torch may use.

    Args:
        loop: compiled, takes ``(address of the job, first, last)``; any part of the range, in any order.
        first: where the range begins (a block, a row).
        last: behind its last one.
        elements: how many numbers are worked on, which says how many threads are worth it.
        fields: whole numbers and addresses that the loop finds in the job from ``FIELDS`` on.
    """
    threads = torch.get_num_threads()
    shares = min(threads * _SHARES_A_THREAD, elements // _WORTH_A_THREAD)
    job = _Job(0, shares, first, last, *fields)
    address = ctypes.addressof(job)
    parallel = _gomp_parallel() if threads > 1 and shares > 1 else None
    if parallel is not None:
        # Always all threads: another number than in PyTorch's last call would end some and start them anew.
        parallel(_task(loop).address, address, threads, 0)
        return
    threads = min(threads, elements // _WORTH_A_PYTHON_THREAD)
    if threads <= 1:
        loop(address, first, last)
        return
    edges = np.linspace(first, last, threads + 1).astype(int).tolist()
    list(_pool(threads).map(lambda a, b: loop(address, a, b), edges[:-1], edges[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ai_learning")
