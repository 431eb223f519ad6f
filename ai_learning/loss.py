"""The next-token loss, computed a chunk of positions at a time, and the measures derived from it.

The logits of a batch, positions × vocabulary, are its largest tensor by far: they are never all in memory.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import frozen_head_loss, loss_triton, triton_use
from .kernels.loops import Loops, ready, run, usable
from .kernels.products import PANEL, by_pytorch, mm
from .kernels.tied_embedding import Tie, row_gradients
from .shapes import Hidden, Scalar, Tokens

IGNORE_INDEX = -100
"""a target that does not count (PyTorch's convention)"""
CHUNK_BYTES = 32 * 2**20
"""logits of one chunk: small enough for the cache, large enough for a fast matrix product"""
_FEW_LOGITS = 2**18  # up to here all logits are taken at once: chunks would save nothing
_WORTH_COMPILED = 2**22  # logits of a chunk from which the compiled softmax pays: fewer stay in the cache
_LOOPS = Loops("kernels.training_kernels")


def reference_next_token_loss(model: nn.Module, idx: Tokens, targets: Tokens) -> Scalar:
    """The definition, which `next_token_loss` computes without the logits of all positions at once."""
    logits = model(idx)  # (B, T, V)
    log_p = logits.log_softmax(dim=-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, T)
    counts = targets != IGNORE_INDEX
    return -(log_p * counts).sum() / counts.sum()


def next_token_loss(model: nn.Module, idx: Tokens, targets: Tokens, **inputs: Any) -> Scalar:
    """Mean cross-entropy of the next token, in nats: ``-log p(targets[t] | idx[: t + 1])``.

    The (B, T, V) logits are never held at once; see ``linear_cross_entropy``. (A ``RecordGPT``'s are: it
    bounds them, so they are not the head's product.)

    Args:
        model: has ``hidden(idx, **inputs)`` (B, T, C) and ``lm_head``, a linear layer without bias.
        idx: (B, T) ids.
        targets: (B, T) ids, usually ``idx`` one step on; ``-100`` does not count.
        inputs: passed on to ``hidden`` (``mask``, ``positions``).

    Raises:
        ValueError: shapes that differ, or a head with a bias.
    """
    if idx.shape != targets.shape:
        raise ValueError(
            f"idx {tuple(idx.shape)} and targets {tuple(targets.shape)} must have the same shape"
        )
    hidden: Callable[..., Hidden] = model.hidden  # type: ignore[assignment]
    head: nn.Linear = model.lm_head  # type: ignore[assignment]
    if getattr(head, "bias", None) is not None:  # leaving it out would be another model's loss
        raise ValueError("lm_head has a bias, which is not taken into account: make it without one")
    if not math.isinf(getattr(model, "softcap", math.inf)):
        flat = targets.flatten().long()
        _check_targets(flat, head.weight.size(0))
        return F.cross_entropy(model(idx, **inputs).flatten(0, 1), flat, ignore_index=IGNORE_INDEX)
    with row_gradients(model, head.weight) as tie:
        x = hidden(idx, **inputs)  # (B, T, C)
    return _linear_cross_entropy(x, head.weight, targets, None, tie)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, position_weights: Tensor | None = None
) -> Scalar:
    """``cross_entropy(hidden @ weight.T, targets)``, a chunk of positions at a time.

    For each chunk the forward pass computes the logits, the loss and at once the gradients with respect
    to ``hidden`` and ``weight``, then drops the logits: memory does not grow with positions × vocabulary.
    Where ``weight`` needs no gradient, in float32 on a CPU with numba, not even a chunk's logits are all
    held (`kernels/frozen_head_loss.py`).

    Args:
        hidden: (..., C).
        weight: (V, C).
        targets: (...) int64 ids; ``-100`` does not count.
        position_weights: (...) what each position counts in the sum, constants; ``None`` gives the mean.

    Raises:
        ValueError: shapes that differ, a target outside the vocabulary, or none that counts; weights that
            want a gradient.
        RuntimeError: in the backward pass, where a gradient of the gradient is wanted (``create_graph``).
    """
    for name, tensor in (("targets", targets), ("position_weights", position_weights)):
        if tensor is not None and tensor.shape != hidden.shape[:-1]:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} must have the shape of hidden {tuple(hidden.shape)} without C"
            )
    if position_weights is not None and position_weights.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "position_weights get no gradient: detach them, or take F.cross_entropy of all logits"
        )
    return _linear_cross_entropy(hidden, weight, targets, position_weights, None)


