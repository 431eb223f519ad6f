"""Unique words and their counts: collected by the compiled counter, kept on disk, turned into merges."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import atomic_path
from . import fast
from .fast import address, kernels
from .pretokenize import NO_PATTERN, SplitPattern
from .streaming import safe_cut_bytes

_COPY_BELOW = 2**18  # bytes
_MERGES_AT_ONCE = 500  # between two reports


class WordCounts:
    """Unique words in order of first appearance.

    Attributes:
        data: the bytes of all words, one after the other: (bytes,) uint8.
        offsets: where each starts, and the end of the last: (words + 1,) int64.
        counts: (words,) int64.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> None:
        self.data, self.offsets, self.counts = data, offsets, counts

    @classmethod
    def from_dict(cls, words: Mapping[bytes, int]) -> "WordCounts":
        """From word → count."""
        offsets = np.zeros(len(words) + 1, np.int64)
        np.cumsum([len(word) for word in words], out=offsets[1:])
        return cls(
            np.frombuffer(b"".join(words), np.uint8), offsets, np.array(list(words.values()), np.int64)
        )

    def __len__(self) -> int:
        return len(self.counts)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """(word, count), in order."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        for start, end, count in zip(ends, ends[1:], self.counts.tolist(), strict=False):
            yield data[start:end], count


def save_counts(counts: WordCounts, path: str | Path, key: dict[str, Any]) -> None:
    """Keep word counts, and what they were counted from, in a safetensors file."""
    from safetensors.numpy import save_file

    tensors = {"data": counts.data, "offsets": counts.offsets, "counts": counts.counts}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": "ai_learning.word_counts/1", "key": json.dumps(key)})


def load_counts(path: str | Path, key: dict[str, Any]) -> WordCounts | None:
    """Word counts kept at ``path``; ``None`` if there are none yet.

    Raises:
        InputError: damaged, or counted from something else or with other settings.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        return None
    try:
        with safe_open(path, "np") as file:
            found = json.loads((file.metadata() or {})["key"])
            data, offsets, counts = (file.get_tensor(name) for name in ("data", "offsets", "counts"))
    except (KeyError, ValueError, OSError, SafetensorError) as error:
        raise InputError(
            f"{path} holds no word counts, or is damaged ({error}): delete it to count anew"
        ) from None
    different = next((name for name in key if found.get(name) != key[name]), None)
    if different is not None:
        raise InputError(
            f"{path} was counted with another {different} ({str(found.get(different))[:80]!r}): "
            "delete it to count anew, or name another file"
        )
    return WordCounts(data, offsets, counts)


