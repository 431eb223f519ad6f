"""What an instruction data set holds, whatever its file: conversations, and plain texts.

======================  ====================================================================================
fields of a row         what it is
======================  ====================================================================================
``messages``            a chat as OpenAI writes it: a list of ``{"role", "content"}``
``conversations``       a chat as ShareGPT writes it: a list of ``{"from", "value"}`` (or of OpenAI's)
``prompt, response``    one question and its answer (``completion``, ``output`` and ``answer`` are read too;
                        so are Alpaca's ``instruction, input, output``); either may be a list of messages
``text``                plain text: every token is learned
======================  ====================================================================================

Beside a chat or a pair, ``system`` is its system message, where the chat has none of its own; beside a chat,
``tools`` (or ``functions``) are what it may call.
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
    "function_response": "tool", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
# In ShareGPT's data "function" is the call with some and its result with others, so it is OpenAI's alone.
_OPENAI = _SHAREGPT | {"developer": "system", "function": "tool"}
_PROMPTS = ("prompt", "instruction", "question")
_RESPONSES = ("response", "completion", "output", "answer")
_BESIDE = ("system", "input", "tools", "functions")  # not renamed, and read beside what is
_REASONING = ("reasoning_content", "thinking")  # what came before an answer: Qwen's and DeepSeek's, gpt-oss's


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool"""
    content: str
    learned: bool = True
    """of an answer: whether it is learned, or context only (``"weight": 0``)"""
    tool: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """``tool_calls`` and reasoning of an answer, ``tool_call_id`` and ``name`` of a tool's: for templates
    that know them"""

    @property
    def text(self) -> str:
        """The content, and behind it the calls as JSON: ``[{"name": …, "arguments": {…}}]``."""
        calls = [call["function"] for call in self.tool.get("tool_calls", ())]
        written = json.dumps(calls, ensure_ascii=False) if calls else ""
        return "\n".join(filter(None, (self.content, written)))

    @property
    def is_target(self) -> bool:
        """Whether it is an answer to be learned."""
        return self.role == "assistant" and self.learned


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
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """functions that may be called, as OpenAI writes them: for templates that know them"""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """The last answer; of a plain text, the text."""
        return self.text if self.text is not None else self.messages[-1].text


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
        beside = {name: row[name] for name in _BESIDE if name in row and name not in columns.values()}
        row = beside | {ours: row[theirs] for ours, theirs in columns.items()}
    for name in ("messages", "conversations"):
        if row.get(name) is not None:
            messages = _told(row, _messages(row[name], name))
            return Example(_conversation(messages), chat=True, where=where, tools=_tools(row))
    prompt, response = (next((n for n in names if n in row), None) for names in (_PROMPTS, _RESPONSES))
    if prompt is not None and response is not None:
        about = "input" if columns or prompt == "instruction" else None  # Alpaca's
        return _pair(row, prompt, response, about, where)
    if prompt is not None or response is not None:
        there, lacking = (prompt, "response") if prompt else (response, "prompt")
        raise ValueError(f"field {lacking!r} is missing beside {there!r}")
    if "text" in row:
        return Example(text=_text(row["text"], "text"), where=where)
    raise ValueError(
        f"no messages, conversations, prompt and response, or text among its fields ({_names(row)})"
    )


def _pair(row: Mapping[str, Any], prompt: str, response: str, about: str | None, where: str) -> Example:
    question, answer = row[prompt], row[response]
    if isinstance(question, list) or isinstance(answer, list):
        messages = [
            *_turns(question, prompt, "user"),
            *_turns(answer, response, "assistant"),
        ]
        return Example(_conversation(_told(row, messages)), chat=True, where=where, tools=_tools(row))
    asked = _text(question, prompt)
    if about and row.get(about):  # what the instruction is about
        asked += "\n\n" + _text(row[about], about)
    turns = [Message("user", asked), Message("assistant", _text(answer, response))]
    return Example(tuple(_told(row, turns)), where=where)


def _told(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """With the row's own ``system``, unless a message says it already."""
    if not row.get("system") or any(message.role == "system" for message in messages):
        return messages
    return [Message("system", _text(row["system"], "system")), *messages]


def _turns(value: Any, name: str, role: str) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, name)
    return [Message(role, _text(value, name))]


