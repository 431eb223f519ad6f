"""The MLP of a small GPT in training on a CPU: both layers and GELU at once (`row_layers`).

GELU's output is never stored, but computed anew for the gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from . import row_layers
from .gelu import gelu, gelu_new
from .graphs import constant_in_graphs, is_exporting, operation
from .linear import PLAIN
from .loops import usable
from .pages import is_plain
from .row_layers import FORMS, Form, are_enough, may_fit

_FORM_OF: dict[Callable[[Tensor], Tensor], Form] = {gelu: FORMS["none"], gelu_new: FORMS["tanh"]}


def can_loop(x: Tensor, fc: nn.Module, activation: Callable[[Tensor], Tensor], proj: nn.Module) -> bool:
    """Whether `mlp` takes these and gains: float32, for all gradients, small layers, whole panels."""
    if activation not in _FORM_OF or not torch.is_grad_enabled() or is_exporting():
        return False
    if not (_is_bare(fc) and _is_bare(proj)) or not isinstance(x, Tensor):
        return False
    weights = [p for layer in (fc, proj) for p in (layer.weight, layer.bias) if p is not None]
    if (
        fc.weight.size(0) != proj.weight.size(1)
        or not may_fit(fc.weight, proj.weight)
        or not all(t.requires_grad for t in (x, *weights))
    ):
        return False
    if torch.compiler.is_compiling():  # how many rows there are, the operation asks when it is called
        plain = all(type(t) in (Tensor, nn.Parameter) and t.is_cpu for t in (x, *weights))
        return plain and all(t.dtype == torch.float32 for t in (x, *weights)) and _are_wanted()
    if x.dim() == 0 or x.size(-1) != fc.weight.size(1) or not are_enough(x.numel() // x.size(-1)):
        return False
    return usable(x, *weights) and _are_wanted()


def mlp(x: Tensor, fc: nn.Module, activation: Callable[[Tensor], Tensor], proj: nn.Module) -> Tensor:
    """``proj(activation(fc(x)))``.

    Args:
        x: (..., C).
        fc: a linear layer C → H.
        activation: ``gelu`` or ``gelu_new``.
        proj: a linear layer H → O; `can_loop` says whether all these will do.

    Returns:
        (..., O).
    """
    form = _FORM_OF[activation]
    given: tuple[Any, ...] = (fc.weight, fc.bias, proj.weight, proj.bias)
    if torch.compiler.is_compiling():
        rows = _in_a_graph(x.reshape(-1, x.size(-1)), *given, form.approximate)[0]
        return rows.view(*x.shape[:-1], rows.size(-1))
    y: Tensor = _MLP.apply(x, *given, form)
    return y


def _is_bare(layer: nn.Module) -> bool:
    """Whether calling a layer would do ``x Wᵀ + b`` and no more: there are no hooks that would miss it."""
    if type(layer) not in PLAIN or "forward" in layer.__dict__:
        return False
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and not torch_module._has_any_global_hook()


@constant_in_graphs
def _are_wanted() -> bool:
    wishes = torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active()
    return not wishes and row_layers.has_loops()


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
        form: Form,
    ) -> Tensor:
        y, wide = row_layers.mlp(form, x, fc, fc_bias, proj, proj_bias)
        ctx.save_for_backward(x, fc, fc_bias, proj, proj_bias, wide)
        ctx.form = form
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *layers, wide = ctx.saved_tensors
        given = [t for t in (x, *layers, wide) if t is not None]
        # A gradient of the gradient, or a batch of them; and hooks may have kept other tensors than these.
        if torch.is_grad_enabled() or not usable(grad, contiguous=False) or not usable(*given):
            return *_gradients(ctx.form.approximate, x, *layers, grad), None
        return *row_layers.mlp_backward(ctx.form, x, *layers, wide, grad.contiguous()), None


def _gradients(
    approximate: str,
    x: Tensor,
    fc: Tensor,
    fc_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """The same by PyTorch's operations, which can be differentiated again."""
    wide = F.linear(x, fc, fc_bias)
    d_wide = torch.ops.aten.gelu_backward(grad @ proj, wide, approximate=approximate)
    d_rows, rows = d_wide.flatten(0, -2), x.flatten(0, -2)
    grads, narrow = grad.flatten(0, -2), F.gelu(wide, approximate=approximate).flatten(0, -2)
    d_fc_bias = None if fc_bias is None else d_rows.sum(0)
    d_proj_bias = None if proj_bias is None else grads.sum(0)
    return d_wide @ fc, d_rows.t() @ rows, d_fc_bias, grads.t() @ narrow, d_proj_bias


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
    """What `row_layers.mlp` does, of (R, C); by PyTorch's operations where that is not to be."""
    given = [t for t in (x, fc, fc_bias, proj, proj_bias) if t is not None]
    if are_enough(len(x)) and is_plain(*given):
        return row_layers.mlp(FORMS[approximate], x, fc, fc_bias, proj, proj_bias)
    wide = F.linear(x, fc, fc_bias)
    return F.linear(F.gelu(wide, approximate=approximate), proj, proj_bias), wide


def _like_gradients(
    x: Tensor,
    fc: Tensor,
    fc_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    wide: Tensor,
    grad: Tensor,
    approximate: str,
) -> list[Tensor]:
    return [torch.empty_like(t) for t in (x, fc, fc_bias, proj, proj_bias) if t is not None]


@operation("mlp_backward", _like_gradients)
def _backward_in_a_graph(
    x: Tensor,
    fc: Tensor,
    fc_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    wide: Tensor,
    grad: Tensor,
    approximate: str,
) -> list[Tensor]:
    """What `row_layers.mlp_backward` does, without what is not there."""
    layers = (fc, fc_bias, proj, proj_bias)
    given = [t for t in (x, *layers, wide) if t is not None]
    if are_enough(len(x)) and is_plain(*given) and is_plain(grad, contiguous=False):
        found = row_layers.mlp_backward(FORMS[approximate], x, *layers, wide, grad.contiguous())
    else:
        found = list(_gradients(approximate, x, *layers, grad))
    return [t for t in found if t is not None]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.approximate = inputs
    ctx.save_for_backward(*tensors, output[1])


def _gradients_in_a_graph(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, *layers, wide = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *_gradients(ctx.approximate, x, *layers, grad), None
    found = iter(_backward_in_a_graph(x, *layers, wide, grad, ctx.approximate))
    return *(None if t is None else next(found) for t in (x, *layers)), None


torch.library.register_autograd("ai_learning::mlp", _gradients_in_a_graph, setup_context=_keep)
