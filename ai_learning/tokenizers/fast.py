"""The compiled path: whether there is one, when it is worth loading, and what all of it needs.

numba compiles a kernel on its first use (seconds, told on stderr) and keeps the result on disk, from where it
loads in a fraction of a second. Without numba everything here is off and plain Python does the work.
"""

import ctypes
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from . import unicode_table
from .kernels import state as fields
from .pretokenize import SplitPattern, parse_ranges

if TYPE_CHECKING:
    from .bpe_tokenizer import BPETokenizer
    from .fast_encoder import FastEncoder

_MAX_IDS = 2**20  # a pair of ids and a rank share 64 bits
BYTES_HEADER = bytes.__basicsize__ - 1  # a bytes object's data follows its header
ASCII_HEADER = sys.getsizeof("") - 1  # and so do the characters of a str that is all ASCII
_LOADING_TAKES = 700 * 2**20  # bytes of address space: numba, LLVM, the kernels, two workers
PAD = b"\0" * 64  # kernels read up to 64 bytes at once


@cache
def has_numba() -> bool:
    """Whether the compiled path can be had: numba is there, on a 64-bit little-endian CPython.

    ``AI_LEARNING_PURE_PYTHON=1`` in the environment turns it off.
    """
    return (
        not os.environ.get("AI_LEARNING_PURE_PYTHON")
        and sys.implementation.name == "cpython"
        and sys.byteorder == "little"
        and sys.maxsize > 2**32
        and importlib.util.find_spec("numba") is not None
    )


def can_load() -> bool:
    """Whether the kernels are in memory, or can be: there is numba, and room for it.

    Where the address space is limited (``ulimit -v``) and LLVM gets none of it, it ends the process; plain
    Python does with little.
    """
    return has_numba() and (is_loaded() or _free_address_space() > _LOADING_TAKES)


def _free_address_space() -> float:
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return float("inf")
        with open("/proc/self/statm") as file:
            return limit - int(file.read().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, AttributeError):
        return float("inf")


def is_loaded() -> bool:
    """Whether the kernels are in memory already, so that using them costs nothing first."""
    return has_numba() and f"{__package__}.kernels.machine" in sys.modules


def can_compile(tokenizer: "BPETokenizer") -> bool:
    """Whether this tokenizer has a compiled path: a named pattern (or none) and ids that fit."""
    return (
        bool(tokenizer.pattern.family)
        and tokenizer.vocab_size <= _MAX_IDS
        and len(tokenizer.merges) < 2**24
        and not tokenizer._fast_refused
        and can_load()
    )


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say on stderr that something is being compiled, if it takes longer than loading it would."""

    def tell() -> None:
        print(f"compiling {what} (about 10 s, once: the result is kept on disk)", file=sys.stderr, flush=True)

    timer = threading.Timer(1.5, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@cache
def class_table() -> np.ndarray:
    """Class of each code point: (0x110000,) uint8; 0 other, 1 letter, 2 number, 3 space."""
    table = np.zeros(0x110000, np.uint8)
    for kind, ranges in ((1, unicode_table.LETTER), (2, unicode_table.NUMBER), (3, unicode_table.SPACE)):
        for first, last in parse_ranges(ranges):
            table[first : last + 1] = kind
    return table


@cache
def byte_masks() -> np.ndarray:
    """(16, 2) uint64: the bits of two words that hold the first n bytes; seven at most in the second."""
    rows = [((1 << 8 * min(n, 8)) - 1, (1 << 8 * max(n - 8, 0)) - 1) for n in range(16)]
    return np.array(rows, np.uint64)


@cache
def list_layout() -> tuple[int, int] | None:
    """How CPython writes the number of digits of a small positive integer and of 0.

    ``None`` where lists and integers are not laid out as ``kernels.decode.decoded_size_of_list`` reads them.
    """

    def at(place: int) -> int:
        return ctypes.c_int64.from_address(place).value

    probe = [12345, 0, 2**20 - 1]
    if list.__basicsize__ != 40 or at(id(probe) + 16) != 3:
        return None
    items = at(id(probe) + 24)
    if [at(items + 8 * i) for i in range(3)] != [id(number) for number in probe]:
        return None
    types, digits = ([at(id(number) + offset) for number in probe] for offset in (8, 16))
    values = [at(id(number) + 24) & 0xFFFFFFFF for number in probe]
    known = types == [id(int)] * 3 and digits[0] == digits[2] != digits[1] and values[::2] == probe[::2]
    return (digits[0], digits[1]) if known else None


def address(array: np.ndarray) -> int:
    """Where the data of ``array`` starts."""
    return array.__array_interface__["data"][0]


def pattern_fields(state: np.ndarray, pattern: SplitPattern) -> None:
    """Tell the kernels how to split."""
    state[fields.CLASSES] = address(class_table())
    state[fields.MASKS] = address(byte_masks())
    state[fields.FAMILY] = {"none": fields.NONE, "gpt2": fields.GPT2, "gpt4": fields.GPT4}[pattern.family]
    state[fields.MAX_DIGITS] = pattern.max_digits
    state[fields.WHOLE_TAIL] = pattern.whole_tail


def padded(data: bytes) -> tuple[bytes, int]:
    """``data`` with readable bytes behind it, and its address; keep the first while the second is used."""
    held = data + PAD
    return held, id(held) + BYTES_HEADER


def utf8(text: str) -> bytes:
    """``text`` in UTF-8, which cannot express surrogates: pairs are joined, lone ones become U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def without_surrogates(text: str) -> str:
    """``text`` with its surrogates treated as in ``utf8``."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return utf8(text).decode()
    return text


def make_encoder(tokenizer: "BPETokenizer") -> "FastEncoder | None":
    """The compiled encoder of ``tokenizer``; ``None`` if plain Python must do (see ``whole_words``)."""
    with announced("the fast tokenizer"):
        from .fast_encoder import FastEncoder

        encoder = FastEncoder(tokenizer)
    if tokenizer.whole_words and not encoder.reaches_all:
        tokenizer._fast_refused = True
        return None
    return encoder
