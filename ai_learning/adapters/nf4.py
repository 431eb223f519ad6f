"""Block-wise 4-bit numbers: NF4 (QLoRA, Dettmers et al. 2023), and FP4 and Int4 to compare with.

A tensor is cut into blocks of 64. Each block keeps its largest magnitude, ``absmax``, and for every element
the code of the nearest of 16 fixed values: ``x ≈ table[code] · absmax``. Two codes share a byte. Double
quantization stores the absmax values themselves in 8 bits: 4 + 8/64 + 32/(64·256) = 4.127 bits for each
parameter.

The functions here are the definition, in PyTorch's operations, and run on any device. `nf4_fast` computes
the same bits on the CPU several times faster, `nf4_triton` on a GPU; they are taken where they can be, and
``fast=False`` keeps to the definition. Results are bit for bit those of bitsandbytes' CPU backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from . import nf4_fast, nf4_triton
from .codes import code_table, dynamic_code, thresholds

ABSMAX_BLOCK = 256  # elements of a block in the second, 8-bit level
_TINIEST = 1e-38  # what a zero block is divided by
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class QuantState:
    """What is needed beside the packed codes to get a tensor back.

    Attributes:
        absmax: (blocks,) fp32, or uint8 codes of it under double quantization.
        shape: of the tensor.
        dtype: of the tensor: what `dequantize_4bit` returns.
        blocksize: elements of a block.
        quant_type: ``"nf4"``, ``"fp4"`` or ``"int4"``.
        offset: () fp32, mean of the absmax values; double quantization only.
        nested_absmax: (⌈blocks / 256⌉,) fp32; double quantization only.
    """

    absmax: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocksize: int = 64
    quant_type: str = "nf4"
    offset: Tensor | None = None
    nested_absmax: Tensor | None = None

    @property
    def nested(self) -> bool:
        """Whether double quantization was used."""
        return self.nested_absmax is not None

    @property
    def code(self) -> Tensor:
        """The table of the 16 values (16,) fp32."""
        return code_table(self.quant_type).to(self.absmax.device)

    def block_absmax(self) -> Tensor:
        """The absmax of every block (blocks,) fp32, out of its 8-bit codes if need be."""
        if self.nested_absmax is None or self.offset is None:
            return self.absmax
        return dequantize_blockwise(self.absmax, self.nested_absmax) + self.offset

    def to(self, device: torch.device | str) -> "QuantState":
        """The same state on another device."""
        moved: dict[str, Any] = {"absmax": self.absmax.to(device)}
        if self.offset is not None and self.nested_absmax is not None:
            moved |= {"offset": self.offset.to(device), "nested_absmax": self.nested_absmax.to(device)}
        return replace(self, **moved)


def quantize_4bit(
    tensor: Tensor,
    quant_type: str = "nf4",
    *,
    blocksize: int = 64,
    compress_statistics: bool = False,
    rounding: str = "table",
    fast: bool = True,
) -> tuple[Tensor, QuantState]:
    """Round a tensor to 4-bit codes, block by block (QLoRA, equation 4 and appendix E).

    Args:
        tensor: any shape, fp32, fp16 or bf16. A NaN makes all of its block NaN; in a block with ±Inf, finite
            members become NaN and infinite ones +Inf.
        quant_type: ``"nf4"``, ``"fp4"`` or ``"int4"``.
        blocksize: elements of a block, even.
        compress_statistics: double quantization (QLoRA, section 3): 8-bit absmax values.
        rounding: of the 8-bit absmax values, see `quantize_blockwise`.
        fast: use the compiled version when the tensor allows it; the result is the same.

    Returns:
        packed: (⌈n/2⌉, 1) uint8; the first of two elements is in the high half of a byte, an odd end is
            padded with the code of 0.
        state: what `dequantize_4bit` needs.

    Raises:
        InputError: an empty tensor, another dtype, or a block size that is no positive even number.
    """
    if tensor.dtype not in FLOATS:
        raise InputError(f"cannot quantize {tensor.dtype}: convert to float32, float16 or bfloat16 first")
    if tensor.numel() == 0:
        raise InputError(f"cannot quantize an empty tensor of shape {tuple(tensor.shape)}")
    _check_blocksize(blocksize)
    flat = tensor.detach().reshape(-1).float()
    quantize = nf4_fast.quantize if fast and nf4_fast.usable(flat) else _quantize_plain
    packed, absmax = quantize(flat, *thresholds(quant_type), blocksize)
    state = QuantState(absmax, tuple(tensor.shape), tensor.dtype, blocksize, quant_type)
    if compress_statistics:
        offset = absmax.mean()
        codes, nested_absmax = quantize_blockwise(absmax - offset, rounding=rounding)
        state = replace(state, absmax=codes, offset=offset, nested_absmax=nested_absmax)
    return packed, state


def _quantize_plain(flat: Tensor, midpoints: Tensor, codes: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """fp32 (n,) → packed codes (⌈n/2⌉, 1) and absmax (⌈n/blocksize⌉,)."""
    midpoints, codes = midpoints.to(flat.device), codes.to(flat.device)
    full = flat.numel() // blocksize * blocksize
    blocks = flat[:full].view(-1, blocksize)
    absmax = blocks.abs().amax(1) if full else flat.new_empty(0)
    # A whole block is multiplied by the reciprocal, the rest at the end is divided: that is how the peer
    # rounds.
    scaled = (blocks * (1 / absmax.clamp(min=_TINIEST)).unsqueeze(1)).view(-1)
    if full < flat.numel():
        rest = flat[full:]
        rest_absmax = rest.abs().amax().clamp(min=_TINIEST)
        absmax = torch.cat([absmax, rest_absmax.view(1)])
        scaled = torch.cat([scaled, rest / rest_absmax])
    if scaled.numel() % 2:
        scaled = torch.cat([scaled, scaled.new_zeros(1)])
    nibbles = codes[torch.bucketize(scaled, midpoints)].view(-1, 2)  # bucketize counts the midpoints below
    return (nibbles[:, :1] << 4) | nibbles[:, 1:], absmax


def dequantize_4bit(
    packed: Tensor, state: QuantState, *, dtype: torch.dtype | None = None, fast: bool = True
) -> Tensor:
    """The tensor that the codes stand for: ``table[code] · absmax`` in fp32, then rounded once.

    Args:
        packed: uint8 codes as `quantize_4bit` packs them.
        state: their state.
        dtype: of the result; that of the original tensor by default.
        fast: use the compiled version when possible; the result is the same.

    Returns:
        Tensor of ``state.shape``.

    Raises:
        InputError: when codes and state do not belong together.
    """
    n = prod(state.shape)
    _check_blocksize(state.blocksize)
    if packed.dtype != torch.uint8 or packed.numel() != (n + 1) // 2:
        raise InputError(
            f"packed codes are {packed.dtype} with {packed.numel()} elements, but shape {tuple(state.shape)} "
            f"takes uint8 with {(n + 1) // 2}"
        )
    check_state_shapes(state.shape, state.blocksize, state.absmax)
    dtype = dtype or state.dtype
    if fast and nf4_triton.usable(packed, state):
        return nf4_triton.dequantize(packed.reshape(-1), state, dtype).view(state.shape)
    absmax = state.block_absmax()
    dequantize = nf4_fast.dequantize if fast and nf4_fast.usable(packed, absmax) else _dequantize_plain
    return dequantize(packed, absmax, state.code, state.blocksize, state.shape, dtype)


def _dequantize_plain(
    packed: Tensor, absmax: Tensor, table: Tensor, blocksize: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Packed codes (⌈n/2⌉ in all) → a tensor of ``shape``."""
    packed, n = packed.reshape(-1), prod(shape)
    nibbles = torch.stack([packed >> 4, packed & 15], 1).view(-1)[:n]  # (⌈n/2⌉, 2) → (n,)
    values = table[nibbles.int()]
    return (values * absmax.repeat_interleave(min(blocksize, n))[:n]).to(dtype).view(shape)


