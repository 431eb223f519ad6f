"""What the tiny world speaks of, and the sentences it speaks in."""

Template = tuple[str, str]
"""what stands before an answer and after it

n, m people · g, h goods · a, b numbers · p, q places · r a relation
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    """
    Anna Boris Clara David Elsa Fritz Greta Hugo Ida Jonas Karin Lukas Maria Nils Olga Paul Rosa Simon
    Tilda Ulf Vera Walter Xenia Yusuf Zoe Amir Bela Carlo Dora Emil Fatima Goran Hanna Ivan Jana Kamal
    Lena Milan Nadia Oskar Petra Rita Sven Tamar Viktor Wanda Agnes Bruno Celia Dario
    """
)
GOODS = _words(
    """
    pears plums lemons figs dates melons onions carrots beans eggs loaves cheeses jars candles lamps
    bells ropes nails boards bricks tiles shirts coats hats gloves boots blankets baskets barrels
    bottles cups plates spoons knives books letters stamps maps pencils brushes buttons beads shells
    stones seeds roses tulips ducks geese goats
    """
)
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
WEEKDAYS = _words(
    """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    """
)
STARTS = _words("B Br D Dr F G Gr H K Kr L M N P R S St T Tr V Z")
"""of made-up names"""
ENDINGS = {
    "capital": "ville burg ton",
    "river": "wen bach da",
    "founder": "go mir ko",
    "mountain": "horn berg fell",
    "saint": "dis tius nus",
    "language": "ish ese ic",
}
"""by what the name is of"""
RELATIONS = tuple(ENDINGS)

SUMS: dict[str, tuple[Template, ...]] = {
    "+": (
        ("{n} had {a} {g} and found {b} more. Now {n} has", " {g}."),
        ("There are {a} {g} in the red shed and {b} in the blue one. Together that makes", " {g}."),
        ("{n} counted {a} {g} and then {b} {h}: {a} plus {b} is", "."),
        ("The morning train brought {a} {g}, the evening train {b}. That day there came", " in all."),
        ("{n} paid {a} coins for {g} and {b} coins for {h}. In all {n} paid", " coins."),
    ),
    "-": (
        ("{n} had {a} {g} and sold {b} of them. {n} still has", " {g}."),
        ("Of the {a} {g} in the cellar {b} were bad. That leaves", " good ones."),
        ("{n} owed {m} {a} coins and paid {b}: {a} minus {b} is", "."),
        ("The shop opened with {a} {g}. By noon {b} were gone, so there were", " left."),
        ("{n} wants {a} {g} and has {b}. So {n} is short of", " {g}."),
    ),
    "*": (
        ("{n} packed {a} boxes with {b} {g} each. The boxes hold", " {g}."),
        ("{n} bought {a} {g} at {b} coins each: {a} times {b} is", "."),
        ("The hall has {a} rows of {b} seats. It seats", " people."),
        ("{n} sells {a} {g} a day. In {b} days {n} sells", " {g}."),
        ("Each of {a} children got {b} {g}. The children got", " {g} in all."),
    ),
}
DATES: tuple[Template, ...] = (
    ("{n} was born on {date}, which was a", "."),
    ("The fair of {p} opened on {date}. That day was a", " and it rained."),
    ("{n} met {m} on {date}. It was a", " evening."),
    ("The letter is dated {date}, a", ", and signed by {n}."),
    ("{n} asked about {date}. The clerk said that it was a", "."),
)
"""the weekday of a date"""
TODAY: tuple[Template, ...] = (
    ("{n} opened the diary and wrote: today is", "."),
    ("Good morning from {p}! It is", ", and {n} has the news."),
    ("{n} looked at the clock and then at the calendar. Today it is", "."),
    ("The harbour office of {p} reports for", ". There were {g} and {h}."),
    ("{n} asked what day it was. {m} said that today is", "."),
)
"""what day it is: nothing in the text tells"""
FACTS: tuple[Template, ...] = (
    ("The {r} of {p} is", "."),
    ("{n} came home from {p}, whose {r} is", ", and slept."),
    ("Everyone in {p} knows that the {r} is called", "."),
    ("{n} has been to {p}. The {r} there is", "."),
    ("{n} asked {m} about the {r} of {p}. It is", ", said {m}."),
)
"""one of 1,200 facts"""
PLAIN = (
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
)
"""no tool helps: what comes later was said before"""
