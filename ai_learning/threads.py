"""Compiled (numba) loops on PyTorch's own threads, where those are GNU's; importing this imports numba.

Those threads wait close by: they start in a few microseconds, a thread of Python's in a third of a
millisecond. ``GOMP_parallel`` of the library that PyTorch has loaded calls one C function on all of them;
that function takes one share of the range after another until none is left.

A loop is a C function of ``(address of a job, first, last)``. The job is an array of whole numbers: what the
loop needs to know, then the addresses of its tensors. Loops must not fail: nobody would hear of it.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

from .files import digest_of_sources
from .pages import is_plain

_TAKEN, _SHARES, _FIRST, _LAST, _LOOP, _FIELDS = range(6)
"""places in what the threads share: shares begun and in all, the range, the loop; then the loop's own job"""
_LENGTH = 10  # of a job
_Shared = ctypes.c_int64 * (_FIELDS + _LENGTH)
_WORTH_A_THREAD, _WORTH_A_PYTHON_THREAD = 2**15, 2**20  # elements
_SHARES_A_THREAD = 4  # a thread that is held up leaves its later shares to the others
_INT64 = ir.IntType(64)


# --- for loops --------------------------------------------------------------------------------------------


class Loop:
    """A function of ``(job, first, last)``, compiled when first asked for and kept on disk.

    numba takes what lies on disk for fresh while the function's own file is unchanged, though functions of
    other files are compiled into it. Here it is fresh while no file beside it, nor this one, has changed.
    """

    def __init__(self, function: Callable[..., None], fastmath: bool | set[str] = False) -> None:
        self.function, self.fastmath = function, fastmath

    @cached_property
    def call(self) -> Any:
        """The C function, to be called from Python."""
        return self._compiled.ctypes

    @cached_property
    def address(self) -> int:
        """Where the C function stands."""
        return self._compiled.address or 0

    @cached_property
    def _compiled(self) -> CFunc:
        return _compile(self.function, types.void(types.int64, types.int64, types.int64), self.fastmath)


def loop(*, fastmath: bool | set[str] = False) -> Callable[[Callable[..., None]], Loop]:
    """Decorator that makes a `Loop`; ``fastmath`` lets sums be taken in any order.

    Or it names LLVM's flags: ``contract`` lets a product and a sum be one instruction, ``reassoc`` lets sums
    be taken in any order, ``nsz`` makes no difference between 0 and −0.
    """
    return lambda function: Loop(function, fastmath)


def _compile(function: Callable[..., None], signature: Any, fastmath: bool | set[str] = False) -> CFunc:
    compiled = CFunc(
        function, (signature.args, signature.return_type), {}, {"fastmath": fastmath, "error_model": "numpy"}
    )
    try:
        compiled.enable_caching()
    except RuntimeError:  # no folder can be written to
        pass
    else:
        cache_file: Any = compiled._cache._cache_file  # type: ignore[attr-defined]
        folder = Path(function.__code__.co_filename).parent
        cache_file._source_stamp = _digest(folder, Path(__file__))
    compiled.compile()
    return compiled


_digest = cache(digest_of_sources)


@intrinsic
def _pointer(typingctx, address):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@numba.njit(inline="always")
def fields(job):  # type: ignore[no-untyped-def]
    """The whole numbers of a job."""
    return numba.carray(_pointer(job), (_LENGTH,), np.int64)


@numba.njit(inline="always")
def array(job, place, length, dtype):  # type: ignore[no-untyped-def]
    """The (length,) array whose address stands at a place of ``fields(job)``."""
    return at(job[place], length, dtype)


@numba.njit(inline="always")
def at(address, length, dtype):  # type: ignore[no-untyped-def]
    """The (length,) array at an address."""
    return numba.carray(_pointer(address), (length,), dtype)


# --- on threads -------------------------------------------------------------------------------------------


@intrinsic
def _take(typingctx, counter):  # type: ignore[no-untyped-def]
    """Add 1 to the int64 at an address, in one step for all threads; what it was before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(_INT64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def _call(typingctx, function, job, first, last):  # type: ignore[no-untyped-def]
    """Call the loop at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def _work(address):  # type: ignore[no-untyped-def]
    """What every thread does: one share after another, until none is left."""
    shared = numba.carray(_pointer(address), (_FIELDS,), np.int64)
    length = shared[_LAST] - shared[_FIRST]
    while True:
        share = _take(address)  # _TAKEN stands first
        if share >= shared[_SHARES]:
            return
        first = shared[_FIRST] + length * share // shared[_SHARES]
        last = shared[_FIRST] + length * (share + 1) // shared[_SHARES]
        _call(shared[_LOOP], address + 8 * _FIELDS, first, last)


@cache
def _work_address() -> int:
    return _compile(_work, types.void(types.int64)).address or 0


@cache
def _gomp_parallel() -> Callable[..., None] | None:
    """``GOMP_parallel`` of the library that PyTorch has loaded; ``None`` where its threads are others."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
        found = [line.split(maxsplit=5)[-1] for line in mapped if "libgomp" in line]
        found.sort(
            key=lambda path: "/torch" not in path
        )  # other packages may have brought copies of their own
        parallel = ctypes.CDLL(found[0]).GOMP_parallel
    except (OSError, IndexError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


_PROCESS = os.getpid()


def run(
    loop: Loop, first: int, last: int, elements: int, numbers: Sequence[int], tensors: Sequence[torch.Tensor]
) -> None:
    """Call ``loop`` for first … last−1, on as many threads as torch may use.

    Args:
        loop: works on any part of the range, in any order.
        first: where the range begins (a block, a row).
        last: behind its last one.
        elements: how many numbers are worked on, which says how many threads are worth it.
        numbers: whole numbers, the job's first fields.
        tensors: their addresses are its other fields.

    Raises:
        TypeError: a tensor that does not simply lie in main memory.
    """
    if not is_plain(*tensors):
        raise TypeError("compiled loops need contiguous tensors in main memory")
    threads = torch.get_num_threads() if os.getpid() == _PROCESS else 1  # after a fork, threads are not there
    shares = min(threads * _SHARES_A_THREAD, elements // _WORTH_A_THREAD, last - first)
    shared = _Shared(0, shares, first, last, loop.address, *numbers, *[t.data_ptr() for t in tensors])
    address = ctypes.addressof(shared)
    parallel = _gomp_parallel() if threads > 1 and shares > 1 else None
    if parallel is not None:
        # Always all threads: another number than in PyTorch's last call would end some and start them anew.
        parallel(_work_address(), address, threads, 0)
        return
    call, job = loop.call, address + 8 * _FIELDS
    threads = min(threads, elements // _WORTH_A_PYTHON_THREAD)
    if threads <= 1:
        call(job, first, last)
        return
    edges = np.linspace(first, last, threads + 1).astype(int).tolist()
    started = [_pool(threads).submit(call, job, a, b) for a, b in pairwise(edges)]
    try:
        wait(started)
    except BaseException:  # Ctrl-C: what they work on must not go before they are done
        wait(started)
        raise


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ai_learning")
