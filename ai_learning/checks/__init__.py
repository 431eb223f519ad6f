"""Exercises that name your mistake, quizzes, and ``show`` for the library's own source.

Example:
    >>> import torch
    >>> from ai_learning.checks import check
    >>> bool(check(lambda size: torch.ones(size, size).tril().bool(), "day1.causal_mask", quiet=True))
    True
"""

from .catalogue import check, exercise, exercise_names, hint, solution
from .engine import Exercise, Mutant, Report
from .quiz import quiz
from .show import picture, show

__all__ = [
    "Exercise",
    "Mutant",
    "Report",
    "check",
    "exercise",
    "exercise_names",
    "hint",
    "picture",
    "quiz",
    "show",
    "solution",
]
