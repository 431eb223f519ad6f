"""Byte-pair encoding, written to be read.

Sennrich, Haddow and Birch (2016), "Neural Machine Translation of Rare Words with Subword Units",
https://arxiv.org/abs/1508.07909, section 3.2; over bytes as in GPT-2 (Radford et al., 2019, section 2.2).

Train: start from single symbols and, again and again, give the most frequent pair of neighbours a symbol of
its own. Encode: apply the learned merges to new text, the earliest learned first. Decode: look every symbol
up.

The Wikipedia example (https://en.wikipedia.org/wiki/Byte_pair_encoding), where Z=aa, Y=ab and X=ZY:

    >>> merges = train([(list(b"aaabdaaabac"), 1)], 3)
    >>> merges
    [(97, 97), (97, 98), (256, 257)]
    >>> ids = encode(b"aaabdaaabac", merges)
    >>> ids  # X d X a c
    [258, 100, 258, 97, 99]
    >>> decode(ids, merges)
    b'aaabdaaabac'

Everything fast in this package is tested to give exactly what this file gives.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable

Pair = tuple[int, int]


def count_pairs(words: Iterable[tuple[list[int], int]]) -> Counter[Pair]:
    """How often each pair of neighbours occurs, each word counted as often as the text has it.

    Example:
        >>> count_pairs([([1, 2, 1, 2], 10), ([2, 1], 1)])
        Counter({(1, 2): 20, (2, 1): 11})
    """
    counts: Counter[Pair] = Counter()
    for ids, times in words:
        for pair in itertools.pairwise(ids):
            counts[pair] += times
    return counts


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replace every ``pair`` by ``new_id``, from left to right, so that an overlap merges once.

    Example:
        >>> merge([7, 7, 7, 5], (7, 7), 9)
        [9, 7, 5]
    """
    merged = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            merged.append(new_id)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def smaller_pair(pair: Pair) -> tuple[int, int]:
    """Hugging Face's rule for equal counts: the smaller ids win (``max`` sees them negated)."""
    return -pair[0], -pair[1]


def train(
    words: Iterable[tuple[list[int], int]],
    n_merges: int,
    *,
    first_id: int = 256,
    min_frequency: int = 1,
    prefer: Callable[[Pair], tuple] = smaller_pair,
) -> list[Pair]:
    """Learn ``n_merges`` merges; the i-th makes the symbol ``first_id + i``.

    Args:
        words: (ids, how often the word occurs); pairs never reach across words.
        n_merges: how many to learn; fewer are returned when no pair is left.
        first_id: id of the first new symbol.
        min_frequency: stop when the best pair is rarer than this.
        prefer: among pairs of equal count the one with the greatest ``prefer(pair)`` wins.
    """
    words = [(list(ids), times) for ids, times in words]
    merges: list[Pair] = []
    while len(merges) < n_merges:
        counts = count_pairs(words)
        if not counts:
            break
        pair = max(counts, key=lambda p: (counts[p], prefer(p)))
        if counts[pair] < min_frequency:
            break
        new_id = first_id + len(merges)
        words = [(merge(ids, pair, new_id), times) for ids, times in words]
        merges.append(pair)
    return merges


def encode(word: bytes, merges: list[Pair]) -> list[int]:
    """Ids of one word: while any learned pair is left, merge the one learned first.

    Example:
        >>> encode(b"hello", [(108, 108), (104, 101), (257, 256)])  # ll, he, he+ll
        [258, 111]
    """
    rank = {pair: i for i, pair in enumerate(merges)}
    ids = list(word)
    while len(ids) > 1:
        pair = min(itertools.pairwise(ids), key=lambda p: rank.get(p, len(merges)))
        if pair not in rank:
            break
        ids = merge(ids, pair, 256 + rank[pair])
    return ids


def decode(ids: Iterable[int], merges: list[Pair]) -> bytes:
    """Bytes of ``ids``: each symbol is the bytes of the pair it was made from."""
    vocab = {i: bytes([i]) for i in range(256)}
    for i, (left, right) in enumerate(merges):
        vocab[256 + i] = vocab[left] + vocab[right]
    return b"".join(vocab[i] for i in ids)
