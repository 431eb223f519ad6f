"""The arithmetic of an adapted linear layer, with the gradients written out.

Plain autograd would do; `LoRALayer` in `layers.py` still does wherever dropout or mixed types are in play.
Written out, the adapter's share is added in place, so a step needs no second tensor of the size of the
output, and a 4-bit weight is de-quantised again in the backward pass instead of being kept.

Letters: N rows (all leading axes of the input together), I in_features, O out_features, R rank.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..kernels.linear import frozen_linear
from ..kernels.products import mm

DenseWeight = Callable[[], Tensor]  # gives the frozen weight (O, I); called again in the backward pass


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D: a linear layer whose weight is stored (in, out)."""
    return is_conv1d_class(type(module))


def is_conv1d_class(kind: type) -> bool:
    """See `is_conv1d`."""
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in kind.__mro__)


class FrozenLinear(torch.autograd.Function):
    """``x Wᵀ + b`` with a frozen W that need not exist between forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: DenseWeight, bias: Tensor | None) -> Tensor:
        """Args: x (..., I), weight () → (O, I), bias (O,). Returns (..., O)."""
        ctx.weight, ctx.shape = weight, x.shape
        return frozen_linear(x, weight(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and bias."""
        needs_x, _, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])  # (..., O) → (N, O)
        grad_x = mm(rows, ctx.weight()).view(ctx.shape) if needs_x else None
        return grad_x, None, rows.sum(0) if needs_bias else None


class LoRALinearFunction(torch.autograd.Function):
    """``x Wᵀ + b + s·(x Aᵀ) Bᵀ`` (Hu et al. 2021, equation 3) with a frozen W."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: DenseWeight, bias: Tensor | None, A: Tensor, B: Tensor, s: float
    ) -> Tensor:
        """Args: x (..., I), weight () → (O, I), bias (O,), A (R, I), B (O, R). Returns (..., O)."""
        rows = x.reshape(-1, x.shape[-1])  # (..., I) → (N, I)
        down = rows @ A.t()  # (N, R)
        y = mm(rows, weight().t(), add=bias)  # (N, O)
        y.addmm_(down, B.t(), alpha=s)
        ctx.save_for_backward(rows, down, A, B)
        ctx.weight, ctx.s, ctx.shape = weight, s, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])  # (N, O) → (..., O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, bias, A and B."""
        _refuse_second_derivative()
        rows, down, A, B = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])  # (..., O) → (N, O)
        grad_x, grad_A, grad_B = _low_rank_backward(
            grad, ctx.weight if needs_x else None, rows, down, A, B, ctx.s
        )
        grad_bias = grad.sum(0) if needs_bias else None
        return (None if grad_x is None else grad_x.view(ctx.shape)), None, grad_bias, grad_A, grad_B, None


class DoRALinearFunction(torch.autograd.Function):
    """``b + (m / ‖W + sBA‖)·(x Wᵀ + s·(x Aᵀ) Bᵀ)`` (Liu et al. 2024, equation 5), the norm held constant."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: DenseWeight,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        s: float,
        magnitude: Tensor,
        weight_norm2: Tensor,
    ) -> Tensor:
        """Args as `LoRALinearFunction`; magnitude (O,), weight_norm2 (O,): the rows' ‖W‖². Gives (..., O)."""
        W = weight()
        rows = x.reshape(-1, x.shape[-1])  # (..., I) → (N, I)
        down = rows @ A.t()  # (N, R)
        direction = mm(rows, W.t())  # (N, O)
        direction.addmm_(down, B.t(), alpha=s)
        norm = dora_norm(W, weight_norm2, A, B, s)
        scale = (magnitude / norm).to(direction.dtype)  # the norm is fp32 also in a 16-bit model
        y = direction * scale if bias is None else torch.addcmul(bias, direction, scale)
        ctx.save_for_backward(rows, down, A, B, direction, scale, norm)
        ctx.weight, ctx.s, ctx.shape = weight, s, x.shape
        return y.view(*x.shape[:-1], y.shape[-1])  # (N, O) → (..., O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, bias, A, B and the magnitude."""
        _refuse_second_derivative()
        rows, down, A, B, direction, scale, norm = ctx.saved_tensors
        needs_x, _, needs_bias, *_ = ctx.needs_input_grad
        grad = grad.reshape(-1, grad.shape[-1])  # (..., O) → (N, O)
        grad_bias = grad.sum(0) if needs_bias else None
        grad_magnitude = torch.linalg.vecdot(grad, direction, dim=0) / norm
        grad = grad * scale
        grad_x, grad_A, grad_B = _low_rank_backward(
            grad, ctx.weight if needs_x else None, rows, down, A, B, ctx.s
        )
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        return grad_x, None, grad_bias, grad_A, grad_B, None, grad_magnitude, None


def _refuse_second_derivative() -> None:
    """Unlike `once_differentiable`, also of a constant gradient: the shares of A and B would be missing."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError("an adapted layer has no second derivative: leave create_graph=True away")


def _low_rank_backward(
    grad: Tensor, weight: DenseWeight | None, rows: Tensor, down: Tensor, A: Tensor, B: Tensor, s: float
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of ``x Wᵀ + s·(x Aᵀ) Bᵀ`` by x, A and B from the gradient (N, O) of the result."""
    grad_down = (grad @ B).mul_(s)  # (N, R)
    grad_A = grad_down.t() @ rows  # (R, I)
    grad_B = (grad.t() @ down).mul_(s)  # (O, R)
    grad_x = None if weight is None else mm(grad, weight()).addmm_(grad_down, A)  # (N, I)
    return grad_x, grad_A, grad_B


def dora_norm(W: Tensor, weight_norm2: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """Row lengths of ``W + s·B·A`` (O,) without forming that matrix.

    ``‖w + s b A‖² = ‖w‖² + 2s·(w Aᵀ)·b + s²·b (A Aᵀ) bᵀ`` for every row w of W and b of B.
    """
    cross = (W @ A.t() * B).sum(1)  # (O, R) → (O,)
    update = (B @ (A @ A.t()) * B).sum(1)  # (O, R) → (O,)
    # Rounding can leave a tiny negative number where W + sBA vanishes.
    return not_zero((weight_norm2 + 2 * s * cross + s * s * update).clamp_(min=0).sqrt_())


def not_zero(norm: Tensor) -> Tensor:
    """``norm`` with 1 in place of 0: a row of zeros has no direction, and stays zero when divided by this."""
    return norm.masked_fill(norm == 0, 1)
