"""Answers that are near: right ones from elsewhere, which must pass, and slips whose cause must be true."""

import heapq
import math

import pytest
import torch.nn.functional as F

from ai_learning.checks import check, exercise
from ai_learning.model import causal_mask, reference_attention


@pytest.mark.parametrize(
    ("name", "warper"),
    [
        ("day5.top_k", "TopKLogitsWarper"),
        ("day5.top_p", "TopPLogitsWarper"),
        ("day5.min_p", "MinPLogitsWarper"),
    ],
)
def test_transformers_own_answers_pass(name: str, warper: str) -> None:
    made = getattr(pytest.importorskip("transformers.generation.logits_process"), warper)
    report = check(lambda logits, how: made(how)(None, logits), name, quiet=True)
    assert report, str(report)


def test_any_of_equal_places_may_stay() -> None:
    def by_heap(p, tau_s, k):
        return sorted(heapq.nlargest(k, (i for i in range(len(p)) if p[i] > tau_s), key=lambda i: (p[i], i)))

    report = check(by_heap, "day12.call_places", quiet=True)
    assert report, str(report)


def scores_of(q, k, mask=None, scale=1.0):
    scores = q @ k.transpose(-2, -1) * scale
    return scores if mask is None else scores.masked_fill(mask == 0, -math.inf)


def dropped(q, k, v, mask=None):
    _, weights = reference_attention(q, k, v, mask)
    weights = F.dropout(weights, 0.5)
    return weights @ v, weights


def halved(q, k, v, mask=None):
    output, weights = reference_attention(q, k, v, mask)
    return output / 2, weights / 2


def plain_scores(q, k, v, mask=None):
    scores = scores_of(q, k, mask)
    return scores @ v, scores


def zeroed_scores(q, k, v, mask=None):
    scores = scores_of(q, k) if mask is None else scores_of(q, k) * mask
    return scores @ v, scores


def late_mask(q, k, v, mask=None):
    weights = scores_of(q, k).softmax(-1)  # not scaled either: the ladder's own sentence, no mutant's
    weights = weights if mask is None else weights * mask
    return weights @ v, weights


def over_heads(q, k, v, mask=None):
    weights = scores_of(q, k).softmax(1)
    return weights @ v, weights


def by_third_root(q, k, v, mask=None):
    weights = scores_of(q, k, mask, q.size(-1) ** (-1 / 3)).softmax(-1)
    return weights @ v, weights


def blind_to_itself(x, w_qkv, w_out, n_head):
    q, k, v = (x @ w_qkv.T).split(x.size(-1), dim=-1)
    hidden = causal_mask(x.size(1)).tril(-1)
    return reference_attention(*(y[:, None] for y in (q, k, v)), hidden)[0][:, 0] @ w_out.T


def last_lost(ids, pair, new_id):
    out, i = [], 0
    while i < len(ids) - 1:
        out.append(new_id if (ids[i], ids[i + 1]) == pair else ids[i])
        i += 1 + ((ids[i], ids[i + 1]) == pair)
    return out if len(ids) > 1 else list(ids)


@pytest.mark.parametrize(
    ("answer", "name", "cause"),
    [
        (dropped, "day1.attention", "a query's weights do not sum to 1"),
        (halved, "day1.attention", "a query's weights do not sum to 1"),
        (zeroed_scores, "day1.attention", "a query's weights do not sum to 1"),
        (plain_scores, "day1.attention", "no softmax"),
        (late_mask, "day1.attention", "mask after softmax"),
        (over_heads, "day1.attention", "softmax over the wrong axis"),
        (by_third_root, "day1.attention", "scaled by the wrong size"),
        (blind_to_itself, "day1.multi_head", "NaN rows"),
        (lambda x, t: (x / max(t, 0.9)).softmax(-1), "day5.temperature", "not sharp when cold"),
        (lambda x, t: (x / min(t, 60)).softmax(-1), "day5.temperature", "not flat when hot"),
        (lambda x, t: (x * t * t).softmax(-1), "day5.temperature", "upside down"),
        (lambda x, t: (x / t).sigmoid(), "day5.temperature", "a row does not sum to 1"),
        (
            lambda x, c: [*x, [i for _, z in c for i in z]] if c else [*x],
            "day13.interleave",
            "a list inside the row",
        ),
        (last_lost, "day16.merge", "another result"),
    ],
)
def test_the_cause_is_true_of_what_no_mutant_foresaw(answer, name: str, cause: str) -> None:
    report = check(answer, name, quiet=True)
    assert not report
    assert report.cause.startswith(cause), str(report)


def test_a_top_k_that_hides_nothing_is_not_called_a_choice_over_the_batch() -> None:
    report = check(lambda x, k: x + 0, "day5.top_k", quiet=True)
    assert report.cause.startswith("nothing goes"), str(report)


def test_the_largest_tensor_is_not_called_the_largest_entry() -> None:
    wrong = next(m for m in exercise("day4.clip_gradients").mutants if m.name == "largest tensor")
    assert check(wrong.fn, "day4.clip_gradients", quiet=True).cause == wrong.cause
