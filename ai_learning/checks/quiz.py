"""Quizzes: ``quiz("day2.norm")`` asks, ``quiz("day2.norm", "b")`` says what a choice means."""

from dataclasses import dataclass

from ..errors import InputError, did_you_mean
from .questions import QUESTIONS


@dataclass(frozen=True)
class Verdict:
    """Whether a choice is right, and why."""

    right: bool
    why: str

    def __bool__(self) -> bool:
        return self.right


def quiz(name: str, choice: str | None = None) -> Verdict | None:
    """Print a question, or what a choice means.

    Args:
        name: "day2.norm".
        choice: a letter; ``None`` prints the question and its choices.

    Returns:
        The verdict on the choice, ``None`` for the question itself.

    Raises:
        InputError: no such question or choice.

    Example:
        >>> verdict = quiz("day1.mask", "c")
        right: hidden keys take no share of the softmax, so the weights of the others still sum to 1.
    """
    if name not in QUESTIONS:
        raise InputError(f"no question {name!r}; {did_you_mean(name, QUESTIONS)}")
    question = QUESTIONS[name]
    letters = "abcdef"[: len(question.choices)]
    if choice is None:
        print(question.text)
        for letter, option in zip(letters, question.choices, strict=True):
            print(f"  {letter}) {option.text}")
        return None
    if choice not in letters or len(choice) != 1:
        raise InputError(f"choice {choice!r} of {name}: choose one of {', '.join(letters)}")
    option = question.choices[letters.index(choice)]
    print(f"{'right' if option.right else 'not so'}: {option.why}")
    return Verdict(option.right, option.why)
