"""A file to work in: a day's stubs, written out, and checked as a whole; progress is remembered."""

import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..errors import InputError
from ..files import write_text
from . import engine
from .catalogue import exercise, exercise_names
from .engine import Report

_HEAD = '''"""Exercises of {day}. Write each function, then check them all:

    ai-learning lessons check {file}

Stuck? `ai-learning lessons hint NAME 1` (then 2, 3), and at last `ai-learning lessons solution NAME`.
"""

import math

import torch
import torch.nn.functional as F
'''
_MARK = re.compile(r"^# exercise (\S+)", re.MULTILINE)


def write(day: str, path: Path) -> Path:
    """Write the stubs of a day's exercises.

    Raises:
        InputError: the day has none, or the file exists.
    """
    names = exercise_names(day)
    if not names:
        raise InputError(f"{day} has no exercises to check")
    if path.exists():
        raise InputError(f"{path} is already there: it may hold your work; move it away first")
    parts = [_HEAD.format(day=day, file=path.name)]
    for name in names:
        found = exercise(name)
        parts.append(f"\n\n# exercise {name}: {found.title}\n{found.stub.strip()}\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(parts))
    return path


def check_file(path: Path) -> Iterator[Report]:
    """Run a file and check each function that stands under an ``# exercise`` mark, in order.

    Raises:
        InputError: no such file, no marks, or the file itself does not run.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    names = _MARK.findall(source)
    names = [name.rstrip(":") for name in names]
    if not names:
        raise InputError(
            f"{path} has no line '# exercise NAME': `ai-learning lessons start day1` writes such a file"
        )
    exercises = [exercise(name) for name in names]
    module = _run(path)
    for found in exercises:
        function = getattr(module, found.function_name, None)
        if callable(function):
            yield engine.run(function, found)
        else:
            yield Report(
                found.name, (), "is there", cause=f"no function {found.function_name} in {path.name}"
            )


def _run(path: Path) -> ModuleType:
    name = f"_work_{path.stem}"  # a name of its own: a file may be called torch.py
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin]
        where = f", line {lines[-1]}" if lines else ""
        if isinstance(error, SystemExit):
            raise InputError(f"{path}{where}: it ends the program here; take the exit() out") from None
        raise InputError(f"{path}{where}: {type(error).__name__}: {error}") from None
    return module


# --- progress -----------------------------------------------------------------------------------------------


def progress_path() -> Path:
    """Where passed exercises are remembered: in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "ai_learning" / "progress.json"


def passed() -> set[str]:
    """Names of the exercises passed so far; an unreadable file, or one of another shape, counts as none."""
    try:
        found = json.loads(progress_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    names = found.get("passed") if isinstance(found, dict) else None
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def remember(names: set[str]) -> None:
    """Add passed exercises to the progress file."""
    path = progress_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"passed": sorted(passed() | names)}, indent=1))
