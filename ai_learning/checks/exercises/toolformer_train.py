"""Day 13: calls put into a text, and decoding that stops to make one."""

from collections.abc import Callable
from typing import Any

from ...toolformer import best_calls, generate_with_tools, interleave_ids
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day13.best_calls ---------------------------------------------------------------------------------------

Judged = tuple[int, float, list[int]]
"""a place, L⁻ − L⁺ there, and the ids of e(c, r)"""


def _best(calls: list[Judged], tau: float) -> list[Judged]:
    best: dict[int, Judged] = {}
    for call in calls:
        if call[1] >= tau and (call[0] not in best or call[1] > best[call[0]][1]):
            best[call[0]] = call
    return [best[place] for place in sorted(best)]


def _best_cases() -> list[tuple[Any, ...]]:
    return [
        ([(4, 1.5, [90, 1, 91]), (4, 2.5, [90, 2, 91]), (2, 1.2, [90, 3, 91])], 1.0),
        ([(1, 0.9, [90, 4]), (3, 1.0, [90, 5]), (3, 0.2, [90, 6])], 1.0),
        ([(5, -0.4, [90, 7]), (5, -0.1, [90, 8]), (0, 0.1, [90, 9])], 0.0),
        ([(7, 3.0, [90, 1]), (6, 2.0, [90, 2]), (7, 2.9, [90, 3]), (5, 0.4, [90, 4])], 0.5),
        ([(1, 2.0, [90, 1]), (3, 3.0, [90, 2]), (5, 1.0, [90, 3]), (6, 0.3, [90, 4])], 0.6),
        ([], 1.0),
    ]


def _at_threshold(fn: Any) -> None:
    if fn([(3, 1.0, [90])], 1.0) != [(3, 1.0, [90])]:
        raise Wrong("the threshold itself passes: L⁻ − L⁺ ≥ τ_f", "a gain of 1.0 at τ_f = 1.0 was dropped")


BEST_CALLS = Exercise(
    name="day13.best_calls",
    title="which of the judged calls go into C*",
    stub='''
def best_calls(calls, tau):
    """The calls that go into the text: at most one at each place, in order of place.

    calls is a list of (place, gain, ids), gain being L⁻ − L⁺. A call needs a gain of tau or more (equation of
    section 2); of several at one place the one with the greatest gain stays.
    """
    raise NotImplementedError
''',
    solution=best_calls,
    reference=_best,
    steps=(
        same_form(_best, _best_cases, "a list of calls"),
        leaves_inputs(_best_cases),
        Step("keeps what just passes", _at_threshold),
        equals(_best, _best_cases, 0),
    ),
    hints=(
        "Two questions: does it pass, and is it the best at its place?",
        "A dictionary place → best call so far; then its values in the order of the places.",
        "if gain >= tau and (place not in best or gain > best[place][1]): best[place] = call",
    ),
    cases=_best_cases,
    mutants=(
        Mutant("no threshold", "a call needs a gain of tau", lambda c, t: _best(c, float("-inf"))),
        Mutant(
            "the threshold itself is dropped",
            "L⁻ − L⁺ ≥ τ_f: equal passes",
            lambda c, t: _best([x for x in c if x[1] > t], t),
        ),
        Mutant(
            "all calls at a place",
            "only the best one stays at each place",
            lambda c, t: sorted((x for x in c if x[1] >= t), key=lambda x: x[0]),
        ),
        Mutant(
            "the first at each place",
            "the one with the greatest gain, not the one that was sampled first",
            lambda c, t: [
                next(x for x in c if x[0] == p and x[1] >= t) for p in sorted({x[0] for x in c if x[1] >= t})
            ],
        ),
        Mutant(
            "the last at each place",
            "a dictionary that is simply overwritten keeps the last, not the best",
            lambda c, t: [x for _, x in sorted({x[0]: x for x in c if x[1] >= t}.items())],
        ),
        Mutant(
            "the worst at each place",
            "greatest gain: L⁻ − L⁺ is what the call saves",
            lambda c, t: [
                min((x for x in c if x[0] == p and x[1] >= t), key=lambda x: x[1])
                for p in sorted({x[0] for x in c if x[1] >= t})
            ],
        ),
        Mutant(
            "one call for the whole text",
            "one at each place",
            lambda c, t: sorted(_best(c, t), key=lambda x: -x[1])[:1],
        ),
        Mutant(
            "in order of gain",
            "in order of place: they are put into the text from left to right",
            lambda c, t: sorted(_best(c, t), key=lambda x: -x[1]),
        ),
        Mutant("in reverse", "from left to right", lambda c, t: _best(c, t)[::-1]),
        Mutant(
            "best first, threshold forgotten after",
            "what does not pass must not stand, even alone at its place",
            lambda c, t: _best(c, min(t, 0.0)),
        ),
        Mutant(
            "the sign is turned",
            "keep L⁻ − L⁺ ≥ τ_f",
            lambda c, t: _best([x for x in c if -x[1] >= t], float("-inf")),
        ),
    ),
    alternatives=(
        lambda c, t: [
            max((x for x in c if x[0] == p), key=lambda x: x[1])
            for p in sorted({x[0] for x in c if x[1] >= t})
        ],
        lambda c, t: [
            x for _, x in sorted({x[0]: x for x in sorted(c, key=lambda x: x[1]) if x[1] >= t}.items())
        ],
    ),
)

