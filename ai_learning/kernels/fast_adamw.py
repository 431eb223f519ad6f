"""AdamW over all tensors in one compiled loop, with clipping folded in, for parameters in main memory.

PyTorch's fused form calls a kernel for every tensor, and clipping makes three more passes over the gradients.
For a model of a million parameters, most of both is calling. Here the tensors are cut into chunks, one table
lists them, and two passes on all threads do it: the gradients' squares, then the step.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from operator import is_not
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
_LOOPS = Loops("kernels.training_kernels")
_CHUNK = 2**14  # elements: of four tensors, they fit the nearest caches
_STATE = ("exp_avg", "exp_avg_sq", "step")  # of a parameter, by PyTorch's names


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
    _last: "_Table | None" = None

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
        table = None if closure else self._table()
        if table is None:
            if self._max_norm is not None:
                parameters = [p for group in self.param_groups for p in group["params"]]
                self._norm = torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)
            return _pytorchs_step()(self, closure)
        chunks, scale = table.chunks, 1.0
        if self._max_norm is not None:
            sums = np.empty(len(chunks))
            job = (len(chunks), chunks.ctypes.data, sums.ctypes.data)
            run(_LOOPS.sum_squares, 0, len(chunks), table.elements, job, ())
            norm = math.sqrt(sums.sum())
            self._norm = torch.tensor(norm, dtype=torch.float32, device="cpu")
            share = self._max_norm / (norm + 1e-6)  # as in torch.nn.utils.clip_grad_norm_; NaN stays NaN
            scale = 1.0 if share > 1 else share
        steps = zip(self.param_groups, table.count(), strict=True)
        rates = np.array([_rates(group, step, scale) for group, step in steps], np.float32)
        job = (len(rates), chunks.ctypes.data, rates.ctypes.data)
        run(_LOOPS.adamw, 0, len(chunks), table.elements, job, ())
        # Tells whoever keeps what was made of the weights.
        torch.autograd.graph.increment_version(table.parameters)
        return None

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by ``load_state_dict``: what was, is not to be kept alive."""
        super().__setstate__(state)
        self._last = None

    def _table(self) -> "_Table | None":
        """Of this step's tensors; ``None`` where the loops would not do."""
        table, self._last = self._last, None  # whatever happens, nothing that is not used is kept
        scaled = any(getattr(self, name, None) is not None for name in ("grad_scale", "found_inf"))
        if scaled or any(map(_is_special, self.param_groups)):
            return None
        parameters = [p for group in self.param_groups for p in group["params"]]
        grads = [grad for p in parameters if (grad := p.grad) is not None]
        if len(grads) < len(parameters) or not usable(*grads):
            return None
        sizes = [len(group["params"]) for group in self.param_groups]
        states = [self.state[p] or self._first_state(p) for p in parameters]
        if table is None or not table.stands(sizes, parameters, states):
            table = None
            tensors = (parameters, *([state[name] for state in states] for name in _STATE))
            if not usable(*(tensor for own in tensors for tensor in own)):
                return None
            table = _Table(sizes, *tensors)
        table.take(grads)
        self._last = table
        return table if table.is_even() else None

    def _first_state(self, p: Tensor) -> dict[str, Tensor]:
        zero = torch.zeros((), dtype=torch.float32, device=p.device)
        self.state[p] |= {"step": zero, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        return self.state[p]


class _Table:
    """An optimizer's tensors in chunks, good for as long as they stay what and where they are.

    Args:
        sizes: how many parameters each group has.
        parameters: of all groups.
        means: of the gradients, one for each parameter.
        squares: of the gradients, their means.
        steps: how many each parameter has seen, float32.
    """

    def __init__(
        self,
        sizes: list[int],
        parameters: list[Tensor],
        means: list[Tensor],
        squares: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        self.sizes, self.parameters = sizes, parameters
        self.tensors = list(zip(parameters, means, squares, steps, strict=True))
        self.places = [_place(*own) for own in self.tensors]
        self.shapes: list[torch.Size] = []  # of gradients that were taken
        self.steps = [ctypes.c_float.from_address(step.data_ptr()) for step in steps]
        ends = np.cumsum(sizes).tolist()
        self.groups = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        lengths = [p.numel() for p in parameters]
        self.elements = sum(lengths)
        self.chunks, self.which, self.start = _cut([lengths[own] for own in self.groups])
        for field, own in ((0, parameters), (2, means), (3, squares)):
            self.chunks[:, field] = self._addresses(own)

    def stands(self, sizes: list[int], parameters: list[Tensor], states: list[dict[str, Tensor]]) -> bool:
        """Whether these are the tensors, at the same places."""
        if sizes != self.sizes:
            return False
        for p, state, own, place in zip(parameters, states, self.tensors, self.places, strict=True):
            now = (p, *[state[name] for name in _STATE])
            if any(map(is_not, now, own)) or _place(*now) != place:
                return False
        return True

    def take(self, grads: list[Tensor]) -> None:
        """This step's gradients.

        Raises:
            ValueError: a parameter, its gradient and its two means differ in shape.
        """
        shapes = [grad.shape for grad in grads]
        if shapes != self.shapes:
            for grad, (p, *means, _) in zip(grads, self.tensors, strict=True):
                if any(t.shape != p.shape for t in (grad, *means)):
                    differ = ", ".join(str(tuple(t.shape)) for t in (p, grad, *means))
                    raise ValueError(f"a parameter, its gradient and its two means differ in shape: {differ}")
            self.shapes = shapes
        self.chunks[:, 1] = self._addresses(grads)

    def is_even(self) -> bool:
        """Whether all parameters of a group have seen as many steps."""
        return all(len({step.value for step in self.steps[own]}) == 1 for own in self.groups)

    def count(self) -> list[float]:
        """Count a step; how many each group has seen now."""
        for step in self.steps:
            step.value += 1
        return [self.steps[own][0].value for own in self.groups]

    def _addresses(self, tensors: list[Tensor]) -> np.ndarray:
        """Of each chunk's part of its tensor."""
        addresses: np.ndarray = np.array([t.data_ptr() for t in tensors])[self.which] + self.start
        return addresses


def _place(*tensors: Tensor) -> list[tuple[Any, ...]]:
    """What of tensors can be changed behind an optimizer's back (``p.data = …``) and a loop relies on."""
    return [(t.data_ptr(), t.shape, t.dtype, t.is_contiguous()) for t in tensors]


def _rates(group: dict[str, Any], step: float, scale: float) -> tuple[float, ...]:
    """RATES of a group for its ``step``, counted from 1."""
    lr, (beta1, beta2) = group["lr"], group["betas"]
    keep, size, root = 1 - lr * group["weight_decay"], lr / (1 - beta1**step), (1 - beta2**step) ** -0.5
    return keep, size, root, group["eps"], 1 - beta1, beta2, 1 - beta2, scale


def _pytorchs_step() -> Callable[..., Any]:
    """``AdamW.step`` without the hooks around it: those around ours have run already."""
    step = torch.optim.AdamW.step
    while getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    return step


def _is_special(group: dict[str, Any]) -> bool:
    flags = any(group[name] for name in ("amsgrad", "maximize", "capturable", "differentiable"))
    return flags or not group["params"] or isinstance(group["lr"], Tensor)


def _cut(groups: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each group's tensors, of so many elements, in chunks.

    Returns:
        The table with lengths and groups in their places, which tensor each chunk is of, and at which byte of
        it the chunk begins.
    """
    found = [
        (tensor, 4 * start, min(_CHUNK, size - start), group)
        for tensor, (group, size) in enumerate((g, size) for g, own in enumerate(groups) for size in own)
        for start in range(0, size, _CHUNK)
    ]
    tensor, start, length, group = np.array(found, np.int64).reshape(-1, 4).T
    table = np.zeros((len(found), CHUNK_FIELDS), np.int64)
    table[:, 4], table[:, 5] = length, group
    return table, tensor, start
