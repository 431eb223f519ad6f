"""Self-reflection: a failed attempt and its result, in words for the next one (the paper's section 3)."""

from langchain_core.messages import BaseMessage

from .actors import shortened, trajectory_text
from .memory import Memory
from .prompt_files import Prompts
from .tasks.base import Attempt, Task

LONGEST_REFLECTION = 2000
"""characters; what a model that does not stop writes beyond that is no advice"""


def attempt_text(attempt: Attempt) -> str:
    """An attempt as the reflector and the next attempt read it: the program, or else the trajectory."""
    steps = attempt.steps
    if len(steps) == 1 and not steps[0].observation and "\n" in steps[0].action:
        return steps[0].action
    return trajectory_text(steps)


def reflection_messages(
    prompts: Prompts, task: Task, attempt: Attempt, feedback: str, memory: Memory
) -> list[BaseMessage]:
    """The prompt that asks why an attempt failed and what to do instead."""
    return prompts.messages(
        "reflect",
        task=task.prompt,
        trajectory=attempt_text(attempt) or "(nothing that could be read)",
        feedback=feedback or "It failed.",
        memory=prompts.section("memory", reflections=memory.text()),
    )


def read_reflection(answer: str) -> str:
    """The advice in an answer, without the label that models like to repeat."""
    text = answer.strip()
    if text.lower().startswith("reflection:"):
        text = text[len("reflection:") :].lstrip()
    return shortened(text, LONGEST_REFLECTION)