# --- day13.interleave ---------------------------------------------------------------------------------------


def _interleave(ids: list[int], calls: list[tuple[int, list[int]]]) -> list[int]:
    row: list[int] = []
    place = 0
    for position, call in calls:
        row += ids[place:position] + call
        place = position
    return row + ids[place:]


def _interleave_cases() -> list[tuple[Any, ...]]:
    return [
        ([1, 2, 3, 4, 5], [(2, [90, 7, 91])]),
        ([1, 2, 3, 4, 5], [(1, [90, 7, 91]), (4, [90, 8, 92, 91])]),
        ([1, 2, 3], [(0, [90, 91])]),
        ([1, 2, 3], []),
        ([5, 6, 7, 8, 9, 10], [(3, [90, 5, 91]), (5, [90, 6, 91])]),
    ]


def _nested(ids: list[int], calls: list[tuple[int, list[int]]]) -> list[Any]:
    row: list[Any] = list(ids)
    for place, call in calls[::-1]:
        row.insert(place, call)
    return row


def _text_stays(fn: Any) -> None:
    for ids, calls in _interleave_cases():
        row = fn(list(ids), list(calls))
        if any(isinstance(i, list | tuple) for i in row):
            raise Wrong("a list inside the row: a call's ids go in one by one", f"{row}")
        left = [i for i in row if i < 80]
        inside = [i for _, call in calls for i in call if i < 80]
        if sorted(left) != sorted(ids + inside):
            raise Wrong(
                "text is lost or doubled: x* is x with calls in it, and nothing else changes", f"{left}"
            )


INTERLEAVE = Exercise(
    name="day13.interleave",
    title="x*: a text with its calls",
    stub='''
def interleave(ids, calls):
    """x*: the ids of a text with the ids of its calls between them (section 2, "Model finetuning").

    calls is a list of (place, ids of e(c, r)) in order of place; a call at place i stands before ids[i].
    """
    raise NotImplementedError
''',
    solution=interleave_ids,
    reference=_interleave,
    steps=(
        same_form(_interleave, _interleave_cases, "a list of ids"),
        leaves_inputs(_interleave_cases),
        Step("keeps the text", _text_stays),
        equals(_interleave, _interleave_cases, 0),
    ),
    hints=(
        "Places count the ids of the plain text: what happens to them once the first call is in?",
        "Build a new row: the text up to the place, the call, and on from there; the rest at the end.",
        "for place, call in calls: row += ids[done:place] + call; done = place … then row + ids[done:]",
    ),
    cases=_interleave_cases,
    mutants=(
        Mutant(
            "after the token",
            "a call at i stands before x_i: it must be there when x_i is predicted",
            lambda x, c: _interleave(x, [(i + 1, z) for i, z in c]),
        ),
        Mutant(
            "one place early",
            "before ids[i], not before ids[i − 1]",
            lambda x, c: _interleave(x, [(max(0, i - 1), z) for i, z in c]),
        ),
        Mutant(
            "places move",
            "after the first insertion the later places are further right: build a new row, or go from right to left",
            lambda x, c: _inserted(x, c),
        ),
        Mutant(
            "a list inside the row",
            "insert puts the call in as one item: row[place:place] = call puts its ids in",
            _nested,
        ),
        Mutant(
            "all calls in front",
            "that is how the filter scores them (footnote 4); in C* they stand at their places",
            lambda x, c: [i for _, z in c for i in z] + x,
        ),
        Mutant(
            "all calls at the end",
            "a call must come before what it helps with",
            lambda x, c: x + [i for _, z in c for i in z],
        ),
        Mutant("the calls are missing", "that is C, not C*", lambda x, c: list(x)),
        Mutant("only the first call", "every call of the list", lambda x, c: _interleave(x, c[:1])),
        Mutant("only the last call", "every call of the list", lambda x, c: _interleave(x, c[-1:])),
        Mutant(
            "the rest is lost",
            "text goes on after the last call",
            lambda x, c: _interleave(x, c)[: c[-1][0] + sum(len(z) for _, z in c)] if c else list(x),
        ),
        Mutant(
            "the token is replaced",
            "x_i stays: the call is put before it",
            lambda x, c: _without(x, c),
        ),
        Mutant(
            "the marks are lost",
            "the whole of e(c, r), with <API> and </API>",
            lambda x, c: _interleave(x, [(i, z[1:-1]) for i, z in c]),
        ),
    ),
    alternatives=(
        lambda x, c: [i for p, t in enumerate([*x, None]) for i in [*dict(c).get(p, []), t] if i is not None],
        lambda x, c: _from_the_right(x, c),
    ),
)


