"""The compiled (numba) version of the 4-bit functions for CPU tensors: the same bits as the definition in `nf4`.

Large tensors are cut at block borders and shared out over ``torch.get_num_threads()`` threads; the compiled loops
run without the interpreter lock.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**16  # elements that make a thread worth waking


def usable(tensor: Tensor) -> bool:
    """Whether the compiled functions take this tensor (a plain one in main memory) and numba is here."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and _kernels() is not None


@cache
def _kernels() -> Any:
    try:
        from . import nf4_kernels
    except ImportError:  # numba has no build for this Python or machine
        return None
    return nf4_kernels


def quantize(flat: Tensor, midpoints: Tensor, codes: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """fp32 (n,) → packed codes (⌈n/2⌉, 1) and absmax (⌈n/blocksize⌉,)."""
    n = flat.numel()
    packed = torch.empty((n + 1) // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(-(-n // blocksize))
    arrays = (flat.contiguous().numpy(), packed.view(-1).numpy(), absmax.numpy())
    kernel = _kernels().quantize
    tables = (midpoints.numpy(), codes.numpy())

    def run(first: int, last: int) -> None:
        kernel(*arrays, *tables, blocksize, first, last)

    _share(run, absmax.numel(), blocksize)
    return packed, absmax


def dequantize(
    packed: Tensor, absmax: Tensor, table: Tensor, blocksize: int, n: int, dtype: torch.dtype
) -> Tensor:
    """Packed codes (⌈n/2⌉,) → (n,)."""
    kernels = _kernels()
    out = torch.empty(n, dtype=dtype if dtype in kernels.OUTPUTS else torch.float32)
    raw = out if out.dtype == torch.float32 else out.view(torch.uint16)
    arrays = (packed.contiguous().numpy(), absmax.contiguous().numpy(), table.numpy(), raw.numpy())
    kernel = kernels.OUTPUTS[out.dtype]

    def run(first: int, last: int) -> None:
        kernel(*arrays, blocksize, first, last)

    _share(run, absmax.numel(), blocksize)
    return out.to(dtype)


def _share(run: Callable[[int, int], None], blocks: int, blocksize: int) -> None:
    """Call ``run(first, last)`` so that all blocks are covered, on as many threads as torch may use."""
    threads = max(1, min(torch.get_num_threads(), blocks * blocksize // _CHUNK))
    if threads == 1:
        run(0, blocks)
        return
    edges = np.linspace(0, blocks, threads + 1).astype(int).tolist()
    list(_pool(threads).map(run, edges[:-1], edges[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nf4")
