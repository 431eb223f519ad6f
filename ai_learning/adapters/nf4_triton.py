"""De-quantising on a GPU, and multiplying one token by a 4-bit weight without de-quantising it first.

In PyTorch's operations every step of `nf4._dequantize_plain` is a tensor of its own in the GPU's memory. Here
one kernel reads the codes, half a byte an element, and writes the result; for one token not even that: the
weight goes from its codes into the product. Both read the doubly quantized absmax values as they are.

`nf4` and `nf4_linear` take these kernels when `usable` says so; the plain version is what they are tested
against.
"""

from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..kernels import triton_use
from ..kernels.triton_use import launch
from .codes import code_table, dynamic_code

_DEQUANTIZE = {"bytes": 512, "warps": 1}
"""codes of one program, and its warps"""
_MULTIPLY = {"rows": 1, "groups": 64, "warps": 2}
"""rows of the weight that a program takes, groups of 32 of each that it reads at once, and its warps"""
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
    """``x Wᵀ + b`` for one row x (I,), W (O, I) in 4 bits, summed in fp32; (O,) in the dtype of x.

    W is not rounded; but where x has 16 bits, the table's values may be, before absmax multiplies them.

    Args:
        packed: (O · I / 2,) uint8; I must be even, so that a row begins with a byte.
        state: the `QuantState` that goes with them.
        x: (I,).
        bias: (O,).
    """
    rows, columns = state.shape
    out = torch.empty(rows, dtype=x.dtype, device=x.device)
    given = (packed, *_scales(state), x, out if bias is None else bias, out)
    how: dict[str, Any] = {"NESTED": state.nested, "BIAS": bias is not None}
    if columns % state.blocksize == 0 and state.blocksize % 32 == 0:
        n, groups, warps = (_MULTIPLY[name] for name in ("rows", "groups", "warps"))
        ptx, words = look_up(state.quant_type, x.dtype, x.device)
        how |= {"LOOK_UP": ptx, "BLOCKSIZE": state.blocksize, "ROWS": n, "GROUPS": groups, "num_warps": warps}
        launch(
            kernels().multiply, (-(-rows // n),), *given, x if words is None else words, rows, columns, **how
        )
    else:
        how |= {"ROWS": _ANY_ROWS, "COLUMNS": _ANY_BYTES}
        grid = (-(-rows // _ANY_ROWS),)
        launch(kernels().multiply_any, grid, *given, rows, columns, state.blocksize, **how)
    return out


def look_up(quant_type: str, dtype: torch.dtype, device: torch.device) -> tuple[str, Tensor | None]:
    """PTX that makes of 4 bytes of codes the 8 values, rounded to 16 bits, and the table's words for it.

    To read 8 values from a table takes 8 addresses and 8 loads. But a register holds 4 bytes of it, and
    ``prmt`` picks of two registers' 8 bytes any 4: so half of the table's upper bytes are looked up 4 at a
    time, by the codes' lower three bits, then the other half, and the fourth bit says which is right; the
    same for the lower bytes. 31 instructions instead of some 60.
    """
    if dtype not in _PTX or device.type != "cuda":
        return "", None
    return _PTX[dtype], _words(quant_type, dtype, device)


@cache
def _words(quant_type: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The upper bytes of the 16 values, four a word, then the lower bytes (8, COPIES) int32.

    A copy for each thread, so that each keeps them in registers: what is the same for all threads the
    compiler keeps elsewhere, and moves to a register for each use.
    """
    pairs = _table(quant_type, torch.device("cpu")).to(dtype).view(torch.uint8).view(16, 2)
    words = pairs.T.flip(0).contiguous().view(torch.int32).view(8, 1)
    return words.expand(8, _MULTIPLY["groups"]).contiguous().to(device)


def _ptx(to_float32: tuple[str, str]) -> str:
    """Operands: $0 to $3 the first elements of the bytes, $4 to $7 the second, as float32; $8 the bytes; then
    the words, each four times, as Triton gives what is the same for four elements."""
    upper, lower = ([f"${9 + 4 * (4 * half + n)}" for n in range(4)] for half in range(2))
    lines = [
        "mov.b32 upper, 0x3f800000;",  # (0, 1) in bfloat16
        "mov.b32 zeros, 0;",
        "and.b32 code, $8, 0x77777777;",
        "shr.b32 which, $8, 1;",
        "and.b32 which, which, 0x44444444;",
        "or.b32 which, which, 0x32103210;",  # of 4 results the n-th, or the n-th of the 4 others
    ]
    for number in range(2):  # of two bytes: 4 codes
        if number:
            lines += ["shr.b32 code, code, 16;", "shr.b32 which, which, 16;"]
        for name, (a, b, c, d) in (("high", upper), ("low", lower)):
            lines += [
                f"prmt.b32 one, {a}, {b}, code;",
                f"prmt.b32 other, {c}, {d}, code;",
                f"prmt.b32 {name}, one, other, which;",
            ]
        # The upper four bits of a byte are the first of its two elements.
        for places, out in (("0x7351", 2 * number), ("0x6240", 4 + 2 * number)):
            lines.append(f"prmt.b32 pair, low, high, {places};")
            lines += [form.format(out=out + n) for n, form in enumerate(to_float32)]
    names = "code, which, one, other, high, low, pair, upper, zeros"
    return "{ .reg .b32 " + names + "; .reg .b16 a, b; " + " ".join(lines) + " }"


_PTX = {
    # The upper of two bfloat16 is a float32 once the lower is nothing: times (0, 1), for another unit than
    # that which has all the rest to do.
    torch.bfloat16: _ptx(("shl.b32 ${out}, pair, 16;", "fma.rn.bf16x2 ${out}, pair, upper, zeros;")),
    torch.float16: _ptx(
        ("mov.b32 {{a, b}}, pair; cvt.f32.f16 ${out}, a;", "mov.b32 {{a, b}}, pair; cvt.f32.f16 ${out}, b;")
    ),
}


# Multiplying and adding are two roundings in the definition: the compiler must not make one of them.
_EXACT = {"enable_fp_fusion": False}


def _scales(state: Any) -> tuple[Tensor, ...]:
    """Table of the values, absmax (or its codes), and what undoes double quantization."""
    table = _table(state.quant_type, state.absmax.device)
    if not state.nested:
        return table, state.absmax, state.absmax, state.absmax, state.absmax
    return (
        table, state.absmax, _dynamic_code(state.absmax.device), state.nested_absmax,
        state.offset.reshape(1),
    )  # fmt: skip


@cache
def _table(quant_type: str, device: torch.device) -> Tensor:
    return code_table(quant_type).to(device)


@cache
def _dynamic_code(device: torch.device) -> Tensor:
    """Copied to the GPU once: a copy in every call would wait for all that runs."""
    return dynamic_code().to(device)


@cache
def kernels() -> Any:
    """The compiled functions; importing Triton waits until somebody needs them."""
    from . import nf4_triton_kernels

    return nf4_triton_kernels
