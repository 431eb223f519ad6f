"""What a run keeps on disk: LangGraph's checkpoints in SQLite, and the trace, in step with them."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver

from ..errors import InputError
from .tasks.base import Task
from .trace import Event, TraceFile


@contextmanager
def open_database(path: Path | None) -> Iterator[SqliteSaver]:
    """The checkpoints in a file, or with ``None`` in memory.

    Raises:
        InputError: the file is no database, or cannot be written.
    """
    connection = sqlite3.connect(path or ":memory:", check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # outlives a kill without an fsync a step
        saver = SqliteSaver(connection)
        saver.setup()
        yield saver
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path} cannot be used: {error}") from None
    finally:
        connection.close()


def thread_of(task: Task) -> dict[str, Any]:
    """A task's thread, as LangGraph names it."""
    return {"configurable": {"thread_id": task.id}}


def event_of(task: Task, values: dict[str, Any]) -> Event:
    """What the last node did, from a task's state."""
    data = dict(values["event"])
    return Event(task.id, values["clock"], data.pop("node"), values["trial"], data)


def forget_past(graph: Any, task: Task) -> None:
    """Delete a task's checkpoints but the newest.

    Each holds a whole trajectory, so that together they grow with its square; the trace has it all once.
    """
    newest = graph.get_state(thread_of(task)).config["configurable"]["checkpoint_id"]
    with graph.checkpointer.cursor() as cursor:
        for table in ("checkpoints", "writes"):
            cursor.execute(
                f"DELETE FROM {table} WHERE thread_id = ? AND checkpoint_id < ?", (task.id, newest)
            )


def repair(trace: TraceFile, graph: Any, tasks: Sequence[Task]) -> None:
    """Write what the checkpoints know and the trace does not: a kill may have come between the two."""
    for task in tasks:
        values = graph.get_state(thread_of(task)).values
        if values.get("clock") and event_of(task, values).key not in trace.known:
            history = [snapshot.values for snapshot in graph.get_state_history(thread_of(task))]
            for older in [*reversed(history), values]:
                if older.get("clock"):
                    trace.append(event_of(task, older))
