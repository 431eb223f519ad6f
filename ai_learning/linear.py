"""Linear layers whose products run on a CPU's tile registers where it has some (`products`)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graphs import constant_in_graphs, is_exporting
from .loops import usable
from .products import can_tile, has_tiles, mm

_WORTH_A_GRAPH = 2**17
"""elements of a weight from which on a graph has operations of its own: many rows make the product large"""


class Linear(nn.Linear):
    """``nn.Linear``; on a CPU with tile registers large products in float32 take two thirds of the time.

    Example:
        >>> Linear(8, 2)(torch.ones(3, 8)).shape
        torch.Size([3, 2])
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) → (..., out_features)."""
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
    if torch.compiler.is_compiling():
        if not _is_for_a_graph(x, weight):
            return F.linear(x, weight, bias)
        rows = _in_a_graph(x.reshape(-1, x.size(-1)), weight, bias)
        return rows.view(*x.shape[:-1], weight.size(0))
    if torch.jit.is_tracing() or not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether tiles gain; what does not fit together is left for PyTorch to complain of."""
    N, K = weight.shape
    if x.dim() == 0 or x.size(-1) != K or not x.is_cpu or not can_tile(x.numel() // K, K, N):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return usable(x, weight) if bias is None else bias.shape == (N,) and usable(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Both passes by tiles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        N, K = weight.shape
        return mm(x.view(-1, K), weight.t(), add=bias).view(*x.shape[:-1], N)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.size(-1))  # (..., N) → (B, N)
        product = torch.mm if torch.is_grad_enabled() else mm  # for a gradient of the gradient
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(rows, weight).view(x.shape) if needs_x else None,
            product(rows.t(), x.reshape(-1, x.size(-1))) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


# --- in a graph that torch.compile makes: the size of a batch decides only when it is there -----------------


def _is_for_a_graph(x: Tensor, weight: Tensor) -> bool:
    if not torch.is_grad_enabled() or is_exporting() or weight.numel() < _WORTH_A_GRAPH:
        return False
    return x.is_cpu and x.dtype == weight.dtype == torch.float32 and _are_wanted()


@constant_in_graphs
def _are_wanted() -> bool:
    return has_tiles() and not torch.is_autocast_enabled("cpu")


@torch.library.custom_op("ai_learning::linear", mutates_args=(), device_types="cpu")
def _in_a_graph(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, K), (N, K), (N,) → (B, N)."""
    return mm(x, weight.t(), add=bias)


@torch.library.custom_op("ai_learning::mm", mutates_args=(), device_types="cpu")
def _product_in_a_graph(a: Tensor, b: Tensor) -> Tensor:
    """(M, K), (K, N) → (M, N)."""
    return mm(a, b)


@_in_a_graph.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.size(0), weight.size(0))


@_product_in_a_graph.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.size(0), b.size(1))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients_in_a_graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    return (
        _product_in_a_graph(grad, weight) if needs_x else None,
        _product_in_a_graph(grad.t(), x) if needs_weight else None,
        grad.sum(0) if needs_bias else None,
    )


_in_a_graph.register_autograd(_gradients_in_a_graph, setup_context=_keep)
