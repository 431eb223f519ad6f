"""Day 5: from logits to a token, and the cache that makes one-token steps cheap."""

import math
from typing import Any

import torch
from torch import Tensor

from ...generate import apply_min_p, apply_temperature, apply_top_k, apply_top_p
from ...model import reference_attention
from ...model.cache import LayerCache
from ..engine import Exercise, Mutant, Step, Wrong, describe, equals, leaves_inputs, same_form

INF = math.inf


def _logits(seed: int, B: int, V: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(B, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _kept(logits: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


# --- day5.temperature ---------------------------------------------------------------------------------------


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return apply_temperature(logits, temperature).softmax(-1)


def _temperature_cases() -> list[tuple[Any, ...]]:
    return [
        (_logits(1, 2, 5), 0.5),
        (_logits(2, 1, 9), 1.7),
        (_logits(3, 3, 4), 1.0),
        (_logits(4, 2, 3, scale=0.02), 0.01),
        (_logits(5, 1, 3, scale=90.0), 50.0),
    ]


def _temperature_extremes(fn: Any) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]], dtype=torch.float64)
    cold, hot = fn(logits, 0.01), fn(logits, 1000.0)
    if not torch.isfinite(fn(logits * 1000, 0.001)).all():
        raise Wrong(
            "overflow: take the largest logit away before exp (softmax does)",
            "logits of 3000 at 0.001 give NaN or inf",
        )
    apart = fn(torch.tensor([[2000.0, 0.0], [0.0, 1.0]], dtype=torch.float64), 1.0)
    if not torch.isfinite(apart).all():
        raise Wrong(
            "one maximum for the batch: take each row's own away, or exp is 0 for a whole row",
            "rows of 2000, 0 and 0, 1 at 1 give NaN",
        )
    if (cold.sum(-1) - 1).abs().max() > 1e-6:
        raise Wrong(
            "a row does not sum to 1: the softmax over the vocabulary comes last",
            f"at 0.01 it sums to {cold.sum().item():.4f}",
        )
    if hot.amax() > cold.amax():
        raise Wrong(
            "upside down: divide by the temperature; near 0 it leaves the likeliest token alone",
            f"the largest probability is {cold.amax():.3f} at 0.01 and {hot.amax():.3f} at 1000",
        )
    if cold[0, 1] < 0.99:
        raise Wrong(
            "not sharp when cold: divide the logits by the temperature itself, however small it is",
            f"the largest of logits 1, 3, 2 has {cold[0, 1]:.3f} at 0.01",
        )
    if (hot - 1 / 3).abs().max() > 0.001:
        raise Wrong(
            "not flat when hot: divide the logits by the temperature itself, however large it is",
            f"at 1000: {describe(hot[0])}",
        )


TEMPERATURE = Exercise(
    name="day5.temperature",
    title="sharper or flatter",
    stub='''
def probabilities(logits, temperature):
    """(B, V) logits → (B, V) probabilities at a temperature above 0; each row sums to 1."""
    raise NotImplementedError
''',
    solution=apply_temperature,
    reference=_probabilities,
    steps=(
        same_form(_probabilities, _temperature_cases, "(B, V) probabilities"),
        leaves_inputs(_temperature_cases),
        Step("is sharp when cold and flat when hot", _temperature_extremes),
        equals(_probabilities, _temperature_cases),
    ),
    hints=(
        "Is the temperature applied to logits or to probabilities?",
        "Divide the logits, then softmax over the vocabulary.",
        "(logits / temperature).softmax(-1)",
    ),
    cases=_temperature_cases,
    mutants=(
        Mutant("upside down", "divide by the temperature", lambda x, t: (x * t).softmax(-1)),
        Mutant("temperature is not used", "divide the logits by it", lambda x, t: x.softmax(-1)),
        Mutant("no softmax", "probabilities are asked for: softmax over the vocabulary", lambda x, t: x / t),
        Mutant(
            "the temperature is clamped",
            "any temperature above 0",
            lambda x, t: (x / max(t, 1.0)).softmax(-1),
        ),
        Mutant(
            "the temperature is clamped",
            "any temperature above 0",
            lambda x, t: (x / max(t, 0.1)).softmax(-1),
        ),
        Mutant(
            "the temperature is clamped",
            "any temperature above 0",
            lambda x, t: (x / min(t, 2.0)).softmax(-1),
        ),
        Mutant(
            "one maximum for the batch",
            "take each row's own away, or exp is 0 for a whole row",
            lambda x, t: (lambda e: e / e.sum(-1, keepdim=True))(((x - x.max()) / t).exp()),
        ),
        Mutant(
            "divided after the softmax",
            "the rows no longer sum to 1, and nothing was sharpened",
            lambda x, t: x.softmax(-1) / t,
        ),
        Mutant(
            "softmax over the batch", "over the vocabulary, the last axis", lambda x, t: (x / t).softmax(0)
        ),
        Mutant("squared", "divide by the temperature once", lambda x, t: (x / t**2).softmax(-1)),
        Mutant(
            "not renormalised",
            "a power of probabilities no longer sums to 1: divide the logits",
            lambda x, t: x.softmax(-1) ** (1 / t),
        ),
        Mutant("root", "divide by the temperature itself", lambda x, t: (x / math.sqrt(t)).softmax(-1)),
        Mutant(
            "overflow",
            "take the row's maximum away before exp",
            lambda x, t: (x / t).exp() / (x / t).exp().sum(-1, keepdim=True),
        ),
        Mutant("input mutated", "the logits are still needed", lambda x, t: x.div_(t).softmax(-1)),
    ),
    alternatives=(
        lambda x, t: (x / t).softmax(-1),
        lambda x, t: (lambda p: p / p.sum(-1, keepdim=True))(((x - x.amax(-1, keepdim=True)) / t).exp()),
    ),
)

