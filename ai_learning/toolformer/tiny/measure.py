"""Accuracy on held-out problems, perplexity with calls disabled, and the filter beside the truth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..filter import Annotated, Candidate
from ..infer import generate_with_tools
from ..models import LanguageModel
from ..tools import Tool
from .world import KINDS, Item


def accuracy(
    lm: LanguageModel, items: Sequence[Item], tools: Sequence[Tool]
) -> tuple[dict[str, float], list[str]]:
    """Share of problems whose continuation begins with the answer, by kind; and all that was written.

    Args:
        lm: the model.
        items: problems.
        tools: none: calls are disabled.
    """
    written = generate_with_tools(
        lm,
        [item.prompt for item in items],
        tools,
        max_new_tokens=6,
        max_call_tokens=16,
        dates=[item.date for item in items],
    )
    right: dict[str, list[bool]] = {}
    for item, found in zip(items, written, strict=True):
        right.setdefault(item.kind, []).append(begins_with(found.text, item.answer))
    texts = [f"{item.prompt}{found.annotated}" for item, found in zip(items, written, strict=True)]
    return {kind: sum(values) / len(values) for kind, values in right.items()}, texts


def begins_with(text: str, answer: str) -> bool:
    """Whether ``text`` begins with ``answer`` and not with something longer: 12 is not 120.

    Example:
        >>> begins_with(" 12 pears", "12"), begins_with(" 120 pears", "12")
        (True, False)
    """
    text = text.strip()
    return text.startswith(answer) and not text[len(answer) :][:1].isalnum()


def perplexity(lm: LanguageModel, texts: Sequence[str]) -> float:
    """Of plain text, a token; ``<API>`` has no probability, as in the paper (section 4.3: calls disabled)."""
    end = [] if lm.eos_id is None else [lm.eos_id]
    rows = [[*lm.bos, *lm.encode(text), *end] for text in texts]
    counts = [len(row) - 1 for row in rows]
    losses = lm.token_losses(rows, counts)
    starts = lm.start_probabilities([row[:-1] for row in rows], counts)
    total = math.fsum(
        loss + math.log1p(-min(p, 1 - 1e-9))
        for row_losses, row_starts in zip(losses, starts, strict=True)
        for loss, p in zip(row_losses, row_starts, strict=True)
    )
    return math.exp(total / sum(counts))


@dataclass(frozen=True)
class Agreement:
    """The filter's verdicts on one tool's candidates beside the truth."""

    sampled: int
    """candidates"""
    right: int
    """of them the call that gives the answer, where the answer stands"""
    kept: int
    """by the filter"""
    kept_right: int
    """both"""

    @property
    def precision(self) -> float:
        """Of the kept calls, how many are right."""
        return self.kept_right / self.kept if self.kept else math.nan

    @property
    def recall(self) -> float:
        """Of the right calls, how many were kept."""
        return self.kept_right / self.right if self.right else math.nan

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.sampled + other.sampled,
            self.right + other.right,
            self.kept + other.kept,
            self.kept_right + other.kept_right,
        )


def agreement(items: Sequence[Item], documents: Sequence[Annotated]) -> dict[str, Agreement]:
    """By tool."""
    found = dict.fromkeys(KINDS, Agreement(0, 0, 0, 0))
    for item, document in zip(items, documents, strict=True):
        for candidate in document.candidates:
            right = is_right(item, candidate)
            found[candidate.call.tool] += Agreement(1, right, candidate.kept, right and candidate.kept)
    return found


def is_right(item: Item, candidate: Candidate) -> bool:
    """Whether it is the call that gives the answer, where the answer stands."""
    return (
        item.call is not None
        and candidate.call.tool == item.call.tool
        and candidate.offset == item.start
        and _same_question(candidate.call.argument, item.call.argument)
    )


def _same_question(a: str, b: str) -> bool:
    """``3 + 4`` asks the same as ``4 + 3``."""
    return _parts(a) == _parts(b)


def _parts(argument: str) -> list[str]:
    words = argument.split()
    return sorted(words) if len(words) == 3 and words[1] in "+*" else words
