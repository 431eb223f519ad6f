"""Speculative decoding: the large model's own text, and its own distribution."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from ai_learning.generate import Sampling, generate, probabilities
from ai_learning.model import GPT, GPTConfig
from ai_learning.speculative import Acceptance, speculative_stream

CONFIG = GPTConfig(vocab_size=40, block_size=64, n_layer=2, n_head=2, n_embd=32, tie_weights=False)


def sharp(config: GPTConfig, seed: int) -> GPT:
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(8)
    return model


MODEL, DRAFT = sharp(CONFIG, 1), sharp(replace(CONFIG, n_layer=1), 2)
IDX = torch.tensor([[3, 1, 4]])


@pytest.mark.parametrize("n_guesses", [1, 3, 7])
@pytest.mark.parametrize("draft", [DRAFT, MODEL], ids=["another", "itself"])
def test_greedy_is_the_large_models_text(draft: GPT, n_guesses: int) -> None:
    expected = generate(MODEL, IDX, 50, temperature=0)[0, 3:].tolist()
    stats = Acceptance()
    greedy = Sampling(temperature=0)
    found = list(speculative_stream(MODEL, draft, IDX, 50, greedy, n_guesses=n_guesses, acceptance=stats))
    assert found == expected
    if draft is MODEL:  # every guess is right: the fewest passes that there can be
        assert stats.rate == 1.0 and stats.passes == -(-50 // (n_guesses + 1))
    else:
        assert stats.rate < 1.0


@pytest.mark.parametrize("rooms", [(64, 20), (20, 64), (20, 20), (30, 2)], ids=str)
@pytest.mark.parametrize("length", [3, 19, 20, 21, 31])
def test_past_a_context_the_text_goes_on(rooms: tuple[int, int], length: int) -> None:
    """Without guesses where the draft's context ends, sliding where the model's does."""
    torch.manual_seed(length)
    model, draft = (
        sharp(replace(CONFIG, block_size=room), seed) for room, seed in zip(rooms, (1, 1), strict=True)
    )
    idx = torch.randint(0, 40, (1, length))
    expected = generate(model, idx, 40, temperature=0)[0, length:].tolist()
    stats = Acceptance()
    assert (
        list(speculative_stream(model, draft, idx, 40, Sampling(temperature=0), acceptance=stats)) == expected
    )
    assert (stats.guessed > 0) == (length <= min(rooms[0] - 1, rooms[1]))  # as long as both can, they do
    drawn = list(speculative_stream(model, draft, idx, 40, seed=3))
    assert len(drawn) == 40


def test_dropout_is_switched_off_and_on_again() -> None:
    model, draft = (sharp(replace(CONFIG, dropout=0.5), seed).train() for seed in (1, 2))
    greedy = Sampling(temperature=0)
    texts = [list(speculative_stream(model, draft, IDX, 20, greedy)) for _ in range(2)]
    assert texts[0] == texts[1] == generate(model, IDX, 20, temperature=0)[0, 3:].tolist()
    assert model.training and draft.training
    draft.eval()
    next(speculative_stream(model, draft, IDX, 20, greedy))
    assert model.training and not draft.training
    assert list(speculative_stream(model, model, IDX, 20, greedy)) == texts[0] and model.training


def test_samples_follow_the_large_models_distribution() -> None:
    """Two tokens, by brute force over all pairs: drawn 6000 times, at a temperature and with top-k."""
    sampling = Sampling(temperature=0.9, top_k=5)
    with torch.no_grad():
        first = probabilities(MODEL(IDX)[:, -1], sampling)[0]
        pairs = torch.zeros(40, 40)
        for token in first.nonzero().flatten().tolist():
            then = MODEL(torch.cat([IDX, torch.tensor([[token]])], dim=1))[:, -1]
            pairs[token] = first[token] * probabilities(then, sampling)[0]
    counts = torch.zeros(40, 40)
    n = 6000
    for seed in range(n):
        a, b = speculative_stream(MODEL, DRAFT, IDX, 2, sampling, n_guesses=2, seed=seed)
        counts[a, b] += 1
    assert (counts[pairs == 0] == 0).all()
    assert (counts / n - pairs).abs().sum() / 2 < 0.04  # total variation; the draft's own is far away
    with torch.no_grad():
        wished = probabilities(DRAFT(IDX)[:, -1], sampling)[0]
    assert (wished - first).abs().sum() / 2 > 0.3


def test_seeds_repeat_and_bad_input_is_refused() -> None:
    def draw(seed: int) -> list[int]:
        return list(speculative_stream(MODEL, DRAFT, IDX, 20, seed=seed))

    assert draw(1) == draw(1) != draw(2)
    other = GPT(replace(CONFIG, vocab_size=41))
    for options, message in (
        ({"draft": other}, "must share a tokenizer; they have 41 and 40 ids"),
        ({"idx": torch.zeros(2, 3, dtype=torch.long)}, "takes one prompt"),
        ({"idx": IDX[0]}, r"idx must have shape \(B, T\), got \(3,\)"),
        ({"idx": IDX[:, :0]}, r"\(B, T\) with T ≥ 1"),
        ({"sampling": Sampling(repetition_penalty=1.2)}, "leave it at 1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must not be negative"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be below"),
        ({"n_guesses": 0}, "n_guesses=0 must be at least 1"),
    ):
        arguments: dict[str, Any] = {
            "model": MODEL,
            "draft": DRAFT,
            "idx": IDX,
            "max_new_tokens": 4,
        } | options
        with pytest.raises(ValueError, match=message):
            next(speculative_stream(**arguments))
