"""Sampling functions, the cached loop, stop strings and long contexts."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ai_learning.generate import (
    Sampling,
    apply_min_p,
    apply_repetition_penalty,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    generate,
    generate_batch,
    generate_text,
    likeliest,
    next_token,
    probabilities,
    seed_of_sample,
    stream,
    stream_text,
)
from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import ByteTokenizer

PROBABILITIES = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
LOGITS = PROBABILITIES.log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


def test_filters_by_hand() -> None:
    assert kept(apply_top_k(LOGITS, 2)) == [0, 1]
    assert kept(apply_top_k(LOGITS, 99)) == [0, 1, 2, 3]
    assert kept(apply_top_p(LOGITS, 0.5)) == [0]
    assert kept(apply_top_p(LOGITS, 0.51)) == [0, 1]
    assert len(kept(apply_top_p(torch.zeros(1, 4), 0.5))) == 2  # "reach": two quarters are enough
    assert kept(apply_top_p(LOGITS, 1e-9)) == [0]  # never nothing
    assert kept(apply_min_p(LOGITS, 0.2)) == [0, 1, 2]
    assert kept(apply_min_p(LOGITS, 0.0)) == [0, 1, 2, 3]
    assert torch.allclose(apply_temperature(LOGITS, 0.5).softmax(-1), (LOGITS * 2).softmax(-1))
    for tiny in (1e-42, 1e-50, 5e-324):  # no overflow
        assert apply_temperature(LOGITS, tiny).softmax(-1).tolist() == [[1.0, 0.0, 0.0, 0.0]]
        assert kept(apply_top_p(LOGITS, tiny)) == [0]
    ruled_out = LOGITS.masked_fill(LOGITS < -2, -math.inf)
    assert apply_temperature(ruled_out, 1e300).softmax(-1)[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_top_p_of_1_keeps_every_token() -> None:
    """Also those that come after float32's sum of probabilities has reached 1."""
    logits = 8 * torch.randn(2, 50_000)
    assert torch.equal(apply_top_p(logits, 1.0), logits)
    assert torch.equal(probabilities(logits, Sampling(top_p=1.0)), probabilities(logits, Sampling()))


def test_top_p_finds_them_in_any_order() -> None:
    shuffled = LOGITS[:, [2, 0, 3, 1]]
    assert kept(apply_top_p(shuffled, 0.7)) == [1, 3]


def test_repetition_penalty() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    assert apply_repetition_penalty(logits, torch.tensor([[0, 1, 1]]), 2.0).tolist() == [[1.0, -4.0, 1.0]]


logit_rows = hnp.arrays("float32", (2, 9), elements=st.floats(-20, 20, width=32))


@given(logit_rows, st.floats(0.01, 1.0), st.integers(1, 12), st.floats(0.0, 1.0))
def test_filters_keep_the_likeliest_and_change_no_kept_logit(rows, p: float, k: int, m: float) -> None:  # type: ignore[no-untyped-def]
    logits = torch.from_numpy(rows)
    filtered = apply_top_k(apply_top_p(logits, p), k)
    if m > 0:
        filtered = apply_min_p(filtered, m)
    finite = filtered.isfinite()
    assert finite.gather(-1, logits.argmax(-1, keepdim=True)).all()
    assert torch.equal(filtered[finite], logits[finite])
    lowest_kept = filtered.masked_fill(~finite, math.inf).amin(-1, keepdim=True)
    assert (logits.masked_fill(finite, -math.inf) <= lowest_kept).all()


@pytest.mark.parametrize(
    "filters", [dict(top_k=5), dict(top_p=0.8), dict(min_p=0.1), dict(temperature=0.7, top_k=8)]
)
def test_filters_equal_transformers(filters: dict[str, float]) -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(4, 50) * 3
    theirs, idx = logits / filters.get("temperature", 1.0), torch.zeros(4, 1, dtype=torch.long)
    ours = apply_temperature(logits, filters.get("temperature", 1.0))
    if "top_k" in filters:
        theirs, ours = (
            transformers.TopKLogitsWarper(filters["top_k"])(idx, theirs),
            apply_top_k(ours, filters["top_k"]),
        )
    if "top_p" in filters:
        theirs, ours = (
            transformers.TopPLogitsWarper(filters["top_p"])(idx, theirs),
            apply_top_p(ours, filters["top_p"]),
        )
    if "min_p" in filters:
        theirs, ours = (
            transformers.MinPLogitsWarper(filters["min_p"])(idx, theirs),
            apply_min_p(ours, filters["min_p"]),
        )
    assert torch.equal(ours.isfinite(), theirs.isfinite())
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1))


