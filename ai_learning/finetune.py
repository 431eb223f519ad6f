"""Fine-tuning a pre-trained GPT on a labelled task, as GPT-1 does (Radford et al. 2018, section 3.2 on)."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .loss import IGNORE_INDEX, linear_cross_entropy
from .model.heads import TASKS, TaskModel, TaskTokens, task_sequences
from .text import package_snippets
from .tokenizers import Tokenizer

TaskBatch = tuple[Tensor, Tensor, Tensor]  # idx (B, K, T), extract_at (B, K), labels (B,)

# The fields of a JSONL row, task by task: Figure 1 of the paper.
FIELDS = {
    "classification": ("text",),
    "entailment": ("premise", "hypothesis"),
    "similarity": ("a", "b"),
    "multiple_choice": ("context", "choices"),
}


@dataclass(frozen=True)
class Example:
    """Texts of one example, in the order of ``task_sequences``, and the number of the right answer."""

    parts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class TaskData:
    """A task's examples, and the names of its classes (empty for multiple choice)."""

    task: str
    train: list[Example]
    held_out: list[Example]
    classes: tuple[str, ...]

    def majority_accuracy(self) -> float:
        """Held-out accuracy of always giving the answer most frequent in training."""
        answer = Counter(example.label for example in self.train).most_common(1)[0][0]
        return sum(example.label == answer for example in self.held_out) / len(self.held_out)


def package_task() -> TaskData:
    """Which package of the standard library is this snippet from? Real text, offline, eight classes.

    The split is always the same, so that ``builtin:stdlib-train`` can leave the held-out blocks out.
    """
    train, held_out, names = package_snippets()
    return TaskData(
        "classification",
        [Example((x.text,), x.label) for x in train],
        [Example((x.text,), x.label) for x in held_out],
        names,
    )


def read_task(path: Path | str, task: str, held_out: float = 0.1, seed: int = 0) -> TaskData:
    """Examples from a JSONL file, one object a line, a share of them held out.

    Fields: ``text``; ``premise``, ``hypothesis``; ``a``, ``b``; or ``context``, ``choices`` (a list); and
    ``label`` (a class name or number; for multiple choice the number of the right one, from 0).

    Raises:
        InputError: an unreadable row, told with file and line; or too few examples.
    """
    if task not in TASKS:
        raise InputError(f"task={task!r} is not known; use {', '.join(TASKS)}")
    rows = list(_read_rows(Path(path), task))
    if len(rows) < 2:
        raise InputError(f"{path} holds {len(rows)} examples: at least 2 are needed")
    if task == "multiple_choice":
        classes: tuple[str, ...] = ()
        numbers = {label: int(label) for _, label, _ in rows}
        if len({len(parts) for parts, _, _ in rows}) > 1:
            raise InputError(f"{path}: every row must have the same number of choices")
    else:
        classes = tuple(sorted({label for _, label, _ in rows}))
        if len(classes) < 2:
            raise InputError(f"{path}: all rows have the label {classes[0]!r}; at least 2 are needed")
        numbers = {name: number for number, name in enumerate(classes)}
    examples = [Example(parts, numbers[label]) for parts, label, _ in rows]
    np.random.default_rng(seed).shuffle(examples)
    cut = max(1, round(held_out * len(examples)))
    return TaskData(task, examples[cut:], examples[:cut], classes)


def read_examples(path: Path | str, task: str, classes: Sequence[str]) -> list[Example]:
    """All examples of a JSONL file, numbered by the classes that a model was trained with.

    Raises:
        InputError: an unreadable row, or a label that is none of the classes.
    """
    examples = []
    for parts, label, number in _read_rows(Path(path), task):
        if task != "multiple_choice" and label not in classes:
            raise InputError(f"{path}, line {number}: label {label!r} is none of {', '.join(classes)}")
        examples.append(Example(parts, int(label) if task == "multiple_choice" else classes.index(label)))
    if not examples:
        raise InputError(f"{path} holds no examples")
    return examples


