"""De-quantising on a GPU, and multiplying one token by a 4-bit weight without de-quantising it first.

In PyTorch's operations every step of `nf4._dequantize_plain` is a tensor of its own in the GPU's memory. Here
one kernel reads the codes, half a byte an element, and writes the result; for one token not even that: the
weight goes from its codes into the product. Both read the doubly quantized absmax values as they are.

`nf4` and `nf4_linear` take these kernels when `usable` says so; the plain version is what they are tested
against.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

_BYTES = 1024  # codes of one program: 2048 elements
_COLUMNS = 512  # bytes of a row that a program of `_multiply` reads at once
_ROWS = 4  # rows of the weight that a program of `_multiply` takes


def usable(tensor: Tensor) -> bool:
    """Whether the tensor lies on a GPU that Triton can write for."""
    return tensor.is_cuda and not torch.compiler.is_compiling() and _installed()


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def dequantize(packed: Tensor, state: Any, dtype: torch.dtype) -> Tensor:
    """The tensor (n,) that the codes stand for: ``table[code] · absmax`` in fp32, rounded once to ``dtype``.

    Args:
        packed: (⌈n/2⌉,) uint8.
        state: the `QuantState` that goes with them.
        dtype: of the result.
    """
    n = _product(state.shape)
    out = torch.empty(n, dtype=dtype, device=packed.device)
    grid = (-(-packed.numel() // _BYTES),)
    kernels().dequantize[grid](
        packed, *_scales(state), out, n, state.blocksize, NESTED=state.nested, BYTES=_BYTES, **_EXACT
    )
    return out


def multiply(packed: Tensor, state: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b`` for one row x (I,), W (O, I) in 4 bits, summed in fp32; (O,) in the dtype of x.

    Args:
        packed: (O · I / 2,) uint8; I must be even, so that a row begins with a byte.
        state: the `QuantState` that goes with them.
        x: (I,).
        bias: (O,).
    """
    rows, columns = state.shape
    out = torch.empty(rows, dtype=x.dtype, device=x.device)
    kernels().multiply[(-(-rows // _ROWS),)](
        packed, *_scales(state), x, out if bias is None else bias, out, rows, columns, state.blocksize,
        NESTED=state.nested, BIAS=bias is not None, ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    return out


# Multiplying and adding are two roundings in the definition: the compiler must not make one of them.
_EXACT = {"enable_fp_fusion": False}


def _scales(state: Any) -> tuple[Tensor, ...]:
    """Table of the values, absmax (or its codes), and what undoes double quantization."""
    from .codes import dynamic_code

    if not state.nested:
        return state.code, state.absmax, state.absmax, state.absmax, state.absmax
    dynamic = dynamic_code().to(state.absmax.device)
    return state.code, state.absmax, dynamic, state.nested_absmax, state.offset.reshape(1)


def _product(shape: Sequence[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


@cache
def kernels() -> Any:
    """The compiled functions; importing Triton waits until somebody needs them."""
    from . import nf4_triton_kernels

    return nf4_triton_kernels
