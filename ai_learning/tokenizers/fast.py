"""The compiled path: memory for the kernels, and the decision when to use them.

numba compiles a kernel on its first use (seconds, told on stderr) and keeps the result on disk, from where it
loads in a fraction of a second. Without numba everything here is off and plain Python does the work.
"""

import importlib.util
import os
import sys
import threading
from array import array as Array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import unicode_table
from .pretokenize import SplitPattern, parse_ranges

if TYPE_CHECKING:
    from .bpe_tokenizer import BPETokenizer

_MAX_IDS = 2**20  # a pair of ids and a rank share 64 bits
_MAX_CACHED_WORD = 128  # bytes
BYTES_HEADER = bytes.__basicsize__ - 1  # a bytes object's data follows its header
_ASCII_HEADER = sys.getsizeof("") - 1  # and so do the characters of a str that is all ASCII
_PAD = b"\0" * 64  # kernels read up to 64 bytes at once
_KEEP_ROOM = 2**22  # bytes of text that a worker keeps room for between calls


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


def is_loaded() -> bool:
    """Whether the kernels are in memory already, so that using them costs nothing first."""
    return has_numba() and f"{__package__}.kernels" in sys.modules


def can_compile(tokenizer: "BPETokenizer") -> bool:
    """Whether this tokenizer has a compiled path: a named pattern (or none) and ids that fit."""
    return (
        bool(tokenizer.pattern.family)
        and tokenizer.vocab_size <= _MAX_IDS
        and len(tokenizer.merges) < 2**24
        and not tokenizer._fast_refused
        and has_numba()
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
def kernels() -> ModuleType:
    """The module of kernels, imported late: numba takes a while."""
    from . import kernels as module

    return module


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


def address(array: np.ndarray) -> int:
    """Where the data of ``array`` starts."""
    return array.__array_interface__["data"][0]


def pattern_fields(state: np.ndarray, pattern: SplitPattern) -> None:
    """Tell the kernels how to split."""
    k = kernels()
    state[k.CLASSES] = address(class_table())
    state[k.MASKS] = address(byte_masks())
    state[k.FAMILY] = {"none": k.NONE, "gpt2": k.GPT2, "gpt4": k.GPT4}[pattern.family]
    state[k.MAX_DIGITS] = pattern.max_digits
    state[k.WHOLE_TAIL] = pattern.whole_tail


def padded(data: bytes) -> tuple[bytes, int]:
    """``data`` with readable bytes behind it, and its address; keep the first while the second is used."""
    held = data + _PAD
    return held, id(held) + BYTES_HEADER


def word_starts(text: str, pattern: SplitPattern) -> np.ndarray:
    """Byte positions where the compiled splitter starts a word: (words,) int64."""
    k = kernels()
    state = np.zeros(k.N_FIELDS, np.int64)
    pattern_fields(state, pattern)
    data = text.encode()
    held, place = padded(data)
    out = np.empty(len(data) + 1, np.int64)
    found = k.split_starts(place, len(data), address(state), address(out))
    del held
    return out[:found].copy()


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


def _copied(ids: np.ndarray) -> np.ndarray:
    return ids.copy()


class _Tables:
    """What all workers of a tokenizer share: pairs, ids, decoding records."""

    def __init__(self, tokenizer: "BPETokenizer") -> None:
        k = kernels()
        table = tokenizer._table
        triples = np.array(table.merges, np.int64).reshape(-1, 3)
        self.pair_bits = max(8, (2 * len(triples)).bit_length())
        self.pairs = np.full(1 << self.pair_bits, -1, np.int64)
        k.add_pairs(address(self.pairs), self.pair_bits, address(triples), len(triples))
        self.new_ids = np.ascontiguousarray(triples[:, 2], np.uint32)
        self.byte_ids = np.array(table.byte_ids, np.uint32)
        self.vocab_size = tokenizer.vocab_size
        self.records, self.long_tokens = _decode_records(tokenizer.vocab, tokenizer.vocab_size)


def _decode_records(vocab: dict[int, bytes], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """See ``kernels.decode_ids``: (vocab_size,) records of 24 bytes, and the tokens too long for one."""
    records = np.zeros(vocab_size, [("head", "S16"), ("place", "<u4"), ("size", "<u4")])
    sizes = np.full(vocab_size, 0xFFFFFFFF, np.uint32)
    places = np.zeros(vocab_size, np.uint32)
    long_tokens, used = [], 0
    heads = [b""] * vocab_size
    for i, token in vocab.items():
        heads[i] = token[:16]
        sizes[i] = len(token)
        if len(token) > 16:
            places[i] = used
            long_tokens.append(token)
            used += len(token)
    records["head"], records["place"], records["size"] = heads, places, sizes
    return records, np.frombuffer(b"".join(long_tokens) + _PAD, np.uint8)


class _Worker:
    """The memory of one thread: its word cache, scratch and output."""

    def __init__(self, tables: _Tables, pattern: SplitPattern, cache_bits: int) -> None:
        k = kernels()
        self.state = np.zeros(k.N_FIELDS, np.int64)
        self.place = address(self.state)
        pattern_fields(self.state, pattern)
        self._tables = tables  # their addresses are in the state
        self._memory: dict[str, np.ndarray] = {}
        slots = 1 << cache_bits
        self._give(k.CACHE, "cache", np.zeros(slots * 4, np.int64))
        self.state[k.CACHE_BITS] = cache_bits
        self.state[k.CACHE_LIMIT] = slots * 5 // 8
        arena = np.empty(slots * 8, np.uint8)
        self._give(k.ARENA, "arena", arena)
        self.state[k.ARENA_SIZE] = len(arena) - 16
        pool = np.empty(slots * 2, np.uint32)
        self._give(k.POOL, "pool", pool)
        self.state[k.POOL_SIZE] = len(pool) - 8
        self.state[k.PAIRS] = address(tables.pairs)
        self.state[k.PAIR_BITS] = tables.pair_bits
        self.state[k.NEW_IDS] = address(tables.new_ids)
        self.state[k.BYTE_IDS] = address(tables.byte_ids)
        self.state[k.MAX_CACHED] = _MAX_CACHED_WORD
        self.scratch_for(4096)
        self.room_for(4096)

    def _give(self, field: int, name: str, array: np.ndarray) -> None:
        self._memory[name] = array
        self.state[field] = address(array)

    def scratch_for(self, word: int) -> None:
        k = kernels()
        self._give(k.SCRATCH, "scratch", np.empty(32 * word + 64, np.uint8))
        self.state[k.SCRATCH_WORD] = word

    def room_for(self, n: int) -> None:
        self.text = np.zeros(n + len(_PAD), np.uint8)
        self.text_place = address(self.text)
        self.out = np.empty(n + 16, np.uint32)
        self.out_place = address(self.out)
        self.room = n

    def run(self, source: int, n: int) -> np.ndarray:
        """Ids of the ``n`` bytes at ``source``: a view of this worker's output."""
        k = kernels()
        if n > self.room:
            self.room_for(n)
        count = k.encode_copy(source, n, self.text_place, self.out_place, self.place)
        while count < 0:
            self.scratch_for(int(self.state[k.NEEDED]))
            count = k.encode_text(self.text_place, n, self.out_place, self.place)
        return self.out[:count]

    def trim(self) -> None:
        """Give back what an unusually long text needed."""
        if self.room > _KEEP_ROOM:
            self.room_for(4096)
        if self.state[kernels().SCRATCH_WORD] > _KEEP_ROOM // 32:
            self.scratch_for(4096)


class FastEncoder:
    """Encode UTF-8 bytes with compiled kernels. Threads may share it: each call takes a worker of its own.

    Args:
        tokenizer: whose ids it gives.
        cache_bits: log2 of the slots of the word cache (32 bytes each); ``None`` suits the vocabulary.
        seeded: whether the cache starts with the vocabulary in it.
    """

    def __init__(self, tokenizer: "BPETokenizer", cache_bits: int | None = None, seeded: bool = True) -> None:
        self._pattern = tokenizer.pattern
        self._tables = _Tables(tokenizer)
        self._cache_bits = cache_bits or max(16, (2 * tokenizer.vocab_size).bit_length())
        ordinary = sorted((i, token) for token, i in tokenizer._ids.items() if 0 < len(token) <= 128)
        self._seed_bytes = np.frombuffer(b"".join(token for _, token in ordinary) + _PAD, np.uint8)
        self._seed_ends = np.cumsum([len(token) for _, token in ordinary], dtype=np.int64)
        self._seed_ids = np.array([i for i, _ in ordinary], np.uint32)
        self._seeded = seeded
        self._integers = np.array(range(tokenizer.vocab_size), object)
        self.reached = 0
        self._workers = [self._new_worker()]

    def _new_worker(self) -> _Worker:
        k = kernels()
        worker = _Worker(self._tables, self._pattern, self._cache_bits)
        if self._seeded:
            worker.state[k.FAMILY] = k.NONE
            self.reached = k.seed_cache(
                address(self._seed_bytes),
                address(self._seed_ends),
                address(self._seed_ids),
                len(self._seed_ids),
                worker.out_place,
                worker.place,
            )
            pattern_fields(worker.state, self._pattern)
        return worker

    @property
    def reaches_all(self) -> bool:
        """Whether merges alone make every token from its bytes."""
        return self.reached == len(self._seed_ids)

    def _take(self) -> _Worker:
        try:
            return self._workers.pop()
        except IndexError:
            return self._new_worker()

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of ``text`` (bytes: valid UTF-8): (n,) uint32."""
        return self._run(text, _copied)

    def encode_as(self, data: bytes, dtype: np.dtype) -> np.ndarray:
        """``encode`` of valid UTF-8 into another type of number, which all ids fit."""
        return self._run(data, lambda ids: ids.astype(dtype))

    def encode_list(self, text: str | bytes) -> list[int]:
        """The same as a list."""
        # int objects made once for all: an array's own tolist would make a new one for each id
        return self._run(text, lambda ids: self._integers.take(ids).tolist())

    def _run(self, text: str | bytes, result: Callable[[np.ndarray], Any]) -> Any:
        if type(text) is str and text.isascii():  # CPython keeps ASCII as it is in UTF-8
            held: str | bytes = text
            source, n = id(text) + _ASCII_HEADER, len(text)
        else:
            held = text if isinstance(text, bytes) else utf8(text)
            source, n = id(held) + BYTES_HEADER, len(held)
        worker = self._take()
        ids = result(worker.run(source, n))
        del held  # until here the memory at source had to stay
        if n > _KEEP_ROOM:
            worker.trim()
        self._workers.append(worker)
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes | None:
        """Bytes of ``ids``, or ``None`` if one of them is not in the vocabulary."""
        if isinstance(ids, np.ndarray):
            if ids.dtype == np.uint32 and ids.flags.c_contiguous:
                array = ids
            elif ids.dtype.kind not in "iu" or (len(ids) and not 0 <= ids.min() <= ids.max() < 2**32):
                return None
            else:
                array = np.ascontiguousarray(ids, np.uint32)
        else:
            try:
                array = np.frombuffer(Array("I", ids), np.uint32) if len(ids) else np.empty(0, np.uint32)
            except (OverflowError, TypeError, ValueError):
                return None
        k = kernels()
        tables = self._tables
        place, n = address(array), len(array)
        records = address(tables.records)
        size = k.decoded_size(place, n, records, tables.vocab_size)
        if size < 0:
            return None
        out = np.empty(size + 32, np.uint8)
        k.decode_ids(place, n, records, address(tables.long_tokens), address(out))
        return out[:size].tobytes()


def make_encoder(tokenizer: "BPETokenizer") -> FastEncoder | None:
    """The compiled encoder of ``tokenizer``; ``None`` if plain Python must do (see ``whole_words``)."""
    with announced("the fast tokenizer"):
        encoder = FastEncoder(tokenizer)
    if tokenizer.whole_words and not encoder.reaches_all:
        tokenizer._fast_refused = True
        return None
    return encoder
