"""Special tokens: text that is one id and never part of a merge, by tiktoken's rules."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal

from ..errors import InputError

SpecialSet = Literal["all"] | Collection[str]


@lru_cache(maxsize=64)
def any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """A pattern for any of ``tokens``; where one begins another, the longest wins."""
    return re.compile(
        "(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")"
    )


def occurs(token: str, text: str | bytes) -> bool:
    """Whether ``token`` is in ``text`` (bytes: UTF-8); its first character is looked for first: quicker."""
    if isinstance(text, bytes):
        raw = token.encode()
        return raw[:1] in text and raw in text
    return token[:1] in text and token in text


def resolve(
    allowed: SpecialSet, disallowed: SpecialSet, known: Iterable[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """What ``allowed_special`` and ``disallowed_special`` mean: the tokens to use, the text to refuse."""
    everything = frozenset(known)
    use = everything if allowed == "all" else frozenset([allowed] if isinstance(allowed, str) else allowed)
    if disallowed == "all":
        return use, everything - use
    return use, frozenset([disallowed] if isinstance(disallowed, str) else disallowed)


def refuse(text: str, disallowed: frozenset[str]) -> None:
    """Raise if ``text`` holds what it may not.

    Raises:
        InputError: the text of a special token that was not allowed.
    """
    if disallowed and (match := any_of(disallowed).search(text)):
        token = match.group()
        raise InputError(
            f"the text holds the special token {token!r} at character {match.start()}; to use it as a token "
            f"pass "
            f"allowed_special={{{token!r}}}, to encode it as plain text pass disallowed_special=()"
        )


def segments(text: str, tokens: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """Cut ``text`` at special tokens: (piece, whether it is one of them), empty pieces left out.

    Example:
        >>> list(segments("a<eos>b", frozenset(["<eos>"])))
        [('a', False), ('<eos>', True), ('b', False)]
    """
    tokens = frozenset(token for token in tokens if occurs(token, text))  # far quicker than the pattern
    if not tokens:
        if text:
            yield text, False
        return
    for i, piece in enumerate(any_of(tokens).split(text)):
        if piece:
            yield piece, i % 2 == 1


def byte_segments(data: bytes, tokens: frozenset[str]) -> list[bytes]:
    """The pieces of UTF-8 ``data`` between special tokens."""
    raw = {token.encode() for token in tokens}
    if not any(token[:1] in data and token in data for token in raw):
        return [data] if data else []
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return [piece for piece in re.split(pattern.encode(), data) if piece]


def number(
    vocab: dict[int, bytes], special_tokens: Mapping[str, int] | Iterable[str] | None
) -> dict[str, int]:
    """Text → id of special tokens: as given, or those that ``vocab`` holds keep theirs and others follow it.

    Raises:
        InputError: an id that something else has, or an empty text.
    """
    if isinstance(special_tokens, str):
        special_tokens = [special_tokens]
    if isinstance(special_tokens, Mapping):
        for text, i in special_tokens.items():
            if vocab.get(i, text.encode()) != text.encode():
                raise InputError(f"special token {text!r} wants id {i}, which is {vocab[i]!r} already")
        result = {str(text): int(i) for text, i in special_tokens.items()}
    else:
        wanted = list(dict.fromkeys(special_tokens or ()))
        encoded = {text.encode() for text in wanted}
        known = {token: i for i, token in vocab.items() if token in encoded}
        following = max(vocab, default=-1) + 1
        result = {}
        for text in wanted:
            if text.encode() in known:
                result[text] = known[text.encode()]
            else:
                result[text] = following
                following += 1
    if "" in result:
        raise InputError("a special token cannot be empty")
    if len(set(result.values())) != len(result):
        raise InputError(f"two special tokens share an id: {result}")
    return result
