"""The chunked loss equals the plain one, gradients included, and keeps no logits."""

import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning import loss as loss_module
from ai_learning.kernels import frozen_head_loss, tied_embedding
from ai_learning.kernels.loops import Loops, ready
from ai_learning.loss import (
    bits_per_byte,
    linear_cross_entropy,
    next_token_loss,
    perplexity,
    reference_next_token_loss,
)
from ai_learning.model import GPT, GPTConfig


@pytest.fixture(params=[1, 3, 1000], ids=lambda n: f"{n} rows a chunk")
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 11 * 4 * request.param)
    return request.param


@pytest.fixture(params=["PyTorch's softmax", "compiled softmax"], autouse=True)
def softmax(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    compiled = request.param.startswith("compiled")
    monkeypatch.setattr(loss_module, "_FEW_LOGITS", 0)
    monkeypatch.setattr(tied_embedding, "_WORTH_ROWS", 0)
    monkeypatch.setattr(loss_module, "_WORTH_COMPILED", 0 if compiled else math.inf)
    return request.param


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(2, 5, 7, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 7, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, 11, (2, 5))
    targets[0, 2] = -100
    return hidden, weight, targets


def test_the_definition_in_three_lines() -> None:
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8))
    idx, targets = torch.randint(0, 11, (2, 2, 8)).unbind()
    targets[0, 3] = -100
    parameters = list(model.parameters())
    ours, plain = next_token_loss(model, idx, targets), reference_next_token_loss(model, idx, targets)
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(plain, parameters), strict=True
    ):
        torch.testing.assert_close(one.to_dense(), other)


def test_equals_cross_entropy_with_gradients(chunk_rows: int) -> None:
    hidden, weight, targets = inputs()
    ours = linear_cross_entropy(hidden, weight, targets)
    plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ours, plain)
    ours_grads = torch.autograd.grad(ours * 3, (hidden, weight))
    plain_grads = torch.autograd.grad(plain * 3, (hidden, weight))
    for one, other in zip(ours_grads, plain_grads, strict=True):
        torch.testing.assert_close(one, other)


def test_targets_too_unlikely_for_the_format(chunk_rows: int) -> None:
    """Their probability is 0 in float32, or has lost its last places; the loss is exact all the same."""
    hidden, weight, targets = inputs()
    with torch.no_grad():
        hidden *= torch.tensor([1, 10, 40, 100, 1000])[:, None]  # up to thousands of nats
    ours = linear_cross_entropy(hidden, weight, targets)
    plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_nothing_is_read_before_it_is_written(chunk_rows: int) -> None:
    hidden, weight, targets = inputs()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        loss = linear_cross_entropy(hidden, weight, targets)
        grads = torch.autograd.grad(loss, (hidden, weight))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(x.isfinite().all() for x in (loss, *grads))


