"""Exercises by name, and what a learner calls: ``check``, ``hint``, ``solution``."""

import importlib
from typing import Any

from ..errors import InputError, did_you_mean
from . import engine
from .engine import Exercise, Report
from .show import show

# Which file holds a day's exercises: a day is imported when it is asked for.
FILES = {
    "day1": "attention",
    "day2": "blocks",
    "day3": "models",
    "day4": "training",
    "day5": "decoding",
    "day6": "weights",
    "day7": "inside",
    "day8": "heads",
    "day9": "lora",
    "day10": "nf4",
    "day11": "qlora",
    "day12": "toolformer",
    "day13": "toolformer_train",
    "day14": "reflexion",
    "day15": "bytes",
    "day16": "bpe",
    "day17": "scale",
}


def exercise_names(day: str | None = None) -> list[str]:
    """Names of all exercises, or of one day's ("day1"), in their order."""
    days = [day] if day in FILES else [] if day else list(FILES)
    return [exercise.name for d in days for exercise in _of(d)]


def exercise(name: str) -> Exercise:
    """The exercise called ``name``.

    Raises:
        InputError: there is none.
    """
    day = name.split(".")[0]
    if day in FILES:
        for candidate in _of(day):
            if candidate.name == name:
                return candidate
    raise InputError(f"no exercise {name!r}; {did_you_mean(name, exercise_names())}")


def check(fn: Any, name: str, *, quiet: bool = False) -> Report:
    """Check an answer, print the ladder up to the first step that fails, and return the verdict.

    Args:
        fn: what you wrote.
        name: the exercise, "day1.attention".
        quiet: print nothing.

    Returns:
        A report that is true when every step passed; ``.cause`` says what is wrong.

    Raises:
        InputError: no such exercise, or ``fn`` cannot be called.
    """
    if not callable(fn):
        raise InputError(f"check needs the function itself, got {fn!r}: pass it without calling it")
    found = exercise(name)
    report = engine.run(fn, found)
    if not quiet:
        print(report)
        if not report:
            print(f'    help:  hint("{name}", 1)')
    return report


def hint(name: str, number: int = 1) -> None:
    """Print hint 1, 2 or 3 of an exercise; each says more than the one before.

    Raises:
        InputError: no such exercise or hint.
    """
    hints = exercise(name).hints
    if number not in (1, 2, 3):
        raise InputError(f"hint {number} of {name}: there are hints 1, 2 and 3; then solution({name!r})")
    print(f"{name}, hint {number} of 3: {hints[number - 1]}")


def solution(name: str) -> None:
    """Print the library's own source for an exercise.

    Raises:
        InputError: no such exercise.
    """
    show(exercise(name).solution)


def _of(day: str) -> tuple[Exercise, ...]:
    module = importlib.import_module(f".exercises.{FILES[day]}", __package__)
    found: tuple[Exercise, ...] = module.EXERCISES
    return found
