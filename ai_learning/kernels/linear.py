"""Linear layers whose products run on a CPU's tile registers where it has some.

Large ones are `products`', small ones `row_layers`'.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import row_layers
from .compile_ops import constant_in_graphs, define_gradient, is_exporting, operation
from .loops import usable
from .products import PANEL, can_tile, has_tiles, mm, takes

_WORTH_A_GRAPH = 2**17
"""elements of a weight from which on a graph has operations of its own: many rows make the product large"""
_WORTH_ROWS = 2**13
"""elements of a weight from which on `row_layers` gains"""


class Linear(nn.Linear):
    """``nn.Linear``; on a CPU with tile registers products of many rows take 0.7 to 0.9 of the time.

    Tools that look for ``nn.Linear`` by its exact type (PyTorch's ``quantize_dynamic``) do not see it; what
    asks by ``isinstance`` does.

    Example:
        >>> Linear(8, 2)(torch.ones(3, 8)).shape
        torch.Size([3, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
        if torch.jit.is_scripting():
            return F.linear(input, self.weight, self.bias)
        else:  # TorchScript compiles what stands in no branch
            return linear(input, self.weight, self.bias)


PLAIN = (nn.Linear, Linear)
"""classes of layers that do nothing but ``x Wᵀ + b``"""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x Wᵀ + b``, as ``F.linear``.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,).

    Returns:
        (..., N).
    """
    if not isinstance(x, Tensor):  # torch.fx's stand-ins
        return F.linear(x, weight, bias)
    if torch.compiler.is_compiling():
        if not _is_for_a_graph(x, weight):
            return F.linear(x, weight, bias)
        rows = _in_a_graph(x.reshape(-1, x.size(-1)), weight, bias)
        return rows.view(*x.shape[:-1], weight.size(0))
    if torch.jit.is_tracing() or not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, without gradients."""
    if _goes_by_rows(x, weight, bias):
        return row_layers.linear(x, weight, bias)
    rows, columns = x.reshape(-1, x.size(-1)), weight.t()
    if not takes(rows, columns, add=bias):
        return F.linear(x, weight, bias)
    y = x.new_empty(*x.shape[:-1], weight.size(0))  # not a view, which nobody could change in place
    mm(rows, columns, y.view(len(rows), -1), bias)
    return y


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether tiles gain; what does not fit together is left for PyTorch to complain of."""
    K = x.size(-1) if x.dim() else 0
    if x.numel() < PANEL * K or K == 0:  # a few rows, as in generation, where each microsecond counts
        return False
    if weight.dim() != 2 or weight.size(1) != K or torch.is_autocast_enabled("cpu"):
        return False
    N = weight.size(0)
    if not can_tile(x.numel() // K, K, N):  # before all that takes a microsecond
        return _goes_by_rows(x, weight, bias)
    given = (x, weight) if bias is None else (x, weight, bias)
    return usable(*given) and (bias is None or bias.shape == (N,))


def _may_go_by_rows(weight: Tensor) -> bool:
    return weight.numel() >= _WORTH_ROWS and row_layers.may_fit(weight)


def _goes_by_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `row_layers` takes these, and gains."""
    if not _may_go_by_rows(weight) or x.size(-1) != weight.size(1):
        return False
    given = (x, weight) if bias is None else (x, weight, bias)
    if not row_layers.are_enough(x.numel() // x.size(-1)) or not usable(*given):
        return False
    return (bias is None or bias.shape == (len(weight),)) and row_layers.has_loops()


class _Linear(torch.autograd.Function):
    """Both passes by tiles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _keep(ctx, (x, weight, bias))
        return frozen_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_bias, can_loop = ctx.needs_input_grad[2], not torch.is_grad_enabled()
        if can_loop and _all_go_by_rows(x, weight) and usable(grad, contiguous=False):
            return (*row_layers.linear_backward(x, weight, grad, wants_bias),)
        rows = grad.reshape(-1, grad.size(-1))  # (..., N) → (B, N)
        grad_x, grad_weight, grad_bias = _gradients(x, weight, wants_bias, rows, mm if can_loop else torch.mm)
        return None if grad_x is None else grad_x.view(*grad.shape[:-1], -1), grad_weight, grad_bias


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor | None = None) -> None:
    """What the backward pass needs: with a frozen weight not x, for a first layer not the weight."""
    x, weight, _ = inputs
    ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)


def _all_go_by_rows(x: Tensor | None, weight: Tensor | None) -> bool:
    """Whether x and weight are both there, so that all gradients are wanted, and `row_layers` gains."""
    return x is not None and weight is not None and _goes_by_rows(x, weight, None)


def _gradients(
    x: Tensor | None,
    weight: Tensor | None,
    wants_bias: bool,
    grad: Tensor,
    product: Callable[[Tensor, Tensor], Tensor],
) -> list[Tensor | None]:
    """Of x (B, K), weight and bias, from the output's (B, N)."""
    return [
        None if weight is None else product(grad, weight),
        None if x is None else product(grad.t(), x.reshape(len(grad), -1)),
        grad.sum(0) if wants_bias else None,
    ]


# --- in a graph that torch.compile makes: the size of a batch decides only when it is there -----------------


def _is_for_a_graph(x: Tensor, weight: Tensor) -> bool:
    if not torch.is_grad_enabled() or is_exporting():
        return False
    if weight.numel() < _WORTH_A_GRAPH and not _may_go_by_rows(weight):
        return False
    if type(x) is not Tensor or type(weight) not in (Tensor, nn.Parameter):  # DTensors and the like
        return False
    return x.is_cpu and x.dtype == weight.dtype == torch.float32 and _are_wanted()


@constant_in_graphs
def _are_wanted() -> bool:
    wishes = torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active()
    return has_tiles() and not wishes


@operation("linear", F.linear)
def _in_a_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, K), (N, K), (N,) → (B, N)."""
    return frozen_linear(x, weight, bias)


@operation("mm", torch.mm)
def _product_in_a_graph(a: Tensor, b: Tensor) -> Tensor:
    """(M, K), (K, N) → (M, N)."""
    return mm(a, b)


def _like_all(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


@operation("linear_gradients", _like_all)
def _all_gradients_in_a_graph(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, K), (N, K), (B, N) → those of x, weight and bias."""
    if _goes_by_rows(x, weight, None) and usable(grad, contiguous=False):
        d_x, d_weight, d_bias = row_layers.linear_backward(x, weight, grad, True)
        assert d_bias is not None
        return d_x, d_weight, d_bias
    return mm(grad, weight), mm(grad.t(), x), grad.sum(0)


def _gradients_in_a_graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wants_bias, can_loop = ctx.needs_input_grad[2], not torch.is_grad_enabled()
    if can_loop and x is not None and weight is not None and _may_go_by_rows(weight):
        d_x, d_weight, d_bias = _all_gradients_in_a_graph(x, weight, grad)
        return d_x, d_weight, d_bias if wants_bias else None
    return tuple(_gradients(x, weight, wants_bias, grad, _product_in_a_graph if can_loop else torch.mm))


define_gradient(_in_a_graph, _gradients_in_a_graph, setup_context=_keep)
