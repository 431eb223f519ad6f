"""The household's model and its trials: batched and one by one, with memory, without, and with another's."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ai_learning.chat_model import GPTChatModel
from ai_learning.cli import main
from ai_learning.model import GPT, KVCache
from ai_learning.reflexion import Reflexion
from ai_learning.reflexion.household.experiment import (
    CONDITIONS,
    MAIN,
    experiment,
    judge_claims,
    mean_curves,
    summarise,
)
from ai_learning.reflexion.household.model import LookBackGPT
from ai_learning.reflexion.household.runner import LONGEST_REFLECTION, Ablation, Condition, Rows, Run, run_all
from ai_learning.reflexion.household.text import PROMPTS, TOKENIZER, WORDS
from ai_learning.reflexion.household.training import Schooling, batches, collate, school
from ai_learning.reflexion.household.world import MAX_ACTIONS, HouseholdTask, draw_task, split_pairs
from ai_learning.reflexion.memory import Memory
from ai_learning.reflexion.tasks.base import Step, Strategy
from ai_learning.reflexion.trace import read_trace
from ai_learning.train import DivergedError

TRAIN, HELD_OUT = split_pairs(0)
SMALL = Schooling(steps=150, n_layer=2, n_embd=48)
GREEDY = Condition(Strategy.REFLEXION, temperature=0.0, trials=3)


@pytest.fixture(scope="module")
def losses() -> list[float]:
    return []


@pytest.fixture(scope="module")
def model(losses: list[float]) -> LookBackGPT:
    """Ten seconds at school: it knows how one speaks there, and little else."""
    return school(TRAIN, SMALL, 0, lambda row: losses.append(row["loss"]))


@pytest.fixture(scope="module")
def tasks() -> list[HouseholdTask]:
    rng = random.Random(5)
    return [draw_task(HELD_OUT, rng, number) for number in range(6)]


# --- the model ----------------------------------------------------------------------------------------------


def test_it_learns(model: LookBackGPT, losses: list[float]) -> None:
    assert losses[0] > 4 and sum(losses[-10:]) / 10 < 1.2


def test_a_bad_id_is_told_and_not_remembered(model: LookBackGPT) -> None:
    ids, cache = torch.tensor([[1, 2, 3]]), KVCache(model.config, 1)
    want = model(ids)
    model(ids[:, :2], cache=cache)
    size = model.config.vocab_size
    with pytest.raises(ValueError, match=f"token id {size} is outside the vocabulary of {size}"):
        model(torch.tensor([[size]]), cache=cache)
    torch.testing.assert_close(model(ids[:, 2:], cache=cache)[:, -1], want[:, -1])


def test_a_cache_changes_nothing(model: LookBackGPT) -> None:
    idx = torch.randint(0, len(WORDS), (3, 20), generator=torch.Generator().manual_seed(0))
    cache = KVCache(model.config, 3)
    parts = [model(part, cache=cache) for part in idx.split((7, 1, 1, 11), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), rtol=1e-4, atol=1e-4)


def test_without_its_look_back_it_is_the_gpt() -> None:
    model = Schooling(n_layer=1, n_embd=32).model(1)
    plain = GPT(model.config)
    torch.nn.init.normal_(model.lm_head.weight)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "look_back"})
    idx = torch.randint(0, len(WORDS), (2, 9))
    assert not torch.allclose(model(idx), plain(idx))
    torch.nn.init.zeros_(model.look_back)
    torch.testing.assert_close(model(idx), plain(idx))


def test_it_does_not_see_the_future(model: LookBackGPT) -> None:
    idx = torch.randint(2, len(WORDS), (1, 12))
    other = idx.clone()
    other[0, 8:] = 1
    torch.testing.assert_close(model(idx)[:, :8], model(other)[:, :8])


def test_rows_of_different_lengths_are_each_as_if_alone(model: LookBackGPT) -> None:
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    rows = Rows(model, prompts, room=3)
    more = torch.tensor([[3, 4], [5, 6], [7, 8]])
    rows.feed(more[:, :1]), rows.feed(more[:, 1:])
    for row, prompt in enumerate(prompts):
        alone = model(torch.tensor([prompt + more[row].tolist()]))[0, -1]
        torch.testing.assert_close(rows.logits[row], alone, rtol=1e-4, atol=1e-4)


def test_what_fills_a_row_up_is_not_looked_back_at(model: LookBackGPT) -> None:
    prompt = torch.tensor([[6, 7, 8]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    mask = torch.tensor([False, False, True, True, True]) | torch.eye(5, dtype=torch.bool)
    for filling in (0, 9):
        idx = torch.cat([torch.full((1, 2), filling), prompt], dim=1)
        torch.testing.assert_close(model(idx, positions=positions, mask=mask)[:, 2:], model(prompt))


def test_batches_are_a_function_of_the_seed_and_learn_only_what_follows() -> None:
    first, again, other = (next(batches(TRAIN, 4, seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and first[0].shape[0] == 4
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])
    x, y = first
    learnt = y >= 0
    assert learnt.any() and torch.equal(y[:, :-1][learnt[:, :-1]], x[:, 1:][learnt[:, :-1]])


def test_a_loss_that_is_no_number_ends_it() -> None:
    with pytest.raises(DivergedError, match="became nan in step 2: lower the learning rates"):
        school(TRAIN, replace(SMALL, lr=math.inf, warmup=0), seed=0)


def test_collate_fills_up_on_the_right() -> None:
    from ai_learning.reflexion.household.demonstrations import Demonstration

    x, y = collate([Demonstration([4, 5, 6], [False, False, True]), Demonstration([7, 8], [False, True])])
    assert x.tolist() == [[4, 5], [7, 0]] and y.tolist() == [[-100, 6], [8, -100]]


# --- the trials ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [Strategy.NONE, Strategy.LAST_ATTEMPT, Strategy.REFLEXION])
def test_the_graph_and_the_batch_do_the_same(
    strategy: Strategy, model: LookBackGPT, tasks: list[HouseholdTask], tmp_path: Path
) -> None:
    """Greedy: every action, every answer, every reflection."""
    runs = run_all(model, tasks, replace(GREEDY, strategy=strategy))
    actor = GPTChatModel(gpt=model, tokenizer=TOKENIZER, max_tokens=2)  # a verb and a noun
    agent = Reflexion(
        actor,
        reflector=GPTChatModel(gpt=model, tokenizer=TOKENIZER, max_tokens=LONGEST_REFLECTION),
        strategy=strategy,
        trials=3,
        most_actions=MAX_ACTIONS,
        prompts=PROMPTS,
        out=tmp_path,
    )
    result = agent.run(tasks)
    events = list(read_trace(tmp_path / "trace.jsonl"))
    for task, run in zip(tasks, runs, strict=True):
        mine = [event for event in events if event.task == task.id]
        for number, steps in enumerate(run.trials, start=1):
            trial = [event for event in mine if event.trial == number]
            assert [e.data["action"] for e in trial if e.node == "act"] == [s.action for s in steps[1:]]
            assert [e.data["observation"] for e in trial if e.node == "observe"] == [
                s.observation for s in steps[1:]
            ]
        assert [e.data["reflection"] for e in mine if e.node == "reflect"] == run.reflections
        assert max(event.trial for event in mine) == len(run.trials)
    assert [one.solved for one in result.tasks] == [run.solved_in is not None for run in runs]
    assert any(run.reflections for run in runs) == strategy.reflects


def test_a_seed_repeats_a_run(model: LookBackGPT, tasks: list[HouseholdTask]) -> None:
    how = Condition(Strategy.REFLEXION, trials=2)
    once, again, other = (run_all(model, tasks, how, seed) for seed in (3, 3, 4))
    assert once == again != other


def test_solved_tasks_stop_and_the_others_go_on(model: LookBackGPT, tasks: list[HouseholdTask]) -> None:
    for run in run_all(model, tasks, Condition(Strategy.REFLEXION, trials=3)):
        assert len(run.trials) == (run.solved_in or 3)
        assert len(run.reflections) == min(len(run.trials), 2) - (
            run.solved_in is not None and run.solved_in < 3
        )
        for steps in run.trials:
            assert 2 <= len(steps) <= MAX_ACTIONS + 1 and steps[0].observation.startswith("task: ")


def test_ablations(model: LookBackGPT, tasks: list[HouseholdTask]) -> None:
    plain, empty, shuffled = (
        run_all(model, tasks, replace(GREEDY, trials=2, ablation=ablation)) for ablation in Ablation
    )
    assert [run.trials[0] for run in plain] == [run.trials[0] for run in empty]
    assert all(not run.memory.reflections for run in empty)
    failed = [run for run in shuffled if run.reflections]
    assert len(failed) > 2
    for number, run in enumerate(failed):
        assert run.memory.reflections == (failed[(number + 1) % len(failed)].reflections[0],)
    assert all(run.memory.reflections == tuple(run.reflections) for run in plain)


def test_a_lone_task_is_never_given_its_own_reflection_as_another_s(
    model: LookBackGPT, tasks: list[HouseholdTask]
) -> None:
    (run,) = run_all(model, tasks[:1], replace(GREEDY, ablation=Ablation.SHUFFLED))
    assert run.reflections and not run.memory.reflections


def test_claims_are_judged_by_what_the_trials_showed() -> None:
    task = HouseholdTask("t", "put", "mug", "table", "box2")
    first = Step("", "", "task: put a mug on table")

    def look(place: str, answer: str) -> Step:
        return Step(f"open {place}", f"open {place}", answer)

    trials = [[first, look("box1", "empty"), look("box3", "empty")], [first, look("box2", "mug")], [first]]
    reflections = ["no mug in box1 box3 chest1 .", "mug in box2 ."]  # chest1 is a guess, if a lucky one
    run = Run(task, Memory(), trials, reflections)
    assert judge_claims(run) == [True, True, False, True]
    assert judge_claims(replace(run, reflections=["mug in box2 ."])) == [False]  # true, but not yet seen
    assert judge_claims(replace(run, reflections=["no mug in box2 ."], trials=trials[1:])) == [False]
    outcome = summarise([run, replace(run, solved_in=2), replace(run, solved_in=3)], trials=4)
    assert outcome.curve == [0, 1 / 3, 2 / 3, 2 / 3] and outcome.truth == 0.75
    assert summarise([replace(run, reflections=[])], trials=1).truth is None


# --- the command --------------------------------------------------------------------------------------------

TINY = ["--steps", "60", "--n-layer", "1", "--n-embd", "32", "--tasks", "8"]


def test_demo_leaves_a_report_a_figure_and_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    assert main(["reflexion", "demo", "--out", str(out), "--seeds", "2", *TINY]) == 0
    shown = capsys.readouterr().out
    assert "mean of seeds 0 to 1" in " ".join(shown.split()) and "CPU seconds a seed" in shown
    for name in ("report.html", "success_by_trial.png", "graph/trace.html", "seed0.pt", "seed1.json"):
        assert (out / name).stat().st_size > 500, name
    found = json.loads((out / "seed1.json").read_text())
    assert list(found["outcomes"]) == list(CONDITIONS) and found["seed"] == 1
    assert all(
        len(one["curve"]) == 6 and one["curve"] == sorted(one["curve"]) for one in found["outcomes"].values()
    )
    assert "shuffled reflections" in (out / "report.html").read_text()
    # An earlier demo may be replaced, or gone on with: its first seed is not made again.
    (out / "seed1.json").unlink()  # as if it had been killed in its second seed
    before = (out / "seed0.pt").stat().st_mtime_ns
    again = ["reflexion", "demo", "--out", str(out), "--seeds", "2", "--resume", *TINY]
    assert main(again) == 0 and json.loads((out / "seed1.json").read_text())["outcomes"] == found["outcomes"]
    assert (out / "seed0.pt").stat().st_mtime_ns == before
    assert main([*again, "--steps", "61"]) == 2
    assert "was made with steps=60, not 61" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--seeds", "0"], "seeds=0 must be at least 1"), (["--steps", "0"], "steps=0 must be at least 1")],
)
def test_bad_options_are_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reflexion", "demo", "--out", str(tmp_path), *args]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["reflexion", "demo", "--out", str(tmp_path), *TINY]) == 2
    assert "holds something other than a demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_the_lift() -> None:
    """The paper's result, one seed: words about all trials are worth more than the last trial itself."""
    _, done = experiment(Schooling(), seed=3, n_tasks=120)
    last = {name: curve[-1] for name, curve in mean_curves([done]).items()}
    assert last[MAIN] >= 0.85
    assert last[MAIN] - last["none"] >= 0.35 and last[MAIN] - last["last attempt"] >= 0.05
    for control in ("empty reflections", "shuffled reflections"):
        assert last[control] - last["none"] <= 0.1
    assert sum(done.cpu_seconds.values()) < 8 * 60
