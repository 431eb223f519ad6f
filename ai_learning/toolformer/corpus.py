"""C*: the texts with the calls that helped, and batches of it to train on (Schick et al. 2023, section 2).

x* = x_1 … x_{i−1}, e(c_i, r_i), x_i … x_n
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..errors import InputError
from ..loss import IGNORE_INDEX
from ..shapes import Tokens
from .calls import MARKED, CallFormat
from .filter import Annotated, Candidate
from .models import LanguageModel


def best_calls(document: Annotated) -> list[Candidate]:
    """The kept calls in order of place; of several at one place the one with the greatest L⁻ − L⁺."""
    best: dict[int, Candidate] = {}
    for candidate in document.kept:
        if candidate.position not in best or candidate.gain > best[candidate.position].gain:
            best[candidate.position] = candidate
    return [best[place] for place in sorted(best)]


def interleave(document: Annotated, how: CallFormat = MARKED) -> str:
    """x*: the text with its kept calls and their results.

    Example:
        >>> from .calls import Call
        >>> helped = Candidate(2, 8, Call("Calculator", "3 + 4"), "7", kept=True)
        >>> interleave(Annotated("3 + 4 is 7.", (helped,)))
        '3 + 4 is<API>Calculator(3 + 4)→7</API> 7.'
    """
    parts, place = [], 0
    for candidate in best_calls(document):
        parts += [document.text[place : candidate.offset], how.write(candidate.call, candidate.result)]
        place = candidate.offset
    return "".join([*parts, document.text[place:]])


def interleave_ids(lm: LanguageModel, document: Annotated) -> list[int]:
    """Ids of x*: those of the plain text, with e(c, r) between them. No mark at either end."""
    ids = lm.encode(document.text)
    row: list[int] = []
    place = 0
    for candidate in best_calls(document):
        row += [*ids[place : candidate.position], *lm.encode_call(candidate.call, candidate.result)]
        place = candidate.position
    return row + ids[place:]


def training_rows(
    lm: LanguageModel, documents: Iterable[Annotated], plain: Iterable[str] = ()
) -> list[list[int]]:
    """Rows to train on: documents with their calls, then plain texts; each between ``bos`` and ``eos``.

    Args:
        lm: whose ids.
        documents: annotated; those without a kept call are taken as they are. Leave out what you do not want.
        plain: further texts, without calls.
    """
    end = [] if lm.eos_id is None else [lm.eos_id]
    rows = [interleave_ids(lm, document) for document in documents]
    rows += [lm.encode(text) for text in plain]
    return [[*lm.bos, *row, *end] for row in rows]


class RowBatches:
    """Rows of different lengths as padded (x, y); each row once an epoch, in an order that the seed decides.

    The batch is a pure function of the step, so a run resumes to the batch.

    Args:
        rows: lists of two ids or more; longer ones than ``block_size`` + 1 are cut there.
        block_size: of the model.
        batch_size: rows in a batch.
        seed: of the order.

    Raises:
        InputError: no rows.

    Example:
        >>> x, y = RowBatches([[1, 2, 3], [4, 5]], block_size=8, batch_size=2)(0)
        >>> sorted(y.tolist())
        [[2, 3], [5, -100]]
    """

    def __init__(
        self, rows: Sequence[Sequence[int]], block_size: int, batch_size: int, seed: int = 0
    ) -> None:
        self.rows = [np.asarray(row[: block_size + 1], dtype=np.int64) for row in rows if len(row) > 1]
        if not self.rows:
            raise InputError("there is nothing to train on: no row has two tokens")
        self.batch_size, self.seed = batch_size, seed
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets of a step: two (batch_size, T) int64 tensors; padding has the target -100."""
        first = step * self.batch_size
        return self.padded([self._at(place) for place in range(first, first + self.batch_size)])

    def padded(self, numbers: Iterable[int]) -> tuple[Tokens, Tokens]:
        """The rows of those numbers as one batch."""
        chosen = [self.rows[number] for number in numbers]
        T = max(map(len, chosen)) - 1
        x = np.zeros((len(chosen), T), dtype=np.int64)
        y = np.full((len(chosen), T), IGNORE_INDEX, dtype=np.int64)
        for number, row in enumerate(chosen):
            x[number, : len(row) - 1] = row[:-1]
            y[number, : len(row) - 1] = row[1:]
        return torch.from_numpy(x), torch.from_numpy(y)

    def _at(self, place: int) -> int:
        epoch, number = divmod(place, len(self.rows))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        return int(self._order[1][number])
