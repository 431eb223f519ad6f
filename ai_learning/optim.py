"""Optimizers and learning-rate schedules: AdamW, Muon, gradient clipping, warm-up and decay."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.qlora import OPTIMIZERS as ADAMW_FORMS
from .kernels.fast_adamw import WORTH_IT, FastAdamW, suits

OPTIMIZERS = ("adamw", "muon", *(name for name in ADAMW_FORMS if name != "adamw"))
SCHEDULES = ("cosine", "wsd", "linear", "constant")


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
    """AdamW (Loshchilov & Hutter 2019) over ``parameter_groups``, in the fastest form there is.

    Raises:
        ValueError: nothing to train.
    """
    groups = [group for group in parameter_groups(model, weight_decay) if group["params"]]
    if not groups:
        raise ValueError("every parameter is frozen: nothing to train")
    return _adamw(groups, lr, betas, eps)


def _adamw(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    parameters = [p for group in groups for p in group["params"]]
    fast = sum(p.numel() for p in parameters) >= WORTH_IT and suits(parameters)
    return (FastAdamW if fast else torch.optim.AdamW)(groups, lr=lr, betas=betas, eps=eps, fused=True)


def muon_with_adamw(
    model: nn.Module,
    *,
    lr: float,
    muon_lr: float | None = None,
    lr_by_name: Mapping[str, float] | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
    eps: float = 1e-8,
) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the blocks' matrices, AdamW for all else.

    Muon replaces a matrix's momentum by the nearest orthogonal matrix, so that every direction moves alike.
    That makes sense for maps between hidden states, not for tables of embeddings, gains or the head.

    Args:
        model: matrices below ``h.`` are Muon's.
        lr: AdamW's rate.
        muon_lr: Muon's rate; AdamW takes the matrices as well when ``None``.
        lr_by_name: rates of parameters that need their own.
        betas: AdamW's.
        weight_decay: of both, on what has two axes or more.
        eps: AdamW's.

    Returns:
        One or two optimizers; step them all (``Together``).

    Raises:
        ValueError: nothing to train.
    """
    rates = dict(lr_by_name or {})
    matrices: list[Tensor] = []
    groups: dict[tuple[float, float], list[Tensor]] = {}  # by learning rate and weight decay
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if muon_lr is not None and parameter.dim() == 2 and ".h." in f".{name}":
            matrices.append(parameter)
        else:
            decay = weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((rates.get(name, lr), decay), []).append(parameter)
    if not (groups or matrices):
        raise ValueError("every parameter is frozen: nothing to train")
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        adam = [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
        optimizers.append(_adamw(adam, lr, betas, eps))
    if matrices and muon_lr is not None:
        optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
    return optimizers


class Together:
    """Several optimizers that are stepped, saved and restored as one.

    ``state_dict`` numbers the parameters on from one optimizer to the next, so that it looks like a single
    optimizer's.

    Example:
        >>> model = nn.ModuleDict({"h": nn.Linear(2, 2)})
        >>> both = Together(muon_with_adamw(model, lr=1e-3, muon_lr=0.02))
        >>> [group["lr"] for group in both.param_groups]
        [0.001, 0.02]
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, in order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Step every optimizer."""
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of all optimizers, as one optimizer would give it."""
        whole: dict[str, Any] = {"state": {}, "param_groups": []}
        for optimizer, first in self._numbered():
            part = optimizer.state_dict()
            whole["state"] |= {first + number: values for number, values in part["state"].items()}
            whole["param_groups"] += [
                {**group, "params": [first + number for number in group["params"]]}
                for group in part["param_groups"]
            ]
        return whole

    def load_state_dict(self, whole: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        groups = list(whole["param_groups"])
        for optimizer, first in self._numbered():
            own = [groups.pop(0) for _ in optimizer.param_groups]
            state = {n - first: whole["state"][n] for g in own for n in g["params"] if n in whole["state"]}
            own = [{**group, "params": [n - first for n in group["params"]]} for group in own]
            optimizer.load_state_dict({"state": state, "param_groups": own})

    def _numbered(self) -> Iterator[tuple[torch.optim.Optimizer, int]]:
        """Each optimizer with the number of its first parameter."""
        first = 0
        for optimizer in self.optimizers:
            yield optimizer, first
            first += sum(len(group["params"]) for group in optimizer.param_groups)


def clip_and_step(optimizer: torch.optim.Optimizer | Together, max_norm: float) -> Tensor:
    """Step on gradients scaled so that their common norm is at most ``max_norm`` (Pascanu et al. 2013).

    Args:
        optimizer: its parameters' gradients are clipped. They may be overwritten: reset them afterwards.
        max_norm: ``math.inf`` does not clip.

    Returns:
        The norm before clipping.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> round(float(clip_and_step(adamw(layer, 0.1), 1.0)), 4)  # of six ones
        2.4495
    """
    if isinstance(optimizer, FastAdamW):
        return optimizer.clip_and_step(max_norm)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()
    return norm


def reference_adamw_step(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2), written out to be read.

    Args:
        p: parameter, any shape.
        grad: its gradient.
        m: running mean of the gradient so far.
        v: running mean of its square.
        step: counts from 1.
        lr: learning rate.
        betas: decay rates of the two running means.
        eps: added to the root, against division by zero.
        weight_decay: share of the weight, times ``lr``, that is subtracted.

    Returns:
        New ``(p, m, v)``; the inputs stay as they are.
    """
    beta1, beta2 = betas
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad.square()
    m_hat = m / (1 - beta1**step)  # both began at zero and are too small at first
    v_hat = v / (1 - beta2**step)
    return p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + eps), m, v


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
