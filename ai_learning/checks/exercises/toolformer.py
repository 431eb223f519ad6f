"""Day 12: Toolformer: where calls may begin, how they are read, and which of them are kept."""

import re
from collections.abc import Sequence
from typing import Any

from ...toolformer.annotate import choose_places
from ...toolformer.calls import parse_call
from ...toolformer.filter import Candidate, loss_weights, weighted_loss
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day12.loss_weights -------------------------------------------------------------------------------------


def _weights_cases() -> list[tuple[Any, ...]]:
    return [(5,), (3,), (8,), (1,), (0,)]


def _sums_to_one(fn: Any) -> None:
    total = sum(fn(20))
    if abs(total - 1) > 1e-9:
        raise Wrong("the weights of a long text must sum to 1", f"they sum to {total:.4f}")


def _raw(n: int) -> list[float]:
    return [max(0.0, 1 - 0.2 * t) for t in range(n)]


def _normal(raw: list[float]) -> list[float]:
    return [w / (sum(raw) or 1) for w in raw]


LOSS_WEIGHTS = Exercise(
    name="day12.loss_weights",
    title="how much the tokens after a call count",
    stub='''
def loss_weights(n):
    """w_0 … w_{n−1}, a list of floats (Schick et al. 2023, section 4.1).

    w̃_t = max(0, 1 − 0.2·t); w_t is w̃_t divided by the sum of w̃_s over ALL s ≥ 0, also those past n.
    """
    raise NotImplementedError
''',
    solution=loss_weights,
    reference=loss_weights,
    steps=(
        same_form(loss_weights, _weights_cases, "a list of floats"),
        Step("sums to one", _sums_to_one),
        equals(loss_weights, _weights_cases, title="equals the library for short and long texts"),
    ),
    hints=(
        "Write w̃_0, w̃_1, … down: where does it become 0, and what is the sum?",
        "1 + 0.8 + 0.6 + 0.4 + 0.2 = 3, whatever n is.",
        "[max(0.0, 1 - 0.2 * t) / 3 for t in range(n)]",
    ),
    cases=_weights_cases,
    mutants=(
        Mutant("not normalised", "divide by the sum over all t, which is 3", _raw),
        Mutant(
            "normalised over the first n only",
            "the sum runs over all t: a text that ends early counts less",
            lambda n: _normal(_raw(n)),
        ),
        Mutant("no maximum with 0", "from t = 5 on a weight is 0, not negative", lambda n: [(1 - 0.2 * t) / 3 for t in range(n)]),
        Mutant("begins at t = 1", "the token right after the call has weight w̃_0 = 1", lambda n: [max(0.0, 1 - 0.2 * (t + 1)) / 2 for t in range(n)]),
        Mutant("turned around", "the nearest token counts most", lambda n: loss_weights(n)[::-1]),
        Mutant("exponential decay", "the weights fall in a straight line", lambda n: [0.2 * 0.8**t for t in range(n)]),
        Mutant("all alike", "the nearest token counts most", lambda n: [0.2 * (t < 5) for t in range(n)]),
        Mutant("divided by 5", "divide by the sum of the five, not by their number", lambda n: [w / 5 for w in _raw(n)]),
        Mutant("another slope", "0.2 a token: five tokens count", lambda n: [max(0.0, 1 - 0.1 * t) / 5.5 for t in range(n)]),
        Mutant("a softmax", "divide by the sum", lambda n: [2.718281828 ** (-0.2 * t) * 0.18126925 for t in range(n)]),
    ),
    alternatives=(
        lambda n: [max(0.0, 1 - 0.2 * t) / 3 for t in range(n)],
        lambda n: [max(0, 5 - t) / 15 for t in range(n)],
    ),
)  # fmt: skip

# --- day12.filter_gain --------------------------------------------------------------------------------------


def _gain(result: Sequence[float], nothing: Sequence[float], call: Sequence[float]) -> float:
    return min(weighted_loss(nothing), weighted_loss(call)) - weighted_loss(result)


