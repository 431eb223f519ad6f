"""AdamW over all tensors in one compiled loop, with clipping folded in, for parameters in main memory.

PyTorch's fused form calls a kernel for every tensor, and clipping makes three more passes over the gradients.
For a model of a million parameters, most of both is calling. Here the tensors are cut into chunks, one table
lists them, and two passes on all threads do it: the gradients' squares, then the step.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .loops import Loops, ready, run, usable

WORTH_IT = 2**18
"""parameters from which on `optim.adamw` takes this: the first loop of a process costs 0.07 s and 50 MB"""
CHUNK_FIELDS = 6
"""of a chunk: addresses of its part of parameter, gradient, mean and mean of squares; length; group"""
RATES = 8
"""of a group: 1 − lr·decay, lr/(1 − beta1^t), 1/√(1 − beta2^t), eps, 1 − beta1, beta2, 1 − beta2, scale"""
_LOOPS = Loops("training_kernels")
_CHUNK = 2**14  # elements: of four tensors, they fit the nearest caches


def suits(parameters: Sequence[Tensor]) -> bool:
    """Whether parameters are such that the loops take them, and the loops can be had."""
    return usable(*parameters) and ready(_LOOPS.sum_squares, _LOOPS.adamw)


class FastAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``, in one loop over all tensors where they are float32 in main memory.

    State and checkpoints are PyTorch's. What there is no loop for (other devices and dtypes, sparse or
    missing gradients, closures, ``amsgrad``, a ``GradScaler``, …) is left to PyTorch's own step.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = FastAdamW(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> round(float(optimizer.clip_and_step(1.0)), 4)  # the norm of six ones
        2.4495
    """

    _max_norm: float | None = None
    _norm: Tensor

    def clip_and_step(self, max_norm: float) -> Tensor:
        """``step`` on the gradients, scaled so that their common norm is at most ``max_norm``.

        The gradients themselves may stay as they are.

        Returns:
            The norm before.
        """
        self._max_norm = max_norm
        try:
            self.step()  # not less than a step: hooks and schedulers are to see it
        finally:
            self._max_norm = None
        return self._norm

    def step(self, closure: Any = None) -> Any:
        """One step on the gradients as they are.

        Raises:
            ValueError: a parameter, its gradient and its state differ in shape.
        """
        tensors = None if closure else self._tensors()
        if tensors is None:
            if self._max_norm is not None:
                parameters = [p for group in self.param_groups for p in group["params"]]
                self._norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)
            return _pytorchs_step()(self, closure)
        chunks = self._chunks(tensors)
        scale = 1.0
        if self._max_norm is not None:
            sums = np.empty(len(chunks))
            job = (len(chunks), chunks.ctypes.data, sums.ctypes.data)
            run(_LOOPS.sum_squares, 0, len(chunks), int(chunks[:, 4].sum()), job, ())
            norm = math.sqrt(sums.sum())
            self._norm = torch.tensor(norm, dtype=torch.float32, device="cpu")
            share = self._max_norm / (norm + 1e-6)  # as in torch.nn.utils.clip_grad_norm_; NaN stays NaN
            scale = 1.0 if share > 1 else share
        rates = self._rates(scale)
        job = (len(rates), chunks.ctypes.data, rates.ctypes.data)
        run(_LOOPS.adamw, 0, len(chunks), int(chunks[:, 4].sum()), job, ())
        # Tells whoever keeps what was made of the weights.
        torch.autograd.graph.increment_version(tensors[0])
        return None

    def _rates(self, scale: float) -> np.ndarray:
        """(groups, RATES) for this step, which is counted."""
        rates = np.empty((len(self.param_groups), RATES), np.float32)
        for row, group in zip(rates, self.param_groups, strict=True):
            steps = [self.state[p]["step"] for p in group["params"]]
            torch._foreach_add_(steps, 1)
            t, lr, (beta1, beta2) = float(steps[0]), group["lr"], group["betas"]
            keep, size, root = 1 - lr * group["weight_decay"], lr / (1 - beta1**t), (1 - beta2**t) ** -0.5
            row[:] = keep, size, root, group["eps"], 1 - beta1, beta2, 1 - beta2, scale
        return rates

    def _tensors(self) -> list[list[Tensor]] | None:
        """Parameters, gradients, means and means of squares; ``None`` where the loops would not do."""
        scaled = any(getattr(self, name, None) is not None for name in ("grad_scale", "found_inf"))
        if scaled or any(map(_is_special, self.param_groups)):
            return None
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None]
        if len(grads) < len(parameters) or not suits((*parameters, *grads)):
            return None
        states = [self.state[p] or self._first_state(p) for p in parameters]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        steps = iter([float(state["step"]) for state in states])
        alike = all(len({next(steps) for _ in group["params"]}) == 1 for group in self.param_groups)
        if not alike or not usable(*means, *squares):
            return None
        for own in zip(parameters, grads, means, squares, strict=True):
            if any(t.shape != own[0].shape for t in own):
                shapes = ", ".join(str(tuple(t.shape)) for t in own)
                raise ValueError(f"a parameter, its gradient and its two means differ in shape: {shapes}")
        return [parameters, grads, means, squares]

    def _chunks(self, tensors: list[list[Tensor]]) -> np.ndarray:
        """(chunks, CHUNK_FIELDS), what the loops read; good as long as the tensors are held."""
        table, tensor, start = _cut(*(tuple(p.numel() for p in g["params"]) for g in self.param_groups))
        addresses = np.array([[t.data_ptr() for t in ts] for ts in tensors])
        chunks = table.copy()
        chunks[:, :4] = (addresses[:, tensor] + start).T
        return chunks

    def _first_state(self, p: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] |= {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]


def _pytorchs_step() -> Callable[..., Any]:
    """``AdamW.step`` without the hooks around it: those around ours have run already."""
    step = torch.optim.AdamW.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


def _is_special(group: dict[str, Any]) -> bool:
    flags = any(group[name] for name in ("amsgrad", "maximize", "capturable", "differentiable"))
    return flags or not group["params"] or isinstance(group["lr"], Tensor)


@lru_cache(maxsize=4)
def _cut(*sizes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each group's tensors, of so many elements, in chunks.

    Returns:
        The table with lengths and groups in their places, which tensor each chunk is of, and at which byte of
        it the chunk begins.
    """
    found = [
        (tensor, 4 * start, min(_CHUNK, size - start), group)
        for tensor, (group, size) in enumerate((g, size) for g, own in enumerate(sizes) for size in own)
        for start in range(0, size, _CHUNK)
    ]
    tensor, start, length, group = np.array(found, np.int64).reshape(-1, 4).T
    table = np.zeros((len(found), CHUNK_FIELDS), np.int64)
    table[:, 4], table[:, 5] = length, group
    return table, tensor, start
