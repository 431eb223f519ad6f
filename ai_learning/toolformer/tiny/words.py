"""A tokenizer of whole words for the tiny world; numbers are cut in threes from the left, as Llama 3's are.

    Anna has 1036 pears.  →  Anna · has · 103 · ##6 · pears · .

A space before a word is understood, so that 37 is the same token in ``has 37 pears`` and ``(37 * 24)``.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..calls import MARKED

_TOKEN = re.compile(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]")
_JOIN = "##"
"""begins a token that goes on with the number before it"""
_NO_SPACE_BEFORE = set(".,:;!?)]") | {MARKED.start, MARKED.arrow, MARKED.end}
_NO_SPACE_AFTER = {"(", "[", MARKED.start, MARKED.arrow, MARKED.end}
UNKNOWN, END = "<unk>", "<end>"


class WordTokenizer:
    """Words, numbers and signs as ids.

    Args:
        words: all that can stand in a text, besides numbers: other words become ``<unk>``.
        functions: words that a parenthesis follows without a space.

    Example:
        >>> tokenizer = WordTokenizer(["pears", "has", "Anna", "."])
        >>> [tokenizer.token(i) for i in tokenizer.encode("Anna has 1036 pears.")]
        ['Anna', 'has', '103', '##6', 'pears', '.']
        >>> tokenizer.decode(tokenizer.encode("Anna has 1036 pears."))
        'Anna has 1036 pears.'
    """

    def __init__(self, words: Iterable[str], functions: Iterable[str] = ()) -> None:
        self.functions = frozenset(functions)
        numbers = [str(n) for n in range(1000)]
        rest = [f"{_JOIN}{n}" for n in range(10)]  # numbers have up to four digits
        marks = [MARKED.start, MARKED.arrow, MARKED.end, END]
        self.tokens = [UNKNOWN, *marks, *numbers, *rest, *sorted(set(words))]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise InputError("words must not be numbers or marks of calls")
        self.special_tokens = {mark: self.ids[mark] for mark in marks}
        self.vocab_size = len(self.tokens)
        self.eos_id = self.ids[END]

    @property
    def fingerprint(self) -> str:
        """The same for the same words."""
        return hashlib.sha256("\n".join(self.tokens).encode()).hexdigest()[:16]

    def token(self, i: int) -> str:
        """What an id stands for."""
        return self.tokens[i]

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        ids = []
        for piece in _TOKEN.findall(text):
            if piece.isdigit() and len(piece) > 3:
                pieces = [piece[:3], *(_JOIN + piece[i : i + 3] for i in range(3, len(piece), 3))]
            else:
                pieces = [piece]
            ids += [0 if p in self.special_tokens else self.ids.get(p, 0) for p in pieces]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, marks included."""
        parts: list[str] = []
        before = "("
        for i in ids:
            token = self.tokens[i] if 0 <= i < len(self.tokens) else UNKNOWN
            if token == END:
                before = "("
                continue
            if token.startswith(_JOIN):
                parts.append(token[len(_JOIN) :])
            else:
                called = token == "(" and before in self.functions
                spaced = not called and token not in _NO_SPACE_BEFORE and before not in _NO_SPACE_AFTER
                parts.append(f" {token}" if spaced else token)
            before = token
        return "".join(parts)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """UTF-8 of ``decode``."""
        return self.decode(ids).encode()

    def save(self, folder: Path | str) -> None:
        """The world's words are in the library: there is nothing to write."""

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, WordTokenizer) and self.tokens == other.tokens

    __hash__ = None  # type: ignore[assignment]
