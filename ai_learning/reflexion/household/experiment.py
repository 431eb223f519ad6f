"""The paper's figure on the household: success by trial, and controls that say where a gain comes from."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
class Experiment:
    """One seed: a model, and what it reached under every condition."""

    seed: int
    model: GPT
    outcomes: dict[str, Outcome]
    cpu_seconds: dict[str, float]
    """of this process: training, evaluation"""


def experiment(
    config: Schooling,
    seed: int = 0,
    n_tasks: int = 200,
    conditions: Sequence[str] = tuple(CONDITIONS),
    listener: Callable[[dict], None] = lambda row: None,
    on_outcome: Callable[[str, Outcome], None] = lambda name, outcome: None,
) -> Experiment:
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
        outcomes[name] = summarise(run_all(model, tasks, CONDITIONS[name], seed), CONDITIONS[name].trials)
        on_outcome(name, outcomes[name])
    seconds = {"training": trained - began, "evaluation": time.process_time() - trained}
    return Experiment(seed, model, outcomes, seconds)


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


def mean_curves(experiments: Sequence[Experiment]) -> dict[str, list[float]]:
    """Condition → mean over seeds of the success by trial."""
    names = experiments[0].outcomes
    columns = {name: zip(*(one.outcomes[name].curve for one in experiments), strict=True) for name in names}
    return {name: [sum(column) / len(column) for column in found] for name, found in columns.items()}