def _messages(value: Any, name: str) -> list[Message]:
    if isinstance(value, str):  # a cell of a table
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"field {name!r} is no list of messages") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {name!r} is {'empty' if value == [] else 'no list of messages'}")
    return [_message(turn, f"{name}[{number}]", name) for number, turn in enumerate(value)]


def _message(turn: Any, where: str, name: str) -> Message:
    # A field that a message lacks is null in Parquet, where all messages have the same fields.
    fields = {k: v for k, v in turn.items() if v is not None} if isinstance(turn, Mapping) else {}
    sharegpt = "from" in fields or (name == "conversations" and "role" not in fields)
    role, content, roles = ("from", "value", _SHAREGPT) if sharegpt else ("role", "content", _OPENAI)
    calls = _calls(fields, where)
    if role not in fields or (content not in turn and not calls):
        raise ValueError(f"{where} has no {role!r} and {content!r}")
    who = roles.get(str(fields[role]).lower(), fields[role])
    if who not in ROLES:
        raise ValueError(f"{where} has the {role} {who!r}; known are {', '.join(ROLES)}")
    tool: dict[str, Any] = {}
    if calls:
        if who != "assistant":
            raise ValueError(f"{where} is of the {role} {who!r} and calls tools: only an assistant does")
        tool = {"tool_calls": calls}
    elif who == "tool":
        tool = {key: fields[key] for key in ("tool_call_id", "name") if key in fields}
    if who == "assistant":
        told = [key for key in _REASONING if key in fields]
        tool |= {key: _text(fields[key], f"{where}.{key}", empty=True) for key in told}
    said = _content(fields.get(content, "" if calls else None), f"{where}.{content}")
    message = Message(who, said, _weight(fields, where), tool)
    _text(message.text, where, empty=True)  # the calls' text too
    return message


def _content(value: Any, name: str) -> str:
    """A text, or OpenAI's list of parts; their texts follow each other as chat templates write them."""
    if not isinstance(value, list):
        return _text(value, name, empty=True)
    texts = []
    for number, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            what = "is no part with a type" if kind is None else f"is of the type {kind!r}"
            raise ValueError(f"{name}[{number}] {what}: only parts of the type 'text' are read")
        texts.append(_text(part.get("text"), f"{name}[{number}].text", empty=True))
    return "".join(texts)


def _weight(fields: Mapping[str, Any], where: str) -> bool:
    weight = fields.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"{where} has the weight {weight!r}: 0 is context only, 1 is learned")
    return bool(weight)


def _calls(fields: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """``tool_calls``, or the older ``function_call``, with arguments as an object rather than as its JSON."""
    calls = fields.get("tool_calls") or []
    if "function_call" in fields:
        calls = [{"type": "function", "function": fields["function_call"]}]
    found = []
    for number, call in enumerate(calls if isinstance(calls, list) else [None]):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}.tool_calls[{number}] has no function with a name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except ValueError:
                raise ValueError(f"{where}.tool_calls[{number}] has arguments that are not JSON") from None
        called = {"name": function["name"], "arguments": {} if arguments is None else arguments}
        found.append({**call, "function": called})
    return found


def _tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """``tools``, or the older ``functions``: a list, or its JSON (as ShareGPT's, and a table's, are)."""
    name = "tools" if row.get("tools") else "functions"
    tools = row.get(name) or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise ValueError(f"field {name!r} is no list of functions") from None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"field {name!r} is no list of functions")
    whole = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    return tuple(map(_without_nulls, whole))


def _without_nulls(value: Any) -> Any:
    """In Parquet all functions have the fields of each, null where they are not its own."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _conversation(messages: list[Message]) -> tuple[Message, ...]:
    """Up to the last answer to be learned: what comes after it teaches nothing."""
    answers = [n for n, message in enumerate(messages) if message.is_target]
    if not answers and any(message.role == "assistant" for message in messages):
        raise ValueError("every answer has the weight 0: there is nothing to learn")
    if not answers:
        raise ValueError("no message is the assistant's: there is nothing to learn")
    kept = messages[: answers[-1] + 1]
    if not any(kept[n].text.strip() for n in answers):
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
