"""The shortlist names the token that all the logits would: on random heads, hard cases, and in generation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ai_learning import shortlist as module
from ai_learning.adapters import LoRAConfig, inject_lora
from ai_learning.generate import generate
from ai_learning.kernels.loops import Loops, ready, run
from ai_learning.model import GPT, GPTConfig
from ai_learning.shortlist import Shortlist

pytestmark = pytest.mark.skipif(not ready(), reason="numba is not installed")


def head_of(weight: torch.Tensor) -> nn.Linear:
    head = nn.Linear(weight.size(1), weight.size(0), bias=False)
    head.weight = nn.Parameter(weight)
    return head


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 200), st.integers(0, 2**31), st.floats(0, 3))
def test_it_is_the_likeliest_of_all(V: int, C: int, seed: int, uneven: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.exp(uneven * torch.randn(V, 1, generator=generator))  # rows of very different lengths
    weight, x = torch.randn(V, C, generator=generator) * rows, torch.randn(1, C, generator=generator)
    found = Shortlist(head_of(weight)).likeliest(x)
    assert found.shape == (1,) and found.dtype == torch.int64
    exact = (weight.double() @ x[0].double()).sort(descending=True)
    near = exact.indices[exact.values >= exact.values[0] - 1e-5 * exact.values.abs().max()]  # float32 ties
    assert int(found) in near.tolist()


def test_the_bounds_hold_and_are_needed() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 96) + 0.05 * torch.randn(5000, 96)  # rows alike, as embeddings are: near ties
    short = Shortlist(head_of(weight))
    rounded = wrong = 0
    for _ in range(200):
        x = torch.randn(1, 96)
        exact = weight.double() @ x[0].double()
        found = int(short.likeliest(x))
        assert (short.low <= exact).all() and (exact <= short.high).all()
        wrong += found != int(exact.argmax())
        rounded += int((short.low + short.high).argmax()) != int(exact.argmax())
    assert wrong == 0
    assert rounded > 5, "the codes alone would always do: this test shows nothing"


def test_equal_rows_give_the_first() -> None:
    torch.manual_seed(5)
    for _ in range(30):
        weight, x = torch.randn(3000, 257), torch.randn(1, 257)
        best = torch.randperm(3000)[:5]
        weight[best] = x * 0.3 + torch.randn(257) * 0.01
        assert int(Shortlist(head_of(weight)).likeliest(x)) == int(best.min())


@pytest.mark.parametrize("scale", [1e-33, 1e-25, 1e-18, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("of", ["states", "weights"])
def test_tiny_and_large_numbers(of: str, scale: float) -> None:
    torch.manual_seed(6)
    weight = torch.randn(1, 96) + 0.05 * torch.randn(2000, 96)
    head = head_of(weight * scale if of == "weights" else weight)
    short = Shortlist(head)
    for _ in range(40):
        x = torch.randn(1, 96) * (scale if of == "states" else 1.0)
        exact = head.weight.double() @ x[0].double()
        assert exact[short.likeliest(x)] >= exact.max() - 1e-5 * exact.abs().max()


def test_other_dtypes_are_read_as_float32() -> None:
    torch.manual_seed(8)
    head, x = head_of(torch.randn(500, 40).bfloat16()), torch.randn(1, 40).bfloat16()
    exact = head.weight.double() @ x[0].double()
    assert int(Shortlist(head).likeliest(x)) == int(exact.argmax())


def test_threads_change_nothing() -> None:
    torch.manual_seed(7)
    head, before = head_of(torch.randn(9001, 61)), torch.get_num_threads()
    states = torch.randn(50, 1, 61)
    found = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            short = Shortlist(head)
            found.append([int(short.likeliest(x)) for x in states])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == [int(head(x).argmax()) for x in states]


def test_bounds_are_tight_enough_to_save_work() -> None:
    torch.manual_seed(1)
    short = Shortlist(head_of(torch.randn(20_000, 128)))
    lengths = []
    for _ in range(50):
        short.likeliest(torch.randn(1, 128))
        lengths.append(int((short.high >= short.low.max()).sum()))
    assert np.mean(lengths) < 20


@pytest.mark.parametrize("x", [0.0, math.nan, math.inf, -math.inf, 1e38])
def test_states_that_are_no_numbers_fall_back(x: float) -> None:
    torch.manual_seed(2)
    head = head_of(torch.randn(300, 16))
    state = torch.randn(1, 16)
    state[0, 3] = x
    for given_state in (state, torch.full((1, 16), x)):
        want = torch.from_numpy(head(given_state).detach().numpy().argmax(-1))
        assert torch.equal(Shortlist(head).likeliest(given_state), want)


def test_zero_rows_ties_and_broken_rows() -> None:
    weight = torch.zeros(100, 8)
    assert int(Shortlist(head_of(weight)).likeliest(torch.ones(1, 8))) == 0  # all alike: the first
    weight[[7, 40, 93]] = torch.arange(8.0)
    assert int(Shortlist(head_of(weight)).likeliest(torch.ones(1, 8))) == 7
    weight[50, 2] = math.nan  # as argmax has it, NaN is the largest
    assert int(Shortlist(head_of(weight)).likeliest(torch.ones(1, 8))) == 50


@pytest.mark.parametrize("B", [1, 8, 17])
@pytest.mark.parametrize("values", ["random", "ties", "NaN", "minus infinity"])
def test_the_largest_of_columns_is_argmax(B: int, values: str) -> None:
    torch.manual_seed(4)
    logits = torch.randn(501, B)
    if values == "ties":
        logits = logits.round()
    if values == "NaN":
        logits[torch.rand(501, B) < 0.01] = math.nan
    if values == "minus infinity":
        logits[:] = -math.inf
        logits[300, ::2] = 1.0
    rows = torch.empty(B, dtype=torch.int64)
    run(
        Loops("kernels.shortlist_kernels").largest_of_columns,
        0,
        B,
        1,
        (501, B),
        (logits, rows, torch.empty(B)),
    )
    assert rows.tolist() == logits.numpy().argmax(0).tolist()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> GPT:
    """A small model whose head counts as large; `used` on it tells how many shortlists were made."""
    monkeypatch.setattr(module, "_WORTH_IT", 1)
    torch.manual_seed(3)
    gpt = GPT(GPTConfig(vocab_size=997, block_size=64, n_layer=2, n_head=2, n_embd=32)).eval()
    for p in gpt.parameters():
        nn.init.normal_(p, std=0.3)
    gpt.used = 0

    class Counted(Shortlist):
        def __init__(self, head: nn.Linear) -> None:
            gpt.used += 1
            super().__init__(head)

    monkeypatch.setattr(module, "Shortlist", Counted)
    return gpt


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_are_the_same(model: GPT, use_cache: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    idx = torch.randint(0, 997, (1, 7))
    short = generate(model, idx, 80, temperature=0, use_cache=use_cache)  # past block_size, too
    assert model.used == 1
    monkeypatch.setattr(module, "WORTH_STEPS", 10**9)
    assert torch.equal(short, generate(model, idx, 80, temperature=0, use_cache=use_cache))
    assert model.used == 1


def test_greedy_tokens_of_a_batch_are_the_same(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = module.likeliest_of_batch
    monkeypatch.setattr(module, "likeliest_of_batch", lambda *args: calls.append(1) or real(*args))
    idx = torch.randint(0, 997, (9, 7))
    together = generate(model, idx, 40, temperature=0)
    assert len(calls) == 40
    monkeypatch.setattr(module, "WORTH_A_BATCH", 10)
    assert torch.equal(together, generate(model, idx, 40, temperature=0))
    assert len(calls) == 40


def test_it_keeps_out_of_what_it_cannot_do(model: GPT) -> None:
    one = torch.zeros(1, 3, dtype=torch.long)
    generate(model, one, 5, temperature=0)  # too few steps to pay
    generate(model, torch.zeros(2, 3, dtype=torch.long), 40, temperature=0)
    generate(model, one, 40, seed=0)
    generate(model, one, 40, temperature=0, repetition_penalty=1.2)
    seen = []
    with_hook = model.lm_head.register_forward_hook(lambda *args: seen.append(1))
    generate(model, one, 40, temperature=0)
    with_hook.remove()
    assert len(seen) == 40
    everywhere = nn.modules.module.register_module_forward_hook(lambda *args: None)
    generate(model, one, 40, temperature=0)
    everywhere.remove()
    model.lm_head.forward = model.lm_head.forward  # as libraries do that watch a layer
    generate(model, one, 40, temperature=0)
    del model.lm_head.forward
    for rows in (1, 9):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            generate(model, torch.zeros(rows, 3, dtype=torch.long), 40, temperature=0)
    inject_lora(model, LoRAConfig(r=2, target_modules=["c_attn", "lm_head"]))
    generate(model, one, 40, temperature=0)
    assert model.used == 0


def test_a_new_weight_is_seen_by_the_next_call(model: GPT) -> None:
    one = torch.zeros(1, 3, dtype=torch.long)
    before = generate(model, one, 40, temperature=0)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    assert not torch.equal(before, generate(model, one, 40, temperature=0))
    assert model.used == 2
