"""The MLP of a small GPT on a CPU's tile registers: both layers and GELU at once, some rows at a time.

Layer by layer, what lies between them comes back from a cache that is far away, and small matrices take as
long to fetch as to multiply. Here each thread keeps both layers' weights, cut for the tiles, in its core's
second cache, and takes 32 rows through all that is to be done with them (`mlp_kernels`). GELU's output is
never stored, but computed anew for the gradients.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .gelu import gelu, gelu_new
from .graphs import constant_in_graphs, is_exporting
from .linear import PLAIN
from .loops import Loops, StoredLoop, ready, run, usable
from .pages import is_plain
from .products import PANEL, STEP_BYTES, has_tiles, scratch

# What the loops are told, in this order; sizes in panels of 32, addresses, 0 for what is not there.
(
    PARTS,  # of the rows, one a thread
    ROWS,  # R
    IN,  # C
    HIDDEN,  # H
    OUT,  # O
    SCRATCH,
    SCRATCH_BYTES,  # of each part
    SUMS,  # the parts' sums of gradients: of both weights, then of both biases
    SUMS_BYTES,  # of each part
    X,  # (R, C)
    FC,  # (H, C)
    FC_BIAS,  # (H,)
    PROJ,  # (O, H)
    PROJ_BIAS,  # (O,)
    WIDE,  # (R, H), what GELU is given
    Y,  # (R, O); in the backward pass its gradient
    GRAD_X,
    GRAD_FC,
    GRAD_FC_BIAS,
    GRAD_PROJ,
    GRAD_PROJ_BIAS,
) = range(21)

_MOST_WEIGHTS = 2**17
"""of both layers: cut, and with the sums of their gradients, they fill two thirds of a second cache of 2 MB"""
_ROWS_OF_A_THREAD = 4 * PANEL
"""fewer would not pay for cutting the weights"""
_SHARES = 8  # in which the parts' sums are added up
_LOOPS = Loops("mlp_kernels")


class _Form(NamedTuple):
    """Of GELU."""

    approximate: str
    forward: StoredLoop
    backward: StoredLoop


_FORMS: dict[Callable[[Tensor], Tensor], _Form] = {
    gelu: _Form("none", _LOOPS.mlp, _LOOPS.mlp_backward),
    gelu_new: _Form("tanh", _LOOPS.mlp_new, _LOOPS.mlp_new_backward),
}
_BY_NAME = {form.approximate: form for form in _FORMS.values()}


def can_loop(x: Tensor, fc: nn.Module, activation: Callable[[Tensor], Tensor], proj: nn.Module) -> bool:
    """Whether `mlp` takes these and gains: float32, for all gradients, small layers, whole panels."""
    if activation not in _FORMS or not torch.is_grad_enabled() or is_exporting():
        return False
    if not (_is_bare(fc) and _is_bare(proj)) or not isinstance(x, Tensor):
        return False
    weights = [p for layer in (fc, proj) for p in (layer.weight, layer.bias) if p is not None]
    if not _may_fit(fc.weight, proj.weight) or not all(t.requires_grad for t in (x, *weights)):
        return False
    if torch.compiler.is_compiling():  # how many rows there are, the operation asks when it is called
        plain = all(type(t) in (Tensor, nn.Parameter) and t.is_cpu for t in (x, *weights))
        return plain and all(t.dtype == torch.float32 for t in (x, *weights)) and _are_wanted()
    if x.dim() == 0 or x.size(-1) != fc.weight.size(1) or not _are_enough(x.numel() // x.size(-1)):
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
    form = _FORMS[activation]
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


def _may_fit(fc: Tensor, proj: Tensor) -> bool:
    """Whether the weights are whole panels, belong together, and leave room in the cache."""
    if fc.dim() != 2 or proj.dim() != 2 or fc.numel() + proj.numel() > _MOST_WEIGHTS:
        return False
    (H, C), (O, H_) = fc.shape, proj.shape
    return H == H_ and not (C % PANEL or H % PANEL or O % PANEL) and min(C, H, O) > 0


def _are_enough(rows: int) -> bool:
    return rows % PANEL == 0 and rows >= _ROWS_OF_A_THREAD * torch.get_num_threads()


@constant_in_graphs
def _are_wanted() -> bool:
    wishes = torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active()
    return not wishes and has_loops()


def has_loops() -> bool:
    """Whether this machine can run them; the first call loads them, or has them compiled (some seconds)."""
    loops = [loop for form in _FORMS.values() for loop in (form.forward, form.backward)]
    return has_tiles() and ready(*loops, _LOOPS.add_gradients)


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
        form: _Form,
    ) -> Tensor:
        y, wide = _forward(form, x, fc, fc_bias, proj, proj_bias)
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
        return *_backward(ctx.form, x, *layers, wide, grad.contiguous()), None


def _sizes(x: Tensor, fc: Tensor, proj: Tensor) -> tuple[int, ...]:
    """From PARTS to OUT."""
    rows = x.numel() // x.size(-1) // PANEL
    widths = (fc.size(1), fc.size(0), proj.size(0))
    return min(torch.get_num_threads(), rows), rows, *(width // PANEL for width in widths)


def _forward(
    form: _Form, x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output (..., O), and what GELU was given (..., H)."""
    sizes = parts, _, C, H, O = _sizes(x, fc, proj)
    wide, y = (x.new_empty(*x.shape[:-1], layer.size(0)) for layer in (fc, proj))
    n_bytes = (H * C + O * H + C + H) * STEP_BYTES
    numbers = (*sizes, scratch(parts * n_bytes), n_bytes, 0, 0)
    tensors = (x, fc, fc_bias, proj, proj_bias, wide, y)
    run(form.forward, 0, parts, wide.numel() * x.size(-1), (*numbers, *_addresses(tensors)), ())
    return y, wide


