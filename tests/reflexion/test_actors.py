"""What is read from answers, and how much of a trajectory is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.reflexion.actors import (
    LONGEST_TRAJECTORY,
    ChainOfThought,
    Code,
    ReAct,
    finish_of,
    program_of,
    shortened,
    trajectory_text,
)
from ai_learning.reflexion.evaluators import heuristic, read_judgement
from ai_learning.reflexion.prompt_files import OURS, Prompts, fill
from ai_learning.reflexion.reflector import LONGEST_REFLECTION, attempt_text, read_reflection
from ai_learning.reflexion.tasks.base import Attempt, Step


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ("Thought: hm\nAction: go north", "go north"),
        ("Thought 1: hm\nAction 1: Search[x: y]", "Search[x: y]"),
        ("**Thought:** hm\n**Action:** go north", "go north"),
        ("action: `go north`", "go north"),
        ("go north", "go north"),
        ("> go north", "go north"),
        ("Thought: I shall go north.", ""),
        ("I think\nand think", ""),
        ("", ""),
        ("Action:", ""),
        ("Action:\ngo north", ""),
        ("Action: first\nAction: second", "first"),
        ("Thought: an Action: inside a line\nAction: go", "go"),
    ],
)
def test_react_reads_the_action(answer: str, action: str) -> None:
    assert ReAct(Prompts("environment")).read(answer).action == action


def test_what_stands_after_the_action_is_not_kept() -> None:
    step = ReAct(Prompts("environment")).read("Thought: a\nAction: go\nThought: and then I win")
    assert step.text == "Thought: a\nAction: go"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Thought: so\nAction: Finish[Germany]", "Germany"),
        ("finish[a [b] c]", "a [b] c"),
        ("Finish[one]\nFinish[two]", "two"),
        ("Finish[cut off", "cut off"),
        ("Let me see.\nAnswer: Germany", "Germany"),
        ("Final answer: Germany", "Germany"),
        ("It is\nGermany", "Germany"),
        ("", ""),
    ],
)
def test_chain_of_thought_reads_the_answer(answer: str, found: str) -> None:
    assert ChainOfThought(Prompts("questions")).read(answer).action == found


GOOD = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        (f"Here:\n```python\n{GOOD}\n```\nDone.", GOOD),
        (f"```\n{GOOD}\n```", GOOD),
        (f"```py\n{GOOD}", GOOD),
        (f"```python\nf(1)\n```\nand\n```python\n{GOOD}\n```", GOOD),
        (f"```bash\npip install everything and more than that, really\n```\n```python\n{GOOD}\n```", GOOD),
        (GOOD, GOOD),
        ("```python\ndef f(:\n```", "def f(:"),
        ("I cannot do that.", ""),
        ("yes", ""),
        ("", ""),
        ("```python\n```", ""),
        ("(" * 10_000, ""),
        ("\0", ""),
    ],
)
def test_code_reads_the_program(answer: str, program: str) -> None:
    assert program_of(answer) == program
    assert Code(Prompts("programming")).read(answer).action == program


@given(st.text())
def test_nothing_that_a_model_writes_breaks_a_reader(answer: str) -> None:
    for actor, kind in ((ReAct, "environment"), (ChainOfThought, "questions"), (Code, "programming")):
        step = actor(Prompts(kind)).read(answer)
        assert step.text in answer
    read_judgement(answer)
    read_reflection(answer)
    finish_of(answer)


@pytest.mark.parametrize(
    ("answer", "success"),
    [
        ("CORRECT: fine", True),
        ("Incorrect. It is 4", False),
        ("The answer is INCORRECT: no", False),
        ("I cannot say", False),
        ("", False),
    ],
)
def test_judgements(answer: str, success: bool) -> None:
    assert read_judgement(answer).success is success


def steps(*pairs: tuple[str, str]) -> list[Step]:
    return [Step(action, action, observation) for action, observation in pairs]


@pytest.mark.parametrize(
    ("trajectory", "said"),
    [
        (steps(*[("look", "a room")] * 3), ""),
        (steps(*[("look", "a room")] * 4), "loop"),
        (steps(*[("look", "a room")] * 4, ("go", "done")), ""),
        (steps(*[("look", str(i)) for i in range(4)]), ""),
        (steps(*[(str(i), "a room") for i in range(4)]), ""),
        (steps(*[("look", "a room"), ("go", "a room")] * 4), ""),
        (steps(*[("", "")] * 4), "loop"),
        (steps(*[(str(i), "") for i in range(29)]), ""),
        (steps(*[(str(i), "") for i in range(30)]), "30 actions"),
        ([], ""),
    ],
)
def test_the_papers_heuristics(trajectory: list[Step], said: str) -> None:
    found = heuristic(trajectory)
    assert (said in found) if said else found == ""


@given(st.text(), st.integers(2, 50))
def test_shortening_keeps_both_ends(text: str, longest: int) -> None:
    short = shortened(text, longest)
    if len(text) <= longest:
        assert short == text
    else:
        half = longest // 2
        assert short.startswith(text[:half]) and short.endswith(text[-half:])
        assert f"{len(text) - 2 * half} characters left out" in short


def test_trajectories_and_reflections_stay_within_bounds() -> None:
    long = tuple(Step("Action: x", "x", "y" * 10_000) for _ in range(30))
    assert len(trajectory_text(long)) < LONGEST_TRAJECTORY + 100
    assert len(read_reflection("z" * 100_000)) < LONGEST_REFLECTION + 100
    assert read_reflection("Reflection: do better") == "do better"


def test_an_attempt_at_a_program_is_the_program() -> None:
    assert attempt_text(Attempt((Step(f"Sure!\n```python\n{GOOD}\n```", GOOD),), GOOD)) == GOOD
    assert (
        attempt_text(Attempt((Step("Thought: a\nAction: Finish[b]", "b"),), "b"))
        == "Thought: a\nAction: Finish[b]"
    )


# --- prompts -----------------------------------------------------------------------------------------------


def test_values_are_not_read_again_and_empty_ones_leave_no_gap() -> None:
    text = "[head]\n\n$memory\n\n$task\n$trajectory"
    values = {"memory": "", "task": "costs $5 and $memory\n\n\nthree lines", "trajectory": ""}
    assert fill(text, "x", values) == "[head]\n\ncosts $5 and $memory\n\n\nthree lines"


def test_every_kind_of_task_has_its_prompts() -> None:
    roles = {
        "questions": {"cot", "react", "reflect", "judge"},
        "environment": {"react", "reflect", "judge"},
        "programming": {"write", "reflect", "judge", "tests"},
    }
    for kind, names in roles.items():
        assert names <= {file.stem for file in (OURS / kind).glob("*.txt")}
        for file in (OURS / kind).glob("*.txt"):
            text = file.read_text()
            assert text.startswith("[system]\n") and "\n[user]\n" in text and "$task" in text
