"""How well a language model predicts a text: perplexity and bits per byte, with a documented stride."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .loss import IGNORE_INDEX, bits_per_byte, next_token_loss, perplexity
from .model import GPT
from .token_file import Shards

TokenIds = np.ndarray | Shards | Tensor | list[int]


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts a text."""

    loss: float
    """nats a token"""
    perplexity: float
    bits_per_byte: float
    n_tokens: int
    """tokens predicted: all but the first"""
    n_bytes: int


@torch.no_grad()
def score_tokens(
    model: GPT, tokens: TokenIds, n_bytes: int, *, stride: int | None = None, batch_size: int = 16
) -> TextScore:
    """Score a tokenized text with windows of ``block_size`` that advance by ``stride``.

    Every token but the first is predicted exactly once. In each window only the last ``stride`` predictions
    count (in the first window all), so each has at least ``block_size − stride`` tokens of context:
    a smaller stride gives a lower, truer loss and takes ``block_size / stride`` times as long.

    Args:
        model: in evaluation mode.
        tokens: (n,) ids, as an array, shards, a tensor or a list.
        n_bytes: bytes of the text, for bits per byte.
        stride: from 1 to ``block_size``; ``None`` means ``block_size``.
        batch_size: windows at once.

    Raises:
        InputError: fewer than two tokens, or a stride out of range.
    """
    block_size = model.config.block_size
    check_stride(stride, block_size)
    stride = block_size if stride is None else stride
    if len(tokens) < 2:
        raise InputError(f"the text has {len(tokens)} tokens: at least 2 are needed to predict one")
    device = model.wte.weight.device
    total, predicted, rows = 0.0, 0, []
    end = 0  # targets before this one are done
    begin = 0
    n_targets = len(tokens) - 1
    while end < n_targets:
        stop = min(begin + block_size, n_targets)
        row = torch.from_numpy(np.asarray(tokens[begin : stop + 1]).astype(np.int64))
        targets = row[1:].clone()
        targets[: end - begin] = IGNORE_INDEX
        rows.append((row[:-1], targets))
        end = stop
        begin += stride
        if len(rows) == batch_size or end == n_targets:
            nats, count = _score_rows(model, rows, device)
            total, predicted, rows = total + nats, predicted + count, []
    loss = total / predicted
    return TextScore(loss, perplexity(loss), bits_per_byte(total, n_bytes), predicted, n_bytes)


def check_stride(stride: int | None, block_size: int) -> None:
    """Refuse a stride that would skip tokens, or stand still.

    Raises:
        InputError: it is not from 1 to ``block_size``.
    """
    if stride is not None and not 1 <= stride <= block_size:
        raise InputError(f"stride={stride} must be from 1 to block_size={block_size}")


def _score_rows(model: GPT, rows: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[float, int]:
    # Only the text's last window can be shorter: it stands alone or is padded at its end, which nothing sees.
    T = max(len(idx) for idx, _ in rows)
    idx = torch.zeros(len(rows), T, dtype=torch.int64)
    targets = torch.full((len(rows), T), IGNORE_INDEX)
    for number, (row, target) in enumerate(rows):
        idx[number, : len(row)] = row
        targets[number, : len(row)] = target
    count = int((targets != IGNORE_INDEX).sum())
    mean = next_token_loss(model, idx.to(device), targets.to(device))
    return float(mean) * count, count
