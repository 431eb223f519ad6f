"""Day 8: GPT-1's fine-tuning: what goes in, and what is minimised."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...finetune import task_loss
from ...model.heads import TaskModel, TaskTokens, task_sequences
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form, same_gradients

# --- day8.task_inputs ---------------------------------------------------------------------------------------

START, DELIMITER, EXTRACT = 100, 101, 102


def _sequences(task: str, parts: list[list[int]]) -> list[list[int]]:
    return task_sequences(task, parts, TaskTokens(START, DELIMITER, EXTRACT), block_size=64)


def _sequence_cases() -> list[tuple[Any, ...]]:
    return [
        ("classification", [[1, 2, 3]]),
        ("entailment", [[1, 2], [3]]),
        ("similarity", [[1, 2], [3, 4, 5]]),
        ("multiple_choice", [[1, 2], [3], [4, 5], [6]]),
        ("similarity", [[7], [8]]),
    ]


def _join(*parts: list[int], start: bool = True, delimiter: bool = True, extract: bool = True) -> list[int]:
    ids = [START] if start else []
    for i, part in enumerate(parts):
        ids += [DELIMITER] if i and delimiter else []
        ids += part
    return ids + ([EXTRACT] if extract else [])


def _transform(join: Any = _join, both: bool = True, pairs: bool = True) -> Any:
    def task_inputs(task: str, parts: list[list[int]]) -> list[list[int]]:
        if task == "similarity":
            first, second = parts
            return [join(first, second), join(second, first)] if both else [join(first, second)]
        if task == "multiple_choice" and pairs:
            return [join(parts[0], answer) for answer in parts[1:]]
        return [join(*parts)]

    return task_inputs


def _transform_in_place(task: str, parts: list[list[int]]) -> list[list[int]]:
    right = _sequences(task, parts)
    for part in parts:
        part.append(EXTRACT)
    return right


TASK_INPUTS = Exercise(
    name="day8.task_inputs",
    title="one model for four kinds of task",
    stub='''
START, DELIMITER, EXTRACT = 100, 101, 102


def task_inputs(task, parts):
    """GPT-1's input transformations (section 3.3): the sequences of ids that one example becomes.

    - "classification", [text]: one sequence START text EXTRACT
    - "entailment", [premise, hypothesis]: one sequence, the two with DELIMITER between
    - "similarity", [a, b]: two sequences, both orders
    - "multiple_choice", [context, answer, answer, …]: one sequence an answer
    """
    raise NotImplementedError
''',
    solution=task_sequences,
    reference=_sequences,
    steps=(
        same_form(_sequences, _sequence_cases, "a list of lists of ids"),
        leaves_inputs(_sequence_cases),
        equals(_sequences, _sequence_cases, 0, "builds every kind of task"),
    ),
    hints=(
        "Write a helper that joins parts: START, first part, DELIMITER, second part …, EXTRACT.",
        "Similarity has no order, so both orders go in; multiple choice pairs the context with each answer.",
        "Entailment and classification are one joined sequence; [join(parts[0], a) for a in parts[1:]] for choices.",
    ),
    cases=_sequence_cases,
    mutants=(
        Mutant("one order only", "similarity has no order: both sequences go in", _transform(both=False)),
        Mutant("answers in one sequence", "each answer gets a sequence of its own", _transform(pairs=False)),
        Mutant("no start", "every sequence begins with START", _transform(lambda *p: _join(*p, start=False))),
        Mutant(
            "no delimiter",
            "the model must see where the second part begins",
            _transform(lambda *p: _join(*p, delimiter=False)),
        ),
        Mutant(
            "no extract",
            "the head reads the state at EXTRACT",
            _transform(lambda *p: _join(*p, extract=False)),
        ),
        Mutant(
            "extract in front",
            "only the last position has seen everything",
            _transform(lambda *p: [EXTRACT, *_join(*p, extract=False)]),
        ),
        Mutant(
            "delimiter for start",
            "three different tokens",
            _transform(lambda *p: [DELIMITER if i == START else i for i in _join(*p)]),
        ),
        Mutant(
            "delimiter after every part",
            "only between parts",
            _transform(lambda *p: [*_join(*p, extract=False), DELIMITER, EXTRACT]),
        ),
        Mutant("parts swapped", "premise first, then hypothesis", _transform(lambda *p: _join(*p[::-1]))),
        Mutant("input mutated", "build new lists", _transform_in_place),
    ),
    alternatives=(
        _transform(),
        lambda task, parts: [
            [START, *a, *[i for b in rest for i in (DELIMITER, *b)], EXTRACT]
            for a, *rest in {
                "classification": lambda: [parts],
                "entailment": lambda: [parts],
                "similarity": lambda: [parts, parts[::-1]],
                "multiple_choice": lambda: [[parts[0], x] for x in parts[1:]],
            }[task]()
        ],
    ),
)

# --- day8.extract -------------------------------------------------------------------------------------------


def _extract(hidden: Tensor, idx: Tensor, token: int, weight: Tensor) -> Tensor:
    at = (idx == token).int().argmax(1)
    return hidden[torch.arange(idx.size(0)), at] @ weight.T


def _extract_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(2)
    cases = []
    for ends, T in (((2, 4, 3), 5), ((0,), 1), ((1, 1), 4)):
        idx = torch.randint(0, 9, (len(ends), T), generator=generator)
        for row, end in enumerate(ends):
            idx[row, end], idx[row, end + 1 :] = 9, 0  # padded after the extract token
        if ends[0]:
            idx[0, 0] = 12  # the extract token need not be the largest id of its row
        hidden = torch.randn(len(ends), T, 4, generator=generator, dtype=torch.float64)
        cases.append((hidden, idx, 9, torch.randn(3, 4, generator=generator, dtype=torch.float64)))
    return cases


def _extract_ignores(fn: Any) -> None:
    hidden, idx, token, weight = _extract_cases()[0]
    other = hidden.clone()
    other[0, 3:] = 9.0
    if not torch.allclose(fn(hidden, idx, token, weight)[0], fn(other, idx, token, weight)[0]):
        raise Wrong(
            "padding is read: the state at the extract token, not at the end of the row",
            "changing padded positions changed the scores",
        )


EXTRACT_STATE = Exercise(
    name="day8.extract",
    title="scores from the state at one token",
    stub='''
def extract_scores(hidden, idx, token, weight):
    """(B, T, C) states and (B, T) ids → (B, n_classes) scores.

    Each row holds the extract token once, at its own place (padding follows). weight is (n_classes, C).
    """
    raise NotImplementedError
''',
    solution=TaskModel,
    reference=_extract,
    steps=(
        same_form(_extract, _extract_cases, "(B, n_classes)"),
        leaves_inputs(_extract_cases),
        Step("reads no padding", _extract_ignores),
        equals(_extract, _extract_cases),
        same_gradients(_extract, _extract_cases),
    ),
    hints=(
        "(idx == token) is true once a row. How do you get its column?",
        "(idx == token).int().argmax(1) gives the columns; torch.arange(B) the rows.",
        "hidden[torch.arange(B), columns] @ weight.T",
    ),
    cases=_extract_cases,
    mutants=(
        Mutant(
            "the last position",
            "rows are padded: find the extract token in each",
            lambda h, i, t, w: h[:, -1] @ w.T,
        ),
        Mutant("the first position", "it has seen nothing yet", lambda h, i, t, w: h[:, 0] @ w.T),
        Mutant(
            "the largest id",
            "CLIP reads there, as its end token is the largest; here `token` says which: idx == token",
            lambda h, i, t, w: h[torch.arange(len(i)), i.argmax(-1)] @ w.T,
        ),
        Mutant(
            "one place for all rows",
            "each row has its own",
            lambda h, i, t, w: h[:, int((i == t).int().argmax(1)[0])] @ w.T,
        ),
        Mutant("mean of the row", "only the state at the extract token", lambda h, i, t, w: h.mean(1) @ w.T),
        Mutant(
            "one too early",
            "the state at the token itself",
            lambda h, i, t, w: h[torch.arange(len(i)), ((i == t).int().argmax(1) - 1).clamp(min=0)] @ w.T,
        ),
        Mutant(
            "one too late",
            "what follows is padding",
            lambda h, i, t, w: (
                h[torch.arange(len(i)), ((i == t).int().argmax(1) + 1).clamp(max=i.size(1) - 1)] @ w.T
            ),
        ),
        Mutant(
            "maximum over positions",
            "only the state at the extract token",
            lambda h, i, t, w: h.amax(1) @ w.T,
        ),
        Mutant(
            "probabilities",
            "scores: the loss does the softmax",
            lambda h, i, t, w: _extract(h, i, t, w).softmax(-1),
        ),
        Mutant(
            "wrong gradient",
            "the language model is trained too: do not detach",
            lambda h, i, t, w: _extract(h.detach(), i, t, w),
        ),
    ),
    alternatives=(
        lambda h, i, t, w: torch.einsum("btc,bt->bc", h, (i == t).to(h.dtype)) @ w.T,
        lambda h, i, t, w: (
            torch.stack([row[ids.tolist().index(t)] for row, ids in zip(h, i, strict=True)]) @ w.T
        ),
    ),
)

# --- day8.combined_loss -------------------------------------------------------------------------------------


def _combined(scores: Tensor, labels: Tensor, token_losses: Tensor, mask: Tensor, lm_coef: float) -> Tensor:
    per_row = (token_losses * mask).sum(1) / mask.sum(1)
    return F.cross_entropy(scores, labels) + lm_coef * per_row.mean()


def _combined_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(6)
    cases = []
    for B, T, K, lengths, coef in ((3, 5, 4, (5, 2, 3), 0.5), (1, 2, 2, (1,), 0.5), (2, 4, 3, (4, 1), 0.1)):
        mask = (torch.arange(T)[None] < torch.tensor(lengths)[:, None]).long()
        scores = torch.randn(B, K, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, K, (B,), generator=generator)
        cases.append(
            (scores, labels, torch.rand(B, T, generator=generator, dtype=torch.float64) * 5, mask, coef)
        )
    return cases


def _combined_padding(fn: Any) -> None:
    scores, labels, losses, mask, coef = _combined_cases()[0]
    other = losses + 100 * (1 - mask)
    if not torch.allclose(fn(scores, labels, losses, mask, coef), fn(scores, labels, other, mask, coef)):
        raise Wrong(
            "padding counts: only positions with mask 1 are in the loss",
            "changing losses at padding changed the result",
        )


def _combined_with(lm: Any, clf: Any = F.cross_entropy, weight: Any = lambda coef: coef) -> Any:
    return lambda scores, labels, losses, mask, coef: clf(scores, labels) + weight(coef) * lm(losses, mask)


COMBINED_LOSS = Exercise(
    name="day8.combined_loss",
    title="the task, and half the language model's loss",
    stub='''
def combined_loss(scores, labels, token_losses, mask, lm_coef):
    """GPT-1's fine-tuning loss, L3 = L2 + λ · L1 (equation 5).

    scores (B, K) and labels (B,): the task's mean cross-entropy. token_losses and mask (B, T): the language
    model's loss is averaged over each row's positions with mask 1, then over the rows. Returns a scalar.
    """
    raise NotImplementedError
''',
    solution=task_loss,
    reference=_combined,
    steps=(
        same_form(_combined, _combined_cases, "a scalar"),
        leaves_inputs(_combined_cases),
        Step("leaves padding out", _combined_padding),
        equals(_combined, _combined_cases),
        same_gradients(_combined, _combined_cases),
    ),
    hints=(
        "Two parts: F.cross_entropy(scores, labels), and the language model's.",
        "A mean in two steps: first within each row (sum of masked losses over the number of masked positions), then over rows.",
        "F.cross_entropy(scores, labels) + lm_coef * ((token_losses * mask).sum(1) / mask.sum(1)).mean()",
    ),
    cases=_combined_cases,
    mutants=(
        Mutant(
            "mean over all tokens",
            "long rows would count more: average each row first",
            _combined_with(lambda l, m: (l * m).sum() / m.sum()),
        ),
        Mutant("padding counts", "use the mask", _combined_with(lambda l, m: l.mean())),
        Mutant(
            "divided by T",
            "divide each row by the positions that count",
            _combined_with(lambda l, m: (l * m).mean(1).mean()),
        ),
        Mutant(
            "a sum over rows",
            "the mean over the batch",
            _combined_with(lambda l, m: ((l * m).sum(1) / m.sum(1)).sum()),
        ),
        Mutant("no language model", "add λ times its loss", _combined_with(lambda l, m: 0 * l.sum())),
        Mutant(
            "λ is not used",
            "multiply the language model's loss by lm_coef",
            _combined_with(lambda l, m: ((l * m).sum(1) / m.sum(1)).mean(), weight=lambda c: 1.0),
        ),
        Mutant(
            "λ on the task",
            "the task counts fully",
            lambda s, y, l, m, c: c * F.cross_entropy(s, y) + ((l * m).sum(1) / m.sum(1)).mean(),
        ),
        Mutant(
            "1 − λ",
            "GPT-1 adds the two; it does not mix them",
            lambda s, y, l, m, c: (1 - c) * F.cross_entropy(s, y) + c * ((l * m).sum(1) / m.sum(1)).mean(),
        ),
        Mutant(
            "sum over the batch",
            "the task's mean",
            _combined_with(
                lambda l, m: ((l * m).sum(1) / m.sum(1)).mean(),
                clf=lambda s, y: F.cross_entropy(s, y, reduction="sum"),
            ),
        ),
        Mutant(
            "subtracted",
            "both are minimised",
            _combined_with(lambda l, m: ((l * m).sum(1) / m.sum(1)).mean(), weight=lambda c: -c),
        ),
    ),
    alternatives=(
        lambda s, y, l, m, c: (
            -s.log_softmax(1)[torch.arange(len(y)), y].mean()
            + c * torch.stack([a[b > 0].mean() for a, b in zip(l, m, strict=True)]).mean()
        ),
        lambda s, y, l, m, c: (
            F.nll_loss(s.log_softmax(1), y)
            + c * torch.einsum("bt,bt->", l, m.to(l.dtype) / m.sum(1, keepdim=True)) / len(y)
        ),
    ),
)

EXERCISES = (TASK_INPUTS, EXTRACT_STATE, COMBINED_LOSS)
