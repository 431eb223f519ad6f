"""``ai-learning lessons``: the lessons in their order, exercises to work on, and their checks."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Column, Table

from .. import checks
from ..checks import workfile
from ..errors import InputError
from ..files import atomic_path, write_text
from .common import console, parse

LESSONS = Path(__file__).resolve().parents[2] / "lessons"


@dataclass(frozen=True)
class List:
    """Show the lessons in their order, with your progress in their exercises."""


@dataclass(frozen=True)
class Start:
    """Copy a lesson and its exercises into a folder of yours."""

    lesson: Annotated[str, tyro.conf.Positional]
    """day1, day2 …"""
    out: Path = Path(".")
    """where to put the copies"""


@dataclass(frozen=True)
class Check:
    """Check the exercises that you wrote in a file; exit code 1 while one is wrong. Runs the file."""

    file: Annotated[Path, tyro.conf.Positional]
    """a file made by `lessons start`"""
    out: Path | None = None
    """write the verdicts as JSON, for a teacher's script"""


@dataclass(frozen=True)
class Hint:
    """Show a hint; each of the three says more than the one before."""

    exercise: Annotated[str, tyro.conf.Positional]
    """day1.attention …"""
    number: Annotated[int, tyro.conf.Positional] = 1
    """1, 2 or 3"""


@dataclass(frozen=True)
class Solution:
    """Show the library's own source for an exercise."""

    exercise: Annotated[str, tyro.conf.Positional]
    """day1.attention …"""


def main(args: list[str]) -> int:
    """Entry point."""
    command: Any = parse(List | Start | Check | Hint | Solution, args, "lessons") if args else List()
    if isinstance(command, Start):
        start(command)
    elif isinstance(command, Check):
        return check(command)
    elif isinstance(command, Hint):
        checks.hint(command.exercise, command.number)
    elif isinstance(command, Solution):
        checks.solution(command.exercise)
    else:
        show_list()
    return 0


def show_list() -> None:
    """The table of lessons."""
    done = workfile.passed()
    table = Table("day", "lesson", Column("file", no_wrap=True), "done")
    for path in lessons():
        names = checks.exercise_names(f"day{day(path)}")
        count = f"{len(done.intersection(names))}/{len(names)}" if names else "–"
        table.add_row(str(day(path)), title(path), path.name, count)
    console.print(table)


def start(command: Start) -> None:
    """Copy a lesson, and write its exercises as stubs."""
    source = find(command.lesson)
    name = f"day{day(source)}"
    target, work = command.out / source.name, command.out / f"{name}_exercises.py"
    if target.exists():
        raise InputError(f"{target} is already there: move it away or give another --out")
    if checks.exercise_names(name):
        workfile.write(name, work)
        console.print(f"exercises in {work}; check them: ai-learning lessons check {work}", markup=False)
    command.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
    how = f"python {target}" if target.suffix == ".py" else f"jupyter lab {target}"
    console.print(f"lesson in {target}; run it: {how}", markup=False)


def check(command: Check) -> int:
    """Print every verdict; 0 when all passed."""
    reports = []
    for report in workfile.check_file(command.file):
        console.print(str(report), markup=False)
        reports.append(report)
    good = [report.exercise for report in reports if report]  # a list: a file may mark an exercise twice
    workfile.remember(set(good))
    console.print(f"{len(good)} of {len(reports)} passed")
    if command.out is not None:
        verdicts = [
            {"exercise": r.exercise, "passed": bool(r), "failed_step": r.failed_step, "cause": r.cause}
            for r in reports
        ]
        write_text(command.out, json.dumps(verdicts, indent=1))
    return 0 if len(good) == len(reports) else 1


def lessons() -> list[Path]:
    """Lesson files in the order of their days.

    Raises:
        InputError: the package was installed without its repository.
    """
    if not LESSONS.is_dir():
        raise InputError("the lessons are in the repository, not in the installed package: clone it")
    found = [p for p in LESSONS.iterdir() if re.match(r"day\d+_", p.name, re.IGNORECASE)]
    # A notebook's percent-format source stands beside it: the notebook is the lesson.
    notebooks = {p.stem for p in found if p.suffix == ".ipynb"}
    return sorted((p for p in found if p.suffix == ".ipynb" or p.stem not in notebooks), key=day)


def day(path: Path) -> int:
    """Number of a lesson's day."""
    match = re.match(r"day(\d+)", path.name, re.IGNORECASE)
    return int(match[1]) if match else 0


def find(name: str) -> Path:
    """The lesson called ``name``: day1, 1, or the file's own name."""
    number = re.search(r"\d+", name)
    for path in lessons():
        if path.name == name or (number and day(path) == int(number[0])):
            return path
    raise InputError(f"no lesson {name!r}; there are {', '.join(f'day{day(p)}' for p in lessons())}")


def title(path: Path) -> str:
    """First heading of a lesson."""
    match = re.search(r'^(?:"""|# # |\s*"# )([^"\n\\]+)', path.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip() if match else path.stem
