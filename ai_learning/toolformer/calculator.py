"""Arithmetic as a tool: a parser of its own, exact fractions, and a bound on everything.

Never ``eval``: what a model writes is input from a stranger. The grammar, from the weakest to the strongest:

    sum     = product (("+" | "-") product)*
    product = factor (("*" | "/") factor)*
    factor  = ("+" | "-") factor | power
    power   = atom (("**" | "^") factor)?
    atom    = number | "(" sum ")"
"""

import re
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction

MAX_CHARACTERS = 256
MAX_DEPTH = 32
"""parentheses, signs and powers within each other"""
MAX_EXPONENT = 64
MAX_BITS = 256
"""of the numerator and of the denominator of every number on the way"""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)|(?P<sign>\*\*|[-+*/^()]))"
)
_SIGNS = str.maketrans({"×": "*", "·": "*", "∗": "*", "⋅": "*", "÷": "/", "∕": "/", "−": "-", "–": "-"})


class CalculationError(ValueError):
    """An expression that has no value here; the message says why."""


def calculate(expression: str) -> str:
    """The value of an expression, rounded to two decimals as in the paper (section 3).

    Args:
        expression: numbers, ``+ - * / ** ^ ( )`` and the signs ``× · ÷ −``; whole powers only.

    Raises:
        CalculationError: it cannot be read, has no value, or passes a bound.

    Example:
        >>> calculate("3 * (4 + 5)"), calculate("400 / 1,400"), calculate("2 ** -1")
        ('27', '0.29', '0.5')
    """
    if len(expression) > MAX_CHARACTERS:
        raise CalculationError(f"the expression is longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_tokens(expression.translate(_SIGNS)))
    value = parser.sum(0)
    if parser.here is not None:
        raise CalculationError(f"cannot read from {parser.here!r} on")
    return _written(value)


def _tokens(expression: str) -> list[str]:
    expression = expression.rstrip()
    tokens, place = [], 0
    while place < len(expression):
        found = _TOKEN.match(expression, place)
        if found is None:
            raise CalculationError(f"cannot read {expression[place:].strip()[:20]!r}")
        tokens.append(found["number"] or found["sign"])
        place = found.end()
    if not tokens:
        raise CalculationError("the expression is empty")
    return tokens


class _Parser:
    """Recursive descent: a method a rule of the grammar."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place = tokens, 0

    @property
    def here(self) -> str | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, *wanted: str) -> str | None:
        """The next token if it is one of these, which is then passed."""
        found = self.here
        if found is None or found not in wanted:
            return None
        self.place += 1
        return found

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+", "-"):
            other = self.product(depth)
            value = _bounded(value + other if sign == "+" else value - other)
        return value

    def product(self, depth: int) -> Fraction:
        value = self.factor(depth)
        while sign := self.take("*", "/"):
            other = self.factor(depth)
            if sign == "/" and other == 0:
                raise CalculationError("division by zero")
            value = _bounded(value * other if sign == "*" else value / other)
        return value

    def factor(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise CalculationError(f"nested deeper than {MAX_DEPTH}")
        if sign := self.take("+", "-"):
            value = self.factor(depth + 1)
            return value if sign == "+" else -value
        return self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        return _power(base, self.factor(depth + 1)) if self.take("**", "^") else base

    def atom(self, depth: int) -> Fraction:
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise CalculationError("a parenthesis is not closed")
            return value
        token = self.here
        if token is None:
            raise CalculationError("the expression ends too early")
        if not (token[0].isdigit() or token[0] == "."):
            raise CalculationError(f"expected a number before {token!r}")
        self.place += 1
        return _bounded(Fraction(token.replace(",", "")))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise CalculationError("the exponent must be a whole number")
    n = int(exponent)
    if abs(n) > MAX_EXPONENT:
        raise CalculationError(f"the exponent must not exceed {MAX_EXPONENT}")
    if base == 0 and n < 0:
        raise CalculationError("division by zero")
    _check_bits(max(base.numerator.bit_length(), base.denominator.bit_length()) * abs(n))
    return _bounded(base**n)


def _bounded(value: Fraction) -> Fraction:
    _check_bits(max(value.numerator.bit_length(), value.denominator.bit_length()))
    return value


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS + MAX_EXPONENT:  # the product of lengths is a little more than the length of a power
        raise CalculationError("a number has too many digits")


_WIDE = Context(prec=200)


def _written(value: Fraction) -> str:
    exact = _WIDE.divide(Decimal(value.numerator), Decimal(value.denominator))
    rounded = exact.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP, context=_WIDE)
    text = f"{rounded:f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
