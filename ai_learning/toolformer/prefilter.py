"""Which documents are worth sampling for a tool: the paper's heuristics (Schick et al. 2023, appendix A).

They save time only: what they let through is still judged by the loss criterion.
"""

import hashlib
import re
from collections.abc import Callable
from fractions import Fraction

from .annotate import Document

_NUMBER = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])", re.ASCII)
_EQUALS = re.compile(
    r"(?:=|\bequals\b|\bequal to\b|\btotal of\b|\baverage of\b)\s*\$?\d", re.ASCII | re.IGNORECASE
)


def may_calculate(document: Document, window: int = 100, share: float = 0.01) -> bool:
    """Whether a calculator may help.

    It may if (i) of three numbers within ``window`` words one is the sum, difference, product or quotient of
    the two others; or (ii) a number follows =, equals, equal to, total of or average of; of documents that
    only (iii) hold three numbers, a random ``share`` is taken.

    Args:
        document: a plain text.
        window: in words; the paper counts 100 tokens.
        share: of documents of the third kind; which ones is decided by the text itself.
    """
    if _EQUALS.search(document.text):
        return True
    words = document.text.split()
    found = [(place, _NUMBER.search(word)) for place, word in enumerate(words)]
    numbers = [(place, _value(match[0])) for place, match in found if match]
    if len(numbers) < 3:
        return False
    for first, (start, _) in enumerate(numbers):
        near = [value for place, value in numbers[first:] if place < start + window][:24]
        if _one_follows_from_two(near):
            return True
    digest = hashlib.blake2b(document.text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _one_follows_from_two(numbers: list[Fraction]) -> bool:
    """The first number takes part, as an operand or as the result."""
    if len(numbers) < 3:
        return False
    a, rest = numbers[0], numbers[1:]
    for i, b in enumerate(rest):
        others = set(rest[:i] + rest[i + 1 :])
        results = {a + b, abs(a - b), a * b} | ({a / b} if b else set()) | ({b / a} if a else set())
        if results & others:
            return True
    return False


def has_date(document: Document) -> bool:
    """Whether it is known when the document was written: the calendar's answer depends on it."""
    return document.date is not None


_DATE_IN_URL = re.compile(r"(?<!\d)((?:19|20)\d\d)[-/_]?(0[1-9]|1[0-2])[-/_]?(0[1-9]|[12]\d|3[01])(?!\d)")


def date_of_url(url: str) -> str | None:
    """The date in an address, as the paper takes it.

    Example:
        >>> date_of_url("example.org/2021/03/05/bridge-opens")
        '2021-03-05'
    """
    found = _DATE_IN_URL.search(url)
    return "-".join(found.groups()) if found else None


def may_translate(
    document: Document,
    detect: Callable[[str], tuple[str, float]] | None = None,
    chunk: int = 10,
    sure: float = 0.8,
) -> bool:
    """Whether a piece that is not English stands between pieces that are.

    Args:
        document: a plain text.
        detect: text → (language, confidence), such as fastText's (the paper's); a look at the letters and at
            common English words when ``None``.
        chunk: words in a piece; pieces of numbers and signs alone do not count.
        sure: least confidence.
    """
    words = document.text.split()
    pieces = [" ".join(words[i : i + chunk]) for i in range(0, len(words), chunk)]
    pieces = [piece for piece in pieces if any(c.isalpha() for c in piece)]
    found = [(detect or _guess)(piece) for piece in pieces]
    english = [language.startswith("en") for language, _ in found]
    foreign = [not e and confidence > sure for e, (_, confidence) in zip(english, found, strict=True)]
    return any(f and any(english[:i]) and any(english[i + 1 :]) for i, f in enumerate(foreign))


_COMMON = re.compile(
    r"\b(?:the|of|and|to|in|is|that|for|it|was|on|are|as|with|his|they|at|be|this|have|from|or|had|by|but|not|what"
    r"|all|were|we|when|your|can|said|there|an|which|she|do|their|if|will|other|about|out|many|then|so)\b"
)


def _guess(piece: str) -> tuple[str, float]:
    """("en", 1.0) or ("other", confidence): foreign letters, or no common English word among ten."""
    letters = [c for c in piece if c.isalpha()]
    if sum(not c.isascii() for c in letters) > 0.2 * len(letters):
        return "other", 1.0
    return ("en", 1.0) if _COMMON.search(piece.lower()) else ("other", 0.9)


PREFILTERS: dict[str, Callable[[Document], bool]] = {
    "Calculator": may_calculate,
    "Calendar": has_date,
    "MT": may_translate,
}
"""by tool; the others take every document"""
