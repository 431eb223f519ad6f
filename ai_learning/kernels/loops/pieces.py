"""A function of one variable as 32 polynomials, for registers of AVX-512.

Its values would take an exponential, an error function, divisions. Cut into pieces it takes one polynomial,
whose coefficients are looked up: 32 numbers are two registers, and one instruction picks 16 of them by their
places. `store.processor_has("avx512f")` tells whether that instruction is there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from .registers import INTS, LANES, VECTOR, Register, call_llvm

PIECES = 2 * LANES
_DEGREE = 5


def piecewise(function: Callable[[float], float], width: float) -> Any:
    """An operation on a register, to be called in a loop, that gives ``function`` of each number.

    Args:
        function: smooth, and beyond the pieces all but constant: it is 0 to their left, 1 to their right.
        width: of a piece; they lie around 0.

    Example:
        >>> import math
        >>> step = piecewise(lambda x: math.erfc(-x) / 2, 0.25)  # from −4 to 4
    """
    table = coefficients(function, width)

    @intrinsic
    def operation(typingctx, x):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _polynomial(builder, args[0], width, table)

        return Register(Register), generate

    return operation


def coefficients(function: Callable[[float], float], width: float) -> np.ndarray:
    """(PIECES, degree + 1) float32, the constant first; each piece's variable runs from −½ to ½.

    The first piece is the constant 0, the last one 1; the others take the function's values at Chebyshev's
    places, which comes close to the smallest possible error.
    """
    places = np.cos(np.pi * (np.arange(64) + 0.5) / 64) / 2
    table = np.zeros((PIECES, _DEGREE + 1))
    for piece in range(1, PIECES - 1):
        values = [function(width * (piece + 0.5 - PIECES / 2 + place)) for place in places]
        table[piece] = np.polynomial.polynomial.polyfit(places, values, _DEGREE)
    table[-1, 0] = 1
    return table.astype(np.float32)


def _polynomial(builder: Any, x: Any, width: float, table: np.ndarray) -> Any:
    def constant(value: float) -> Any:
        return ir.Constant(VECTOR, [value] * LANES)

    place = call_llvm(builder, "fma", x, constant(1 / width), constant(PIECES / 2))
    for sign, end in (("<", 0.5), (">", PIECES - 0.5)):  # NaN stays NaN
        is_beyond = builder.fcmp_ordered(sign, place, constant(end))
        place = builder.select(is_beyond, constant(end), place)
    piece = call_llvm(builder, "floor", place)
    variable = builder.fsub(builder.fsub(place, piece), constant(0.5))
    number = builder.fptosi(piece, INTS)
    pick = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(VECTOR, [VECTOR, INTS, VECTOR]),
        f"llvm.x86.avx512.vpermi2var.ps.{32 * LANES}",
    )

    def picked(power: int) -> Any:
        halves = [ir.Constant(VECTOR, part.tolist()) for part in np.split(table[:, power], 2)]
        return builder.call(pick, [halves[0], number, halves[1]])

    result = picked(_DEGREE)
    for power in reversed(range(_DEGREE)):
        result = call_llvm(builder, "fma", result, variable, picked(power))
    return result
