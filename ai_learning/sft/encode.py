"""Examples to ids, and which ids the model learns to predict: the answers', not the questions'."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..chat_template import CHATML, apply_chat_template, check_chat_template, read_template
from ..errors import InputError
from ..tokenizers import Tokenizer
from .examples import BadRows, Example, Message

Part = tuple[str, bool]  # a text, and whether the model learns to predict it


@dataclass(frozen=True)
class Template:
    """How a conversation is written as one text.

    Attributes:
        source: Jinja; ``None`` writes prompt and response one after the other, as they are.
        variables: the template's other variables, such as ``bos_token``.
    """

    source: str | None = None
    variables: Mapping[str, str] | None = None

    def parts(self, example: Example) -> list[Part]:
        """The example's text in pieces: prompt and answer in turn.

        Raises:
            ValueError: the template does not write a conversation as its beginning and what follows.
        """
        if example.text is not None:
            return [(example.text, True)]
        source = self.source or (CHATML if example.chat else None)
        if source is None:
            *given, answer = example.messages
            return [("\n\n".join(message.text for message in given), False), (answer.text, True)]
        return self._chat_parts(source, example.messages, example.tools)

    def prompt(self, messages: Iterable[Message], chat: bool = False) -> str:
        """The prompt after which the model writes its answer."""
        source = self.source or (CHATML if chat else None)
        if source is None:
            return "\n\n".join(message.text for message in messages)
        return self._render(source, list(messages), add_generation_prompt=True)

    def _chat_parts(
        self, source: str, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]]
    ) -> list[Part]:
        """Cut around each answer: its header belongs to the prompt, white space after it to the next one."""
        parts: list[Part] = []
        done = ""
        for number, message in enumerate(messages):
            if not message.is_target:  # an answer of weight 0 is context, like the questions
                continue
            before = self._render(source, messages[:number], tools, add_generation_prompt=True)
            after = self._render(source, messages[: number + 1], tools)
            if not (before.startswith(done) and after.startswith(before)):
                raise ValueError(
                    "the chat template writes earlier turns differently once an answer follows, so that the "
                    "answer cannot be told apart; use another --chat-template"
                )
            answer = after[len(before) :].rstrip()
            parts += [(before[len(done) :], False), (answer, True)]
            done = before + answer
        return parts

    def _render(
        self,
        source: str,
        messages: Iterable[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        # A template that handles tool calls formats them as its model was taught; others get them as JSON.
        knows_tools = "tool_calls" in source
        turns = [
            {"role": message.role, "content": message.content if knows_tools else message.text}
            | {key: value for key, value in message.tool.items() if key in source}
            for message in messages
        ]
        variables = {"tools": list(tools) or None, **(self.variables or {})}
        return apply_chat_template(source, turns, add_generation_prompt=add_generation_prompt, **variables)


def template_of(asked: str | None, brought: Mapping[str, Any]) -> Template:
    """The chat template asked for (chatml, none, or a Jinja file), or the one that the model brings.

    Args:
        asked: ``None`` for the model's own.
        brought: what ``open_model`` found beside the model.

    Raises:
        InputError: no such file, or a template that does not work.
    """
    if asked == "none":
        return Template()
    if asked == "chatml":
        return Template(CHATML)
    if asked is not None and not Path(asked).is_file():
        raise InputError(f"chat_template={asked!r} is no file; use chatml, none, or a Jinja file")
    source = brought.get("chat_template") if asked is None else read_template(Path(asked))
    template = Template(source, brought.get("special_tokens"))
    if source is not None:
        try:
            check_chat_template(source, **(template.variables or {}))
        except InputError as error:
            name = "of the model" if asked is None else asked
            hint = "; another is given with --chat-template" if asked is None else ""
            message = str(error).removeprefix("chat template: ")
            raise InputError(f"chat template {name}: {message}{hint}") from None
    return template


@dataclass(frozen=True)
class SFTData:
    """Encoded examples, one after another in two flat arrays.

    Attributes:
        ids: (n,) all ids.
        is_target: (n,) whether the id is to be predicted.
        starts: (examples + 1,) where each example begins, and where the last one ends.
    """

    ids: np.ndarray
    is_target: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and targets of one example."""
        piece = slice(self.starts[number], self.starts[number + 1])
        return self.ids[piece], self.is_target[piece]

    @property
    def lengths(self) -> np.ndarray:
        """Inputs of each example: one less than its ids, since the last is only predicted."""
        return np.diff(self.starts) - 1

    @property
    def n_targets(self) -> int:
        """Ids to be predicted in all."""
        return int(self.is_target.sum())

    def digest(self) -> str:
        """A short hash that tells two data sets apart."""
        hasher = hashlib.sha256()
        for array in (self.ids, self.is_target, self.starts):
            hasher.update(array.tobytes())
        return hasher.hexdigest()[:16]


