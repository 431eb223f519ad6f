"""De-quantising on a GPU, and multiplying one token by a 4-bit weight without de-quantising it first.

In PyTorch's operations every step of `nf4._dequantize_plain` is a tensor of its own in the GPU's memory. Here
one kernel reads the codes, half a byte an element, and writes the result; for one token not even that: the
weight goes from its codes into the product. Both read the doubly quantized absmax values as they are.

`nf4` and `nf4_linear` take these kernels when `usable` says so; the plain version is what they are tested
against.
"""

import warnings
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..kernels import triton_use
from ..kernels.triton_use import Grid, launch, launch_again, starts_early
from .codes import code_table, dynamic_code
from .nf4_ptx import SCALE, SUMS, TABLES

_DEQUANTIZE = {"bytes": 512, "warps": 1}
"""codes of one program, and its warps"""
_WARPS, _PROGRAMS = 8, 2
"""warps that share 16 rows of the weight, and programs for each multiprocessor"""
_GROUPS = 64
"""groups of 32 elements of a row that are taken at once, where tensor cores do not multiply"""
_ANY_ROWS, _ANY_BYTES = 4, 512
"""rows, and bytes of each at once, where blocks and rows do not fit together"""


def usable(packed: Tensor, state: Any) -> bool:
    """Whether the kernels take these: on a GPU, with blocks of the usual sizes."""
    blocksize: int = state.blocksize
    return blocksize & (blocksize - 1) == 0 and blocksize <= 4096 and triton_use.usable(packed, state.absmax)


