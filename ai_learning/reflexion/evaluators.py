"""The evaluator: was that a success? By the truth, by the model's own tests, by a judge, by rules of thumb.

What may end the trials and what counts in the report are two things: an agent that programs goes by the tests
that it wrote itself, and the hidden ones decide only the figure (``Verdict.solved``).
"""

import re
from collections.abc import Sequence

from langchain_core.messages import BaseMessage

from .prompt_files import Prompts
from .reflector import attempt_text
from .tasks.base import Attempt, ProgrammingTask, Step, Task, Verdict

MOST_CYCLES = 3
"""section 4.1: the same action with the same response more often than that is a loop"""
MOST_ACTIONS = {"environment": 30, "questions": 6}
"""section 4.1: more actions than that in a trial are inefficient planning; ReAct's limit for questions"""

EVALUATORS = ("truth", "unit_tests", "model", "none")


def heuristic(steps: Sequence[Step], most_actions: int = MOST_ACTIONS["environment"]) -> str:
    """Why a trajectory is hopeless, in words for the reflector; empty while it is not.

    The paper's two rules for decision making: hallucination (a loop), and inefficient planning.
    """
    last = steps[-(MOST_CYCLES + 1) :]
    if len(last) > MOST_CYCLES and len({(step.action, step.observation) for step in last}) == 1:
        shown = f'"{last[0].action}"' if last[0].action else "A turn without an action"
        return f"{shown} was answered in the same way more than {MOST_CYCLES} times: you are in a loop."
    if len(steps) >= most_actions:
        return f"You used up all {most_actions} actions."
    return ""


def judge_messages(prompts: Prompts, task: Task, attempt: Attempt) -> list[BaseMessage]:
    """The prompt that asks a model for its judgement."""
    return prompts.messages(
        "judge",
        task=task.prompt,
        trajectory=attempt_text(attempt),
        answer=attempt.answer or "(none)",
    )


def read_judgement(answer: str) -> Verdict:
    """A judge's verdict; one that cannot be read is a failure that says so."""
    found = re.search(r"\b(in)?correct\b\W*(.*)", answer, re.IGNORECASE | re.DOTALL)
    if not found:
        return Verdict(False, "The judge gave no verdict.")
    reason = " ".join(found[2].split())
    return Verdict(not found[1], f"A judge says: {'in' if found[1] else ''}correct. {reason}".strip())


def judge_by_tests(
    task: ProgrammingTask, attempt: Attempt, tests: Sequence[str], allow_unsafe: bool = False
) -> Verdict:
    """The verdict of the tests that the model wrote; no test at all is no success."""
    from .unit_tests import run_tests  # starts processes: only here

    if not attempt.answer:
        return Verdict(False, "There was no Python program in the answer.")
    if not tests:
        return Verdict(False, "No unit test could be read, so nothing is known of this program.")
    outcome = run_tests(attempt.answer, tests, allow_unsafe=allow_unsafe)
    return Verdict(outcome.passed, outcome.feedback)
