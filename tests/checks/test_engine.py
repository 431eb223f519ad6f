"""The ladder itself: what it says of answers that no mutant foresaw, and what it never does."""

import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ai_learning.checks import check, engine, exercise, hint, solution
from ai_learning.errors import InputError
from ai_learning.model import reference_attention


def test_prints_the_ladder_and_where_to_get_help(capsys: pytest.CaptureFixture[str]) -> None:
    check(lambda q, k, v, mask=None: (q @ k.transpose(-2, -1)).softmax(-1) @ v, "day1.attention")
    out = capsys.readouterr().out
    assert "✗ returns (output, weights) of the right shapes" in out
    assert "cause: return both: (output, weights)" in out and 'hint("day1.attention", 1)' in out


# Wrong in ways that are no mutant: the property that fails must still say something true.
def drops_last_key(q, k, v, mask=None):
    hidden = torch.zeros(q.size(2), k.size(2), dtype=torch.bool)
    hidden[:, -1] = k.size(2) > 1
    mask = ~hidden if mask is None else mask.bool() & ~hidden
    return reference_attention(q, k, v, mask)


def shifts_weights(q, k, v, mask=None):
    _, weights = reference_attention(q, k, v, mask)
    return weights.roll(1, dims=-1) @ v, weights.roll(1, dims=-1)


def adds_to_values(q, k, v, mask=None):
    output, weights = reference_attention(q, k, v, mask)
    return output + 1e-3, weights


def single_precision(q, k, v, mask=None):
    output, weights = reference_attention(q.float(), k.float(), v.float(), mask)
    return output, weights


def heads_share_keys(q, k, v, mask=None):
    return reference_attention(q, k[:, :1].expand_as(k), v, mask)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (shifts_weights, "the future leaks"),
        (adds_to_values, "a query of zeros must weigh"),
        (single_precision, "wrong dtype"),
        (heads_share_keys, "heads mixed"),
        (drops_last_key, "a query of zeros must weigh"),
        (lambda q, k, v, mask=None: 1 / 0, "it stopped with ZeroDivisionError"),
        (lambda q, k, v, mask=None: None, "return both"),
    ],
    ids=lambda a: getattr(a, "__name__", str(a)),
)
def test_unforeseen_mistakes(answer, cause: str) -> None:
    report = check(answer, "day1.attention", quiet=True)
    assert not report
    assert report.cause.startswith(cause), str(report)


def test_a_loop_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS_A_STEP", 1)

    def endless(word, merges):
        while True:
            pass

    def stubborn(ids):
        while True:
            try:
                endless(ids, ids)
            except Exception:
                continue

    for answer, name in ((endless, "day16.encode"), (stubborn, "day15.decode")):
        started = time.monotonic()
        report = check(answer, name, quiet=True)
        assert not report and report.cause.startswith("too slow")
        assert time.monotonic() - started < 3  # stopped once, not at every case


def test_a_loop_that_only_some_cases_reach_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS_A_STEP", 1)

    def sometimes(word, merges):
        while len(word) > 3:
            pass
        return None

    started = time.monotonic()
    assert not check(sometimes, "day16.encode", quiet=True)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("name", ["day12.loss_weights", "day14.heuristic", "day15.decode"])
def test_an_answer_that_ends_the_program_gets_a_verdict(name: str) -> None:
    report = check(lambda *_: sys.exit(), name, quiet=True)
    assert not report and report.cause.startswith("it ended the program")


class Unequal:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not comparable")

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (lambda n: np.array([max(0.0, 1 - 0.2 * t) / 3 for t in range(n)]), "day12.loss_weights"),
        (lambda p, t, k: np.array([i for i in range(len(p)) if p[i] > t][:k]), "day12.call_places"),
        (lambda w, m: np.array(list(w)), "day16.encode"),
        (lambda w, m: [np.array(list(w))], "day16.encode"),
        (lambda w, m: Unequal(), "day16.encode"),
        (lambda n: [Unequal()] * n, "day12.loss_weights"),
    ],
)
def test_what_cannot_be_compared_is_an_ordinary_verdict(answer, name: str) -> None:
    report = check(answer, name, quiet=True)
    assert not report and report.cause


def test_a_subclass_of_the_expected_type_is_that_type() -> None:
    """OrderedDict and np.float64 are what PyTorch and NumPy give."""
    for name, kind in (
        ("day6.to_linear", OrderedDict),
        ("day4.cosine_schedule", np.float64),
        ("day12.filter_gain", np.float64),
    ):
        right = exercise(name).reference
        report = check(lambda *a, right=right, kind=kind: kind(right(*a)), name, quiet=True)
        assert report, str(report)


def test_a_truth_value_is_no_count() -> None:
    step = engine.same_form(lambda: 1, lambda: [()], "an int")
    with pytest.raises(engine.Wrong, match="wrong shape or type"):
        step.test(lambda: True)


def test_numbers_that_look_alike_are_shown_with_more_digits() -> None:
    assert engine.apart(2.07944, 2.07945) == "2.07944, expected 2.07945"
    assert engine.apart(2.0794415417, 2.0794415416) == "2.0794415417, expected 2.0794415416"
    assert engine.apart(1, 1) == "1, expected 1"
    report = check(
        lambda x, t: exercise("day4.cross_entropy").reference(x.float(), t).double(),
        "day4.cross_entropy",
        quiet=True,
    )
    seen, expected = report.seen.split(" expected ")
    assert expected not in seen


def test_an_answer_cannot_be_right_by_luck_of_the_draw() -> None:
    report = check(lambda n: torch.rand(n, n).round(), "day1.causal_mask", quiet=True)
    assert not report


def test_bad_calls_say_what_to_do() -> None:
    with pytest.raises(InputError, match=r"no exercise 'day1.atention'; did you mean 'day1.attention'"):
        check(len, "day1.atention")
    with pytest.raises(InputError, match="needs the function itself"):
        check(3, "day1.attention")
    with pytest.raises(InputError, match="there are hints 1, 2 and 3"):
        hint("day1.attention", 4)


def test_hints_and_solution_print(capsys: pytest.CaptureFixture[str]) -> None:
    hint("day1.attention", 2)
    solution("day1.attention")
    out = capsys.readouterr().out
    assert "hint 2 of 3" in out and "def reference_attention" in out


def test_solutions_are_the_librarys_own() -> None:
    for name in ("day1.attention", "day2.gelu", "day5.top_p", "day10.nf4_code", "day16.train"):
        assert exercise(name).solution.__module__.startswith("ai_learning.")
        assert ".checks" not in exercise(name).solution.__module__