def perplexity(loss: float) -> float:
    """``e`` to the mean loss in nats: the number of equally likely tokens that would be as surprising."""
    return math.inf if loss >= 700 else math.exp(loss)  # NaN stays what it is


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """Total loss of a text in bits, divided by its bytes: comparable between tokenizers.

    Raises:
        ValueError: no bytes.
    """
    if n_bytes < 1:
        raise ValueError(f"bits per byte of {n_bytes} bytes: give a text")
    return total_nats / math.log(2) / n_bytes


def held_bytes(n_logits: int, trains_head: bool, like: Tensor) -> int:
    """How many bytes of logits the loss holds at once, at most.

    Args:
        n_logits: positions × vocabulary, of the whole batch.
        trains_head: whether the head's weight needs a gradient.
        like: a tensor with the device and dtype of the hidden states.
    """
    if triton_use.usable(like):
        return min(4 * n_logits, loss_triton.CHUNK_BYTES)
    by_columns = not trains_head and frozen_head_loss.by_columns(n_logits, like)
    return min(4 * n_logits, frozen_head_loss.BLOCK_BYTES if by_columns else CHUNK_BYTES)


# --- inside -------------------------------------------------------------------------------------------------


def _linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, position_weights: Tensor | None, tie: Tie | None
) -> Scalar:
    """``linear_cross_entropy``; by ``tie`` a tied head's gradient is handed to the embedding (`Tie`)."""
    flat_targets = targets.reshape(-1).long()
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_targets(flat_targets, weight.size(0))
    by_triton = hidden.dtype != torch.float64 and triton_use.usable(hidden, weight, targets)
    if torch.is_autocast_enabled(hidden.device.type):
        # Autocast does not reach products that are written into a given buffer: cast their operands here.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, tie = hidden.to(dtype), None  # the cast weight is not the embedding's, so nothing is tied
        weight = weight if by_triton else weight.to(dtype)
    if not torch.is_grad_enabled():  # an autograd.Function cannot see this: it would compute the gradients
        hidden, weight = hidden.detach(), weight.detach()
    flat = hidden.reshape(-1, hidden.size(-1))  # (..., C) → (N, C)
    whole = position_weights is None and hidden.dtype in (torch.float32, torch.float64)
    if whole and len(flat) * len(weight) <= _FEW_LOGITS:
        return F.cross_entropy(F.linear(flat, weight), flat_targets, ignore_index=IGNORE_INDEX)
    counted = (flat_targets != IGNORE_INDEX).to(torch.promote_types(hidden.dtype, torch.float32))
    shares = counted / counted.sum() if position_weights is None else position_weights.reshape(-1) * counted
    if by_triton:
        loss: Tensor = _LossByTriton.apply(flat, weight, flat_targets, shares.float(), tie)
    else:
        loss = _LinearCrossEntropy.apply(flat, weight, flat_targets.clamp(min=0), shares, tie)
    return loss


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
    hidden: Tensor, weight: Tensor, target: Tensor, out: Tensor, product: Callable[..., Tensor]
) -> tuple[Tensor, Tensor | float]:
    """Fill ``out`` (n, V) with ``sums · (softmax(hidden @ weight.T) − one_hot(target))``.

    ``sums`` are what the compiled loop leaves undivided: each row's sum of exponentials, by which softmax
    divides. The caller divides the (n, C) result instead, which is narrower.

    Args:
        hidden: (n, C).
        weight: (V, C).
        target: (n, 1) ids.
        out: (n, V) float32 or float64.
        product: `products.mm`, or PyTorch's own.

    Returns:
        Each row's loss ``-log p(target)`` (n, 1), and ``sums`` (n, 1), or 1 where the softmax is normalised.
    """
    if hidden.dtype == out.dtype:
        product(hidden, weight.T, out)
    else:
        out.copy_(hidden @ weight.T)
    if out.numel() >= _WORTH_COMPILED and usable(out) and ready(_LOOPS.unnormalised_softmax):
        loss, sums = (torch.empty_like(target, dtype=out.dtype) for _ in range(2))
        job = (out, target, sums, loss)
        run(_LOOPS.unnormalised_softmax, 0, len(out), out.numel(), out.shape, job)
        return loss, sums
    if out.device.type == "cpu":  # softmax in place: one kernel that reads each row from the cache
        p = torch.softmax(out, dim=1, out=out).gather(1, target)
        loss = -p.log()
        underflowed = (p < torch.finfo(p.dtype).tiny).squeeze(1)  # log p is lost: from the logits once more
        if underflowed.any():
            logits = (hidden[underflowed] @ weight.T).to(p.dtype)
            loss[underflowed] = logits.logsumexp(dim=1, keepdim=True) - logits.gather(1, target[underflowed])
    else:
        log_norm = out.logsumexp(dim=1, keepdim=True)
        loss = log_norm - out.gather(1, target)
        out.sub_(log_norm).exp_()
    out.scatter_add_(1, target, torch.full_like(loss, -1.0))
    return loss, 1.0


