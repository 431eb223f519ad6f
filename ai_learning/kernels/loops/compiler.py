"""The words that loops are written in, and their compilation; importing this imports numba.

A loop is a C function of ``(address of a job, first, last)``. The job is an array of whole numbers: what the
loop needs to know, then the addresses of its tensors. Loops must not fail: nobody would hear of it.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from .threads import FIELDS, FIRST, JOB_LENGTH, LAST, LOOP, SHARES, THREADS, WHICH

_INT64 = ir.IntType(64)


class Loop:
    """A function that numba makes a C function of when first asked to."""

    def __init__(
        self, function: Callable[..., None], fastmath: bool | set[str] = False, args: int = 3
    ) -> None:
        self.function, self.fastmath = function, fastmath
        self.signature = types.void(*[types.int64] * args)

    @cached_property
    def call(self) -> Any:
        """The C function, to be called from Python."""
        return self._compiled.ctypes

    @property
    def address(self) -> int:
        """Where the C function stands."""
        return self._compiled.address or 0

    def code(self) -> tuple[str, bytes]:
        """The C function's name in an object file, and that file.

        Raises:
            TypeError: it cannot work without numba.
        """
        compiled: Any = self._compiled
        code = compiled._library._get_compiled_object()
        if b"NRT_MemInfo_alloc" in code:
            raise TypeError(f"{self.function.__name__} makes an array, which needs numba: use on_stack")
        return compiled._wrapper_name, code

    @cached_property
    def _compiled(self) -> CFunc:
        # "numpy": a division by 0 is infinite. Python's error would be a second way out of every loop, and
        # such loops do not become vector code.
        options = {"fastmath": self.fastmath, "error_model": "numpy"}
        compiled = CFunc(self.function, (self.signature.args, self.signature.return_type), {}, options)
        compiled.compile()
        return compiled


def loop(*, fastmath: bool | set[str] = False) -> Callable[[Callable[..., None]], Loop]:
    """Decorator that makes a `Loop`.

    Args:
        fastmath: which laws of arithmetic may be assumed, by LLVM's names: ``contract`` makes a product and a
            sum one instruction, ``reassoc`` takes sums in any order, ``nsz`` makes no difference between 0
            and −0; ``True`` assumes them all, also that there is no NaN and no infinity.
    """
    return lambda function: Loop(function, fastmath)


@intrinsic
def _pointer(typingctx, address):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@numba.njit(inline="always")
def at(address, length, dtype):  # type: ignore[no-untyped-def]
    """The (length,) array at an address."""
    return numba.carray(_pointer(address), (length,), dtype)


@intrinsic
def _reserve(typingctx, length, dtype):  # type: ignore[no-untyped-def]
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = context.get_value_type(dtype.dtype)
        place = cgutils.alloca_once(builder, kind, size=length.literal_value)
        return builder.ptrtoint(place, _INT64)

    if not isinstance(length, types.IntegerLiteral):
        raise RequireLiteralValue("a length must be known when the loop is compiled")
    return types.int64(length, dtype), generate


@numba.njit(inline="always")
def on_stack(length, dtype):  # type: ignore[no-untyped-def]
    """A (length,) array, not filled, for as long as the loop runs; the length is a constant."""
    return at(_reserve(length, dtype), length, dtype)


@numba.njit(inline="always")
def fields(job):  # type: ignore[no-untyped-def]
    """The whole numbers of a job."""
    return at(job, JOB_LENGTH, np.int64)


@numba.njit(inline="always")
def array(job, place, length, dtype):  # type: ignore[no-untyped-def]
    """The (length,) array whose address stands at a place of ``fields(job)``."""
    return at(job[place], length, dtype)


@intrinsic
def exchange(typingctx, address, value):  # type: ignore[no-untyped-def]
    """Write an int64 at an address, in one step for all threads; what was there before."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _INT64.as_pointer())
        return builder.atomic_rmw("xchg", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


# --- what every thread does -------------------------------------------------------------------------------


@intrinsic
def _call(typingctx, function, job, first, last):  # type: ignore[no-untyped-def]
    """Call the loop at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def _number(typingctx, function):  # type: ignore[no-untyped-def]
    """What the C function at an address, without arguments, gives: an int."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), _INT64)

    return types.int64(types.int64), generate


def _work(address):  # type: ignore[no-untyped-def]
    """Take shares of what `threads.run` shares out, this thread's own part first, until none is left."""
    shared = at(address, FIELDS, np.int64)
    job = address + 8 * FIELDS
    flags = job + 8 * JOB_LENGTH
    shares, length = shared[SHARES], shared[LAST] - shared[FIRST]
    own = _number(shared[WHICH]) * shares // shared[THREADS]
    for turn in range(shares):
        share = (own + turn) % shares
        if exchange(flags + 8 * share, 1) == 0:
            first = shared[FIRST] + length * share // shares
            last = shared[FIRST] + length * (share + 1) // shares
            _call(shared[LOOP], job, first, last)


work = Loop(_work, args=1)
