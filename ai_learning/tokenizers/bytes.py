"""The simplest tokenizer that can write anything: one token a byte of UTF-8."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from .base import CONFIG_FILE
from .special import SpecialSet

if TYPE_CHECKING:
    from .bpe_tokenizer import BPETokenizer


class ByteTokenizer:
    """Ids 0 to 255 are the bytes themselves; 256 ends a document, 257 is the classify token.

    Decoding never raises: ids that are no byte are skipped, bytes that are no UTF-8 are treated as
    ``errors`` says, and where nothing can be decoded the text is ``""``.

    Args:
        errors: what to do with what UTF-8 cannot express, in the words of ``bytes.decode``: ``"ignore"``
            drops it, ``"replace"`` shows ``\\ufffd``, ``"strict"`` gives up (on decoding: ``""``).

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("né")
        [110, 195, 169]
        >>> tokenizer.decode([110, 195, 169, 256]), tokenizer.decode([195])
        ('né', '')
    """

    eos_id = 256
    cls_id = 257
    vocab_size = 258

    def __init__(self, errors: str = "ignore") -> None:
        if errors not in ("ignore", "replace", "strict"):
            raise ValueError(f"errors={errors!r} is not known; use 'ignore', 'replace' or 'strict'")
        self.errors = errors

    def __repr__(self) -> str:
        return f"ByteTokenizer(errors={self.errors!r})"

    @property
    def fingerprint(self) -> str:
        """The same for every byte tokenizer: ``errors`` changes no id of valid text."""
        return hashlib.sha256(b"ByteTokenizer/258").hexdigest()[:16]

    def encode(
        self, text: str | bytes, *, allowed_special: SpecialSet = (), disallowed_special: SpecialSet = "all"
    ) -> list[int]:
        """UTF-8 bytes of ``text``; lone surrogates, which UTF-8 cannot express, follow ``errors``.

        No text stands for a special token here: what `BPETokenizer` is told of those changes nothing.
        """
        return list(text if isinstance(text, bytes) else text.encode("utf-8", errors=self.errors))

    def encode_ordinary(self, text: str) -> list[int]:
        """As ``encode``."""
        return self.encode(text)

    def encode_batch(self, texts: Sequence[str], num_workers: int | None = None) -> list[list[int]]:
        """``encode`` of each, which no worker would make faster."""
        return [self.encode(text) for text in texts]

    def encode_iterable(
        self,
        chunks: Iterable[str],
        *,
        allowed_special: SpecialSet = "all",
        disallowed_special: SpecialSet = "all",
    ) -> Iterator[int]:
        """Ids of a text that comes in pieces."""
        for chunk in chunks:
            yield from self.encode(chunk)

    def decode(self, ids: Iterable[int], errors: str | None = None) -> str:
        """Text of ``ids``, by the tokenizer's own ``errors`` if none are given; never raises (see above)."""
        try:
            return self.decode_bytes(ids).decode("utf-8", errors=errors or self.errors)
        except (TypeError, ValueError, LookupError):  # not ids at all, strict and not UTF-8, other errors
            return ""

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes among ``ids``; special and unknown ids are skipped."""
        return bytes(i for i in ids if 0 <= i < 256)

    def as_bpe(self) -> "BPETokenizer":
        """The same ids from a byte-pair encoding that has not learned a single merge."""
        from .bpe_tokenizer import BPETokenizer

        special = {"<|endoftext|>": self.eos_id, "<|classify|>": self.cls_id}
        return BPETokenizer({i: bytes([i]) for i in range(256)}, [], special, pattern=None)

    def save(self, folder: Path | str) -> None:
        """Write ``tokenizer_config.json`` into ``folder``."""
        config = {"tokenizer_class": "ByteTokenizer", "errors": self.errors}
        write_text(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
