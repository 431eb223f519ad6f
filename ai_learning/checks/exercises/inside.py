"""Day 7: reading a model from the inside."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...trace import record
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- day7.logit_lens ----------------------------------------------------------------------------------------


def _lens(stream: Tensor, weight: Tensor, bias: Tensor, head: Tensor) -> Tensor:
    return F.layer_norm(stream, (stream.size(-1),), weight, bias) @ head.T


def _lens_cases() -> list[tuple[Any, ...]]:
    return [
        (_randn(i, L, T, C) * 3 + 1, _randn(i + 10, C), _randn(i + 20, C), _randn(i + 30, V, C))
        for i, (L, T, C, V) in enumerate([(3, 2, 4, 6), (1, 1, 5, 5), (2, 7, 3, 3)])
    ]


def _lens_layers_apart(fn: Any) -> None:
    stream, *rest = _lens_cases()[0]
    other = stream.clone()
    other[0] *= -5
    if not torch.allclose(fn(stream, *rest)[1:], fn(other, *rest)[1:]):
        raise Wrong(
            "layers mixed: each layer's stream is read on its own",
            "changing layer 0 changed what layer 1 says",
        )


LOGIT_LENS = Exercise(
    name="day7.logit_lens",
    title="what would the model say if it stopped here?",
    stub='''
def logit_lens(stream, weight, bias, head):
    """Read each layer's residual stream as if it were the last (nostalgebraist 2020).

    stream is (n_layer + 1, T, C); weight and bias (C,) are the final layer norm's (eps 1e-5); head is (V, C).
    Returns (n_layer + 1, T, V) logits.
    """
    raise NotImplementedError
''',
    solution=record,
    reference=_lens,
    steps=(
        same_form(_lens, _lens_cases, "(n_layer + 1, T, V) logits"),
        leaves_inputs(_lens_cases),
        Step("reads each layer on its own", _lens_layers_apart),
        equals(_lens, _lens_cases),
    ),
    hints=(
        "What does the model do with the stream after its last block?",
        "The final layer norm first, then the head: both are the model's own.",
        "F.layer_norm(stream, (C,), weight, bias) @ head.T",
    ),
    cases=_lens_cases,
    mutants=(
        Mutant(
            "no final norm",
            "the stream grows from layer to layer: normalise before the head",
            lambda s, w, b, h: s @ h.T,
        ),
        Mutant(
            "norm without gain and shift",
            "use the final norm's own weight and bias",
            lambda s, w, b, h: F.layer_norm(s, (s.size(-1),)) @ h.T,
        ),
        Mutant(
            "no shift",
            "the norm's bias belongs to it",
            lambda s, w, b, h: F.layer_norm(s, (s.size(-1),), w) @ h.T,
        ),
        Mutant(
            "no gain",
            "the norm's weight belongs to it",
            lambda s, w, b, h: F.layer_norm(s, (s.size(-1),), None, b) @ h.T,
        ),
        Mutant(
            "layers added up", "the stream is the sum already", lambda s, w, b, h: _lens(s.cumsum(0), w, b, h)
        ),
        Mutant(
            "differences read",
            "that is what each layer adds, another question",
            lambda s, w, b, h: _lens(torch.cat([s[:1], s.diff(dim=0)]), w, b, h),
        ),
        Mutant("probabilities", "return logits", lambda s, w, b, h: _lens(s, w, b, h).softmax(-1)),
        Mutant(
            "RMS norm",
            "the final norm takes the mean away first",
            lambda s, w, b, h: (s * (s.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w + b) @ h.T,
        ),
        Mutant(
            "last layer only",
            "one reading for every layer",
            lambda s, w, b, h: _lens(s[-1:].expand_as(s), w, b, h),
        ),
    ),
    alternatives=(
        lambda s, w, b, h: torch.stack([_lens(layer, w, b, h) for layer in s]),
        lambda s, w, b, h: torch.einsum(
            "ltc,vc->ltv",
            (s - s.mean(-1, keepdim=True)) / (s.var(-1, keepdim=True, correction=0) + 1e-5).sqrt() * w + b,
            h,
        ),
    ),
)

# --- day7.attention_entropy ---------------------------------------------------------------------------------


def _entropy(weights: Tensor) -> Tensor:
    return -torch.special.xlogy(weights, weights).sum(-1).mean((0, 2)) / math.log(2)


def _entropy_cases() -> list[tuple[Any, ...]]:
    hidden = torch.ones(5, 5).tril() == 0
    causal = _randn(1, 2, 3, 5, 5).masked_fill(hidden, -math.inf).softmax(-1)
    return [
        (causal,),
        (_randn(2, 1, 2, 3, 4).softmax(-1),),
        (torch.eye(4, dtype=torch.float64).expand(2, 1, 4, 4).clone(),),
    ]


def _entropy_known(fn: Any) -> None:
    sharp = fn(torch.eye(4, dtype=torch.float64).view(1, 1, 4, 4))
    if not torch.isfinite(sharp).all():
        raise Wrong(
            "NaN: 0 · log 0 counts as 0 (torch.xlogy, or clamp inside the log)",
            f"one-hot weights give {sharp.tolist()}",
        )
    flat = fn(torch.full((1, 2, 3, 8), 1 / 8, dtype=torch.float64))
    if not torch.allclose(flat, torch.full_like(flat, 3.0)):
        raise Wrong("wrong unit or axis: equal weights on 8 keys are 3 bits", f"got {flat.tolist()}")


def _entropy_with(rule: Any) -> Any:
    return lambda w: rule(-torch.special.xlogy(w, w) / math.log(2), w)


ENTROPY = Exercise(
    name="day7.attention_entropy",
    title="which heads look at one place, and which everywhere",
    stub='''
def attention_entropy(weights):
    """(B, H, T, S) weights → (H,): each head's entropy in bits, mean over batch and queries.

    −Σ p·log₂ p over the keys; a weight of 0 adds 0.
    """
    raise NotImplementedError
''',
    solution=record,
    reference=_entropy,
    steps=(
        same_form(_entropy, _entropy_cases, "(H,)"),
        leaves_inputs(_entropy_cases),
        Step("is 3 bits for eight equal keys, 0 for one", _entropy_known),
        equals(_entropy, _entropy_cases),
    ),
    hints=(
        "Sum over keys, mean over queries and batch: which dims are these?",
        "torch.xlogy(w, w) is w·log w with 0 at 0, in nats; divide by ln 2.",
        "-(torch.xlogy(w, w)).sum(-1).mean((0, 2)) / math.log(2)",
    ),
    cases=_entropy_cases,
    mutants=(
        Mutant(
            "nats", "bits: divide by ln 2", _entropy_with(lambda e, w: e.sum(-1).mean((0, 2)) * math.log(2))
        ),
        Mutant("sign", "entropy is never negative", _entropy_with(lambda e, w: -e.sum(-1).mean((0, 2)))),
        Mutant("NaN", "0 · log 0 counts as 0", lambda w: -(w * w.log2()).sum(-1).mean((0, 2))),
        Mutant("mean over keys", "a sum over the keys", _entropy_with(lambda e, w: e.mean((0, 2, 3)))),
        Mutant(
            "sum over queries",
            "the mean over queries and batch",
            _entropy_with(lambda e, w: e.sum((0, 2, 3))),
        ),
        Mutant(
            "heads averaged",
            "one number a head",
            _entropy_with(
                lambda e, w: (
                    e.sum(-1).mean((1, 2)) if w.size(0) == w.size(1) else e.sum(-1).mean().expand(w.size(1))
                )
            ),
        ),
        Mutant(
            "over queries",
            "the distribution runs over the keys, the last axis",
            _entropy_with(lambda e, w: e.sum(-2).mean((0, 2))),
        ),
        Mutant("largest weight", "that is another measure of sharpness", lambda w: w.amax(-1).mean((0, 2))),
        Mutant(
            "perplexity",
            "the entropy itself, not 2 to it",
            _entropy_with(lambda e, w: (2 ** e.sum(-1)).mean((0, 2))),
        ),
        Mutant(
            "entropy of the mean",
            "each query's entropy first, then the mean",
            lambda w: _entropy(w.mean((0, 2), keepdim=True)),
        ),
    ),
    alternatives=(
        lambda w: (
            torch.stack(
                [torch.distributions.Categorical(probs=w[:, h]).entropy().mean() for h in range(w.size(1))]
            )
            / math.log(2)
        ),
        lambda w: -(w * w.clamp(min=1e-300).log2()).sum(-1).transpose(0, 1).flatten(1).mean(1),
    ),
)

EXERCISES = (LOGIT_LENS, ENTROPY)
