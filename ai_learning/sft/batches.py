"""Batches of examples of unlike lengths: padded, packed, or as one stream without any padding.

    pad      one example a row, filled up to the longest        (what most trainers do)
    pack     several examples a row, and a mask between them    (fixed shapes: GPUs, torch.compile)
    stream   all examples one after another, folded into rows   (nothing computed for nothing)

All three hold the same examples at the same step and give the same loss.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..loss import CHUNK_BYTES, IGNORE_INDEX, linear_cross_entropy
from ..shapes import Mask, Scalar, Tokens
from .documents import DocumentMask, document_mask
from .encode import SFTData

LAYOUTS = ("stream", "pack", "pad")

SFTBatch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""(B, T) each: ids, targets (``-100`` where there is none), positions, documents, what each target counts"""


class SFTBatches:
    """Batches as a pure function of their number: shuffled anew each epoch, the same after a resume.

    The loss of an optimizer step is the mean over all its targets, also where a step adds up several batches
    of which some have fewer targets.

    Args:
        data: encoded examples.
        batch_size: examples a batch.
        block_size: the model's longest input.
        layout: ``stream``, ``pack`` or ``pad``.
        seed: of the order.
        grad_accum: batches that one optimizer step adds up.

    Raises:
        InputError: an unknown layout, or an example longer than ``block_size``.
    """

    def __init__(
        self,
        data: SFTData,
        batch_size: int,
        block_size: int,
        *,
        layout: str = "stream",
        seed: int = 0,
        grad_accum: int = 1,
    ) -> None:
        if layout not in LAYOUTS:
            raise InputError(f"layout={layout!r} is not known; use {', '.join(LAYOUTS)}")
        if data.lengths.max() > block_size:
            raise InputError(f"an example of {data.lengths.max()} tokens exceeds block_size={block_size}")
        self.data, self.block_size, self.layout = data, block_size, layout
        self.batch_size = min(batch_size, len(data))
        self.seed, self.grad_accum = seed, grad_accum

    def __call__(self, number: int) -> SFTBatch:
        """The batch of one number."""
        group = number // self.grad_accum * self.grad_accum
        total = sum(self._targets(self._chosen(group + i)) for i in range(self.grad_accum))
        return self._collate(self._chosen(number), self.grad_accum / total)

    def in_order(self) -> Iterator[SFTBatch]:
        """Every example once; each target counts 1."""
        for start in range(0, len(self.data), self.batch_size):
            yield self._collate(list(range(start, min(start + self.batch_size, len(self.data)))), 1.0)

    def _chosen(self, number: int) -> list[int]:
        epoch, place = divmod(number, len(self.data) // self.batch_size)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.data))
        return order[place * self.batch_size :][: self.batch_size].tolist()

    def _targets(self, chosen: Sequence[int]) -> int:
        return sum(int(self.data[number][1].sum()) for number in chosen)

    def _collate(self, chosen: Sequence[int], share: float) -> SFTBatch:
        lengths = [int(self.data.lengths[number]) for number in chosen]
        if self.layout == "stream":
            places, shape = _stream(lengths, self.block_size)
        elif self.layout == "pack":
            places, shape = _pack(lengths, self.block_size)
        else:
            places, shape = [i * max(lengths) for i in range(len(chosen))], (len(chosen), max(lengths))
        size = shape[0] * shape[1]
        idx, positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
        targets, documents = np.full(size, IGNORE_INDEX), np.full(size, -1)
        for document, (number, place, length) in enumerate(zip(chosen, places, lengths, strict=True)):
            here = slice(place, place + length)
            idx[here], targets[here] = inputs_and_targets(*self.data[number])
            positions[here] = np.arange(length)
            documents[here] = document
        shares = np.where(targets == IGNORE_INDEX, 0.0, share).astype(np.float32)
        arrays = (idx, targets, positions, documents, shares)
        a, b, c, d, e = (torch.from_numpy(array).view(shape) for array in arrays)
        return a, b, c, d, e


def inputs_and_targets(ids: np.ndarray, is_target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(L − 1,) inputs and targets of one example: what comes next, where it is an answer's; else ``-100``."""
    return ids[:-1], np.where(is_target[1:], ids[1:], IGNORE_INDEX)


def _stream(lengths: Sequence[int], block_size: int) -> tuple[list[int], tuple[int, int]]:
    """Where each example begins, and (B, T): as few rows as hold all, as short as may be."""
    total = sum(lengths)
    rows = math.ceil(total / block_size)
    return [0, *np.cumsum(lengths[:-1]).tolist()], (rows, math.ceil(total / rows))


def _pack(lengths: Sequence[int], block_size: int) -> tuple[list[int], tuple[int, int]]:
    """First fit, the longest first: each example goes into the first row that has room for it."""
    filled: list[int] = []
    spots = [(0, 0)] * len(lengths)  # row and place in it
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, used in enumerate(filled) if used + lengths[number] <= block_size), len(filled))
        if row == len(filled):
            filled.append(0)
        spots[number] = (row, filled[row])
        filled[row] += lengths[number]
    width = max(filled)
    return [row * width + place for row, place in spots], (len(filled), width)


