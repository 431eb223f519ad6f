"""Day 16: byte-pair encoding: count, merge, train, encode."""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...tokenizers import bpe
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day16.count_pairs --------------------------------------------------------------------------------------


def _count(words: list[tuple[list[int], int]]) -> dict[tuple[int, int], int]:
    return dict(bpe.count_pairs(words))


def _count_cases() -> list[tuple[Any, ...]]:
    return [
        ([([1, 2, 1, 2], 10), ([2, 1], 1)],),
        ([([7], 5), ([], 2)],),
        ([([3, 3, 3], 2)],),
        ([([1, 2, 3], 1), ([3, 1, 2], 4)],),
        ([],),
    ]


def _count_within(fn: Any) -> None:
    counts = fn([([1, 2], 1), ([3, 4], 1)])
    if (2, 3) in counts:
        raise Wrong("a pair across words: merges never reach across", "(2, 3) was counted in [1, 2] [3, 4]")


def _as_dict(fn: Any) -> Any:
    return lambda words: {tuple(k): v for k, v in dict(fn(words)).items()}


def _counting(pairs: Any = itertools.pairwise, times: Any = lambda n: n) -> Any:
    def count(words: list[tuple[list[int], int]]) -> dict[Any, int]:
        counts: Counter[Any] = Counter()
        for ids, n in words:
            for pair in pairs(ids):
                counts[tuple(pair)] += times(n)
        return dict(counts)

    return count


def _not_overlapping(ids: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(ids[::2], ids[1::2], strict=False))


COUNT_PAIRS = Exercise(
    name="day16.count_pairs",
    title="how often neighbours meet",
    stub='''
def count_pairs(words):
    """words: a list of (ids, how often the word occurs) → a dict (left, right) → count."""
    raise NotImplementedError
''',
    solution=bpe.count_pairs,
    reference=_count,
    steps=(
        Step(
            "returns a dict with a count for each pair",
            lambda fn: same_form(_count, _count_cases, "a dict").test(_as_dict(fn)),
        ),
        leaves_inputs(_count_cases),
        Step("counts within words only", _count_within),
        Step("equals the library", lambda fn: equals(_count, _count_cases, 0).test(_as_dict(fn))),
    ),
    hints=(
        "The pairs of [a, b, c] are (a, b) and (b, c).",
        "itertools.pairwise(ids), or zip(ids, ids[1:]).",
        "counts[pair] = counts.get(pair, 0) + times, for each pair of each word.",
    ),
    cases=_count_cases,
    mutants=(
        Mutant("each word counts once", "add how often the word occurs", _counting(times=lambda n: 1)),
        Mutant("every second pair", "neighbours overlap: (a, b) and (b, c)", _counting(_not_overlapping)),
        Mutant(
            "order ignored",
            "(1, 2) and (2, 1) are two pairs",
            _counting(lambda ids: (tuple(sorted(p)) for p in itertools.pairwise(ids))),
        ),
        Mutant("any two symbols", "neighbours only", _counting(lambda ids: itertools.combinations(ids, 2))),
        Mutant(
            "once a word",
            "a pair that occurs twice in a word counts twice",
            _counting(lambda ids: dict.fromkeys(itertools.pairwise(ids))),
        ),
        Mutant("single symbols", "pairs of neighbours", _counting(lambda ids: ((i, i) for i in ids))),
        Mutant(
            "the last pair is lost",
            "up to the end of the word",
            _counting(lambda ids: itertools.pairwise(ids[:-1])),
        ),
        Mutant(
            "the first pair is lost",
            "from the beginning of the word",
            _counting(lambda ids: itertools.pairwise(ids[1:])),
        ),
        Mutant(
            "a pair across words",
            "merges never reach across",
            lambda words: _counting()([([i for ids, n in words for i in ids * n], 1)]),
        ),
        Mutant("counts squared", "each occurrence once", _counting(times=lambda n: n * n)),
    ),
    alternatives=(
        bpe.count_pairs,
        lambda words: {
            pair: sum(n * sum((a, b) == pair for a, b in itertools.pairwise(ids)) for ids, n in words)
            for pair in {p for ids, _ in words for p in itertools.pairwise(ids)}
        },
    ),
)