def test_samples_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    idx = torch.zeros(20_000, 1, dtype=torch.long)
    chosen = next_token(LOGITS.expand(20_000, -1), idx, Sampling(), generator)
    frequency = chosen.bincount(minlength=4) / 20_000
    torch.testing.assert_close(frequency, PROBABILITIES[0], atol=0.015, rtol=0)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(3)
    config = GPTConfig(vocab_size=258, block_size=24, n_layer=2, n_head=2, n_embd=32, tie_weights=False)
    gpt = GPT(config).eval()
    with torch.no_grad():  # untrained logits are nearly flat: spread them, so that a wrong cache shows
        for p in gpt.parameters():
            if p.dim() == 2:
                p.mul_(10)
    return gpt


@pytest.mark.parametrize("options", [dict(temperature=0), dict(seed=1), dict(seed=2, top_k=20, top_p=0.9)])
@pytest.mark.parametrize("length", [1, 7, 23, 24, 30])
def test_cache_gives_the_same_ids_also_past_the_context(model: GPT, options: dict, length: int) -> None:
    idx = torch.randint(0, 258, (3, length))
    one = generate(model, idx, 20, use_cache=True, **options)
    other = generate(model, idx, 20, use_cache=False, **options)
    assert one.shape == (3, length + 20)
    assert torch.equal(one, other)
    assert torch.equal(one[:, :length], idx)


def test_a_full_context_slides(model: GPT) -> None:
    """Past ``block_size`` each token is what the last ``block_size`` tokens say: nanoGPT's rule."""
    ids = generate(model, torch.randint(0, 258, (1, 20)), 20, temperature=0)
    for length in range(24, 40):
        expected = model(ids[:, length - 24 : length])[0, -1].argmax()
        assert ids[0, length] == expected


