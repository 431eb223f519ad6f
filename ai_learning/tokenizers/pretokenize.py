"""Splitting text into words before any merge: GPT-2's pattern, GPT-4's, your own, or none.

The named patterns give what tiktoken gives, on every code point of the Unicode version it was built with
(``unicode_table.py``). They run on Python's own ``re`` with those classes written out, which is twice as
fast as the ``regex`` module and does not change with its Unicode version. A pattern of your own runs on
``regex``.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..errors import InputError
from . import unicode_table

_PIECE = 2048  # characters


@dataclass(frozen=True)
class SplitPattern:
    """One way to split.

    Attributes:
        name: the word that selects it; for your own pattern, the pattern.
        regex: as tiktoken and ``regex`` take it; ``""`` splits nothing.
        oniguruma: the same for Hugging Face's tokenizer.json, whose engine reads ``$`` and ``{1,3}+``
            otherwise.
        template: the same for Python's ``re``, with ``%L``, ``%N``, ``%S`` where the classes go.
        family: which compiled splitter does it: ``"gpt2"``, ``"gpt4"``, ``"none"``, or ``""`` for no
            compiled one.
        max_digits: GPT-4: how many digits make a word.
        whole_tail: GPT-4: white space at the end of the text is one word, even if it holds a newline.
    """

    name: str
    regex: str
    oniguruma: str = ""
    template: str = ""
    family: str = ""
    max_digits: int = 3
    whole_tail: bool = False


_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_GPT2_ORIGINAL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
_GPT4_ORIGINAL = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4_MINBPE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_NANOCHAT = _GPT4_MINBPE.replace("{1,3}", "{1,2}")

_GPT2_TEMPLATE = r"'(?:[sdmt]|ll|ve|re)| ?[%L]+| ?[%N]+| ?[^%S%L%N]+|[%S]+(?![^%S])|[%S]+"
_GPT4_TEMPLATE = (
    r"'(?:[sSdDmMtTſ]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n%L%N]?[%L]+|[%N]{1,%D}| ?[^%S%L%N]+[\r\n]*"
    r"|%Z[%S]*[\r\n]|[%S]+(?![^%S])|[%S]+"
)


def _gpt4(name: str, regex: str, digits: int, whole_tail: bool) -> SplitPattern:
    template = _GPT4_TEMPLATE.replace("%D", str(digits)).replace("%Z", r"[%S]++\Z|" if whole_tail else "")
    oniguruma = _GPT4_ORIGINAL.replace("{1,3}", f"{{1,{digits}}}")
    if whole_tail:
        oniguruma = oniguruma.replace(r"|\s*[", r"|\s+\z|\s*[")
    return SplitPattern(name, regex, oniguruma, template, "gpt4", digits, whole_tail)


NO_PATTERN = SplitPattern("none", "", family="none")
PATTERNS: dict[str, SplitPattern] = {
    "gpt2": SplitPattern("gpt2", _GPT2, _GPT2_ORIGINAL, _GPT2_TEMPLATE, "gpt2"),
    # tiktoken's cl100k_base today; the published original differs only in white space at the very end of a
    # text
    "gpt4": _gpt4("gpt4", _GPT4, 3, True),
    "gpt4-original": _gpt4("gpt4-original", _GPT4_ORIGINAL, 3, False),
    "nanochat": _gpt4("nanochat", _NANOCHAT, 2, False),  # digits in twos
    "none": NO_PATTERN,
}
_BY_REGEX = {pattern.regex: pattern for pattern in PATTERNS.values()}
_BY_REGEX |= {pattern.oniguruma: pattern for pattern in PATTERNS.values() if pattern.oniguruma}
_BY_REGEX |= {_GPT4_MINBPE: PATTERNS["gpt4-original"]}
_BY_REGEX |= {
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""": PATTERNS["gpt2"]
}


