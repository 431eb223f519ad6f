"""Tasks answered by likelihood: of several endings the likeliest (HellaSwag), or whether the model would have
said the last word itself (LAMBADA). Prompts and scores are those of EleutherAI's harness.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import InputError
from .loss import perplexity
from .model import GPT, KVCache
from .tokenizers import Tokenizer, encode_own


@dataclass(frozen=True)
class Question:
    """A context and its possible continuations, each with the white space that parts it from the context."""

    context: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class ChoiceScore:
    """How the model judges one continuation."""

    log_likelihood: float
    """nats, summed over its tokens"""
    n_tokens: int
    is_greedy: bool
    """every token is the one that the model would have chosen"""


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of both, cut where the context alone ends, as the harness does it.

    White space at the context's end moves to the continuation: tokens begin with their space.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, head = (encode_own(tokenizer, text) for text in (context + continuation, context))
    if not head:
        head = [tokenizer.eos_id or 0]  # something must come first
        return head, whole
    return whole[: len(head)], whole[len(head) :]


@torch.inference_mode()
def score_choices(model: GPT, context: Sequence[int], choices: Sequence[Sequence[int]]) -> list[ChoiceScore]:
    """Score K continuations of one context; the context is read once and its keys and values are shared.

    Args:
        model: in evaluation mode.
        context: ids, at least one; cut from the left where it is too long.
        choices: K lists of at least one id.

    Raises:
        InputError: an empty context or choice, or a choice longer than the model's context.
    """
    if not context or not all(choices) or not choices:
        raise InputError("a context and each choice need at least one token")
    longest = max(map(len, choices))
    room = model.config.block_size + 1 - longest
    if room < 1:
        raise InputError(f"a choice of {longest} tokens exceeds block_size={model.config.block_size}")
    device, dtype = model.wte.weight.device, model.wte.weight.dtype
    context = list(context)[-room:]
    T, K = len(context), len(choices)
    one = KVCache(model.config, 1, T, dtype, device)
    first = model.lm_head(
        model.hidden(torch.tensor([context], device=device), cache=one)[:, -1:]
    )  # (1, 1, V)
    logits = first.expand(K, -1, -1)
    if longest > 1:
        cache = KVCache(model.config, K, T + longest - 1, dtype, device)
        for shared, layer in zip(one, cache, strict=True):
            layer.append(shared.k[:, :, :T].expand(K, -1, -1, -1), shared.v[:, :, :T].expand(K, -1, -1, -1))
        # Shorter ones are filled up at their end, which nothing before it sees.
        rows = [list(c[:-1]) + [0] * (longest - len(c)) for c in choices]
        logits = torch.cat(
            [logits, model(torch.tensor(rows, device=device), cache=cache)], dim=1
        )  # (K, T', V)
    log_p = logits.float().log_softmax(-1)
    scores = []
    for row, choice in zip(log_p, choices, strict=True):
        ids = torch.tensor(choice, device=device)
        own = row[: len(choice)]
        total = own.gather(-1, ids[:, None]).sum().item()
        scores.append(ChoiceScore(total, len(choice), bool((own.argmax(-1) == ids).all())))
    return scores


def evaluate_questions(
    model: GPT, tokenizer: Tokenizer, questions: Sequence[Question]
) -> dict[str, float | int]:
    """``acc`` and ``acc_norm`` as the harness defines them; of single continuations ``acc`` and perplexity.

    ``acc``: the likeliest choice is the right one. ``acc_norm``: the likeliest by log-likelihood over its
    characters. A question of one choice is right when greedy decoding gives exactly it; its perplexity is
    ``exp`` of the mean −log-likelihood of a whole continuation.

    Raises:
        InputError: no questions.
    """
    if not questions:
        raise InputError("no questions to evaluate")
    right = right_norm = 0
    nats = 0.0
    single = all(len(q.choices) == 1 for q in questions)
    for question in questions:
        pairs = [encode_pair(tokenizer, question.context, choice) for choice in question.choices]
        scores = score_choices(model, pairs[0][0], [ids for _, ids in pairs])
        if single:
            right += scores[0].is_greedy
            nats -= scores[0].log_likelihood
            continue
        totals = [s.log_likelihood for s in scores]
        lengths = [len(choice.lstrip()) for choice in question.choices]
        per_character = [total / length for total, length in zip(totals, lengths, strict=True)]
        right += totals.index(max(totals)) == question.label
        right_norm += per_character.index(max(per_character)) == question.label
    n = len(questions)
    if single:
        return {"acc": right / n, "perplexity": perplexity(nats / n), "questions": n}
    return {"acc": right / n, "acc_norm": right_norm / n, "questions": n}


# --- formats ------------------------------------------------------------------------------------------------


def hellaswag(row: dict[str, Any]) -> Question:
    """A row of HellaSwag (Zellers et al. 2019): activity_label, ctx_a, ctx_b, endings and label."""
    activity, before, begun = (_text(row, name) for name in ("activity_label", "ctx_a", "ctx_b"))
    choices = tuple(" " + _clean(ending) for ending in _texts(row, "endings"))
    return Question(_clean(f"{activity}: {before} {begun.capitalize()}"), choices, _label(row))


def lambada(row: dict[str, Any]) -> Question:
    """A row of LAMBADA (Paperno et al. 2016): ``text``, whose last word is asked for."""
    context, space, word = _text(row, "text").rpartition(" ")
    if not space or not word:
        raise InputError(f"text must end in a word after a space, got {row['text'][-40:]!r}")
    return Question(context, (" " + word,), 0)


def multiple_choice(row: dict[str, Any]) -> Question:
    """Our own rows: ``context``, ``choices`` and ``label``, the number of the right one from 0."""
    choices = tuple(" " + choice.lstrip() for choice in _texts(row, "choices"))
    return Question(_text(row, "context"), choices, _label(row))


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row[name], str):
        raise InputError(f"{name} must be a text, got {row[name]!r:.80}")
    return str(row[name])


def _texts(row: dict[str, Any], name: str) -> list[str]:
    found = row[name]
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InputError(f"{name} must be a list of texts, got {found!r:.80}")
    return found


def _label(row: dict[str, Any]) -> int:
    label = row["label"]
    if isinstance(label, bool) or not isinstance(label, int | str):  # HellaSwag has "3"
        raise InputError(f"label must be the number of the right one, from 0, got {label!r:.80}")
    return int(label)


FORMATS = {"hellaswag": hellaswag, "lambada": lambada, "multiple_choice": multiple_choice}
# Where the hub has them, and the split with labels.
ON_THE_HUB = {
    "hellaswag": ("Rowan/hellaswag", "validation"),
    "lambada": ("EleutherAI/lambada_openai", "test"),
}


def read_questions(task: str, source: str | None = None, limit: int = 0) -> list[Question]:
    """Questions of a task from a JSONL file, or from the hub.

    Args:
        task: one of ``FORMATS``.
        source: a file; the data set on the hub when ``None``.
        limit: at most this many; 0 reads all.

    Raises:
        InputError: no such task or file, or a row that does not fit, by its line.
    """
    if task not in FORMATS:
        raise InputError(f"task={task!r} is not known; use {', '.join(FORMATS)}")
    if limit < 0:
        raise InputError(f"limit={limit} must not be negative; 0 reads all")
    questions = []
    for where, row in _rows(task, source):
        try:
            question = FORMATS[task](row)
        except InputError as error:
            raise InputError(f"{where}: no row of {task}: {error}") from None
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: no row of {task}: {type(error).__name__}: {error}") from None
        if not 0 <= question.label < len(question.choices):
            raise InputError(f"{where}: label {question.label} of {len(question.choices)} choices")
        if not all(choice.strip() for choice in question.choices):
            raise InputError(f"{where}: a choice is empty: {list(question.choices)!r}"[:200])
        questions.append(question)
        if len(questions) == limit:
            break
    if not questions:
        raise InputError(f"{source} holds no questions")
    return questions


def _rows(task: str, source: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    if source is None:
        if task not in ON_THE_HUB:
            raise InputError(f"{task} has no data set on the hub: give a file with --data")
        import datasets

        name, split = ON_THE_HUB[task]
        try:
            rows = datasets.load_dataset(name, split=split)
        except Exception as error:  # datasets' and the hub's errors share no base class
            reason = " ".join(str(error).split())
            raise InputError(f"{name} is not to be had from the hub: {reason}") from None
        for number, row in enumerate(rows):
            yield f"{name}, row {number}", row
        return
    path = Path(source)
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a file of JSON lines")
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}): give a file of JSON lines") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a JSON object is needed, got {line[:40]}")
        yield f"{path}, line {number}", row


def _clean(text: str) -> str:
    """HellaSwag's texts from WikiHow, as the harness cleans them."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
