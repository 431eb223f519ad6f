"""Search over passages of any text: BM25, as in the paper (section 3, "Wikipedia Search"), by bm25s."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import read_texts
from .tools import Tool


class WikiSearch(Tool):
    """The passages that match a query best, by BM25 (Robertson et al. 1995).

    Args:
        source: a list of texts, or where text comes from (``text.py``): a folder, a file,
            ``builtin:reference``, ``hf:NAME`` for a Hugging Face data set.
        k: passages to give, best first.
        passage_words: texts are cut into passages of at most that many words, at paragraphs where possible.
        max_characters: of the whole answer, cut at a word.

    Raises:
        InputError: no text there.

    Example:
        >>> search = WikiSearch(["Paris is the capital of France.", "Cats sleep most of the day."])
        >>> search("capital France")
        'Paris is the capital of France.'
        >>> search("quantum")
        'error: nothing matches'
    """

    name = "WikiSearch"
    description = "WikiSearch(fishing reel types) gives passages of text about the search term."

    def __init__(
        self,
        source: str | Path | Iterable[str] = "builtin:reference",
        *,
        k: int = 1,
        passage_words: int = 100,
        max_characters: int = 400,
    ) -> None:
        import bm25s

        for name, value in (("k", k), ("passage_words", passage_words), ("max_characters", max_characters)):
            if value < 1:
                raise InputError(f"{name}={value} of WikiSearch must be at least 1")
        texts = read_texts(source) if isinstance(source, str | Path) else source
        self.k, self.max_characters = k, max_characters
        self.passages = [passage for text in texts for passage in passages(text, passage_words)]
        if not self.passages:
            raise InputError("WikiSearch needs at least one text")
        words = self._words(self.passages)
        if not words.vocab:
            raise InputError(
                f"WikiSearch has no word to find in {self.passages[0][:40]!r}: words such as 'the' and "
                "single letters do not count; give other texts"
            )
        self.index = bm25s.BM25()
        self.index.index(words, show_progress=False)

    def answer(self, argument: str) -> str:
        """The best passages in one line."""
        found = self.search(argument)
        if not found:
            raise ValueError("nothing matches")
        return shorten(" ".join(passage for passage, _ in found), self.max_characters)

    def search(self, query: str, k: int | None = None) -> list[tuple[str, float]]:
        """Up to ``k`` passages that share a word with the query, with their scores, best first."""
        words = self._words([query], return_ids=False)
        if not words[0]:
            return []
        numbers, scores = self.index.retrieve(
            words, k=min(k or self.k, len(self.passages)), show_progress=False
        )
        pairs = zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
        return [(self.passages[number], score) for number, score in pairs if score > 0]

    @staticmethod
    def _words(texts: list[str], return_ids: bool = True) -> Any:
        import bm25s

        return bm25s.tokenize(texts, stopwords="en", return_ids=return_ids, show_progress=False)


def passages(text: str, most_words: int = 100) -> Iterator[str]:
    """The text in pieces of at most ``most_words`` words, filled with whole paragraphs where they fit.

    Example:
        >>> list(passages("a b c\\n\\nd e\\n\\nf g h i", 5))
        ['a b c d e', 'f g h i']
    """
    words: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        more = paragraph.split()
        if words and len(words) + len(more) > most_words:
            yield " ".join(words)
            words = []
        words += more
        while len(words) > most_words:
            yield " ".join(words[:most_words])
            words = words[most_words:]
    if words:
        yield " ".join(words)


def shorten(text: str, most: int) -> str:
    """One line of at most ``most`` characters, cut between words."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    cut = text[: most + 1].rfind(" ")
    return text[: cut if cut > 0 else most]
