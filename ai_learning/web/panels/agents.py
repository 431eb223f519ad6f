"""Agents: what Toolformer's filter kept and dropped, and a Reflexion run trial by trial.

The files are those that the server was started with, and those below its runs; a browser chooses among them
by the names in this list.
"""

import itertools
import math
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ...errors import InputError
from ...reflexion.trace import Event, read_trace
from ...toolformer.store import read_annotated
from ..bench import Bench, Name
from ..guard import Refused

TRACE = "trace.jsonl"
MOST_FILES, MOST_ITEMS, MOST_EVENTS, LONGEST = 200, 500, 2000, 20_000

Kind = Literal["toolformer", "reflexion"]


class Open(BaseModel):
    """Which file, and which of its texts or tasks."""

    file: Name
    item: int = Field(0, ge=0, le=MOST_ITEMS)


def router(bench: Bench) -> APIRouter:
    """The panel's questions."""
    api = APIRouter(prefix="/api/agents")

    @api.get("")
    def overview() -> dict[str, Any]:
        """What can be opened."""
        return {"files": [{"name": name, "kind": kind} for name, (kind, _) in find(bench).items()]}

    @api.post("/open")
    def read(ask: Open) -> dict[str, Any]:
        """One text with its calls, or one task with its trials; and what else the file holds."""
        found = find(bench).get(ask.file)
        if found is None:
            raise Refused(404, f"there is no file {ask.file[:80]!r} among those that the page may open")
        kind, path = found
        try:
            return {"kind": kind, **(annotated if kind == "toolformer" else reflected)(path, ask.item)}
        except (InputError, OSError, KeyError, TypeError, AttributeError) as error:
            raise Refused(409, f"{ask.file} cannot be read: {' '.join(str(error).split())[:300]}") from None

    return api


def find(bench: Bench) -> dict[str, tuple[Kind, Path]]:
    """Files by the name to show: those given, then those below the runs."""
    found: dict[str, tuple[Kind, Path]] = {}
    below = [path for depth in ("*", "*/*") for path in sorted(bench.runs.glob(depth)) if path.is_dir()]
    for path in [*bench.agents, *below][:2000]:
        if (path / TRACE).is_file():
            found[str(path)] = ("reflexion", path / TRACE)
        elif path.is_dir() and (any(path.glob("part-*.parquet")) or any(path.glob("part-*.jsonl"))):
            found[str(path)] = ("toolformer", path)
        elif path.name == TRACE and path.is_file():
            found[str(path)] = ("reflexion", path)
        elif path.suffix in (".parquet", ".jsonl") and path.is_file():
            found[str(path)] = ("toolformer", path)
    return dict(itertools.islice(found.items(), MOST_FILES))


def annotated(path: Path, item: int) -> dict[str, Any]:
    """The text number ``item`` with every call that was sampled for it."""
    documents = list(itertools.islice(read_annotated(path), MOST_ITEMS))
    if not documents:
        raise InputError("it holds no document")
    document = documents[min(item, len(documents) - 1)]
    return {
        "items": [f"{d.text[:60]} ({len(d.kept)} of {len(d.candidates)} calls kept)" for d in documents],
        "text": document.text[:LONGEST],
        "candidates": [
            {
                "offset": c.offset,
                "call": str(c.call),
                "result": c.result,
                "error": c.error,
                "probability": number(c.probability),
                "loss_plus": number(c.loss_plus),
                "loss_minus": number(c.loss_minus),
                "loss_nothing": number(c.loss_nothing),
                "loss_call": number(c.loss_call),
                "gain": number(c.gain),
                "kept": c.kept,
            }
            for c in document.candidates
        ],
    }


def reflected(path: Path, item: int) -> dict[str, Any]:
    """The task number ``item``, trial by trial."""
    tasks: dict[str, list[Event]] = {}
    for event in itertools.islice(read_trace(path), 100_000):
        tasks.setdefault(event.task, []).append(event)
    if not tasks:
        raise InputError("it holds no event yet")
    names = list(tasks)[:MOST_ITEMS]
    name = names[min(item, len(names) - 1)]
    events = sorted(tasks[name], key=lambda event: event.clock)[:MOST_EVENTS]
    trials = [
        {"trial": trial, **verdict(found), "steps": [step(event) for event in found]}
        for trial, group in itertools.groupby(events, key=lambda event: event.trial)
        for found in [list(group)]
    ]
    items = [f"{one}: {'solved' if solved(tasks[one]) else 'not solved'}" for one in names]
    return {"items": items, "task": name, "trials": trials}


def verdict(events: list[Event]) -> dict[str, Any]:
    """What a trial came to; ``solved`` is ``None`` where none was judged."""
    judged = [event.data for event in events if event.node == "evaluate"]
    return {"solved": _truth(judged[-1]) if judged else None}


def solved(events: list[Event]) -> bool:
    """Whether the task's last trial was right."""
    return bool(verdict(sorted(events, key=lambda event: event.clock))["solved"])


def _truth(data: dict[str, Any]) -> bool:
    return bool(data["success"] if data.get("solved") is None else data["solved"])


def step(event: Event) -> dict[str, Any]:
    """What the page shows of one node of the graph."""
    shown = ("text", "answer", "tests", "observation", "feedback", "reflection", "error")
    texts = {name: plain(event.data[name]) for name in shown if event.data.get(name)}
    prompt = event.data.get("prompt") or []
    return {
        "node": event.node,
        "texts": texts,
        "prompt": "\n\n".join(f"[{role}]\n{text}" for role, text in prompt)[:LONGEST],
        "tokens": (event.data.get("input_tokens") or 0) + (event.data.get("output_tokens") or 0),
        "seconds": event.data.get("seconds"),
    }


def plain(value: Any) -> str:
    """A text, or the lines of a list."""
    return ("\n".join(map(str, value)) if isinstance(value, list) else str(value))[:LONGEST]


def number(value: float) -> float | None:
    """NaN is not JSON."""
    return value if math.isfinite(value) else None
