"""Long-term memory and the contracts that tasks keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.reflexion.memory import Memory
from ai_learning.reflexion.tasks.base import Strategy, Verdict


@given(st.lists(st.text(min_size=1).filter(str.strip)), st.integers(1, 5))
def test_the_window_shows_the_newest_and_forgets_none(reflections: list[str], window: int) -> None:
    memory = Memory(window)
    for reflection in reflections:
        memory = memory.add(reflection)
    assert list(memory.reflections) == [reflection.strip() for reflection in reflections]
    assert memory.shown == memory.reflections[max(0, len(reflections) - window) :]
    assert len(memory.text().splitlines()) == len(memory.shown)


def test_adding_leaves_the_old_memory_alone() -> None:
    old = Memory(1, ("first",))
    new = old.add("second")
    assert (old.shown, new.shown) == (("first",), ("second",))


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_reflection_pushes_nothing_out(empty: str) -> None:
    assert Memory(1, ("first",)).add(empty).shown == ("first",)


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_without_room_is_refused(window: int) -> None:
    with pytest.raises(InputError, match=f"window={window} must be at least 1"):
        Memory(window)


@pytest.mark.parametrize(
    ("strategy", "reflects", "shows_attempt", "tests"),
    [
        ("none", False, False, True),
        ("last_attempt", False, True, True),
        ("reflexion", True, False, True),
        ("last_attempt_reflexion", True, True, True),
        ("immediate_reflection", True, True, False),
        ("immediate_refinement", False, True, False),
    ],
)
def test_strategies_are_the_papers(strategy: str, reflects: bool, shows_attempt: bool, tests: bool) -> None:
    chosen = Strategy(strategy)
    assert (chosen.reflects, chosen.shows_attempt, chosen.tests) == (reflects, shows_attempt, tests)


def test_the_hidden_truth_outranks_what_the_agent_believes() -> None:
    assert Verdict(True, solved=False).truth is False
    assert Verdict(True).truth is True