def test_greedy_equals_transformers_generate() -> None:
    transformers = pytest.importorskip("transformers")
    from ai_learning.pretrained import from_hf

    config = transformers.GPT2Config(
        n_layer=3, n_head=4, n_embd=64, vocab_size=101, n_positions=128, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    idx = torch.randint(0, 101, (2, 5))
    reference = theirs.generate(idx, max_new_tokens=100, do_sample=False, pad_token_id=0)
    assert torch.equal(generate(from_hf(theirs), idx, 100, temperature=0), reference)


def test_seeds(model: GPT) -> None:
    idx = torch.zeros(2, 4, dtype=torch.long)
    assert torch.equal(generate(model, idx, 16, seed=5), generate(model, idx, 16, seed=5))
    assert not torch.equal(generate(model, idx, 16, seed=5), generate(model, idx, 16, seed=6))
    before = torch.get_rng_state()
    generate(model, idx, 16, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    generate(model, idx, 1, seed=2**64 - 1)


def test_samples_of_neighbouring_seeds_do_not_overlap() -> None:
    largest = 2**64 - 1
    seeds = [seed_of_sample(seed, number) for seed in (0, 1, 2, 3, largest) for number in range(4)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed <= largest for seed in seeds)  # type: ignore[operator]
    assert seed_of_sample(5, 0) == 5 and seed_of_sample(None, 3) is None


def test_stop_ids_end_rows_one_by_one(model: GPT) -> None:
    idx = torch.randint(0, 258, (4, 3))
    free = generate(model, idx, 12, temperature=0)
    stop = [int(free[0, 5]), int(free[1, 8])]
    ids = generate(model, idx, 12, temperature=0, stop=stop)
    for row in range(4):
        new = free[row, 3:].tolist()
        ends = [n for n, token in enumerate(new) if token in stop]
        expected = new if not ends else new[: ends[0] + 1] + [new[ends[0]]] * (11 - ends[0])
        assert ids[row, 3:].tolist() == expected[: ids.size(1) - 3]
    assert generate(model, idx[:1], 12, temperature=0, stop=stop[0]).size(1) == 6
    several: list[Any] = [stop, tuple(stop), set(stop), np.array(stop), torch.tensor(stop), np.int32(stop)]
    for same in several:
        assert torch.equal(generate(model, idx, 12, temperature=0, stop=same), ids)
        assert generate_batch(model, idx.tolist(), 12, temperature=0, stop=same)[0] == ids[0, :6].tolist()
    one: list[Any] = [np.int64(stop[0]), np.array(stop[0]), torch.tensor(stop[0]), torch.tensor(stop[:1])]
    for same in one:
        assert generate(model, idx[:1], 12, temperature=0, stop=same).size(1) == 6
    for wrong in ("\n", 1.5, [1.5], torch.tensor([0.5])):
        with pytest.raises(ValueError, match="must be an id or several, whole numbers"):
            generate(model, idx, 1, stop=wrong)  # type: ignore[arg-type]


def test_the_mode_is_put_back(model: GPT) -> None:
    model.train()
    generate(model, torch.zeros(1, 2, dtype=torch.long), 2)
    assert model.training
    for _ in stream(model, torch.zeros(1, 2, dtype=torch.long), 5):
        break
    assert model.training


class Scripted(GPT):
    """A GPT that says what it is told, so that text handling can be tested byte by byte."""

    def __init__(self, script: bytes) -> None:
        super().__init__(GPTConfig(vocab_size=258, block_size=256, n_layer=1, n_head=1, n_embd=258))
        self.script, self.prompt_length = script, None
        with torch.no_grad():
            self.lm_head.weight = torch.nn.Parameter(torch.eye(258) * 100)

    def hidden(self, idx, *, cache=None, **options):  # type: ignore[no-untyped-def]
        total = (cache.length if cache else 0) + idx.size(1)
        if cache:
            for layer in cache.layers:
                layer.length = total
        self.prompt_length = self.prompt_length or total
        place = total - self.prompt_length
        token = self.script[place] if place < len(self.script) else 256
        return torch.nn.functional.one_hot(torch.full((1, idx.size(1)), token), 258).float()


def pieces(script: bytes, **options) -> list[str]:  # type: ignore[no-untyped-def]
    return list(stream_text(Scripted(script), ByteTokenizer(), "x", 200, temperature=0, **options))


def test_streaming_never_shows_half_a_character() -> None:
    text = "né €😀!"
    assert pieces(text.encode()) == list(text)
    assert "".join(pieces(b"ok\xf0\x9f")) == "ok"  # broken off in the middle of a character


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), st.text("ab", min_size=1, max_size=3))
def test_stop_strings_are_never_shown(text: str, stop: str) -> None:
    script = text + stop + "after"
    shown = "".join(pieces(script.encode(), stop=(stop,)))
    assert shown == script[: script.index(stop)]


def test_text_ends_at_the_end_of_document(model: GPT) -> None:
    assert "".join(pieces(b"one")) == "one"  # then the script says 256
    assert generate_text(Scripted(b"abc"), ByteTokenizer(), "", 2, temperature=0) == "ab"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-1.0), r"temperature=-1.0 must be 0 \(greedy\) or positive"),
        (dict(top_k=0), "top_k=0 must be at least 1"),
        (dict(top_k=2.5), "top_k=2.5 must be a whole number"),
        (dict(top_p=0.0), "top_p=0.0 must be above 0 and at most 1"),
        (dict(min_p=1.5), "min_p=1.5 must be from 0 to 1"),
        (dict(repetition_penalty=0.0), "repetition_penalty=0.0 must be positive"),
        (dict(repetition_penalty=1e-40), "repetition_penalty=1e-40 must be positive, from 0.01 to 100;"),
        (dict(repetition_penalty=1e300), r"repetition_penalty=1e\+300 must be"),
        (dict(seed=2**64), "seed=18446744073709551616 must be below"),
        (dict(temperature=math.nan), "temperature=nan must be"),
        (dict(temperature=math.inf), "temperature=inf must be"),
        (dict(seed=-1), "seed=-1 must not be negative"),
        (dict(seed=1.5), "seed=1.5 must be a whole number"),
    ],
)
def test_bad_sampling_values(model: GPT, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, torch.zeros(1, 2, dtype=torch.long), 2, **options)


