# mypy: ignore-errors
# (numba gives the types)
"""Machine instructions for the kernels: memory by address, bit scans, 64 bytes classified at once.

Why not arrays: numba passes an array as seven values and counts its references, which made small helpers many
times slower than the work they do. An address is one integer, so helpers inline to nothing. All values are
int64; ``shr`` shifts in zeros, and addition, multiplication and the bit operations do not depend on the sign.

Whoever calls a kernel keeps the memory alive and 64 readable bytes behind every text (``PADDING``).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ...files import digest_of_sources

PADDING = 64
_INT8, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def address(array: np.ndarray) -> int:
    """Where the data of ``array`` starts."""
    return array.__array_interface__["data"][0]


def _load(width: ir.IntType) -> Any:
    def typing(context: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], width.as_pointer())
            value = builder.load(pointer, typ=width)
            value.align = 1
            return value if width is _INT64 else builder.zext(value, _INT64)

        return types.int64(types.int64), generate

    return typing


def _store(width: ir.IntType) -> Any:
    def typing(context: Any, place: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], width.as_pointer())
            value = arguments[1] if width is _INT64 else builder.trunc(arguments[1], width)
            builder.store(value, pointer).align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return typing


_SOURCES = digest_of_sources(Path(__file__).parent)


def kernel(function: Callable, *, nogil: bool = True) -> Any:
    """Compile ``function`` on its first call, and keep the result on disk.

    It runs without the interpreter lock. numba takes what it finds on disk for fresh as long as the
    function's own file is unchanged, though functions of other files are compiled into it. Here it is fresh
    while no file of this folder has changed.
    """
    compiled = njit(nogil=nogil, cache=True)(function)
    if index := getattr(compiled._cache, "_cache_file", None):  # none where no folder can be written to
        index._source_stamp = _SOURCES
    return compiled


def locked_kernel(function: Callable) -> Any:
    """A kernel that holds the interpreter lock: for what reads Python's own objects."""
    return kernel(function, nogil=False)


@intrinsic
def load8(context, place):  # type: ignore[no-untyped-def]
    """The byte at ``place``."""
    return _load(_INT8)(context, place)


@intrinsic
def load32(context, place):  # type: ignore[no-untyped-def]
    """The unsigned 32-bit number at ``place``."""
    return _load(_INT32)(context, place)


@intrinsic
def load64(context, place):  # type: ignore[no-untyped-def]
    """The 64-bit number at ``place``."""
    return _load(_INT64)(context, place)


@intrinsic
def store8(context, place, value):  # type: ignore[no-untyped-def]
    """Write the low 8 bits of ``value``."""
    return _store(_INT8)(context, place, value)


@intrinsic
def store32(context, place, value):  # type: ignore[no-untyped-def]
    """Write the low 32 bits of ``value``."""
    return _store(_INT32)(context, place, value)


@intrinsic
def store64(context, place, value):  # type: ignore[no-untyped-def]
    """Write ``value``."""
    return _store(_INT64)(context, place, value)


@intrinsic
def prefetch(context, place):  # type: ignore[no-untyped-def]
    """Start to fetch what is at ``place``; it may be no valid address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _INT8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _INT32, _INT32, _INT32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        for_writing, keep, data = (ir.Constant(_INT32, value) for value in (1, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), for_writing, keep, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def shr(context, value, count):  # type: ignore[no-untyped-def]
    """``value`` shifted right by ``count`` (0 to 63), zeros shifted in."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.lshr(*arguments)

    return types.int64(types.int64, types.int64), generate


@intrinsic
def lowest_bit(context, value):  # type: ignore[no-untyped-def]
    """Index of the lowest bit that is 1; 64 if none."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@intrinsic
def classify64(context, place):  # type: ignore[no-untyped-def]
    """One bit a byte for the 64 bytes at ``place``; one vector comparison each.

    Returns:
        letters, digits, white space, blanks (0x20), newlines (CR, LF), apostrophes: the ASCII ones;
        bytes above 0x7F; continuation bytes of UTF-8.
    """
    signature = types.UniTuple(types.int64, 8)(types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = ir.VectorType(_INT8, 64)
        data = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), typ=vector)
        data.align = 1

        def all_of(value: int) -> ir.Constant:
            return ir.Constant(vector, [value] * 64)

        def between(values: Any, first: int, count: int) -> Any:
            return builder.icmp_unsigned("<", builder.sub(values, all_of(first)), all_of(count))

        def equal(value: int) -> Any:
            return builder.icmp_unsigned("==", data, all_of(value))

        masks = (
            between(builder.or_(data, all_of(0x20)), ord("a"), 26),
            between(data, ord("0"), 10),
            builder.or_(equal(0x20), between(data, 9, 5)),
            equal(0x20),
            builder.or_(equal(0x0A), equal(0x0D)),
            equal(0x27),
            builder.icmp_unsigned(">=", data, all_of(0x80)),
            between(data, 0x80, 0x40),
        )
        bits = [builder.bitcast(mask, _INT64) for mask in masks]
        return context.make_tuple(builder, signature.return_type, bits)

    return signature, generate