def _equal_chunks(N: int, fitting: int) -> int:
    """Positions a chunk, so that ``N`` is split into nearly equal chunks of at most ``fitting``.

    A small last chunk would take long for its size. Large chunks are whole panels (see `products`).
    """
    unit = PANEL if fitting >= 4 * PANEL else 1
    units, fitting = -(-N // unit), fitting // unit
    return min(N, -(-units // -(-units // fitting)) * unit)


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward computes loss and gradients chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, tie: Tie | None
    ) -> Tensor:
        # hidden (N, C), weight (V, C), targets (N,), shares (N,): what each position counts in the sum
        ctx.tie = tie
        compute = _LinearCrossEntropy._by_chunks
        if not ctx.needs_input_grad[1] and frozen_head_loss.by_columns(
            len(hidden) * len(weight), hidden, weight, shares
        ):
            compute = _LinearCrossEntropy._with_frozen_head
        total = compute(mm, ctx, hidden, weight, targets, shares)
        # Our own product makes NaN of infinity (see `products`), which a head may hold to rule out an id. The
        # loss is not finite then. Asking for its value would stall an accelerator.
        may_ask = total.is_cpu and not torch.compiler.is_compiling()
        if may_ask and not total.isfinite() and (weight.isinf().any() or hidden.isinf().any()):
            total = compute(by_pytorch, ctx, hidden, weight, targets, shares)
        return total

    @staticmethod
    def _with_frozen_head(
        product: Callable[..., Tensor],
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shares: Tensor,
    ) -> Tensor:
        total, d_hidden = frozen_head_loss.with_frozen_head(
            hidden, weight, targets, shares, ctx.needs_input_grad[0], product
        )
        ctx.save_for_backward(d_hidden, None)
        return total

    @staticmethod
    def _by_chunks(
        product: Callable[..., Tensor],
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shares: Tensor,
    ) -> Tensor:
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        N, V = hidden.size(0), weight.size(0)
        dtype, shares = shares.dtype, shares.unsqueeze(1)  # float32 or wider; (N, 1)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Summed over many chunks in float32 at least: in bfloat16 each addition would lose a little.
        d_weight = torch.empty_like(weight, dtype=dtype) if needs_weight else None
        chunk = _equal_chunks(N, max(1, CHUNK_BYTES // (V * total.element_size())))
        # One buffer for all chunks: a freed one is not always reused for the next.
        buffer = torch.empty(chunk, V, dtype=dtype, device=hidden.device)
        for start in range(0, N, chunk):
            rows = slice(start, min(start + chunk, N))
            target, share = targets[rows].unsqueeze(1), shares[rows]  # (n, 1)
            p = buffer[: rows.stop - start]  # (n, V)
            loss, sums = _logit_gradients(hidden[rows], weight, target, p, product)
            total += (loss * share).masked_fill_(share == 0, 0).sum()  # also an infinite loss × 0
            if not (needs_hidden or needs_weight):
                continue
            share = share / sums  # d loss / d logits = share · (softmax − one_hot)
            if hidden.dtype == dtype:  # scale tensors that are C wide, not V wide: that is cheaper
                if d_hidden is not None:
                    product(p, weight, d_hidden[rows]).mul_(share)
                if d_weight is not None:
                    product(p.T, hidden[rows] * share, d_weight, add=d_weight if start else None)
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        # The gradients are constants by now. PyTorch's `once_differentiable` would not tell: it complains
        # only where the loss's own gradient has one, and the 1 that a backward pass begins with has none.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "this loss has no second derivative (create_graph=True): take reference_next_token_loss, or "
                "F.cross_entropy of all logits"
            )
        d_hidden, d_weight = ctx.saved_tensors
        (grad,) = grads
        # A loss at the end of the graph has the gradient 1, and nothing need be scaled. (An accelerator would
        # be stalled by the question, and scales faster.)
        if not (grad.device.type == "cpu" and grad.item() == 1):
            d_hidden = None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype)
            d_weight = None if d_weight is None else d_weight * grad.to(d_weight.dtype)
        if ctx.tie is not None and d_weight is not None and ctx.tie.takes(d_weight):
            d_weight = None
        return d_hidden, d_weight, None, None, None


class _LossByTriton(_LinearCrossEntropy):
    """The same by Triton kernels on a GPU."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, shares: Tensor, tie: Tie | None
    ) -> Tensor:
        ctx.tie = None  # on a GPU the embedding returns its rows as a sparse gradient
        needs = (ctx.needs_input_grad[0], ctx.needs_input_grad[1])
        loss, *gradients = loss_triton.loss_and_gradients(hidden, weight, targets, shares, needs)
        ctx.save_for_backward(*gradients)
        return loss