def test_a_large_vocabulary(softmax: str) -> None:
    """Rows of several blocks, with ids that a mask rules out."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(33, 8, requires_grad=True), torch.randint(10, 10_007, (33,))
    weight = (torch.randn(10_007, 8) * 3).requires_grad_()
    ours = linear_cross_entropy(hidden, weight, targets)
    exact = F.cross_entropy((hidden @ weight.T).double(), targets)
    assert ours.item() == pytest.approx(exact.item(), rel=2e-6)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(exact, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_targets_of_other_whole_numbers(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs()
    other = linear_cross_entropy(hidden, weight, targets.to(dtype))
    assert other == linear_cross_entropy(hidden, weight, targets)


def test_what_does_not_count_does_not_matter() -> None:
    hidden, weight, targets = inputs()
    weight = weight.detach().clone()
    weight[0] = -1e38  # the ignored position's logit of id 0 is then minus infinity
    with torch.no_grad():
        hidden[0, 2] = 10.0
    assert linear_cross_entropy(hidden, weight, targets).isfinite()


def test_infinite_logits_and_nan_show(softmax: str) -> None:
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.zeros(6000, 1)
    weight[5000] = -math.inf  # ruled out
    loss = linear_cross_entropy(hidden, weight, torch.tensor([7]))
    assert loss.item() == pytest.approx(math.log(5999))
    for value in (math.nan, math.inf):
        weight[5000] = value
        assert linear_cross_entropy(hidden, weight, torch.tensor([7])).isnan()


@pytest.mark.parametrize("trains_head", [True, False])
def test_an_id_that_is_ruled_out_at_a_size_for_tiles(trains_head: bool) -> None:
    """Where products are taken by parts (`kernels/products.py`), infinity would be NaN in all of them."""
    torch.manual_seed(0)
    hidden, weight = torch.rand(300, 64, requires_grad=True), torch.randn(30_000, 64)
    weight[5] = -math.inf
    targets = torch.randint(6, 30_000, (300,))
    targets[::7] = -100
    weight.requires_grad_(trains_head)
    loss = linear_cross_entropy(hidden, weight, targets)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, expected)
    if trains_head:
        found, wanted = (torch.autograd.grad(each, weight)[0] for each in (loss, expected))
        torch.testing.assert_close(found, wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets), expected)
        weight[5] = math.nan
        assert linear_cross_entropy(hidden, weight, targets).isnan()


def test_few_logits_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs()
    chunked = linear_cross_entropy(hidden, weight, targets)
    monkeypatch.setattr(loss_module, "_FEW_LOGITS", 10 * 11)
    plain = linear_cross_entropy(hidden, weight, targets)
    assert plain.grad_fn.name() == "NllLossBackward0" != chunked.grad_fn.name()
    torch.testing.assert_close(plain, chunked)
    monkeypatch.setattr(loss_module, "_FEW_LOGITS", 10 * 11 - 1)
    assert linear_cross_entropy(hidden, weight, targets).grad_fn.name() == chunked.grad_fn.name()


def test_gradcheck(chunk_rows: int) -> None:
    hidden, weight, targets = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


def test_position_weights(chunk_rows: int) -> None:
    hidden, weight, targets = inputs()
    weights = torch.rand(2, 5)
    ours = linear_cross_entropy(hidden, weight, targets, weights)
    nats = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none")
    plain = (nats * weights.flatten()).sum()
    torch.testing.assert_close(ours, plain)
    for one, other in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(plain, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_what_has_no_gradient_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a second derivative the part through the loss would be missing, and of weights all of it."""
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)
    shares = torch.rand(2, 5, requires_grad=True)
    with pytest.raises(ValueError, match="detach"):
        linear_cross_entropy(hidden, weight, targets, shares)
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets, shares)
    # Of few logits the loss is PyTorch's
    monkeypatch.setattr(loss_module, "_FEW_LOGITS", 10**6)
    (first,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden, create_graph=True)
    assert first.requires_grad


def test_frozen_head_and_frozen_body() -> None:
    hidden, weight, targets = inputs()
    (only_hidden,) = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets), hidden)
    (only_weight,) = torch.autograd.grad(linear_cross_entropy(hidden.detach(), weight, targets), weight)
    both = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    assert torch.equal(only_hidden, both[0]) and torch.equal(only_weight, both[1])
    assert not linear_cross_entropy(hidden.detach(), weight.detach(), targets).requires_grad


columns_needed = pytest.mark.skipif(
    not ready(Loops("kernels.training_kernels").running_softmax), reason="numba is not installed"
)