# --- day16.merge --------------------------------------------------------------------------------------------


def _merge_cases() -> list[tuple[Any, ...]]:
    return [
        ([7, 7, 7, 5], (7, 7), 9),
        ([1, 2, 3, 1, 2], (1, 2), 256),
        ([], (1, 2), 3),
        ([1], (1, 1), 3),
        ([2, 1, 2, 1], (1, 2), 5),
        ([1, 1, 1, 1, 1], (1, 1), 2),
        ([1, 2, 4], (4, 1), 9),
        ([1, 2, 9], (1, 2), 1),
        ([4, 4], (4, 4), 4),
        ([11, 2, 5], (1, 2), 256),
        ([3, 1, 21], (1, 2), 256),
    ]


def _merge_with(
    step: int = 2, right: bool = False, first_only: bool = False, again: bool = False, order: bool = True
) -> Any:
    def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
        source = ids[::-1] if right else list(ids)
        wanted = {pair[::-1] if right else pair} | (set() if order else {pair[::-1], pair})
        out: list[int] = []
        i, done = 0, False
        while i < len(source):
            if i + 1 < len(source) and (source[i], source[i + 1]) in wanted and not (first_only and done):
                out.append(new_id)
                i, done = i + step, True
            else:
                out.append(source[i])
                i += 1
        out = out[::-1] if right else out
        return merge(out, pair, new_id) if again and out != ids and new_id not in pair else out

    return merge


def _merge_length(fn: Any) -> None:
    got = fn([7, 7, 7, 5], (7, 7), 9)
    if got in ([9, 9, 7, 5], [9, 9, 5]):
        raise Wrong(
            "an overlap merged twice: after a merge go on behind both symbols", f"[7, 7, 7, 5] became {got}"
        )
    if got == [7, 9, 5]:
        raise Wrong(
            "from the right: merge from left to right, so that encoding is the same everywhere", f"{got}"
        )