def _backward(
    form: _Form,
    x: Tensor,
    fc: Tensor,
    fc_bias: Tensor | None,
    proj: Tensor,
    proj_bias: Tensor | None,
    wide: Tensor,
    grad: Tensor,
) -> list[Tensor | None]:
    """Gradients of x and of both layers' weights and biases, from the output's."""
    sizes = parts, _, C, H, O = _sizes(x, fc, proj)
    layers = (fc, fc_bias, proj, proj_bias)
    grads = [None if t is None else torch.empty_like(t) for t in (x, *layers)]
    n_bytes = (H * C + O * H + 2 * O + C + H + 2) * STEP_BYTES
    sums_bytes = 4 * (fc.numel() + proj.numel() + fc.size(0) + proj.size(0))
    space = scratch(parts * (n_bytes + sums_bytes))
    numbers = (*sizes, space, n_bytes, space + parts * n_bytes, sums_bytes)
    numbers = (*numbers, *_addresses((x, *layers, wide, grad, *grads)))
    run(form.backward, 0, parts, wide.numel() * x.size(-1), numbers, ())
    numbers = (parts, _SHARES, *numbers[2:])
    run(_LOOPS.add_gradients, 0, _SHARES, sums_bytes * parts, numbers, ())
    return grads


def _addresses(tensors: tuple[Tensor | None, ...]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


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


@torch.library.custom_op("ai_learning::mlp", mutates_args=(), device_types="cpu")
def _in_a_graph(
    x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    """What `_forward` does, of (R, C); by PyTorch's operations where that is not to be."""
    given = [t for t in (x, fc, fc_bias, proj, proj_bias) if t is not None]
    if _are_enough(len(x)) and is_plain(*given):
        return _forward(_BY_NAME[approximate], x, fc, fc_bias, proj, proj_bias)
    wide = F.linear(x, fc, fc_bias)
    return F.linear(F.gelu(wide, approximate=approximate), proj, proj_bias), wide


@torch.library.custom_op("ai_learning::mlp_backward", mutates_args=(), device_types="cpu")
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
    """What `_backward` does, without what is not there."""
    layers = (fc, fc_bias, proj, proj_bias)
    given = [t for t in (x, *layers, wide) if t is not None]
    if _are_enough(len(x)) and is_plain(*given) and is_plain(grad, contiguous=False):
        found = _backward(_BY_NAME[approximate], x, *layers, wide, grad.contiguous())
    else:
        found = list(_gradients(approximate, x, *layers, grad))
    return [t for t in found if t is not None]


@_in_a_graph.register_fake
def _(
    x: Tensor, fc: Tensor, fc_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, approximate: str
) -> tuple[Tensor, Tensor]:
    wide = F.linear(x, fc, fc_bias)  # checks shapes as PyTorch does
    return F.linear(wide, proj, proj_bias), wide


@_backward_in_a_graph.register_fake
def _(
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.approximate = inputs
    ctx.save_for_backward(*tensors, output[1])


def _gradients_in_a_graph(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, *layers, wide = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *_gradients(ctx.approximate, x, *layers, grad), None
    found = iter(_backward_in_a_graph(x, *layers, wide, grad, ctx.approximate))
    return *(None if t is None else next(found) for t in (x, *layers)), None


_in_a_graph.register_autograd(_gradients_in_a_graph, setup_context=_keep)
