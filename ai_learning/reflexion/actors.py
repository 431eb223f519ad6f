"""The actor: how a task and what is remembered become a prompt, and an answer becomes an action.

    messages(situation) → prompt for one model call
    read(answer)        → the ``Step`` in it

Chain of thought and code are one call a trial; ReAct is one call a turn.
"""

import ast
import re
from dataclasses import dataclass, field

from langchain_core.messages import BaseMessage

from .memory import Memory
from .prompt_files import Prompts
from .tasks.base import Step, Strategy, Task

LONGEST_OBSERVATION = 2000
"""characters of an observation that the actor is shown"""
LONGEST_TRAJECTORY = 12000
"""characters of a trajectory that go into a prompt; the middle of a longer one is left out"""


@dataclass(frozen=True)
class Situation:
    """All that an actor may know."""

    task: Task
    strategy: Strategy
    memory: Memory
    steps: tuple[Step, ...] = ()
    """this trial so far: the short-term memory"""
    last_attempt: str = ""
    """the trajectory of the trial before, with its result"""


@dataclass(frozen=True)
class Actor:
    """A prompt by its role's name; ``read`` is what the kinds of actors differ in."""

    prompts: Prompts
    role: str = field(init=False, default="")
    stop: tuple[str, ...] = field(init=False, default=())

    def messages(self, now: Situation) -> list[BaseMessage]:
        """The prompt for the next call."""
        shows_reflections = now.strategy.reflects and now.memory.shown
        attempt = now.last_attempt if self.shows_attempt(now.strategy) else ""
        return self.prompts.messages(
            self.role,
            task=now.task.prompt,
            memory=self.prompts.section("memory", reflections=now.memory.text()) if shows_reflections else "",
            attempt=self.prompts.section("last_attempt", attempt=attempt),
            trajectory=trajectory_text(now.steps),
        )

    def shows_attempt(self, strategy: Strategy) -> bool:
        """Whether the prompt holds the last attempt."""
        return strategy.shows_attempt

    def read(self, answer: str) -> Step:
        """What the answer does."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChainOfThought(Actor):
    """Thinks, then answers, in one go (Wei et al. 2022)."""

    role: str = field(init=False, default="cot")

    def read(self, answer: str) -> Step:
        """The text in ``Finish[…]``, or else after ``Answer:``, or else the last line."""
        found = finish_of(answer)
        if found is None:
            marked = re.findall(r"(?im)^\W*(?:final )?answer\W*:\s*(.+)$", answer)
            lines = [line for line in answer.splitlines() if line.strip()]
            found = marked[-1] if marked else lines[-1] if lines else ""
        return Step(answer.strip(), found.strip())


@dataclass(frozen=True)
class ReAct(Actor):
    """Thinks and acts in turns (Yao et al. 2023)."""

    role: str = field(init=False, default="react")
    stop: tuple[str, ...] = field(init=False, default=("\nObservation", "Observation:"))

    def read(self, answer: str) -> Step:
        """What stands after ``Action:``; an answer of one line without it is taken for the action itself."""
        text = answer.strip()
        marked = re.search(r"(?im)^\W*action(?:\s*\d+)?\W*?:[ \t]*(.*)$", text)
        if marked:
            return Step(text[: marked.end()], marked[1].strip("*` \t"))
        thought_only = text.lower().startswith("thought")
        return Step(text, "" if "\n" in text or thought_only else text.lstrip("> ").strip())


@dataclass(frozen=True)
class Code(Actor):
    """Writes a program in one go."""

    role: str = field(init=False, default="write")

    def shows_attempt(self, strategy: Strategy) -> bool:
        """Always but for ``none``: advice on a program is of no use without the program, as in the paper."""
        return strategy is not Strategy.NONE

    def read(self, answer: str) -> Step:
        """The program in the answer; empty where there is none."""
        return Step(answer.strip(), program_of(answer))


ACTORS = {"cot": ChainOfThought, "react": ReAct, "code": Code}


def finish_of(text: str) -> str | None:
    """What stands in the last ``Finish[…]``."""
    start = text.lower().rfind("finish[")
    if start < 0:
        return None
    inside = text[start + len("finish[") :].split("\n", 1)[0]
    return inside[: inside.rindex("]")] if "]" in inside else inside


_FENCED = re.compile(r"^[ \t]*```[ \t]*([^\s`]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
"""language and content; the last block may lack its end"""


def program_of(answer: str) -> str:
    """The longest fenced block that is Python, or else the whole answer if it is; empty where neither is.

    A block that does not parse is better than none: what is wrong with it is feedback.
    """
    python = {"", "python", "python3", "py"}
    blocks = [block for language, block in _FENCED.findall(answer) if language.lower() in python]
    good = [block for block in [*blocks, answer] if is_python(block)]
    return max(good or blocks, key=len, default="").strip("\n")


def is_python(text: str) -> bool:
    """Whether ``text`` is a program: it parses, and has more than an expression in it."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(node, ast.Expr) for node in body)


def trajectory_text(steps: tuple[Step, ...]) -> str:
    """Steps as the actor reads them again: its own words, and what the world said."""
    lines = []
    for step in steps:
        if step.text:
            lines.append(step.text)
        if step.observation:
            lines.append(f"Observation: {shortened(step.observation, LONGEST_OBSERVATION)}")
    return shortened("\n".join(lines), LONGEST_TRAJECTORY)


def shortened(text: str, longest: int) -> str:
    """``text``, without its middle where it is too long."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
