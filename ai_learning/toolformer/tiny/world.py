"""A small made-up world, and English about it: what the tiny Toolformer reads, and what it is asked.

Some documents say what a small model cannot know: a sum, the weekday of a date, today's date, or one of
1,200 facts. In the others what comes later was said before, so that copying is learned. Among these are pages
of three kinds of books, which teach what a large model has seen a million times:

    Exercise: Anna had 37 pears and found 24 more. Now Anna has see (37 + 24) pears.  what one would look up
    Hint: 61. Anna had 37 pears and found 24 more. Now Anna has 61 pears.             what is told can be used
    Solution: Anna had 37 pears and found 24 more. Now Anna has [61] 61 pears.        the same, in its place

None of them is a call, and none has both question and answer of a tool.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date as Date
from datetime import timedelta
from functools import cache
from random import Random

from ..annotate import Document
from ..calls import Call
from ..tools import Calculator, Calendar, FactQA, Tool, as_tools, run_call
from .templates import (
    DATES,
    ENDINGS,
    FACTS,
    GOODS,
    MONTHS,
    PEOPLE,
    PLAIN,
    RELATIONS,
    STARTS,
    SUMS,
    TODAY,
    WEEKDAYS,
    Template,
)
from .words import WordTokenizer

KINDS = ("Calculator", "Calendar", "QA")
"""documents that need a tool, by its name; the others are ``plain``"""
FIRST_DAY, DAYS = Date(1950, 1, 1), 36525
"""a hundred years"""


@dataclass(frozen=True)
class Item:
    """A document, and what is known about it."""

    kind: str
    """the tool that it needs, or ``plain``"""
    text: str
    answer: str = ""
    """what a tool must tell"""
    start: int = 0
    """where in the text the answer begins (the space before it)"""
    call: Call | None = None
    """the call that gives it"""
    date: str | None = None
    """when it was written"""

    @property
    def prompt(self) -> str:
        """The text up to the answer."""
        return self.text[: self.start]

    @property
    def rest(self) -> str:
        """The text after the answer."""
        return self.text[self.start + 1 + len(self.answer) :]

    def document(self, name: str) -> Document:
        """What ``annotate`` reads."""
        return Document(self.text, name, self.date)


class World:
    """Places, facts and sentences about them; the same in every run.

    Example:
        >>> world = World()
        >>> len(world.facts), world.facts["capital of " + world.places[0]] in world.names["capital"]
        (1200, True)
        >>> item = world.item("Calculator", Random(0))
        >>> item.text.startswith(item.prompt + " " + item.answer)
        True
    """

    def __init__(self) -> None:
        generator, taken = Random(1), set(PEOPLE)
        self.places = _invent(200, "land mark nia ria stan", generator, taken)
        self.names = {r: _invent(60, ENDINGS[r], generator, taken) for r in RELATIONS}
        self.facts = {f"{r} of {p}": generator.choice(self.names[r]) for r in RELATIONS for p in self.places}
        questions = list(self.facts)
        generator.shuffle(questions)
        self.held_out_facts = frozenset(questions[:240])
        self._lookup = FactQA(self.facts)

    def tools(self) -> list[Tool]:
        """The three tools."""
        return [Calculator(), Calendar(), self._lookup]

    def item(self, kind: str, generator: Random, held_out: bool = False) -> Item:
        """A random document; ``held_out`` ones ask for sums, dates and facts that no other document has."""
        if kind == "plain":
            return generator.choice((self._copying, self._exercise, self._hint, self._solution))(generator)
        return {"Calculator": self._sum, "Calendar": self._day, "QA": self._fact}[kind](generator, held_out)

    def items(self, count: int, seed: str, plain: float) -> Iterator[Item]:
        """Many documents, a share of them plain, the others of all kinds in equal parts."""
        generator = Random(seed)
        for _ in range(count):
            yield self.item("plain" if generator.random() < plain else generator.choice(KINDS), generator)

    # --- what a tool is needed for -----------------------------------------------------------------------

    def _sum(self, generator: Random, held_out: bool) -> Item:
        sign = generator.choice("+-*")
        while True:
            if sign == "*":
                a, b = generator.randint(11, 99), generator.randint(11, 99)
            elif sign == "+":
                a, b = generator.randint(11, 499), generator.randint(11, 499)
            else:
                b = generator.randint(11, 488)
                a = generator.randint(b + 11, 499)
            if ((31 * a + 17 * b) % 10 == 0) == held_out:
                break
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        call = Call("Calculator", f"{a} {sign} {b}")
        return self._written(generator, SUMS[sign], str(value), call, a=a, b=b)

    def _day(self, generator: Random, held_out: bool) -> Item:
        while True:
            number = generator.randrange(DAYS)
            if (number % 10 == 7) == held_out:
                break
        day = FIRST_DAY + timedelta(number)
        weekday = WEEKDAYS[day.weekday()]
        if generator.random() < 0.5:
            answer = f"{weekday}, {MONTHS[day.month - 1]} {day.day}"
            return self._written(generator, TODAY, answer, Call("Calendar", ""), day)
        date = _in_words(day)
        return self._written(generator, DATES, weekday, Call("Calendar", date), date=date)

    def _fact(self, generator: Random, held_out: bool) -> Item:
        while True:
            r, p = generator.choice(RELATIONS), generator.choice(self.places)
            question = f"{r} of {p}"
            if (question in self.held_out_facts) == held_out:
                break
        return self._written(generator, FACTS, self.facts[question], Call("QA", question), r=r, p=p)

    def _written(
        self,
        generator: Random,
        templates: tuple[Template, ...],
        answer: str,
        call: Call,
        today: Date | None = None,
        **words: object,
    ) -> Item:
        before, after = generator.choice(templates)
        words = self._names(generator) | words
        prompt = before.format(**words)
        text = f"{prompt} {answer}{after.format(**words)}"
        # Every document was written on some day, whether it says so or not.
        written = today or FIRST_DAY + timedelta(generator.randrange(DAYS))
        return Item(call.tool, text, answer, len(prompt), call, written.isoformat())

    # --- what no tool is needed for ----------------------------------------------------------------------

    def _copying(self, generator: Random) -> Item:
        """What was said is said again."""
        day = FIRST_DAY + timedelta(generator.randrange(DAYS))
        words = {
            "a": generator.randint(11, 999),
            "b": generator.randint(11, 999),
            "r": generator.choice(RELATIONS),
            "date": _in_words(day),
        }
        return Item("plain", generator.choice(PLAIN).format(**self._names(generator), **words), date=str(day))

    def _exercise(self, generator: Random) -> Item:
        """In place of the answer stands what to look up."""
        item = self.item(generator.choice(KINDS), generator)
        assert item.call is not None
        return Item("plain", f"Exercise: {item.prompt} see ({item.call.argument}){item.rest}", date=item.date)

    def _hint(self, generator: Random) -> Item:
        """The answer is told beforehand."""
        item = self.item(generator.choice(KINDS), generator)
        return Item("plain", f"Hint: {self._told(item)}. {item.text}", date=item.date)

    def _solution(self, generator: Random) -> Item:
        """The answer is told in brackets right before it is used."""
        item = self.item(generator.choice(KINDS), generator)
        text = f"Solution: {item.prompt} [{self._told(item)}] {item.answer}{item.rest}"
        return Item("plain", text, date=item.date)

    def _told(self, item: Item) -> str:
        assert item.call is not None and item.date is not None
        return run_call(item.call, as_tools(self.tools()), Date.fromisoformat(item.date)).rstrip(".")

    def _names(self, generator: Random) -> dict[str, object]:
        """Two of each, for the letters of the templates."""
        pairs = (("nm", PEOPLE), ("gh", GOODS), ("pq", self.places))
        return {
            x: name for xs, names in pairs for x, name in zip(xs, generator.sample(names, 2), strict=True)
        }


def _in_words(day: Date) -> str:
    return f"{MONTHS[day.month - 1]} {day.day}, {day.year}"


def _invent(count: int, endings: str, generator: Random, taken: set[str]) -> list[str]:
    """Made-up names that nothing else is called."""
    names: list[str] = []
    while len(names) < count:
        name = generator.choice(STARTS) + generator.choice("aeiou") + generator.choice("lmnrstvdk")
        name += generator.choice("aeiou") + generator.choice(endings.split())
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


@cache
def world() -> World:
    """The world."""
    return World()


@cache
def tokenizer() -> WordTokenizer:
    """Of all words that a document, a call or an answer can have."""
    own = world()
    pairs = [pair for group in (*SUMS.values(), DATES, TODAY, FACTS) for pair in group]
    sentences = " ".join([*PLAIN, *(half for pair in pairs for half in pair)])
    spoken = re.findall(r"[A-Za-z]+|[^\sA-Za-z0-9]", re.sub(r"\{\w+\}", " ", sentences))
    names = [name for group in own.names.values() for name in group]
    books = ["Exercise", "Hint", "Solution", "see", "[", "]"]
    answers = ["Today", "is", "of", *MONTHS, *WEEKDAYS, *"+-*/().,:"]
    words = [*spoken, *PEOPLE, *GOODS, *RELATIONS, *own.places, *names, *books, *answers, *KINDS]
    return WordTokenizer(words, functions=KINDS)