def _read_rows(path: Path, task: str) -> Iterator[tuple[tuple[str, ...], str, int]]:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="ignore").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            values = [row[field] for field in FIELDS[task]]
            if task == "multiple_choice" and not isinstance(values[1], list):
                raise TypeError("choices is not a list")
            parts = (values[0], *values[1]) if task == "multiple_choice" else tuple(values)
            label = str(row["label"])
            if not all(isinstance(part, str) for part in parts):
                raise TypeError("a text is not a string")
            if task == "multiple_choice" and not 0 <= int(label) < len(parts) - 1:
                raise ValueError(f"label {label} is not the number of a choice")
        except KeyError as error:
            raise InputError(f"{path}, line {number}: field {error} is missing") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        yield parts, label, number


class TaskBatches:
    """Batches of encoded examples: shuffled anew each epoch, and a pure function of the step.

    Args:
        examples: what to draw from.
        task: one of ``TASKS``.
        tokenizer: the model's.
        tokens: the model's start, delimiter and extract ids.
        block_size: the model's.
        batch_size: examples a batch.
        seed: of the order.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        task: str,
        tokenizer: Tokenizer,
        tokens: TaskTokens,
        block_size: int,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        if not examples:
            raise InputError("no examples to make batches of")
        self.encoded = [
            task_sequences(task, [tokenizer.encode(part) for part in example.parts], tokens, block_size)
            for example in examples
        ]
        self.labels = [example.label for example in examples]
        self.batch_size = min(batch_size, len(examples))
        self.pad = tokens.extract  # any id: the loss ignores it and no earlier position sees it
        self.seed = seed

    def __call__(self, step: int) -> TaskBatch:
        """The batch of one step."""
        per_epoch = len(self.labels) // self.batch_size
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.labels))
        return self._collate(order[place * self.batch_size :][: self.batch_size].tolist())

    def in_order(self) -> Iterator[TaskBatch]:
        """Every example once."""
        for start in range(0, len(self.labels), self.batch_size):
            yield self._collate(list(range(start, min(start + self.batch_size, len(self.labels)))))

    def _collate(self, chosen: list[int]) -> TaskBatch:
        rows = [self.encoded[i] for i in chosen]
        T = max(len(sequence) for row in rows for sequence in row)
        idx = torch.tensor([[s + [self.pad] * (T - len(s)) for s in row] for row in rows])  # (B, K, T)
        extract_at = torch.tensor([[len(s) - 1 for s in row] for row in rows])  # (B, K)
        return idx, extract_at, torch.tensor([self.labels[i] for i in chosen])


def task_loss(model: TaskModel, batch: TaskBatch, lm_coef: float = 0.5) -> Tensor:
    """``L3 = L2 + λ·L1``: the task's cross-entropy and the language model's (section 3.2, equations 4 and 5).

    The language-model loss is the mean over a sequence's tokens, then over the sequences.
    """
    idx, extract_at, labels = batch
    scores, hidden = model(idx, extract_at)
    loss = F.cross_entropy(scores, labels)
    if lm_coef == 0:
        return loss
    rows, ends = idx.flatten(0, 1), extract_at.flatten()  # (B·K, T), (B·K,)
    targets = rows[:, 1:].masked_fill(
        torch.arange(1, rows.size(1), device=idx.device) > ends[:, None], IGNORE_INDEX
    )
    weights = 1 / (len(rows) * ends[:, None].expand_as(targets))  # a sequence has `ends` targets that count
    lm_loss = linear_cross_entropy(hidden[:, :-1], model.gpt.lm_head.weight, targets, weights)
    return loss + lm_coef * lm_loss


@torch.no_grad()
def task_metrics(model: TaskModel, batches: TaskBatches) -> dict[str, float]:
    """Held-out cross-entropy (``val_loss``) and accuracy (``val_accuracy``)."""
    device = next(model.parameters()).device
    total, right, count = 0.0, 0, 0
    for idx, extract_at, labels in batches.in_order():
        labels = labels.to(device)
        scores, _ = model(idx.to(device), extract_at.to(device))
        total += float(F.cross_entropy(scores, labels, reduction="sum"))
        right += int((scores.argmax(dim=-1) == labels).sum())
        count += len(labels)
    return {"val_loss": total / count, "val_accuracy": right / count}
