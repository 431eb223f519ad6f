"""The MLP of a GPT in training on a CPU: both layers and GELU as one operation.

GELU's output, a quarter of all that a GPT keeps for its backward pass, is not kept but computed anew. Small
layers go through tile registers, some rows at a time (`row_layers`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from . import row_layers
from .compile_ops import constant_in_graphs, define_gradient, is_exporting, operation
from .gelu import gelu_form, gelu_gradient, gelu_of
from .host_memory import is_plain
from .linear import PLAIN, frozen_linear
from .loops import usable
from .products import mm
from .row_layers import FORMS, are_enough, may_fit

_IS_CHEAP = 2**18
"""elements of the first weight from which on the products take so long that GELU costs little"""


def can_mlp(x: Tensor, fc: nn.Linear, activation: Callable[[Tensor], Tensor], proj: nn.Linear) -> bool:
    """Whether `mlp` takes these, and gains time or memory: float32, for the gradients of all.

    It does not ask how many rows there are: what is kept of each is the same in any batch.
    """
    if gelu_form(activation) is None or not torch.is_grad_enabled():
        return False
    if torch.jit.is_tracing() or is_exporting():
        return False
    if not (_is_bare(fc) and _is_bare(proj)) or not isinstance(x, Tensor):
        return False
    weights = [p for layer in (fc, proj) for p in (layer.weight, layer.bias) if p is not None]
    if not _belong_together(fc, proj) or not all(t.requires_grad for t in (x, *weights)):
        return False
    is_small = may_fit(fc.weight, proj.weight)
    if torch.compiler.is_compiling():
        plain = all(type(t) in (Tensor, nn.Parameter) and t.is_cpu for t in (x, *weights))
        plain = plain and all(t.dtype == torch.float32 for t in (x, *weights))
        return is_small and plain and _are_wanted() and _has_loops()
    if not (is_small or fc.weight.numel() >= _IS_CHEAP) or x.dim() == 0 or x.size(-1) != fc.weight.size(1):
        return False
    return usable(x, *weights) and _are_wanted() and (not is_small or _has_loops())


def mlp(x: Tensor, fc: nn.Linear, activation: Callable[[Tensor], Tensor], proj: nn.Linear) -> Tensor:
    """``proj(activation(fc(x)))``.

    Args:
        x: (..., C).
        fc: a linear layer C → H.
        activation: ``gelu`` or ``gelu_new``.
        proj: a linear layer H → O; `can_mlp` says whether all these will do.

    Returns:
        (..., O).
    """
    given: tuple[Any, ...] = (fc.weight, fc.bias, proj.weight, proj.bias, gelu_form(activation))
    if torch.compiler.is_compiling():
        rows = _in_a_graph(x.reshape(-1, x.size(-1)), *given)[0]
        return rows.view(*x.shape[:-1], rows.size(-1))
    y: Tensor = _MLP.apply(x, *given)
    return y


def _belong_together(fc: nn.Linear, proj: nn.Linear) -> bool:
    """Whether shapes are those of two layers; what they are else is for PyTorch to judge."""
    if not fc.weight.dim() == proj.weight.dim() == 2 or fc.weight.size(0) != proj.weight.size(1):
        return False
    return all(layer.bias is None or layer.bias.shape == layer.weight.shape[:1] for layer in (fc, proj))


def _is_bare(layer: nn.Module) -> bool:
    """Whether calling a layer would do ``x Wᵀ + b`` and no more: there are no hooks that would miss it."""
    if type(layer) not in PLAIN or "forward" in layer.__dict__:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and not torch_module._has_any_global_hook()


@constant_in_graphs
def _are_wanted() -> bool:
    return not (torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active())


@constant_in_graphs
def _has_loops() -> bool:
    return row_layers.has_loops()


class _MLP(torch.autograd.Function):
    """Both passes."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        fc: Tensor,
        fc_bias: Tensor | None,
        proj: Tensor,
        proj_bias: Tensor | None,
        approximate: str,
    ) -> Tensor:
        y, wide = _forward(x, fc, fc_bias, proj, proj_bias, approximate)
        ctx.save_for_backward(x, fc, fc_bias, proj, wide)  # the bias for a gradient of the gradient
        ctx.approximate = approximate
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, fc, fc_bias, proj, wide = ctx.saved_tensors  # asked for once: checkpoints insist
        # A gradient of the gradient, or a batch of them; and hooks may have kept other tensors than these.
        if torch.is_grad_enabled() or not usable(grad, contiguous=False) or not usable(x, fc, proj, wide):
            found = _gradients(x, fc, fc_bias, proj, grad, ctx.approximate)
        else:
            found = _backward(x, fc, proj, wide, grad, ctx.approximate)
        return _wanted(ctx, found)


