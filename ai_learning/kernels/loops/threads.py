"""Sharing out a loop over PyTorch's own threads, where those are GNU's.

Those threads wait close by: they start in a few microseconds, a thread of Python's in a third of a
millisecond. ``GOMP_parallel`` of the library that PyTorch has loaded calls one C function on all of them
(`compiler.work`). There each thread takes the shares of its own part of the range, then what others have
left. In PyTorch's kernels, too, the first thread has the first part: it is in its cache.
"""

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..host_memory import is_plain
from .store import StoredLoop

SHARES, FIRST, LAST, LOOP, THREADS, WHICH, FIELDS = range(7)
"""places in what the threads share: how many shares, the range, the loop, how many threads, the function that
tells which one asks; then the loop's own job, and for each share whether it is taken"""
JOB_LENGTH = 24
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


work = StoredLoop("kernels.loops.compiler", "work")
"""what every thread does"""


@cache
def _gomp() -> tuple[Callable[..., None], int] | None:
    """From the library that PyTorch has loaded, ``GOMP_parallel`` and the address of ``omp_get_thread_num``.

    ``None`` where PyTorch's threads are others.
    """
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
        found = [line.split(maxsplit=5)[-1] for line in mapped if "libgomp" in line]
        found.sort(key=lambda path: "/torch" not in path)  # other packages may have brought their own
        library = ctypes.CDLL(found[0])
        parallel, which = library.GOMP_parallel, library.omp_get_thread_num
    except (OSError, IndexError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel, ctypes.cast(which, ctypes.c_void_p).value or 0


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
    gomp = _gomp() if threads > 1 and shares > 1 else None
    parallel, which = gomp or (None, 0)
    places = [t.data_ptr() for t in tensors]
    shared = array("q", (shares, first, last, loop.address, threads, which, *numbers, *places))
    shared.frombytes(bytes(8 * (JOB_LENGTH + max(0, shares))))  # no share is taken
    address = shared.buffer_info()[0]  # an array of ctypes takes three times as long to make
    if parallel is not None:
        # Always all threads: another number than in PyTorch's last call would end some and start them anew.
        parallel(work.address, address, threads, 0)
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