def _inserted(ids: list[int], calls: list[tuple[int, list[int]]]) -> list[int]:
    row = list(ids)
    for place, call in calls:
        row[place:place] = call
    return row


def _from_the_right(ids: list[int], calls: list[tuple[int, list[int]]]) -> list[int]:
    return _inserted(ids, calls[::-1])


def _without(ids: list[int], calls: list[tuple[int, list[int]]]) -> list[int]:
    row = list(ids)
    for place, call in calls[::-1]:
        row[place : place + 1] = call
    return row


# --- day13.decode -------------------------------------------------------------------------------------------

Step_ = Callable[[list[int]], int]
START, ARROW, CLOSE, END = 90, 91, 92, 99


def _decode(
    step: Step_, tool: Callable[[list[int]], list[int]], ids: list[int], length: int, most: int = 1
) -> list[int]:
    ids, made, end = list(ids), 0, len(ids) + length
    while len(ids) < end:
        new = step(ids)
        if new == START and made == most:
            break
        ids.append(new)
        if new == ARROW:
            begin = len(ids) - 1 - ids[::-1].index(START)
            result = [*tool(ids[begin + 1 : -1]), CLOSE]
            ids += result
            end += len(result)
            made += 1
        if new == END:
            break
    return ids


def _script(*new: int, after: int | None = None) -> Step_:
    """A model that says what is written here, by how many ids it has said since the prompt."""
    return _Script(new)


class _Script:
    """Says its lines in order; ids that a tool put in do not count. Knows its place from the ids alone."""

    def __init__(self, lines: tuple[int, ...]) -> None:
        self.lines = lines

    def __call__(self, ids: list[int]) -> int:
        said, inside = 0, False
        for i in ids:
            if i >= 200:  # the prompt
                continue
            if not inside:
                said += 1
            if i == ARROW:
                inside = True
            if i == CLOSE:
                inside = False
        return self.lines[said] if said < len(self.lines) else END

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Script) and other.lines == self.lines

    __hash__ = None  # type: ignore[assignment]


def _double(argument: list[int]) -> list[int]:
    return [2 * i for i in argument]


def _decode_cases() -> list[tuple[Any, ...]]:
    return [
        (_Script((1, START, 7, 8, ARROW, 2, 3, END)), _double, [200, 201], 20),
        (_Script((START, 5, ARROW, 2, END)), _double, [200], 20),
        (_Script((1, 2, 3, END)), _double, [200], 20),
        (_Script((1, START, 7, ARROW, 2, START, 9, ARROW, 3, END)), _double, [200], 20),
        (_Script((START, 5, 6, ARROW, 1, 2, 3, 4, 5, 6, 7, 8)), _double, [200], 7),
    ]


def _result_is_in(fn: Any) -> None:
    got = fn(_Script((START, 5, ARROW, 2, END)), _double, [200], 20)
    if ARROW in got and got[got.index(ARROW) + 1 : got.index(ARROW) + 2] != [10]:
        raise Wrong("the result does not follow →: the model goes on as if it knew it", f"{got}")


