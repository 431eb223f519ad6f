"""Programs: tests that the model writes decide, hidden ones only count; the scripted demonstration."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from worlds import RuleModel, is_reflection

from ai_learning.cli import main
from ai_learning.errors import InputError
from ai_learning.reflexion import Reflexion, sandbox
from ai_learning.reflexion.results import read_run
from ai_learning.reflexion.scripted import PROGRAMS, ScriptedModel
from ai_learning.reflexion.tasks.base import ProgrammingTask
from ai_learning.reflexion.tasks.programming import ProgramTask, read_humaneval

TASK = ProgramTask(
    "double",
    'def double(x: int) -> int:\n    """Twice x."""\n',
    "double",
    "def check(candidate):\n    assert candidate(21) == 42\n    assert candidate(-7) == -14",
)
TESTS = "```python\nassert double(2) == 4\nassert double(3) == 6\nassert open('x')\nassert double(\n```"


def program(body: str) -> str:
    return f"```python\ndef double(x: int) -> int:\n    return {body}\n```"


class Programmer:
    """Writes x + 2 (right for 2 alone), then what the reflection says."""

    def __init__(self, tests: str = TESTS, first: str = "x + 2") -> None:
        self.tests, self.first = tests, first

    def __call__(self, system: str, user: str) -> str:
        if "unit tests" in system:
            return self.tests
        if is_reflection(system):
            return "Multiply by two."
        return program("2 * x" if "Multiply by two" in user else self.first)


def test_its_own_tests_decide_and_what_they_say_is_shown() -> None:
    assert isinstance(TASK, ProgrammingTask)
    model = RuleModel(rule=Programmer())
    result = Reflexion(model, trials=3).run([TASK])
    assert [(t.success, t.solved) for t in result.tasks[0].trials] == [(False, False), (True, True)]
    feedback = result.tasks[0].trials[0].feedback
    assert "Tests passed:\nassert double(2) == 4" in feedback
    assert "Tests failed:\nassert double(3) == 6" in feedback and "got 5" in feedback
    assert len([1 for system, _ in model.calls if "unit tests" in system]) == 1  # once a task
    second = model.calls[-1][1]
    for words in ("return x + 2", "got 5", "- Multiply by two."):
        assert words in second


@pytest.mark.parametrize("strategy", ["none", "last_attempt", "reflexion", "immediate_reflection"])
def test_hidden_tests_reach_no_prompt(strategy: str) -> None:
    model = RuleModel(rule=Programmer())
    Reflexion(model, strategy=strategy, trials=3).run([TASK])
    for system, user in model.calls:
        assert not any(secret in system + user for secret in ("21", "42", "-7", "hidden"))


def test_tests_that_are_too_weak_end_the_trials_and_the_truth_is_counted() -> None:
    weak = Programmer(tests="assert double(2) == 4")
    result = Reflexion(RuleModel(rule=weak), trials=3).run([TASK])
    (trial,) = result.tasks[0].trials
    assert trial.success and not trial.solved
    assert result.success_by_trial() == [0, 0, 0]


def test_tests_that_are_wrong_cost_trials_and_the_truth_is_counted() -> None:
    wrong = Programmer(tests="assert double(2) == 5", first="x * 2")
    result = Reflexion(RuleModel(rule=wrong), trials=2).run([TASK])
    assert [(t.success, t.solved) for t in result.tasks[0].trials] == [(False, True)] * 2


def test_without_a_single_usable_test_nothing_is_believed() -> None:
    lazy = Programmer(tests="I would rather not.", first="2 * x")
    result = Reflexion(RuleModel(rule=lazy), trials=1).run([TASK])
    (trial,) = result.tasks[0].trials
    assert not trial.success and trial.solved
    assert "No unit test could be read" in trial.feedback


def test_an_answer_without_a_program_is_a_failed_trial() -> None:
    model = RuleModel(rule=lambda s, u: TESTS if "unit tests" in s else "I cannot.")
    result = Reflexion(model, trials=1).run([TASK])
    assert not result.tasks[0].error and "no Python program" in result.tasks[0].trials[0].feedback


@pytest.mark.parametrize(
    ("strategy", "reflections", "curve"),
    [("immediate_reflection", 2, [0, 1, 1]), ("immediate_refinement", 0, [0, 0, 0])],
)
def test_the_immediate_strategies_see_no_test(strategy: str, reflections: int, curve: list[int]) -> None:
    model = RuleModel(rule=Programmer())
    result = Reflexion(model, strategy=strategy, trials=3).run([TASK])
    assert result.success_by_trial() == curve
    assert sum(is_reflection(system) for system, _ in model.calls) == reflections
    assert not any("unit tests" in system for system, _ in model.calls)
    acting = [user for system, user in model.calls if not is_reflection(system)]
    assert len(acting) == 3 and "return x + 2" in acting[1]
    assert not any("Tests" in user for user in acting)


def test_the_agent_may_not_go_by_hidden_tests() -> None:
    with pytest.raises(InputError, match="would show hidden tests"):
        Reflexion(RuleModel(rule=Programmer()), evaluator="truth").run([TASK])


def test_hostile_programs_only_fail() -> None:
    bodies = iter(["__import__('os')._exit(0)", "__import__('sys').exit(0)"])
    model = RuleModel(
        rule=lambda s, u: "assert double(2) == 4" if "unit tests" in s else program(next(bodies))
    )
    result = Reflexion(model, strategy="none", trials=2).run(
        [ProgramTask(**{**vars(TASK), "timeout_s": 1.0})]
    )
    assert [(t.success, t.solved) for t in result.tasks[0].trials] == [(False, False)] * 2


def test_where_nothing_holds_programs_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    weak = sandbox.Sandbox(without=("namespaces", "bubblewrap", "landlock"))
    monkeypatch.setattr(sandbox, "_shared", {os.getpid(): weak})
    model = RuleModel(rule=Programmer())
    with pytest.raises(InputError, match="no namespaces"):
        Reflexion(model, trials=2).run([TASK])
    assert not model.calls
    trusted = Reflexion(model, trials=2, allow_unsafe=True).run([replace(TASK, allow_unsafe=True)])
    assert trusted.tasks[0].solved
    weak.close()


# --- the demonstration -----------------------------------------------------------------------------


def test_the_scripted_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves = {}
    for strategy in ("none", "reflexion"):
        out = tmp_path / strategy
        asked = ["--task", "programs", "--model", "scripted", "--strategy", strategy, "--trials", "3"]
        assert main(["reflexion", "run", *asked, "--out", str(out)]) == 0
        result, about = read_run(out)
        assert about["model"] == "scripted"
        curves[strategy] = result.success_by_trial()
    assert curves == {"none": [1 / 8] * 3, "reflexion": [1 / 8, 5 / 8, 7 / 8]}
    assert result.tasks[-1].trials[-1].success and not result.tasks[-1].solved  # tests too weak: it is seen
    assert main(["reflexion", "report", *(str(tmp_path / s) for s in curves)]) == 0
    assert "12.5%  62.5%  87.5%" in capsys.readouterr().out


def test_samples_and_pass_at_k(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--limit", "2", "--samples", "2", "--trials", "1", "--out", str(tmp_path / "run")]
    assert main(["reflexion", "run", *asked]) == 0
    assert "pass@1 50.0% (unbiased, 2 samples a task" in capsys.readouterr().out
    assert [task.id for task in read_run(tmp_path / "run")[0].tasks][:2] == [
        "programs/clamp#1",
        "programs/clamp#2",
    ]


def test_the_canonical_solutions_pass_their_hidden_tests() -> None:
    for task in read_humaneval(PROGRAMS):
        assert task.run(task.solution).passed


def test_the_script_says_when_it_does_not_know_a_task() -> None:
    result = Reflexion(ScriptedModel(), trials=1).run([TASK])
    assert "scripted model knows only its own programs" in result.tasks[0].error
