"""Encoding and decoding with compiled kernels: their memory, one set a thread."""

from array import array as Array
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .fast import ASCII_HEADER, BYTES_HEADER, PAD, address, list_layout, padded, pattern_fields, utf8
from .kernels import decode, encode, merge, split
from .kernels import state as fields
from .pretokenize import SplitPattern

if TYPE_CHECKING:
    from .bpe_tokenizer import BPETokenizer

_MAX_CACHED_WORD = 128  # bytes
_KEEP_ROOM = 2**22  # bytes of text that a worker keeps room for between calls


def word_starts(text: str, pattern: SplitPattern) -> np.ndarray:
    """Byte positions where the compiled splitter starts a word: (words,) int64."""
    state = np.zeros(fields.N_FIELDS, np.int64)
    pattern_fields(state, pattern)
    data = text.encode()
    held, place = padded(data)
    out = np.empty(len(data) + 1, np.int64)
    found = split.split_starts(place, len(data), address(state), address(out))
    del held
    return out[:found].copy()


def _copied(ids: np.ndarray) -> np.ndarray:
    return ids.copy()


class _Tables:
    """What all workers of a tokenizer share: pairs, ids, decoding records."""

    def __init__(self, tokenizer: "BPETokenizer") -> None:
        table = tokenizer._table
        triples = np.array([table.left, table.right, table.new], np.int64).T.copy()  # (merges, 3)
        self.pair_bits = max(8, (2 * len(triples)).bit_length())
        self.pairs = np.full(1 << self.pair_bits, -1, np.int64)
        merge.add_pairs(address(self.pairs), self.pair_bits, address(triples), len(triples))
        self.new_ids = np.ascontiguousarray(triples[:, 2], np.uint32)
        self.byte_ids = np.array(table.byte_ids, np.uint32)
        self.joints = _joints(tokenizer._ids)
        self.vocab_size = tokenizer.vocab_size
        self.records, self.long_tokens = _decode_records(tokenizer.vocab, tokenizer.vocab_size)


def _joints(tokens: Collection[bytes]) -> np.ndarray:
    """See ``kernels.merge.first_seam``: one bit for each two bytes that are neighbours in a token."""
    tokens = [token for token in tokens if token]
    data = np.frombuffer(b"".join(tokens), np.uint8).astype(np.uint16)
    pairs = data[:-1] << 8 | data[1:]
    ends = np.cumsum([len(token) for token in tokens])
    bits = np.zeros(2**16, np.uint8)
    bits[np.delete(pairs, ends[:-1] - 1)] = 1  # the end of one token is no neighbour of the next one's start
    return np.packbits(bits, bitorder="little")


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
    return records, np.frombuffer(b"".join(long_tokens) + PAD, np.uint8)


class _Worker:
    """The memory of one thread: its word cache, scratch and output."""

    def __init__(self, tables: _Tables, pattern: SplitPattern, cache_bits: int) -> None:
        self.state = np.zeros(fields.N_FIELDS, np.int64)
        self.place = address(self.state)
        pattern_fields(self.state, pattern)
        self._tables = tables  # their addresses are in the state
        self._memory: dict[str, np.ndarray] = {}
        slots = 1 << cache_bits
        self._give(fields.CACHE, "cache", np.zeros(slots * 4, np.int64))
        self.state[fields.CACHE_BITS] = cache_bits
        self.state[fields.CACHE_LIMIT] = slots * 5 // 8
        arena = np.empty(slots * 8, np.uint8)
        self._give(fields.ARENA, "arena", arena)
        self.state[fields.ARENA_SIZE] = len(arena) - 16
        pool = np.empty(slots * 2, np.uint32)
        self._give(fields.POOL, "pool", pool)
        self.state[fields.POOL_SIZE] = len(pool) - 8
        self.state[fields.PAIRS] = address(tables.pairs)
        self.state[fields.PAIR_BITS] = tables.pair_bits
        self.state[fields.NEW_IDS] = address(tables.new_ids)
        self.state[fields.BYTE_IDS] = address(tables.byte_ids)
        self.state[fields.JOINTS] = address(tables.joints)
        self.state[fields.MAX_CACHED] = _MAX_CACHED_WORD
        self.scratch_for(4096)
        self.room_for(4096)

    def _give(self, field: int, name: str, array: np.ndarray) -> None:
        self._memory[name] = array
        self.state[field] = address(array)

    def scratch_for(self, word: int) -> None:
        self._give(fields.SCRATCH, "scratch", np.empty(32 * word + 64, np.uint8))
        self.state[fields.SCRATCH_WORD] = word

    def room_for(self, n: int) -> None:
        self.text = np.zeros(n + len(PAD), np.uint8)
        self.text_place = address(self.text)
        self.out = np.empty(n + 16, np.uint32)
        self.out_place = address(self.out)
        self.room = n

    def run(self, source: int, n: int) -> np.ndarray:
        """Ids of the ``n`` bytes at ``source``: a view of this worker's output."""
        if n > self.room:
            self.room_for(n)
        count = encode.encode_copy(source, n, self.text_place, self.out_place, self.place)
        while count < 0:
            self.scratch_for(int(self.state[fields.NEEDED]))
            count = encode.encode_text(self.text_place, n, self.out_place, self.place)
        return self.out[:count]

    def trim(self) -> None:
        """Give back what an unusually long text needed."""
        if self.room > _KEEP_ROOM:
            self.room_for(4096)
        if self.state[fields.SCRATCH_WORD] > _KEEP_ROOM // 32:
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
        self._seed_bytes = np.frombuffer(b"".join(token for _, token in ordinary) + PAD, np.uint8)
        self._seed_ends = np.cumsum([len(token) for _, token in ordinary], dtype=np.int64)
        self._seed_ids = np.array([i for i, _ in ordinary], np.uint32)
        self._seeded = seeded
        self._integers = np.array(range(tokenizer.vocab_size), object)
        self.reached = 0
        self._workers = [self._new_worker()]

    def _new_worker(self) -> _Worker:
        worker = _Worker(self._tables, self._pattern, self._cache_bits)
        if self._seeded:
            worker.state[fields.FAMILY] = fields.NONE
            self.reached = encode.seed_cache(
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
            source, n = id(text) + ASCII_HEADER, len(text)
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

    def decode(self, ids: Sequence[int] | np.ndarray) -> memoryview | None:
        """Bytes of ``ids``, or ``None`` if one of them is not in the vocabulary (or they are no integers)."""
        tables, n = self._tables, len(ids)
        records = address(tables.records)
        if type(ids) is list and (layout := list_layout()):
            array = np.empty(n, np.uint32)
            place = address(array)
            size = decode.decoded_size_of_list(
                id(ids), n, id(int), *layout, records, tables.vocab_size, place
            )
        else:
            converted = _as_uint32(ids)
            if converted is None:
                return None
            array = converted
            place = address(array)
            size = decode.decoded_size(place, n, records, tables.vocab_size)
        if size < 0:
            return None
        out = np.empty(size + 32, np.uint8)
        decode.decode_ids(place, n, records, address(tables.long_tokens), address(out))
        return out[:size].data


def _as_uint32(ids: Sequence[int] | np.ndarray) -> np.ndarray | None:
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu" or (len(ids) and not 0 <= ids.min() <= ids.max() < 2**32):
            return None
        return np.ascontiguousarray(ids, np.uint32)
    try:
        return np.frombuffer(Array("I", ids), np.uint32) if len(ids) else np.empty(0, np.uint32)
    except (OverflowError, TypeError, ValueError):
        return None
