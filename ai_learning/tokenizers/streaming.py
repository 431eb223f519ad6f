"""Text in pieces: where it can be cut without changing its ids, streams of ids, decoding id by id."""

import codecs
import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr, BinaryIO

from . import fast, special, unicode_table
from .pretokenize import SplitPattern, character_class
from .special import SpecialSet

if TYPE_CHECKING:
    from .base import Tokenizer
    from .bpe_tokenizer import BPETokenizer

_STREAM_CHARACTERS = 2**16
_LOOK_BACK = 2**6  # characters searched first for a place to cut
_WINDOW = 2**12  # bytes of a file read first to find one
_CONTINUATION = bytes(range(0x80, 0xC0))  # of UTF-8: all bytes of a character but the first


@lru_cache(maxsize=1)
def _cut_pattern() -> re.Pattern[str]:
    """Between a letter or number and a character of another class: every named pattern starts a word there,
    whatever stands before and after. (Before a space after a letter, mostly.)"""
    letters, numbers = character_class(unicode_table.LETTER), character_class(unicode_table.NUMBER)
    return re.compile(f"(?<=[{letters}])(?=[^{letters}])|(?<=[{numbers}])(?=[^{numbers}])")


def safe_cut(text: str, special_tokens: Iterable[str] = ()) -> int:
    """The last place where ``text`` can be cut so that both parts get the ids that the whole gets; 0 if none.

    It is never inside a special token, nor so near the end that one could still be arriving.

    Example:
        >>> safe_cut("one two thr")
        7
    """
    tokens = list(special_tokens)
    end = len(text) - max(map(len, tokens), default=1)
    back = _LOOK_BACK
    for cut in range(end, max(1, end - back), -1):  # mostly found a few characters back
        before, after = text[cut - 1], text[cut]
        if before.isascii() and before.isalnum() and after.isascii() and not after.isalnum():
            return _outside_special(text, cut, tokens)
    while end > 0:
        start = max(0, end - back)
        cuts = [
            match.start() for match in _cut_pattern().finditer(text, start, end + 1) if match.start() > start
        ]
        for cut in reversed(cuts):
            if cut <= end:
                return _outside_special(text, cut, tokens)
        if start == 0:
            return 0
        back *= 8
    return 0


def _outside_special(text: str, cut: int, tokens: list[str]) -> int:
    for token in tokens:
        at = text.find(token, max(0, cut - len(token) + 1), cut + len(token) - 1)
        if 0 <= at < cut:
            return at
    return cut


def safe_chunks(
    pieces: Iterable[str], pattern: SplitPattern, special_tokens: Iterable[str], size: int
) -> Iterator[str]:
    """Join ``pieces`` and cut them anew into chunks of about ``size`` characters, safe to treat apart.

    A stretch without a safe place, and all of a text under a pattern of your own or none, stays one chunk
    (but for special tokens, where every text can be cut).
    """
    tokens = frozenset(special_tokens)
    held: list[str] = []
    length, wanted = 0, size
    for piece in pieces:
        for start in range(0, len(piece), size):
            part = piece[start : start + size]
            held.append(part)
            length += len(part)
            if length < wanted:
                continue
            text = "".join(held)
            cut = (
                safe_cut(text, tokens) if pattern.family in ("gpt2", "gpt4") else _last_special(text, tokens)
            )
            if cut:
                yield text[:cut]
                held, length, wanted = [text[cut:]], len(text) - cut, size
            else:
                held, wanted = [text], 2 * length  # doubling: no quadratic time without a place to cut
    if length:
        yield "".join(held)


def _last_special(text: AnyStr, tokens: frozenset[str]) -> int:
    """End of the last special token that is surely complete."""
    if not tokens:
        return 0
    if isinstance(text, bytes):
        matches = re.finditer(special.any_of(tokens).pattern.encode(), text)
        limit = len(text) - max(len(token.encode()) for token in tokens)
    else:
        matches = special.any_of(tokens).finditer(text)
        limit = len(text) - max(map(len, tokens))
    return max((match.end() for match in matches if match.start() <= limit), default=0)


def utf8_chunks(
    text: str, pattern: SplitPattern, special_tokens: Collection[str], size: int = 2**17
) -> Iterator[bytes]:
    """``text`` in UTF-8, in chunks that are safe to treat apart and fit the processor's cache."""
    start, wanted = 0, size if pattern.family in ("gpt2", "gpt4") else len(text)
    while start < len(text):
        part = text[start : start + wanted]
        if len(part) == wanted and start + wanted < len(text):
            cut = safe_cut(part, special_tokens)
            if not cut:
                wanted *= 2
                continue
            part = part[:cut]
        yield fast.utf8(part)
        start, wanted = start + len(part), size


