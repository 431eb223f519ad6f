"""Products of matrices on a processor's tile registers (Intel AMX), in LLVM's language.

There are eight tiles of 16 rows × 64 bytes. One instruction multiplies two of bfloat16 and adds to one of
float32: ``C[m, n] += Σ A[m, k] · B[k, n]``, 16 × 16 × 32 products in 16 cycles, where AVX-512 takes 256.
(Another takes int8 and int32, 16 × 16 × 64 products: `multiply_bytes`.)
A float32 has 24 bits of significand, a bfloat16 has 8. So a float32 is the sum of three bfloat16, high,
middle and low, and a product of two float32 is a sum of products of those. Six are needed, the other three
are below the last bit::

    A·B = low·high + high·high + high·low + high·middle + middle·middle + middle·high

Infinity becomes NaN (∞ − ∞ is the middle), and so does what a bfloat16 cannot hold, from 3.39e38 on. Parts,
and products of parts, below 1.2e-38 count as 0.

A *panel* is what 32 rows of A, or 32 columns of B, become: step by step of 32 k, its three planes, of each
plane two tiles of a kilobyte. A tile of A holds a row's 32 numbers side by side; one of B holds pairs of k
(two bfloat16 in the place of one float32) for 16 columns: it is the other's transpose, pair for pair.

Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter 20; Henry, Tang, Heinecke 2019,
*Leveraging the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations*.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from .registers import LANES, VECTOR, load_vector, prefetch

TILE = 1024
"""bytes of a tile"""
PLANES = 3
PANEL = 32
"""rows or columns of a panel, and numbers k of a step"""
STEP = PLANES * 2 * TILE
"""bytes of a step of a panel"""
_INT8, _INT16, _INT32, _INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_ADDRESS = _INT8.as_pointer()
_INTS, _SHORTS = ir.VectorType(_INT32, LANES), ir.VectorType(_INT16, 2 * LANES)
_HIGH, _MIDDLE, _LOW = range(PLANES)


def _call(builder: Any, name: str, *args: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


def _address(builder: Any, base: Any, offset: int) -> Any:
    return builder.inttoptr(builder.add(base, _INT64(offset)), _ADDRESS)


@intrinsic
def expect(typingctx, address):  # type: ignore[no-untyped-def]
    """Have a line of main memory brought into the second cache."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        prefetch(builder, *args)
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def configure(typingctx, settings):  # type: ignore[no-untyped-def]
    """Make this thread's eight tiles 16 rows × 64 bytes; ``settings`` is the address of 64 bytes for that."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (settings,) = args
        palette, row_bytes, rows = 1, [64, 0] * 8, [16] * 8
        values = [palette, *[0] * 15, *row_bytes, *[0] * 16, *rows, *[0] * 8]
        kind = ir.ArrayType(_INT8, 64)
        place = builder.inttoptr(settings, kind.as_pointer())
        builder.store(ir.Constant(kind, values), place, align=1)
        _call(builder, "ldtilecfg", builder.inttoptr(settings, _ADDRESS))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(typingctx):  # type: ignore[no-untyped-def]
    """Give the tiles back: a thread that holds some is slower to interrupt."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def multiply_panels(typingctx, c, c_row, left, right, steps):  # type: ignore[no-untyped-def]
    """``C = A·B`` (32, 32) float32, of a panel of A and one of B of as many steps.

    C is given by its address and the bytes from row to row.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        c, c_row, left, right, steps = args

        def load(first: int, panel: Any, plane: int) -> None:
            for n in range(2):
                place = _address(builder, panel, (2 * plane + n) * TILE)
                _call(builder, "tileloadd64", _INT8(first + n), place, _INT64(64))

        for tile in range(4):  # of sums; then two of A, two of B
            _call(builder, "tilezero", _INT8(tile))
        with cgutils.for_range(builder, steps) as step:
            offset = builder.mul(step.index, _INT64(STEP))
            a, b = builder.add(left, offset), builder.add(right, offset)
            planes: tuple[int, ...] = (-1, -1)
            # From product to product one side stays where it is.
            for pair in (
                (_LOW, _HIGH), (_HIGH, _HIGH), (_HIGH, _LOW), (_HIGH, _MIDDLE), (_MIDDLE, _MIDDLE),
                (_MIDDLE, _HIGH),
            ):  # fmt: skip
                if pair[0] != planes[0]:
                    load(4, a, pair[0])
                if pair[1] != planes[1]:
                    load(6, b, pair[1])
                planes = pair
                for tile in range(4):
                    _call(builder, "tdpbf16ps", _INT8(tile), _INT8(4 + tile // 2), _INT8(6 + tile % 2))
        for tile in range(4):
            row = builder.add(c, builder.mul(c_row, _INT64(16 * (tile // 2))))
            _call(builder, "tilestored64", _INT8(tile), _address(builder, row, 64 * (tile % 2)), c_row)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def multiply_bytes(typingctx, c, a, a_row, b, steps):  # type: ignore[no-untyped-def]
    """``A·B₀`` and ``A·B₁``: A (32, 64 · steps) int8, as it lies, two B of 16 columns; sums in int32.

    At ``c`` stand, row for row, 16 sums of the first and 16 of the second. At ``b`` lie for each step a tile
    of the first B and one of the second: fours of k (four int8 in the place of one int32) for 16 columns.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        c, a, a_row, b, steps = args
        for tile in range(4):
            _call(builder, "tilezero", _INT8(tile))
        with cgutils.for_range(builder, steps) as step:
            rows = builder.add(a, builder.mul(step.index, _INT64(64)))
            columns = builder.add(b, builder.mul(step.index, _INT64(2 * TILE)))
            for n in range(2):
                place = builder.add(rows, builder.mul(a_row, _INT64(16 * n)))
                _call(builder, "tileloadd64", _INT8(4 + n), _address(builder, place, 0), a_row)
                place = _address(builder, columns, n * TILE)
                _call(builder, "tileloadd64", _INT8(6 + n), place, _INT64(64))
            for tile in range(4):
                _call(builder, "tdpbssd", _INT8(tile), _INT8(4 + tile // 2), _INT8(6 + tile % 2))
        for tile in range(4):
            place = _address(builder, c, 16 * 128 * (tile // 2) + 64 * (tile % 2))
            _call(builder, "tilestored64", _INT8(tile), place, _INT64(128))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


def _split(builder: Any, x: Any) -> list[Any]:
    """16 float32 → three times 16 int32, of which the upper half is a bfloat16; they sum to x."""

    def constant(value: int) -> Any:
        return ir.Constant(_INTS, [value] * LANES)

    parts = []
    for plane in range(PLANES):
        bits = builder.bitcast(x, _INTS)
        if plane < _LOW:  # to the nearest; of the last no more than 8 bits are left, and NaN is to stay NaN
            bits = builder.add(bits, constant(0x8000))
        bits = builder.and_(bits, constant(0xFFFF0000))
        parts.append(bits)
        x = builder.fsub(x, builder.bitcast(bits, VECTOR))
    return parts


def _store(builder: Any, shorts: Any, address: Any) -> None:
    builder.store(shorts, builder.inttoptr(address, shorts.type.as_pointer()), align=4)


@intrinsic
def split_row(typingctx, to, source):  # type: ignore[no-untyped-def]
    """32 float32 at ``source`` → 32 bfloat16 at ``to`` in each of three planes: a row of a tile of A."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source = args
        halves = [load_vector(builder, builder.add(source, _INT64(64 * n))) for n in range(2)]
        upper = ir.Constant(ir.VectorType(_INT32, 2 * LANES), [2 * n + 1 for n in range(2 * LANES)])
        for plane, parts in enumerate(zip(*(_split(builder, half) for half in halves), strict=True)):
            first, second = (builder.bitcast(part, _SHORTS) for part in parts)
            row = builder.shuffle_vector(first, second, upper)
            _store(builder, row, builder.add(to, _INT64(plane * 2 * TILE)))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def split_pair(typingctx, to, source, other):  # type: ignore[no-untyped-def]
    """16 float32 of one k at ``source``, of the next at ``other`` → 16 pairs: a row of a tile of B."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, *sources = args
        halves = [_split(builder, load_vector(builder, source)) for source in sources]
        sixteen = ir.Constant(_INTS, [16] * LANES)
        for plane, (first, second) in enumerate(zip(*halves, strict=True)):
            pairs = builder.or_(builder.lshr(first, sixteen), second)
            _store(builder, pairs, builder.add(to, _INT64(plane * 2 * TILE)))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate
