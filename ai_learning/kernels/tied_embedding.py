"""An embedding that is the output head as well: one (V, C) gradient for both, made in place.

Autograd would make two, nearly all zeros the embedding's, and add them to a third.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loops import usable

_WORTH_ROWS = 2**17  # elements of the embedding


def _nothing() -> None:
    """What is not there, or not any more."""


class Tie:
    """Between a head's gradient and the embedding that shares its weight, in one backward pass."""

    gradient: Tensor | None = None
    """(V, C) of the head, on its way to the embedding"""
    embedding: Callable[[], Any]
    """gives the autograd node, or ``None``; weakly, for the node knows the tie"""

    def __init__(self) -> None:
        self.embedding = _nothing

    def takes(self, gradient: Tensor) -> bool:
        """Whether the embedding, later in this backward pass, will hand the head's gradient on."""
        node = self.embedding()
        if node is None or torch.is_grad_enabled() or not torch._C._will_engine_execute_node(node):
            return False
        # Who keeps the graph may ask again for what is saved.
        keeps = torch._C._autograd._get_current_graph_task_keep_graph()
        self.gradient = gradient.clone() if keeps else gradient
        return True


@contextmanager
def row_gradients(model: nn.Module, head: Tensor) -> Iterator[Tie | None]:
    """Let a tied embedding hand back only the rows it read, added to the head's gradient in place.

    Otherwise the embedding makes a second (V, C) gradient, nearly all zeros, for autograd to add. Rows alone
    (``sparse``), which is what a graph and an accelerator get, autograd adds to a copy of the head's.
    """
    table = getattr(model, "wte", None)
    if (
        type(table) is not nn.Embedding
        or table.weight is not head
        or table.sparse
        or head.numel() < _WORTH_ROWS
    ):
        yield None
        return
    is_plain_table = (table.padding_idx, table.max_norm, table.scale_grad_by_freq) == (None, None, False)
    if is_plain_table and head.requires_grad and "forward" not in table.__dict__ and usable(head):
        tie = Tie()
        table.forward = lambda input: _look_up(input, head, tie)  # type: ignore[method-assign]
        try:
            yield tie
        finally:
            table.__dict__.pop("forward", None)  # another thread's loss of this model may have taken it
        return
    table.sparse = True
    try:
        yield None
    finally:
        table.sparse = False


def _look_up(idx: Tensor, weight: Tensor, tie: Tie) -> Tensor:
    """``F.embedding``, whose gradient goes by the tie."""
    rows: Tensor = _Embedding.apply(idx, weight, tie)
    if rows.grad_fn is not None:
        tie.embedding = weakref.ref(rows.grad_fn)
    return rows


class _Embedding(torch.autograd.Function):
    """Adds its rows' gradients to the head's, if that has come."""

    @staticmethod
    def forward(ctx: Any, idx: Tensor, weight: Tensor, tie: Tie) -> Tensor:
        ctx.save_for_backward(idx)
        ctx.shape, ctx.tie = weight.shape, tie
        return F.embedding(idx, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        (idx,) = ctx.saved_tensors
        gradient, ctx.tie.gradient = ctx.tie.gradient, None
        ctx.tie.embedding = _nothing  # it has run: what the head still sends would be lost
        if gradient is None:  # the head's goes its own way
            sparse = not torch.is_grad_enabled()
            return None, torch.ops.aten.embedding_backward(grad, idx, ctx.shape[0], -1, False, sparse), None
        return None, gradient.index_add_(0, idx.reshape(-1).long(), grad.reshape(-1, grad.size(-1))), None
