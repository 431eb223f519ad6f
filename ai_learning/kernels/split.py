"""Cutting a tensor in pieces whose gradients, where they lie side by side, are not copied together."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .loops import usable


def split(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """``x.split(widths, dim=-1)``: views.

    Its gradient is a new tensor that all pieces' are copied to. An operation that knows of all pieces, as
    attention does of q, k and v, may have written them to one tensor (..., sum of widths): then it is that,
    and who keeps a piece's gradient keeps a view of it.

    Example:
        >>> [tuple(piece.shape) for piece in split(torch.zeros(4, 5), [2, 3])]
        [(4, 2), (4, 3)]
    """
    if x.requires_grad and torch.is_grad_enabled() and usable(x):
        pieces: tuple[Tensor, ...] = _Split.apply(x, tuple(widths))
        return pieces
    return x.split(list(widths), dim=-1)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, ...]:
        return x.split(list(widths), dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        whole = None if torch.is_grad_enabled() else _whole(grads)
        return torch.cat(grads, dim=-1) if whole is None else whole, None


def _whole(pieces: Sequence[Tensor]) -> Tensor | None:
    """What they are pieces of, all of it and in order; ``None`` if that is not so."""
    first = pieces[0]
    if not usable(*pieces, contiguous=False):
        return None
    shape = (*first.shape[:-1], sum(piece.size(-1) for piece in pieces))
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    place, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for piece in pieces:
        lies_there = piece.untyped_storage().data_ptr() == storage and piece.storage_offset() == place
        if not lies_there or list(piece.stride()) != strides or piece.shape[:-1] != first.shape[:-1]:
            return None
        place += piece.size(-1)
    return first.as_strided(shape, strides)
