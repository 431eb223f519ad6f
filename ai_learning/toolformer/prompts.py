"""P(x): what shows a model that knows no calls how to write them (Schick et al. 2023, appendix A.2).

The structure is the paper's: what the task is, how a call is written, a few worked examples, the text. The
words and the examples are our own. ``{text}`` stands for x; in the output only what opens and closes a call
is added.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .calls import PLAIN, Call, CallFormat

_TASK = (
    "Your task is to add calls to a {what} to a piece of text. The calls should help you get {gain} needed "
    'to complete the text. You can call it by writing "{form}", where {where}. Copy the text as it is. '
    "Here are some examples:\n\n"
)


@dataclass(frozen=True)
class _Lesson:
    """What one tool's prompt says; in an example «…» is the input of a call."""

    what: str
    gain: str
    stands_for: str
    where: str
    examples: tuple[str, ...]


_LESSONS = {
    "Calculator": _Lesson(
        "calculator",
        "the numbers that are",
        "expression",
        '"expression" is what to compute',
        (
            "The hall has 24 rows of 18 seats, which makes «24 * 18»432 seats.",
            "From 1871 to 1914, that is for «1914 - 1871»43 years, the bridge was closed.",
            "Of the 640 votes 416 went to the mayor, a share of «416 / 640»0.65.",
            "A ticket costs 12 dollars and a meal 7.50, «12 + 7.5»19.5 dollars together.",
        ),
    ),
    "QA": _Lesson(
        "question answering system",
        "the facts that are",
        "question",
        '"question" is what to ask',
        (
            "The Danube flows into the «Which sea does the Danube flow into?»Black Sea.",
            "Marie Curie, born in «In which city was Marie Curie born?»Warsaw, studied in Paris.",
            "Mercury is the planet «Which place does Mercury have from the sun?»nearest to the sun.",
            "The flute is a woodwind though made of «What are concert flutes made of?»metal.",
        ),
    ),
    "WikiSearch": _Lesson(
        "search in Wikipedia",
        "the knowledge that is",
        "search term",
        '"search term" is what to look for',
        (
            "A fly reel only holds the line; «types of fishing reels»spinning reels can also cast it.",
            "Many plants of the daisy family, among them «plants of the daisy family»lettuce, can be eaten.",
            "The flag shows a «flag of Bhutan»dragon between two fields.",
        ),
    ),
    "MT": _Lesson(
        "machine translation system",
        "the English of foreign words, which is",
        "text",
        '"text" is the foreign text',
        (
            'The sign said "Zutritt verboten" «Zutritt verboten»(no entry), so we turned back.',
            'His first novel, "Le vent du nord" «Le vent du nord»(The North Wind), sold badly.',
            'They call this dish "pan con tomate" «pan con tomate»(bread with tomato).',
        ),
    ),
    "Calendar": _Lesson(
        "calendar",
        "the date that is",
        "",
        "there is nothing between the parentheses",
        (
            "Today is the first «»Friday of the month.",
            "The president of the club is «»Ada Lindqvist, since last year.",
            "The shop closes in «»ten days, at the end of March.",
            "It is «»2019 now, thirty years after the wall came down.",
        ),
    ),
}


def prompt(tool: str, how: CallFormat = PLAIN) -> str:
    """P(x) for one of the paper's five tools, with ``{text}`` for x.

    Raises:
        ValueError: a tool without a prompt here.

    Example:
        >>> print(prompt("Calculator")[-193:], end="")
        Input:
        A ticket costs 12 dollars and a meal 7.50, 19.5 dollars together.
        Output:
        A ticket costs 12 dollars and a meal 7.50, [Calculator(12 + 7.5)] 19.5 dollars together.
        <BLANKLINE>
        Input:
        {text}
        Output:
    """
    if tool not in _LESSONS:
        known = ", ".join(_LESSONS)
        raise ValueError(f"no prompt for {tool!r}: there are {known}; write one with {{text}} in it")
    lesson = _LESSONS[tool]
    form = how.write(Call(tool, lesson.stands_for)).strip()
    task = _TASK.format(what=lesson.what, gain=lesson.gain, form=form, where=lesson.where)
    shown = "".join(_example(tool, text, how) for text in lesson.examples)
    return task + shown + "Input:\n{text}\nOutput:\n"


def prompts(tools: Iterable[str], how: CallFormat = PLAIN) -> dict[str, str]:
    """``prompt`` of each tool by its name."""
    return {tool: prompt(tool, how) for tool in tools}


def _example(tool: str, text: str, how: CallFormat) -> str:
    plain, written = "", ""
    for before, argument in _MARKED.findall(text):
        plain += before
        # The call stands before the space of the word that it helps with: in most vocabularies they are one.
        written += before.rstrip(" ") + how.write(Call(tool, argument)) + " "
    rest = text[text.rindex("»") + 1 :]
    return f"Input:\n{plain}{rest}\nOutput:\n{written}{rest}\n\n"


_MARKED = re.compile("(.*?)«(.*?)»")


PROMPTS = prompts(_LESSONS)
"""of the paper's five tools, with the paper's marks for a published model"""
