"""What an instruction data set holds, whatever its file: conversations, and plain texts.

======================  ====================================================================================
fields of a row         what it is
======================  ====================================================================================
``messages``            a chat as OpenAI writes it: a list of ``{"role", "content"}``
``conversations``       a chat as ShareGPT writes it: a list of ``{"from", "value"}``
``prompt, response``    one question and its answer (``completion``, ``output`` and ``answer`` are read too;
                        so are Alpaca's ``instruction, input, output``); either may be a list of messages
``text``                plain text: every token is learned
======================  ====================================================================================
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from .rows import BadRow, rows_of

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "assistant": "assistant", "model": "assistant", "system": "system", "tool": "tool",
    "function_response": "tool",
}  # fmt: skip
_PROMPTS = ("prompt", "instruction", "question")
_RESPONSES = ("response", "completion", "output", "answer")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool"""
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation, or a plain text."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    """instead of messages"""
    chat: bool = False
    """it came as messages: without a template it is written in ChatML, not as bare text"""
    where: str = ""
    """file and line"""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """The last answer; of a plain text, the text."""
        return self.text if self.text is not None else self.messages[-1].content


@dataclass
class BadRows:
    """What to do with rows that cannot be used, and those that were found.

    Args:
        fatal: the first one raises; else they are skipped and noted.
    """

    fatal: bool = True
    found: list[str] = field(default_factory=list)

    def note(self, where: str, reason: str) -> None:
        """Raise, or remember."""
        message = f"{where}: {reason}"
        if self.fatal:
            raise InputError(f"{message} (--on-bad-row skip leaves such rows out)")
        self.found.append(message)

    def summary(self, total: int, show: int = 3) -> str:
        """One line: how many of how many, and the first few."""
        shown = "; ".join(self.found[:show])
        more = f"; and {len(self.found) - show} more" if len(self.found) > show else ""
        return f"skipped {len(self.found):,} of {total:,} rows: {shown}{more}"


def read_examples(
    source: str | Path | Iterable[Mapping[str, Any]],
    bad: BadRows | None = None,
    *,
    columns: Mapping[str, str] | None = None,
) -> list[Example]:
    """Every example of a source; the module's table says what a row may hold.

    Args:
        source: a ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file; ``hf:NAME?split=train``, a
            Hugging Face dataset; or any iterable of rows.
        bad: what to do with unusable rows; they are fatal by default.
        columns: a field's name here → what it is called in the source (``{"prompt": "ask"}``).

    Raises:
        InputError: no such source, nothing in it, or a bad row where that is fatal.

    Example:
        >>> read_examples([{"prompt": "2 + 2 =", "response": " 4"}])[0].response
        ' 4'
    """
    bad = BadRows() if bad is None else bad
    examples, total = [], 0
    for where, row in rows_of(source):
        total += 1
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.reason)
            examples.append(example_of(row, columns or {}, where))
        except ValueError as error:
            bad.note(where, str(error))
    if not examples:
        name = source if isinstance(source, str | Path) else "the data"
        reason = f": {bad.summary(total)}" if bad.found else " at all"
        raise InputError(f"{name} holds no usable example{reason}")
    return examples


def example_of(row: Mapping[str, Any], columns: Mapping[str, str] | None = None, where: str = "") -> Example:
    """One row as an example.

    Raises:
        ValueError: fields that are missing or of the wrong kind, with their names.
    """
    if columns:
        lost = [theirs for theirs in columns.values() if theirs not in row]
        if lost:
            raise ValueError(f"field {lost[0]!r} is missing; there are {_names(row)}")
        row = {ours: row[theirs] for ours, theirs in columns.items()}
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if row.get(name) is not None:
            messages = _messages(row[name], name, role, content)
            return Example(_conversation(messages), chat=True, where=where)
    prompt, response = (next((n for n in names if n in row), None) for names in (_PROMPTS, _RESPONSES))
    if prompt is not None and response is not None:
        return _pair(row, prompt, response, where)
    if prompt is not None or response is not None:
        there, lacking = (prompt, "response") if prompt else (response, "prompt")
        raise ValueError(f"field {lacking!r} is missing beside {there!r}")
    if "text" in row:
        return Example(text=_text(row["text"], "text"), where=where)
    raise ValueError(
        f"no messages, conversations, prompt and response, or text among its fields ({_names(row)})"
    )


def _pair(row: Mapping[str, Any], prompt: str, response: str, where: str) -> Example:
    question, answer = row[prompt], row[response]
    if isinstance(question, list) or isinstance(answer, list):
        messages = [
            *_turns(question, prompt, "user"),
            *_turns(answer, response, "assistant"),
        ]
        return Example(_conversation(messages), chat=True, where=where)
    asked = _text(question, prompt)
    if prompt == "instruction" and row.get("input"):  # Alpaca: what the instruction is about
        asked += "\n\n" + _text(row["input"], "input")
    turns = [Message("user", asked), Message("assistant", _text(answer, response))]
    if row.get("system"):
        turns.insert(0, Message("system", _text(row["system"], "system")))
    return Example(tuple(turns), where=where)


def _turns(value: Any, name: str, role: str) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, name, "role", "content")
    return [Message(role, _text(value, name))]


def _messages(value: Any, name: str, role: str, content: str) -> list[Message]:
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"field {name!r} is no list of messages") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {name!r} is {'empty' if value == [] else 'no list of messages'}")
    found = []
    for number, turn in enumerate(value):
        if not isinstance(turn, Mapping) or role not in turn or content not in turn:
            raise ValueError(f"{name}[{number}] has no {role!r} and {content!r}")
        who = turn[role]
        if role == "from":
            who = _SHAREGPT.get(str(who).lower(), who)
        if who not in ROLES:
            raise ValueError(f"{name}[{number}] has the {role} {who!r}; known are {', '.join(ROLES)}")
        found.append(Message(who, _text(turn[content], f"{name}[{number}].{content}", empty=True)))
    return found


def _conversation(messages: list[Message]) -> tuple[Message, ...]:
    """Up to the last answer: what comes after it teaches nothing."""
    answers = [n for n, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise ValueError("no message is the assistant's: there is nothing to learn")
    kept = messages[: answers[-1] + 1]
    if not any(kept[n].content.strip() for n in answers):
        raise ValueError("every answer is empty")
    return tuple(kept)


def _text(value: Any, name: str, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} is {'missing' if value is None else 'no text'}")
    if not empty and not value.strip():
        raise ValueError(f"field {name!r} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"field {name!r} is not UTF-8") from None
    return value


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"
