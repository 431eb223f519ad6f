"""The paper's tasks: their files, and how an answer is scored (Schick et al. 2023, section 4.2).

All are zero-shot: the model continues a prompt, with no examples in it.

- ``math``: ASDiv (XML), SVAMP, MAWPS (JSON or JSON lines); right when the first number written is the answer
- ``cloze``: LAMA (JSON lines: masked_sentences, obj_label); right when the answer is among the first 5 words
- ``dates``: TempLAMA, Dateset (JSON lines: query or question, answer); the same
- ``qa``: WebQ-like (JSON lines: question, answers); right when the answer is among the first 20 words
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..errors import InputError
from ..text import read_file
from .checks import at_least
from .infer import Generation, generate_with_tools
from .models import LanguageModel

KINDS = ("math", "cloze", "dates", "qa")


@dataclass(frozen=True)
class Example:
    """A question in the form that the model continues.

    Attributes:
        prompt: what it is given.
        answers: any of them is right.
        date: what today is for the calendar, 2023-01-30.
    """

    prompt: str
    answers: tuple[str, ...]
    date: str | None = None


@dataclass(frozen=True)
class Result:
    """One example's outcome."""

    prompt: str
    answers: tuple[str, ...]
    written: str
    """the continuation, with its calls"""
    right: bool
    called: tuple[str, ...]
    """calls whose results were put in"""


@dataclass(frozen=True)
class Score:
    """What a model reached on a task."""

    accuracy: float
    call_rate: float
    """share of examples in which a tool was called"""
    n: int
    results: tuple[Result, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


# --- files --------------------------------------------------------------------------------------------------


def read_examples(path: str | Path, kind: str) -> list[Example]:
    """Examples of a task's file in its published format.

    Args:
        path: the file.
        kind: ``math``, ``cloze``, ``dates`` or ``qa``.

    Raises:
        InputError: no such file or kind, or a row that lacks what is needed.
    """
    path = Path(path)
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} is not known: use {', '.join(KINDS)}")
    if not path.is_file():
        raise InputError(f"no file at {path}")
    rows = _asdiv(path) if path.suffix == ".xml" else _json_rows(path)
    examples = []
    for number, row in enumerate(rows, 1):
        try:
            examples += _READERS[kind](row)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}, example {number}: not of a {kind} task ({reason})") from None
    if not examples:
        raise InputError(f"{path} holds no example of a {kind} task that can be used")
    return examples


def _json_rows(path: Path) -> list[dict[str, Any]]:
    text = read_file(path)
    try:
        if path.suffix == ".json" and text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    return list(rows)


