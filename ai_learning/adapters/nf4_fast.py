"""The compiled (numba) version of the 4-bit functions for CPU tensors: the same bits as the definition in
`nf4`.

Large tensors are cut at block borders and shared out over ``torch.get_num_threads()`` threads; the compiled
loops run without the interpreter lock.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Elements that make a thread worth waking, which takes a third of a millisecond: by what is done to them.
_ENOUGH_QUANTIZE, _ENOUGH_PORTABLE, _ENOUGH_VECTOR = 2**18, 2**20, 2**21
_LARGE = 2**20  # bytes of a result that need not stay in the cache


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


@cache
def _avx512(dtype: torch.dtype, large: bool) -> Any:
    from . import nf4_avx512 as kernels

    if not kernels.available():
        return None
    # What no cache will hold goes straight to memory, which need not be read before it is overwritten.
    past_cache = "_past_cache" if large else ""
    return getattr(kernels, f"dequantize_{_NAMES[dtype]}{past_cache}")


def quantize(flat: Tensor, midpoints: Tensor, codes: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """fp32 (n,) → packed codes (⌈n/2⌉, 1) and absmax (⌈n/blocksize⌉,)."""
    n = flat.numel()
    packed = torch.empty((n + 1) // 2, 1, dtype=torch.uint8)
    absmax = torch.empty(-(-n // blocksize))
    arrays = (flat.contiguous().numpy(), packed.view(-1).numpy(), absmax.numpy())
    kernel = _kernels().quantize
    tables = (tuple(midpoints.numpy()), codes.numpy())

    def run(first: int, last: int) -> None:
        kernel(*arrays, *tables, blocksize, first, last)

    _share(run, 0, absmax.numel(), blocksize, _ENOUGH_QUANTIZE)
    return packed, absmax


def dequantize(
    packed: Tensor,
    absmax: Tensor,
    table: Tensor,
    blocksize: int,
    n: int,
    dtype: torch.dtype,
    portable: bool = False,
) -> Tensor:
    """Packed codes (⌈n/2⌉,) → (n,). ``portable`` keeps to loops that any processor runs."""
    if dtype not in _NAMES:
        return dequantize(packed, absmax, table, blocksize, n, torch.float32, portable).to(dtype)
    packed, absmax = packed.contiguous(), absmax.contiguous()
    out = torch.empty(n, dtype=dtype)
    whole = 0
    large = out.nbytes >= _LARGE and out.data_ptr() % 64 == 0
    vector = None if portable or blocksize % 32 else _avx512(dtype, large)
    if vector is not None:
        addresses = [tensor.data_ptr() for tensor in (packed, absmax, table, out)]
        whole = n // blocksize

        def run(first: int, last: int) -> None:
            vector(*addresses, blocksize, first, last)

        _share(run, 0, whole, blocksize, _ENOUGH_VECTOR)
    if whole < absmax.numel():
        _dequantize_portable(packed, absmax, table, blocksize, out, whole)
    return out


def _dequantize_portable(
    packed: Tensor, absmax: Tensor, table: Tensor, blocksize: int, out: Tensor, start: int
) -> None:
    """Blocks from ``start`` on, in loops that any processor runs."""
    kernel = getattr(_kernels(), f"dequantize_{_NAMES[out.dtype]}")
    codes, scales, values = packed.numpy(), absmax.numpy(), table.numpy()
    if out.dtype == torch.float32:
        pairs = np.stack([values.repeat(16), np.tile(values, 16)], 1).view(np.uint64).reshape(256)
        arrays: tuple[np.ndarray, ...] = (codes, scales, pairs, values, out.numpy())
    else:
        arrays = (codes, scales, values, out.view(torch.uint16).numpy())

    def run(first: int, last: int) -> None:
        kernel(*arrays, blocksize, first, last)

    _share(run, start, absmax.numel(), blocksize, _ENOUGH_PORTABLE)


def _share(run: Callable[[int, int], None], first: int, last: int, blocksize: int, enough: int) -> None:
    """Call ``run`` on ranges that cover blocks first … last−1, on as many threads as torch may use.

    Each gets at least ``enough`` elements.
    """
    threads = min(torch.get_num_threads(), (last - first) * blocksize // enough)
    if threads <= 1:
        run(first, last)
        return
    edges = np.linspace(first, last, threads + 1).astype(int).tolist()
    list(_pool(threads).map(run, edges[:-1], edges[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="nf4")
