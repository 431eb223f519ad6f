"""Learning byte-pair merges in plain Python: the readable form of what ``fast_trainer`` runs compiled.

The counts of pairs are kept up to date instead of being made anew after every merge. A merge changes only the
pairs around the places where it happens, and each pair knows its places.
"""

import heapq
from collections.abc import Callable
from typing import Any

from .tie_breaks import TieBreak
from .word_counts import WordCounts

Pair = tuple[int, int]
_REPORT_EVERY = 250  # merges between two updates of the progress bar


class _GreaterFirst:
    """A pair of byte strings in reversed order: ``heapq`` pops the smallest, and the greatest is wanted."""

    __slots__ = ("value",)

    def __init__(self, value: tuple[bytes, bytes]) -> None:
        self.value = value

    def __lt__(self, other: "_GreaterFirst") -> bool:
        return self.value > other.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _GreaterFirst) and self.value == other.value


class _Symbols:
    """Every unique word as a linked list of token ids, and where each pair of neighbours occurs.

    All words share four lists; a symbol is addressed by its place in them. Merging at place ``i`` puts the
    new id at ``i`` and unlinks the symbol after it.

    Attributes:
        ids: token id at each place; -1 once it was merged into the symbol before it.
        before: place of the previous symbol of the word; -1 for its first.
        after: place of the next symbol of the word; -1 for its last.
        times: how often the word occurs in the text.
        pair_counts: occurrences of each pair in the text.
        places: where each pair's left symbol was seen, ascending. Places are not removed when a neighbouring
            merge makes them outdated: check with ``is_at``.
    """

    def __init__(self, counts: WordCounts, id_of: dict[int, int]) -> None:
        self.ids: list[int] = []
        self.before: list[int] = []
        self.after: list[int] = []
        self.times: list[int] = []
        for word, count in counts.items():
            start, n = len(self.ids), len(word)
            self.ids += [id_of[byte] for byte in word]
            self.before += [-1, *range(start, start + n - 1)]
            self.after += [*range(start + 1, start + n), -1]
            self.times += [count] * n
        self.pair_counts: dict[Pair, int] = {}
        self.places: dict[Pair, list[int]] = {}
        for i, j in enumerate(self.after):
            if j >= 0:
                self._add((self.ids[i], self.ids[j]), i)

    def _add(self, pair: Pair, i: int) -> bool:
        """Count ``pair`` at place ``i``; whether it is the pair's first occurrence."""
        is_new = pair not in self.pair_counts
        if is_new:
            self.pair_counts[pair] = self.times[i]
            self.places[pair] = [i]
        else:
            self.pair_counts[pair] += self.times[i]
            self.places[pair].append(i)
        return is_new

    def is_at(self, pair: Pair, i: int) -> bool:
        """Whether ``pair`` still stands at place ``i``."""
        j = self.after[i]
        return self.ids[i] == pair[0] and j >= 0 and self.ids[j] == pair[1]

    def first_place(self, pair: Pair) -> int:
        """Where ``pair`` occurs first; outdated places before it are dropped (if all are, the last stays)."""
        seen = self.places[pair]
        first = next((n for n, i in enumerate(seen) if self.is_at(pair, i)), len(seen) - 1)
        del seen[:first]
        return seen[0]

    def merge(self, pair: Pair, new: int) -> list[Pair]:
        """Put the id ``new`` in place of every ``pair``; return the pairs that never occurred before."""
        left, right = pair
        made: list[Pair] = []
        for i in self.places.pop(pair):
            if not self.is_at(pair, i):
                continue
            j = self.after[i]
            self.ids[i], self.ids[j] = new, -1
            previous, following = self.before[i], self.after[j]
            self.after[i] = following
            if previous >= 0:  # (x, left) becomes (x, new)
                x = self.ids[previous]
                self.pair_counts[x, left] -= self.times[i]
                if self._add((x, new), previous):
                    made.append((x, new))
            if following >= 0:  # (right, x) becomes (new, x)
                self.before[following] = i
                x = self.ids[following]
                self.pair_counts[right, x] -= self.times[i]
                if self._add((new, x), i):
                    made.append((new, x))
        self.pair_counts[pair] = 0
        return made


def learn_plain(
    counts: WordCounts, n_merges: int, tie_break: TieBreak, min_count: int, report: Callable[[int, int], None]
) -> list[Pair]:
    """Merge the most frequent pair, ``n_merges`` times or until none occurs ``min_count`` times.

    Candidates wait in a heap. The count of a pair that exists already can only fall, so its entry is never
    too low: one that turns out too high when it is popped goes back with the present count.

    Args:
        counts: unique words and how often each occurs.
        n_merges: most merges to learn.
        tie_break: which of several equally frequent pairs goes first.
        min_count: pairs that occur less often are not merged.
        report: told (merges done, ``n_merges``) now and then.

    Returns:
        The merged pairs of ids, in order; the n-th makes id 256 + n.
    """
    symbols = _Symbols(counts, {byte: i for i, byte in enumerate(tie_break.byte_order)})
    pair_counts = symbols.pair_counts
    token_bytes = [bytes([byte]) for byte in tie_break.byte_order]

    def tie(pair: Pair) -> Any:
        """What equally frequent pairs are ordered by, the smallest first."""
        if tie_break.name == "cs336":
            return _GreaterFirst((token_bytes[pair[0]], token_bytes[pair[1]]))
        if tie_break.name == "minbpe":
            return symbols.first_place(pair)
        return pair

    heap = [(-count, tie(pair), pair) for pair, count in pair_counts.items() if count >= min_count]
    heapq.heapify(heap)
    ties_move = tie_break.name == "minbpe"  # a merge can destroy a pair's first occurrence
    merges: list[Pair] = []
    while heap and len(merges) < n_merges:
        minus_count, key, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count < min_count:
            continue
        if -minus_count != count or (ties_move and tie(pair) != key):  # the entry is out of date
            heapq.heappush(heap, (-count, tie(pair), pair))
            continue
        new = 256 + len(merges)
        merges.append(pair)
        token_bytes.append(token_bytes[pair[0]] + token_bytes[pair[1]])
        for made in symbols.merge(pair, new):
            if pair_counts[made] >= min_count:
                heapq.heappush(heap, (-pair_counts[made], tie(made), made))
        if len(merges) % _REPORT_EVERY == 0:
            report(len(merges), n_merges)
    report(len(merges), n_merges)
    return merges
