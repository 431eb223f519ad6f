"""``ai-learning lessons``: the lessons in their order; copy one to work on."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from ..errors import InputError
from .common import console, parse

LESSONS = Path(__file__).resolve().parents[2] / "lessons"


@dataclass(frozen=True)
class List:
    """Show the lessons in their order."""


@dataclass(frozen=True)
class Start:
    """Copy a lesson into a folder of yours."""

    lesson: Annotated[str, tyro.conf.Positional]
    """day1, day2 …"""
    out: Path = Path(".")
    """where to put the copy"""


def main(args: list[str]) -> None:
    """Entry point."""
    command: List | Start = parse(List | Start, args, "lessons") if args else List()
    if isinstance(command, Start):
        source = find(command.lesson)
        target = command.out / source.name
        if target.exists():
            raise InputError(f"{target} is already there: move it away or give another --out")
        command.out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        how = f"python {target}" if target.suffix == ".py" else f"jupyter lab {target}"
        console.print(f"copied to {target}; run it: {how}", markup=False)
        return
    table = Table("day", "lesson", "file")
    for path in lessons():
        table.add_row(str(day(path)), title(path), path.name)
    console.print(table)


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
