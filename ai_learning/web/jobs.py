"""Trainings that the page starts: one at a time, each in a process of its own, so that a crash of one, or its
hunger for memory, leaves the server up.

A run is an ordinary run's folder (``run_folder.py``) made by an ordinary command: what the page shows is read
from its metrics, and the command line can go on with it. Beside the folder lie the text (``run-1.txt``) and
what the process printed (``run-1.log``).
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import previous_path
from ..files import write_text
from ..run_folder import read_metrics
from .guard import Refused

MAX_RUNS = 100
_NAME = re.compile(r"(run|lora)-([0-9]{1,4})")
_STOP_SECONDS = 20.0


@dataclass
class _Running:
    name: str
    process: subprocess.Popen
    stopping: bool = False


class Jobs:
    """The trainings in ``folder``, of which at most one is running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self.starts = 0
        """how often something was started: a page that sees it change reads all rows again"""

    def names(self, kind: str) -> list[str]:
        """Runs of a kind (``run`` or ``lora``), the newest first."""
        matches = [_NAME.fullmatch(p.stem) for p in self.folder.glob(f"{kind}-*.json")]
        numbers = sorted((int(m[2]) for m in matches if m), reverse=True)
        return [f"{kind}-{number}" for number in numbers]

    def start(self, kind: str, module: str, prepare: Callable[[Path], list[str]], **about: Any) -> str:
        """Start a new run, and give its name.

        Args:
            kind: ``run`` or ``lora``.
            module: what ``python -m`` runs.
            prepare: is given the run's folder, which is not there yet; writes what is needed beside it and
                gives the options for ``module``.
            about: what to note of the run; ``steps`` among it.

        Raises:
            Refused: one is running, or there are too many already.
        """
        with self._lock:
            self._refuse_second()
            names = self.names(kind)
            if len(names) >= MAX_RUNS:
                raise Refused(409, f"{self.folder} holds {len(names)} runs: delete some of its files")
            name = f"{kind}-{int(names[0].partition('-')[2]) + 1 if names else 1}"
            arguments = prepare(self.folder / name)
            note = {**about, "module": module, "arguments": arguments}
            write_text(self.folder / f"{name}.json", json.dumps(note))
            self._spawn(name, module, arguments)
            return name

    def resume(self, name: str) -> None:
        """Go on with a run that was stopped.

        Raises:
            Refused: one is running, there is no such run, or it is at its end.
        """
        with self._lock:
            self._refuse_second()
            about = self._about(name)
            if self._state(name, about) != "stopped":
                raise Refused(409, f"{name} cannot go on: it is not a run that was stopped")
            self._spawn(name, about["module"], [*about["arguments"], "--resume"])

    def stop(self) -> None:
        """Ask the running one to save and end.

        Raises:
            Refused: none is running.
        """
        with self._lock:
            if self._running is None or self._running.process.poll() is not None:
                raise Refused(409, "no training is running")
            if self._running.stopping:  # a second signal would end it unsaved
                return
            self._running.stopping = True
            self._running.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End what is running, saved if it ends in time."""
        with self._lock:
            if self._running is None or self._running.process.poll() is not None:
                return
            process = self._running.process
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def report(self, name: str, after: int = 0) -> dict[str, Any]:
        """What the page draws of a run: its state, and its metrics from row ``after`` on."""
        about = self._about(name)
        rows = read_metrics(self.folder / name / "metrics.jsonl")
        state = self._state(name, about, rows)
        return {
            "name": name,
            "state": state,
            "message": self._last_words(name) if state == "failed" else "",
            "starts": self.starts,
            "after": after,
            "n_rows": len(rows),
            "rows": rows[after:],
            "command": _typed(about),
            **{key: value for key, value in about.items() if key not in ("module", "arguments")},
        }

    def running(self) -> str | None:
        """The run being trained now."""
        running = self._running
        return running.name if running and running.process.poll() is None else None

    def _refuse_second(self) -> None:
        if running := self.running():
            raise Refused(409, f"{running} is being trained: stop it, or wait for its end")

    def _spawn(self, name: str, module: str, arguments: list[str]) -> None:
        cores = os.cpu_count() or 1
        environment = {"OMP_NUM_THREADS": str(max(1, cores - 1)), **os.environ, "PYTHONUNBUFFERED": "1"}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
            )  # fmt: skip
        self._running = _Running(name, process)
        self.starts += 1

    def _about(self, name: str) -> dict[str, Any]:
        if not _NAME.fullmatch(name):
            raise Refused(404, f"there is no run {name[:40]!r}")
        try:
            about = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            return dict(about)
        except (OSError, ValueError):
            raise Refused(404, f"there is no run {name!r}") from None

    def _state(self, name: str, about: dict[str, Any], rows: list | None = None) -> str:
        """starting, running, stopping, done, stopped (can go on) or failed."""
        out = self.folder / name
        rows = read_metrics(out / "metrics.jsonl") if rows is None else rows
        running = self._running
        if running and running.name == name and running.process.poll() is None:
            return "stopping" if running.stopping else "running" if rows else "starting"
        if rows and rows[-1]["step"] >= about["steps"]:
            return "done"
        if running and running.name == name and running.process.returncode not in (0, 130):
            return "failed"
        return (
            "stopped"
            if any(p.exists() for p in (out / "last.pt", previous_path(out / "last.pt")))
            else "failed"
        )

    def _last_words(self, name: str) -> str:
        try:
            lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            lines = []
        said = [line.strip() for line in lines if line.strip()]
        return said[-1].partition("error: ")[2] or said[-1] if said else "it ended without a word"


def _typed(about: dict[str, Any]) -> str:
    """The command as one would type it."""
    module, arguments = about["module"], about["arguments"]
    program = ["ai-learning"] if module == "ai_learning.cli" else ["python", "-m", module]
    return shlex.join([*program, *arguments])
