"""Look inside a model while it runs, without a line of it in the model.

    with record(model) as trace:
        model(idx)
    trace.attention[layer]  # (B, H, T, S)

Fused kernels never hold the attention weights, so the reference function stands in while recording.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import GPT, Block, CausalSelfAttention, reference_attention
from .shapes import Heads, Hidden, Logits, Mask, Tokens, Weights


@dataclass
class Trace:
    """What the last forward pass computed, layer by layer."""

    attention: list[Weights] = field(default_factory=list)
    """(B, H, T, S) weights of each layer"""
    residual: list[Hidden] = field(default_factory=list)
    """(B, T, C) residual stream: before the first block, then after each"""
    logits: Tensor | None = None
    """what the model's own ``forward`` returned, or the first of what it returned: (B, T, V) next-token
    logits of a ``GPT``, scores of a ``TaskModel``; ``None`` where another method was called"""

    def entropy(self) -> Tensor:
        """(n_layer, B, H, T) bits of each query's attention: 0 looks at one key, log₂ S at all alike."""
        if any(weights is None for weights in self.attention):
            raise ValueError("nothing is recorded yet: let the model compute inside the with block")
        weights = torch.stack(self.attention)  # (L, B, H, T, S)
        return -torch.special.xlogy(weights, weights).sum(-1) / math.log(2)


@torch.no_grad()
def logit_lens(model: GPT, residual: list[Hidden]) -> Logits:
    """What the model would predict if the layers after each one added nothing (nostalgebraist 2020).

    Args:
        model: whose final norm and head read the stream.
        residual: ``Trace.residual``: n_layer + 1 times (B, T, C).

    Returns:
        (n_layer + 1, B, T, V) logits; the last are the model's own.
    """
    logits: Tensor = model.lm_head(model.ln_f(torch.stack(residual)))
    return logits


@torch.no_grad()
def token_losses(logits: Logits, idx: Tokens) -> Tensor:
    """(B, T − 1) nats that each token after the first costs: −log p(idx[:, t + 1] | what is before it)."""
    return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), idx[:, 1:], reduction="none")


@contextmanager
def record(model: nn.Module) -> Iterator[Trace]:
    """Record every ``CausalSelfAttention`` and ``Block`` of ``model`` in the body of the ``with``.

    Each forward pass overwrites what the one before left. The model is put back as it was, also after an
    exception.

    Raises:
        ValueError: no attention in the model.
    """
    layers = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
    if not layers:
        raise ValueError(f"{type(model).__name__} holds no CausalSelfAttention to record")
    trace = Trace(attention=[None] * len(layers))  # type: ignore[list-item]
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(setattr, layer, "attention", layer.attention)
            layer.attention = _recorder(trace, number, layer.attention)
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        trace.residual = [None] * (len(blocks) + 1) if blocks else []  # type: ignore[list-item]
        for number, block in enumerate(blocks):
            handle = block.register_forward_hook(_keep_residual(trace, number))
            stack.callback(handle.remove)
        handle = model.register_forward_hook(_keep_logits(trace))
        stack.callback(handle.remove)
        yield trace


def _recorder(trace: Trace, number: int, replaced: Any) -> Any:
    compute = replaced if getattr(replaced, "records", False) else reference_attention

    def attention(
        q: Heads, k: Heads, v: Heads, mask: Mask | None = None, **options: Any
    ) -> tuple[Heads, Weights]:
        output, weights = compute(q, k, v, mask, **options)
        trace.attention[number] = weights.detach()
        return output, weights

    attention.records = True  # type: ignore[attr-defined]
    return attention


def _keep_residual(trace: Trace, number: int) -> Any:
    def hook(block: nn.Module, inputs: tuple, output: Hidden) -> None:
        if number == 0:
            trace.residual[0] = inputs[0].detach()
        trace.residual[number + 1] = output.detach()

    return hook


def _keep_logits(trace: Trace) -> Any:
    def hook(model: nn.Module, inputs: tuple, output: Any) -> None:
        trace.logits = output.detach() if isinstance(output, Tensor) else output[0].detach()

    return hook
