"""Which parameters decay, and how the learning rate moves."""

import math
from typing import Any

import torch
from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and embeddings decay; biases and norm gains (one-dimensional) do not.

    Frozen parameters are left out; a tied weight stands once.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over ``parameter_groups``, in PyTorch's fused form.

    Raises:
        ValueError: nothing to train.
    """
    groups = [group for group in parameter_groups(model, weight_decay) if group["params"]]
    if not groups:
        raise ValueError("every parameter is frozen: nothing to train")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def lr_factor(step: int, total: int, schedule: str = "cosine", warmup: int = 0, floor: float = 0.0) -> float:
    """Share of the peak learning rate at ``step`` (0-based).

    A linear rise over ``warmup`` steps, then

    - ``constant``: 1;
    - ``linear``: a line down to ``floor`` at ``total``;
    - ``cosine``: half a cosine down to ``floor`` (Loshchilov & Hutter 2017, equation 5);
    - ``wsd``: warm-up, stable, decay: 1, then over the last fifth a line down to ``floor``
      (Hu et al. 2024, section 4).

    Raises:
        ValueError: an unknown schedule.

    Example:
        >>> [round(lr_factor(s, 8, "cosine", warmup=2), 2) for s in range(9)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07, 0.0]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule={schedule!r} is not known; use {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    start = max(warmup, round(0.8 * total)) if schedule == "wsd" else warmup
    progress = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    shape = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return floor + (1 - floor) * shape


SCHEDULES = ("cosine", "wsd", "linear", "constant")