def frozen(
    patch: pytest.MonkeyPatch, columns: int, hidden: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient with a frozen head, so many ids at a time."""
    calls = []
    plain = frozen_head_loss._columns_at_a_time
    patch.setattr(frozen_head_loss, "_columns_at_a_time", lambda *args: calls.append(1) or plain(*args))
    patch.setattr(frozen_head_loss, "_BLOCK_POSITIONS", 4)
    patch.setattr(frozen_head_loss, "BLOCK_BYTES", 4 * 4 * columns)
    loss = linear_cross_entropy(hidden, weight.detach(), *rest)
    assert calls
    return loss.detach(), torch.autograd.grad(loss, hidden)[0]


@columns_needed
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 13), st.integers(1, 90), st.integers(1, 100), st.floats(0.1, 30), st.booleans())
def test_a_frozen_head_takes_some_columns_at_a_time(
    N: int, V: int, columns: int, scale: float, is_weighted: bool
) -> None:
    torch.manual_seed(N * V)
    hidden, weight = (torch.randn(N, 5) * scale).requires_grad_(), torch.randn(V, 5)
    targets = torch.randint(0, V, (N,))
    targets[N // 2 + 1 :: 3] = -100
    weights = torch.rand(N) if is_weighted else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "_FEW_LOGITS", 0)
        patch.setattr(frozen_head_loss, "by_columns", lambda *args: True)
        ours = frozen(patch, columns, hidden, weight, targets, weights)
    exact = hidden.detach().double().requires_grad_()
    logits, counted = exact @ weight.double().T, targets != -100
    each = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    total = each.sum() / counted.sum() if weights is None else (each * weights).sum()
    torch.testing.assert_close(ours[0].double(), total.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1].double(), torch.autograd.grad(total, exact)[0], rtol=1e-4, atol=1e-5)


@columns_needed
@pytest.mark.parametrize("order", ["rising", "falling"])
def test_the_largest_logit_may_come_last_or_first(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = torch.ones(3, 1, requires_grad=True)
    weight = torch.arange(50.0).view(50, 1) * (9 if order == "rising" else -9)
    targets = torch.tensor([0, 20, 49])
    loss, grad = frozen(monkeypatch, 7, hidden, weight, targets)
    plain = F.cross_entropy(hidden @ weight.T, targets)
    torch.testing.assert_close(loss, plain.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(plain, hidden)[0])


@columns_needed
def test_columns_that_are_ruled_out_infinite_or_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.zeros(60, 1)
    weight[:20] = -math.inf  # a whole block
    loss, _ = frozen(monkeypatch, 5, hidden, weight, torch.tensor([33]))
    assert loss.item() == pytest.approx(math.log(40))
    for value in (math.nan, math.inf):
        weight[50] = value
        assert linear_cross_entropy(hidden, weight, torch.tensor([33])).isnan()


@columns_needed
def test_a_trained_head_gets_its_gradient_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_head_loss, "BLOCK_BYTES", 1)
    hidden, weight, targets = inputs()
    ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), (hidden, weight))
    plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
    for one, other in zip(ours, torch.autograd.grad(plain, (hidden, weight)), strict=True):
        torch.testing.assert_close(one, other)


@columns_needed
def test_without_gradients_only_the_loss_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = torch.randn(9, 5), torch.randn(77, 5), torch.randint(0, 77, (9,))
    calls, plain = [], frozen_head_loss._columns_at_a_time
    monkeypatch.setattr(
        frozen_head_loss, "_columns_at_a_time", lambda *args: calls.append(args[3]) or plain(*args)
    )
    monkeypatch.setattr(frozen_head_loss, "BLOCK_BYTES", 64)
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *args, **options: pytest.fail("a gradient for nobody"))
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
    assert calls == [None]
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, targets))


@columns_needed
def test_what_is_said_to_be_held() -> None:
    many, plain = 4096 * 50_257, torch.empty(0)
    assert loss_module.held_bytes(many, False, plain) == 8 * 2**20
    assert loss_module.held_bytes(many, True, plain) == 32 * 2**20
    assert loss_module.held_bytes(many, False, plain.bfloat16()) == 32 * 2**20
    assert loss_module.held_bytes(1000, False, plain) == 4000


def test_model_loss_and_tied_gradients(tiny_gpt: GPT) -> None:
    idx = torch.randint(0, 64, (3, 9))
    x, y = idx[:, :-1], idx[:, 1:]
    ours = next_token_loss(tiny_gpt, x, y)
    ours.backward()
    grad = tiny_gpt.wte.weight.grad.clone()
    tiny_gpt.zero_grad()
    plain = F.cross_entropy(tiny_gpt(x).flatten(0, 1), y.flatten())
    plain.backward()
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(grad, tiny_gpt.wte.weight.grad)


@pytest.mark.parametrize(("trains_head", "most"), [(True, 200), (False, 40)])
def test_all_logits_are_never_held(trains_head: bool, most: int) -> None:
    """Peak memory of 4,096 positions × 50,257 ids stays far under the 823 MB of their logits."""
    import subprocess
    import sys

    if not trains_head and not ready(Loops("kernels.training_kernels").running_softmax):
        pytest.skip("numba is not installed")
    code = f"""
import resource, torch
from ai_learning.loss import linear_cross_entropy
hidden = torch.randn(4096, 16, requires_grad=True)
weight = torch.randn(50257, 16, requires_grad={trains_head})
targets = torch.randint(0, 50257, (4096,))
linear_cross_entropy(hidden[:64], weight, targets[:64]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linear_cross_entropy(hidden, weight, targets).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < most


def test_autocast_gives_a_close_loss(tiny_gpt: GPT) -> None:
    idx = torch.randint(0, 64, (2, 16))
    full = next_token_loss(tiny_gpt, idx, idx)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = next_token_loss(tiny_gpt, idx, idx)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(full.item(), rel=0.02)
    mixed.backward()
    assert tiny_gpt.wte.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([[11, 0, 0, 0, 0]] * 2, "target 11 is outside the vocabulary of 11"),
        ([[-1, 0, 0, 0, 0]] * 2, "target -1 is outside"),
        ([[-100] * 5] * 2, "no target counts: all 10 are -100"),
    ],
)
def test_bad_targets(targets: list[list[int]], message: str) -> None:
    hidden, weight, _ = inputs()
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(hidden, weight, torch.tensor(targets))