def _wanted(ctx: Any, found: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of what is there, and none of the form."""
    return *(t if wants else None for t, wants in zip(found, ctx.needs_input_grad, strict=False)), None


def _goes_by_rows(x: Tensor, fc: Tensor, proj: Tensor) -> bool:
    """The same in both passes, whatever else changes: what lies between the layers has its own order."""
    return are_enough(x.numel() // x.size(-1)) and may_fit(fc, proj) and row_layers.has_loops()


def _forward(
    x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass needs besides: what GELU is given."""
    if _goes_by_rows(x, fc, proj):
        return row_layers.mlp(FORMS[approximate], x, fc, fc_bias, proj, proj_bias)
    wide = frozen_linear(x, fc, fc_bias)
    return frozen_linear(gelu_of(wide, approximate), proj, proj_bias), wide


def _backward(
    x: Tensor, fc: Tensor, proj: Tensor, wide: Tensor, grad: Tensor, approximate: str
) -> tuple[Tensor, ...]:
    """Gradients of x and of both layers' weights and biases, from the output's."""
    if _goes_by_rows(x, fc, proj):
        return row_layers.mlp_backward(FORMS[approximate], x, fc, proj, wide, grad)
    rows, grads, wide = (t.reshape(-1, t.size(-1)) for t in (x, grad, wide))
    narrow = gelu_of(wide, approximate)
    d_proj = mm(grads.t(), narrow)
    d_wide = gelu_gradient(wide, mm(grads, proj, out=narrow), approximate)  # in the same memory
    return mm(d_wide, fc).view(x.shape), mm(d_wide.t(), rows), d_wide.sum(0), d_proj, grads.sum(0)


def _gradients(
    x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, grad: Tensor, approximate: str
) -> tuple[Tensor, ...]:
    """The same by PyTorch's operations, which can be differentiated again."""
    wide = F.linear(x, fc, fc_bias)
    d_wide = torch.ops.aten.gelu_backward(grad @ proj, wide, approximate=approximate)
    narrow = F.gelu(wide, approximate=approximate)
    d_rows, rows, grads, narrow = (t.reshape(-1, t.size(-1)) for t in (d_wide, x, grad, narrow))
    return d_wide @ fc, d_rows.t() @ rows, d_rows.sum(0), grads.t() @ narrow, grads.sum(0)


# --- in a graph that torch.compile makes, which calls both passes without looking inside --------------------


def _like_output(
    x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    wide = F.linear(x, fc, fc_bias)  # checks shapes as PyTorch does
    return F.linear(wide, proj, proj_bias), wide


@operation("mlp", _like_output)
def _in_a_graph(
    x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    """What `_forward` does, of (R, C).

    Raises:
        TypeError: other tensors than its loops take.
    """
    biases = [(bias, len(weight)) for bias, weight in ((fc_bias, fc), (proj_bias, proj)) if bias is not None]
    _check((x, fc, proj), [bias for bias, _ in biases])
    if any(bias.shape != (length,) for bias, length in biases):
        raise TypeError(
            f"an MLP's loops need a bias for each feature, not {[tuple(b.shape) for b, _ in biases]}"
        )
    return _forward(x, fc, fc_bias, proj, proj_bias, approximate)


def _like_gradients(
    x: Tensor, fc: Tensor, proj: Tensor, wide: Tensor, grad: Tensor, approximate: str
) -> list[Tensor]:
    biases = (weight.new_empty(len(weight)) for weight in (fc, proj))
    d_x, d_fc, d_proj = (t.new_empty(t.shape) for t in (x, fc, proj))
    return [d_x, d_fc, next(biases), d_proj, next(biases)]


@operation("mlp_gradients", _like_gradients)
def _backward_in_a_graph(
    x: Tensor, fc: Tensor, proj: Tensor, wide: Tensor, grad: Tensor, approximate: str
) -> list[Tensor]:
    """What `_backward` does.

    Raises:
        TypeError: other tensors than its loops take, as hooks of saved tensors may have made them.
    """
    _check((x, fc, proj), [wide, grad])
    if wide.numel() != len(x) * len(fc) or grad.shape != (len(x), len(proj)):
        shapes = f"{tuple(wide.shape)} and {tuple(grad.shape)}"
        raise TypeError(f"an MLP's gradient needs (R, H) and (R, O), not {shapes}")
    return list(_backward(x, fc, proj, wide, grad, approximate))


def _check(matrices: tuple[Tensor, Tensor, Tensor], others: list[Tensor]) -> None:
    x, fc, proj = matrices
    if not is_plain(*matrices, *others, contiguous=False):
        raise TypeError("an MLP's loops need tensors in main memory")
    if any(t.dtype != torch.float32 for t in (*matrices, *others)):
        raise TypeError(f"an MLP's loops need float32, not {[t.dtype for t in (*matrices, *others)]}")
    if x.dim() != 2 or x.size(1) != fc.size(1) or fc.size(0) != proj.size(1):
        shapes = ", ".join(str(tuple(t.shape)) for t in matrices)
        raise TypeError(f"an MLP's loops need (R, C), (H, C) and (O, H), not {shapes}")


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, fc, fc_bias, proj, _, ctx.approximate = inputs
    ctx.save_for_backward(x, fc, fc_bias, proj, output[1])


def _gradients_in_a_graph(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, fc, fc_bias, proj, wide = ctx.saved_tensors
    if torch.is_grad_enabled():
        return _wanted(ctx, _gradients(x, fc, fc_bias, proj, grad, ctx.approximate))
    return _wanted(ctx, tuple(_backward_in_a_graph(x, fc, proj, wide, grad, ctx.approximate)))


define_gradient(_in_a_graph, _gradients_in_a_graph, setup_context=_keep)
