"""Sixteen float32 in one register of AVX-512, for what a compiler does not make vector code of.

A loop that adds up or looks for the largest becomes slow code where order or NaN matter, and for reasons of
an older processor LLVM uses half of each register. A `Register` is a value like others in a loop::

    total = splat(np.float32(0))
    for n in range(0, width, LANES):
        total = add(total, load(row + 4 * n))

`store.processor_has("avx512f")` tells whether the registers are there: without them, use nothing of this.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

from .math import EXP_COEFFICIENTS, EXP_LEAST, LN2_HIGH, LN2_LOW, LOG2_E

LANES = 16
_FLOAT, _INT32 = ir.FloatType(), ir.IntType(32)
VECTOR = ir.VectorType(_FLOAT, LANES)
INTS = ir.VectorType(_INT32, LANES)


class RegisterType(types.Type):
    """numba's type of a register."""

    def __init__(self) -> None:
        super().__init__("Register")


Register = RegisterType()


@register_model(RegisterType)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, VECTOR)


def load_vector(builder: Any, address: Any) -> Any:
    """The 16 numbers at an address, for other pieces of LLVM's language."""
    return builder.load(builder.inttoptr(address, VECTOR.as_pointer()), align=4)


def store_vector(builder: Any, vector: Any, address: Any) -> None:
    """The other way."""
    builder.store(vector, builder.inttoptr(address, VECTOR.as_pointer()), align=4)


def splat_vector(builder: Any, value: Any) -> Any:
    """One number in all lanes."""
    one = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(one, one, ir.Constant(INTS, [0] * LANES))


def prefetch(builder: Any, address: Any, to_write: bool = False) -> None:
    """Have the line of main memory at an address brought into the second cache, to read or to write to."""
    place = builder.inttoptr(address, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    second_cache, data = 2, 1
    builder.call(function, [place, _INT32(int(to_write)), _INT32(second_cache), _INT32(data)])


def call_llvm(builder: Any, name: str, *vectors: Any) -> Any:
    """LLVM's own function of vectors."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * len(vectors))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, vectors)


@intrinsic
def load(typingctx, address):  # type: ignore[no-untyped-def]
    """The 16 float32 at an address."""
    return Register(types.int64), lambda context, builder, signature, args: load_vector(builder, args[0])


@intrinsic
def store(typingctx, address, register):  # type: ignore[no-untyped-def]
    """Write 16 float32 at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        store_vector(builder, args[1], args[0])
        return context.get_dummy_value()

    return types.void(types.int64, Register), generate


@intrinsic
def splat(typingctx, value):  # type: ignore[no-untyped-def]
    """One float32 in all lanes."""
    return Register(types.float32), lambda context, builder, signature, args: splat_vector(builder, args[0])


@intrinsic
def load_whole(typingctx, address):  # type: ignore[no-untyped-def]
    """The 16 int32 at an address, as float32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = builder.load(builder.inttoptr(args[0], INTS.as_pointer()), align=4)
        return builder.sitofp(whole, VECTOR)

    return Register(types.int64), generate


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)  # b if one is NaN


def _binary(generate: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def operation(typingctx, a, b):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return generate(builder, *args)

        return Register(Register, Register), code

    return operation


add = _binary(lambda builder, a, b: builder.fadd(a, b))
subtract = _binary(lambda builder, a, b: builder.fsub(a, b))
multiply = _binary(lambda builder, a, b: builder.fmul(a, b))
larger = _binary(_larger)


@intrinsic
def fma(typingctx, a, b, c):  # type: ignore[no-untyped-def]
    """``a · b + c``, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return call_llvm(builder, "fma", *args)

    return Register(Register, Register, Register), generate


def _across(generate: Callable[[Any, Any, Any], Any]) -> Any:
    @intrinsic
    def reduction(typingctx, register):  # type: ignore[no-untyped-def]
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            (all_lanes,) = args
            half = LANES // 2
            while half:
                lanes = ir.Constant(INTS, [(lane + half) % LANES for lane in range(LANES)])
                all_lanes = generate(builder, all_lanes, builder.shuffle_vector(all_lanes, all_lanes, lanes))
                half //= 2
            return builder.extract_element(all_lanes, _INT32(0))

        return types.float32(Register), code

    return reduction


sum_of = _across(lambda builder, a, b: builder.fadd(a, b))
largest_of = _across(_larger)


@intrinsic
def not_below(typingctx, a, b):  # type: ignore[no-untyped-def]
    """Bit n: whether lane n of ``a`` is not less than that of ``b``; NaN is not."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = builder.fcmp_unordered(">=", *args)
        return builder.zext(builder.bitcast(lanes, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(Register, Register), generate


@intrinsic
def keep_first(typingctx, register, count, other):  # type: ignore[no-untyped-def]
    """The first ``count`` lanes, and a number in the others."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        register, count, other = args
        one = ir.Constant(INTS, ir.Undefined)
        one = builder.insert_element(one, builder.trunc(count, _INT32), _INT32(0))
        counts = builder.shuffle_vector(one, one, ir.Constant(INTS, [0] * LANES))
        first = builder.icmp_signed("<", ir.Constant(INTS, list(range(LANES))), counts)
        return builder.select(first, register, splat_vector(builder, other))

    return Register(Register, types.int64, types.float32), generate


@intrinsic
def exp(typingctx, register):  # type: ignore[no-untyped-def]
    """``e ** x`` as `math.exp`: for x ≤ 0, 0 below −87."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def constant(value: Any) -> Any:
            return ir.Constant(VECTOR, [float(value)] * LANES)

        (x,) = args
        is_small = builder.fcmp_ordered("<", x, constant(EXP_LEAST))
        x = builder.select(is_small, constant(EXP_LEAST), x)  # NaN stays NaN
        n = call_llvm(builder, "rint", builder.fmul(x, constant(LOG2_E)))
        r = call_llvm(builder, "fma", n, constant(-LN2_HIGH), x)
        r = call_llvm(builder, "fma", n, constant(-LN2_LOW), r)
        p = constant(EXP_COEFFICIENTS[0])
        for coefficient in EXP_COEFFICIENTS[1:]:
            p = call_llvm(builder, "fma", p, r, constant(coefficient))
        p = call_llvm(builder, "fma", builder.fmul(p, r), r, r)
        p = builder.fadd(p, constant(1.0))
        biased = builder.add(builder.fptosi(n, INTS), ir.Constant(INTS, [127] * LANES))
        power = builder.bitcast(builder.shl(biased, ir.Constant(INTS, [23] * LANES)), VECTOR)
        return builder.select(is_small, constant(0.0), builder.fmul(p, power))

    return Register(Register), generate