def _gain_cases() -> list[tuple[Any, ...]]:
    return [
        ([0.2, 0.4, 1.0, 0.7, 0.1, 9.0, 9.0], [3.0, 0.5, 1.2, 0.3, 0.4, 0.0, 0.0], [2.0, 0.9, 1.0, 0.2, 0.6, 1.0, 2.0]),
        ([0.1, 0.2, 0.3, 0.4, 0.5], [4.0, 0.2, 0.3, 0.4, 0.5], [0.1, 0.3, 0.3, 0.4, 0.5]),
        ([2.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 1.0, 1.5, 1.0], [1.0, 1.0, 3.0, 1.0, 1.0]),
        ([0.5, 0.25], [1.5, 3.0], [2.5, 0.5]),
        ([0.0], [5.0], [6.0]),
        ([5.0, 4.0], [1.0, 2.0], [1.5, 1.0]),
    ]  # fmt: skip


def _leak(fn: Any) -> None:
    """A call whose argument gives the answer away helps as much without its result."""
    losses = [0.1] * 5
    found = fn(list(losses), [6.0] * 5, list(losses))
    if found > 0.5:
        raise Wrong(
            "call without result forgotten: L⁻ is the lesser of nothing and the call alone, else a call that "
            "gives the answer away is kept",
            f"a call that helps just as much without its result gains {found:.3g}",
        )


FILTER_GAIN = Exercise(
    name="day12.filter_gain",
    title="does a call help? L⁻ − L⁺",
    stub='''
def filter_gain(result, nothing, call):
    """L⁻ − L⁺ of a call (Schick et al. 2023, section 2); it is kept when this is at least τ_f.

    Each argument is a list of the losses −log p of the tokens from the call's place on: when the model was shown
    the call with its result, nothing, or the call without its result. Use the weights of day12.loss_weights.
    """
    raise NotImplementedError
''',
    solution=Candidate,
    reference=_gain,
    steps=(
        same_form(_gain, _gain_cases, "a float"),
        leaves_inputs(_gain_cases),
        Step("a call that gives the answer away gains nothing", _leak),
        equals(_gain, _gain_cases, title="equals the library"),
    ),
    hints=(
        "Three weighted losses: L(e(c, r)), L(ε), L(e(c, ε)). Which of them is L⁺?",
        "L⁻ = min(L(ε), L(e(c, ε))): the better of what the model had without the result.",
        "min(loss(nothing), loss(call)) - loss(result), with loss(x) = sum(w * l for w, l in zip(loss_weights(len(x)), x))",
    ),
    cases=_gain_cases,
    mutants=(
        Mutant(
            "call without result forgotten",
            "L⁻ is the lesser of nothing and the call alone, else a call that gives the answer away is kept",
            lambda r, n, c: weighted_loss(n) - weighted_loss(r),
        ),
        Mutant("nothing forgotten", "a call may help less than no call at all", lambda r, n, c: weighted_loss(c) - weighted_loss(r)),
        Mutant("greater instead of lesser", "L⁻ is the minimum: the result must beat both", lambda r, n, c: max(weighted_loss(n), weighted_loss(c)) - weighted_loss(r)),
        Mutant("mean instead of minimum", "L⁻ is the minimum of the two", lambda r, n, c: (weighted_loss(n) + weighted_loss(c)) / 2 - weighted_loss(r)),
        Mutant("sign turned", "L⁻ − L⁺: positive when the result helps", lambda r, n, c: -_gain(r, n, c)),
        Mutant("unweighted", "weigh each token's loss by w_t", lambda r, n, c: min(sum(n), sum(c)) - sum(r)),
        Mutant("plain mean", "weigh each token's loss by w_t", lambda r, n, c: (min(sum(n), sum(c)) - sum(r)) / len(r)),
        Mutant("first token only", "five tokens count", lambda r, n, c: min(n[0], c[0]) - r[0]),
        Mutant("weights not normalised", "the weights sum to 1", lambda r, n, c: 3 * _gain(r, n, c)),
        Mutant(
            "minimum token by token",
            "weigh and sum first, then take the lesser of the two losses",
            lambda r, n, c: weighted_loss([min(a, b) for a, b in zip(n, c, strict=True)]) - weighted_loss(r),
        ),
        Mutant("cut at 0", "a result that misleads has a negative gain: L⁻ − L⁺ as it is", lambda r, n, c: max(0.0, _gain(r, n, c))),
        Mutant("a ratio", "losses are logarithms: subtract", lambda r, n, c: min(weighted_loss(n), weighted_loss(c)) / (weighted_loss(r) + 1e-9)),
        Mutant("last tokens counted most", "the nearest token counts most", lambda r, n, c: _gain(r[::-1], n[::-1], c[::-1])),
    ),
    alternatives=(
        lambda r, n, c: min(
            sum(max(0, 5 - t) / 15 * (x[t] - r[t]) for t in range(len(r))) for x in (n, c)
        ),
        lambda r, n, c: -max(weighted_loss(r) - weighted_loss(x) for x in (c, n)),
    ),
)  # fmt: skip

