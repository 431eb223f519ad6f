"""The shortlist names the token that all the logits would: on random heads, hard cases, and in generation."""

import math
from dataclasses import replace

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


# ---- batches, on tile registers ------------------------------------------------------------------

batches = pytest.mark.skipif(
    not module.takes_batches(nn.Linear(64, 100, bias=False)), reason="no tile registers for int8"
)


@batches
@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 50), st.integers(32, 700), st.integers(1, 4), st.integers(0, 2**31), st.floats(0, 3),
    st.floats(0, 1),
)  # fmt: skip
def test_each_of_a_batch_is_the_likeliest(
    B: int, V: int, steps: int, seed: int, uneven: float, alike: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    C = 64 * steps
    weight = alike * torch.randn(1, C, generator=generator) + torch.randn(V, C, generator=generator)
    weight *= torch.exp(uneven * torch.randn(V, 1, generator=generator))
    x = torch.randn(B, C, generator=generator) * torch.exp(uneven * torch.randn(B, 1, generator=generator))
    found = Shortlist(head_of(weight)).likeliest(x)
    assert found.shape == (B,) and found.dtype == torch.int64
    exact = x.double() @ weight.double().T
    chosen = exact.gather(1, found[:, None])[:, 0]
    assert (chosen >= exact.amax(1) - 1e-5 * exact.abs().amax(1)).all()


@batches
def test_the_bounds_of_a_batch_hold_and_are_needed() -> None:
    """All rows are found where no lower bound excludes any: then `high` shows what each bound is."""
    torch.manual_seed(0)
    V, C, B = 250, 128, 20
    weight = torch.randn(1, C) + 0.05 * torch.randn(V, C)
    short, x = Shortlist(head_of(weight)), torch.randn(B, C) * torch.exp(2 * torch.randn(B, 1))
    exact = x.double() @ weight.double().T
    assert (exact.gather(1, short.likeliest(x)[:, None])[:, 0] == exact.amax(1)).all()
    lows, highs = [], []
    for sign, to in ((1, highs), (-1, lows)):
        short.likeliest(sign * x)
        space = short._space
        assert space is not None
        for row in range(V):  # one at a time: each is its own likeliest
            one = Shortlist(head_of(weight[[row] * 32]))
            one.likeliest(sign * x)
            assert one._space is not None
            part = int(one._space.counts[:, 0].argmax())  # the thread's that looked at these rows
            to.append(sign * one._space.high[part, :, 0].reshape(-1)[:B])
    low, high = torch.stack(lows, 1), torch.stack(highs, 1)
    assert (low <= exact).all() and (exact <= high).all()
    assert ((low + high).argmax(1) != exact.argmax(1)).any(), "the whole numbers alone would do"
    assert ((high - low) < 0.05 * x.norm(dim=1, keepdim=True) * weight.norm(dim=1)).all()


@batches
def test_what_rounding_the_states_changes_is_bounded_as_well() -> None:
    """Beside a large number 63 halves become 0; rows of ±127 and 0 are as they were."""
    x = torch.full((3, 64), 0.5)
    x[:, 0] = 127 * 254
    weight = torch.zeros(40, 64)
    weight[7, 1:], weight[20, 0] = 127, 0.1
    assert (x @ weight[[7, 20]].T)[0].tolist() == pytest.approx([4000.5, 3225.8])
    assert Shortlist(head_of(weight)).likeliest(x).tolist() == [7, 7, 7]


@batches
@pytest.mark.parametrize("scale", [1e-42, 1e-33, 1e-25, 1e-18, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("of", ["states", "weights"])
def test_tiny_and_large_numbers_of_a_batch(of: str, scale: float) -> None:
    torch.manual_seed(6)
    weight, x = torch.randn(1, 64) + 0.05 * torch.randn(2000, 64), torch.randn(40, 64)
    head = head_of(weight * scale if of == "weights" else weight)
    x[::2] *= scale if of == "states" else 1.0
    exact = x.double() @ head.weight.detach().double().T
    chosen = exact.gather(1, Shortlist(head).likeliest(x)[:, None])[:, 0]
    assert (chosen >= exact.amax(1) - 1e-5 * exact.abs().amax(1)).all()


@batches
def test_what_a_batch_gives_where_rows_are_equal_or_broken() -> None:
    torch.manual_seed(9)
    weight, x = torch.randn(500, 64), torch.randn(19, 64)
    weight[[33, 210, 499]] = x[3] * 3
    weight[[0, 31, 498]] = x[18] * 3
    found = Shortlist(head_of(weight)).likeliest(x)
    assert found[3] == 33 and found[18] == 0
    weight[123, 5] = math.nan  # as argmax has it, NaN is the largest
    assert Shortlist(head_of(weight)).likeliest(x).tolist() == [123] * 19
    weight[123, 5] = math.inf
    want = (weight @ x.T).numpy().argmax(0)
    assert Shortlist(head_of(weight)).likeliest(x).tolist() == want.tolist()
    assert Shortlist(head_of(torch.zeros(100, 64))).likeliest(x).tolist() == [0] * 19


@batches
@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf, 1e38, 1e-30])
def test_a_batch_with_a_state_of_no_numbers(value: float) -> None:
    torch.manual_seed(10)
    head, x = head_of(torch.randn(3000, 64)), torch.randn(5, 64)
    for where in ((2,), (2, 7)):
        broken = x.clone()
        broken[where] = value
        want = (head.weight.detach() @ broken.T).numpy().argmax(0)
        assert Shortlist(head).likeliest(broken).tolist() == want.tolist()


@batches
def test_a_batch_with_a_state_whose_logits_are_all_infinite() -> None:
    """Below −3.4e38 a logit is −∞, which no bound of a number says."""
    weight = torch.full((400, 64), -127.0) * 1e16  # as whole numbers what it is
    weight += torch.arange(400.0)[:, None] % 2 * 1e16
    x = torch.ones(4, 64)
    x[2] = 1e21
    x[2, 1:] = 1e14
    want = (weight @ x.T).numpy().argmax(0)
    assert Shortlist(head_of(weight)).likeliest(x).tolist() == want.tolist()


def test_the_loops_and_who_calls_them_mean_the_same_sizes() -> None:
    from ai_learning.kernels import shortlist_kernels as loops

    assert (loops.STATES, loops.ROWS, loops.DEPTH) == (module._STATES, module._ROWS, module._DEPTH)


@batches
def test_a_batch_finds_more_rows_than_there_is_room_for() -> None:
    """Each row is a little likelier than all before it."""
    x = torch.randn(4, 64)
    weight = torch.linspace(1, 2, 5000)[:, None] * torch.ones(1, 64)
    short = Shortlist(head_of(weight))
    found = short.likeliest(x)
    assert short._space is not None and int(short._space.counts.max()) > short._space.rows.size(-1)
    assert found.tolist() == (weight @ x.T).numpy().argmax(0).tolist()


def test_a_batch_of_another_width_takes_all_logits() -> None:
    torch.manual_seed(13)
    head, x = head_of(torch.randn(500, 40)), torch.randn(5, 40)
    assert torch.equal(Shortlist(head).likeliest(x), head(x).argmax(-1))


@batches
def test_threads_and_sizes_of_batches_change_nothing() -> None:
    torch.manual_seed(11)
    head, before = head_of(torch.randn(9001, 128)), torch.get_num_threads()
    x = torch.randn(40, 128)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            short = Shortlist(head)
            for B in (40, 1, 16, 17, 2):
                assert torch.equal(short.likeliest(x[:B]), head(x[:B]).argmax(-1))
    finally:
        torch.set_num_threads(before)


@batches
def test_few_rows_of_a_batch_are_left() -> None:
    torch.manual_seed(12)
    short = Shortlist(head_of(torch.randn(20_000, 128)))
    short.likeliest(torch.randn(16, 128))
    assert short._space is not None and int(short._space.counts.sum()) < 1000


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
    assert len(calls) == 40 and model.used == 0  # its states are 32 wide
    monkeypatch.setattr(module, "WORTH_A_BATCH", 10)
    assert torch.equal(together, generate(model, idx, 40, temperature=0))
    assert len(calls) == 40


@batches
@pytest.mark.parametrize("rows", [2, 9, 33])
def test_greedy_tokens_of_a_batch_on_tiles_are_the_same(
    model: GPT, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = GPT(replace(model.config, n_embd=64)).eval()
    gpt.used = 0
    idx = torch.randint(0, 997, (rows, 7))
    together = generate(gpt, idx, 80, temperature=0)
    assert model.used == 1
    monkeypatch.setattr(module, "WORTH_STEPS", 10**9)
    assert torch.equal(together, generate(gpt, idx, 80, temperature=0))
    assert model.used == 1


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
