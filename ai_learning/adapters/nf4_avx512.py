"""De-quantising with AVX-512's table look-up instructions, written in LLVM's language through numba.

The 16 values of a block, already multiplied by its absmax, fit one 512-bit register; ``vpermps`` (fp32) and
``vpermw`` (16 bits) look up 16 and 32 codes at once. `nf4_fast` asks whether the processor has them.
"""

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..kernels.loops.compiler import fields, loop
from ..kernels.loops.registers import prefetch
from .nf4_kernels import BLOCKSIZE, POINTERS

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()
_AHEAD = 4096  # bytes; a line that is to be written is fetched while those before it are made
_GROUP = 32  # elements, 16 bytes of codes, for each turn of the loop


def _splat(builder: Any, value: Any, n: int) -> Any:
    vector = builder.insert_element(ir.Constant(ir.VectorType(value.type, n), ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(_I32, n), [0] * n))


def _constant(n: int, value: int) -> Any:
    return ir.Constant(ir.VectorType(_I32, n), [value] * n)


def _scaled_table(builder: Any, table: Any, absmax: Any) -> Any:
    """<16 x float>: table · absmax."""
    values = builder.load(builder.inttoptr(table, ir.VectorType(_F32, 16).as_pointer()), align=4)
    scale = builder.load(builder.inttoptr(absmax, _F32.as_pointer()), align=4)
    return builder.fmul(values, _splat(builder, scale, 16))


def _codes(builder: Any, packed: Any, turn: Any) -> Any:
    """<16 x i32>: 16 bytes of codes, one to a lane."""
    address = builder.add(packed, builder.mul(turn, _I64(_GROUP // 2)))
    codes = builder.load(builder.inttoptr(address, ir.VectorType(_I8, 16).as_pointer()), align=1)
    return builder.zext(codes, ir.VectorType(_I32, 16))


def _store(builder: Any, vector: Any, out: Any, byte_offset: Any) -> None:
    # Never past the cache: what is de-quantised is multiplied next, and would have to be fetched again.
    address = builder.add(out, byte_offset)
    prefetch(builder, builder.add(address, _I64(_AHEAD)), to_write=True)  # behind the end it does nothing
    builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=1)


def _permute(builder: Any, name: str, table: Any, index: Any) -> Any:
    signature = ir.FunctionType(table.type, [table.type, index.type])
    function = cgutils.get_or_insert_function(
        builder.module, signature, f"llvm.x86.avx512.permvar.{name}.512"
    )
    return builder.call(function, [table, index])


_ARGUMENTS = (types.intp,) * 5


@intrinsic
def _block_fp32(typingctx, packed, out, table, absmax, turns):  # type: ignore[no-untyped-def]
    """A loop body. Addresses of codes, results, table and absmax; number of groups of 32 elements."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        packed, out, table, absmax, turns = args
        values = _scaled_table(builder, table, absmax)
        with cgutils.for_range(builder, turns) as loop:
            codes = _codes(builder, packed, loop.index)
            even = _permute(builder, "sf", values, builder.lshr(codes, _constant(16, 4)))
            odd = _permute(builder, "sf", values, codes)  # the instruction reads the low four bits only
            base = builder.mul(loop.index, _I64(4 * _GROUP))
            for half in range(2):
                lanes = [lane + 16 * side for lane in range(8 * half, 8 * half + 8) for side in range(2)]
                vector = builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(_I32, 16), lanes))
                _store(builder, vector, out, builder.add(base, _I64(64 * half)))
        return context.get_dummy_value()

    return types.void(*_ARGUMENTS), generate


def _block_16bit(to_16_bits: Any) -> Any:
    """A loop body for results of 16 bits; ``to_16_bits`` rounds <16 x float> to <16 x i16>."""

    @intrinsic
    def block(typingctx, packed, out, table, absmax, turns):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            packed, out, table, absmax, turns = args
            values = to_16_bits(builder, _scaled_table(builder, table, absmax))
            twice = ir.Constant(ir.VectorType(_I32, 32), [*range(16), *range(16)])
            values = builder.shuffle_vector(values, values, twice)
            with cgutils.for_range(builder, turns) as loop:
                codes = _codes(builder, packed, loop.index)
                # One 32-bit lane a byte: its first code in the low half, its second in the high half. Each
                # index is read modulo 32, and the table stands there twice, so the fifth bit does not matter.
                first = builder.lshr(codes, _constant(16, 4))
                both = builder.or_(first, builder.shl(codes, _constant(16, 16)))
                index = builder.bitcast(both, ir.VectorType(_I16, 32))
                vector = _permute(builder, "hi", values, index)
                _store(builder, vector, out, builder.mul(loop.index, _I64(2 * _GROUP)))
            return context.get_dummy_value()

        return types.void(*_ARGUMENTS), generate

    return block


def _to_fp16(builder: Any, values: Any) -> Any:
    return builder.bitcast(builder.fptrunc(values, ir.VectorType(ir.HalfType(), 16)), ir.VectorType(_I16, 16))


def _to_bf16(builder: Any, values: Any) -> Any:
    """Round to nearest even on the bits. The processor's own instruction would flush tiny numbers to zero."""
    bits = builder.bitcast(values, ir.VectorType(_I32, 16))
    odd = builder.and_(builder.lshr(bits, _constant(16, 16)), _constant(16, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, _constant(16, 0x7FFF))), _constant(16, 16))
    is_nan = builder.fcmp_unordered("uno", values, values)
    rounded = builder.select(is_nan, _constant(16, 0x7FC0), rounded)
    return builder.trunc(rounded, ir.VectorType(_I16, 16))


_block_fp16, _block_bf16 = _block_16bit(_to_fp16), _block_16bit(_to_bf16)


@numba.njit(inline="always")
def _whole_blocks(job, first, last, block, width):  # type: ignore[no-untyped-def]
    """Whole blocks first … last−1, of a multiple of 32, to results of ``width`` bytes each.

    The job's pointers: packed, absmax, the table's 16 values, out.
    """
    job = fields(job)
    packed, absmax, table, out = job[POINTERS], job[POINTERS + 1], job[POINTERS + 2], job[POINTERS + 3]
    blocksize = job[BLOCKSIZE]
    if blocksize == 64:  # the usual size on its own: the inner loop is unrolled
        for i in range(first, last):
            block(packed + i * 32, out + i * 64 * width, table, absmax + i * 4, 2)
    else:
        for i in range(first, last):
            start = i * blocksize
            block(packed + start // 2, out + start * width, table, absmax + i * 4, blocksize // 32)


@loop()
def dequantize_fp32(job, first, last):  # type: ignore[no-untyped-def]
    """See `_whole_blocks`."""
    _whole_blocks(job, first, last, _block_fp32, 4)


@loop()
def dequantize_fp16(job, first, last):  # type: ignore[no-untyped-def]
    """See `_whole_blocks`."""
    _whole_blocks(job, first, last, _block_fp16, 2)


@loop()
def dequantize_bf16(job, first, last):  # type: ignore[no-untyped-def]
    """See `_whole_blocks`."""
    _whole_blocks(job, first, last, _block_bf16, 2)
