"""A run's folder: one process at a time writes it, and its metrics survive a crash.

run.json       what was asked for
metrics.jsonl  one JSON object a line
last.pt        the newest checkpoint (last.prev.pt: the one before)
best.pt        the one with the lowest held-out loss
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import InputError
from .files import remove_stale, write_text


class RunFolder:
    """Holds the folder's lock while open; the system frees it however the process ends.

    Args:
        path: made if need be.
        writes: ``False`` for the further processes of one job: they hold no lock and write nothing.

    Raises:
        InputError: another process is writing there.
    """

    def __init__(self, path: Path | str, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.last = self.path / "last.pt"
        self.best = self.path / "best.pt"
        self.metrics = self.path / "metrics.jsonl"

    def __enter__(self) -> "RunFolder":
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise InputError(
                f"{self.path} is in use by another run (process {owner}): wait for it, or choose another"
            ) from None
        remove_stale(self.path)
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writes:
            self._lock.close()

    def log(self, row: dict[str, Any]) -> None:
        """Append one line to the metrics."""
        if self.writes:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the metrics after ``step``: a resumed run writes them again."""
        if not self.writes:
            return
        rows = [row for row in read_metrics(self.metrics) if row["step"] <= step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def save_options(self, options: dict[str, Any]) -> None:
        """Write ``run.json``; ``options["command"]`` names the command that can resume the run."""
        if self.writes:
            write_text(self.path / "run.json", json.dumps(options, indent=2) + "\n")


_NAMES = ("bytes", "chatml", "none", "-", "")  # what options call things that are no files


def absolute(source: str) -> str:
    """A path that holds from any folder, of what is there; a name (``builtin:…``, a hub's) as it is."""
    if source in _NAMES or source.startswith(("builtin:", "hf:")) or not Path(source).exists():
        return source
    return str(Path(source).resolve())


def with_absolute_paths(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Options for ``run.json``, so that a run is resumed from any folder."""
    return options | {name: absolute(str(options[name])) for name in names if options.get(name) is not None}


def read_options(path: Path | str, command: str) -> dict[str, Any]:
    """What ``save_options`` wrote into the folder ``path`` for ``command``.

    Raises:
        InputError: nothing there, damaged, or another command's.
    """
    file = Path(path) / "run.json"
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
        found = options.pop("command", None)
    except FileNotFoundError:
        raise InputError(f"no run in {path}: it has no run.json") from None
    except NotADirectoryError:
        raise InputError(f"no run in {path}: it is a file, not a run's folder") from None
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is damaged: {error}") from None
    if found != command:
        raise InputError(f"the run in {path} was made by `{found}`, not `{command}`: resume it with that")
    return dict(options)


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Rows of a metrics file; a last line torn by a crash is left out."""
    path = Path(path)
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
