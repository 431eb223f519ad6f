"""Tools: a name, and one string in, one string out (Schick et al. 2023, section 3).

A tool never raises: what goes wrong is a string that begins with ``error: ``. So any of them can stand where
LangChain wants a tool (``to_langchain``), and any LangChain tool can stand here (``from_langchain``).
"""

import asyncio
import math
import re
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date as Date
from datetime import datetime
from typing import Any

from .calculator import CalculationError, calculate
from .calls import Call, parse_call

ERROR = "error: "
"""what the answer of a tool that failed begins with"""


def is_error(answer: str) -> bool:
    """Whether a tool's answer tells of a failure."""
    return answer.startswith(ERROR.strip())


class Tool:
    """A tool: give it a name and write ``answer``.

    Example:
        >>> class Reverse(Tool):
        ...     name, description = "Reverse", "turns a text around"
        ...
        ...     def answer(self, argument: str) -> str:
        ...         return argument[::-1]
        >>> Reverse()("abc")
        'cba'
    """

    name: str
    """as it is written in calls: letters, digits, ``_`` and ``-``"""
    description: str = ""
    """one sentence, for prompts and for LangChain"""
    timeout: float | None = 10.0
    """seconds after which an answer is no longer waited for; ``None`` for a tool that is sure to be quick"""

    def answer(self, argument: str) -> str:
        """What the tool says to ``argument``; may raise anything."""
        raise NotImplementedError

    def on(self, date: Date | None) -> "Tool":
        """The tool as it was on the day that a document was written."""
        return self

    def __call__(self, argument: str) -> str:
        """What the tool says, or ``error: `` and why it says nothing; never raises."""
        try:
            return str(self.answer(argument))
        except Exception as error:
            return ERROR + (" ".join(str(error).split())[:200] or type(error).__name__)

    def to_langchain(self) -> Any:
        """The same as a LangChain ``BaseTool``, for agents.

        Example:
            >>> Calculator().to_langchain().invoke("3 * (4 + 5)")
            '27'
        """
        from langchain_core.tools import Tool as LangChainTool

        return LangChainTool(name=self.name, description=self.description, func=self.__call__)


class Calculator(Tool):
    """``+ − × ÷``, parentheses and bounded powers, rounded to two decimals; parsed, never evaluated.

    Example:
        >>> Calculator()("3 * (4 + 5)")
        '27'
        >>> Calculator()("1 / 0")
        'error: division by zero'
    """

    name = "Calculator"
    description = "Arithmetic with + - * / ( ): Calculator(400 / 1400) gives 0.29."
    timeout = None

    def answer(self, argument: str) -> str:
        """See ``calculate``."""
        if not isinstance(argument, str):
            raise CalculationError(f"the expression must be a text, not {type(argument).__name__}")
        return calculate(argument)


class Calendar(Tool):
    """The day: of today, of the day a document was written, or of a date that is asked for.

    Args:
        date: what today is; the real one when ``None``.
        style: how a day is written, as for ``strftime``.
        prefix: before the answer to an empty argument.

    Example:
        >>> calendar = Calendar(Date(2023, 1, 30))
        >>> calendar("")
        'Today is Monday, January 30, 2023.'
        >>> calendar("2021-12-25")
        'Saturday, December 25, 2021'
    """

    name = "Calendar"
    description = "Calendar() gives today's date; Calendar(2021-12-25) gives that date with its weekday."
    timeout = None

    def __init__(
        self, date: Date | str | None = None, style: str = "%A, %B {day}, %Y", prefix: str = "Today is "
    ) -> None:
        self.date = Date.fromisoformat(date) if isinstance(date, str) else date
        self.style, self.prefix = style, prefix

    def on(self, date: Date | None) -> "Calendar":
        """A calendar in which ``date`` is today."""
        return self if date is None else Calendar(date, self.style, self.prefix)

    def answer(self, argument: str) -> str:
        """Today for an empty argument, else the date that is written there."""
        if not argument.strip():
            return f"{self.prefix}{self._written(self.date or Date.today())}" + ("." if self.prefix else "")
        return self._written(read_date(argument))

    def _written(self, day: Date) -> str:
        return day.strftime(self.style.replace("{day}", str(day.day)))


_STYLES = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%B %d, %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%d %b %Y",
    "%A, %B %d, %Y",
    "%d.%m.%Y",
)


def read_date(text: str) -> Date:
    """The date in ``text``: 2021-12-25, December 25, 2021, 25 December 2021 or 25.12.2021.

    Raises:
        ValueError: it is none.
    """
    text = text.strip().rstrip(".")
    if text.isascii() and len(text) <= 40:
        for style in _STYLES:
            try:
                return datetime.strptime(text, style).date()
            except ValueError:
                continue
    raise ValueError(f"{text[:40]!r} is not a date such as 2021-12-25")


