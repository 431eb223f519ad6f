"""A small made-up world, and English about it: what the tiny Toolformer reads, and what it is asked.

A third of the documents ends in something that a small model cannot know: a sum, a product, the weekday of a date,
today's date, or one of 1,200 facts. In the others what comes later was said before: they teach to copy.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date as Date
from datetime import timedelta
from functools import cache

from ..annotate import Document
from ..calls import Call
from ..tools import Calculator, Calendar, FactQA, Tool, as_tools, run_call
from .words import WordTokenizer

KINDS = ("Calculator", "Calendar", "QA")
"""documents that need a tool, by its name; the others are ``plain``"""

PEOPLE = (
    "Anna Boris Clara David Elsa Fritz Greta Hugo Ida Jonas Karin Lukas Maria Nils Olga Paul Rosa Simon Tilda Ulf Vera "
    "Walter Xenia Yusuf Zoe Amir Bela Carlo Dora Emil Fatima Goran Hanna Ivan Jana Kamal Lena Milan Nadia Oskar Petra "
    "Rita Sven Tamar Viktor Wanda Agnes Bruno Celia Dario"
).split()
GOODS = (
    "pears plums lemons figs dates melons onions carrots beans eggs loaves cheeses jars candles lamps bells ropes nails "
    "boards bricks tiles shirts coats hats gloves boots blankets baskets barrels bottles cups plates spoons knives books "
    "letters stamps maps pencils brushes buttons beads shells stones seeds roses tulips ducks geese goats"
).split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
RELATIONS = ("capital", "river", "founder", "mountain", "saint", "language")
FIRST_DAY, DAYS = Date(1950, 1, 1), 36525
"""a hundred years"""


def _invent(count: int, endings: str, generator: random.Random, taken: set[str]) -> list[str]:
    """Made-up names that nothing else is called."""
    starts = "B Br D Dr F G Gr H K Kr L M N P R S St T Tr V Z".split()
    names: list[str] = []
    while len(names) < count:
        name = generator.choice(starts) + generator.choice("aeiou") + generator.choice("lmnrstvdk")
        name += generator.choice("aeiou") + generator.choice(endings.split())
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


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

    def document(self, name: str) -> Document:
        """What ``annotate`` reads."""
        return Document(self.text, name, self.date)


class World:
    """Places, facts and the templates that speak of them; the same for everyone.

    Example:
        >>> world = World()
        >>> len(world.facts), world.facts["capital of " + world.places[0]] in world.names["capital"]
        (1200, True)
        >>> item = world.item("Calculator", random.Random(0))
        >>> item.text.startswith(item.prompt + " " + item.answer)
        True
    """

    def __init__(self) -> None:
        generator, taken = random.Random(1), set(PEOPLE)
        self.places = _invent(200, "land mark nia ria stan", generator, taken)
        endings = ("ville burg ton", "wen bach da", "go mir ko", "horn berg fell", "dis tius nus", "ish ese ic")
        self.names = {
            relation: _invent(60, ending, generator, taken)
            for relation, ending in zip(RELATIONS, endings, strict=True)
        }
        self.facts = {f"{r} of {p}": generator.choice(self.names[r]) for r in RELATIONS for p in self.places}
        questions = list(self.facts)
        generator.shuffle(questions)
        self.held_out_facts = frozenset(questions[:240])
        self._lookup = FactQA(self.facts)

    def tools(self) -> list[Tool]:
        """The three tools."""
        return [Calculator(), Calendar(), self._lookup]

    # --- documents ---------------------------------------------------------------------------------------

    def item(self, kind: str, generator: random.Random, held_out: bool = False) -> Item:
        """A random document; ``held_out`` ones have numbers, dates and facts that no other document has."""
        if kind == "plain":
            return generator.choice((self._plain, self._exercise, self._hint))(generator)
        return {"Calculator": self._sum, "Calendar": self._day, "QA": self._fact}[kind](generator, held_out)

    def items(self, count: int, seed: str, plain: float = 0.6, held_out: bool = False) -> Iterator[Item]:
        """Many documents, a share of them plain, the others in equal parts."""
        generator = random.Random(seed)
        for _ in range(count):
            kind = "plain" if generator.random() < plain else generator.choice(KINDS)
            yield self.item(kind, generator, held_out)

    def _sum(self, generator: random.Random, held_out: bool) -> Item:
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
        values = {"+": a + b, "-": a - b, "*": a * b}
        before, after = generator.choice(SUMS[sign])
        return self._written(
            "Calculator", before, after, str(values[sign]), Call("Calculator", f"{a} {sign} {b}"), generator, a=a, b=b
        )

    def _day(self, generator: random.Random, held_out: bool) -> Item:
        while True:
            number = generator.randrange(DAYS)
            if (number % 10 == 7) == held_out:
                break
        day = FIRST_DAY + timedelta(number)
        if generator.random() < 0.5:
            before, after = generator.choice(TODAY)
            answer = f"{WEEKDAYS[day.weekday()]}, {MONTHS[day.month - 1]} {day.day}"
            return self._written("Calendar", before, after, answer, Call("Calendar", ""), generator, day=day)
        before, after = generator.choice(DATES)
        date = f"{MONTHS[day.month - 1]} {day.day}, {day.year}"
        return self._written(
            "Calendar", before, after, WEEKDAYS[day.weekday()], Call("Calendar", date), generator, date=date
        )

    def _fact(self, generator: random.Random, held_out: bool) -> Item:
        while True:
            relation, place = generator.choice(RELATIONS), generator.choice(self.places)
            question = f"{relation} of {place}"
            if (question in self.held_out_facts) == held_out:
                break
        before, after = generator.choice(FACTS)
        return self._written(
            "QA", before, after, self.facts[question], Call("QA", question), generator, r=relation, p=place
        )

    def _exercise(self, generator: random.Random) -> Item:
        """A page of an exercise book: in place of the answer it says, in parentheses, what to look up."""
        item = self.item(generator.choice(KINDS), generator)
        assert item.call is not None
        after = item.text[item.start + 1 + len(item.answer) :]
        return Item("plain", f"Exercise: {item.prompt} ({item.call.argument}){after}", date=item.date)

    def _hint(self, generator: random.Random) -> Item:
        """A document whose answer was told before."""
        item = self.item(generator.choice(KINDS), generator)
        assert item.call is not None and item.date is not None
        told = run_call(item.call, as_tools(self.tools()), Date.fromisoformat(item.date)).rstrip(".")
        return Item("plain", f"Hint: {told}. {item.text}", date=item.date)

    def _plain(self, generator: random.Random) -> Item:
        day = FIRST_DAY + timedelta(generator.randrange(DAYS))
        words = {
            "a": generator.randint(11, 499),
            "b": generator.randint(11, 499),
            "r": generator.choice(RELATIONS),
            "date": f"{MONTHS[day.month - 1]} {day.day}, {day.year}",
        }
        return self._written("plain", generator.choice(PLAIN), "", "", None, generator, **words)

    def _written(
        self,
        kind: str,
        before: str,
        after: str,
        answer: str,
        call: Call | None,
        generator: random.Random,
        day: Date | None = None,
        **words: object,
    ) -> Item:
        words |= dict(zip("nm", generator.sample(PEOPLE, 2), strict=True))
        words |= dict(zip("gh", generator.sample(GOODS, 2), strict=True))
        words = dict(zip("pq", generator.sample(self.places, 2), strict=True)) | words
        prompt = before.format(**words)
        # A calendar's today is known to every document, whether it says so or not.
        written = day or FIRST_DAY + timedelta(generator.randrange(DAYS))
        text = prompt + (f" {answer}" + after.format(**words) if answer else "")
        return Item(kind, text, answer, len(prompt) if answer else 0, call, written.isoformat())


# --- templates: n, m people · g, h goods · a, b numbers · p, q places · r a relation · date ---------------------

SUMS: dict[str, list[tuple[str, str]]] = {
    "+": [
        ("{n} had {a} {g} and found {b} more. Now {n} has", " {g}."),
        ("There are {a} {g} in the red shed and {b} in the blue one. Together that makes", " {g}."),
        ("{n} counted {a} {g} and then {b} {h}: {a} plus {b} is", "."),
        ("The morning train brought {a} {g}, the evening train {b}. That day there came", " in all."),
        ("{n} paid {a} coins for {g} and {b} coins for {h}. In all {n} paid", " coins."),
    ],
    "-": [
        ("{n} had {a} {g} and sold {b} of them. {n} still has", " {g}."),
        ("Of the {a} {g} in the cellar {b} were bad. That leaves", " good ones."),
        ("{n} owed {m} {a} coins and paid {b}: {a} minus {b} is", "."),
        ("The shop opened with {a} {g}. By noon {b} were gone, so there were", " left."),
        ("{n} wants {a} {g} and has {b}. So {n} is short of", " {g}."),
    ],
    "*": [
        ("{n} packed {a} boxes with {b} {g} each. The boxes hold", " {g}."),
        ("{n} bought {a} {g} at {b} coins each: {a} times {b} is", "."),
        ("The hall has {a} rows of {b} seats. It seats", " people."),
        ("{n} sells {a} {g} a day. In {b} days {n} sells", " {g}."),
        ("Each of {a} children got {b} {g}. The children got", " {g} in all."),
    ],
}
DATES: list[tuple[str, str]] = [
    ("{n} was born on {date}, which was a", "."),
    ("The fair of {p} opened on {date}. That day was a", " and it rained."),
    ("{n} met {m} on {date}. It was a", " evening."),
    ("The letter is dated {date}, a", ", and signed by {n}."),
    ("{n} asked about {date}. The clerk said that it was a", "."),
]
TODAY: list[tuple[str, str]] = [
    ("{n} opened the diary and wrote: today is", "."),
    ("Good morning from {p}! It is", ", and {n} has the news."),
    ("{n} looked at the clock and then at the calendar. Today it is", "."),
    ("The harbour office of {p} reports for", ". There were {g} and {h}."),
    ("{n} asked what day it was. {m} said that today is", "."),
]
FACTS: list[tuple[str, str]] = [
    ("The {r} of {p} is", "."),
    ("{n} came home from {p}, whose {r} is", ", and slept."),
    ("Everyone in {p} knows that the {r} is called", "."),
    ("{n} has been to {p}. The {r} there is", "."),
    ("{n} asked {m} about the {r} of {p}. It is", ", said {m}."),
]
PLAIN: list[str] = [
    "{n} ordered {a} {g} and {b} {h}. The shop sent {a} {g} and {b} {h}.",
    "{n} had {a} {g} and {m} had {b} {g}. {n} lost all {a} and {m} kept all {b}.",
    "Ticket {a} is for {n} and ticket {b} is for {m}. {n}, please keep ticket {a}.",
    "The code of the door is {a} - {b}. {n} typed {a} - {b} and went in.",
    "{n} wrote {a} + {b} on the wall. {m} read {a} + {b} and laughed.",
    "The list says {a} * {g} and {b} * {h}. {n} read the list: {a} * {g} and {b} * {h}.",
    "The meeting of {date} was moved. Nobody came on {date} but {n}.",
    "{n} sent a letter on {date} from {p}. {m} has the letter of {date} from {p}.",
    "{n} drew a map of {p} and {m} asked about the {r} of {p}. Nobody knew the {r} of {p}.",
    "{n} lives in {p} and {m} lives in {q}. {n} likes {p} and {m} likes {q}.",
    "{n} wrote a book about the {r} of {p}. The book about the {r} of {p} is long.",
    "{n} bought {g} and {h} in {p}. {m} did not want {g}, so {n} gave {m} the {h}.",
    "{n} asked {m} for {a} {g}. {m} had only {b}, and {n} took all {b}.",
    "Room {a} is for {n}. {n} found room {a} and slept well.",
    "{n} met {m} in {p}. {m} sells {g} there, and {n} sells {h}.",
    "The {a} {g} of {n} and the {b} {h} of {m} came to {p} on {date}. {n} took the {a} {g}.",
]


@cache
def world() -> World:
    """The world."""
    return World()


@cache
def tokenizer() -> WordTokenizer:
    """Of all words that a document, a call or an answer can have."""
    import re

    own = world()
    templates = [before + " " + after for group in (*SUMS.values(), DATES, TODAY, FACTS) for before, after in group]
    fields = re.compile(r"\{\w+\}")
    spoken = re.findall(r"[A-Za-z]+|[^\sA-Za-z0-9]", fields.sub(" ", " ".join([*templates, *PLAIN])))
    names = [name for group in own.names.values() for name in group]
    answers = ["Today", "today", "is", "Exercise", "Hint", "of", *MONTHS, *WEEKDAYS, *KINDS]
    return WordTokenizer(functions=KINDS, words=[*spoken, *PEOPLE, *GOODS, *RELATIONS, *own.places, *names, *answers, *"+-*/().,:"])
