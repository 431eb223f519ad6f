"""Demonstrations: what the teacher did and wrote, as ids, with a mask of what the model should learn."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluators import heuristic
from ..memory import Memory
from ..tasks.base import Step, Strategy
from . import teacher
from .text import END, TOKENIZER, actor_prompt, reflector_prompt, step_text
from .world import MAX_ACTIONS, PLACES, TARGETS, THINGS, HouseholdTask, Pair, draw_task

MOST_TRIALS = 6
SLIPS = 0.1
"""share of actions, in every other demonstration, that are not the teacher's: the model meets odd situations,
but does not learn to get into them"""
STRATEGIES = {
    Strategy.NONE: 1,
    Strategy.LAST_ATTEMPT: 4,
    Strategy.REFLEXION: 9,
    Strategy.LAST_ATTEMPT_REFLEXION: 4,
}
"""how often a demonstration is of which"""


@dataclass(frozen=True)
class Demonstration:
    """A trial, and the reflection on it where it failed."""

    ids: list[int]
    learn: list[bool]
    """whether the model should have written this id"""


def demonstrate(pairs: Sequence[Pair], rng: random.Random) -> list[Demonstration]:
    """Two trials of a run of the teacher's, or one if it has only one: the last, and one before it.

    The last trial is number one to six, equally often: late trials, with much to remember, are the hard ones.
    """
    strategy = rng.choices(list(STRATEGIES), list(STRATEGIES.values()))[0]
    trials = 1 if strategy is Strategy.NONE else rng.randint(1, MOST_TRIALS)
    while True:  # until a task comes that is not solved too early
        found = _run(draw_task(pairs, rng), strategy, trials, rng)
        if len(found) == trials:
            chosen = found[-1:] + ([rng.choice(found[:-1])] if trials > 1 else [])
            return [trial.written_out(rng) for trial in chosen]


def _run(task: HouseholdTask, strategy: Strategy, trials: int, rng: random.Random) -> list["Trial"]:
    """Trials until success, at most so many."""
    memory, last_attempt = Memory(rng.choice((1, 3))), ""
    found: list[Trial] = []
    while len(found) < trials and not (found and found[-1].success):
        trial = Trial(task, strategy, memory, last_attempt, slips=rng.choice((0.0, SLIPS)))
        trial.play(rng)
        found.append(trial)
        if len(found) < trials and not trial.success:
            last_attempt = last_attempt_text(trial.steps)
            if strategy.reflects:
                memory = memory.add(teacher.reflect(reflector_prompt(task, memory, trial.steps), rng))
    return found


def last_attempt_text(steps: Sequence[Step]) -> str:
    """A failed trial as the graph shows it to the next one."""
    text = "".join(step_text(step) for step in steps).strip()
    return f"{text}\nResult: {heuristic(steps[1:], MAX_ACTIONS)}"


class Trial:
    """One trial of the teacher's."""

    def __init__(
        self, task: HouseholdTask, strategy: Strategy, memory: Memory, last_attempt: str, slips: float
    ) -> None:
        self.house = task.environment()
        self.steps = [Step("", "", self.house.reset())]
        self.task, self.strategy, self.memory = task, strategy, memory
        self.head = actor_prompt(task, strategy, memory, self.steps, last_attempt)
        self.slips = slips
        self.slipped: list[bool] = []
        self.success = False

    def play(self, rng: random.Random) -> None:
        """To its end."""
        notes = teacher.Notes(self.head)
        while not self.success and not heuristic(self.steps[1:], MAX_ACTIONS):
            slip = rng.random() < self.slips
            action = odd_action(rng) if slip else teacher.act(notes, rng)
            answer, _, self.success = self.house.step(action)
            self.slipped.append(slip)
            self.steps.append(Step(action, action, answer))
            notes.see(action, answer)

    def written_out(self, rng: random.Random) -> Demonstration:
        """As ids; the last attempt is no part of the reflector's prompt, so those end with the trial."""
        ids = TOKENIZER.encode(self.head)
        learn = [False] * len(ids)
        for step, slip in zip(self.steps[1:], self.slipped, strict=True):
            words = TOKENIZER.encode(step_text(step))
            ids += words
            world = len(words) - 3  # after a verb, a noun and "Observation:"
            learn += [not slip] * 3 + [False] * world
        if not self.success and not self.strategy.shows_attempt:
            asked = reflector_prompt(self.task, self.memory, self.steps)
            words = TOKENIZER.encode(f"{teacher.reflect(asked, rng)} {END}")
            ids += [*TOKENIZER.encode("reflect:"), *words]
            learn += [False] + [True] * len(words)
        return Demonstration(ids, learn)


def odd_action(rng: random.Random) -> str:
    """Something that a model that is not quite right might do."""
    verb, nouns = rng.choice(
        (("go", PLACES), ("go", PLACES), ("open", PLACES), ("take", THINGS), ("go", TARGETS))
    )
    return f"{verb} {rng.choice(nouns)}"
