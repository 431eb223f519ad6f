"""How a run went, put together from its events."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..run_folder import read_options
from .calls import Spent
from .trace import Event, read_trace


@dataclass
class Trial:
    """One finished trial."""

    trial: int
    """from 1"""
    success: bool
    """what the agent went by"""
    solved: bool
    """the truth"""
    answer: str
    actions: int
    """model answers in it"""
    feedback: str
    reflection: str = ""
    """written after it"""


@dataclass
class TaskResult:
    """How one task went."""

    id: str
    trials: list[Trial] = field(default_factory=list)
    error: str = ""
    """why it could not go on, where something broke"""
    spent: Spent = field(default_factory=Spent)

    @property
    def solved(self) -> bool:
        """The truth about the last trial."""
        return bool(self.trials) and self.trials[-1].solved

    def solved_after(self, trial: int) -> bool:
        """The truth about the last attempt, had ``trial`` trials been allowed."""
        return any(one.solved for one in [one for one in self.trials if one.trial <= trial][-1:])


class RunResult:
    """How a run went.

    Args:
        trials: allowed a task.

    Attributes:
        tasks: in the order they were given.
        spent: by all of them.
        stopped: why the run ended early; empty when it did not.
    """

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self.spent = Spent()
        self.stopped = ""
        self._tasks: dict[str, TaskResult] = {}

    @property
    def tasks(self) -> list[TaskResult]:
        """All of them."""
        return list(self._tasks.values())

    def expect(self, ids: Sequence[str]) -> None:
        """These tasks will come, in this order; one that never does counts as not solved."""
        for one in ids:
            self._tasks.setdefault(one, TaskResult(one))

    def take(self, event: Event) -> None:
        """Count an event."""
        task = self._tasks.setdefault(event.task, TaskResult(event.task))
        task.error = event.data.get("error", "")
        self.spent.add(event.data)
        task.spent.add(event.data)
        data = event.data
        if event.node == "evaluate":
            truth = bool(data["success"] if data["solved"] is None else data["solved"])
            task.trials.append(
                Trial(event.trial, data["success"], truth, data["answer"], data["actions"], data["feedback"])
            )
        elif event.node == "reflect" and task.trials:
            task.trials[-1].reflection = data["reflection"]

    def success_by_trial(self) -> list[float]:
        """Share of tasks that are solved after 1, 2 … trials: the paper's figure. An error is no success."""
        n = max(1, len(self._tasks))
        trials = range(1, self.trials + 1)
        return [sum(task.solved_after(trial) for task in self.tasks) / n for trial in trials]

    def to_jsonl(self) -> str:
        """A line a task."""
        lines = [
            json.dumps({"solved": task.solved, **asdict(task)}, ensure_ascii=False) for task in self.tasks
        ]
        return "".join(line + "\n" for line in lines)


def read_run(folder: Path | str) -> tuple[RunResult, dict[str, Any]]:
    """The result of the run in ``folder``, finished or not, and what it was asked for.

    Raises:
        InputError: no run there.
    """
    options = read_options(folder, "reflexion")
    result = RunResult(options["trials"])
    result.expect(options["tasks"])
    for event in read_trace(Path(folder) / "trace.jsonl"):
        result.take(event)
    return result, options
