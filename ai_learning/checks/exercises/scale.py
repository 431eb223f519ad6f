"""Day 17: many processes, one training."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...batches import TokenBatches
from ...device import flops_per_token
from ...train import Trainer
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- day17.rank_rows ----------------------------------------------------------------------------------------


def _rows(batch: Tensor, rank: int, world_size: int) -> Tensor:
    return batch[rank::world_size]


def _rows_cases() -> list[tuple[Any, ...]]:
    whole = torch.arange(8 * 3).view(8, 3)
    return [(whole, 0, 2), (whole, 1, 2), (whole, 3, 4), (whole, 0, 1), (torch.arange(12).view(6, 2), 1, 3)]


def _rows_cover(fn: Any) -> None:
    batch, world_size = torch.arange(12).view(12, 1), 4
    shares = [fn(batch, rank, world_size) for rank in range(world_size)]
    seen = sorted(int(row) for share in shares for row in share[:, 0])
    if len(seen) > 12 or len(set(seen)) < len(seen):
        raise Wrong("rows read twice: the shares must not overlap", f"4 ranks read {seen}")
    if len(seen) < 12:
        raise Wrong("rows left out: together the ranks read the whole batch", f"4 ranks read {seen}")


RANK_ROWS = Exercise(
    name="day17.rank_rows",
    title="which rows of the batch are mine?",
    stub='''
def rank_rows(batch, rank, world_size):
    """(B, T) → (B / world_size, T): rank r of W reads rows r, r + W, r + 2·W, …

    B is a multiple of W. Together the ranks read every row, and none twice.
    """
    raise NotImplementedError
''',
    solution=TokenBatches.__call__,
    reference=_rows,
    steps=(
        same_form(_rows, _rows_cases, "(B / world_size, T)"),
        leaves_inputs(_rows_cases),
        Step("covers every row once", _rows_cover),
        equals(_rows, _rows_cases),
    ),
    hints=(
        "Rank 1 of 4 reads rows 1, 5, 9, …: a slice can do that.",
        "A slice has a start, an end and a step; which of them is the rank, which the number of ranks?",
        "batch[rank::world_size]",
    ),
    cases=_rows_cases,
    mutants=(
        Mutant("everything", "each rank would do all of the work", lambda b, r, w: b),
        Mutant(
            "blocks of rows",
            "no overlap either, but the exercise asks for every W-th row",
            lambda b, r, w: b.chunk(w)[r],
        ),
        Mutant("the same share", "the rank must come in: all would read the same", lambda b, r, w: b[::w]),
        Mutant("shifted", "ranks count from 0", lambda b, r, w: b.roll(-1, 0)[r::w]),
        Mutant("columns", "rows are shared out, not positions", lambda b, r, w: b[:, r::w]),
        Mutant(
            "rank and size swapped", "start at the rank, step by the size", lambda b, r, w: b[w :: max(r, 1)]
        ),
        Mutant("to the end", "a step is missing", lambda b, r, w: b[r:]),
        Mutant("one row", "a share has B / W rows", lambda b, r, w: b[r : r + 1]),
        Mutant("backwards", "in the batch's order", lambda b, r, w: b[r::w].flip(0)),
        Mutant("last rank first", "rank 0 reads row 0", lambda b, r, w: b[w - 1 - r :: w]),
    ),
    alternatives=(
        lambda b, r, w: b[torch.arange(r, len(b), w)],
        lambda b, r, w: torch.stack([row for i, row in enumerate(b) if i % w == r]),
        lambda b, r, w: b.view(-1, w, b.size(1))[:, r],
    ),
)

# --- day17.accumulate ---------------------------------------------------------------------------------------


def _accumulate(gradients: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    weighted = [gradient * count for gradient, count in zip(gradients, counts, strict=True)]
    return torch.stack(weighted).sum(0) / sum(counts)


def _accumulate_cases() -> list[tuple[Any, ...]]:
    return [
        ([_randn(1, 3, 2), _randn(2, 3, 2)], [10, 30]),
        ([_randn(3, 4), _randn(4, 4), _randn(5, 4)], [7, 1, 4]),
        ([_randn(6, 5)], [9]),
        ([_randn(7, 2), _randn(8, 2), _randn(9, 2), _randn(10, 2)], [2, 5, 3, 6]),
    ]


def _accumulate_is_the_big_batch(fn: Any) -> None:
    x, y, w = _randn(1, 12, 3), _randn(2, 12), _randn(3, 3).requires_grad_()

    def gradient(rows: slice) -> Tensor:
        return torch.autograd.grad((x[rows] @ w - y[rows]).square().mean(), w)[0]

    parts = [slice(0, 2), slice(2, 7), slice(7, 12)]
    got = fn([gradient(part) for part in parts], [2, 5, 5])
    if not torch.allclose(got, gradient(slice(0, 12))):
        raise Wrong(
            "not the gradient of the whole batch: a mean over few tokens counts for few",
            f"pieces of 2, 5 and 5 rows give {got.tolist()}, the 12 rows {gradient(slice(0, 12)).tolist()}",
        )


def _weights(rule: Any) -> Any:
    return lambda gs, ns: sum(g * k for g, k in zip(gs, rule(ns), strict=True))


ACCUMULATE = Exercise(
    name="day17.accumulate",
    title="many small batches, one big gradient",
    stub='''
def accumulate(gradients, counts):
    """The gradient of the mean loss over all tokens, from pieces.

    gradients: one tensor a piece, each the gradient of the *mean* loss over that piece's tokens.
    counts: how many tokens each piece has; they may differ.
    """
    raise NotImplementedError
''',
    solution=Trainer.train_step,
    reference=_accumulate,
    steps=(
        same_form(_accumulate, _accumulate_cases, "a tensor of the gradients' shape"),
        leaves_inputs(_accumulate_cases),
        Step("gives the gradient of the big batch", _accumulate_is_the_big_batch),
        equals(_accumulate, _accumulate_cases),
    ),
    hints=(
        "With pieces of the same size the plain mean is right. What does a piece of one token weigh?",
        "A mean times its count is a sum; sums add up; divide once at the end.",
        "sum(g * n for g, n in zip(gradients, counts)) / sum(counts)",
    ),
    cases=_accumulate_cases,
    mutants=(
        Mutant("plain mean", "a small piece would count as much as a large one", _weights(lambda ns: [1 / len(ns)] * len(ns))),
        Mutant("plain sum", "k pieces would take a step k times as long", _weights(lambda ns: [1] * len(ns))),
        Mutant("never divided", "divide by all tokens once, at the end", _weights(lambda ns: ns)),
        Mutant("divided by the pieces", "the counts weigh already: divide by their sum", _weights(lambda ns: [n / len(ns) for n in ns])),
        Mutant("weights upside down", "a large piece counts more", _weights(lambda ns: [(1 / n) / sum(1 / m for m in ns) for n in ns])),
        Mutant("last piece only", "the earlier gradients are lost: zero them once a step, not once a piece", lambda gs, ns: gs[-1].clone()),
        Mutant("first piece only", "add every piece", lambda gs, ns: gs[0].clone()),
        Mutant("weights squared", "each piece weighs n / sum(n)", _weights(lambda ns: [n * n / sum(m * m for m in ns) for n in ns])),
        Mutant("largest piece divides", "divide by all tokens", _weights(lambda ns: [n / max(ns) for n in ns])),
        Mutant("divided twice", "once, by all tokens", _weights(lambda ns: [n / sum(ns) / len(ns) for n in ns])),
    ),
    alternatives=(
        lambda gs, ns: sum(g * (n / sum(ns)) for g, n in zip(gs, ns, strict=True)),
        lambda gs, ns: torch.tensordot(torch.tensor(ns, dtype=gs[0].dtype) / sum(ns), torch.stack(list(gs)), 1),
    ),
)  # fmt: skip

# --- day17.mfu ----------------------------------------------------------------------------------------------


def _mfu(tokens_per_s: float, n: int, n_layer: int, n_embd: int, T: int, peak: float) -> float:
    return tokens_per_s * (6 * n + 12 * n_layer * n_embd * T) / peak


def _mfu_cases() -> list[tuple[Any, ...]]:
    return [
        (380_000.0, 123_653_376, 12, 768, 1024, 989e12),
        (21_000.0, 806_400, 4, 128, 64, 2.5e11),
        (1.0, 10, 1, 2, 3, 132.0),
    ]


def _mfu_by_hand(fn: Any) -> None:
    got = fn(1.0, 10, 1, 2, 3, 132.0)  # 6·10 + 12·1·2·3 = 132
    if abs(got - 1.0) > 1e-9:
        raise Wrong(
            "wrong share: FLOPs a token are 6·N + 12·n_layer·n_embd·T; times tokens a second, over the peak",
            f"132 FLOPs a token, 1 token a second, a peak of 132 give {got}",
        )


def _share(flops: Any) -> Any:
    return lambda rate, n, L, C, T, peak: rate * flops(n, L, C, T) / peak


MFU = Exercise(
    name="day17.mfu",
    title="what share of the processor is put to use",
    stub='''
def mfu(tokens_per_s, n_params, n_layer, n_embd, block_size, peak_flops):
    """Model FLOPs utilisation, a share from 0 to 1 (Chowdhery et al. 2022, appendix B).

    A token costs 6 FLOPs a parameter, forward and backward, and 12 · n_layer · n_embd · block_size for the
    attention; peak_flops is what the processor could do in a second.
    """
    raise NotImplementedError
''',
    solution=flops_per_token,
    reference=_mfu,
    steps=(
        same_form(_mfu, _mfu_cases, "a float"),
        Step("is 1 where all of the peak is used", _mfu_by_hand),
        equals(_mfu, _mfu_cases, tolerance=1e-9),
    ),
    hints=(
        "FLOPs a token, tokens a second, FLOPs a second at best: which quotient has no unit left?",
        "tokens_per_s · FLOPs a token is what is done in a second.",
        "tokens_per_s * (6 * n_params + 12 * n_layer * n_embd * block_size) / peak_flops",
    ),
    cases=_mfu_cases,
    mutants=(
        Mutant("forward only", "6 FLOPs a parameter: 2 forward, 4 backward", _share(lambda n, L, C, T: 2 * n + 4 * L * C * T)),
        Mutant("no attention", "the products between positions cost 12·n_layer·n_embd·T", _share(lambda n, L, C, T: 6 * n)),
        Mutant("attention without its length", "each token looks at T others", _share(lambda n, L, C, T: 6 * n + 12 * L * C)),
        Mutant("attention of one layer", "every layer attends", _share(lambda n, L, C, T: 6 * n + 12 * C * T)),
        Mutant("attention squared", "T for each token; T² would be for the sequence", _share(lambda n, L, C, T: 6 * n + 12 * L * C * T * T)),
        Mutant("upside down", "what is done over what could be done", lambda r, n, L, C, T, p: p / (r * (6 * n + 12 * L * C * T))),
        Mutant("per cent", "a share from 0 to 1", lambda r, n, L, C, T, p: 100 * _mfu(r, n, L, C, T, p)),
        Mutant("per sequence", "tokens_per_s counts tokens, not sequences", lambda r, n, L, C, T, p: T * _mfu(r, n, L, C, T, p)),
        Mutant("recomputing counted", "model FLOPs: what is computed twice counts once", _share(lambda n, L, C, T: 8 * n + 16 * L * C * T)),
    ),
    alternatives=(
        lambda r, n, L, C, T, p: (r / p) * 6 * (n + 2 * L * C * T),
        lambda r, n, L, C, T, p: sum([r * 6 * n / p, r * 12 * L * C * T / p]),
    ),
    tolerance=1e-9,
)  # fmt: skip

EXERCISES = (RANK_ROWS, ACCUMULATE, MFU)