def split_pattern(pattern: "str | SplitPattern | None") -> SplitPattern:
    """The pattern called ``pattern``: a name, a regular expression, or ``None`` for no splitting.

    A regular expression that is one of the named patterns, in any of its published spellings, becomes that
    one.

    Raises:
        InputError: not a name and not a regular expression that ``regex`` accepts.
    """
    if isinstance(pattern, SplitPattern):
        return pattern
    if pattern is None or pattern == "":
        return NO_PATTERN
    known = PATTERNS.get(pattern) or _BY_REGEX.get(pattern)
    if known is not None:
        return known
    if re.fullmatch(r"[\w.-]+", pattern):
        raise InputError(
            f"pattern {pattern!r} is not known; use {', '.join(PATTERNS)} or a regular expression"
        )
    _compile_own(pattern)
    return SplitPattern(pattern, pattern, pattern)


def parse_ranges(text: str) -> list[tuple[int, int]]:
    """Ranges of ``unicode_table`` as (first, last).

    Example:
        >>> parse_ranges("9-D 20")
        [(9, 13), (32, 32)]
    """
    pairs = (word.partition("-") for word in text.split())
    return [(int(first, 16), int(last or first, 16)) for first, _, last in pairs]


def splitter(pattern: SplitPattern) -> Callable[[str], list[str]]:
    """A function from a text to its words: what ``regex.findall`` would give, without a lost character.

    Text that a pattern of your own does not match is kept, as words between the matches.
    """
    if pattern.family == "none":
        return lambda text: [text] if text else []
    if not pattern.template:
        return _keep_gaps(_compile_own(pattern.regex))
    of_ascii, of_bmp, of_all = _compile_template(pattern.template)

    def split_piece(piece: str) -> list[str]:
        if piece.isascii():
            return of_ascii(piece)
        return of_all(piece) if _BEYOND_BMP.search(piece) else of_bmp(piece)

    def split(text: str) -> list[str]:
        if len(text) <= _PIECE or text.isascii():
            return split_piece(text)
        words: list[str] = []
        for piece in _pieces(text):
            words += split_piece(piece)
        return words

    return split


def _pieces(text: str) -> Iterator[str]:
    """Cut ``text`` between an ASCII letter or digit and an ASCII character of another kind.

    A word starts there by every named pattern, whatever stands around (see ``streaming.safe_cut``).
    """
    start = 0
    while start < len(text):
        end = start + _PIECE
        while end < len(text) and not (
            text[end - 1].isascii()
            and text[end - 1].isalnum()
            and text[end].isascii()
            and not text[end].isalnum()
        ):
            end += 1
        yield text[start:end]
        start = end


_BEYOND_BMP = re.compile("[\U00010000-\U0010ffff]")


@lru_cache
def _compile_template(template: str) -> tuple[Callable[[str], list[str]], ...]:
    """``findall`` for ASCII, for text up to U+FFFF and for any text: the fewer ranges, the faster."""

    def fill(letters: str, numbers: str, spaces: str) -> Callable[[str], list[str]]:
        filled = template.replace("%L", letters).replace("%N", numbers).replace("%S", spaces)
        return re.compile(filled).findall

    classes = (unicode_table.LETTER, unicode_table.NUMBER, unicode_table.SPACE)
    return (
        fill("A-Za-z", "0-9", r"\t-\r "),
        fill(*(character_class(ranges, 0xFFFF) for ranges in classes)),
        fill(*(character_class(ranges) for ranges in classes)),
    )


def character_class(ranges: str, up_to: int = 0x10FFFF) -> str:
    """``ranges`` as ``re`` writes them; each lies on one side of U+FFFF."""
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in parse_ranges(ranges) if last <= up_to)


@lru_cache
def _compile_own(pattern: str):  # type: ignore[no-untyped-def]  # regex.Pattern, which is imported late
    import regex

    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise InputError(f"pattern {pattern!r} is not a regular expression: {error}") from None


def _keep_gaps(compiled) -> Callable[[str], list[str]]:  # type: ignore[no-untyped-def]
    def split(text: str) -> list[str]:
        words, end = [], 0
        for match in compiled.finditer(text):
            start, stop = match.span()
            if start > end:
                words.append(text[end:start])
            if stop > start:
                words.append(match.group())
            end = max(end, stop)
        if end < len(text):
            words.append(text[end:])
        return words

    return split
