"""The training loss and what is read off it, without holding the logits of all positions at once."""

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .kernels import loss_triton, triton_use
from .kernels.loops import Loops, ready, run, usable
from .kernels.products import PANEL, mm
from .shapes import Hidden, Scalar, Tokens

IGNORE_INDEX = -100  # a target that does not count, PyTorch's convention
# A chunk of logits of about this many bytes: small enough for the cache, large enough for the matrix product.
CHUNK_BYTES = 32 * 2**20
_FEW_LOGITS, _WORTH_ROWS = 2**18, 2**17  # elements of the logits, of the embedding
# Where the head is frozen, a block of positions × ids instead, which stays in the cache.
_BLOCK_BYTES, _BLOCK_POSITIONS = 8 * 2**20, 1024
_LOOPS = Loops("kernels.training_kernels")
_WORTH_COMPILED = 2**22  # logits of a chunk; with fewer, they stay in the cache in any case


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
    with _row_gradients(model, head.weight) as tie:
        states = hidden(idx, **inputs)
    return _linear_cross_entropy(states, head.weight, targets, None, tie)


def _nothing() -> None:
    """What is not there, or not any more."""


class _Tie:
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
def _row_gradients(model: nn.Module, head: Tensor) -> Iterator[_Tie | None]:
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
        tie = _Tie()
        table.forward = lambda input: _look_up(input, head, tie)  # type: ignore[method-assign]
        try:
            yield tie
        finally:
            del table.forward
        return
    table.sparse = True
    try:
        yield None
    finally:
        table.sparse = False


def _look_up(idx: Tensor, weight: Tensor, tie: _Tie) -> Tensor:
    """``F.embedding``, whose gradient goes by the tie."""
    rows: Tensor = _Embedding.apply(idx, weight, tie)
    if rows.grad_fn is not None:
        tie.embedding = weakref.ref(rows.grad_fn)
    return rows


class _Embedding(torch.autograd.Function):
    """Adds its rows' gradients to the head's, if that has come."""

    @staticmethod
    def forward(ctx: Any, idx: Tensor, weight: Tensor, tie: _Tie) -> Tensor:
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


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, position_weights: Tensor | None = None
) -> Scalar:
    """``cross_entropy(hidden @ weight.T, targets)``, a chunk of positions at a time.

    For each chunk the forward pass computes the logits, the loss and at once the gradients with respect
    to ``hidden`` and ``weight``, then drops the logits: memory does not grow with positions × vocabulary.
    Where ``weight`` needs no gradient, in float32 on a CPU with numba, not even a chunk's logits are all
    held: as FlashAttention (Dao et al. 2022) does with keys, columns are taken a few at a time, and sums are
    scaled when a larger logit comes.

    Args:
        hidden: (..., C).
        weight: (V, C).
        targets: (...) int64 ids; ``-100`` does not count.
        position_weights: (...) what each position counts in the sum; ``None`` gives the mean.

    Raises:
        ValueError: a target outside the vocabulary, or none that counts.
    """
    return _linear_cross_entropy(hidden, weight, targets, position_weights, None)


def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, position_weights: Tensor | None, tie: _Tie | None
) -> Scalar:
    flat_targets = targets.reshape(-1).long()
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_targets(flat_targets, weight.size(0))
    by_triton = hidden.dtype != torch.float64 and triton_use.usable(hidden, weight, targets)
    if torch.is_autocast_enabled(hidden.device.type):
        # What is written to a given place is not cast: give it what the matrix product would have been given.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, tie = hidden.to(dtype), None  # the embedding's is another weight
        weight = weight if by_triton else weight.to(dtype)
    if not torch.is_grad_enabled():  # a custom function is not told, and would compute gradients for nobody
        hidden, weight = hidden.detach(), weight.detach()
    flat = hidden.reshape(-1, hidden.size(-1))
    whole = position_weights is None and hidden.dtype in (torch.float32, torch.float64)
    if whole and len(flat) * len(weight) <= _FEW_LOGITS:  # nothing to save
        return F.cross_entropy(F.linear(flat, weight), flat_targets, ignore_index=IGNORE_INDEX)
    counted = (flat_targets != IGNORE_INDEX).to(torch.promote_types(hidden.dtype, torch.float32))
    shares = counted / counted.sum() if position_weights is None else position_weights.reshape(-1) * counted
    if by_triton:
        loss: Tensor = _LossByTriton.apply(flat, weight, flat_targets, shares.float(), tie)
    else:
        loss = _LinearCrossEntropy.apply(flat, weight, flat_targets.clamp(min=0), shares, tie)
    return loss


def held_bytes(n_logits: int, trains_head: bool, like: Tensor) -> int:
    """Most bytes of ``n_logits`` logits that the loss holds at once, for states like a tensor."""
    if triton_use.usable(like):
        return min(4 * n_logits, loss_triton.CHUNK_BYTES)
    by_columns = not trains_head and _by_columns(n_logits, like)
    return min(4 * n_logits, _BLOCK_BYTES if by_columns else CHUNK_BYTES)


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    if targets.numel() and 0 <= int(targets.min()) <= int(targets.max()) < vocab_size:
        return
    counted = targets[targets != IGNORE_INDEX]
    if counted.numel() == 0:
        raise ValueError(f"no target counts: all {targets.numel()} are {IGNORE_INDEX}")
    low, high = (int(x) for x in torch.aminmax(counted))
    if low < 0 or high >= vocab_size:
        raise ValueError(f"target {low if low < 0 else high} is outside the vocabulary of {vocab_size}")


def _logit_gradients(
    hidden: Tensor, weight: Tensor, target: Tensor, out: Tensor
) -> tuple[Tensor, Tensor | float]:
    """Fill ``out`` (n, V) with ``sums · (softmax(hidden @ weight.T) − one_hot(target))``.

    Returns:
        Each row's loss ``-log p(target)`` (n, 1), and ``sums`` (n, 1), or 1.
    """
    if hidden.dtype == out.dtype:
        mm(hidden, weight.T, out)
    else:
        out.copy_(hidden @ weight.T)
    if out.numel() >= _WORTH_COMPILED and usable(out) and ready(_LOOPS.unnormalised_softmax):
        loss, sums = (torch.empty_like(target, dtype=out.dtype) for _ in range(2))
        job = (out, target, sums, loss)
        run(_LOOPS.unnormalised_softmax, 0, len(out), out.numel(), out.shape, job)
        return loss, sums
    if out.device.type == "cpu":  # one kernel that takes a row at a time through the cache
        p = torch.softmax(out, dim=1, out=out).gather(1, target)
        loss = -p.log()
        lost = (p < torch.finfo(p.dtype).tiny).squeeze(1)  # too unlikely for the format: made again
        if lost.any():
            again = (hidden[lost] @ weight.T).to(p.dtype)
            loss[lost] = again.logsumexp(dim=1, keepdim=True) - again.gather(1, target[lost])
    else:
        log_norm = out.logsumexp(dim=1, keepdim=True)
        loss = log_norm - out.gather(1, target)
        out.sub_(log_norm).exp_()
    out.scatter_add_(1, target, torch.full_like(loss, -1.0))
    return loss, 1.0


