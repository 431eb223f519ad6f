"""Question answering in HotPotQA's format (Yang et al. 2018): chain of thought, or ReAct over a search tool.

    tasks = read_questions("hotpot_dev_distractor_v1.json")

The world of a ReAct actor is an encyclopaedia: ``Search[…]`` opens an article, ``Lookup[…]`` finds sentences
in it, ``Finish[…]`` answers.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import InputError
from ..actors import finish_of
from .base import Attempt, TextEnvironment, Verdict

if TYPE_CHECKING:
    from ...toolformer import WikiSearch

SENTENCES = 5
"""of an article that a search shows"""

Article = tuple[str, tuple[str, ...]]
"""title, sentences"""


@dataclass(frozen=True)
class QuestionTask:
    """A question with its right answer, which the model never sees.

    Attributes:
        id: HotPotQA's ``_id``.
        question: what is asked.
        answer: the right answer.
    """

    id: str
    question: str
    answer: str
    kind: str = "questions"

    @property
    def prompt(self) -> str:
        """The question."""
        return f"Question: {self.question}"

    def evaluate(self, attempt: Attempt) -> Verdict:
        """Exact match after normalisation, the paper's signal: right or wrong and no more."""
        given = answer_in(attempt.answer)
        if not given:
            return Verdict(False, "No answer was given.")
        if exact_match(given, self.answer):
            return Verdict(True, "The answer is correct.")
        return Verdict(False, f"The answer {given!r} is incorrect.")


@dataclass(frozen=True)
class SearchTask(QuestionTask):
    """A question with articles to search, for a ReAct actor.

    Attributes:
        library: where it searches.
    """

    library: "Library" = field(default_factory=lambda: Articles([]), repr=False)

    def environment(self) -> TextEnvironment:
        """A reader with the library."""
        return QuestionEnvironment(self.library, self.answer)


_ACTION = re.compile(r"\s*(search|lookup|finish)\s*\[(.*)", re.IGNORECASE | re.DOTALL)


class QuestionEnvironment:
    """ReAct's three actions (Yao et al. 2023, section 3.1).

    Args:
        library: what can be searched.
        answer: the right one.
    """

    def __init__(self, library: "Library", answer: str) -> None:
        self.library, self.answer = library, answer

    def reset(self) -> str:
        """A new reader, with no article open."""
        self._open: tuple[str, ...] = ()
        self._found: Iterator[str] = iter(())
        self._keyword = ""
        return ""

    def step(self, action: str) -> tuple[str, bool, bool]:
        """Search, look up, or finish."""
        match = _ACTION.match(action)
        if not match:
            return (
                "That is no action. There are Search[words], Lookup[words] and Finish[answer].",
                False,
                False,
            )
        name, words = match[1].lower(), match[2].rsplit("]", 1)[0].strip()
        if name == "finish":
            right = exact_match(words, self.answer)
            return "", True, right
        return (self._search(words) if name == "search" else self._lookup(words)), False, False

    def _search(self, words: str) -> str:
        article, similar = self.library.find(words)
        if article is None:
            names = ", ".join(similar)
            return f"There is no article {words!r}." + (f" Similar: {names}." if names else "")
        self._open, self._keyword = article[1], ""
        return " ".join(article[1][:SENTENCES]).strip() or "The article is empty."

    def _lookup(self, words: str) -> str:
        if not self._open:
            return "No article is open: search first."
        if words.lower() != self._keyword:
            self._keyword = words.lower()
            hits = [sentence.strip() for sentence in self._open if self._keyword in sentence.lower()]
            self._found = iter([f"(Result {i} / {len(hits)}) {hit}" for i, hit in enumerate(hits, 1)])
        return next(self._found, f"No more results for {words!r}.")


class Library(Protocol):
    """What a reader can search."""

    def find(self, words: str) -> tuple[Article | None, list[str]]:
        """An article, or else titles that come close."""


class Articles:
    """Articles by title; where no title fits, the titles of those whose words fit best.

    Args:
        articles: titles and sentences; of two with one title the first is kept.
    """

    def __init__(self, articles: Iterable[Article]) -> None:
        self.by_title: dict[str, Article] = {}
        for title, sentences in articles:
            self.by_title.setdefault(title.strip().lower(), (title, sentences))

    def find(self, words: str) -> tuple[Article | None, list[str]]:
        """The article of that title, or else the titles of the five that fit best."""
        exact = self.by_title.get(words.strip().lower())
        if exact or not self.by_title:
            return exact, []
        return None, [self._titles[passage] for passage, _ in self._search.search(words, 5)]

    @cached_property
    def _titles(self) -> dict[str, str]:
        """Titles by what the search returns: title and text in one line."""
        return {
            " ".join(f"{title} {' '.join(sentences)}".split()): title
            for title, sentences in self.by_title.values()
        }

    @cached_property
    def _search(self) -> "WikiSearch":
        from ...toolformer import WikiSearch  # brings torch, and builds an index: only when it is needed

        return WikiSearch(self._titles, passage_words=max(len(text) for text in self._titles))


