"""A small matrix product kept in the processor's registers, and a transposition, in LLVM's language.

Matrices larger than a tile are multiplied tile by tile. A compiler would keep the sums of such a product in
memory, and a store for each product makes it several times as slow. Sixteen numbers are one register of
AVX-512, of which there are 32; `store.processor_has` tells whether they are there.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .registers import LANES, VECTOR, call_llvm, load_vector, splat_vector, store_vector

ROWS, COLUMNS = 8, 32
"""of a tile: 16 registers of sums, so that each multiplication finds the one before finished"""
_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


@intrinsic
def multiply_tile(typingctx, c, c_row, a, a_row, a_step, b, b_row, steps, add):  # type: ignore[no-untyped-def]
    """``C = A·B``, or with ``add`` ``C += A·B``: C (8, 32), A (8, steps), B (steps, 32), all float32.

    Each is given by its address and the bytes from row to row. Columns of B and C lie side by side; from
    column to column of A are ``a_step`` bytes, so that it may lie either way round.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        c, c_row, a, a_row, a_step, b, b_row, steps, add = args
        places = [
            builder.add(builder.add(c, builder.mul(c_row, _INT64(row))), _INT64(4 * column))
            for row in range(ROWS)
            for column in range(0, COLUMNS, LANES)
        ]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(VECTOR, None)) for _ in places]
        with builder.if_then(builder.icmp_signed("!=", add, _INT64(0))):
            for place, address in zip(sums, places, strict=True):
                builder.store(load_vector(builder, address), place)
        with cgutils.for_range(builder, steps) as step:
            row_of_b = builder.add(b, builder.mul(b_row, step.index))
            column_of_a = builder.add(a, builder.mul(a_step, step.index))
            right = [
                load_vector(builder, builder.add(row_of_b, _INT64(4 * column)))
                for column in range(0, COLUMNS, LANES)
            ]
            for row in range(ROWS):
                address = builder.add(column_of_a, builder.mul(a_row, _INT64(row)))
                number = builder.load(builder.inttoptr(address, _FLOAT.as_pointer()), align=4)
                left = splat_vector(builder, number)
                for n, vector in enumerate(right):
                    place = sums[row * len(right) + n]
                    builder.store(call_llvm(builder, "fma", left, vector, builder.load(place)), place)
        for place, address in zip(sums, places, strict=True):
            store_vector(builder, builder.load(place), address)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 9), generate


@intrinsic
def transpose_tile(typingctx, to, to_row, source, source_row):  # type: ignore[no-untyped-def]
    """(16, 16) float32 the other way round; addresses, and bytes from row to row."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, to_row, source, source_row = args
        rows = [
            load_vector(builder, builder.add(source, builder.mul(source_row, _INT64(n))))
            for n in range(LANES)
        ]
        # Exchange halves, quarters, … of the rows with those of the row as far below.
        half = LANES // 2
        while half:
            keep = [lane if not lane & half else LANES + lane - half for lane in range(LANES)]
            take = [lane + half if not lane & half else LANES + lane for lane in range(LANES)]
            for n in range(LANES):
                if not n & half:
                    upper, lower = rows[n], rows[n + half]
                    rows[n], rows[n + half] = (
                        builder.shuffle_vector(upper, lower, ir.Constant(ir.VectorType(_INT32, LANES), lanes))
                        for lanes in (keep, take)
                    )
            half //= 2
        for n, row in enumerate(rows):
            store_vector(builder, row, builder.add(to, builder.mul(to_row, _INT64(n))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
