"""Every exercise catches and names its mutants, and accepts every right way to write it."""

import pkgutil
import random
import re

import numpy as np
import pytest
import torch

from ai_learning.checks import check, exercise, exercise_names
from ai_learning.checks.engine import Exercise, Mutant

NAMES = exercise_names()
MUTANTS = [(name, i) for name in NAMES for i in range(len(exercise(name).mutants))]


def label(value: object) -> str:
    return str(value)


@pytest.mark.parametrize(("name", "i"), MUTANTS, ids=lambda v: str(v))
def test_mutant_is_caught_and_named(name: str, i: int) -> None:
    mutant: Mutant = exercise(name).mutants[i]
    report = check(mutant.fn, name, quiet=True)
    assert not report, f"{mutant.cause} was accepted"
    assert report.cause.startswith(mutant.name), f"{mutant.name!r} was called {report.cause!r}"


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_pass(name: str) -> None:
    found: Exercise = exercise(name)
    assert len(found.mutants) >= 8 and len(found.alternatives) >= 2 and len(found.hints) == 3
    for answer in (found.reference, *found.alternatives):
        report = check(answer, name, quiet=True)
        assert report, str(report)


@pytest.mark.parametrize("name", NAMES)
def test_stub_says_it_is_not_written(name: str) -> None:
    found = exercise(name)
    space: dict = {}
    exec(found.stub, space)  # the stub is ours
    report = check(space[found.function_name], name, quiet=True)
    assert not report and report.cause == "not written yet"


def test_what_stubs_and_hints_name_is_there() -> None:
    text = "\n".join(part for name in NAMES for part in (exercise(name).stub, *exercise(name).hints))
    named = set(re.findall(r"\bai_learning(?:\.\w+)+", text))
    assert "ai_learning.model.mlp.gelu_new" in named
    for dotted in named:
        pkgutil.resolve_name(dotted)


@pytest.mark.parametrize("name", NAMES)
def test_same_verdict_and_untouched_seeds(name: str) -> None:
    wrong = exercise(name).mutants[0].fn
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    first = str(check(wrong, name, quiet=True))
    drawn = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(6)
    second = str(check(wrong, name, quiet=True))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert first == second
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())