# --- day12.parse_call ---------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[str, str] | None:
    call = parse_call(text)
    return (call.tool, call.argument) if call else None


def _parse_cases() -> list[tuple[Any, ...]]:
    return [
        ("Calculator(3 + 4)",),
        ("Calculator(2 * (3 + 4))",),
        ("Calendar()",),
        (" QA( Where is Oslo? ) ",),
        ("WikiSearch(a (b) c)",),
        ("Calculator 3 + 4",),
        ("Calculator(3 + 4",),
        ("3 + 4)",),
        ("two words(3)",),
        ("QA(x) and more",),
        ("(3 + 4)",),
        ("",),
        ("QA(two\nlines)",),
        ("3Calculator(4)",),
        ("2(4)",),
        ("Wiki-Search_2(Oslo)",),
        ("Calculator (3)",),
        ("tools.Calculator(3)",),
        ("QA(a))",),
        ("QA((a)",),
    ]


def _regex(pattern: str, flags: int = re.DOTALL, match: Any = re.fullmatch) -> Any:
    def parse(text: str) -> tuple[str, str] | None:
        found = match(pattern, text.strip(), flags)
        return (found[1], found[2].strip()) if found else None

    return parse


def _never_raises(fn: Any) -> None:
    for text in ("", "(", ")", ")(", "a", "a(", "🙂(🙂)"):
        try:
            fn(text)
        except NotImplementedError:
            raise
        except Exception as error:
            raise Wrong(
                "raises on what is no call: a model writes many such; return None", f"{text!r}: {error!r}"
            ) from None


