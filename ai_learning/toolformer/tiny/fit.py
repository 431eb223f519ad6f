"""Rows of like length in batches, and a plain training loop."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ...loss import next_token_loss
from ...model import GPT
from ...optim import lr_factor, muon_with_adamw
from ...shapes import Tokens


def length_batches(rows: Sequence[Sequence[int]], tokens: int, seed: int) -> list[Tokens]:
    """(B, T) ids of equally long rows, about ``tokens`` in each batch; the seed decides their order."""
    generator = np.random.default_rng(seed)
    by_length: dict[int, list[Sequence[int]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    batches = []
    for length, group in by_length.items():
        each = max(1, tokens // length)
        batches += [torch.tensor(group[i : i + each]) for i in range(0, len(group), each)]
    return [batches[i] for i in generator.permutation(len(batches))]


def fit(
    model: GPT,
    batches: Sequence[Tokens],
    *,
    lr: float,
    embedding_lr: float,
    muon_lr: float,
    warmup: int = 20,
    listener: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """One pass over the batches."""
    optimizers = muon_with_adamw(model, lr=lr, muon_lr=muon_lr, lr_by_name={"wte.weight": embedding_lr})
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    model.train()
    for step, ids in enumerate(batches):
        factor = lr_factor(step, len(batches), "linear", warmup)
        for optimizer, own in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = peak * factor
        loss = next_token_loss(model, ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(f"loss {value} at step {step}")
        listener(step, value)
    model.eval()
