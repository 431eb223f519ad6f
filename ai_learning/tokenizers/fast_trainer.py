"""Training with compiled kernels: counting words, learning merges."""

from collections.abc import Callable, Sequence

import numpy as np

from . import fast
from .fast import address
from .kernels import count, learn
from .kernels import state as fields
from .pretokenize import NO_PATTERN, SplitPattern
from .streaming import safe_cut_bytes
from .word_counts import WordCounts

_COPY_BELOW = 2**18  # bytes
_MERGES_AT_ONCE = 500  # between two reports


class FastCounter:
    """Count words with compiled kernels; memory grows with the unique words.

    Args:
        pattern: a named one, or none.
    """

    def __init__(self, pattern: SplitPattern) -> None:
        self._pattern = pattern
        self._state = np.zeros(fields.N_FIELDS, np.int64)
        fast.pattern_fields(self._state, pattern)
        self._bits = 0
        self._table = np.zeros(0, np.int64)
        self._arena = np.empty(0, np.uint8)
        self._offsets = np.zeros(1, np.int64)
        self._grow(16, 2**20)

    def _grow(self, bits: int, arena_size: int) -> None:
        state = self._state
        used, arena_used = int(state[fields.CACHE_USED]), int(state[fields.ARENA_USED])
        table = np.zeros(4 << bits, np.int64)
        if self._bits:
            count.rehash(address(self._table), self._bits, address(table), bits)
        arena = np.empty(arena_size + 16, np.uint8)
        arena[:arena_used] = self._arena[:arena_used]
        offsets = np.zeros((5 << bits) // 8 + 2, np.int64)
        offsets[: used + 1] = self._offsets[: used + 1]
        self._table, self._arena, self._offsets, self._bits = table, arena, offsets, bits
        state[fields.CACHE], state[fields.CACHE_BITS] = address(table), bits
        state[fields.CACHE_LIMIT] = (5 << bits) // 8
        state[fields.ARENA], state[fields.ARENA_SIZE] = address(arena), arena_size
        state[fields.POOL] = address(offsets)

    def _make_room(self) -> None:
        """Double what is full; called again while a long word still finds no room."""
        state = self._state
        full = int(state[fields.CACHE_USED]) >= int(state[fields.CACHE_LIMIT])
        self._grow(self._bits + full, int(state[fields.ARENA_SIZE]) * (1 if full else 2))

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
        while count.count_words(place, n, 1, address(self._state)):
            self._make_room()

    def add_counter(self, other: "FastCounter") -> None:
        """Add all that ``other`` has counted."""
        theirs = other.result()
        data, place = fast.padded(theirs.data.tobytes())
        fast.pattern_fields(self._state, NO_PATTERN)
        done, n = 0, len(theirs)
        while True:
            done = count.add_counts(
                place, address(theirs.offsets), address(theirs.counts), done, n, address(self._state)
            )
            if done == n:
                break
            self._make_room()
        del data
        fast.pattern_fields(self._state, self._pattern)

    def result(self) -> WordCounts:
        """What has been counted so far."""
        state = self._state
        used, arena_used = int(state[fields.CACHE_USED]), int(state[fields.ARENA_USED])
        counts = np.zeros(used, np.int64)
        count.counts_in_order(address(self._table), self._bits, address(counts))
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
    n = len(counts.data)
    byte_ids = np.empty(256, np.uint32)
    byte_ids[list(byte_order)] = np.arange(256)
    state = np.zeros(learn.N_TRAIN_FIELDS, np.int64)
    memory: dict[int, np.ndarray] = {}

    def give(field: int, array: np.ndarray) -> np.ndarray:
        memory[field] = array
        state[field] = address(array)
        return array

    # np.empty takes no memory before it is written to, so the worst case is asked for at once
    give(learn.SYMBOLS, np.empty(5 * n + 5, np.uint32))
    give(learn.PLACES, np.empty(3 * n + 64, np.uint32))  # some are read ahead
    give(learn.STEP, np.empty(2 * n + 2, np.uint32))
    merges = give(learn.MERGES, np.zeros((n_merges + 1, 3), np.int64))
    give(learn.WORD_COUNTS, np.ascontiguousarray(counts.counts, np.int64))
    state[learn.N_SYMBOLS], state[learn.FIRST_ID] = n, 256
    state[learn.MIN_COUNT], state[learn.TIE] = min_count, tie
    if tie == learn.GREATER_BYTES:
        longest = int(np.diff(counts.offsets).max(initial=1))
        tokens = give(learn.TOKENS, np.empty(256 + n_merges * (longest + 8), np.uint8))
        ends = give(learn.TOKEN_ENDS, np.zeros(258 + n_merges, np.int64))
        tokens[:256] = byte_order
        ends[:257] = np.arange(257)

    def room_for_pairs(n_pairs: int) -> None:
        bits = max(17, (2 * n_pairs).bit_length())
        used, heap_used = int(state[learn.N_PAIRS]), int(state[learn.HEAP_SIZE])
        old_records, old_heap = memory.get(learn.PAIR_RECORDS), memory.get(learn.HEAP)
        records = give(learn.PAIR_RECORDS, np.empty((n_pairs, 4), np.int64))
        heap = give(learn.HEAP, np.empty((n_pairs + 1, 3), np.int64))
        if old_records is not None and old_heap is not None:
            records[:used] = old_records[:used]
            heap[:heap_used] = old_heap[:heap_used]
        table = give(learn.PAIR_TABLE, np.full(1 << bits, 0xFFFFFFFF, np.uint32))
        state[learn.TABLE_BITS], state[learn.MAX_PAIRS] = bits, n_pairs
        learn.index_pairs(address(table), bits, address(records), used)

    room_for_pairs(2**17)  # more than there are pairs of bytes
    data, offsets = np.ascontiguousarray(counts.data), np.ascontiguousarray(counts.offsets, np.int64)
    learn.place_symbols(
        address(data), address(offsets), len(counts), address(byte_ids), int(state[learn.SYMBOLS])
    )
    learn.count_first_pairs(address(state))
    answer = learn.LEARNED
    while state[learn.N_MERGES] < n_merges and answer != learn.NO_PAIR_LEFT:
        until = min(n_merges, int(state[learn.N_MERGES]) + _MERGES_AT_ONCE)
        while (answer := learn.learn(address(state), until)) == learn.NEED_PAIRS:
            room_for_pairs(2 * int(state[learn.MAX_PAIRS]))
        report(int(state[learn.N_MERGES]), n_merges)
    found = int(state[learn.N_MERGES])
    return list(zip(merges[:found, 0].tolist(), merges[:found, 1].tolist(), strict=True))
