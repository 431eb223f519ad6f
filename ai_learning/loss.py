"""The training loss and what is read off it, without holding the logits of all positions at once."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .shapes import Hidden, Scalar, Tokens

IGNORE_INDEX = -100  # a target that does not count, PyTorch's convention
# A chunk of logits of about this many bytes: small enough for the cache, large enough for the matrix product.
CHUNK_BYTES = 32 * 2**20
_CACHE_BYTES = 2**20  # fits the cache of one core


def next_token_loss(model: nn.Module, idx: Tokens, targets: Tokens, **inputs: Any) -> Scalar:
    """Mean cross-entropy of the next token, in nats: ``-log p(targets[t] | idx[: t + 1])``.

    The (B, T, V) logits are never held at once; see ``linear_cross_entropy``.

    Args:
        model: has ``hidden(idx, **inputs)`` (B, T, C) and ``lm_head``, a linear layer without bias.
        idx: (B, T) ids.
        targets: (B, T) ids, usually ``idx`` one step on; ``-100`` does not count.
        inputs: passed on to ``hidden`` (``mask``, ``positions``).

    Raises:
        ValueError: shapes that differ.
    """
    if idx.shape != targets.shape:
        raise ValueError(
            f"idx {tuple(idx.shape)} and targets {tuple(targets.shape)} must have the same shape"
        )
    hidden: Callable[..., Hidden] = model.hidden  # type: ignore[assignment]
    head: nn.Linear = model.lm_head  # type: ignore[assignment]
    with _row_gradients(model, head.weight):
        states = hidden(idx, **inputs)
    return linear_cross_entropy(states, head.weight, targets)


@contextmanager
def _row_gradients(model: nn.Module, head: Tensor) -> Iterator[None]:
    """Let a tied embedding hand back only the rows it read: they are added to the head's gradient in place.

    Otherwise the embedding makes a second (V, C) gradient, nearly all zeros, for autograd to add.
    """
    table = getattr(model, "wte", None)
    if type(table) is not nn.Embedding or table.weight is not head or table.sparse:
        yield
        return
    table.sparse = True
    try:
        yield
    finally:
        table.sparse = False


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, position_weights: Tensor | None = None
) -> Scalar:
    """``cross_entropy(hidden @ weight.T, targets)``, a chunk of positions at a time.

    For each chunk the forward pass computes the logits, the loss and at once the gradients with respect
    to ``hidden`` and ``weight``, then drops the logits: memory does not grow with positions × vocabulary.

    Args:
        hidden: (..., C).
        weight: (V, C).
        targets: (...) int64 ids; ``-100`` does not count.
        position_weights: (...) what each position counts in the sum; ``None`` gives the mean.

    Raises:
        ValueError: a target outside the vocabulary, or none that counts.
    """
    flat_targets = targets.reshape(-1)
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_targets(flat_targets, weight.size(0))
    if torch.is_autocast_enabled(hidden.device.type):
        # A custom function runs outside autocast: give it what the matrix product would have been given.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    if not torch.is_grad_enabled():  # a custom function is not told, and would compute gradients for nobody
        hidden, weight = hidden.detach(), weight.detach()
    flat = hidden.reshape(-1, hidden.size(-1))
    counted = (flat_targets != IGNORE_INDEX).to(torch.promote_types(hidden.dtype, torch.float32))
    shares = counted / counted.sum() if position_weights is None else position_weights.reshape(-1) * counted
    loss: Tensor = _LinearCrossEntropy.apply(flat, weight, flat_targets.clamp(min=0), shares)
    return loss


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    counted = targets[targets != IGNORE_INDEX]
    if counted.numel() == 0:
        raise ValueError(f"no target counts: all {targets.numel()} are {IGNORE_INDEX}")
    low, high = (int(x) for x in torch.aminmax(counted))
    if low < 0 or high >= vocab_size:
        raise ValueError(f"target {low if low < 0 else high} is outside the vocabulary of {vocab_size}")


def _exp_in_place(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace (n, V) logits by ``exp(logits − highest)``; each row's ``highest`` and its sum, (n, 1).

    On a CPU a few rows at a time, while they are in the cache.
    """
    n, V = logits.shape
    few = max(1, _CACHE_BYTES // (V * logits.element_size())) if logits.device.type == "cpu" else n
    highest, norm = logits.new_empty(n, 1), logits.new_empty(n, 1)
    for piece, top, total in zip(logits.split(few), highest.split(few), norm.split(few), strict=True):
        torch.amax(piece, dim=1, keepdim=True, out=top)
        torch.sum(piece.sub_(top).exp_(), dim=1, keepdim=True, out=total)
    return highest, norm


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
        # hidden (N, C), weight (V, C), targets (N,), shares (N,): what each position counts
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        N, V = hidden.size(0), weight.size(0)
        dtype, shares = shares.dtype, shares.unsqueeze(1)  # float32 or wider; (N, 1)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Summed over many chunks: in bfloat16 each sum would lose a little more.
        d_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        chunk = min(N, max(1, CHUNK_BYTES // (V * total.element_size())))
        # One buffer for all chunks: what is freed and allocated again is not always given back in between.
        buffer = torch.empty(chunk, V, dtype=dtype, device=hidden.device)
        for start in range(0, N, chunk):
            rows = slice(start, min(start + chunk, N))
            p = buffer[: rows.stop - start]  # (n, V): logits, then unnormalised probabilities, then gradient
            if hidden.dtype == dtype:
                torch.mm(hidden[rows], weight.T, out=p)
            else:
                p.copy_(hidden[rows] @ weight.T)
            target, share = targets[rows].unsqueeze(1), shares[rows]  # (n, 1)
            chosen = p.gather(1, target)
            highest, norm = _exp_in_place(p)
            total += ((norm.log() + highest - chosen) * share).sum()
            if not (needs_hidden or needs_weight):
                continue
            # d loss / d logits = share · (softmax − one_hot) = scale · (p − norm · one_hot)
            p.scatter_add_(1, target, -norm)
            scale = share / norm
            if hidden.dtype == dtype:  # scaling what is C wide is cheaper than what is V wide
                if d_hidden is not None:
                    torch.mm(p, weight, out=d_hidden[rows]).mul_(scale)
                if d_weight is not None:
                    d_weight.addmm_(p.T, hidden[rows] * scale)
            else:
                d_logits = p.mul_(scale).to(hidden.dtype)
                if d_hidden is not None:
                    torch.mm(d_logits, weight, out=d_hidden[rows])
                if d_weight is not None:
                    d_weight += d_logits.T @ hidden[rows]
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable  # the gradients are constants by now: no second derivative
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        (grad,) = grads
        # A loss at the end of the graph has a gradient of 1: then nothing is copied. (Asking an accelerator
        # would stall it, and its memory is faster.)
        if grad.device.type == "cpu" and grad.item() == 1:
            return d_hidden, d_weight, None, None
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else d_weight * grad.to(d_weight.dtype),
            None,
            None,
        )


def perplexity(loss: float) -> float:
    """``e`` to the mean loss in nats: the number of equally likely tokens that would be as surprising."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """Total loss of a text in bits, divided by its bytes: comparable between tokenizers.

    Raises:
        ValueError: no bytes.
    """
    if n_bytes < 1:
        raise ValueError(f"bits per byte of {n_bytes} bytes: give a text")
    return total_nats / math.log(2) / n_bytes
