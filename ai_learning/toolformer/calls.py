"""A call to a tool as text: ``<API>Calculator(3 + 4)→7</API>`` (Schick et al. 2023, section 2).

With the paper's symbols, e(c) = ``<API> name(argument) </API>`` and e(c, r) = ``<API> name(argument) → r
</API>``.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """c = (a, i): the tool's name a and its input i."""

    tool: str
    argument: str

    def __str__(self) -> str:
        return f"{self.tool}({self.argument})"


@dataclass(frozen=True)
class CallFormat:
    """How a call is marked in a text.

    Example:
        >>> CallFormat().write(Call("Calculator", "3 + 4"), "7")
        '<API>Calculator(3 + 4)→7</API>'
        >>> PLAIN.write(Call("Calculator", "3 + 4"), "7")
        ' [Calculator(3 + 4) -> 7]'
        >>> PLAIN.write(Call("Calculator", "3 + 4"))
        ' [Calculator(3 + 4)]'
    """

    start: str = "<API>"
    """opens a call: one token of the model's vocabulary, since its probability decides where calls begin"""
    arrow: str = "→"
    """between the call and its result"""
    end: str = "</API>"
    """closes it"""
    gap: str = ""
    """stands before the result"""

    def __post_init__(self) -> None:
        for name in ("start", "arrow", "end"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}={getattr(self, name)!r} of a call must not be empty")

    def write(self, call: Call, result: str | None = None) -> str:
        """e(c, r), or e(c) when there is no result."""
        answer = "" if result is None else self.arrow + self.gap + self.clean(result)
        return f"{self.start}{call}{answer}{self.end}"

    def clean(self, result: str) -> str:
        """A result that can stand inside a call: one line, without the marks that would end it early."""
        result = " ".join(result.split())
        for mark in (self.start, self.arrow, self.end):
            result = result.replace(mark.strip(), {"[": "(", "]": ")"}.get(mark.strip(), ""))
        return result.strip()


MARKED = CallFormat()
"""special tokens of the tokenizer's own"""
PLAIN = CallFormat(" [", " ->", "]", gap=" ")
"""the paper's choice for a published model, whose vocabulary stays as it is (section 2, footnote 1)"""
BYTES = CallFormat("[", "->", "]")
"""for a tokenizer in which `` [`` is not one token"""

_NAME = re.compile(r"\s*([A-Za-z_][\w-]*)\((.*)\)\s*", re.DOTALL)


def parse_call(text: str) -> Call | None:
    """The call that ``name(argument)`` writes, or ``None`` where the text is none.

    The argument reaches to the last parenthesis, so it may hold parentheses of its own.

    Example:
        >>> parse_call("Calculator(2 * (3 + 4))")
        Call(tool='Calculator', argument='2 * (3 + 4)')
        >>> parse_call("Calculator 3 + 4") is None
        True
    """
    found = _NAME.fullmatch(text)
    return Call(found[1], found[2].strip()) if found else None


@dataclass(frozen=True)
class Span:
    """A call found in a text, which it takes up from ``start`` to ``end``."""

    start: int
    end: int
    call: Call
    result: str | None


def find_calls(text: str, how: CallFormat = MARKED) -> Iterator[Span]:
    """Well-formed calls in ``text``, from left to right; what only looks like one is passed over."""
    place = 0
    while (start := text.find(how.start, place)) >= 0:
        inside = start + len(how.start)
        close = text.find(how.end, inside)
        if close < 0:
            return
        body, arrow, result = text[inside:close].partition(how.arrow)
        call = parse_call(body)
        place = inside if call is None else close + len(how.end)
        if call is not None:
            yield Span(start, place, call, result.strip() if arrow else None)


def strip_calls(text: str, how: CallFormat = MARKED) -> str:
    """``text`` without its calls."""
    kept, place = [], 0
    for span in find_calls(text, how):
        kept.append(text[place : span.start])
        place = span.end
    return "".join([*kept, text[place:]])
