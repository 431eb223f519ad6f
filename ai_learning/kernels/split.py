"""Cutting a tensor in pieces whose gradients, where they lie side by side, are not copied together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .loops import usable


def split(x: Tensor, sizes: Sequence[int], dim: int = -1) -> tuple[Tensor, ...]:
    """``x.split(sizes, dim)``: views.

    Its gradient is a new tensor that all pieces' are copied to. An operation that knows of all pieces, as
    attention does of q, k and v, may have written them to one tensor like x: then it is that, and who keeps
    a piece's gradient keeps a view of it.

    Example:
        >>> [tuple(piece.shape) for piece in split(torch.zeros(4, 5), [2, 3])]
        [(4, 2), (4, 3)]
    """
    if x.requires_grad and torch.is_grad_enabled() and usable(x):
        pieces: tuple[Tensor, ...] = _Split.apply(x, list(sizes), dim)
        return pieces
    return torch.split_with_sizes(x, list(sizes), dim)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, ...]:
        ctx.dim = dim % x.dim()
        return torch.split_with_sizes(x, sizes, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        whole = None if torch.is_grad_enabled() else _whole(grads, ctx.dim)
        return torch.cat(grads, dim=ctx.dim) if whole is None else whole, None, None


def _whole(pieces: Sequence[Tensor], dim: int) -> Tensor | None:
    """What they are pieces of along ``dim``, all of it and in order; ``None`` if that is not so."""
    first = pieces[0]
    if not usable(*pieces, contiguous=False):
        return None
    shape = [*first.shape]
    shape[dim] = sum(piece.size(dim) for piece in pieces)
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    place, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for piece in pieces:
        lies_there = piece.untyped_storage().data_ptr() == storage and piece.storage_offset() == place
        like_first = (
            piece.shape[:dim] == first.shape[:dim] and piece.shape[dim + 1 :] == first.shape[dim + 1 :]
        )
        if not lies_there or not like_first or list(piece.stride()) != strides:
            return None
        place += piece.size(dim) * strides[dim]
    return first.as_strided(shape, strides)