def quantize_nf4(
    tensor: Tensor,
    *,
    blocksize: int = 64,
    compress_statistics: bool = False,
    rounding: str = "table",
    fast: bool = True,
) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to NF4.

    Example:
        >>> packed, state = quantize_nf4(torch.tensor([0.0, 0.5, -1.0, 1.0]))
        >>> dequantize_nf4(packed, state)
        tensor([ 0.0000,  0.4407, -1.0000,  1.0000])
    """
    return quantize_4bit(
        tensor,
        "nf4",
        blocksize=blocksize,
        compress_statistics=compress_statistics,
        rounding=rounding,
        fast=fast,
    )


def dequantize_nf4(
    packed: Tensor, state: QuantState, *, dtype: torch.dtype | None = None, fast: bool = True
) -> Tensor:
    """`dequantize_4bit` of an NF4 tensor.

    Raises:
        InputError: when the state is of another type.
    """
    if state.quant_type != "nf4":
        raise InputError(f"the codes are {state.quant_type}, not nf4: use dequantize_4bit")
    return dequantize_4bit(packed, state, dtype=dtype, fast=fast)


def quantize_blockwise(
    tensor: Tensor, *, blocksize: int = ABSMAX_BLOCK, rounding: str = "table"
) -> tuple[Tensor, Tensor]:
    """Round to 8-bit codes of the dynamic type, block by block (Dettmers et al. 2022, 8-bit optimizers,
    section 2).

    Args:
        tensor: fp32, any shape.
        blocksize: elements of a block.
        rounding: ``"table"`` looks the code up in 65,536 equal bins, as bitsandbytes does on the CPU;
            ``"exact"`` takes the nearest value, as it does on a GPU. They differ in about one code of 700.

    Returns:
        codes: uint8, the tensor's shape.
        absmax: (blocks,) fp32.

    Raises:
        InputError: an unknown rounding, or a block size that is no positive number.
    """
    if not isinstance(blocksize, int) or blocksize < 1:
        raise InputError(f"blocksize={blocksize!r} must be a positive number, such as {ABSMAX_BLOCK}")
    table = dynamic_code().to(tensor.device)
    flat = tensor.reshape(-1).float()
    n = flat.numel()
    blocks = torch.nn.functional.pad(flat, (0, -n % blocksize)).view(-1, blocksize)
    absmax = blocks.abs().masked_fill(blocks.isnan(), 0).amax(1)  # the peer's maximum passes NaN over
    scaled = (blocks * (1 / absmax).unsqueeze(1)).view(-1)[:n]
    if rounding == "table":
        # NaN (a zero block, where 0·∞ = NaN) goes to bin 0.
        bins = ((scaled + 1) * 0.5 * 65535 + 0.5).nan_to_num(0).clamp(0, 65535).int()
        codes = _rounding_table().to(tensor.device)[bins]
    elif rounding == "exact":
        codes = torch.bucketize(scaled.nan_to_num(0), (table[:-1] + table[1:]) / 2).to(torch.uint8)
    else:
        raise InputError(
            f"rounding={rounding!r} is unknown: use 'table' (as on a CPU) or 'exact' (as on a GPU)"
        )
    return codes.view(tensor.shape), absmax


@cache
def _rounding_table() -> Tensor:
    """The code of each of 65,536 bins that divide [−1, 1] evenly (65536,) uint8."""
    table = dynamic_code()
    bins = torch.arange(65536, dtype=torch.float32, device="cpu") / 65535 * 2 - 1
    return torch.bucketize(bins, (table[:-1] + table[1:]) / 2).to(torch.uint8)


def dequantize_blockwise(codes: Tensor, absmax: Tensor, *, blocksize: int = ABSMAX_BLOCK) -> Tensor:
    """Undo `quantize_blockwise`: fp32, the shape of ``codes``."""
    values = dynamic_code().to(codes.device)[codes.reshape(-1).int()]
    return (values * absmax.repeat_interleave(blocksize)[: values.numel()]).view(codes.shape)


def bits_per_parameter(state: QuantState) -> float:
    """Storage of a quantized tensor, codes and statistics, in bits for each of its elements."""
    bits = 4 * prod(state.shape) + state.absmax.numel() * (8 if state.nested else 32)
    if state.nested_absmax is not None:
        bits += 32 * state.nested_absmax.numel() + 32
    return bits / prod(state.shape)


def check_state_shapes(shape: Sequence[int], blocksize: int, absmax: Tensor) -> None:
    """Raise InputError unless ``absmax`` has one value for each block of a tensor of ``shape``."""
    blocks = -(-prod(shape) // blocksize)
    if absmax.numel() != blocks:
        raise InputError(
            f"{absmax.numel()} absmax values for shape {tuple(shape)} in blocks of {blocksize}: "
            f"{blocks} are needed"
        )


def _check_blocksize(blocksize: int) -> None:
    if not isinstance(blocksize, int) or blocksize < 2 or blocksize % 2:
        raise InputError(f"blocksize={blocksize!r} must be a positive even number, such as 64")