_BYTE_CUT = re.compile(rb"(?<=[A-Za-z])(?=[^A-Za-z\x80-\xff])|(?<=[0-9])(?=[^0-9\x80-\xff])")


def safe_cut_bytes(data: bytes, special_tokens: Iterable[str] = ()) -> int:
    """``safe_cut`` in UTF-8, which may be damaged or end within a character."""
    tokens = [token.encode() for token in special_tokens]
    end = len(data) - max(map(len, tokens), default=1)
    start = max(0, end - _LOOK_BACK)
    cuts = [match.start() for match in _BYTE_CUT.finditer(data, start, max(0, end + 1))]
    if cuts and cuts[-1] > start:
        cut = cuts[-1]
        for token in tokens:
            at = data.find(token, max(0, cut - len(token) + 1), cut + len(token) - 1)
            if 0 <= at < cut:
                return at
        return cut
    # no ASCII letter nor digit before something else: look through all of it, as text
    stop = len(data)
    while stop and len(data) - stop < 4 and data[stop - 1] & 0xC0 == 0x80:
        stop -= 1
    stop -= bool(stop and data[stop - 1] >= 0xC0)
    try:
        text = data[:stop].decode()
    except UnicodeDecodeError:
        return 0
    return len(text[: safe_cut(text, special_tokens)].encode())


def safe_ranges(
    path: str | Path, pattern: SplitPattern, special_tokens: Iterable[str], size: int, start: int = 0
) -> Iterator[tuple[int, int]]:
    """Where to cut a file, from byte ``start`` on, into ranges of about ``size`` bytes safe to treat apart.

    Little of the file is read: only what stands around each cut.

    Yields:
        (first byte, byte behind the last); at least one range, even of an empty file.
    """
    tokens = frozenset(special_tokens)
    with Path(path).open("rb") as file:
        end = max(start, file.seek(0, 2))
        while True:
            wanted, cut = size, 0
            while not cut and start + wanted < end:
                cut = _cut_before(file, start, start + wanted, pattern, tokens)
                wanted *= 2
            yield start, start + cut if cut else end
            if not cut:
                return
            start += cut


def _cut_before(file: BinaryIO, start: int, stop: int, pattern: SplitPattern, tokens: frozenset[str]) -> int:
    """Length of the longest range from ``start`` that ends safely before ``stop``; 0 if there is none."""

    def read_from(first: int) -> bytes:
        file.seek(first)
        return file.read(stop - first)

    if pattern.family not in ("gpt2", "gpt4"):
        return _last_special(read_from(start), tokens)
    first = stop - _WINDOW
    if first > start:
        data = read_from(first)
        whole = data.lstrip(_CONTINUATION)  # it may begin within a character
        cut = safe_cut_bytes(whole, tokens)
        if cut > max((len(token.encode()) for token in tokens), default=0):  # none reaches in from before
            return first - start + len(data) - len(whole) + cut
    return safe_cut_bytes(read_from(start), tokens)


def read_range(path: str | Path, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of a file."""
    with Path(path).open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def safe_byte_chunks(
    path: str | Path, pattern: SplitPattern, special_tokens: Iterable[str], size: int
) -> Iterator[bytes]:
    """A file in chunks of about ``size`` bytes that are safe to treat apart.

    Chunks are valid UTF-8: bytes that are not become U+FFFD.
    """
    for start, stop in safe_ranges(path, pattern, special_tokens, size):
        if stop > start:
            yield valid_utf8(read_range(path, start, stop))


def valid_utf8(data: bytes) -> bytes:
    """``data`` with U+FFFD in place of what is no UTF-8."""
    if data.isascii():
        return data
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


def encode_iterable(
    tokenizer: "BPETokenizer", chunks: Iterable[str], allowed: SpecialSet, disallowed: SpecialSet
) -> Iterator[int]:
    """See ``BPETokenizer.encode_iterable``."""
    for text in safe_chunks(chunks, tokenizer.pattern, tokenizer.special_tokens, _STREAM_CHARACTERS):
        yield from tokenizer.encode(text, allowed_special=allowed, disallowed_special=disallowed)


class StreamDecoder:
    """Turn ids into text one by one, as a model makes them; bytes of an unfinished character are held back.

    Args:
        tokenizer: any tokenizer with ``decode_bytes``.
        errors: what becomes of bytes that can no more become a character, as in ``bytes.decode``.

    Example:
        >>> from ai_learning.tokenizers import ByteTokenizer
        >>> decoder = StreamDecoder(ByteTokenizer())
        >>> [decoder.add(i) for i in "né".encode()]
        ['n', '', 'é']
    """

    def __init__(self, tokenizer: "Tokenizer", errors: str = "replace") -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)

    def add(self, *ids: int) -> str:
        """The text that ``ids`` complete."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for half a character (with ``errors="replace"``)."""
        return self._decoder.decode(b"", True)
