"""The method, trial by trial: what the actor is shown, when trials end, what survives."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer
from langgraph.checkpoint.sqlite import SqliteSaver
from worlds import Doors, RuleModel, berlin, cat, is_reflection, opens_in_order

from ai_learning.errors import InputError
from ai_learning.reflexion import Reflexion
from ai_learning.reflexion.calls import Budget, Retry
from ai_learning.reflexion.results import RunResult, read_run
from ai_learning.reflexion.tasks.environments import EnvironmentTask
from ai_learning.reflexion.tasks.questions import QuestionTask
from ai_learning.reflexion.trace import Event, TraceFile, read_trace

QUICK = Retry(attempts=2, wait_s=0.001)


def acting_prompts(model: RuleModel) -> list[str]:
    return [user for system, user in model.calls if not is_reflection(system)]


def test_reflections_find_the_cat_where_trying_again_does_not() -> None:
    curves = {}
    for strategy in ("none", "last_attempt", "reflexion", "last_attempt_reflexion"):
        result = Reflexion(RuleModel(rule=opens_in_order), strategy=strategy, trials=3).run([cat("red")])
        curves[strategy] = result.success_by_trial()
    assert curves["none"] == [0, 0, 0]
    assert curves["last_attempt"] == [0, 0, 0]  # it remembers one door of the two
    assert curves["reflexion"] == curves["last_attempt_reflexion"] == [0, 0, 1]


def test_the_window_is_what_the_actor_sees() -> None:
    model = RuleModel(rule=opens_in_order)
    result = Reflexion(model, trials=4, window=1).run([cat("red")])
    assert result.success_by_trial() == [0, 0, 0, 0]
    for number, prompt in enumerate(acting_prompts(model)):
        assert prompt.count("- Not ") == min(1, number)


def test_success_ends_the_trials_and_the_last_failure_is_not_reflected_on() -> None:
    model = RuleModel(rule=opens_in_order)
    Reflexion(model, trials=9).run([cat("blue")])
    assert len(acting_prompts(model)) == 2
    model = RuleModel(rule=opens_in_order)
    Reflexion(model, trials=2).run([cat("red")])
    assert [is_reflection(system) for system, _ in model.calls] == [False, True, False]


@pytest.mark.parametrize(
    ("strategy", "shows_attempt", "shows_reflection"),
    [
        ("none", False, False),
        ("last_attempt", True, False),
        ("reflexion", False, True),
        ("last_attempt_reflexion", True, True),
    ],
)
def test_what_each_strategy_shows(strategy: str, shows_attempt: bool, shows_reflection: bool) -> None:
    acted = "Thought: MINE\nAction: open green"
    model = RuleModel(rule=lambda s, u: "MY ADVICE" if is_reflection(s) else acted)
    Reflexion(model, strategy=strategy, trials=2).run([cat()])
    second = acting_prompts(model)[1]
    assert ("Thought: MINE" in second) is shows_attempt
    assert ("MY ADVICE" in second) is shows_reflection
    assert "Thought: MINE" not in acting_prompts(model)[0]


def test_a_loop_ends_the_trial_and_the_reflector_is_told() -> None:
    model = RuleModel(rule=lambda s, u: "advice" if is_reflection(s) else "Action: look around")
    Reflexion(model, trials=2).run([cat()])
    assert len(acting_prompts(model)) == 8  # the fourth time is more than three cycles
    assert "you are in a loop" in model.calls[4][1]


def test_too_many_actions_end_the_trial() -> None:
    count = iter(range(1000))
    model = RuleModel(rule=lambda s, u: f"Action: jump {next(count)}")
    result = Reflexion(model, trials=1).run([cat()])
    assert len(model.calls) == 30
    assert "all 30 actions" in result.tasks[0].trials[0].feedback


def test_an_answer_without_an_action_moves_nothing_and_is_said() -> None:
    world = Doors()
    answers = iter(["Thought: hm.\nI wonder.", "Action: open red"])
    model = RuleModel(rule=lambda s, u: next(answers))
    result = Reflexion(model, trials=1).run([EnvironmentTask("one", lambda: world)])
    assert result.tasks[0].solved
    assert world.seen == ["open red"]
    assert "Nothing happened: there was no line" in model.calls[1][1]


def test_an_actor_that_never_says_a_word_ends_too() -> None:
    result = Reflexion(RuleModel(rule=lambda s, u: ""), trials=2, retry=QUICK).run([cat()])
    assert not result.tasks[0].solved and not result.tasks[0].error
    assert len(result.tasks[0].trials) == 2


def test_search_and_answer() -> None:
    def rule(system: str, user: str) -> str:
        if is_reflection(system):
            return "Say Germany."
        if "Say Germany" in user:
            return "Thought: I know\nAction: Finish[the Germany!]\nObservation: invented"
        if "It is in Germany" in user:
            return "Action: Finish[Europe]"
        return "Thought: look\nAction: Search[berlin]\nObservation: Berlin is in Peru."

    model = RuleModel(rule=rule)
    result = Reflexion(model, trials=3).run([berlin()])
    assert result.success_by_trial() == [0, 1, 1]
    assert "Peru" not in model.calls[1][1]  # what a model invents after its action is cut off
    assert all("Germany" not in user for _, user in model.calls[:1])


def test_chain_of_thought() -> None:
    task = QuestionTask("q", "What is two and two?", "4")
    model = RuleModel(rule=lambda s, u: "Thought: it is 5\nAction: Finish[4]")
    result = Reflexion(model, trials=2).run([task])
    assert result.tasks[0].solved and len(model.calls) == 1


def test_a_judge_can_stand_in_for_the_truth_and_does_not_see_it() -> None:
    task = QuestionTask("q", "What is two and two?", "SECRET")
    judge = RuleModel(rule=lambda s, u: "INCORRECT: it is 4" if "Finish[5]" in u else "Correct.")
    model = RuleModel(
        rule=lambda s, u: "use 4" if is_reflection(s) else f"Action: Finish[{4 if 'use 4' in u else 5}]"
    )
    result = Reflexion(model, judge=judge, evaluator="model", trials=3).run([task])
    trials = result.tasks[0].trials
    assert [trial.success for trial in trials] == [False, True]
    assert not result.tasks[0].solved  # the judge believed it; the figure goes by the truth
    assert "it is 4" in model.calls[1][1]
    assert not any("SECRET" in user for _, user in judge.calls + model.calls)


# --- many tasks --------------------------------------------------------------------------------------------


def test_one_task_that_breaks_leaves_the_others_alone(tmp_path: Path) -> None:
    class Broken(Doors):
        def step(self, action: str) -> tuple[str, bool, bool]:
            raise RuntimeError("the game crashed")

    tasks = [cat("green", "a"), EnvironmentTask("b", Broken), cat("green", "c")]
    out = tmp_path / "run"
    result = Reflexion(RuleModel(rule=opens_in_order), trials=2, concurrency=2, out=out).run(tasks)
    assert [task.solved for task in result.tasks] == [True, False, True]
    assert result.tasks[1].error == "RuntimeError: the game crashed"
    assert result.success_by_trial() == [2 / 3, 2 / 3]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["solved"] for row in rows] == [True, False, True]


def test_a_task_that_broke_is_tried_again_on_resume(tmp_path: Path) -> None:
    broken = [True]

    class Shaky(Doors):
        def step(self, action: str) -> tuple[str, bool, bool]:
            if broken[0]:
                raise RuntimeError("the game crashed")
            return super().step(action)

    model = RuleModel(rule=opens_in_order)
    options = {"trials": 1, "out": tmp_path}
    task = EnvironmentTask("a", lambda: Shaky("green"))
    assert Reflexion(model, **options).run([task]).tasks[0].error
    broken[0] = False
    result = Reflexion(model, **options, resume=True).run([task])
    assert result.tasks[0].solved and not result.tasks[0].error
    assert len(model.calls) == 1  # the answer that came before the crash was not asked for again


def test_concurrency_is_bounded_and_used() -> None:
    import time

    def script(messages: list, number: int) -> str:
        time.sleep(0.1)
        return "Action: open green"

    from ai_learning.chat_model import open_chat_model

    with FakeServer(script) as server:
        model = open_chat_model("fake", base_url=server.url)
        Reflexion(model, trials=1, concurrency=3).run([cat("green", str(i)) for i in range(9)])
        assert server.most_at_once == 3


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        (Budget(max_calls=3), 3),
        (Budget(max_total_tokens=1), 1),
        (Budget(max_cost=1e-9, price_out=1.0), 1),
        (Budget(max_seconds=0.0), 0),
    ],
)
def test_a_budget_stops_the_run_and_more_of_it_goes_on(budget: Budget, calls: int, tmp_path: Path) -> None:
    tasks = [cat("red", "a"), cat("red", "b")]
    model = RuleModel(rule=opens_in_order)
    first = Reflexion(model, trials=3, budget=budget, out=tmp_path).run(tasks)
    assert len(model.calls) == calls
    assert "is used up" in first.stopped
    assert not any(task.error for task in first.tasks)
    second = Reflexion(model, trials=3, out=tmp_path, resume=True).run(tasks)
    assert [task.solved for task in second.tasks] == [True, True]
    assert len(model.calls) == 10 == second.spent.calls  # 3 trials and 2 reflections each, none twice
    third = Reflexion(model, trials=3, budget=Budget(max_calls=3), out=tmp_path, resume=True).run(tasks)
    assert len(model.calls) == 10 and not third.stopped  # nothing was left to do


def test_leaving_the_loop_stops_the_run_and_it_can_be_resumed(tmp_path: Path) -> None:
    model = RuleModel(rule=opens_in_order)
    for event in Reflexion(model, trials=3, out=tmp_path).stream([cat("red")]):
        if event.node == "reflect":
            break
    before = len(model.calls)
    result = Reflexion(model, trials=3, out=tmp_path, resume=True).run([cat("red")])
    assert result.tasks[0].solved
    assert before < 5 == len(model.calls)


def test_the_world_is_played_again_when_a_trial_is_resumed(tmp_path: Path) -> None:
    worlds: list[Doors] = []

    def make() -> Doors:
        worlds.append(Doors("red"))
        return worlds[-1]

    answers = iter(
        ["Action: look around", "Thought: no action here.\nNone.", "Action: jump", "Action: open red"]
    )
    model = RuleModel(rule=lambda s, u: next(answers))
    task = EnvironmentTask("one", make)
    first = Reflexion(model, trials=1, budget=Budget(max_calls=3), out=tmp_path).run([task])
    assert first.stopped
    assert Reflexion(model, trials=1, out=tmp_path, resume=True).run([task]).tasks[0].solved
    assert worlds[-1].seen == ["look around", "jump", "open red"]


def test_each_trial_begins_in_a_new_world() -> None:
    worlds: list[Doors] = []

    def make() -> Doors:
        worlds.append(Doors("red"))
        return worlds[-1]

    Reflexion(RuleModel(rule=opens_in_order), trials=3).run([EnvironmentTask("one", make)])
    assert [world.seen for world in worlds] == [["open green"], ["open blue"], ["open red"]]
    assert [world.resets for world in worlds] == [1, 1, 1]


@pytest.mark.parametrize("write", ["put", "put_writes"])
def test_a_crash_at_any_write_repeats_no_answer_that_was_written(
    write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    Reflexion(RuleModel(rule=opens_in_order), trials=2, out=whole).run([cat("blue")])
    expected = (whole / "trace.jsonl").read_text().count("\n")
    original = getattr(SqliteSaver, write)
    writes = [0]

    def fail_once(self: SqliteSaver, *args: Any, **kwargs: Any) -> Any:
        writes[0] += 1
        if writes[0] == at:
            raise OSError("the disk is gone")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SqliteSaver, write, fail_once)
    for at in range(1, 12):
        writes[0] = 0
        out = tmp_path / str(at)
        model = RuleModel(rule=opens_in_order)
        first = Reflexion(model, trials=2, out=out).run([cat("blue")])
        assert "the disk is gone" in first.tasks[0].error
        result = Reflexion(model, trials=2, out=out, resume=True).run([cat("blue")])
        assert result.tasks[0].solved
        assert len(model.calls) <= 3 + (write == "put_writes")
        events = [event for event in read_trace(out / "trace.jsonl") if event.node != "error"]
        assert [event.clock for event in events] == list(range(1, expected + 1))


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    settings = {"trials": 1, "out": tmp_path}
    Reflexion(RuleModel(rule=opens_in_order), **settings).run([cat()])
    for file in tmp_path.glob("checkpoints.sqlite*"):
        file.write_bytes(b"no database " * 1000)
    with pytest.raises(InputError, match=r"checkpoints.sqlite cannot be used: file is not a database"):
        Reflexion(RuleModel(rule=opens_in_order), **settings, resume=True).run([cat()])


@pytest.mark.parametrize("change", [{"trials": 5}, {"strategy": "none"}, {"window": 2}])
def test_a_run_is_resumed_as_it_was(change: dict, tmp_path: Path) -> None:
    settings = {"strategy": "reflexion", "trials": 2, "window": 1, "out": tmp_path}
    model = RuleModel(rule=opens_in_order)
    Reflexion(model, **settings).run([cat()])
    with pytest.raises(InputError, match=f"made with other {next(iter(change))}"):
        Reflexion(model, **{**settings, **change}, resume=True).run([cat()])
    with pytest.raises(InputError, match="holds a run already"):
        Reflexion(model, **settings).run([cat()])
    with pytest.raises(InputError, match="made with other tasks"):
        Reflexion(model, **settings, resume=True).run([cat(name="another")])


# --- what is left behind -----------------------------------------------------------------------------------


def test_trace_and_results_tell_all(tmp_path: Path) -> None:
    heard: list[Event] = []
    result = Reflexion(RuleModel(rule=opens_in_order), trials=3, out=tmp_path).run([cat()], heard.append)
    events = list(read_trace(tmp_path / "trace.jsonl"))
    assert events == heard
    assert [event.clock for event in events] == list(range(1, len(events) + 1))
    nodes = [event.node for event in events]
    trial = ["begin", "act", "observe", "evaluate"]
    assert nodes == ["write_tests", *trial, "reflect", *trial, "reflect", *trial]
    again, about = read_run(tmp_path)
    assert again.tasks == result.tasks and about["strategy"] == "reflexion"
    page = (tmp_path / "trace.html").read_text()
    assert "Not green" in page and "Action: open red" in page and "http" not in page


def test_the_page_escapes_what_models_write(tmp_path: Path) -> None:
    rule = lambda s, u: "<script>alert(1)</script>\nAction: open <b>"  # noqa: E731
    task = EnvironmentTask("<i>id</i>", Doors)
    Reflexion(RuleModel(rule=rule), trials=1, out=tmp_path).run([task])
    page = (tmp_path / "trace.html").read_text()
    assert "<script" not in page and "<i>id" not in page and "&lt;script&gt;" in page


def test_a_torn_line_is_dropped_and_written_again(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    trace = TraceFile(path)
    trace.append(Event("a", 1, "begin"))
    with path.open("a") as file:
        file.write('{"task": "a", "clo')
    trace = TraceFile(path)
    trace.append(Event("a", 1, "begin"))
    trace.append(Event("a", 2, "act"))
    assert [event.clock for event in read_trace(path)] == [1, 2]


def test_lines_lost_from_the_trace_come_back_from_the_checkpoints(tmp_path: Path) -> None:
    settings = {"trials": 3, "out": tmp_path}
    Reflexion(RuleModel(rule=opens_in_order), budget=Budget(max_calls=1), **settings).run([cat()])
    path = tmp_path / "trace.jsonl"
    whole = path.read_text()
    assert whole.count("\n") == 5
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    Reflexion(RuleModel(rule=opens_in_order), budget=Budget(max_calls=1), resume=True, **settings).run(
        [cat()]
    )
    assert path.read_text() == whole


def test_checkpoints_of_the_past_are_forgotten(tmp_path: Path) -> None:
    model = RuleModel(rule=lambda s, u: f"Action: jump {len(u)}")
    Reflexion(model, trials=3, most_actions=10, out=tmp_path).run([cat("a"), cat("b", "c")])
    with sqlite3.connect(tmp_path / "checkpoints.sqlite") as database:
        assert database.execute("SELECT count(*) FROM checkpoints").fetchone() == (2,)
        assert database.execute("SELECT count(*) FROM writes").fetchone() == (0,)


def test_success_by_trial_counts_the_last_attempt_so_far() -> None:
    result = RunResult(3)
    result.expect(["a", "b"])
    data = {"success": False, "solved": None, "answer": "", "actions": 1, "feedback": ""}
    result.take(Event("a", 1, "evaluate", 1, data))
    result.take(Event("a", 2, "evaluate", 2, {**data, "success": True, "solved": True}))
    assert result.success_by_trial() == [0, 0.5, 0.5]
    result.take(Event("b", 1, "evaluate", 1, {**data, "solved": True}))
    assert result.success_by_trial() == [0.5, 1, 1]
    result.take(Event("b", 2, "evaluate", 2, {**data, "success": True, "solved": False}))
    assert result.success_by_trial() == [0.5, 0.5, 0.5]


def test_a_seed_draws_again_in_each_trial_and_the_same_when_repeated() -> None:
    drawn: list[int] = []

    class Seeded(RuleModel):
        seed: int = 5

        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            drawn.append(kwargs["seed"])
            return super()._generate(*args, **kwargs)

    tasks = [cat("red", "a"), cat("red", "b")]
    for _ in range(2):
        Reflexion(Seeded(rule=lambda s, u: "Action: open green"), strategy="none", trials=3).run(tasks)
    assert drawn[:6] == drawn[6:] and len(set(drawn)) == 6
    Reflexion(Seeded(rule=lambda s, u: "Action: open green", seed=6), strategy="none", trials=3).run(tasks)
    assert not set(drawn[:6]) & set(drawn[12:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "luck"}, "strategy='luck' must be one of none, last_attempt"),
        ({"trials": 0}, "trials=0 must be at least 1"),
        ({"actor": "dance"}, "actor='dance' must be one of"),
        ({"evaluator": "mood"}, "evaluator='mood' must be one of"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"resume": True}, "needs the folder"),
        ({"strategy": "immediate_reflection"}, "is for programs"),
        ({"actor": "code"}, "does not fit tasks of kind 'environment'"),
        ({"evaluator": "unit_tests"}, "is for programs"),
        ({"prompts": "nowhere"}, "no folder of prompts at nowhere"),
    ],
)
def test_bad_settings_are_one_line(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Reflexion(RuleModel(rule=opens_in_order), **settings).run([cat()])
    assert "\n" not in str(caught.value)


def test_tasks_are_checked_before_anything_is_asked() -> None:
    agent = Reflexion(RuleModel(rule=opens_in_order))
    with pytest.raises(InputError, match="no task"):
        agent.run([])
    with pytest.raises(InputError, match="two tasks have the id 'cat'"):
        agent.run([cat(), cat()])
    with pytest.raises(InputError, match="several kinds"):
        agent.run([cat(), berlin()])


def test_your_own_prompts_stand_in_front(tmp_path: Path) -> None:
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "react.txt").write_text("$memory\n\nPRICE $$5\n$task$trajectory\n")
    model = RuleModel(rule=opens_in_order)
    Reflexion(model, trials=2, prompts=tmp_path).run([cat()])
    assert model.calls[0] == (
        "",
        "PRICE $5\nObservation: There are three doors: green, blue, red. Find the cat.",
    )
    assert is_reflection(model.calls[1][0])  # ours, since the folder has none
    (tmp_path / "environment" / "react.txt").write_text("$trajektory")
    with pytest.raises(InputError, match=r"react.txt: 'trajektory' has no value; there are \$attempt"):
        Reflexion(model, prompts=tmp_path).run([cat()])