def encode_examples(
    examples: Iterable[Example],
    tokenizer: Tokenizer,
    block_size: int,
    template: Template | None = None,
    *,
    bad: BadRows | None = None,
    too_long: str = "skip",
) -> SFTData:
    """Tokenize examples for a model.

    Prompt and answer are encoded apart, as they will be when the model is used: it is given the prompt and
    begins a new token. ``eos_id`` ends the last answer. A plain text longer than the model's is cut into
    several examples.

    Args:
        examples: see ``read_examples``.
        tokenizer: the model's.
        block_size: the model's longest input.
        template: how conversations are written.
        bad: what to do with an example that cannot be used; fatal by default.
        too_long: of a conversation longer than ``block_size``: ``"skip"`` (a bad row) or ``"cut"`` its end.

    Raises:
        InputError: nothing left to train on, or a bad row where that is fatal.
    """
    if too_long not in ("skip", "cut"):
        raise InputError(f"too_long={too_long!r} is not known; use skip or cut")
    template, bad = template or Template(), BadRows() if bad is None else bad
    ids: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for example in examples:
        try:
            pieces = _pieces(*_encode(example, tokenizer, template), example, block_size, too_long)
        except ValueError as error:
            bad.note(example.where, str(error))
            continue
        for piece, is_target in pieces:
            ids.append(piece)
            targets.append(is_target)
    if not ids:
        raise InputError("no example is left to train on" + (f": {bad.found[0]}" if bad.found else ""))
    starts = np.concatenate([[0], np.cumsum([len(piece) for piece in ids])])
    return SFTData(np.concatenate(ids), np.concatenate(targets), starts)


def encode_prompt(example: Example, tokenizer: Tokenizer, template: Template | None = None) -> list[int]:
    """The ids before the last answer: what to give the model to get one."""
    parts = (template or Template()).parts(example)[:-1]
    return [i for text, _ in parts for i in _ids(text, tokenizer, example, template or Template())]


def _encode(example: Example, tokenizer: Tokenizer, template: Template) -> tuple[np.ndarray, np.ndarray]:
    ids: list[int] = []
    is_target: list[bool] = []
    for text, learned in template.parts(example):
        part = _ids(text, tokenizer, example, template)
        ids += part
        is_target += [learned] * len(part)
    if tokenizer.eos_id is not None and ids[-1:] != [tokenizer.eos_id]:  # a template may write it itself
        ids.append(tokenizer.eos_id)
        is_target.append(True)
    if is_target:
        is_target[0] = False  # nothing comes before it
    return np.array(ids, np.int32), np.array(is_target, bool)


def _ids(text: str, tokenizer: Tokenizer, example: Example, template: Template) -> list[int]:
    """Encode one piece; only the template's own markup becomes special tokens, never text of the data."""
    special: set[str] = getattr(tokenizer, "special_tokens_set", set())
    if example.text is None and (template.source is not None or example.chat):
        for token in special:
            if any(token in f"{message.text} {message.tool}" for message in example.messages):
                raise ValueError(f"a message holds the text of the special token {token!r}")
            if token in f"{example.tools}":
                raise ValueError(f"field 'tools' holds the text of the special token {token!r}")
        encode: Any = tokenizer.encode
        return list(encode(text, allowed_special="all")) if special else list(tokenizer.encode(text))
    ordinary: Any = getattr(tokenizer, "encode_ordinary", tokenizer.encode)
    return list(ordinary(text))


def _pieces(
    ids: np.ndarray, is_target: np.ndarray, example: Example, block_size: int, too_long: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    longest = block_size + 1  # the last id is only predicted
    if len(ids) <= longest or example.text is not None:
        # Windows of a text share one id: the last target of one is the first input of the next.
        starts = range(0, max(1, len(ids) - 1), block_size)
        pieces = [(ids[s : s + longest], is_target[s : s + longest].copy()) for s in starts]
        for _, wanted in pieces:
            wanted[0] = False
    elif too_long == "skip":
        raise ValueError(f"{len(ids) - 1} tokens are too long for block_size={block_size}")
    else:
        pieces = [(ids[:longest], is_target[:longest])]
    if not all(wanted.any() for _, wanted in pieces):
        raise ValueError("nothing to learn is left of it" if len(ids) > longest else "nothing to learn in it")
    return pieces
