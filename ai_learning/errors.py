"""Input that cannot be used: the one exception for it, which the command line shows as a single line."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input from outside: the message says what was wrong, with the value, and what to do."""


class CheckpointError(InputError):
    """A checkpoint that cannot be read or written."""


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the one that is nearly it, or all that are.

    Example:
        >>> did_you_mean("gelu-new", ["gelu_new", "relu"]), did_you_mean("tanh", ["gelu_new", "relu"])
        ("did you mean 'gelu_new'?", 'use gelu_new, relu')
    """
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use {', '.join(known)}"


def plain_numbers(config: Any) -> None:
    """Make a dataclass's numbers Python's own, not NumPy's or tensors: what JSON and checkpoints can hold."""
    for name, value in vars(config).items():
        if hasattr(value, "item"):
            object.__setattr__(config, name, value.item())


def whole_numbers(config: Any, *names: str) -> None:
    """Make fields of a dataclass Python's own whole numbers; ``None`` stays. All its numbers become Python's.

    Raises:
        ValueError: one that is none, with its value.
    """
    plain_numbers(config)
    for name in names:
        value = getattr(config, name)
        try:
            if value is not None:
                object.__setattr__(config, name, operator.index(value))
        except TypeError:
            raise ValueError(f"{name}={value!r} must be a whole number") from None