def test_what_the_head_says_beside_its_weight_is_not_left_out(tiny_gpt: GPT) -> None:
    tiny_gpt.lm_head = torch.nn.Linear(tiny_gpt.config.n_embd, tiny_gpt.config.vocab_size)
    with pytest.raises(ValueError, match="lm_head has a bias"):
        next_token_loss(tiny_gpt, torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))


def test_targets_and_weights_stand_where_the_states_do() -> None:
    """As many in another order would be the loss of other tokens."""
    hidden, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    targets = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match=r"targets \(3, 2\) must have the shape of hidden \(2, 3, 4\)"):
        linear_cross_entropy(hidden, weight, targets.T)
    with pytest.raises(ValueError, match=r"position_weights \(3,\) must have"):
        linear_cross_entropy(hidden, weight, targets, torch.ones(3))
    with pytest.raises(ValueError, match="detach them"):
        linear_cross_entropy(hidden, weight, targets, torch.ones(2, 3, requires_grad=True))


def test_shapes_must_agree(tiny_gpt: GPT) -> None:
    with pytest.raises(ValueError, match=r"idx \(1, 4\) and targets \(1, 3\)"):
        next_token_loss(tiny_gpt, torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long))


def test_perplexity_and_bits_per_byte() -> None:
    assert perplexity(math.log(258)) == pytest.approx(258)
    assert perplexity(1e6) == math.inf and math.isnan(perplexity(math.nan))
    assert bits_per_byte(10 * math.log(2), 5) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)


def test_bfloat16_chunks_add_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed in bfloat16, the head's gradient loses more with every chunk."""
    hidden, weight = torch.randn(2048, 32), torch.randn(64, 32, requires_grad=True)
    targets = torch.randint(0, 64, (2048,))
    (exact,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), weight)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 64 * 4 * 8)  # 256 chunks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (mixed,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), weight)
    assert ((mixed - exact).norm() / exact.norm()).item() < 0.005


def test_no_gradients_are_computed_where_none_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs()
    products, plain = [], loss_module.mm
    monkeypatch.setattr(loss_module, "mm", lambda *args, **rest: products.append(1) or plain(*args, **rest))
    with torch.no_grad():
        linear_cross_entropy(hidden, weight, targets)
    without = len(products)  # the logits of each chunk
    products.clear()
    linear_cross_entropy(hidden, weight, targets)
    assert len(products) == 3 * without > 0


def tied(seed: int = 0) -> tuple[GPT, torch.Tensor]:
    """Large enough for rows, with many logits."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab_size=3000, block_size=128, n_layer=2, n_head=2, n_embd=64))
    idx = torch.randint(0, 3000, (3, 128))
    idx[0, :9] = 7  # again and again
    return model, idx


def plain_loss(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(idx).flatten(0, 1), idx.flatten())


def test_rows_are_added_to_the_heads_gradient_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second (V, C) tensor is made."""
    model, idx = tied()
    plain_loss(model, idx).backward()
    expected = model.wte.weight.grad
    model.zero_grad()
    loss = next_token_loss(model, idx, idx)
    with torch.profiler.profile(profile_memory=True) as profiler:
        loss.backward()
    made = [e.self_cpu_memory_usage for e in profiler.events()]
    assert max(made) < expected.nbytes
    torch.testing.assert_close(model.wte.weight.grad, expected)
    assert model.wte.weight.grad.layout == torch.strided
    assert "forward" not in model.wte.__dict__


def test_a_graph_that_is_kept_gives_the_same_gradients_again() -> None:
    model, idx = tied()
    loss = next_token_loss(model, idx, idx)
    loss.backward(retain_graph=True)
    first = model.wte.weight.grad.clone()
    model.zero_grad()
    (2 * loss).backward()
    torch.testing.assert_close(model.wte.weight.grad, 2 * first)


def test_gradients_of_some_only() -> None:
    """Whichever of both, or neither, this backward pass comes to."""
    model, idx = tied()
    block = model.h[0].mlp.c_fc.weight
    for wanted in ([model.wte.weight], [block], [model.wte.weight, block], [model.wpe.weight]):
        found = torch.autograd.grad(next_token_loss(model, idx, idx), wanted)
        for own, other in zip(found, torch.autograd.grad(plain_loss(model, idx), wanted), strict=True):
            torch.testing.assert_close(own, other)
    next_token_loss(model, idx, idx).backward(inputs=[model.wte.weight])
    torch.testing.assert_close(
        model.wte.weight.grad, torch.autograd.grad(plain_loss(model, idx), model.wte.weight)[0]
    )


