"""Values that would only fail later, or give nonsense without failing: refused before any work is done."""

import math

from ..errors import InputError

SEEDS = 2**64
"""seeds are 64 bits of what is mixed into draws"""


def at_least(least: float, **values: float | None) -> None:
    """Refuse what is smaller, or no number at all; ``None`` stands for left out.

    Example:
        >>> at_least(1, top_k=0)
        Traceback (most recent call last):
            ...
        ai_learning.errors.InputError: top_k=0 must be at least 1
    """
    for name, value in values.items():
        if value is not None and not value >= least:  # so said, NaN is refused too
            raise InputError(f"{name}={value} must be at least {least}")


def check_draws(temperature: float, seed: int) -> None:
    """Refuse a temperature that gives no probabilities, and a seed that is not 64 bits."""
    if not 0 <= temperature < math.inf:
        raise InputError(f"temperature={temperature} must be 0, which is greedy, or a positive number")
    check_seed(seed)


def check_seed(seed: int) -> None:
    """Refuse a seed that is not 64 bits."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"seed={seed} must be from 0 to {SEEDS - 1}")