def _equal_chunks(N: int, fitting: int) -> int:
    """Positions of a chunk: a small rest is slow for its size. Large ones are whole panels (`products`)."""
    unit = PANEL if fitting >= 4 * PANEL else 1
    units, fitting = -(-N // unit), fitting // unit
    return min(N, -(-units // -(-units // fitting)) * unit)


def _by_columns(n_logits: int, *tensors: Tensor) -> bool:
    """Whether `_columns_at_a_time` takes these, and gains: few logits stay in the cache in any case."""
    return usable(*tensors) and 4 * n_logits > _BLOCK_BYTES and ready(_LOOPS.running_softmax)


def _columns_at_a_time(
    hidden: Tensor, weight: Tensor, targets: Tensor, d_hidden: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A chunk of positions, a block of ids at a time, each block's logits in the same small buffer.

    Args:
        hidden: (n, C).
        weight: (V, C).
        targets: (n, 1).
        d_hidden: (n, C), filled with ``sums · softmax(hidden @ weight.T) @ weight``; ``None``: not computed.

    Returns:
        Each row's loss (n, 1), and ``sums`` (n, 1).
    """
    n, V = len(hidden), len(weight)
    columns = min(V, max(1, _BLOCK_BYTES // (4 * n)))
    buffer = hidden.new_empty(n * columns)
    known = hidden.new_zeros(n, 3, dtype=torch.float64)  # largest logit, sum, the target's logit
    known[:, 0] = torch.finfo(hidden.dtype).min  # finite: less than any logit but one that is ruled out
    nothing = hidden.new_empty(n, 0)
    for first in range(0, V, columns):
        part = weight[first : first + columns]
        p = buffer[: n * len(part)].view(n, len(part))
        mm(hidden, part.T, p)
        gradient = nothing if d_hidden is None else d_hidden
        numbers = (n, len(part), gradient.size(1), first)
        run(_LOOPS.running_softmax, 0, n, p.numel(), numbers, (p, targets, known, gradient))
        if d_hidden is not None:
            mm(p, part, d_hidden, add=d_hidden if first else None)
    largest, sums, wanted = known.split(1, dim=1)
    return (sums.log() + (largest - wanted)).float(), sums.float()


def _with_frozen_head(
    hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, needs_hidden: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss and its gradient with respect to ``hidden``, by `_columns_at_a_time`."""
    total, N = torch.zeros((), device=hidden.device), len(hidden)
    d_hidden = torch.empty_like(hidden) if needs_hidden else None
    chunk = -(-N // -(-N // _BLOCK_POSITIONS))  # equal ones
    for start in range(0, N, chunk):
        rows = slice(start, start + chunk)
        share, d_rows = shares[rows].unsqueeze(1), None if d_hidden is None else d_hidden[rows]
        loss, sums = _columns_at_a_time(hidden[rows], weight, targets[rows].unsqueeze(1), d_rows)
        total += (loss * share).masked_fill_(share == 0, 0).sum()
        if d_rows is not None:
            d_rows.mul_(share / sums).sub_(F.embedding(targets[rows], weight) * share)
    return total, d_hidden


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, tie: _Tie | None
    ) -> Tensor:
        ctx.tie = tie
        # hidden (N, C), weight (V, C), targets (N,), shares (N,): what each position counts
        if not ctx.needs_input_grad[1] and _by_columns(len(hidden) * len(weight), hidden, weight, shares):
            total, d_hidden = _with_frozen_head(hidden, weight, targets, shares, ctx.needs_input_grad[0])
            ctx.save_for_backward(d_hidden, None)
            return total
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        N, V = hidden.size(0), weight.size(0)
        dtype, shares = shares.dtype, shares.unsqueeze(1)  # float32 or wider; (N, 1)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Summed over many chunks: in bfloat16 each sum would lose a little more.
        d_weight = torch.empty_like(weight, dtype=dtype) if needs_weight else None
        chunk = _equal_chunks(N, max(1, CHUNK_BYTES // (V * total.element_size())))
        # One buffer for all chunks: what is freed and allocated again is not always given back in between.
        buffer = torch.empty(chunk, V, dtype=dtype, device=hidden.device)
        for start in range(0, N, chunk):
            rows = slice(start, min(start + chunk, N))
            target, share = targets[rows].unsqueeze(1), shares[rows]  # (n, 1)
            p = buffer[: rows.stop - start]  # (n, V)
            loss, sums = _logit_gradients(hidden[rows], weight, target, out=p)
            total += (loss * share).masked_fill_(share == 0, 0).sum()  # where nothing counts, nothing matters
            if not (needs_hidden or needs_weight):
                continue
            share = share / sums  # d loss / d logits = share · (softmax − one_hot)
            if hidden.dtype == dtype:  # scaling what is C wide is cheaper than what is V wide
                if d_hidden is not None:
                    mm(p, weight, d_hidden[rows]).mul_(share)
                if d_weight is not None:
                    mm(p.T, hidden[rows] * share, d_weight, add=d_weight if start else None)
            else:
                d_logits = p.mul_(share).to(hidden.dtype)
                if d_hidden is not None:
                    torch.mm(d_logits, weight, out=d_hidden[rows])
                if d_weight is not None:
                    part = d_logits.T @ hidden[rows]
                    d_weight = d_weight.copy_(part) if start == 0 else d_weight.add_(part)
        ctx.save_for_backward(d_hidden, None if d_weight is None else d_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable  # the gradients are constants by now: no second derivative
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        d_hidden, d_weight = ctx.saved_tensors
        (grad,) = grads
        # A loss at the end of the graph has a gradient of 1: then nothing is copied. (Asking an accelerator
        # would stall it, and its memory is faster.)
        if not (grad.device.type == "cpu" and grad.item() == 1):
            d_hidden = None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype)
            d_weight = None if d_weight is None else d_weight * grad.to(d_weight.dtype)
        if ctx.tie is not None and d_weight is not None and ctx.tie.takes(d_weight):
            d_weight = None
        return d_hidden, d_weight, None, None, None


class _LossByTriton(_LinearCrossEntropy):
    """The same on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, tie: _Tie | None
    ) -> Tensor:
        ctx.tie = None  # on a GPU the embedding hands its rows back by itself
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        loss, *gradients = loss_triton.loss_and_gradients(hidden, weight, targets, shares, needs)
        ctx.save_for_backward(*gradients)
        return loss


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