def test_two_losses_of_one_model_do_not_mix() -> None:
    model, idx = tied()
    other = idx.flip(1)
    (next_token_loss(model, idx, idx) + 3 * next_token_loss(model, other, other)).backward()
    found, model.wte.weight.grad = model.wte.weight.grad, None
    (plain_loss(model, idx) + 3 * plain_loss(model, other)).backward()
    torch.testing.assert_close(found, model.wte.weight.grad)


def test_losses_of_two_threads_may_meet(tiny_gpt: GPT) -> None:
    """Both may have found the embedding as it was before either changed it."""
    with tied_embedding.row_gradients(tiny_gpt, tiny_gpt.lm_head.weight) as tie:
        assert tie is not None
        del tiny_gpt.wte.forward  # the other is done first
    assert "forward" not in vars(tiny_gpt.wte)


@pytest.mark.parametrize("takes_part", [True, False])
def test_an_embedding_that_the_loss_does_not_lead_to(takes_part: bool) -> None:
    """Its node runs for other reasons, or not at all: the head's gradient is not lost with it."""
    model, idx = tied()
    asked: list[torch.Tensor] = []

    def hidden(idx: torch.Tensor) -> torch.Tensor:
        asked.append(model.wte(idx))
        return asked[-1].detach()

    weight = model.wte.weight
    head = F.cross_entropy(F.linear(hidden(idx), weight).flatten(0, 1), idx.flatten())
    expected = torch.autograd.grad(head + takes_part * asked[-1].sum(), weight)[0]
    model.hidden = hidden  # type: ignore[method-assign]
    loss = next_token_loss(model, idx, idx)
    found = torch.autograd.grad(loss + asked[-1].sum() if takes_part else loss, weight)[0]
    torch.testing.assert_close(found, expected)


def test_a_hook_sees_one_whole_gradient() -> None:
    model, idx = tied()
    seen: list[torch.Tensor] = []
    model.wte.weight.register_hook(seen.append)
    next_token_loss(model, idx, idx).backward()
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], torch.autograd.grad(plain_loss(model, idx), model.wte.weight)[0])


def test_a_forgotten_loss_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tie knows the embedding's node weakly: no ring that only the collector of garbage would break."""
    model, idx = tied()
    nodes: list[weakref.ref] = []
    look_up = tied_embedding._look_up

    def noted(*args) -> torch.Tensor:  # type: ignore[no-untyped-def]
        rows = look_up(*args)
        nodes.append(weakref.ref(rows.grad_fn))
        return rows

    monkeypatch.setattr(tied_embedding, "_look_up", noted)
    gc.collect()
    gc.disable()
    try:
        loss = next_token_loss(model, idx, idx)
        assert nodes[0]() is not None
        del loss
        assert nodes[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("change", ["padding_idx", "max_norm", "own forward"])
def test_embeddings_that_do_more_are_asked_as_they_are(change: str) -> None:
    model, idx = tied()
    if change == "padding_idx":
        model.wte.padding_idx = 7
    elif change == "max_norm":
        model.wte.max_norm = 0.1
    else:
        weight = model.wte.weight
        model.wte.forward = lambda idx: 2 * F.embedding(idx, weight)  # type: ignore[method-assign]
    found = torch.autograd.grad(next_token_loss(model, idx, idx), model.wte.weight)[0]
    expected = torch.autograd.grad(plain_loss(model, idx), model.wte.weight)[0]
    torch.testing.assert_close(found.to_dense() if found.is_sparse else found, expected)
    assert ("forward" in model.wte.__dict__) == (change == "own forward")


def test_a_tied_embedding_hands_back_its_rows_only(tiny_gpt: GPT) -> None:
    """Into the head's gradient, which stays dense; and the switch is put back, after an error too."""
    idx = torch.randint(0, 64, (3, 9))
    (next_token_loss(tiny_gpt, idx, idx) / 2).backward()
    (next_token_loss(tiny_gpt, idx, idx) / 2).backward()  # accumulated
    grad = tiny_gpt.wte.weight.grad.clone()
    assert grad.layout == torch.strided and not tiny_gpt.wte.sparse
    tiny_gpt.zero_grad()
    F.cross_entropy(tiny_gpt(idx).flatten(0, 1), idx.flatten()).backward()
    torch.testing.assert_close(grad, tiny_gpt.wte.weight.grad)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        next_token_loss(tiny_gpt, idx + 64, idx)
    assert not tiny_gpt.wte.sparse
