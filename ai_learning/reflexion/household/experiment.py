"""The paper's figure on the household: success by trial, and controls that say where a gain comes from."""

import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...files import write_text
from ...model import GPT
from ..tasks.base import Strategy
from .runner import Ablation, Condition, Run, run_all
from .teacher import read_reflection
from .training import Schooling, school
from .world import draw_task, split_pairs

CONDITIONS = {
    "none": Condition(Strategy.NONE),
    "last attempt": Condition(Strategy.LAST_ATTEMPT),
    "reflexion, Ω = 1": Condition(Strategy.REFLEXION, window=1),
    "reflexion, Ω = 3": Condition(Strategy.REFLEXION, window=3),
    "last attempt + reflexion": Condition(Strategy.LAST_ATTEMPT_REFLEXION, window=3),
    "empty reflections": Condition(Strategy.REFLEXION, ablation=Ablation.EMPTY),
    "shuffled reflections": Condition(Strategy.REFLEXION, ablation=Ablation.SHUFFLED),
}
MAIN = "reflexion, Ω = 3"


@dataclass(frozen=True)
class Outcome:
    """What one condition reached."""

    curve: list[float]
    """share of tasks solved after 1, 2 … trials"""
    claims: int
    """statements in the reflections: this place has it not, that place has it"""
    true_claims: int
    """those that the task's own trials had shown"""

    @property
    def truth(self) -> float | None:
        """Share of the claims that are true; ``None`` where nothing was claimed."""
        return self.true_claims / self.claims if self.claims else None


@dataclass(frozen=True)
class Result:
    """What one seed's model reached under every condition."""

    seed: int
    tasks: int
    """how many"""
    parameters: int
    """of the model"""
    outcomes: dict[str, Outcome]
    cpu_seconds: dict[str, float]
    """of this process: training, evaluation"""

    def save(self, path: Path | str) -> None:
        """As JSON."""
        write_text(path, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path | str) -> "Result":
        """What ``save`` wrote."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        found["outcomes"] = {name: Outcome(**outcome) for name, outcome in found["outcomes"].items()}
        return cls(**found)


def experiment(
    config: Schooling,
    seed: int = 0,
    n_tasks: int = 200,
    conditions: Sequence[str] = tuple(CONDITIONS),
    listener: Callable[[dict], None] = lambda row: None,
    on_outcome: Callable[[str, Outcome], None] = lambda name, outcome: None,
) -> tuple[GPT, Result]:
    """Train a model, and let it try held-out tasks under each of ``conditions``.

    The (family, thing) pairs of these tasks are in no demonstration.
    """
    train, held_out = split_pairs(seed)
    began = time.process_time()
    model = school(train, config, seed, listener)
    trained = time.process_time()
    rng = random.Random(f"held-out tasks {seed}")
    tasks = [draw_task(held_out, rng, number) for number in range(n_tasks)]
    outcomes = {}
    for name in conditions:
        how = CONDITIONS[name]
        outcomes[name] = summarise(run_all(model, tasks, how, seed), how.trials)
        on_outcome(name, outcomes[name])
    seconds = {"training": trained - began, "evaluation": time.process_time() - trained}
    return model, Result(seed, n_tasks, model.n_params(), outcomes, seconds)


def summarise(runs: Sequence[Run], trials: int) -> Outcome:
    """Success by trial, and what the reflections' claims are worth."""
    solved = [run.solved_in or trials + 1 for run in runs]
    curve = [sum(number <= trial for number in solved) / len(runs) for trial in range(1, trials + 1)]
    verdicts = [verdict for run in runs for verdict in judge_claims(run)]
    return Outcome(curve, len(verdicts), sum(verdicts))


def judge_claims(run: Run) -> list[bool]:
    """For each claim of each reflection, whether the trials before it had shown just that."""
    known: dict[str, str] = {}
    verdicts = []
    for steps, reflection in zip(run.trials, run.reflections, strict=False):
        for step in steps:
            verb, _, place = step.action.partition(" ")
            if verb == "open" and step.observation != "nothing":
                known[place] = step.observation
        without, where, _ = read_reflection(reflection)
        thing = run.task.thing
        verdicts += [known.get(place, thing) != thing for place in without]
        verdicts += [known.get(where) == thing] if where else []
    return verdicts


def mean_curves(results: Sequence[Result]) -> dict[str, list[float]]:
    """Condition → mean over seeds of the success by trial."""
    columns = {
        name: zip(*(one.outcomes[name].curve for one in results), strict=True) for name in results[0].outcomes
    }
    return {name: [sum(column) / len(column) for column in found] for name, found in columns.items()}


def success_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean success by trial, and the share of the reflections' claims that are true."""
    curves = mean_curves(results)
    trials = len(next(iter(curves.values())))
    rows = []
    for name, curve in curves.items():
        claims = sum(one.outcomes[name].claims for one in results)
        true = sum(one.outcomes[name].true_claims for one in results)
        rows.append([name, *(f"{share:.1%}" for share in curve), f"{true / claims:.1%}" if claims else "–"])
    return ["", *(f"after {number}" for number in range(1, trials + 1)), "claims true"], rows


def seed_table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: success after the last trial by seed, and what each seed cost."""
    rows = [
        [
            str(one.seed),
            *(f"{outcome.curve[-1]:.1%}" for outcome in one.outcomes.values()),
            " + ".join(f"{seconds:.0f}" for seconds in one.cpu_seconds.values()),
        ]
        for one in results
    ]
    return ["seed", *results[0].outcomes, "CPU seconds: training + evaluation"], rows


def findings(results: Sequence[Result]) -> list[str]:
    """What was measured, as sentences."""
    curves = mean_curves(results)
    last = {name: 100 * curve[-1] for name, curve in curves.items()}
    return [
        f"After {len(curves[MAIN])} trials {MAIN} has solved {last[MAIN]:.1f} %: "
        f"{last[MAIN] - last['none']:+.1f} points against trying again with no memory, "
        f"{last[MAIN] - last['last attempt']:+.1f} against seeing the last attempt.",
        f"Without its words the gain is gone: empty reflections {last['empty reflections']:.1f} %, another "
        f"task's {last['shuffled reflections']:.1f} %, no memory {last['none']:.1f} %.",
        "The last attempt shows three places; reflections pass on all that were seen. (A searcher with a "
        "fixed order would need only the last: this actor draws, as a sampled language model does.)",
    ]
