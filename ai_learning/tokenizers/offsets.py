"""Where in a text each token stands."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .fast import utf8


def spans(tokens: Sequence[bytes], text: str, unit: Literal["character", "byte"]) -> list[tuple[int, int]]:
    """(start, end) of each of the ``tokens`` that ``text`` was encoded to.

    In characters, a token that holds only a part of a character spans that whole character.
    """
    if unit not in ("character", "byte"):
        raise ValueError(f"unit={unit!r} is not known; use 'character' or 'byte'")
    ends = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]]) if len(tokens) else ends
    if unit == "character":
        raw = np.frombuffer(utf8(text), np.uint8)
        if len(raw) != len(text):
            # characters that start before each byte: a byte inside a character belongs to the one before
            before = np.concatenate([[0], np.cumsum((raw & 0xC0) != 0x80)])
            inside = np.append((raw & 0xC0) == 0x80, False)
            starts, ends = before[starts] - inside[starts], before[ends]
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def first_characters(tokens: Sequence[bytes]) -> list[int]:
    """Index of the character that each token starts in, as tiktoken counts."""
    offsets, characters = [], 0
    for token in tokens:
        inside = bool(token) and 0x80 <= token[0] < 0xC0
        offsets.append(max(0, characters - inside))
        characters += sum(not 0x80 <= byte < 0xC0 for byte in token)
    return offsets
