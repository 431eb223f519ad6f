"""AdamW over all tensors in one compiled loop, with clipping folded in, for parameters in main memory.

PyTorch's fused form calls a kernel for every tensor, and clipping makes three more passes over the gradients.
For a model of a million parameters, most of both is calling. Here the tensors are cut into chunks, one table
lists them, and two passes on all threads do it: the gradients' squares, then the step.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .loops import Loops, run, usable

WORTH_IT = 2**18
"""parameters from which on `optim.adamw` takes this: the first loop of a process costs 0.07 s and 50 MB"""
CHUNK_FIELDS = 6
"""of a chunk: addresses of its part of parameter, gradient, mean and mean of squares; length; group"""
RATES = 8
"""of a group: 1 − lr · decay, lr / (1 − beta1^t), 1 / √(1 − beta2^t), eps, beta1, beta2, 1 − beta2, scale"""
_LOOPS = Loops("training_kernels")
_CHUNK = 2**14  # elements: of four tensors, they fit the nearest caches


class FastAdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``, in one loop over all tensors where they are float32 in main memory.

    State and checkpoints are PyTorch's. What there is no loop for (other devices and dtypes, sparse or
    missing gradients, closures, ``amsgrad``, …) is left to PyTorch's own step.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = FastAdamW(layer.parameters(), lr=0.1)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> round(float(optimizer.clip_and_step(1.0)), 4)  # the norm of six ones
        2.4495
    """

    def step(self, closure: Any = None) -> Any:
        """One step on the gradients as they are."""
        chunks = None if closure else self._chunks()
        if chunks is None:
            return super().step(closure)
        self._run(chunks, scale=1.0)
        return None

    def clip_and_step(self, max_norm: float) -> Tensor | None:
        """One step on the gradients, scaled so that their common norm is at most ``max_norm``.

        The gradients themselves stay as they are.

        Returns:
            The norm before; ``None`` where there is no loop for these parameters: then nothing was done.
        """
        chunks = self._chunks()
        if chunks is None:
            return None
        sums = np.empty(len(chunks))
        job = (len(chunks), chunks.ctypes.data, sums.ctypes.data)
        run(_LOOPS.sum_squares, 0, len(chunks), int(chunks[:, 4].sum()), job, ())
        norm = math.sqrt(sums.sum())
        share = max_norm / (norm + 1e-6)  # as in torch.nn.utils.clip_grad_norm_; NaN stays NaN
        self._run(chunks, scale=1.0 if share > 1 else share)
        return torch.tensor(norm, dtype=torch.float32, device="cpu")

    def _run(self, chunks: np.ndarray, scale: float) -> None:
        rates = np.empty((len(self.param_groups), RATES), np.float32)
        for row, group in zip(rates, self.param_groups, strict=True):
            steps = [self.state[p]["step"] for p in group["params"]]
            torch._foreach_add_(steps, 1)
            t, lr, (beta1, beta2) = float(steps[0]), group["lr"], group["betas"]
            keep, size, root = 1 - lr * group["weight_decay"], lr / (1 - beta1**t), (1 - beta2**t) ** -0.5
            row[:] = keep, size, root, group["eps"], beta1, beta2, 1 - beta2, scale
        job = (len(rates), chunks.ctypes.data, rates.ctypes.data)
        run(_LOOPS.adamw, 0, len(chunks), int(chunks[:, 4].sum()), job, ())

    def _chunks(self) -> np.ndarray | None:
        """What the loops read (chunks, CHUNK_FIELDS), for this step; ``None`` where they would not do."""
        if any(map(_is_special, self.param_groups)):
            return None
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        if len(grads) < len(parameters) or not usable(*parameters, *grads):
            return None
        states = [self.state[p] or self._first_state(p) for p in parameters]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        steps = iter([float(state["step"]) for state in states])
        alike = all(len({next(steps) for _ in group["params"]}) == 1 for group in self.param_groups)
        if not alike or not usable(*means, *squares):
            return None
        table, tensor, start = _cut(*(tuple(p.numel() for p in g["params"]) for g in self.param_groups))
        addresses = np.array([[t.data_ptr() for t in ts] for ts in (parameters, grads, means, squares)])
        chunks = table.copy()
        chunks[:, :4] = (addresses[:, tensor] + start).T
        return chunks

    def _first_state(self, p: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] |= {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]


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