class Passages:
    """Text without titles: whatever is searched, the passage that fits best is found.

    Args:
        source: a file, a folder, ``builtin:reference``, or ``hf:NAME``, as in ``text.py``.
    """

    def __init__(self, source: str) -> None:
        from ...toolformer import WikiSearch

        self._search = WikiSearch(source)

    def find(self, words: str) -> tuple[Article | None, list[str]]:
        """The best passage, cut into sentences."""
        found = self._search.search(words, 1)
        return (("", _sentences(found[0][0])) if found else None), []


def read_questions(
    path: Path | str, *, articles: str | Path | None = None, shared: bool = False
) -> list[QuestionTask]:
    """Questions from a file: HotPotQA's JSON, or its rows as JSONL or Parquet, as on the Hugging Face hub.

    Args:
        path: the file.
        articles: what to search in place of the questions' own paragraphs: a folder of .txt or .md files,
            each an article with its name as title, or text without titles (``hf:NAME``,
            ``builtin:reference``).
        shared: let every question search the paragraphs of all (harder, nearer to the full Wikipedia).

    Raises:
        InputError: a file that cannot be read, or a row without question or answer.
    """
    rows = list(read_rows(path))
    if not rows:
        raise InputError(f"{path} holds no question")
    own = [list(_paragraphs(row, path, number)) for number, row in enumerate(rows, 1)]
    common: Library | None = None
    if articles is not None:
        named = str(articles).startswith(("hf:", "builtin:"))
        common = Passages(str(articles)) if named else Articles(_read_folder(Path(articles)))
    elif shared:
        common = Articles(article for found in own for article in found)
    tasks: list[QuestionTask] = []
    for number, (row, found) in enumerate(zip(rows, own, strict=True), 1):
        question, answer = row.get("question"), row.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
            raise InputError(f"{path}, row {number}: it needs the texts `question` and `answer`")
        name = str(row.get("_id") or row.get("id") or number)
        if common or found:
            tasks.append(SearchTask(name, question.strip(), answer, library=common or Articles(found)))
        else:
            tasks.append(QuestionTask(name, question.strip(), answer))
    return tasks


def read_rows(path: Path | str) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list, a JSONL file (also .gz), or a Parquet file.

    Raises:
        InputError: not there, or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            text = _text(path)
            if text.lstrip().startswith("["):
                rows = json.loads(text)
            else:
                # Not splitlines(): U+2028 and U+0085 may stand within a text of JSON.
                rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, row {number}: an object was expected, not {type(row).__name__}")
        yield row


def _text(path: Path) -> str:
    if path.suffix == ".gz":
        import gzip

        return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    return path.read_text(encoding="utf-8-sig")  # other programs begin a file with a byte order mark


def _paragraphs(row: dict[str, Any], path: Path | str, number: int) -> Iterator[Article]:
    """A row's context: pairs as in HotPotQA's own files, or two lists as on the hub."""
    context = row.get("context") or []
    try:
        if isinstance(context, dict):
            context = list(zip(context["title"], context["sentences"], strict=True))
        for title, sentences in context:
            yield str(title), tuple(map(str, sentences))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}, row {number}: `context` is not a list of [title, sentences]") from None


def _read_folder(folder: Path) -> Iterator[Article]:
    if not folder.is_dir():
        raise InputError(f"no folder of articles at {folder}")
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".txt", ".md"))
    if not files:
        raise InputError(f"{folder} holds no .txt or .md file")
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield file.stem.replace("_", " "), _sentences(text)


def _sentences(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"(?<=[.!?])\s+", text.strip()))


def answer_in(action: str) -> str:
    """The answer in ``Finish[…]``, or all of it where it is no action."""
    found = finish_of(action)
    if found is None:
        found = "" if _ACTION.match(action) else action
    return found.strip()


def normalized(answer: str) -> str:
    """HotPotQA's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in answer.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(given: str, right: str) -> bool:
    """Whether two answers are the same after normalisation."""
    return normalized(given) == normalized(right)


def f1(given: str, right: str) -> float:
    """HotPotQA's F1 over words; a yes or no that is wrong gets nothing."""
    a, b = normalized(given), normalized(right)
    if a != b and ({a, b} & {"yes", "no", "noanswer"}):
        return 0.0
    common = sum((Counter(a.split()) & Counter(b.split())).values())
    return 2 * common / (len(a.split()) + len(b.split())) if common else float(a == b)
