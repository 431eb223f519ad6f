"""Functions of float32 for compiled loops, written so that the compiler makes vector code of them."""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_INT32 = ir.IntType(32)
LOG2_E = np.float32(1.4426950408889634)
# They sum to ln 2; the first has so few bits that whole numbers times it are exact.
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# exp(r) = 1 + r + r² · (…) for |r| ≤ ln 2 / 2, as Cephes has it (Moshier 1989, expf)
EXP_COEFFICIENTS = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)
_EXP = tuple(map(np.float32, EXP_COEFFICIENTS))
EXP_LEAST = np.float32(-87)  # below, the result is not a normal number


@intrinsic
def _power_of_two(typingctx, exponent):  # type: ignore[no-untyped-def]
    """2 to a whole number, put together from its bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        biased = builder.add(builder.fptosi(args[0], _INT32), ir.Constant(_INT32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INT32, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@numba.njit(fastmath={"contract"}, forceinline=True)  # not "reassoc": n · ln 2 is taken away in two parts
def exp(x):  # type: ignore[no-untyped-def]
    """``e ** x`` for x ≤ 0, within 2 units in the last place; 0 below −87."""
    n = np.rint(max(x, EXP_LEAST) * LOG2_E)
    r = max(x, EXP_LEAST) - n * LN2_HIGH - n * LN2_LOW
    p = _EXP[0]
    p = p * r + _EXP[1]
    p = p * r + _EXP[2]
    p = p * r + _EXP[3]
    p = p * r + _EXP[4]
    p = p * r + _EXP[5]
    p = p * r * r + r + np.float32(1)
    return np.float32(0) if x < EXP_LEAST else p * _power_of_two(n)  # NaN stays NaN


@intrinsic
def maximum(typingctx, a, b):  # type: ignore[no-untyped-def]
    """The larger of two float32, NaN if one is; unlike ``max``, it may run over vectors."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        function = builder.module.declare_intrinsic("llvm.maximum", [ir.FloatType()], kind)
        return builder.call(function, args)

    return types.float32(types.float32, types.float32), generate