def _up_to_the_last(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    """The loop that ends where no right neighbour is left."""
    out, i = [], 0
    while i < len(ids) - 1:
        found = (ids[i], ids[i + 1]) == tuple(pair)
        out.append(new_id if found else ids[i])
        i += 2 if found else 1
    return out


def _as_text(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    text = ",".join(map(str, ids)).replace(f"{pair[0]},{pair[1]}", str(new_id))
    return [int(part) for part in text.split(",") if part]


def _merge_in_place(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    ids[:] = bpe.merge(list(ids), pair, new_id)
    return ids


def _by_recursion(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    if len(ids) < 2:
        return list(ids)
    if tuple(ids[:2]) == tuple(pair):
        return [new_id, *_by_recursion(ids[2:], pair, new_id)]
    return [ids[0], *_by_recursion(ids[1:], pair, new_id)]


def _by_stack(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    out: list[tuple[int, bool]] = []  # (symbol, whether it is the new one)
    for i in ids:
        if out and (out[-1][0], i) == tuple(pair) and not out[-1][1]:
            out[-1] = (new_id, True)
        else:
            out.append((i, False))
    return [symbol for symbol, _ in out]


MERGE = Exercise(
    name="day16.merge",
    title="two symbols become one",
    stub='''
def merge(ids, pair, new_id):
    """A new list in which every ``pair`` of neighbours is replaced by ``new_id``, from left to right."""
    raise NotImplementedError
''',
    solution=bpe.merge,
    reference=bpe.merge,
    steps=(
        same_form(bpe.merge, _merge_cases, "a list"),
        leaves_inputs(_merge_cases),
        Step("merges an overlap once, from the left", _merge_length),
        equals(bpe.merge, _merge_cases, 0),
    ),
    hints=(
        "A for loop over positions cannot skip: use a while loop with i.",
        "Where ids[i] and ids[i + 1] are the pair, append new_id and go on at i + 2; else append ids[i] and go on at i + 1.",
        "Mind the last symbol: it has no right neighbour.",
    ),
    cases=_merge_cases,
    mutants=(
        Mutant("an overlap merged twice", "go on behind both symbols: i += 2", _merge_with(step=1)),
        Mutant("from the right", "merge from left to right", _merge_with(right=True)),
        Mutant("only the first", "every occurrence", _merge_with(first_only=True)),
        Mutant("order ignored", "(1, 2) is not (2, 1)", _merge_with(order=False)),
        Mutant(
            "the last symbol is lost",
            "it has no right neighbour, but it stays",
            _up_to_the_last,
        ),
        Mutant("replaced in a text", "the text 11,2 holds 1,2, but the symbol 11 is not 1", _as_text),
        Mutant(
            "the left symbol stays",
            "the new id replaces both",
            lambda ids, p, n: [x for i in bpe.merge(ids, p, -1) for x in ((p[0], n) if i == -1 else (i,))],
        ),
        Mutant("nothing is merged", "replace the pair", lambda ids, p, n: list(ids)),
        Mutant(
            "removed",
            "put new_id in its place",
            lambda ids, p, n: [i for i in bpe.merge(ids, p, -1) if i != -1],
        ),
        Mutant(
            "single symbols replaced",
            "only where both stand side by side",
            lambda ids, p, n: [n if i in p else i for i in ids],
        ),
        Mutant("three symbols at a time", "go on behind the pair: i += 2", _merge_with(step=3)),
        Mutant("input mutated", "return a new list", _merge_in_place),
    ),
    alternatives=(_by_recursion, _by_stack),
)

# --- day16.encode -------------------------------------------------------------------------------------------

_MERGES = [
    (98, 99),
    (97, 98),
    (257, 99),
    (97, 97),
    (256, 100),
    (100, 100),
    (97, 257),
]  # bc ab abc aa bcd dd aab


def _encode_cases() -> list[tuple[Any, ...]]:
    words = [
        b"abc",
        b"bcab",
        b"",
        b"a",
        b"bcbcbc",
        b"ddddd",
        b"xyz",
        b"aabcc",
        b"abcabab",
        b"bcd",
        b"bcdd",
        b"aabab",
    ]
    return [(word, list(_MERGES)) for word in words]


def _encode_with(
    choose: Any = lambda known, rank: min(known, key=rank.__getitem__), once: bool = False
) -> Any:
    def encode(word: bytes, merges: list[tuple[int, int]]) -> list[int]:
        rank = {pair: i for i, pair in enumerate(merges)}
        ids = list(word)
        while len(ids) > 1:
            known = [p for p in itertools.pairwise(ids) if p in rank]
            if not known:
                break
            pair = choose(known, rank)
            ids = bpe.merge(ids, pair, 256 + rank[pair])
            if once:
                break
        return ids

    return encode


def _greedy_longest(word: bytes, merges: list[tuple[int, int]]) -> list[int]:
    vocab = {i: bytes([i]) for i in range(256)}
    for i, (a, b) in enumerate(merges):
        vocab[256 + i] = vocab[a] + vocab[b]
    ids, start = [], 0
    while start < len(word):
        best = max(
            (i for i, token in vocab.items() if word.startswith(token, start)), key=lambda i: len(vocab[i])
        )
        ids.append(best)
        start += len(vocab[best])
    return ids


def _by_rule_order(word: bytes, merges: list[tuple[int, int]]) -> list[int]:
    """Apply the rules one after another: the same, since a rule only makes pairs of later rules."""
    ids = list(word)
    for i, pair in enumerate(merges):
        ids = bpe.merge(ids, pair, 256 + i)
    return ids


def _encode_decodes(fn: Any) -> None:
    for word, merges in _encode_cases():
        got = fn(word, list(merges))
        if bpe.decode(got, merges) != word:
            raise Wrong("other bytes come back: encoding must lose nothing", f"{word!r} → {got}")


ENCODE = Exercise(
    name="day16.encode",
    title="apply the merges, the earliest learned first",
    stub='''
def encode(word, merges):
    """Ids of one word (bytes); merges[i] is the pair (left, right) that became the id 256 + i.

    While any pair of the list is there, merge the one that was learned first.
    """
    raise NotImplementedError
''',
    solution=bpe.encode,
    reference=bpe.encode,
    steps=(
        same_form(bpe.encode, _encode_cases, "a list"),
        leaves_inputs(_encode_cases),
        Step("loses nothing", _encode_decodes),
        equals(bpe.encode, _encode_cases, 0, "equals the library"),
    ),
    hints=(
        "Start with list(word). Which pairs are there? Which of them was learned first?",
        "rank = {pair: i for i, pair in enumerate(merges)}; take the pair of smallest rank, merge it everywhere, look again.",
        "Stop when no pair has a rank, or only one symbol is left. The new id is 256 + rank.",
    ),
    cases=_encode_cases,
    mutants=(
        Mutant(
            "the latest first",
            "training made early merges before late ones: so must encoding",
            _encode_with(lambda known, rank: max(known, key=rank.__getitem__)),
        ),
        Mutant("from the left", "rank decides, not place", _encode_with(lambda known, rank: known[0])),
        Mutant(
            "the most frequent first",
            "frequency decided in training; here rank does",
            _encode_with(lambda known, rank: Counter(known).most_common(1)[0][0]),
        ),
        Mutant("longest token first", "that is another algorithm, with other ids", _greedy_longest),
        Mutant("one merge only", "go on while any pair is left", _encode_with(once=True)),
        Mutant("bytes only", "apply the merges", lambda w, m: list(w)),
        Mutant(
            "ids from 0",
            "the first 256 ids are the bytes: 256 + rank",
            lambda w, m: [i - 256 if i > 255 else i for i in bpe.encode(w, m)],
        ),
        Mutant(
            "ids off by one",
            "merges[0] is id 256",
            lambda w, m: [i + 1 if i > 255 else i for i in bpe.encode(w, m)],
        ),
        Mutant(
            "only pairs of bytes",
            "merged symbols merge again",
            lambda w, m: (lambda early: [i for i in early])(
                _encode_with()(w, [p if max(p) < 256 else (-1, -1) for p in m])
            ),
        ),
        Mutant("backwards", "keep the order of the symbols", lambda w, m: bpe.encode(w, m)[::-1]),
    ),
    alternatives=(_by_rule_order, _encode_with()),
)

# --- day16.train --------------------------------------------------------------------------------------------


def _train(words: list[tuple[list[int], int]], n_merges: int) -> list[tuple[int, int]]:
    return bpe.train(words, n_merges)


def _train_cases() -> list[tuple[Any, ...]]:
    def word(text: str, times: int) -> tuple[list[int], int]:
        return (list(text.encode()), times)

    return [
        ([word("aaabdaaabac", 1)], 3),
        ([word("low", 5), word("lower", 2), word("newest", 6), word("widest", 3)], 10),
        ([word("ab", 2), word("cd", 2), word("ba", 2)], 4),
        ([word("aaaa", 1)], 9),
        ([], 3),
        ([word("zzyy", 3), word("yyzz", 3)], 3),
        ([([1, 1, 1], 2), ([2, 3], 3)], 1),
    ]


def _count_apart(words: list[tuple[list[int], int]]) -> dict[tuple[int, int], int]:
    """How often each pair could be merged: occurrences that do not overlap, as str.count counts."""
    return {
        pair: sum(n * (len(ids) - len(bpe.merge(ids, pair, -1))) for ids, n in words)
        for pair in bpe.count_pairs(words)
    }


def _train_with(
    prefer: Any = bpe.smaller_pair,
    new_id: Any = lambda i: 256 + i,
    recount: bool = True,
    weigh: bool = True,
    count: Any = bpe.count_pairs,
) -> Any:
    def train(words: list[tuple[list[int], int]], n_merges: int) -> list[tuple[int, int]]:
        words = [(list(ids), n if weigh else 1) for ids, n in words]
        counts = count(words)
        merges: list[tuple[int, int]] = []
        while len(merges) < n_merges:
            if recount:
                counts = count(words)
            if not counts:
                break
            pair = max(counts, key=lambda p: (counts[p], prefer(p)))
            if not recount:
                del counts[pair]
            words = [(bpe.merge(ids, pair, new_id(len(merges))), n) for ids, n in words]
            merges.append(pair)
        return merges

    return train


def _train_stops(fn: Any) -> None:
    got = fn([([97, 97], 1)], 5)
    if len(got) != 1:
        raise Wrong(
            "it does not stop: when no pair is left there is nothing to learn",
            f"'aa' has one pair, {len(got)} merges came back",
        )


TRAIN = Exercise(
    name="day16.train",
    title="learn the merges",
    stub='''
def train(words, n_merges):
    """words: a list of (ids, how often) → the merges, a list of pairs; the i-th makes the symbol 256 + i.

    Again and again the most frequent pair is merged everywhere; of pairs equally frequent, the smaller (left,
    right) wins. Fewer merges come back when no pair is left.
    """
    raise NotImplementedError
''',
    solution=bpe.train,
    reference=_train,
    steps=(
        same_form(_train, _train_cases, "a list of pairs"),
        leaves_inputs(_train_cases),
        Step("stops when no pair is left", _train_stops),
        equals(_train, _train_cases, 0, "learns the library's merges"),
    ),
    hints=(
        "A loop: count pairs, choose one, merge it in every word, note it.",
        "Counts change with every merge: count again (the fast trainer only updates what changed).",
        "max(counts, key=lambda p: (counts[p], -p[0], -p[1])) breaks ties by the smaller pair.",
    ),
    cases=_train_cases,
    mutants=(
        Mutant(
            "ties by the larger pair",
            "of equals the smaller (left, right) wins",
            _train_with(prefer=lambda p: p),
        ),
        Mutant(
            "ties by who came first",
            "of equals the smaller (left, right) wins, so that order of words does not matter",
            _train_with(prefer=lambda p: 0),
        ),
        Mutant(
            "ties by the right symbol",
            "compare the left ids first",
            _train_with(prefer=lambda p: (-p[1], -p[0])),
        ),
        Mutant("counted once only", "counts change with every merge", _train_with(recount=False)),
        Mutant("words count once", "a word that occurs six times counts six times", _train_with(weigh=False)),
        Mutant(
            "the rarest first",
            "the most frequent pair",
            lambda w, n: (lambda c: sorted(c, key=lambda p: (c[p], p))[:n])(bpe.count_pairs(w)),
        ),
        Mutant("one merge too few", "n_merges of them", lambda w, n: bpe.train(w, n - 1)),
        Mutant("one merge too many", "n_merges of them", lambda w, n: bpe.train(w, n + 1)),
        Mutant(
            "counted without overlaps",
            "1, 1, 1 holds the pair (1, 1) twice, whatever can be merged",
            _train_with(count=_count_apart),
        ),
        Mutant("symbols from 257", "the i-th merge makes 256 + i", _train_with(new_id=lambda i: 257 + i)),
        Mutant(
            "stops at pairs seen once",
            "rare pairs are merged too, as long as there are any",
            lambda w, n: bpe.train(w, n, min_frequency=2),
        ),
    ),
    alternatives=(_train_with(), lambda words, n: bpe.train(words, n, prefer=lambda p: (-p[0], -p[1]))),
)

EXERCISES = (COUNT_PAIRS, MERGE, ENCODE, TRAIN)
