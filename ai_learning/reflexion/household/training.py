"""Train the one model that acts and reflects, on demonstrations that are made as they are needed."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...loss import IGNORE_INDEX, next_token_loss
from ...model import GPTConfig
from ...optim import lr_factor, muon_with_adamw
from ...train import DivergedError
from .demonstrations import Demonstration, demonstrate
from .model import LookBackGPT
from .text import WORDS
from .world import Pair


@dataclass(frozen=True)
class Schooling:
    """Sizes and rates."""

    steps: int = 2500
    """batches"""
    batch_size: int = 16
    """demonstrations in each"""
    n_layer: int = 3
    """blocks"""
    n_embd: int = 64
    """width"""
    n_head: int = 4
    """attention heads a block"""
    lr: float = 2.4e-2
    """AdamW's rate, for what is not a block's matrix"""
    embedding_lr: float = 8e-2
    """of the token embedding"""
    muon_lr: float = 1.5e-2
    """of the blocks' matrices"""
    warmup: int = 20
    """steps in which the rates rise; then they fall in a line"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def model(self, seed: int = 0) -> LookBackGPT:
        """With its first weights: what ends a branch, and the head, begins at zero."""
        torch.manual_seed(seed)
        model = LookBackGPT(
            GPTConfig(
                vocab_size=len(WORDS), block_size=256, n_layer=self.n_layer, n_head=self.n_head,
                n_embd=self.n_embd, bias=False, tie_weights=False, norm="rmsnorm", qk_norm=True,
                positions="rotary", rope_theta=1000.0, activation="relu2",
            )
        )  # fmt: skip
        for name, parameter in model.named_parameters():
            if name.endswith("c_proj.weight") or name == "lm_head.weight":
                torch.nn.init.zeros_(parameter)
        return model


def collate(demonstrations: Sequence[Demonstration]) -> tuple[Tensor, Tensor]:
    """(B, T) ids and (B, T) targets, −100 where there is nothing to learn; shorter rows are filled up."""
    T = max(len(one.ids) for one in demonstrations) - 1
    x = torch.zeros(len(demonstrations), T, dtype=torch.long)
    y = torch.full((len(demonstrations), T), IGNORE_INDEX)
    for row, one in enumerate(demonstrations):
        ids, learn = torch.tensor(one.ids), torch.tensor(one.learn)
        x[row, : len(ids) - 1] = ids[:-1]
        y[row, : len(ids) - 1] = ids[1:].masked_fill(~learn[1:], IGNORE_INDEX)
    return x, y


def batches(pairs: Sequence[Pair], batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end; rows of about the same length stand together, so that little is filled up."""
    rng = random.Random(f"demonstrations {seed}")
    while True:
        pool: list[Demonstration] = []
        while len(pool) < 16 * batch_size:
            pool += demonstrate(pairs, rng)
        pool = sorted(pool[: 16 * batch_size], key=lambda one: len(one.ids))
        parts = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        rng.shuffle(parts)
        yield from map(collate, parts)


def school(
    pairs: Sequence[Pair],
    config: Schooling,
    seed: int = 0,
    listener: Callable[[dict], None] = lambda row: None,
) -> LookBackGPT:
    """A model trained on the teacher's demonstrations with ``pairs``; ``listener`` hears of every step."""
    model = config.model(seed)
    optimizers = muon_with_adamw(
        model,
        lr=config.lr,
        muon_lr=config.muon_lr,
        lr_by_name={"wte.weight": config.embedding_lr},
        betas=(0.9, 0.98),
    )
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    source = batches(pairs, config.batch_size, seed)
    for step in range(config.steps):
        factor = lr_factor(step, config.steps, "linear", config.warmup)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * factor
        loss = next_token_loss(model, *next(source))
        if not math.isfinite(loss.item()):
            raise DivergedError(f"the loss became {loss.item()} in step {step + 1}: lower the learning rates")
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        listener({"step": step + 1, "loss": loss.item()})
    return model.eval()
