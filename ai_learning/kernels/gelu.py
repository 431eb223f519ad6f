"""GELU, exact and by its tanh approximation, as in both GPT papers' code."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .loops import Loops, StoredLoop, processor_has, ready, run, usable

_LOOPS = Loops("kernels.gelu_kernels")
_WORTH_IT = 2**17
"""elements from which on compiled loops are used; of the tanh form PyTorch's take up to five times as long"""
_LANES = 16


def gelu(x: Tensor) -> Tensor:
    """``x · Φ(x)``, Φ the normal distribution's (Hendrycks & Gimpel 2016), elementwise.

    Example:
        >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1587,  0.0000,  0.8413])
    """
    y = _by_loops(x, "none")
    return F.gelu(x) if y is None else y


def gelu_new(x: Tensor) -> Tensor:
    """``x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2`` (Hendrycks & Gimpel 2016), elementwise.

    Example:
        >>> gelu_new(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([-0.1588,  0.0000,  0.8412])
    """
    y = _by_loops(x, "tanh")
    return F.gelu(x, approximate="tanh") if y is None else y


def gelu_form(activation: Callable[[Tensor], Tensor]) -> str | None:
    """PyTorch's name for the form that a function is, ``None`` for another function."""
    return "none" if activation is gelu else "tanh" if activation is gelu_new else None


def gelu_of(x: Tensor, approximate: str) -> Tensor:
    """Either form, by PyTorch's name of it, without gradients."""
    pair = _pair_for(x, approximate)
    return F.gelu(x, approximate=approximate) if pair is None else _run(pair.forward, pair.at_once, x)


def gelu_gradient(x: Tensor, grad: Tensor, approximate: str) -> Tensor:
    """The gradient of x, from that of ``gelu_of(x, approximate)``, which it takes the place of."""
    pair = _pair_for(x, approximate)
    if pair is None:
        return torch.ops.aten.gelu_backward(grad, x, approximate=approximate, grad_input=grad)
    run(pair.backward, 0, x.numel() // pair.at_once, x.numel(), (x.numel(),), (x, grad, grad))
    return grad


def _pair_for(x: Tensor, approximate: str) -> "_Pair | None":
    if x.numel() < _WORTH_IT or not usable(x):
        return None
    return _pair(approximate, x.numel() % _LANES == 0)


def load_loops() -> None:
    """Load what both use on this machine, or have it compiled (some seconds), before they are called."""
    for approximate in ("none", "tanh"):
        _pair(approximate, whole_registers=True)


def _by_loops(x: Tensor, approximate: str) -> Tensor | None:
    """``None`` where PyTorch's kernels are the only ones, or nearly as fast."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # before a size is asked for, and so fixed
        return None
    wants_gradient = x.requires_grad and torch.is_grad_enabled()
    if x.numel() < _WORTH_IT or not (wants_gradient or approximate == "tanh") or not usable(x):
        return None
    pair = _pair(approximate, x.numel() % _LANES == 0)
    if pair is None:
        return None
    if not wants_gradient:
        return _run(pair.forward, pair.at_once, x)
    y: Tensor = _Gelu.apply(x, approximate, pair)
    return y


class _Pair(NamedTuple):
    """Loops of both passes, and how many elements they take at once."""

    forward: StoredLoop
    backward: StoredLoop
    at_once: int


@cache
def _pair(approximate: str, whole_registers: bool) -> _Pair | None:
    """The fastest that this machine has."""
    found = []
    if whole_registers and processor_has("avx512f"):
        found.append(
            _Pair(_LOOPS.gelu_new, _LOOPS.gelu_new_backward, _LANES)
            if approximate == "tanh"
            else _Pair(_LOOPS.gelu, _LOOPS.gelu_backward, _LANES)
        )
    if approximate == "tanh":
        found.append(_Pair(_LOOPS.portable_gelu_new, _LOOPS.portable_gelu_new_backward, 1))
    return next((pair for pair in found if ready(pair.forward, pair.backward)), None)


class _Gelu(torch.autograd.Function):
    """Both passes as compiled loops."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str, pair: _Pair) -> Tensor:
        ctx.save_for_backward(x)
        ctx.approximate, ctx.pair = approximate, pair
        return _run(pair.forward, pair.at_once, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not usable(grad, x):  # as for a gradient of the gradient
            return torch.ops.aten.gelu_backward(grad, x, approximate=ctx.approximate), None, None
        return _run(ctx.pair.backward, ctx.pair.at_once, x, grad), None, None


def _run(loop: StoredLoop, at_once: int, *given: Tensor) -> Tensor:
    """What the loop makes of tensors of one shape."""
    out, n = torch.empty_like(given[0]), given[0].numel()
    run(loop, 0, n // at_once, n, (n,), (*given, out))
    return out