# --- day5.top_k ---------------------------------------------------------------------------------------------


def _top_k_cases() -> list[tuple[Any, ...]]:
    ties = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0]], dtype=torch.float64)
    return [
        (_logits(1, 2, 6), 2),
        (_logits(2, 1, 4), 1),
        (ties, 3),
        (ties, 1),
        (_logits(3, 2, 3), 9),
        (_logits(4, 4, 5), 2),
    ]


def _top_k_counts(fn: Any) -> None:
    logits = _logits(1, 2, 6)
    for k in (1, 2, 6):
        kept = _kept(fn(logits.clone(), k))
        if [len(row) for row in kept] != [k, k]:
            raise Wrong(
                f"{k} tokens a row stay, all others become −∞", f"kept {[len(r) for r in kept]} for k = {k}"
            )
    if torch.equal(fn(logits.clone(), 2).isfinite()[0], logits[0] <= logits[0].sort().values[1]):
        raise Wrong("the smallest are kept: keep the largest", "")


TOP_K = Exercise(
    name="day5.top_k",
    title="only the k likeliest",
    stub='''
def top_k(logits, k):
    """(B, V) → (B, V): the k largest logits of each row stay (and ties of the last); others become -inf.

    k may exceed V: then all stay.
    """
    raise NotImplementedError
''',
    solution=apply_top_k,
    reference=apply_top_k,
    steps=(
        same_form(apply_top_k, _top_k_cases, "(B, V) logits"),
        leaves_inputs(_top_k_cases),
        Step("keeps k a row", _top_k_counts),
        equals(apply_top_k, _top_k_cases, title="equals the library with ties and large k"),
    ),
    hints=(
        "What is the smallest logit that stays, in each row? Everything below it goes.",
        "logits.topk(k, dim=-1).values[..., -1:] is that threshold, (B, 1).",
        'logits.masked_fill(logits < threshold, float("-inf")), with k = min(k, V).',
    ),
    cases=_top_k_cases,
    mutants=(
        Mutant(
            "the smallest are kept",
            "keep the largest",
            lambda x, k: x.masked_fill(x > x.topk(min(k, x.size(-1)), largest=False).values[..., -1:], -INF),
        ),
        Mutant(
            "one too few",
            "the k-th stays: <, not <=",
            lambda x, k: x.masked_fill(x <= x.topk(min(k, x.size(-1))).values[..., -1:], -INF),
        ),
        Mutant("one too many", "k tokens stay, not k + 1", lambda x, k: apply_top_k(x, k + 1)),
        Mutant("nothing goes", "logits below the k-th become −∞", lambda x, k: x.clone()),
        Mutant(
            "one threshold for all rows",
            "each row has its own",
            lambda x, k: x.masked_fill(x < x.topk(min(k, x.size(-1))).values[..., -1].min(), -INF),
        ),
        Mutant(
            "set to 0",
            "a logit of 0 is still a chance: −∞ is none",
            lambda x, k: x.masked_fill(x < x.topk(min(k, x.size(-1))).values[..., -1:], 0.0),
        ),
        Mutant(
            "only the values",
            "the result keeps its (B, V) shape, or ids are lost",
            lambda x, k: x.topk(min(k, x.size(-1))).values,
        ),
        Mutant(
            "large k fails",
            "k may exceed the vocabulary: use min(k, V)",
            lambda x, k: x.masked_fill(x < x.topk(k).values[..., -1:], -INF),
        ),
        Mutant(
            "ties dropped",
            "tokens equal to the k-th stay too, so that their order does not decide",
            lambda x, k: torch.full_like(x, -INF).scatter(
                -1, *(lambda t: (t.indices, t.values))(x.topk(min(k, x.size(-1))))
            ),
        ),
        Mutant(
            "over the batch",
            "the k largest of each row",
            lambda x, k: x.masked_fill(x < x.topk(min(k, x.size(0)), dim=0).values[-1:], -INF),
        ),
        Mutant(
            "input mutated",
            "masked_fill, not masked_fill_",
            lambda x, k: x.masked_fill_(x < x.topk(min(k, x.size(-1))).values[..., -1:], -INF),
        ),
    ),
    alternatives=(
        lambda x, k: torch.where(x >= x.sort(descending=True).values[:, [min(k, x.size(1)) - 1]], x, -INF),
        lambda x, k: torch.stack(
            [
                torch.where((row[None] > row[:, None]).sum(1) < k, row, torch.tensor(-INF, dtype=row.dtype))
                for row in x
            ]
        ),
    ),
)

# --- day5.top_p ---------------------------------------------------------------------------------------------


def _top_p_with(
    before: bool = True,
    renormalise: bool = False,
    order: bool = True,
    scatter: bool = True,
    fill: float = -INF,
    strict: bool = False,
) -> Any:
    def top_p(logits: Tensor, p: float) -> Tensor:
        ordered, where = logits.sort(dim=-1, descending=order)
        probability = ordered.softmax(-1)
        mass = probability.cumsum(-1)
        if before:
            mass = mass - probability
        drop = mass > p if strict else mass >= p
        if not before:
            drop = mass > p
        return logits.masked_fill(drop.scatter(-1, where, drop) if scatter else drop, fill)

    return top_p


def _top_p_from_below(logits: Tensor, p: float) -> Tensor:
    """As transformers' TopPLogitsWarper does: the least likely whose mass is at most 1 − p go."""
    ordered, where = logits.sort(dim=-1)
    drop = ordered.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -1] = False
    return logits.masked_fill(drop.scatter(-1, where, drop), -INF)


def _top_p_cases() -> list[tuple[Any, ...]]:
    known = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.125, 0.125, 0.25, 0.5]], dtype=torch.float64).log()
    # No tie where the nucleus ends: which of two equal tokens is sorted first is not told.
    uneven = torch.tensor([[0.15, 0.1, 0.45, 0.3], [0.45, 0.3, 0.15, 0.1]], dtype=torch.float64).log()
    return [
        (known, 0.6),
        (known, 0.5),
        (uneven, 0.8),
        (known, 1.0),
        (known, 0.01),
        (_logits(1, 3, 9), 0.7),
        (_logits(2, 1, 5), 0.95),
    ]


def _top_p_known(fn: Any) -> None:
    known = _top_p_cases()[0][0]
    for p, expected in ((0.01, [[0], [3]]), (0.6, [[0, 1], [2, 3]])):
        kept = _kept(fn(known.clone(), p))
        if any(not row for row in kept):
            raise Wrong(
                "nothing is left: the likeliest token always stays, however small p is",
                f"p = {p} keeps {kept}",
            )
        if kept != expected:
            raise Wrong(
                "another set: the fewest likeliest tokens whose probabilities reach p, the one that crosses it included",
                f"probabilities ½ ¼ ⅛ ⅛ and ⅛ ⅛ ¼ ½ at p = {p}: kept {kept}, expected {expected}",
            )


TOP_P = Exercise(
    name="day5.top_p",
    title="nucleus sampling",
    stub='''
def top_p(logits, p):
    """(B, V) → (B, V): keep the fewest likeliest tokens whose probabilities reach p; others become -inf.

    The token that crosses p stays, so there is always one (Holtzman et al. 2020).
    """
    raise NotImplementedError
''',
    solution=apply_top_p,
    reference=apply_top_p,
    steps=(
        same_form(apply_top_p, _top_p_cases, "(B, V) logits"),
        leaves_inputs(_top_p_cases),
        Step("keeps the nucleus of a known distribution", _top_p_known),
        equals(apply_top_p, _top_p_cases),
    ),
    hints=(
        "Sort the row, softmax, cumulative sum. Which tokens are beyond p?",
        "A token goes when the mass *before* it (cumsum minus its own probability) has reached p already.",
        "The sort moved tokens: bring the mask back with drop.scatter(-1, order, drop).",
    ),
    cases=_top_p_cases,
    mutants=(
        Mutant(
            "the crossing token is dropped",
            "compare the mass before each token, not after it",
            _top_p_with(before=False),
        ),
        Mutant(
            "not put back in order",
            "the mask belongs to the sorted row: scatter it back",
            _top_p_with(scatter=False),
        ),
        Mutant("smallest first", "sort from the likeliest down", _top_p_with(order=False)),
        Mutant("set to 0", "a logit of 0 is still a chance: −∞ is none", _top_p_with(fill=0.0)),
        Mutant(
            "one token too many",
            "when the mass before a token is exactly p, that token goes",
            _top_p_with(strict=True),
        ),
        Mutant(
            "a threshold on single tokens",
            "p is the mass of a set, not of one token",
            lambda x, p: x.masked_fill(x.softmax(-1) < p, -INF),
        ),
        Mutant("a share of the maximum", "that is min-p", lambda x, p: apply_min_p(x, p)),
        Mutant("1 − p", "keep the mass p", lambda x, p: apply_top_p(x, max(1 - p, 1e-9))),
        Mutant(
            "a share of the vocabulary",
            "count probability, not tokens",
            lambda x, p: apply_top_k(x, max(1, round(p * x.size(-1)))),
        ),
        Mutant(
            "cumsum of logits",
            "softmax first",
            lambda x, p: x.masked_fill(
                (lambda o: (o.values.cumsum(-1) - o.values >= p).gather(-1, o.indices.argsort(-1)))(
                    x.sort(descending=True)
                ),
                -INF,
            ),
        ),
        Mutant("input mutated", "work on a copy", lambda x, p: x.copy_(apply_top_p(x, p))),
    ),
    alternatives=(
        _top_p_with(),
        _top_p_from_below,
        lambda x, p: torch.stack(
            [
                torch.where(
                    (
                        lambda q: (
                            q[None]
                            * (
                                (q[None] > q[:, None])
                                | (
                                    (q[None] == q[:, None])
                                    & (torch.arange(len(q))[None] < torch.arange(len(q))[:, None])
                                )
                            )
                        ).sum(1)
                    )(row.softmax(-1))
                    < p,
                    row,
                    torch.tensor(-INF, dtype=row.dtype),
                )
                for row in x
            ]
        ),
    ),
    tolerance=1e-9,
)

# --- day5.min_p ---------------------------------------------------------------------------------------------


def _min_p_cases() -> list[tuple[Any, ...]]:
    known = torch.tensor([[0.5, 0.25, 0.15, 0.1], [0.1, 0.15, 0.25, 0.5]], dtype=torch.float64).log()
    flat = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    return [
        (known, 0.4),
        (known, 0.25),
        (known, 1.0),
        (flat, 0.3),
        (_logits(1, 3, 9), 0.1),
        (_logits(2, 1, 5) + 4, 0.3),
    ]


MIN_P = Exercise(
    name="day5.min_p",
    title="a threshold that follows the model's confidence",
    stub='''
def min_p(logits, share):
    """(B, V) → (B, V): tokens at least ``share`` times as probable as the likeliest of the row stay.

    Others become -inf (Nguyen et al. 2024).
    """
    raise NotImplementedError
''',
    solution=apply_min_p,
    reference=apply_min_p,
    steps=(
        same_form(apply_min_p, _min_p_cases, "(B, V) logits"),
        leaves_inputs(_min_p_cases),
        equals(apply_min_p, _min_p_cases),
    ),
    hints=(
        "Probabilities first: which is the largest of each row?",
        "The threshold is share × the largest probability, one for each row.",
        "In logits: keep those ≥ the maximum + log(share); others −∞.",
    ),
    cases=_min_p_cases,
    mutants=(
        Mutant(
            "an absolute threshold",
            "the share is of the likeliest token's probability",
            lambda x, s: x.masked_fill(x.softmax(-1) < s, -INF),
        ),
        Mutant(
            "one threshold for all rows",
            "each row has its own maximum",
            lambda x, s: x.masked_fill(x.softmax(-1) < s * x.softmax(-1).max() * 0.9, -INF),
        ),
        Mutant(
            "compared in logits",
            "a share of a logit means nothing: compare probabilities, or add log(share)",
            lambda x, s: x.masked_fill(x < s * x.amax(-1, keepdim=True), -INF),
        ),
        Mutant(
            "the likely ones are dropped",
            "keep what is above the threshold",
            lambda x, s: x.masked_fill(x.softmax(-1) >= s * x.softmax(-1).amax(-1, keepdim=True), -INF),
        ),
        Mutant(
            "set to 0",
            "a logit of 0 is still a chance",
            lambda x, s: x.masked_fill(apply_min_p(x, s).isinf(), 0.0),
        ),
        Mutant("nucleus", "that is top-p", lambda x, s: apply_top_p(x, s)),
        Mutant(
            "1 − share", "keep those above share × the largest", lambda x, s: apply_min_p(x, max(1 - s, 1e-9))
        ),
        Mutant("probabilities returned", "logits stay logits", lambda x, s: apply_min_p(x, s).softmax(-1)),
        Mutant(
            "base 2",
            "the natural logarithm belongs to softmax",
            lambda x, s: x.masked_fill(x < x.amax(-1, keepdim=True) + math.log2(s), -INF),
        ),
        Mutant("input mutated", "work on a copy", lambda x, s: x.copy_(apply_min_p(x, s))),
    ),
    alternatives=(
        lambda x, s: torch.where(
            x.softmax(-1) >= s * x.softmax(-1).amax(-1, keepdim=True) * (1 - 1e-12), x, -INF
        ),
        lambda x, s: torch.where(
            (x - x.logsumexp(-1, keepdim=True)) - (x.amax(-1, keepdim=True) - x.logsumexp(-1, keepdim=True))
            >= math.log(s) - 1e-12,
            x,
            -INF,
        ),
    ),
)

# --- day5.kv_cache ------------------------------------------------------------------------------------------


def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    past: Any,
    *,
    order: bool = True,
    keep: int = 10**9,
    attend: str = "all",
    store: bool = True,
    scale: bool = True,
) -> tuple[Tensor, Any]:
    """One step with variations: what is stored, and what is attended to."""
    if past is None:
        all_k, all_v = k, v
    elif order:
        all_k, all_v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    else:
        all_k, all_v = torch.cat([k, past[0]], dim=2), torch.cat([v, past[1]], dim=2)
    all_k, all_v = all_k[:, :, -keep:], all_v[:, :, -keep:]
    T, S = q.size(2), all_k.size(2)
    triangle = torch.ones(T, S, dtype=torch.bool)
    if attend == "all":
        triangle = triangle.tril(S - T)
    elif attend == "top-left":
        triangle = triangle.tril()
    out, _ = reference_attention(q, all_k, all_v, triangle)
    return out, (all_k, all_v) if store else past if past is not None else (k, v)


def _decode_reference(q: Tensor, k: Tensor, v: Tensor, past: Any) -> tuple[Tensor, Any]:
    return _decode(q, k, v, past)


def _cache_parts(seed: int, T: int, past: int, B: int = 2, H: int = 2, D: int = 3) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)

    def randn(length: int) -> Tensor:
        return torch.randn(B, H, length, D, generator=generator, dtype=torch.float64)

    return randn(T), randn(T), randn(T), (randn(past), randn(past)) if past else None


def _cache_cases() -> list[tuple[Any, ...]]:
    return [
        _cache_parts(1, 4, 0),
        _cache_parts(2, 1, 3),
        _cache_parts(3, 1, 1),
        _cache_parts(4, 3, 2),
        _cache_parts(5, 1, 0),
    ]


def _cache_equals_whole(fn: Any) -> None:
    q, k, v, _ = _cache_parts(7, 6, 0)
    whole, _ = _decode(q, k, v, None)
    past, steps = None, []
    for t in range(6):
        out, past = fn(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], past)
        steps.append(out)
        if past is None or past[0].size(2) != t + 1:
            raise Wrong(
                "the cache does not grow: after t steps it holds t keys and values",
                f"after {t + 1} steps it holds {0 if past is None else past[0].size(2)}",
            )
    off = (torch.cat(steps, dim=2) - whole).abs().amax((0, 1, 3))
    if off.max() > 1e-9:
        raise Wrong(
            "one token at a time gives something else than all at once",
            f"first at position {int((off > 1e-9).nonzero()[0])}",
        )


KV_CACHE = Exercise(
    name="day5.kv_cache",
    title="attend with a memory of keys and values",
    stub='''
def cached_attention(q, k, v, past):
    """Causal attention of T new positions to themselves and to everything before.

    q, k, v are (B, H, T, D) of the new positions; past is None or (keys, values), each (B, H, P, D).
    Returns (output (B, H, T, D), (keys, values) with the new ones appended). Use
    ai_learning.model.reference_attention with a (T, P + T) mask: new position i sees P + i + 1 keys.
    """
    raise NotImplementedError
''',
    solution=LayerCache,
    reference=_decode_reference,
    steps=(
        same_form(_decode_reference, _cache_cases, "(output, (keys, values))"),
        leaves_inputs(_cache_cases),
        Step("gives, token by token, what one pass gives", _cache_equals_whole),
        equals(_decode_reference, _cache_cases, title="handles a prompt of several tokens after a past"),
    ),
    hints=(
        "Along which axis do new keys join the old ones? Why does the query need no cache?",
        "keys = torch.cat([past_k, k], dim=2). A single new query may see every key: what does the mask look like for T of them?",
        "torch.ones(T, S).tril(S - T): the triangle is aligned to the bottom right.",
    ),
    cases=_cache_cases,
    mutants=(
        Mutant(
            "the triangle is top-left",
            "with T ≠ S one new query would see the first key only: tril(S − T)",
            lambda *a: _decode(*a, attend="top-left"),
        ),
        Mutant(
            "the future leaks",
            "in a prompt of several tokens each sees only those before it",
            lambda *a: _decode(*a, attend="everything"),
        ),
        Mutant("new keys in front", "append: order is time", lambda *a: _decode(*a, order=False)),
        Mutant(
            "the past is not attended to",
            "keys and values of the past belong to the sum",
            lambda q, k, v, past: (_decode(q, k, v, None)[0], _decode(q, k, v, past)[1]),
        ),
        Mutant(
            "the past is forgotten",
            "return old and new keys together",
            lambda q, k, v, past: (_decode(q, k, v, past)[0], (k, v)),
        ),
        Mutant("nothing is stored", "return what the next step needs", lambda *a: _decode(*a, store=False)),
        Mutant(
            "keys only",
            "values are needed as well",
            lambda q, k, v, past: (_decode(q, k, v, past)[0], (_decode(q, k, v, past)[1][0], v)),
        ),
        Mutant("the last two only", "every earlier position stays", lambda *a: _decode(*a, keep=2)),
        Mutant(
            "joined across heads",
            "the sequence axis is dim 2",
            lambda q, k, v, past: (
                _decode(q, k, v, past)[0],
                _decode(q, k, v, past)[1]
                if past is None
                else tuple(
                    torch.cat([o, n], dim=1) if o.size(2) == n.size(2) else torch.cat([o, n], dim=2)
                    for o, n in zip(past, (k, v), strict=True)
                ),
            ),
        ),
        Mutant(
            "keys and values swapped",
            "(keys, values), in this order",
            lambda q, k, v, past: (_decode(q, k, v, past)[0], _decode(q, k, v, past)[1][::-1]),
        ),
    ),
    alternatives=(
        lambda *a: _decode(*a),
        lambda q, k, v, past: (
            lambda K, V: (
                torch.nn.functional.scaled_dot_product_attention(
                    q, K, V, torch.ones(q.size(2), K.size(2)).tril(K.size(2) - q.size(2)).bool()
                ),
                (K, V),
            )
        )(
            k if past is None else torch.cat((past[0], k), -2),
            v if past is None else torch.cat((past[1], v), -2),
        ),
    ),
)

EXERCISES = (TEMPERATURE, TOP_K, TOP_P, MIN_P, KV_CACHE)
