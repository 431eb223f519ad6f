"""The compiled (numba) version of the 4-bit functions for CPU tensors: the same bits as the definition in
`nf4`.

Tensors are cut at block borders and shared out over ``torch.get_num_threads()`` threads (`threads`).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..pages import empty, is_plain

_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def usable(*tensors: Tensor) -> bool:
    """Whether the compiled functions take these (plain ones in main memory) and numba is here."""
    return is_plain(*tensors) and not torch.compiler.is_compiling() and _kernels() is not None


@cache
def _kernels() -> Any:
    try:
        from . import nf4_kernels
    except ImportError:  # numba has no build for this Python or machine
        return None
    return nf4_kernels


@cache
def _avx512(dtype: torch.dtype) -> Any:
    from . import nf4_avx512 as kernels

    return getattr(kernels, f"dequantize_{_NAMES[dtype]}") if kernels.available() else None


def quantize(flat: Tensor, midpoints: Tensor, codes: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """fp32 (n,) → packed codes (⌈n/2⌉, 1) and absmax (⌈n/blocksize⌉,)."""
    kernels, n = _kernels(), flat.numel()
    packed, absmax = empty(((n + 1) // 2, 1), torch.uint8), empty((-(-n // blocksize),))
    tensors = [packed, absmax, flat.contiguous(), midpoints.contiguous(), codes.contiguous()]
    kernels.run(kernels.quantize, tensors, n, blocksize, 0, absmax.numel())
    return packed, absmax


def dequantize(
    packed: Tensor,
    absmax: Tensor,
    table: Tensor,
    blocksize: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    portable: bool = False,
) -> Tensor:
    """Packed codes (⌈n/2⌉ in all) → a tensor of ``shape``. ``portable``: loops that any processor runs."""
    if dtype not in _NAMES:
        return dequantize(packed, absmax, table, blocksize, shape, torch.float32, portable).to(dtype)
    kernels = _kernels()
    out = empty(shape, dtype)
    n, whole = out.numel(), 0
    tensors = [packed.contiguous(), absmax.float().contiguous(), table, out]
    vector = None if portable or blocksize % 32 else _avx512(dtype)
    if vector is not None:
        whole = n // blocksize
        kernels.run(vector, tensors, n, blocksize, 0, whole)
    if whole < absmax.numel():  # the last block is not a whole one, or all are left
        if dtype == torch.float32:
            tensors.append(_pairs(tuple(table.tolist())))
        kernels.run(
            getattr(kernels, f"dequantize_{_NAMES[dtype]}"), tensors, n, blocksize, whole, absmax.numel()
        )
    return out


@cache
def _pairs(table: tuple[float, ...]) -> Tensor:
    """(256, 2): the two values that each byte of codes stands for."""
    values = torch.tensor(table, device="cpu")
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1)