PARSE_CALL = Exercise(
    name="day12.parse_call",
    title="a call read from what a model wrote",
    stub='''
def parse_call(text):
    """("Calculator", "3 + 4") of "Calculator(3 + 4)"; None where the text is no call.

    The name is letters, digits, "_" and "-", not beginning with a digit. The argument reaches to the LAST
    parenthesis, so it may hold parentheses; it may hold line ends and may be empty. White space around the call
    and around the argument goes; other text around the call makes it none.
    """
    raise NotImplementedError
''',
    solution=parse_call,
    reference=_parse,
    steps=(
        Step("never raises", _never_raises),
        same_form(_parse, _parse_cases, "a pair of strings, or None"),
        equals(_parse, _parse_cases, title="equals the library on good and bad calls"),
    ),
    hints=(
        "A regular expression that must match the whole text: a name, a parenthesis, anything, a parenthesis.",
        r"re.fullmatch(r'\s*([A-Za-z_][\w-]*)\((.*)\)\s*', text, re.DOTALL)",
        "found = …; return (found[1], found[2].strip()) if found else None",
    ),
    cases=_parse_cases,
    mutants=(
        Mutant("stops at the first parenthesis", "arguments hold parentheses: 2 * (3 + 4)", _regex(r"([A-Za-z_][\w-]*)\(([^)]*)\).*")),
        Mutant("no parentheses inside", "2 * (3 + 4) is a good argument", _regex(r"([A-Za-z_][\w-]*)\(([^()]*)\)")),
        Mutant("an empty argument is refused", "Calendar() needs none", _regex(r"([A-Za-z_][\w-]*)\((.+)\)")),
        Mutant("the argument keeps its white space", "strip it", lambda t: (m[1], m[2]) if (m := re.fullmatch(r"\s*([A-Za-z_][\w-]*)\((.*)\)\s*", t, re.DOTALL)) else None),
        Mutant("text after the call is let through", "QA(x) and more is no call", _regex(r"([A-Za-z_][\w-]*)\((.*)\)", match=re.match)),
        Mutant("text before the call is let through", "two words(3) is no call", _regex(r"([A-Za-z_][\w-]*)\((.*)\)$", match=re.search)),
        Mutant("an open call is taken", "a call that was cut off must not be made", _regex(r"([A-Za-z_][\w-]*)\((.*?)\)?")),
        Mutant("a name is not needed", "(3 + 4) calls nothing", _regex(r"([\w-]*)\((.*)\)")),
        Mutant("a name begins with a digit", "3Calculator(4) is no call", _regex(r"([\w-]+)\((.*)\)")),
        Mutant("a hyphen is refused", "isidentifier() knows Python's names; these may hold -, as Wiki-Search", lambda t: p if (p := _parse(t)) and p[0].isidentifier() else None),
        Mutant("a space after the name", "Calculator (3) is no call: the parenthesis follows the name at once", _regex(r"([A-Za-z_][\w-]*)\s*\((.*)\)")),
        Mutant("a dot in the name", 'letters, digits, "_" and "-" only', _regex(r"([A-Za-z_][\w.-]*)\((.*)\)")),
        Mutant("parentheses are counted", "QA(a)) is a call with the argument a): it reaches to the last one", lambda t: p if (p := _parse(t)) and p[1].count("(") == p[1].count(")") else None),
        Mutant("ends at the line's end", "an argument may hold line ends: re.DOTALL", _regex(r"([A-Za-z_][\w-]*)\((.*)\)", flags=0)),
        Mutant("the parentheses are kept", "the argument stands between them", lambda t: (p[0], f"({p[1]})") if (p := _parse(t)) else None),
        Mutant("lower case", "names of tools keep their case", lambda t: (p[0].lower(), p[1]) if (p := _parse(t)) else None),
    ),
    alternatives=(
        _regex(r"([A-Za-z_][\w-]*)\((.*)\)"),
        lambda t: (
            (t.strip().split("(", 1)[0], t.strip().split("(", 1)[1][:-1].strip())
            if t.strip().endswith(")")
            and "(" in t
            and re.fullmatch(r"[A-Za-z_][\w-]*", t.strip().split("(", 1)[0])
            else None
        ),
    ),
)  # fmt: skip

# --- day12.call_places --------------------------------------------------------------------------------------


def _places_cases() -> list[tuple[Any, ...]]:
    return [
        ([0.3, 0.01, 0.6, 0.05, 0.2, 0.9], 0.05, 3),
        ([0.01, 0.02, 0.03], 0.05, 5),
        ([0.5, 0.05, 0.4], 0.05, 3),
        ([0.2, 0.7, 0.1], 0.0, 5),
        ([0.06, 0.3], 0.05, 1),
        ([0.9, 0.1, 0.8, 0.2, 0.7], 0.15, 4),
        ([0.9, 0.1, 0.8, 0.2, 0.7, 0.6, 0.5], 0.15, 3),
        ([0.5, 0.03, 0.001], 0.05, 3),
        ([], 0.05, 5),
        ([0.5, 0.1, 0.5, 0.2], 0.05, 2),
        ([0.4, 0.4], 0.05, 3),
    ]


