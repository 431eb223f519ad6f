"""Generation that calls tools (Schick et al. 2023, section 2, "Inference", and 4.2).

Decoding proceeds as usual until ``<API>`` is among the k likeliest next tokens (k = 10). Then the model
writes a call up to ``→``, the tool is called, its result and ``</API>`` are appended, and decoding goes on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .calls import Call, parse_call
from .checks import at_least, check_draws
from .draws import Chooser, sampler
from .ends import CallEnd
from .models import LanguageModel, as_language_model
from .tools import Tool, as_tools, is_error, run_calls


@dataclass(frozen=True)
class ToolUse:
    """A call that the model made while it wrote.

    Attributes:
        call: what was asked; ``None`` where it was not well formed.
        result: the tool's answer; ``None`` where it failed, and the call was then removed from the text.
        error: why it failed.
        written: what the model wrote after ``<API>``.
    """

    call: Call | None
    result: str | None
    error: str | None
    written: str


@dataclass
class Generation:
    """What a model wrote after a prompt.

    Attributes:
        prompt: what it was given.
        text: what it wrote, without the calls.
        annotated: what it wrote, with the calls and their results.
        uses: its calls, in order.
    """

    prompt: str
    text: str = ""
    annotated: str = ""
    uses: list[ToolUse] = field(default_factory=list)

    def __str__(self) -> str:
        return self.annotated


def generate_with_tools(
    model: Any,
    prompt: str | Sequence[str],
    tools: Sequence[Any],
    *,
    max_new_tokens: int = 64,
    top_k: int = 10,
    max_calls: int = 1,
    max_call_tokens: int = 48,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Callable[[str], bool] | None = None,
    dates: Sequence[str | None] | None = None,
    tokenizer: Any = None,
) -> Any:
    """Continue a prompt, or many at once, with tools at hand.

    Args:
        model: a ``LanguageModel`` (see ``as_language_model``), or a model with its ``tokenizer``.
        prompt: a text, or a list of them (decoded together).
        tools: ours or LangChain's. With none, or with ``max_calls=0``, ``<API>`` is never written: the
            paper's "Toolformer (disabled)".
        max_new_tokens: of text; calls and results do not count.
        top_k: a call begins where ``<API>`` is one of that many likeliest tokens; 1 is greedy decoding's
            rule.
        max_calls: at most that many calls for a prompt (the paper: 1); then ``<API>`` is never written.
        max_call_tokens: a call that has not reached ``→`` by then is taken back.
        temperature: 0 is greedy.
        seed: of sampling.
        stop: asked with the text written so far (without calls); ``True`` ends it.
        dates: of each prompt, for the calendar.
        tokenizer: of a model that is no ``LanguageModel`` yet.

    Returns:
        A ``Generation`` for a text, a list of them for a list.

    Raises:
        InputError: a value out of its range, or a prompt that does not fit the model.

    Example:
        >>> out = generate_with_tools(model, "12 times 30 is", [Calculator()])  # doctest: +SKIP
        >>> out.text, out.annotated  # doctest: +SKIP
        (' 360.', '<API>Calculator(12 * 30)→360</API> 360.')
    """
    check_writing(max_new_tokens, top_k, max_calls, temperature, seed)
    at_least(1, max_call_tokens=max_call_tokens)
    lm = as_language_model(model, tokenizer)
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    days = [None if date is None else Date.fromisoformat(date) for date in dates or [None] * len(prompts)]
    known = as_tools(tools)
    writers = [_Writer(lm, number, *given) for number, given in enumerate(zip(prompts, days, strict=True))]
    calls = max_calls if known else 0
    for writer in writers:
        if not 0 < len(writer.ids) <= lm.block_size:
            raise InputError(
                f"a prompt of {len(writer.ids)} tokens, where the model takes 1 to {lm.block_size}: "
                f"{writer.prompt[:40]!r}"
            )
    open_writers = [] if max_new_tokens < 1 else writers
    while open_writers:
        draw = _sampler(open_writers, 0, seed, temperature)
        _write_text(lm, open_writers, draw, max_new_tokens, top_k, calls, stop)
        calling = [w for w in open_writers if w.calling]
        if calling:
            _make_calls(lm, calling, _sampler(calling, 1, seed, temperature), known, max_call_tokens)
        open_writers = [w for w in calling if len(w.text) < max_new_tokens]
    results = [w.finish() for w in writers]
    return results[0] if isinstance(prompt, str) else results


def check_writing(max_new_tokens: int, top_k: int, max_calls: int, temperature: float, seed: int) -> None:
    """Refuse what ``generate_with_tools`` would, before a model is opened."""
    at_least(0, max_new_tokens=max_new_tokens, max_calls=max_calls)
    at_least(1, top_k=top_k)
    check_draws(temperature, seed)


class _Writer:
    """One prompt's state: all ids so far, and which of them are text that was written."""

    def __init__(self, lm: LanguageModel, number: int, prompt: str, date: Date | None) -> None:
        self.lm, self.number, self.prompt, self.date = lm, number, prompt, date
        self.ids = [*lm.bos, *lm.encode(prompt)]
        self.text: list[int] = []  # without calls
        self.parts: list[str | list[int]] = []  # with calls, which are strings
        self.uses: list[ToolUse] = []
        self.calling = False

    def add(self, new: list[int]) -> None:
        self.ids += new
        shown = [i for i in new if i != self.lm.eos_id]
        self.text += shown
        self.parts.append(shown)

    def finish(self) -> Generation:
        written = "".join(p if isinstance(p, str) else self.lm.decode(p) for p in self.parts)
        return Generation(self.prompt, self.lm.decode(self.text), written, self.uses)


