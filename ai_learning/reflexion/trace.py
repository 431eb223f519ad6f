"""What happened, to be read: events as JSON lines, and the same as one HTML page."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from ..files import write_text


@dataclass(frozen=True)
class Event:
    """One node of the graph has run."""

    task: str
    """the task's id"""
    clock: int
    """counts a task's nodes from 1"""
    node: str
    """``write_tests``, ``begin``, ``act``, ``observe``, ``evaluate``, ``reflect``; or ``error``"""
    trial: int = 0
    """from 1; 0 before the first"""
    data: dict[str, Any] = field(default_factory=dict)
    """the prompt and the answer of a model call with its tokens and seconds, an observation, a verdict …"""

    @property
    def key(self) -> tuple[str, int, str]:
        """What an event is known by."""
        return self.task, self.clock, self.node


class TraceFile:
    """Appends events to a JSONL file, each once, from any thread, however often a run is resumed.

    Args:
        path: made if need be; events already there are read.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self.known = {event.key for event in read_trace(self.path)}
        _drop_torn_line(self.path)

    def append(self, event: Event) -> None:
        """Write ``event``, unless it is there."""
        with self._lock:
            if event.key in self.known:
                return
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
            self.known.add(event.key)


def read_trace(path: Path | str) -> Iterator[Event]:
    """Events of a trace file in the order they happened; a line torn by a crash is left out."""
    path = Path(path)
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield Event(**json.loads(line))
            except (ValueError, TypeError):
                continue


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


# --- the page ----------------------------------------------------------------------------------------------

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; --edge: #8884; --good: #2a8f4a; --bad: #c0392b; }}
  body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
  details {{ border-left: 2px solid var(--edge); margin: .4rem 0; padding-left: .8rem; }}
  summary {{ cursor: pointer; }}
  pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 .6rem; font-size: 13px; }}
  .role {{ font-size: 12px; opacity: .7; text-transform: uppercase; letter-spacing: .05em; }}
  .good {{ color: var(--good); }}  .bad {{ color: var(--bad); }}
  .reflect {{ border: 1px solid var(--edge); border-radius: 6px; padding: .4rem .8rem; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_page(events: Iterable[Event], path: Path | str, title: str = "Trace") -> None:
    """Write the events as a page: tasks, their trials, each step; prompts folded away. Nothing is loaded."""
    tasks: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        tasks[event.task].append(event)
    unfolded = len(tasks) <= 10
    body = "\n".join(
        _task(name, sorted(found, key=lambda e: e.clock), unfolded) for name, found in tasks.items()
    )
    write_text(path, _PAGE.format(title=escape(title), body=body))


def _task(name: str, events: list[Event], unfolded: bool) -> str:
    trials: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        trials[event.trial].append(event)
    verdicts = [event.data for event in events if event.node == "evaluate"]
    solved = bool(verdicts) and _truth(verdicts[-1])
    failed = next((event.data["error"] for event in reversed(events) if event.node == "error"), "")
    word = "solved" if solved else f"error: {failed}" if failed else "not solved"
    head = f'{escape(name)} <span class="{"good" if solved else "bad"}">{escape(word)}</span>'
    inner = "\n".join(_trial(number, found) for number, found in sorted(trials.items()))
    state = " open" if unfolded else ""
    return f"<details{state}><summary><b>{head}</b></summary>\n{inner}\n</details>"


def _trial(number: int, events: list[Event]) -> str:
    verdict = next((event.data for event in events if event.node == "evaluate"), None)
    word = "" if verdict is None else "solved" if _truth(verdict) else "failed"
    if verdict is not None and word == "failed" and verdict["success"]:
        word += ", though its evaluator was content"
    head = f'Trial {number} <span class="{"good" if word == "solved" else "bad"}">{word}</span>'
    if number == 0:
        head = "Before the first trial"
    inner = "\n".join(map(_event, events))
    return f"<details open><summary>{head}</summary>\n{inner}\n</details>"


def _truth(verdict: dict[str, Any]) -> bool:
    return bool(verdict["success"] if verdict.get("solved") is None else verdict["solved"])


_SHOWN = ("text", "observation", "feedback", "error")


def _event(event: Event) -> str:
    data = event.data
    parts = [f"<pre>{escape(str(data[name]))}</pre>" for name in _SHOWN if data.get(name)]
    if "tests" in data:
        parts.append(f"<pre>kept of these:\n{escape(chr(10).join(data['tests'])) or 'none'}</pre>")
    if not parts:
        return ""
    spent = ""
    if "seconds" in data:
        spent = f" · {data['input_tokens']} + {data['output_tokens']} tokens, {data['seconds']:.1f} s"
        if data["attempts"] > 1:
            spent += f", {data['attempts']} attempts ({'; '.join(data['errors'])})"
    if data.get("prompt"):
        shown = "\n\n".join(f"[{role}]\n{text}" for role, text in data["prompt"])
        parts.append(f"<details><summary>prompt</summary><pre>{escape(shown)}</pre></details>")
    head = f'<div class="role">{escape(event.node + spent)}</div>'
    return f'<div class="{escape(event.node)}">{head}{"".join(parts)}</div>'