class FactQA(Tool):
    """Question answering over a base of facts: the answer to the question that is most like what is asked.

    Args:
        facts: question → answer.
        least: share of the asked question's words (weighted by how rare they are) that the found one must
            have.

    Example:
        >>> qa = FactQA({"capital of Zembla": "Onhava", "river of Zembla": "Nitra"})
        >>> qa("capital of Zembla"), qa("the capital of Zembla?")
        ('Onhava', 'Onhava')
        >>> qa("age of Napoleon")
        'error: nothing is known about that'
    """

    name = "QA"
    description = "QA(capital of France) looks an answer up in a base of facts."
    timeout = None

    def __init__(self, facts: Mapping[str, str], least: float = 0.7) -> None:
        self.least = least
        self.answers = {_normal(question): answer for question, answer in facts.items()}
        self.questions = list(self.answers)
        self.places: dict[str, list[int]] = {}
        for number, question in enumerate(self.questions):
            for word in set(question.split()):
                self.places.setdefault(word, []).append(number)

    def answer(self, argument: str) -> str:
        """The exact question's answer, else that of the most similar question."""
        asked = _normal(argument)
        if asked in self.answers:
            return self.answers[asked]
        scores: dict[int, float] = {}
        most = 0.0
        for word in set(asked.split()):
            places = self.places.get(word, [])
            weight = math.log(1 + len(self.questions) / (1 + len(places)))  # inverse document frequency
            most += weight
            for number in places:
                scores[number] = scores.get(number, 0.0) + weight
        best = max(scores, key=lambda number: (scores[number], -len(self.questions[number])), default=None)
        if best is None or scores[best] < self.least * most:
            raise ValueError("nothing is known about that")
        return self.answers[self.questions[best]]


_EMPTY_WORDS = {"a", "an", "the", "is", "are", "was", "were", "what", "which", "who", "where", "when", "did"}


def _normal(question: str) -> str:
    return " ".join(word for word in re.findall(r"\w+", question.lower()) if word not in _EMPTY_WORDS)


class FromLangChain(Tool):
    """A LangChain tool with one string in and one string out; see ``from_langchain``."""

    def __init__(self, tool: Any, name: str | None = None, timeout: float | None = 10.0) -> None:
        self.tool, self.timeout = tool, timeout
        self.name = name or re.sub(r"^(?=[^A-Za-z_])", "_", re.sub(r"[^\w-]+", "_", tool.name))
        self.description = str(getattr(tool, "description", ""))

    def answer(self, argument: str) -> str:
        """What the tool's ``invoke`` gives."""
        from langchain_core.messages import ToolMessage

        fields: dict[str, Any] = getattr(self.tool, "args", None) or {}
        needed = [name for name, field in fields.items() if "default" not in field] or list(fields)
        given = {needed[0]: argument} if needed else {}
        try:
            found = self.tool.invoke(given)
        except NotImplementedError:  # a tool that only has a coroutine
            found = _waited_for(self.tool.ainvoke(given))
        return str(found.content if isinstance(found, ToolMessage) else found)


def _waited_for(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives; in a thread where this one has a running loop, as in Jupyter."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def from_langchain(tool: Any, name: str | None = None, timeout: float | None = 10.0) -> Tool:
    """Any LangChain ``BaseTool`` (one string in, one string out) as a tool of ours.

    Args:
        tool: a ``BaseTool``, such as a function under ``@tool``.
        name: what it is called in calls; its own name when ``None``.
        timeout: seconds to wait for an answer.

    Example:
        >>> from langchain_core.tools import tool
        >>> @tool
        ... def shout(text: str) -> str:
        ...     "Says it louder."
        ...     return text.upper()
        >>> from_langchain(shout)("abc")
        'ABC'
    """
    return FromLangChain(tool, name, timeout)


def as_tools(tools: "Sequence[Any] | Mapping[str, Any]") -> dict[str, Tool]:
    """Tools by name, LangChain's among them wrapped.

    Raises:
        ValueError: two of one name, one whose name no call can be written with, or something that is no tool.
    """
    found: dict[str, Tool] = {}
    for tool in tools.values() if isinstance(tools, Mapping) else tools:
        if not isinstance(tool, Tool):
            if not (hasattr(tool, "invoke") and hasattr(tool, "name")):
                raise ValueError(f"{tool!r} is neither a Tool nor a LangChain tool")
            tool = from_langchain(tool)
        name = getattr(tool, "name", None)
        if name is None:
            raise ValueError(f'a {type(tool).__name__} has no name: set one, such as name = "Reverse"')
        if parse_call(f"{name}()") != Call(name, ""):
            raise ValueError(
                f"no call to a tool named {name!r} could be read: use a letter or _, "
                "then letters, digits, _ and -"
            )
        if name in found:
            raise ValueError(f"two tools are called {name!r}: give one another name")
        found[name] = tool
    return found


def run_call(call: Call, tools: Mapping[str, Tool], date: Date | None = None) -> str:
    """The answer of the tool that ``call`` names; a failure or a timeout is an ``error: `` string.

    A tool with a ``timeout`` runs in a thread of its own, which is left behind when the time is up: Python
    cannot end it.
    """
    tool = tools.get(call.tool)
    if tool is None:
        return f"{ERROR}there is no tool {call.tool[:40]!r}"
    tool = tool.on(date)
    if tool.timeout is None:
        return tool(call.argument)
    answers: list[str] = []

    def work() -> None:
        try:
            answers.append(tool(call.argument))
        except BaseException as error:  # a tool that calls sys.exit must not end anything but itself
            answers.append(f"{ERROR}{type(error).__name__}")

    thread = threading.Thread(target=work, daemon=True, name=f"tool {tool.name}")
    thread.start()
    thread.join(tool.timeout)
    return answers[0] if answers else f"{ERROR}no answer within {tool.timeout:g} s"


def run_calls(
    calls: Iterable[tuple[Call, Date | None]], tools: Mapping[str, Tool]
) -> dict[tuple[Call, Date | None], str]:
    """Each distinct call once."""
    return {wanted: run_call(wanted[0], tools, wanted[1]) for wanted in dict.fromkeys(calls)}
