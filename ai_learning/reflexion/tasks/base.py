"""What a task, its environment and a verdict are, whoever makes them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable


class Strategy(StrEnum):
    """What an attempt knows of the ones before it, by the paper's names.

    For programs there are two more (table 3 of the paper, its ablation): they never see a test.
    """

    NONE = "none"
    """nothing: try again"""
    LAST_ATTEMPT = "last_attempt"
    """the last trajectory, as it was"""
    REFLEXION = "reflexion"
    """the reflections in memory"""
    LAST_ATTEMPT_REFLEXION = "last_attempt_reflexion"
    """both"""
    IMMEDIATE_REFLECTION = "immediate_reflection"
    """programs: reflect on the last program without running a test, then rewrite it"""
    IMMEDIATE_REFINEMENT = "immediate_refinement"
    """programs: rewrite the last program at once, with neither tests nor reflection"""

    @property
    def reflects(self) -> bool:
        """Whether failures are put into words and remembered."""
        return self in (
            Strategy.REFLEXION,
            Strategy.LAST_ATTEMPT_REFLEXION,
            Strategy.IMMEDIATE_REFLECTION,
        )

    @property
    def shows_attempt(self) -> bool:
        """Whether the actor sees the last trajectory."""
        return self not in (Strategy.NONE, Strategy.REFLEXION)

    @property
    def tests(self) -> bool:
        """Whether a trial is evaluated before the next begins."""
        return self not in (Strategy.IMMEDIATE_REFLECTION, Strategy.IMMEDIATE_REFINEMENT)


@dataclass(frozen=True)
class Step:
    """One turn of a trajectory. Where nothing is acted upon (chain of thought, code) there is only one."""

    text: str
    """the model's answer as it came"""
    action: str = ""
    """what was read from it: an action, a final answer, a program"""
    observation: str = ""
    """what the world said; empty where there is none"""


@dataclass(frozen=True)
class Attempt:
    """What one trial produced."""

    steps: tuple[Step, ...] = ()
    """the trajectory, the paper's short-term memory"""
    answer: str = ""
    """the final answer or program; empty when the trial ended without one"""
    success: bool = False
    """what the environment said, where there is one"""


@dataclass(frozen=True)
class Verdict:
    """An evaluator's judgement of an attempt."""

    success: bool
    """whether the trials end here"""
    feedback: str = ""
    """in words, for the reflector and the next attempt; never a hidden test or the right answer"""
    solved: bool | None = None
    """the truth, where the agent may not know it (hidden tests); ``None``: the same as ``success``"""

    @property
    def truth(self) -> bool:
        """What the report counts."""
        return self.success if self.solved is None else self.solved


@runtime_checkable
class TextEnvironment(Protocol):
    """A world that is told and asked in words; ALFWorld's and TextWorld's fit behind an adapter of ten lines.

    It must answer the same actions in the same way after each ``reset``: a run that was killed is resumed by
    playing the trial's actions again.
    """

    def reset(self) -> str:
        """Begin again; the first observation, which also says what is to be done."""

    def step(self, action: str) -> tuple[str, bool, bool]:
        """Act; (observation, whether it is over, whether it succeeded)."""


class Task(Protocol):
    """One problem."""

    @property
    def id(self) -> str:
        """Unique in its data set."""

    @property
    def kind(self) -> str:
        """``questions``, ``programming`` or ``environment``: chooses the actor and the folder of prompts."""

    @property
    def prompt(self) -> str:
        """What the actor is told. Nothing else of the task reaches the model."""

    def evaluate(self, attempt: Attempt) -> Verdict:
        """The truth: exact match, hidden tests, the environment's word. The model never sees it."""


@runtime_checkable
class ActingTask(Task, Protocol):
    """A task that is solved by acting in an environment."""

    def environment(self) -> TextEnvironment:
        """A new one for each trial."""


@runtime_checkable
class ProgrammingTask(Task, Protocol):
    """A task that is solved by a program; ``prompt`` is its signature and docstring.

    ``evaluate`` runs the hidden tests on ``attempt.answer`` in the sandbox.
    """

    @property
    def entry_point(self) -> str:
        """The function that the tests call."""
