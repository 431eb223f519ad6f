"""Perplexity and bits per byte: every token once, each with the context that the stride promises."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.evaluate import score_tokens
from ai_learning.model import GPT, GPTConfig
from ai_learning.token_file import Shards

torch.manual_seed(0)
MODEL = GPT(GPTConfig(vocab_size=16, block_size=8, n_layer=1, n_head=2, n_embd=16)).eval()
with torch.no_grad():
    MODEL.wte.weight.mul_(20)


def by_hand(tokens: np.ndarray, stride: int) -> float:
    """One prediction at a time, with the context of the first window that reaches it."""
    total = 0.0
    for target in range(1, len(tokens)):
        window = 0 if target <= 8 else math.ceil((target - 8) / stride)
        context = torch.from_numpy(tokens[window * stride : target].astype(np.int64))[None]
        total += F.cross_entropy(MODEL(context)[0, -1:], torch.tensor([int(tokens[target])])).item()
    return total / (len(tokens) - 1)


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(1, 4))
def test_equals_one_prediction_at_a_time(length: int, stride: int, batch_size: int) -> None:
    tokens = np.random.default_rng(length).integers(0, 16, length).astype(np.uint16)
    score = score_tokens(MODEL, tokens, n_bytes=length, stride=stride, batch_size=batch_size)
    assert score.n_tokens == length - 1
    assert score.loss == pytest.approx(by_hand(tokens, stride), rel=1e-4)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(score.loss * (length - 1) / math.log(2) / length)


def test_tokens_of_any_kind() -> None:
    tokens = np.random.default_rng(0).integers(0, 16, 20)
    expected = score_tokens(MODEL, tokens, 20, stride=3)
    kinds = (tokens.tolist(), torch.from_numpy(tokens), Shards([tokens[:7], tokens[7:]]))
    assert all(score_tokens(MODEL, kind, 20, stride=3) == expected for kind in kinds)


def test_bad_values() -> None:
    tokens = np.zeros(9, dtype=np.uint16)
    for stride in (0, 9):
        with pytest.raises(InputError, match=f"stride={stride} must be from 1 to block_size=8"):
            score_tokens(MODEL, tokens, 9, stride=stride)
    with pytest.raises(InputError, match="the text has 1 tokens: at least 2"):
        score_tokens(MODEL, tokens[:1], 1)