class FastCounter:
    """Count words with compiled kernels; memory grows with the unique words.

    Args:
        pattern: a named one, or none.
    """

    def __init__(self, pattern: SplitPattern) -> None:
        from . import train_kernels

        k = kernels()
        self._train_kernels = train_kernels
        self._pattern = pattern
        self._state = np.zeros(k.N_FIELDS, np.int64)
        fast.pattern_fields(self._state, pattern)
        self._bits = 0
        self._table = np.zeros(0, np.int64)
        self._arena = np.empty(0, np.uint8)
        self._offsets = np.zeros(1, np.int64)
        self._grow(16, 2**20)

    def _grow(self, bits: int, arena_size: int) -> None:
        k, state = kernels(), self._state
        used, arena_used = int(state[k.CACHE_USED]), int(state[k.ARENA_USED])
        table = np.zeros(4 << bits, np.int64)
        if self._bits:
            self._train_kernels.rehash(address(self._table), self._bits, address(table), bits)
        arena = np.empty(arena_size + 16, np.uint8)
        arena[:arena_used] = self._arena[:arena_used]
        offsets = np.zeros((5 << bits) // 8 + 2, np.int64)
        offsets[: used + 1] = self._offsets[: used + 1]
        self._table, self._arena, self._offsets, self._bits = table, arena, offsets, bits
        state[k.CACHE], state[k.CACHE_BITS], state[k.CACHE_LIMIT] = address(table), bits, (5 << bits) // 8
        state[k.ARENA], state[k.ARENA_SIZE], state[k.POOL] = address(arena), arena_size, address(offsets)

    def _make_room(self) -> None:
        """Double what is full; called again while a long word still finds no room."""
        k, state = kernels(), self._state
        full = int(state[k.CACHE_USED]) >= int(state[k.CACHE_LIMIT])
        self._grow(self._bits + full, int(state[k.ARENA_SIZE]) * (1 if full else 2))

    def add(self, data: bytes) -> None:
        """Count the words of ``data``, which is valid UTF-8."""
        if len(data) > _COPY_BELOW and self._pattern.family in ("gpt2", "gpt4"):
            # kernels read a little behind the end: instead of copying all to a longer place, copy only the
            # last part
            cut = len(data) - 2**16
            cut += safe_cut_bytes(data[cut:])
            if cut > len(data) - 2**16:
                self._add_at(id(data) + fast.BYTES_HEADER, cut)
                data = data[cut:]
        held, place = fast.padded(data)
        self._add_at(place, len(data))
        del held

    def add_all(self, pieces: Sequence[bytes]) -> None:
        """``add`` each."""
        for piece in pieces:
            self.add(piece)

    def _add_at(self, place: int, n: int) -> None:
        while self._train_kernels.count_words(place, n, 1, address(self._state)):
            self._make_room()

    def add_counter(self, other: "FastCounter") -> None:
        """Add all that ``other`` has counted."""
        theirs = other.result()
        data, place = fast.padded(theirs.data.tobytes())
        fast.pattern_fields(self._state, NO_PATTERN)
        done, n = 0, len(theirs)
        while True:
            done = self._train_kernels.add_counts(
                place, address(theirs.offsets), address(theirs.counts), done, n, address(self._state)
            )
            if done == n:
                break
            self._make_room()
        del data
        fast.pattern_fields(self._state, self._pattern)

    def result(self) -> WordCounts:
        """What has been counted so far."""
        k, state = kernels(), self._state
        used, arena_used = int(state[k.CACHE_USED]), int(state[k.ARENA_USED])
        counts = np.zeros(used, np.int64)
        self._train_kernels.counts_in_order(address(self._table), self._bits, address(counts))
        return WordCounts(self._arena[:arena_used], self._offsets[: used + 1], counts)


def learn_compiled(
    counts: WordCounts,
    n_merges: int,
    tie: int,
    byte_order: Sequence[int],
    min_count: int,
    report: Callable[[int, int], None],
) -> list[tuple[int, int]]:
    """``training.learn_merges`` with compiled kernels."""
    from . import train_kernels as t

    n = len(counts.data)
    byte_ids = np.empty(256, np.uint32)
    byte_ids[list(byte_order)] = np.arange(256)
    state = np.zeros(t.N_TRAIN_FIELDS, np.int64)
    memory: dict[int, np.ndarray] = {}

    def give(field: int, array: np.ndarray) -> np.ndarray:
        memory[field] = array
        state[field] = address(array)
        return array

    # np.empty takes no memory before it is written to, so the worst case is asked for at once
    give(t.SYMBOLS, np.empty(5 * n + 5, np.uint32))
    give(t.PLACES, np.empty(3 * n + 4, np.uint32))
    give(t.STEP, np.empty(4 * n + 4, np.int64))
    merges = give(t.MERGES, np.zeros((n_merges + 1, 3), np.int64))
    give(t.WORD_COUNTS, np.ascontiguousarray(counts.counts, np.int64))
    state[t.N_SYMBOLS], state[t.FIRST_ID] = n, 256
    state[t.MIN_COUNT], state[t.TIE] = min_count, tie
    if tie == t.GREATER_BYTES:
        longest = int(np.diff(counts.offsets).max(initial=1))
        tokens = give(t.TOKENS, np.empty(256 + n_merges * (longest + 8), np.uint8))
        ends = give(t.TOKEN_ENDS, np.zeros(258 + n_merges, np.int64))
        tokens[:256] = byte_order
        ends[:257] = np.arange(257)

    def room_for_pairs(n_pairs: int) -> None:
        bits = max(17, (2 * n_pairs).bit_length())
        used, heap_used = int(state[t.N_PAIRS]), int(state[t.HEAP_SIZE])
        old_records, old_heap = memory.get(t.PAIR_RECORDS), memory.get(t.HEAP)
        records = give(t.PAIR_RECORDS, np.empty((n_pairs, 4), np.int64))
        heap = give(t.HEAP, np.empty((n_pairs + 1, 3), np.int64))
        if old_records is not None and old_heap is not None:
            records[:used] = old_records[:used]
            heap[:heap_used] = old_heap[:heap_used]
        table = give(t.PAIR_TABLE, np.full(1 << bits, 0xFFFFFFFF, np.uint32))
        state[t.TABLE_BITS], state[t.MAX_PAIRS] = bits, n_pairs
        t.index_pairs(address(table), bits, address(records), used)

    room_for_pairs(2**17)  # more than there are pairs of bytes
    data, offsets = np.ascontiguousarray(counts.data), np.ascontiguousarray(counts.offsets, np.int64)
    t.place_symbols(address(data), address(offsets), len(counts), address(byte_ids), int(state[t.SYMBOLS]))
    t.count_first_pairs(address(state))
    answer = t.LEARNED
    while state[t.N_MERGES] < n_merges and answer != t.NO_PAIR_LEFT:
        until = min(n_merges, int(state[t.N_MERGES]) + _MERGES_AT_ONCE)
        while (answer := t.learn(address(state), until)) == t.NEED_PAIRS:
            room_for_pairs(2 * int(state[t.MAX_PAIRS]))
        report(int(state[t.N_MERGES]), n_merges)
    found = int(state[t.N_MERGES])
    return list(zip(merges[:found, 0].tolist(), merges[:found, 1].tolist(), strict=True))
