"""Sharing out a loop over PyTorch's own threads, where those are GNU's.

Those threads wait close by: they start in a few microseconds, a thread of Python's in a third of a
millisecond. ``GOMP_parallel`` of the library that PyTorch has loaded calls one C function on all of them
(`compiler.work`); that function takes one share of the range after another until none is left.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..pages import is_plain
from .store import StoredLoop

TAKEN, SHARES, FIRST, LAST, LOOP, FIELDS = range(6)
"""places in what the threads share: shares begun and in all, the range, the loop; then the loop's own job"""
JOB_LENGTH = 10
_Shared = ctypes.c_int64 * (FIELDS + JOB_LENGTH)
_WORTH_A_THREAD, _WORTH_A_PYTHON_THREAD = 2**15, 2**20  # elements
_SHARES_A_THREAD = 4  # a thread that is held up leaves its later shares to the others


class AnyLoop(Protocol):
    """A C function of ``(address of a job, first, last)``."""

    @property
    def address(self) -> int:
        """Where it stands."""

    @property
    def call(self) -> Any:
        """The function itself."""


_work = StoredLoop("loops.compiler", "work")


@cache
def can_run() -> bool:
    """Whether compiled code can be had on this machine."""
    try:
        return _work.address != 0
    except ImportError:
        return False


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
    loop: AnyLoop,
    first: int,
    last: int,
    elements: int,
    numbers: Sequence[int],
    tensors: Sequence[torch.Tensor],
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
        parallel(_work.address, address, threads, 0)
        return
    call, job = loop.call, address + 8 * FIELDS
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
