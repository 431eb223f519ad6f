"""Instruction data that every Python carries: what a function does → what it is called.

Pairs of the standard library's docstrings and the functions they stand in. Files are held out whole, so that
a held-out function is in no file that was trained on; ``names_training_text`` is the source without them, to
pre-train on.
"""

import ast
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

from ..text import read_file, stdlib_files
from .examples import Example, Message

LONGEST, LONGEST_NAME = 90, 24  # characters; a pair fits into 128 bytes


def name_examples(held_out: float = 0.1, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples; no description stands twice, in either or in both.

    Args:
        held_out: share of the files.
        seed: of the choice of files.

    Example:
        >>> train, test = name_examples()
        >>> test[0].messages[1].role, test[0].response.isidentifier()
        ('assistant', True)
    """
    kept, apart = _split(held_out, seed)
    seen: set[str] = set()
    held = [_example(file, *pair) for file in apart for pair in _pairs(file, seen)]
    return [_example(file, *pair) for file in kept for pair in _pairs(file, seen)], held


def names_training_text(held_out: float = 0.1, seed: int = 0) -> Iterator[str]:
    """The standard library's source without the held-out files."""
    return (read_file(file) for file in _split(held_out, seed)[0])


def _split(held_out: float, seed: int) -> tuple[list[Path], list[Path]]:
    files = stdlib_files()
    chosen = set(random.Random(seed).sample(range(len(files)), max(1, round(held_out * len(files)))))
    kept = [file for number, file in enumerate(files) if number not in chosen]
    return kept, [files[number] for number in sorted(chosen)]


def _example(file: Path, line: int, description: str, name: str) -> Example:
    asked = f"# {description}\ndef "
    return Example((Message("user", asked), Message("assistant", name)), where=f"{file}, line {line}")


def _pairs(file: Path, seen: set[str]) -> Iterator[tuple[int, str, str]]:
    """(line, description, name) of the file's functions: the docstring's first paragraph, if it is new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            tree = ast.parse(read_file(file))
        except SyntaxError:  # lib2to3 ships files that are wrong on purpose
            return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("__"):
            continue
        if len(node.name) > LONGEST_NAME:
            continue
        description = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        if 12 <= len(description) <= LONGEST and description not in seen:
            seen.add(description)
            yield node.lineno, description, node.name