DECODE = Exercise(
    name="day13.decode",
    title="decoding that stops to ask a tool",
    stub='''
START, ARROW, CLOSE, END = 90, 91, 92, 99  # <API>, →, </API>, end of text


def decode(step, tool, ids, length):
    """Continue ids greedily with at most one call (section 2, "Inference"). Returns prompt and continuation.

    step(ids) is the likeliest next id. When the model writes ARROW, put tool(argument)'s ids and CLOSE in; the
    argument is what stands between START and ARROW. Then go on. It ends with END (kept), or after ``length`` ids
    that the model wrote (what the tool put in does not count), or where the model would begin a second call.
    """
    raise NotImplementedError
''',
    solution=generate_with_tools,
    reference=_decode,
    steps=(
        same_form(_decode, _decode_cases, "a list of ids"),
        leaves_inputs(_decode_cases),
        Step("puts the result in", _result_is_in),
        equals(_decode, _decode_cases, 0),
    ),
    hints=(
        "An ordinary greedy loop, with one more question after each new id.",
        "After ARROW: find START, take what is between as the argument, append tool(argument) and CLOSE.",
        "if new == ARROW: begin = ids.index(START, …); ids += [*tool(ids[begin + 1 : -1]), CLOSE]; count the call",
    ),
    cases=_decode_cases,
    mutants=(
        Mutant(
            "never asks",
            "at ARROW the tool must be called, or the model invents the result",
            lambda s, t, x, n: _variant(s, t, x, n, ask=False),
        ),
        Mutant(
            "not closed",
            "</API> follows the result: else the model does not know where it ends",
            lambda s, t, x, n: _variant(s, t, x, n, close=False),
        ),
        Mutant(
            "START is part of the argument",
            "the argument begins after <API>",
            lambda s, t, x, n: _variant(s, t, x, n, first=0),
        ),
        Mutant(
            "ARROW is part of the argument",
            "the argument ends before →",
            lambda s, t, x, n: _variant(s, t, x, n, last=None),
        ),
        Mutant(
            "the argument's first id is lost",
            "everything between <API> and →",
            lambda s, t, x, n: _variant(s, t, x, n, first=2),
        ),
        Mutant(
            "ends after the call",
            "decoding goes on after </API>: the answer is still to come",
            lambda s, t, x, n: _variant(s, t, x, n, stop_after=True),
        ),
        Mutant(
            "calls without end",
            "at most one call: a model can be caught in a loop of calls",
            lambda s, t, x, n: _decode(s, t, x, n, most=10**6),
        ),
        Mutant(
            "the result counts",
            "length counts what the model wrote",
            lambda s, t, x, n: _variant(s, t, x, n, counts=True),
        ),
        Mutant(
            "the prompt is lost",
            "return prompt and continuation",
            lambda s, t, x, n: _decode(s, t, x, n)[len(x) :],
        ),
        Mutant(
            "END is lost",
            "END is kept as the last id",
            lambda s, t, x, n: [i for i in _decode(s, t, x, n) if i != END],
        ),
        Mutant(
            "the call is taken out",
            "the model must see the call and its result while it goes on",
            lambda s, t, x, n: _hidden(s, t, x, n),
        ),
        Mutant("one id too many", "length ids, not one more", lambda s, t, x, n: _decode(s, t, x, n + 1)),
    ),
    alternatives=(
        lambda s, t, x, n: _variant(s, t, x, n),
        lambda s, t, x, n: _recursive(s, t, list(x), n, False),
    ),
)


def _variant(
    step: Step_,
    tool: Callable[[list[int]], list[int]],
    ids: list[int],
    length: int,
    *,
    ask: bool = True,
    close: bool = True,
    first: int = 1,
    last: int | None = -1,
    stop_after: bool = False,
    counts: bool = False,
) -> list[int]:
    ids, left, start, called = list(ids), length, None, False
    while left > 0:
        new = step(ids)
        if new == START:
            if called:
                return ids
            start = len(ids)
        ids.append(new)
        left -= 1
        if new == END:
            return ids
        if new == ARROW and start is not None:
            called = True
            if ask:
                result = tool(ids[start + first : last]) + ([CLOSE] if close else [])
                ids += result
                left -= len(result) if counts else 0
            if stop_after:
                return ids
    return ids


def _hidden(step: Step_, tool: Callable[[list[int]], list[int]], ids: list[int], length: int) -> list[int]:
    found = _decode(step, tool, ids, length)
    if START not in found or CLOSE not in found:
        return found
    return found[: found.index(START)] + found[found.index(CLOSE) + 1 :]


def _recursive(
    step: Step_, tool: Callable[[list[int]], list[int]], ids: list[int], left: int, called: bool
) -> list[int]:
    if left == 0 or (ids and ids[-1] == END):
        return ids
    new = step(ids)
    if new == START and called:
        return ids
    if new != ARROW:
        return _recursive(step, tool, [*ids, new], left - 1, called)
    start = max(i for i, token in enumerate(ids) if token == START)
    return _recursive(step, tool, [*ids, ARROW, *tool(ids[start + 1 :]), CLOSE], left - 1, True)


EXERCISES = (BEST_CALLS, INTERLEAVE, DECODE)
