"""GPT-1's tokenizer: lower-cased words, and byte-pair encoding over characters with an end-of-word mark.

Radford et al. (2018), section 4.1; text is cleaned and split as BERT's BasicTokenizer does it, which is what
the published vocabulary is used with today. Unlike GPT-2's it loses something: case, accents, the amount of
white space, and every character that its vocabulary lacks (``<unk>``).
"""

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..files import write_text
from .base import CONFIG_FILE

END_OF_WORD = "</w>"
UNKNOWN = "<unk>"


class GPT1Tokenizer:
    """Byte-pair encoding of lower-cased words.

    Args:
        vocab: token → id; the last character of a word carries ``</w>``.
        merges: pairs of tokens, the earliest learned first.

    Raises:
        InputError: no ``<unk>`` in the vocabulary, or a merge whose result is not in it.

    Example:
        >>> vocab = {"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4, "low</w>": 5}
        >>> tokenizer = GPT1Tokenizer(vocab, [("l", "o"), ("lo", "w</w>")])
        >>> tokenizer.encode("Low  LOW!"), tokenizer.decode([5, 5])
        ([5, 5, 0], 'low low')
    """

    eos_id = None

    def __init__(self, vocab: Mapping[str, int], merges: Iterable[Sequence[str]]) -> None:
        self.vocab = dict(vocab)
        self.merges = [(left, right) for left, right in merges]
        if UNKNOWN not in self.vocab:
            raise InputError(f"the vocabulary has no {UNKNOWN}: characters that it lacks need an id")
        for left, right in self.merges:
            if left + right not in self.vocab:
                raise InputError(
                    f"the vocabulary lacks {left + right!r}, the merge of {left!r} and {right!r}"
                )
        self.vocab_size = max(self.vocab.values()) + 1
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._token = {i: token for token, i in self.vocab.items()}
        self._words: dict[str, list[int]] = {}

    @classmethod
    def from_files(cls, vocab_json: Path | str, merges_txt: Path | str) -> "GPT1Tokenizer":
        """Read the published ``vocab.json`` and ``merges.txt`` (with or without a ``#version`` line).

        Raises:
            InputError: an unreadable file, by its line.
        """
        try:
            vocab = json.loads(Path(vocab_json).read_text(encoding="utf-8"))
            lines = Path(merges_txt).read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read GPT-1's vocabulary: {error}") from None
        if not isinstance(vocab, dict) or not all(isinstance(i, int) for i in vocab.values()):
            raise InputError(f"{vocab_json} must be a JSON object from token to id")
        merges = []
        for number, line in enumerate(lines, start=1):
            if not line.strip() or (number == 1 and line.startswith("#version")):
                continue
            pair = line.split()
            if len(pair) != 2:
                raise InputError(f"{merges_txt}, line {number}: a merge is two tokens, got {line!r}")
            merges.append(pair)
        return cls(vocab, merges)

    @property
    def fingerprint(self) -> str:
        """The same for the same vocabulary and merges."""
        content = json.dumps([sorted(self.vocab.items()), self.merges])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; what the vocabulary lacks becomes ``<unk>``."""
        ids: list[int] = []
        for word in split(normalize(text)):
            if word not in self._words:
                if len(self._words) > 100_000:  # words never seen again must not fill the memory
                    self._words.clear()
                self._words[word] = self._encode_word(word)
            ids += self._words[word]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Lower-case text with one space after each word; ids that are no token are skipped."""
        text = "".join(self._token.get(i, "") for i in ids)
        return text.replace(END_OF_WORD, " ").removesuffix(" ")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """``decode`` in UTF-8."""
        return self.decode(ids).encode()

    def save(self, folder: Path | str) -> None:
        """Write ``vocab.json``, ``merges.txt`` and what AutoTokenizer wants beside them."""
        folder = Path(folder)
        write_text(folder / "vocab.json", json.dumps(self.vocab, ensure_ascii=False))
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *map(" ".join, self.merges), ""]))
        config = {"tokenizer_class": "OpenAIGPTTokenizer", "unk_token": UNKNOWN}
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")

    def _encode_word(self, word: str) -> list[int]:
        symbols = [*word[:-1], word[-1] + END_OF_WORD]
        # A character that has no token is unknown by itself and merges with nothing.
        symbols = [symbol if symbol in self.vocab else UNKNOWN for symbol in symbols]
        while len(symbols) > 1:
            pair = min(itertools.pairwise(symbols), key=lambda p: self._rank.get(p, len(self._rank)))
            if pair not in self._rank:
                break
            merged, i = [], 0
            while i < len(symbols):
                if tuple(symbols[i : i + 2]) == pair:
                    merged.append(pair[0] + pair[1])
                    i += 2
                else:
                    merged.append(symbols[i])
                    i += 1
            symbols = merged
        return [self.vocab[symbol] for symbol in symbols]


def normalize(text: str) -> str:
    """Control characters dropped, Chinese characters set apart, accents stripped, lower case."""
    kept = []
    for c in text:
        category = unicodedata.category(c)
        if c in "\t\n\r" or (c.isspace() and category != "Cc"):
            kept.append(" ")
        elif _is_chinese(ord(c)):
            kept += [" ", c, " "]
        elif c != "\ufffd" and category not in ("Cc", "Cf", "Co", "Cs"):
            kept.append(c)
    decomposed = unicodedata.normalize("NFD", "".join(kept))
    return "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")


def split(text: str) -> list[str]:
    """Words between white space; each punctuation mark is a word."""
    words: list[str] = []
    word = ""
    for c in text:
        alone = is_punctuation(c)
        if (alone or c.isspace()) and word:
            words.append(word)
            word = ""
        if alone:
            words.append(c)
        elif not c.isspace():
            word += c
    return [*words, word] if word else words


def is_punctuation(c: str) -> bool:
    """ASCII's signs, and what Unicode calls punctuation."""
    return c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" or unicodedata.category(c).startswith("P")


def _is_chinese(code: int) -> bool:
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B81F
        or 0x2B920 <= code <= 0x2CEAF  # BERT's own list leaves out what is between
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )
