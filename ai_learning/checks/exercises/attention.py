"""Day 1: scaled dot-product attention, the causal mask, and several heads."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model import CausalSelfAttention, GPTConfig, causal_mask, reference_attention
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_gradients

# --- day1.attention -----------------------------------------------------------------------------------------


def _heads(seed: int, B: int, H: int, T: int, S: int, D: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, T, D, generator=generator, dtype=torch.float64)
    k = torch.randn(B, H, S, D, generator=generator, dtype=torch.float64)
    v = torch.randn(B, H, S, D, generator=generator, dtype=torch.float64)
    return q, k, v


def _attention_cases() -> list[tuple[Any, ...]]:
    return [
        (*_heads(1, 1, 1, 3, 3, 4), causal_mask(3)),
        (*_heads(2, 2, 3, 5, 5, 7), causal_mask(5)),
        (*_heads(3, 2, 2, 4, 6, 5), None),
        (*_heads(4, 1, 2, 1, 1, 3), causal_mask(1)),
        (*_heads(5, 1, 2, 11, 11, 1), causal_mask(11)),
    ]


def _gives_pair(fn: Any) -> None:
    q, k, v, mask = _attention_cases()[1]
    result = fn(q, k, v, mask)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise Wrong("return both: (output, weights)", f"returned a {type(result).__name__}")
    output, weights = result
    for name, got, expected in (("output", output, (2, 3, 5, 7)), ("weights", weights, (2, 3, 5, 5))):
        if not torch.is_tensor(got) or tuple(got.shape) != expected:
            shape = tuple(got.shape) if torch.is_tensor(got) else type(got).__name__
            raise Wrong(
                "wrong shape: output is (B, H, T, D) and weights (B, H, T, S)",
                f"{name} is {shape}, expected {expected}",
            )
    if output.dtype != torch.float64:
        raise Wrong("wrong dtype: keep the inputs' dtype", f"float64 in, {output.dtype} out")


def _no_nan(fn: Any) -> None:
    for case in _attention_cases():
        output, weights = fn(*case)
        if output.isnan().any() and weights.isneginf().any():
            raise Wrong(
                "no softmax: what multiplies the values is its result, between 0 and 1",
                "weights of −∞, and an output that is NaN",
            )
        if output.isnan().any():
            row = int(output.isnan().any(-1).nonzero()[0][-1])
            raise Wrong(
                "NaN rows: a query that may see no key has a softmax over nothing; which keys does your mask hide?",
                f"row {row} is NaN",
            )


def _rows_sum_to_one(fn: Any) -> None:
    q, k, v, mask = _attention_cases()[1]
    _, weights = fn(q, k, v, mask)

    def one(sums: Tensor) -> bool:
        return torch.allclose(sums, torch.ones_like(sums))

    sums = weights.sum(-1)  # (B, H, T)
    if one(sums):
        return
    seen = f"a row of weights sums to {sums.min().item():.3f}"
    # The last query sees every key: a mask that comes too late takes nothing from its row.
    if torch.allclose(weights.triu(1), torch.zeros_like(weights)) and one(sums[:, :, -1]):
        raise Wrong(
            "mask after softmax: hide with −∞ before it; zeroing weights leaves rows that no longer sum to 1",
            seen,
        )
    if any(one(weights.sum(axis)) for axis in (0, 1, 2)):
        raise Wrong(
            "softmax over the wrong axis: the weights of one query, over all keys, must sum to 1 (dim=-1)",
            seen,
        )
    raise Wrong(
        "a query's weights do not sum to 1: they are the softmax of its masked scores, and nothing comes after it",
        seen,
    )


def _future_stays_hidden(fn: Any) -> None:
    q, k, v, mask = _attention_cases()[1]
    before, _ = fn(q, k, v, mask)
    later_k, later_v = k.clone(), v.clone()
    later_k[:, :, 3:] += 5 * q[:, :, :2].mean()  # a constant would vanish in the softmax
    later_k[:, :, 3:] *= -2
    later_v[:, :, 3:] = 9.0
    after, _ = fn(q, later_k, later_v, mask)
    moved = (after - before)[:, :, :3].abs().amax().item()
    if not moved < 1e-9:
        raise Wrong(
            "the future leaks: position t may see keys 0 to t only, where mask[t, s] is not 0",
            f"changing keys 3 and 4 moved the output at positions 0 to 2 by {moved:.3f}",
        )


def _uniform_when_query_is_zero(fn: Any) -> None:
    q, k, v, mask = _attention_cases()[1]
    output, _ = fn(torch.zeros_like(q), k, v, mask)
    mean = v.cumsum(2) / torch.arange(1, 6, dtype=v.dtype).view(1, 1, 5, 1)
    if not torch.allclose(output, mean):
        raise Wrong(
            "a query of zeros must weigh all keys it sees alike: is one left out, or do more than q·k and the mask count?",
            "with q = 0 the output is not the mean of the values so far",
        )


def _heads_are_apart(fn: Any) -> None:
    q, k, v, mask = _attention_cases()[1]
    before, _ = fn(q, k, v, mask)
    for changed in range(3):
        other_k, other_v = k.clone(), v.clone()
        other_k[:, changed] *= -3.0
        other_v[:, changed] = 7.0
        after, _ = fn(q, other_k, other_v, mask)
        for head in {0, 1, 2} - {changed}:
            if not torch.allclose(before[:, head], after[:, head]):
                raise Wrong(
                    "heads mixed: each head attends with its own q, k and v only",
                    f"changing head {changed} changed head {head}",
                )


def _scaled(fn: Any) -> None:
    q, k, v = _heads(6, 2, 5, 4, 6, 9)  # five different sizes, so that a wrong one shows
    _, weights = fn(q, k, v, None)
    logs = weights.log()
    scores = q @ k.transpose(-2, -1)
    # Differences of log-weights are differences of scores times the scale: solve for it.
    seen = ((logs - logs.mean(-1, keepdim=True)) * (scores - scores.mean(-1, keepdim=True))).sum() / (
        scores - scores.mean(-1, keepdim=True)
    ).square().sum()
    if abs(seen - 1) < 1e-6:
        raise Wrong(
            "not scaled: divide the scores by √D, or they grow with D and the softmax saturates", "factor 1"
        )
    if abs(seen - 1 / 3) > 1e-6:
        raise Wrong(
            "scaled by the wrong size: the divisor is √D, D the size of one head's vectors",
            f"for D = 9 the scores were multiplied by {seen:.4f}, expected {1 / 3:.4f}",
        )


def _variant(
    scale: Any = lambda q, k: 1 / math.sqrt(q.size(-1)),
    axis: int = -1,
    mask_with: float = float("-inf"),
    swap: bool = False,
    use_mask: bool = True,
    mask_rule: Any = lambda mask: mask == 0,
    values: Any = lambda v: v,
) -> Any:
    """Attention with one thing done differently."""

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if swap:
            q, k = k, q
        scores = q @ k.transpose(-2, -1) * scale(q, k)
        if mask is not None and use_mask:
            scores = scores.masked_fill(mask_rule(mask), mask_with)
        weights = scores.softmax(axis)
        return weights @ values(v), weights

    return attention


def _mask_after_softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    weights = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
    if mask is not None:
        weights = weights.masked_fill(mask == 0, 0.0)
    return weights @ v, weights


def _not_softmax(how: Any, output_too: bool = True) -> Any:
    """Attention whose weights are ``how(scores)``, the masked scores."""

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        if mask is not None:
            scores = scores.masked_fill(mask == 0, float("-inf"))
        weights = how(scores)
        return (weights if output_too else scores.softmax(-1)) @ v, weights

    return attention


def _mutates(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    q /= math.sqrt(q.size(-1))
    return _variant(scale=lambda q, k: 1.0)(q, k, v, mask)


def _heads_mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    output, weights = reference_attention(q, k, v, mask)
    return output.mean(1, keepdim=True).expand_as(output), weights


def _detached(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    _, weights = reference_attention(q, k, v, mask)
    weights = weights.detach()
    return weights @ v, weights


def _by_einsum(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * q.size(-1) ** -0.5
    if mask is not None:
        scores = scores + torch.zeros_like(scores).masked_fill(~mask.bool(), -1e9)
    weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bhtd", weights, v), weights


def _by_loops(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    B, H, T, D = q.shape
    S = k.size(2)
    rows = []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                seen = [s for s in range(S) if mask is None or bool(mask[t, s])]
                some = torch.stack([(q[b, h, t] * k[b, h, s]).sum() for s in seen]) / math.sqrt(D)
                row = torch.zeros(S, dtype=q.dtype)
                rows.append(row.scatter(0, torch.tensor(seen), F.softmax(some, 0)))
    weights = torch.stack(rows).view(B, H, T, S)
    return weights @ v, weights


ATTENTION = Exercise(
    name="day1.attention",
    title="softmax(QKᵀ / √D) V, with a mask",
    stub='''
def attention(q, k, v, mask=None):
    """Scaled dot-product attention.

    q is (B, H, T, D); k and v are (B, H, S, D); mask broadcasts to (B, H, T, S): 0 hides a key.
    Returns (output (B, H, T, D), weights (B, H, T, S)).
    """
    raise NotImplementedError
''',
    solution=reference_attention,
    reference=reference_attention,
    steps=(
        Step("returns (output, weights) of the right shapes", _gives_pair),
        leaves_inputs(_attention_cases),
        Step("gives no NaN", _no_nan),
        Step("weights of each query sum to 1", _rows_sum_to_one),
        Step("hides the future", _future_stays_hidden),
        Step("weighs alike when the query is zero", _uniform_when_query_is_zero),
        Step("keeps heads apart", _heads_are_apart),
        Step("divides by √D", _scaled),
        equals(reference_attention, _attention_cases),
        same_gradients(reference_attention, _attention_cases),
    ),
    hints=(
        "Scores first: one number for each (query, key). Which of q, k, v do they come from, and what shape is that?",
        "scores = q @ k.transpose(-2, -1), divided by the root of the last size; then the mask, then softmax(dim=-1).",
        'scores.masked_fill(mask == 0, float("-inf")) where there is a mask; weights = softmax; return weights @ v, weights.',
    ),
    cases=_attention_cases,
    mutants=(
        Mutant(
            "not scaled",
            "divide the scores by √D, or they grow with D and the softmax saturates",
            _variant(scale=lambda q, k: 1.0),
        ),
        Mutant(
            "scaled by the wrong size",
            "the divisor is √D, not D",
            _variant(scale=lambda q, k: 1 / q.size(-1)),
        ),
        Mutant(
            "scaled by the wrong size",
            "the divisor is √D of one head, not the width of all heads together",
            _variant(scale=lambda q, k: 1 / math.sqrt(q.size(-1) * q.size(1))),
        ),
        Mutant(
            "softmax over the wrong axis",
            "the weights of one query, over all keys, must sum to 1 (dim=-1)",
            _variant(axis=-2),
        ),
        Mutant(
            "the future leaks",
            "the mask is not used: position t may see keys 0 to t only",
            _variant(use_mask=False),
        ),
        Mutant(
            "the mask is upside down",
            "0 hides a key and 1 shows it; yours shows what it should hide",
            _variant(mask_rule=lambda mask: mask != 0),
        ),
        Mutant(
            "the future leaks",
            "a hidden key's score must be −∞; a score of 0 still gets a share",
            _variant(mask_with=0.0),
        ),
        Mutant(
            "mask after softmax",
            "hide with −∞ before it; zeroing weights leaves rows that no longer sum to 1",
            _mask_after_softmax,
        ),
        Mutant(
            "scaled by the wrong size",
            "the divisor is √D, the size of one head's vectors, not the number of heads",
            _variant(scale=lambda q, k: 1 / math.sqrt(q.size(1))),
        ),
        Mutant(
            "scaled by the wrong size",
            "the divisor is √D, not the number of positions",
            _variant(scale=lambda q, k: 1 / math.sqrt(k.size(2))),
        ),
        Mutant(
            "no softmax",
            "scores become weights by softmax(dim=-1), over the keys",
            _not_softmax(lambda s: s),
        ),
        Mutant(
            "no softmax",
            "the second result is the weights, not the scores",
            _not_softmax(lambda s: s, output_too=False),
        ),
        Mutant(
            "no softmax",
            "a sigmoid looks at one key alone; softmax weighs all keys against each other",
            _not_softmax(torch.sigmoid),
        ),
        Mutant(
            "scaled after the softmax",
            "divide the scores by √D, not the weights: those must sum to 1",
            lambda q, k, v, mask=None: tuple(
                x / math.sqrt(q.size(-1)) for x in _variant(scale=lambda q, k: 1.0)(q, k, v, mask)
            ),
        ),
        Mutant("input mutated", "work on a copy; the caller still needs its own", _mutates),
        Mutant("heads mixed", "each head attends with its own q, k and v only", _heads_mixed),
        Mutant(
            "q and k swapped",
            "row t of the scores belongs to query t: q @ kᵀ, not k @ qᵀ",
            _variant(swap=True),
        ),
        Mutant("wrong gradient", "something detaches the result from q and k", _detached),
    ),
    alternatives=(_by_einsum, _by_loops),
)

# --- day1.causal_mask ---------------------------------------------------------------------------------------


def _mask_cases() -> list[tuple[Any, ...]]:
    return [(4,), (1,), (7,)]


def _as_numbers(fn: Any) -> Any:
    """Bool or 0/1 of any dtype: compare where it is not zero."""
    return lambda size: (fn(size) != 0).double()


def _mask_shape(fn: Any) -> None:
    got = fn(4)
    if not torch.is_tensor(got) or tuple(got.shape) != (4, 4):
        raise Wrong(
            "wrong shape: one row a query and one column a key, (block_size, block_size)",
            f"got {tuple(got.shape) if torch.is_tensor(got) else type(got).__name__} for block_size 4",
        )


def _mask_properties(fn: Any) -> None:
    mask = fn(5) != 0
    if not mask.diagonal().all():
        raise Wrong(
            "a position does not see itself: the diagonal is visible, or position 0 sees nothing and becomes NaN",
            f"diagonal {mask.diagonal().int().tolist()}",
        )
    if mask.triu(1).any():
        raise Wrong(
            "the future leaks: above the diagonal everything is 0", f"row 0 is {mask[0].int().tolist()}"
        )
    if not mask.tril().sum() == 15:
        raise Wrong(
            "the past is hidden: below the diagonal everything is 1", f"last row {mask[-1].int().tolist()}"
        )


def _tri(build: Any) -> Any:
    return lambda block_size: build(torch.ones(block_size, block_size))


CAUSAL_MASK = Exercise(
    name="day1.causal_mask",
    title="who may see whom: the triangle",
    stub='''
def causal_mask(block_size):
    """(block_size, block_size): nonzero where row t (the query) may see column s (the key)."""
    raise NotImplementedError
''',
    solution=causal_mask,
    reference=causal_mask,
    steps=(
        Step("has a row a query and a column a key", _mask_shape),
        Step("shows the past and itself, hides the future", _mask_properties),
        Step(
            "equals the library for every size",
            lambda fn: equals(_as_numbers(causal_mask), _mask_cases).test(_as_numbers(fn)),
        ),
    ),
    hints=(
        "Write the 4 × 4 case on paper first: which positions may position 0 see? And position 3?",
        "It is the lower triangle, the diagonal included.",
        "torch.ones(n, n).tril() does it; so does comparing arange(n)[:, None] with arange(n).",
    ),
    cases=_mask_cases,
    mutants=(
        Mutant(
            "the future leaks",
            "rows are queries and columns keys: this is the upper triangle",
            _tri(torch.triu),
        ),
        Mutant("the future leaks", "nothing is hidden", _tri(lambda x: x)),
        Mutant(
            "a position does not see itself",
            "tril(-1) leaves the diagonal out, and position 0 sees nothing",
            _tri(lambda x: x.tril(-1)),
        ),
        Mutant(
            "the future leaks", "tril(1) shows the next token, which is the answer", _tri(lambda x: x.tril(1))
        ),
        Mutant("the past is hidden", "only the diagonal is left", _tri(lambda x: torch.diag(x.diagonal()))),
        Mutant(
            "the past is hidden",
            "only the token before is shown; attention may look all the way back",
            _tri(lambda x: x.tril().triu(-1)),
        ),
        Mutant("wrong shape", "one row a query: the mask is square", torch.ones),
        Mutant(
            "wrong shape", "without batch and heads: they broadcast", lambda n: torch.ones(1, 1, n, n).tril()
        ),
        Mutant("the mask is upside down", "nonzero shows, zero hides", lambda n: 1 - torch.ones(n, n).tril()),
    ),
    alternatives=(
        lambda n: torch.arange(n)[:, None] >= torch.arange(n),
        lambda n: torch.tensor([[1.0 if s <= t else 0.0 for s in range(n)] for t in range(n)]),
    ),
)

# --- day1.multi_head ----------------------------------------------------------------------------------------


def _split(x: Tensor, n_head: int) -> Tensor:
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head).transpose(1, 2)  # (B, T, C) → (B, n_head, T, head_dim)


def _multi_head(
    x: Tensor,
    w_qkv: Tensor,
    w_out: Tensor,
    n_head: int,
    split: Any = _split,
    join: Any = None,
    order: str = "qkv",
    scale: float = 1.0,
    mask: Any = causal_mask,
) -> Tensor:
    parts = dict(zip(order, (x @ w_qkv.T).split(x.size(-1), dim=-1), strict=True))
    q, k, v = (split(parts[name], n_head) for name in "qkv")
    out, _ = reference_attention(q * scale, k, v, mask(x.size(1)))
    joined = join(out) if join else out.transpose(1, 2).reshape(x.shape)
    return joined @ w_out.T


def _multi_head_reference(x: Tensor, w_qkv: Tensor, w_out: Tensor, n_head: int) -> Tensor:
    config = GPTConfig(
        n_embd=x.size(-1), n_head=n_head, block_size=x.size(1), bias=False, attention="reference"
    )
    layer = CausalSelfAttention(config).to(x.dtype)
    parameters = {"c_attn.weight": w_qkv, "c_proj.weight": w_out}
    out: Tensor = torch.func.functional_call(layer, parameters, (x,))[0]
    return out


def _multi_head_cases() -> list[tuple[Any, ...]]:
    cases = []
    for seed, (B, T, C, H) in enumerate([(2, 5, 12, 3), (1, 1, 4, 2), (2, 3, 6, 1), (1, 7, 8, 4)]):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((B, T, C), (3 * C, C), (C, C))
        cases.append((*(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes), H))
    return cases


def _multi_head_shape(fn: Any) -> None:
    got = fn(*_multi_head_cases()[0])
    if not torch.is_tensor(got) or tuple(got.shape) != (2, 5, 12):
        raise Wrong(
            "wrong shape: (B, T, C) in, (B, T, C) out",
            f"got {tuple(got.shape) if torch.is_tensor(got) else type(got).__name__}, expected (2, 5, 12)",
        )


def _multi_head_no_nan(fn: Any) -> None:
    for case in _multi_head_cases():
        output = fn(*case)
        if output.isnan().any():
            position = int(output.isnan().any(-1).nonzero()[0][-1])
            raise Wrong(
                "NaN rows: a position that may see nothing has a softmax over nothing; it sees itself at least",
                f"position {position} is NaN",
            )


def _multi_head_rows(fn: Any) -> None:
    x, w_qkv, w_out, n_head = _multi_head_cases()[0]
    both, second = fn(x, w_qkv, w_out, n_head), fn(x[1:], w_qkv, w_out, n_head)
    if not torch.allclose(both[1:], second):
        raise Wrong(
            "rows mixed: one row of the batch must not change another", "row 1 alone gives something else"
        )


def _multi_head_future(fn: Any) -> None:
    x, w_qkv, w_out, n_head = _multi_head_cases()[0]
    other = x.clone()
    other[:, 3:] = -x[:, 3:] + 2
    moved = (fn(x, w_qkv, w_out, n_head) - fn(other, w_qkv, w_out, n_head))[:, :3].abs().max().item()
    if not moved < 1e-9:
        raise Wrong(
            "the future leaks: apply the causal mask, and keep (B, T) apart from heads when reshaping",
            f"changing positions 3 and 4 moved positions 0 to 2 by {moved:.3f}",
        )


def _by_kernel(x: Tensor, w_qkv: Tensor, w_out: Tensor, n_head: int) -> Tensor:
    q, k, v = (part.unflatten(-1, (n_head, -1)).movedim(-2, 1) for part in F.linear(x, w_qkv).chunk(3, -1))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.movedim(1, -2).flatten(-2) @ w_out.T


MULTI_HEAD = Exercise(
    name="day1.multi_head",
    title="several heads: split, attend, join",
    stub='''
def multi_head(x, w_qkv, w_out, n_head):
    """Causal multi-head self-attention without biases.

    x is (B, T, C); w_qkv is (3C, C): q, k and v stacked; w_out is (C, C); returns (B, T, C).
    (B, T, C) becomes (B, T, n_head, head_dim), then (B, n_head, T, head_dim). You may use
    ai_learning.model.reference_attention and causal_mask.
    """
    raise NotImplementedError
''',
    solution=CausalSelfAttention.forward,
    reference=_multi_head_reference,
    steps=(
        Step("gives (B, T, C)", _multi_head_shape),
        leaves_inputs(_multi_head_cases),
        Step("gives no NaN", _multi_head_no_nan),
        Step("keeps the rows of a batch apart", _multi_head_rows),
        Step("hides the future", _multi_head_future),
        equals(_multi_head_reference, _multi_head_cases),
        same_gradients(_multi_head_reference, _multi_head_cases),
    ),
    hints=(
        "q, k, v = (x @ w_qkv.T).split(C, dim=-1). What shape must each have before attention?",
        "view(B, T, n_head, C // n_head) cuts the last axis; transpose(1, 2) then brings the heads forward.",
        "Afterwards the same way back: transpose(1, 2).reshape(B, T, C) @ w_out.T.",
    ),
    cases=_multi_head_cases,
    mutants=(
        Mutant(
            "heads mixed",
            "view(B, n_head, T, head_dim) cuts across positions: split the last axis, then transpose",
            lambda x, a, b, n: _multi_head(
                x, a, b, n, split=lambda y, h: y.reshape(y.size(0), h, y.size(1), -1)
            ),
        ),
        Mutant(
            "heads mixed",
            "joining needs transpose(1, 2) before the reshape",
            lambda x, a, b, n: _multi_head(x, a, b, n, join=lambda o: o.reshape(x.shape)),
        ),
        Mutant(
            "heads mixed",
            "view(B, T, head_dim, n_head) deals channels out in turn; a head is a run of neighbours",
            lambda x, a, b, n: _multi_head(
                x, a, b, n, split=lambda y, h: y.view(*y.shape[:2], y.size(2) // h, h).permute(0, 3, 1, 2)
            ),
        ),
        Mutant(
            "one head only",
            "without a split there is one softmax for all channels: n_head is not used",
            lambda x, a, b, n: _multi_head(x, a, b, 1),
        ),
        Mutant(
            "the future leaks",
            "no causal mask",
            lambda x, a, b, n: (
                reference_attention(*(_split(p, n) for p in (x @ a.T).split(x.size(-1), -1)))[0]
                .transpose(1, 2)
                .reshape(x.shape)
                @ b.T
            ),
        ),
        Mutant(
            "q and k swapped",
            "the rows of w_qkv are q, k, v in this order",
            lambda x, a, b, n: _multi_head(x, a, b, n, order="kqv"),
        ),
        Mutant(
            "k and v swapped",
            "the rows of w_qkv are q, k, v in this order",
            lambda x, a, b, n: _multi_head(x, a, b, n, order="qvk"),
        ),
        Mutant(
            "NaN rows",
            "tril(-1) hides each position from itself, and position 0 sees nothing",
            lambda x, a, b, n: _multi_head(x, a, b, n, mask=lambda size: causal_mask(size).tril(-1)),
        ),
        Mutant(
            "not scaled",
            "the scores are divided by √head_dim; reference_attention does it for you",
            lambda x, a, b, n: _multi_head(x, a, b, n, scale=math.sqrt(x.size(-1) // n)),
        ),
        Mutant(
            "scaled by the wrong size",
            "the divisor is √head_dim, not √C: each head's vectors have C / n_head numbers",
            lambda x, a, b, n: _multi_head(x, a, b, n, scale=1 / math.sqrt(n)),
        ),
        Mutant(
            "no output projection",
            "heads are joined side by side and then mixed by w_out",
            lambda x, a, b, n: _multi_head(x, a, torch.eye(x.size(-1), dtype=x.dtype), n),
        ),
        Mutant(
            "output projection transposed",
            "nn.Linear keeps weights as (out, in): multiply by w_out.T",
            lambda x, a, b, n: _multi_head(x, a, b.T, n),
        ),
    ),
    alternatives=(
        lambda x, a, b, n: _multi_head(
            x,
            a,
            b,
            n,
            split=lambda y, h: torch.stack(y.chunk(h, dim=-1), dim=1),
            join=lambda o: torch.cat(o.unbind(1), -1),
        ),
        _by_kernel,
    ),
)

EXERCISES = (ATTENTION, CAUSAL_MASK, MULTI_HEAD)