def sft_loss(model: nn.Module, batch: SFTBatch, layout: str = "stream") -> Scalar:
    """Cross-entropy of the answers' tokens, in nats; the output head is asked for those positions only.

    Args:
        model: has ``hidden(idx, positions=, mask=)`` and ``lm_head``.
        batch: of ``SFTBatches``.
        layout: the batches'.
    """
    _, targets, _, _, shares = batch
    hidden, at = answer_states(model, batch, layout)
    head: nn.Linear = model.lm_head  # type: ignore[assignment]
    return linear_cross_entropy(hidden, head.weight, targets.flatten()[at], shares.flatten()[at])


def answer_states(model: nn.Module, batch: SFTBatch, layout: str) -> tuple[Tensor, Tensor]:
    """(N, C) final hidden states where an answer's token is predicted, and (N,) their places in the batch."""
    idx, targets, positions, documents, _ = batch
    hidden: Any = model.hidden
    states: Tensor = hidden(idx, positions=positions, mask=_mask(documents, layout))  # (B, T, C)
    at = (targets.flatten() != IGNORE_INDEX).nonzero().squeeze(1)  # (N,)
    return states.flatten(0, 1)[at], at


def _mask(documents: Tokens, layout: str) -> "Mask | DocumentMask | None":
    if layout == "pad":
        return None  # padding stands at the right, where no token that counts can see it
    return DocumentMask.of(documents) if layout == "stream" else document_mask(documents)


@torch.no_grad()
def sft_metrics(model: nn.Module, batches: SFTBatches) -> dict[str, float]:
    """Held-out loss of the answers' tokens, share of tokens and of whole answers that are the likeliest.

    An answer all of whose tokens are the likeliest is the one that greedy decoding writes.
    """
    device = next(model.parameters()).device
    head: nn.Linear = model.lm_head  # type: ignore[assignment]
    nats, right, count, whole, examples = 0.0, 0, 0, 0, 0
    for on_cpu in batches.in_order():
        batch: Any = tuple(part.to(device) for part in on_cpu)
        hidden, at = answer_states(model, batch, batches.layout)
        targets, documents = batch[1].flatten()[at], batch[3].flatten()[at]
        nats += float(linear_cross_entropy(hidden, head.weight, targets)) * len(at)
        hits = likeliest(hidden, head.weight) == targets  # (N,)
        missed = torch.unique(documents[~hits])
        right, count = right + int(hits.sum()), count + len(at)
        answers = len(torch.unique(documents))
        whole, examples = whole + answers - len(missed), examples + answers
    return {"val_loss": nats / count, "val_token_accuracy": right / count, "val_exact": whole / examples}


def likeliest(hidden: Tensor, weight: Tensor) -> Tensor:
    """(N,) the id that each of (N, C) states makes likeliest; logits a chunk at a time."""
    chunk = max(1, CHUNK_BYTES // (4 * weight.size(0)))
    return torch.cat([(part @ weight.T.to(part.dtype)).argmax(dim=1) for part in hidden.split(chunk)])
