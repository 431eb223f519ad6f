"""Learning merges in plain Python."""

import heapq
from collections.abc import Callable
from typing import Any

from .tie_breaks import TieBreak
from .word_counts import WordCounts

_REPORT_EVERY = 250  # merges between two updates of the progress bar


class _GreaterFirst:
    """Bytes that sort the other way round, for a heap that gives the smallest."""

    __slots__ = ("value",)

    def __init__(self, value: tuple[bytes, bytes]) -> None:
        self.value = value

    def __lt__(self, other: "_GreaterFirst") -> bool:
        return self.value > other.value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _GreaterFirst) and self.value == other.value


def learn_plain(
    counts: WordCounts, n_merges: int, tie_break: TieBreak, min_count: int, report: Callable[[int, int], None]
) -> list[tuple[int, int]]:
    """The trainer in plain Python.

    Symbols of all words stand in one list, linked to their neighbours (-1: none) so that a merge touches
    only its surroundings. Every pair lists the places it was seen at, in ascending order; a place is never
    removed, only found stale. A count only falls once its pair exists, so a heap entry found stale is put
    back lower.
    """
    id_of = {byte: i for i, byte in enumerate(tie_break.byte_order)}
    symbols: list[int] = []
    before: list[int] = []
    after: list[int] = []
    times: list[int] = []
    for word, count in counts.items():
        start, n = len(symbols), len(word)
        symbols += [id_of[byte] for byte in word]
        before += [-1, *range(start, start + n - 1)]
        after += [*range(start + 1, start + n), -1]
        times += [count] * n

    pair_counts: dict[tuple[int, int], int] = {}
    places: dict[tuple[int, int], list[int]] = {}
    for i, j in enumerate(after):
        if j >= 0:
            pair = symbols[i], symbols[j]
            pair_counts[pair] = pair_counts.get(pair, 0) + times[i]
            places.setdefault(pair, []).append(i)

    token = [bytes([byte]) for byte in tie_break.byte_order]

    def tie(pair: tuple[int, int]) -> Any:
        if tie_break.name == "cs336":
            return _GreaterFirst((token[pair[0]], token[pair[1]]))
        if tie_break.name == "minbpe":
            left, right = pair
            seen = places[pair]
            fresh = next(
                (
                    n
                    for n, i in enumerate(seen)
                    if symbols[i] == left and symbols[after[i]] == right and after[i] >= 0
                ),
                len(seen) - 1,
            )
            del seen[:fresh]
            return seen[0]
        return pair

    heap = [(-count, tie(pair), pair) for pair, count in pair_counts.items() if count >= min_count]
    heapq.heapify(heap)
    moving_tie = tie_break.name == "minbpe"
    merges: list[tuple[int, int]] = []
    while heap and len(merges) < n_merges:
        minus_count, key, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count < min_count:
            continue
        if -minus_count != count or (moving_tie and tie(pair) != key):
            heapq.heappush(heap, (-count, tie(pair), pair))
            continue
        left, right = pair
        new = 256 + len(merges)
        merges.append(pair)
        token.append(token[left] + token[right])
        fresh: dict[tuple[int, int], None] = {}
        for i in places.pop(pair):
            j = after[i]
            if symbols[i] != left or j < 0 or symbols[j] != right:
                continue
            weight = times[i]
            symbols[i], symbols[j] = new, -1
            p, n = before[i], after[j]
            after[i] = n
            if p >= 0:
                neighbour = symbols[p]
                pair_counts[neighbour, left] -= weight
                made = neighbour, new
                if made in pair_counts:
                    pair_counts[made] += weight
                    places[made].append(p)
                else:
                    pair_counts[made] = weight
                    places[made] = [p]
                    fresh[made] = None
            if n >= 0:
                before[n] = i
                neighbour = symbols[n]
                pair_counts[right, neighbour] -= weight
                made = new, neighbour
                if made in pair_counts:
                    pair_counts[made] += weight
                    places[made].append(i)
                else:
                    pair_counts[made] = weight
                    places[made] = [i]
                    fresh[made] = None
        pair_counts[pair] = 0
        for made in fresh:
            if pair_counts[made] >= min_count:
                heapq.heappush(heap, (-pair_counts[made], tie(made), made))
        if len(merges) % _REPORT_EVERY == 0:
            report(len(merges), n_merges)
    report(len(merges), n_merges)
    return merges
