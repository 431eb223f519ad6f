"""The compiled (numba) version of the 4-bit functions for CPU tensors: the same bits as the definition in
`nf4`.

Tensors are cut at block borders and shared out over ``torch.get_num_threads()`` threads (`loops`).
"""

from functools import cache

import torch
from torch import Tensor

from ..kernels.host_memory import empty, is_plain
from ..kernels.loops import Loops, StoredLoop, processor_has, ready, run

_LOOPS, _VECTOR_LOOPS = Loops("adapters.nf4_kernels"), Loops("adapters.nf4_avx512")
_DEQUANTIZE = {
    torch.float32: "dequantize_fp32",
    torch.float16: "dequantize_fp16",
    torch.bfloat16: "dequantize_bf16",
}


def usable(*tensors: Tensor) -> bool:
    """Whether the compiled functions take these (plain ones in main memory) and can be had."""
    own = (_LOOPS.quantize, *(getattr(_LOOPS, name) for name in _DEQUANTIZE.values()))
    return is_plain(*tensors) and not torch.compiler.is_compiling() and ready(*own)


def _run(loop: StoredLoop, tensors: list[Tensor], n: int, blocksize: int, first: int, last: int) -> None:
    """Call a loop for blocks first … last−1 of n elements."""
    run(loop, first, last, min(n, (last - first) * blocksize), (blocksize, n), tensors)


def quantize(flat: Tensor, midpoints: Tensor, codes: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """fp32 (n,) → packed codes (⌈n/2⌉, 1) and absmax (⌈n/blocksize⌉,)."""
    n = flat.numel()
    packed, absmax = empty(((n + 1) // 2, 1), torch.uint8), empty((-(-n // blocksize),))
    tensors = [packed, absmax, flat.contiguous(), midpoints.contiguous(), codes.contiguous()]
    _run(_LOOPS.quantize, tensors, n, blocksize, 0, absmax.numel())
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
    if dtype not in _DEQUANTIZE:
        return dequantize(packed, absmax, table, blocksize, shape, torch.float32, portable).to(dtype)
    out = empty(shape, dtype)
    n, whole = out.numel(), 0
    tensors = [packed.contiguous(), absmax.float().contiguous(), table, out]
    vector = getattr(_VECTOR_LOOPS, _DEQUANTIZE[dtype])
    if not portable and blocksize % 32 == 0 and processor_has("avx512f", "avx512bw") and ready(vector):
        whole = n // blocksize
        _run(vector, tensors, n, blocksize, 0, whole)
    if whole < absmax.numel():  # the last block is not a whole one, or all are left
        if dtype == torch.float32:
            tensors.append(_pairs(tuple(table.tolist())))
        _run(getattr(_LOOPS, _DEQUANTIZE[dtype]), tensors, n, blocksize, whole, absmax.numel())
    return out


@cache
def _pairs(table: tuple[float, ...]) -> Tensor:
    """(256, 2): the two values that each byte of codes stands for."""
    values = torch.tensor(table, dtype=torch.float32, device="cpu")  # kept, whatever the defaults are
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1)