def _equal_chances(fn: Any) -> None:
    """Whichever of the equals stay: the paper does not say, so no answer is refused for its choice."""
    p = [0.3, 0.5, 0.3, 0.3]
    got = fn(list(p), 0.05, 2)
    seen = f"p = {p}, k = 2: {got}"
    if len(set(got)) < len(got):
        raise Wrong("a place twice: p.index finds the first of equals; sort the places, not the values", seen)
    if len(got) > 2:
        raise Wrong(
            "more than k of equals: at most k places; comparing with the k-th lets all its equals in", seen
        )
    if len(got) < 2:
        raise Wrong("fewer than k of equals: k places where more are likely enough", seen)


def _above(p: list[float], tau: float) -> list[int]:
    return [i for i, value in enumerate(p) if value > tau]


CALL_PLACES = Exercise(
    name="day12.call_places",
    title="where calls are sampled: τ_s and k",
    stub='''
def call_places(p, tau_s, k):
    """Places i with p[i] > tau_s, in increasing order; of more than k the k with the greatest p.

    p is a list: p[i] is the probability that <API> comes at place i (Schick et al. 2023, section 2).
    """
    raise NotImplementedError
''',
    solution=choose_places,
    reference=choose_places,
    steps=(
        same_form(choose_places, _places_cases, "a list of places"),
        leaves_inputs(_places_cases),
        Step("gives k places where probabilities are equal", _equal_chances),
        equals(choose_places, _places_cases, title="equals the library"),
    ),
    hints=(
        "First the threshold, then the k greatest, then back into the order of the text.",
        "sorted(above, key=lambda i: -p[i])[:k] are the k likeliest.",
        "sorted(sorted((i for i in range(len(p)) if p[i] > tau_s), key=lambda i: -p[i])[:k])",
    ),
    cases=_places_cases,
    mutants=(
        Mutant("no threshold", "a place must be likelier than τ_s", lambda p, t, k: sorted(sorted(range(len(p)), key=lambda i: -p[i])[:k])),
        Mutant("the threshold itself is let through", "p must be greater than τ_s", lambda p, t, k: sorted(sorted((i for i in range(len(p)) if p[i] >= t), key=lambda i: -p[i])[:k])),
        Mutant("first k", "of more than k the likeliest, not the first", lambda p, t, k: _above(p, t)[:k]),
        Mutant("last k", "of more than k the likeliest, not the last", lambda p, t, k: _above(p, t)[-k:]),
        Mutant("least likely", "the greatest p come first", lambda p, t, k: sorted(sorted(_above(p, t), key=lambda i: p[i])[:k])),
        Mutant("order of probability", "places go in the order of the text", lambda p, t, k: sorted(_above(p, t), key=lambda i: -p[i])[:k]),
        Mutant("no limit", "at most k places", lambda p, t, k: _above(p, t)),
        Mutant("one too many", "at most k places", lambda p, t, k: choose_places(p, t, k + 1)),
        Mutant("one place on", "place i is before token i", lambda p, t, k: [i + 1 for i in choose_places(p, t, k)]),
        Mutant("probabilities instead of places", "return where, not how likely", lambda p, t, k: [p[i] for i in choose_places(p, t, k)]),
        Mutant("a place twice", "p.index finds the first of equals; sort the places, not the values", lambda p, t, k: sorted(p.index(x) for x in sorted((x for x in p if x > t), reverse=True)[:k])),
        Mutant("more than k of equals", "at most k places; comparing with the k-th lets all its equals in", lambda p, t, k: [i for i in _above(p, t) if sum(q > p[i] for q in p) < k]),
        Mutant("relative threshold", "τ_s is a probability, not a share of the greatest", lambda p, t, k: choose_places(p, t * max(p, default=0), k)),
        Mutant("always one", "a text may have no place at all", lambda p, t, k: choose_places(p, t, k) or ([p.index(max(p))] if p else [])),
    ),
    alternatives=(
        lambda p, t, k: sorted(sorted((i for i in range(len(p)) if p[i] > t), key=lambda i: -p[i])[:k]),
        lambda p, t, k: sorted(sorted(_above(p, t), key=lambda i: (p[i], i))[-k:]),  # the later of equals
    ),
)  # fmt: skip

EXERCISES = (LOSS_WEIGHTS, FILTER_GAIN, PARSE_CALL, CALL_PLACES)
