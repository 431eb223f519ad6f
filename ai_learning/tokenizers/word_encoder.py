"""Encoding in plain Python: a dictionary of words already encoded, and merges for the others.

This is what runs where numba is missing, until the compiled path is loaded, and on short texts. Natural text
repeats its words, so nearly every word is one dictionary lookup.
"""

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import chain, pairwise

from .bpe import Pair

CACHE_WORDS = 2**18  # forgotten all at once when full: text full of unique words cannot grow it for ever
_LONG = 128  # bytes; above, rescanning for the best pair would cost more than a heap


class MergeTable:
    """What the merges are, by id: everything an encoder needs to know.

    Args:
        byte_ids: id of each of the 256 bytes.
        left: id of the left part of each merge, the earliest learned first.
        right: id of its right part.
        new: id of what they become.
        whole_words: words that get one id before any merge is tried (tokens that merges cannot reach).
    """

    def __init__(
        self,
        byte_ids: Sequence[int],
        left: Sequence[int],
        right: Sequence[int],
        new: Sequence[int],
        whole_words: Mapping[bytes, int] | None = None,
    ) -> None:
        self.byte_ids = list(byte_ids)
        self.left, self.right, self.new = list(left), list(right), list(new)
        self.whole_words = dict(whole_words or {})

    @cached_property
    def rank(self) -> dict[Pair, int]:
        """Rank of each pair of ids; made on first use, since the compiled path has its own."""
        return {pair: i for i, pair in enumerate(zip(self.left, self.right, strict=True))}

    def encode_word(self, word: bytes) -> list[int]:
        """Ids of one word, as ``bpe.encode`` would give them."""
        if word in self.whole_words:
            return [self.whole_words[word]]
        ids = [self.byte_ids[byte] for byte in word]
        return self._merge_long(ids) if len(ids) > _LONG else self._merge_short(ids)

    def _merge_short(self, ids: list[int]) -> list[int]:
        rank, new = self.rank, self.new
        nowhere = len(new)
        ranks = [rank.get(pair, nowhere) for pair in pairwise(ids)]
        while ranks:
            best = min(ranks)
            if best == nowhere:
                break
            i = ranks.index(best)
            ids[i : i + 2] = [new[best]]
            del ranks[i]
            if i:
                ranks[i - 1] = rank.get((ids[i - 1], ids[i]), nowhere)
            if i < len(ranks):
                ranks[i] = rank.get((ids[i], ids[i + 1]), nowhere)
        return ids

    def _merge_long(self, ids: list[int]) -> list[int]:
        """The same in O(n log n): a heap of (rank, place), and links instead of a shrinking list."""
        rank, new = self.rank, self.new
        end = len(ids)
        following = list(range(1, end + 1))
        preceding = list(range(-1, end - 1))
        heap = [(rank[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in rank]
        heapq.heapify(heap)
        while heap:
            best, i = heapq.heappop(heap)
            j = following[i]
            if j >= end or rank.get((ids[i], ids[j])) != best:
                continue  # stale: one of the two has been merged since
            ids[i], ids[j] = new[best], -1
            following[i] = following[j]
            if following[i] < end:
                preceding[following[i]] = i
                self._push(heap, ids, i, following[i])
            if preceding[i] >= 0:
                self._push(heap, ids, preceding[i], i)
        return [i for i in ids if i >= 0]

    def _push(self, heap: list[tuple[int, int]], ids: list[int], i: int, j: int) -> None:
        best = self.rank.get((ids[i], ids[j]))
        if best is not None:
            heapq.heappush(heap, (best, i))

    def encode_word_dropout(self, word: bytes, dropout: float, generator: random.Random) -> list[int]:
        """BPE-dropout: before each merge every candidate is left out with probability ``dropout``.

        Provilkov, Emelianenko and Voita (2020), "BPE-Dropout", https://arxiv.org/abs/1910.13267, algorithm 1.
        """
        ids = [self.byte_ids[byte] for byte in word]
        while True:
            candidates = [
                (self.rank[pair], i)
                for i, pair in enumerate(pairwise(ids))
                if pair in self.rank and generator.random() >= dropout
            ]
            if not candidates:
                return ids
            best, i = min(candidates)
            ids[i : i + 2] = [self.new[best]]


class _Cache(dict[str, list[int]]):
    """Word → ids; a word that is missing is encoded and remembered."""

    def __init__(self, table: MergeTable, limit: int) -> None:
        super().__init__()
        self._table = table
        self._limit = limit

    def __missing__(self, word: str) -> list[int]:
        ids = self._table.encode_word(word.encode())
        if len(word) <= _LONG:
            if len(self) >= self._limit:
                self.clear()
            self[word] = ids
        return ids


class WordEncoder:
    """Encode texts word by word in plain Python.

    Args:
        table: the merges.
        split: text → words.
        cache_words: how many words are remembered.
    """

    def __init__(
        self, table: MergeTable, split: Callable[[str], list[str]], cache_words: int = CACHE_WORDS
    ) -> None:
        self.table = table
        self._split = split
        self._cache = _Cache(table, cache_words)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, which holds no lone surrogate."""
        return list(chain.from_iterable(map(self._cache.__getitem__, self._split(text))))

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """Each word with its ids."""
        return [(word, self._cache[word]) for word in self._split(text)]