def _asdiv(path: Path) -> list[dict[str, Any]]:
    text = read_file(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can make a small file a huge one
        raise InputError(f"{path} declares XML entities, which a data set has no need of")
    try:
        problems = ElementTree.fromstring(text).iter("Problem")
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not valid XML: {error}") from None
    return [{child.tag: child.text or "" for child in problem} for problem in problems]


def _math(row: dict[str, Any]) -> list[Example]:
    """ASDiv and SVAMP: Body, Question, Answer; MAWPS: sQuestion, lSolutions, or original_text, ans."""
    body = row.get("Body", "").strip()
    question = row.get("Question") or row.get("sQuestion") or row.get("original_text") or row.get("question")
    if not question:
        raise KeyError("Question")
    key = next((key for key in ("Answer", "lSolutions", "ans", "answer") if key in row), None)
    if key is None:
        raise KeyError("Answer")
    found = row[key]
    answer = found[0] if isinstance(found, list) else found
    number = first_number(str(answer))  # ASDiv writes "9 (apples)"
    if number is None:
        return []  # ASDiv has a few answers that are no number: "Yes", "2:3" keeps its 2
    ended = body + "." if body and body[-1].isalnum() else body
    return [Example(f"{ended} {question.strip()} The answer is".strip(), (str(answer),))]


def _cloze(row: dict[str, Any]) -> list[Example]:
    """LAMA: the masked word must be the last, so that a left-to-right model can fill it in."""
    sentence = row["masked_sentences"][0] if "masked_sentences" in row else row["masked_sentence"]
    before, mask, after = sentence.partition("[MASK]")
    if not mask:
        raise ValueError("no [MASK] in the sentence")
    if re.search(r"\w", after):
        return []
    return [Example(_FACT + before.strip(), (row["obj_label"],))]


_FACT = "Please complete the following text so that it is factually correct: "


def _dates(row: dict[str, Any]) -> list[Example]:
    """Dateset: question, answer, date; TempLAMA: query with _X_ at its end, answer [{name}], date."""
    date = row.get("date") or row.get("current_date")
    found = row.get("answers", row.get("answer"))
    if not found:
        raise KeyError("answer")
    listed = found if isinstance(found, list) else [found]
    answers = tuple(str(answer["name"] if isinstance(answer, dict) else answer) for answer in listed)
    if "query" in row:
        before, mask, after = row["query"].partition("_X_")
        if not mask:
            raise ValueError("no _X_ in the query")
        if re.search(r"\w", after):
            return []
        return [Example(_FACT + before.strip(), answers, _day(date))]
    return [Example(_asked(row["question"]), answers, _day(date))]


def _day(date: Any) -> str | None:
    """A whole date; TempLAMA gives years only, of which the first day stands for all."""
    if date is None:
        return None
    text = str(date)
    return f"{text}-01-01" if re.fullmatch(r"\d{4}", text) else text[:10]


def _qa(row: dict[str, Any]) -> list[Example]:
    found = row["answers"] if "answers" in row else row["answer"]
    return [Example(_asked(row["question"]), tuple(map(str, found if isinstance(found, list) else [found])))]


def _asked(question: str) -> str:
    return f"Answer the following question: {question.strip()} Answer:"


_READERS: dict[str, Callable[[dict[str, Any]], list[Example]]] = {
    "math": _math,
    "cloze": _cloze,
    "dates": _dates,
    "qa": _qa,
}

# --- scoring ------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)


def first_number(text: str) -> Fraction | None:
    """The first number; in an equation, the first after ``=`` (section 4.2.2).

    Example:
        >>> first_number("5 + 3 = 8 apples"), first_number("about 1,200."), first_number("none")
        (Fraction(8, 1), Fraction(1200, 1), None)
    """
    found = _EQUATION.search(text) or _NUMBER.search(text)
    if found is None:
        return None
    number = found[found.lastindex or 0]
    return Fraction(number.replace(",", "").replace("−", "-"))


_EQUATION = re.compile(rf"\d\s*=\s*\$?({_NUMBER.pattern})", re.ASCII)


def in_first_words(text: str, answers: Iterable[str], n: int = 5) -> bool:
    """Whether an answer stands, word for word, among the first ``n`` words of ``text``.

    Example:
        >>> in_first_words(" the city of New York, which", ["New York"])
        True
    """
    words = _words(" ".join(text.split()[:n]))
    return any(
        wanted == words[i : i + len(wanted)]
        for wanted in map(_words, answers)
        if wanted
        for i in range(len(words) - len(wanted) + 1)
    )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def is_right(kind: str, written: str, answers: Sequence[str]) -> bool:
    """Whether a continuation (without its calls) answers the question, by the rule of its kind."""
    if kind == "math":
        number = first_number(written)
        return number is not None and any(number == first_number(answer) for answer in answers)
    return in_first_words(written, answers, 20 if kind == "qa" else 5)


def evaluate(
    lm: LanguageModel,
    examples: Sequence[Example],
    kind: str,
    tools: Sequence[Any] = (),
    *,
    at_once: int = 64,
    max_new_tokens: int = 32,
    on_progress: Callable[[int, int], None] = lambda done, right: None,
    **options: Any,
) -> Score:
    """Accuracy of a model on a task, with tools or (with none) with calls disabled.

    Args:
        lm: the model.
        examples: as ``read_examples`` gives them.
        kind: decides what is right.
        tools: what it may call.
        at_once: examples decoded together.
        max_new_tokens: of an answer.
        on_progress: told how many are done and how many of them right.
        options: of ``generate_with_tools``.

    Raises:
        InputError: no examples, or a value out of its range.
    """
    at_least(1, at_once=at_once)
    if not examples:
        raise InputError("no examples: there is nothing to measure")
    results: list[Result] = []
    for start in range(0, len(examples), at_once):
        some = examples[start : start + at_once]
        found: list[Generation] = generate_with_tools(
            lm,
            [example.prompt for example in some],
            tools,
            max_new_tokens=max_new_tokens,
            dates=[example.date for example in some],
            **options,
        )
        for example, one in zip(some, found, strict=True):
            right = is_right(kind, one.text, example.answers)
            called = tuple(str(use.call) for use in one.uses if use.result is not None)
            results.append(Result(example.prompt, example.answers, one.annotated, right, called))
        on_progress(len(results), sum(result.right for result in results))
    n = len(results)
    accuracy = sum(result.right for result in results) / n
    return Score(accuracy, sum(bool(result.called) for result in results) / n, len(results), tuple(results))
