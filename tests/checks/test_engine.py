"""The ladder itself: what it says of answers that no mutant foresaw, and what it never does."""

import time

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

    started = time.monotonic()
    report = check(endless, "day16.encode", quiet=True)
    assert not report and report.cause.startswith("too slow")
    assert time.monotonic() - started < 20


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