def dequantize(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The tensor (n,) that the codes stand for: ``table[code] · absmax`` in fp32, rounded once to ``dtype``.

    Args:
        packed: (⌈n/2⌉,) uint8.
        state: the `QuantState` that goes with them.
        dtype: of the result.
    """
    n = prod(state.shape)
    out = torch.empty(n, dtype=dtype, device=packed.device)
    per_block = state.blocksize // 2
    blocks = max(1, _DEQUANTIZE["bytes"] // per_block)
    launch(
        kernels().dequantize, (-(-n // (blocks * state.blocksize)),), packed, *_scales(state), out, n,
        NESTED=state.nested, BLOCKS=blocks, BYTES=per_block, num_warps=_DEQUANTIZE["warps"], **_EXACT,
    )  # fmt: skip
    return out


def multiply(packed: Tensor, state: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` for one row x (..., I), W (O, I) in 4 bits, summed in fp32; (..., O) in the dtype of x.

    W is not rounded; but where x has 16 bits, the table's values may be, before absmax multiplies them.

    Args:
        packed: (O · I / 2,) uint8; I must be even, so that a row begins with a byte.
        state: the `QuantState` that goes with them.
        x: (..., I) of I elements, contiguous.
        bias: (O,).
    """
    out = torch.empty((*x.shape[:-1], state.shape[0]), dtype=x.dtype, device=x.device)
    if _suits_tensor_cores(packed, state, x) and _are_right(x.device):
        _on_tensor_cores(packed, state, x, bias, out)
    else:
        _anyhow(packed, state, x, bias, out)
    return out


def _suits_tensor_cores(packed: Tensor, state: Any, x: Tensor) -> bool:
    """Rows of whole blocks, and x in 16 bits; both are read 16 bytes at a time."""
    whole = state.shape[1] % state.blocksize == 0 and state.blocksize % 64 == 0
    lie_right = packed.data_ptr() % 16 == x.data_ptr() % 16 == state.absmax.data_ptr() % 2 == 0
    return whole and x.dtype in SUMS and lie_right


def _on_tensor_cores(packed: Tensor, state: Any, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
    rows, columns = state.shape
    on_gpu = x.is_cuda  # and not in Triton's interpreter, which knows no PTX

    def how() -> tuple[Grid, dict[str, Any]]:
        early = starts_early(x.device)
        constants = {
            "NESTED": state.nested, "BIAS": bias is not None, "BLOCKSIZE": state.blocksize, "WARPS": _WARPS,
            "WHOLE": columns % (512 * _WARPS) == 0,
            "AS_ONE": state.nested and state.blocksize == 64 and columns % 128 == 0,
            "TABLES": TABLES[state.nested] if on_gpu else "", "SUMS": SUMS[x.dtype] if on_gpu else "",
            "SCALE": SCALE if on_gpu else "", "EARLY": early, "num_warps": _WARPS,
        }  # fmt: skip
        grid = (min(-(-rows // 16), _PROGRAMS * multiprocessors(x.device)),)
        return grid, {**constants, "launch_pdl": True} if early else constants

    launch_again(
        (rows, columns, state.blocksize, x.dtype, state.nested, None if bias is None else bias.dtype),
        kernels().multiply, how,
        (packed, *_scales(state), x, out if bias is None else bias, out,
         _byte_values(state.quant_type, x.dtype, x.device)),
        (rows, columns),
    )  # fmt: skip


def _anyhow(packed: Tensor, state: Any, x: Tensor, bias: Tensor | None, out: Tensor) -> None:
    (rows, columns), blocksize = state.shape, state.blocksize
    given = (packed, *_scales(state), x, out if bias is None else bias, out)
    how = {"NESTED": state.nested, "BIAS": bias is not None}
    if columns % blocksize == 0 and blocksize % 32 == 0:
        how |= {"BLOCKSIZE": blocksize, "GROUPS": _GROUPS, "num_warps": _GROUPS // 32}
        launch(kernels().multiply_blocks, (rows,), *given, columns, **how)
    else:
        grid, how = (-(-rows // _ANY_ROWS),), how | {"ROWS": _ANY_ROWS, "COLUMNS": _ANY_BYTES}
        launch(kernels().multiply_any, grid, *given, rows, columns, blocksize, **how)


@cache
def _are_right(device: torch.device) -> bool:
    """Whether Triton lays out threads as ``mma`` wants them: as it promises nothing, that is tried once."""
    from .nf4 import QuantState  # a module that imports this one

    rows, columns = 33, 640
    packed = torch.arange(rows * columns // 2, device=device).mul_(37).to(torch.uint8)
    absmax = torch.linspace(0.5, 2, rows * columns // 64, dtype=torch.float32, device=device)
    state = QuantState(absmax, (rows, columns), torch.float32, 64, "nf4")
    x = torch.linspace(-1, 1, columns, dtype=torch.float32, device=device).bfloat16()
    found, wanted = torch.empty(2, rows, dtype=x.dtype, device=device)
    _anyhow(packed, state, x, None, wanted)
    why = "tensor cores gave another result"
    try:
        _on_tensor_cores(packed, state, x, None, found)
        if torch.allclose(found, wanted, rtol=0.02, atol=0.05):
            return True
    except Exception as error:
        why = str(error)
    warnings.warn(f"4-bit weights times one token take the slower kernel: {why}", stacklevel=2)
    return False


@cache
def _byte_values(quant_type: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(256,) int32: the two values that a byte of codes stands for, in 16 bits each."""
    table, byte = code_table(quant_type).to(dtype), torch.arange(256, device="cpu")
    return torch.stack([table[byte >> 4], table[byte & 15]], 1).view(torch.int32).view(-1).to(device)


# Multiplying and adding are two roundings in the definition: the compiler must not make one of them.
_EXACT = {"enable_fp_fusion": False}


def _scales(state: Any) -> tuple[Tensor, ...]:
    """Table of the values, absmax (or its codes), and what undoes double quantization."""
    table = _table(state.quant_type, state.absmax.device)
    if not state.nested:
        return table, state.absmax, state.absmax, state.absmax, state.absmax
    return table, state.absmax, _dynamic_code(state.absmax.device), state.nested_absmax, state.offset


@cache
def _table(quant_type: str, device: torch.device) -> Tensor:
    return code_table(quant_type).to(device)


@cache
def multiprocessors(device: torch.device) -> int:
    """How many it has; one where it is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def _dynamic_code(device: torch.device) -> Tensor:
    """Copied to the GPU once: a copy in every call would wait for all that runs."""
    return dynamic_code().to(device)


@cache
def kernels() -> Any:
    """The compiled functions; importing Triton waits until somebody needs them."""
    from . import nf4_triton_kernels

    return nf4_triton_kernels
