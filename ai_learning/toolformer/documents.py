"""Plain text as documents that fit a model's context: the input of an annotation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import read_texts
from .annotate import Document
from .models import LanguageModel
from .prefilter import date_of_url

SPLITS = ("paragraphs", "lines", "documents")


def read_documents(source: str, split: str = "paragraphs") -> Iterator[Document]:
    """Documents of a text source (``text.py``), or of JSON lines with ``text`` and, where known, ``date`` or
    ``url``.

    Args:
        source: where the text is.
        split: what becomes a document: each paragraph, each line, or each text whole.

    Raises:
        InputError: nothing there, or a line that is no such object.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r} is not known: use {', '.join(SPLITS)}")
    number = 0
    for text, date in _texts(source):
        for piece in _pieces(text, split):
            yield Document(piece, str(number), date)
            number += 1


def _pieces(text: str, split: str) -> Iterator[str]:
    if split == "documents":
        yield text
        return
    for piece in text.split("\n" if split == "lines" else "\n\n"):
        if piece.strip():
            yield piece.strip()


def _texts(source: str) -> Iterator[tuple[str, str | None]]:
    if not source.endswith(".jsonl"):
        yield from ((text, None) for text in read_texts(source))
        return
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    with path.open(encoding="utf-8", errors="ignore") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(line, f"{path}, line {number}")


def _parsed(line: str, where: str) -> tuple[str, str | None]:
    from datetime import date as Date

    try:
        row: Any = json.loads(line)
        text, date = row["text"], row.get("date")
        if not isinstance(text, str):
            raise TypeError("its text is no string")
        if date is None and isinstance(row.get("url"), str):
            date = date_of_url(row["url"])
        if date is not None:
            date = Date.fromisoformat(date[:10]).isoformat()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f'{where}: {reason}; expected {{"text": …, "date": "2023-01-30"}}') from None
    return text, date


def fit(lm: LanguageModel, document: Document, most_tokens: int) -> Iterator[Document]:
    """The document in pieces of at most ``most_tokens`` tokens, cut between words: 12 becomes 12.0, 12.1 …"""
    if len(lm.encode(document.text)) <= most_tokens:
        yield document
        return
    pieces: list[str] = []
    held = 0
    for word in _words(document.text):
        size = len(lm.encode(word))
        if not pieces or held + size > most_tokens:
            pieces.append("")
            held = 0
        pieces[-1] += word
        held += size
    for number, piece in enumerate(p.strip() for p in pieces):
        if piece:
            yield Document(piece, f"{document.id}.{number}", document.date)


def _words(text: str) -> Iterator[str]:
    """Words with the space before them; a word of more than 200 characters in parts."""
    start = 0
    for place in range(1, len(text) + 1):
        new = place == len(text) or (text[place].isspace() and not text[place - 1].isspace())
        if new or place - start >= 200:
            yield text[start:place]
            start = place