def _write_text(
    lm: LanguageModel,
    now: list[_Writer],
    draw: Chooser,
    max_new_tokens: int,
    top_k: int,
    max_calls: int,
    stop: Callable[[str], bool] | None,
) -> None:
    """Continue every prompt until ``<API>`` is likely enough, or its text ends."""
    for writer in now:
        writer.calling = False

    def choose(logits: Tensor, places: list[int], step: int) -> list[int | None]:
        own = torch.tensor([len(now[place].uses) < max_calls for place in places], device=logits.device)
        rank = (logits > logits[:, lm.start_id, None]).sum(-1)  # how many are likelier than <API>
        begins = (rank < top_k) & own
        logits = logits.index_fill(-1, torch.tensor([lm.start_id], device=logits.device), float("-inf"))
        drawn = draw(logits, places, step)
        for place, begin in zip(places, begins.tolist(), strict=True):
            now[place].calling = begin
        return [None if now[place].calling else token for place, token in zip(places, drawn, strict=True)]

    def ends(place: int, new: list[int]) -> bool:
        writer = now[place]
        if new[-1] == lm.eos_id or len(writer.text) + len(new) >= max_new_tokens:
            return True
        return stop is not None and stop(lm.decode([*writer.text, *new]))

    left = max((max_new_tokens - len(w.text) for w in now), default=0)
    new = lm.continue_rows([w.ids for w in now], left, choose=choose, ends=ends)
    for writer, ids in zip(now, new, strict=True):
        writer.add(ids)


def _sampler(now: list[_Writer], calling: int, seed: int, temperature: float) -> Chooser:
    """Random draws that depend on a prompt's number and its calls so far, not on the other prompts."""
    keys = [(writer.number << 16) + 2 * len(writer.uses) + calling for writer in now]
    return sampler(np.array(keys, dtype=np.uint64), seed, temperature)


def _make_calls(
    lm: LanguageModel,
    now: list[_Writer],
    draw: Chooser,
    tools: dict[str, Tool],
    max_call_tokens: int,
) -> None:
    """Let each prompt's model write a call up to ``→``, and call the tools; a failed call leaves no text."""
    end = CallEnd(lm)
    rows = [[*w.ids, lm.start_id] for w in now]
    new = lm.continue_rows(rows, max_call_tokens, choose=draw, ends=lambda _, ids: end(ids))
    cuts = [end.cut(ids) if ids else None for ids in new]
    parsed = [None if cut is None else parse_call(cut[0]) for cut in cuts]
    answers = run_calls(
        ((call, w.date) for call, w in zip(parsed, now, strict=True) if call is not None), tools
    )
    for writer, call, ids in zip(now, parsed, new, strict=True):
        written = lm.decode(ids)
        if call is None:
            writer.uses.append(ToolUse(None, None, "error: not a call: " + written[:40], written))
            continue
        answer = answers[call, writer.date]
        if is_error(answer):
            writer.uses.append(ToolUse(call, None, answer, written))
            continue
        writer.uses.append(ToolUse(call, answer, None, written))
        writer.ids += lm.encode_call(call, answer)
        writer.parts.append(lm.how.write(call, answer))