def test_strings_and_shapes_that_cannot_be_used(model: GPT) -> None:
    with pytest.raises(ValueError, match="a stop string is empty"):
        pieces(b"abc", stop=("",))
    with pytest.raises(ValueError, match=r"idx must have shape \(B, T\), got \(3,\)"):
        generate(model, torch.zeros(3, dtype=torch.long), 2)
    ids = generate(model, torch.zeros(1, 2, dtype=torch.long), 10**9, temperature=0, stop=list(range(258)))
    assert ids.shape == (1, 3)  # room is made as it is needed, not at once
    with pytest.raises(ValueError, match=r"max_new_tokens=2\.0 must be a whole number"):
        generate(model, torch.zeros(1, 2, dtype=torch.long), 2.0)  # type: ignore[arg-type]
    assert pieces(b"one two", stop="e t") == pieces(b"one two", stop=["e t"])  # one is one, not its letters
    array = np.array([[1, 2], [3, 4]])
    assert generate_batch(model, array, 2, temperature=0) == generate_batch(
        model, array.tolist(), 2, temperature=0
    )
    strict = stream_text(Scripted(b"ab\xff"), ByteTokenizer(errors="strict"), "x", 9, temperature=0)
    assert "".join(strict) == "ab\ufffd"


@pytest.mark.parametrize("kind", [np.int64, torch.tensor])
def test_seeds_of_numpy_and_pytorch(model: GPT, kind: Any) -> None:
    idx = torch.zeros(1, 2, dtype=torch.long)
    assert torch.equal(generate(model, idx, 4, seed=kind(7)), generate(model, idx, 4, seed=7))


def test_empty_prompt_raises(model: GPT) -> None:
    with pytest.raises(ValueError, match=r"\(B, T\) with T ≥ 1"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 2)


ROTARY = GPTConfig(
    vocab_size=258, block_size=24, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, positions="rotary", bias=False
)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("attention", ["fast", "reference"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("n_new", [6, 30])
def test_prompts_of_different_lengths_are_each_as_if_alone(
    model: GPT, positions: str, attention: str, use_cache: bool, n_new: int
) -> None:
    """Also where the longest has slid out of its context (of 24) and the shortest has not."""
    base = ROTARY if positions == "rotary" else model.config
    torch.manual_seed(5)
    gpt = GPT(replace(base, attention=attention)).eval()
    with torch.no_grad():
        for p in gpt.parameters():
            if p.dim() == 2:
                p.mul_(8)
    prompts = [[5], list(range(40, 52)), [9, 9, 200], list(range(100, 117))]
    together = generate_batch(gpt, prompts, n_new, temperature=0, use_cache=use_cache)
    for prompt, ids in zip(prompts, together, strict=True):
        alone = generate(gpt, torch.tensor([prompt]), n_new, temperature=0, use_cache=use_cache)
        assert ids == alone[0].tolist()


def test_a_row_that_stops_leaves_the_others_going(model: GPT) -> None:
    prompts = [[5], [9, 9, 200]]
    free = generate_batch(model, prompts, 8, temperature=0)
    stop = free[0][3]
    stopped = generate_batch(model, prompts, 8, temperature=0, stop=stop)
    assert stopped[0] == free[0][: free[0].index(stop, 1) + 1] and stopped[0][-1] == stop
    assert stopped[1][:3] == prompts[1] and (stop in stopped[1][3:] or len(stopped[1]) == 11)
    with pytest.raises(ValueError, match="every prompt needs at least one id"):
        generate_batch(model, [[1], []], 2)


def test_the_likeliest_is_argmax_ties_and_nan_included() -> None:
    logits = torch.randn(7, 1001)
    logits[1, [5, 900]] = logits[2, [0, 1]] = 9.0  # the first of several
    logits[3, 77] = math.nan  # counts as the largest
    logits[4] = -math.inf
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(likeliest(logits.to(dtype)), logits.to(dtype).argmax(-1))
