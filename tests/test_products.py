"""Products on tile registers are as exact as PyTorch's, whatever the layout, and step aside where unfit."""

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ai_learning.adapters import NF4Linear
from ai_learning.kernels import linear as linear_module
from ai_learning.kernels import products as module
from ai_learning.kernels.linear import Linear, linear
from ai_learning.kernels.products import can_tile, has_tiles, mm
from ai_learning.loss import _equal_chunks, linear_cross_entropy

needed = pytest.mark.skipif(not has_tiles(), reason="no tile registers (Intel AMX), or no numba")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 0)


def matrix(rows: int, columns: int, *, turned: bool = False, seed: int = 0, spare: int = 0) -> Tensor:
    """Random; its columns side by side where ``turned``, and with ``spare`` numbers after each row."""
    generator = torch.Generator().manual_seed(seed + 1000 * rows + columns)
    shape = (columns, rows + spare) if turned else (rows, columns + spare)
    values = torch.randn(shape, generator=generator)
    return (values.T if turned else values)[:rows, :columns]


def error(product: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> float:
    """Relative to the product in float64."""
    exact = a.double() @ b.double() + (0 if add is None else add.double())
    return float((product.double() - exact).norm() / exact.norm())


def tiles_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> Tensor:
        raise AssertionError("PyTorch's product was taken")

    monkeypatch.setattr(module, "by_pytorch", refuse)


@needed
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("a_turned", [False, True])
@pytest.mark.parametrize("b_turned", [False, True])
@pytest.mark.parametrize(
    ("M", "K", "N"),
    [
        (32, 32, 32),
        (64, 96, 160),
        (160, 96, 64),
        (32, 1024, 64),
        (672, 64, 32),
        (32, 64, 672),
        (96, 416, 544),
    ],
)
def test_every_layout_is_as_exact_as_pytorchs(
    M: int, K: int, N: int, a_turned: bool, b_turned: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More steps, panels and parts than are made at once; sums over k by one thread and by several."""
    a, b = matrix(M, K, turned=a_turned, spare=5), matrix(K, N, turned=b_turned, seed=1, spare=7)
    allowed = 1.5 * error(torch.mm(a, b), a, b) + 1e-8
    tiles_only(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    wide = torch.full((M, N + 16), 7.0)
    out = wide[:, :N]
    assert mm(a, b, out) is out and error(out, a, b) < allowed
    assert (wide[:, N:] == 7).all()  # nothing beside it was touched
    bias, many = torch.randn(N), torch.randn(M, N)
    assert error(mm(a, b, add=bias), a, b, bias) < allowed
    assert error(mm(a, b, add=many), a, b, many) < allowed
    before = many.clone()
    assert mm(a, b, many, add=many) is many and error(many, a, b, before) < allowed
    assert torch.equal(mm(a, b), mm(a, b))


@needed
@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 130), st.integers(1, 130), st.integers(1, 130), st.booleans(), st.booleans(),
    st.sampled_from(["nothing", "a row", "all"]), st.integers(0, 10**6),
)  # fmt: skip
def test_sizes_of_no_whole_panels(
    M: int, K: int, N: int, a_turned: bool, b_turned: bool, added: str, seed: int
) -> None:
    a, b = matrix(M, K, turned=a_turned, seed=seed), matrix(K, N, turned=b_turned, seed=seed)
    add = {"nothing": None, "a row": torch.randn(N), "all": torch.randn(M, N)}[added]
    with pytest.MonkeyPatch.context() as patch:  # the share that is left over may be the larger one
        patch.setattr(module, "can_tile", lambda M, K, N: min(M, K, N) >= 32)
        out = mm(a, b, add=add)
    exact = a.double() @ b.double() + (0 if add is None else add.double())
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=3e-5)


@needed
def test_errors_do_not_grow_with_the_sum() -> None:
    a, b = matrix(32, 50016), matrix(50016, 64, seed=1)
    assert error(mm(a, b), a, b) < error(torch.mm(a, b), a, b)


@needed
def test_numbers_of_all_sizes() -> None:
    """Each product within float32's own error of its factors, from tiny to huge."""
    a, b = matrix(64, 64), matrix(64, 64, seed=1)
    for power in (-100, -40, -20, 0, 20, 60, 110):
        scaled = a * 2.0**power
        assert error(mm(scaled, b), scaled, b) < 5e-7
    small, large = a * 1e-15, a * 1e15
    for left, right in ((small, b * 1e-15), (large, b * 1e15), (small * 1e-15, b * 1e15)):
        assert error(mm(left, right), left, right) < 5e-7
    one = torch.eye(64)
    torch.testing.assert_close(mm(a, one), a, rtol=2**-22, atol=0)  # the three parts of each sum to it
    halves = (
        torch.tensor([1.0, 1 + 2**-12, 1 + 2**-23, 2**-126, 0.0, -0.0]).repeat(64, 11)[:, :64].contiguous()
    )
    torch.testing.assert_close(mm(halves, one), halves, rtol=2**-22, atol=2**-126)


@needed
@pytest.mark.parametrize("bits", [0x7FC00000, -1, 0x7FFFFFFF, 0x7F800001, 0x7F800000, -8388608])
def test_what_is_not_finite_does_not_vanish(bits: int) -> None:
    """NaN of any bits stays NaN; infinity becomes NaN, and only where it is multiplied."""
    a, b = matrix(64, 64), matrix(64, 64, seed=1)
    bad = a.clone()
    bad.view(torch.int32)[5, 7] = bits
    out, clean = mm(bad, b), mm(a, b)
    assert out[5].isnan().all()
    out[5] = clean[5]
    assert torch.equal(out, clean)
    assert mm(b, bad)[:, 7].isnan().all() and mm(b, bad)[:, 8:].isfinite().all()


@needed
def test_rows_that_are_one_row_and_shapes_that_do_not_fit() -> None:
    a, b, row = matrix(64, 96), matrix(96, 32, turned=True), torch.randn(96)
    repeated = row.expand(64, 96)
    torch.testing.assert_close(mm(repeated, b), repeated @ b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mm(a, repeated.T), a @ repeated.T, rtol=1e-5, atol=1e-5)
    bias = torch.randn(32)
    torch.testing.assert_close(
        mm(a, b, add=bias.expand(64, 32)), torch.addmm(bias, a, b), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        mm(a, b[:64])
    with pytest.raises(RuntimeError):
        mm(a, b, add=torch.randn(31))
    with pytest.raises(RuntimeError):
        mm(a, b, add=torch.randn(32, 32))
    with pytest.raises(RuntimeError, match="single memory location"):
        mm(a, b, torch.empty(32).expand(64, 32))


@needed
@pytest.mark.parametrize("K", [64, 72])
def test_no_gradients_and_no_defaults(K: int) -> None:
    a, b = matrix(64, K).requires_grad_(), matrix(K, 64)
    torch.set_default_dtype(torch.float64)
    try:
        product = mm(a, b)
    finally:
        torch.set_default_dtype(torch.float32)
    assert product.dtype == torch.float32 and not product.requires_grad and error(product, a, b) < 5e-7


@needed
def test_many_threads_of_python_at_once() -> None:
    """Scratch is each one's own."""
    a, b = matrix(256, 512), matrix(512, 256, turned=True)
    wanted, wrong = mm(a, b), []

    def work() -> None:
        for _ in range(50):
            if not torch.equal(mm(a, b), wanted):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needed
def test_only_what_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert can_tile(1024, 768, 768) and can_tile(192, 384, 50257)
    assert not can_tile(1, 768, 768) and not can_tile(768, 128, 128)
    assert not can_tile(40, 40000, 4000)  # a fifth of it would be left over
    tiles = []
    monkeypatch.setattr(module, "_by_tiles", lambda *args: tiles.append(args))
    a, b = torch.ones(1024, 768), torch.ones(768, 768)
    mm(a, b, torch.empty(1024, 768))
    assert len(tiles) == 1
    for other in (a.double(), a.bfloat16(), a[:, ::2], a.to("meta")):
        mm(other, b[: other.size(1)].to(other), None)
    assert len(tiles) == 1


def test_without_tiles_it_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_tiles", lambda: False)
    a, b, add = torch.randn(40, 50), torch.randn(50, 60), torch.randn(60)
    assert torch.equal(mm(a, b), a @ b) and torch.equal(mm(a, b, add=add), torch.addmm(add, a, b))
    x, layer = torch.randn(2, 3, 50), Linear(50, 60)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


# --- linear layers ------------------------------------------------------------------------------------------


@needed
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("trained", ["all", "x", "weight", "bias"])
def test_a_layer_and_its_gradients(with_bias: bool, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if trained == "bias" and not with_bias:
        pytest.skip("no bias")
    x, weight, bias = torch.randn(2, 48, 64), torch.randn(96, 64), torch.randn(96) if with_bias else None
    for name, tensor in {"x": x, "weight": weight, "bias": bias}.items():
        if tensor is not None and trained in ("all", name):
            tensor.requires_grad_()
    grad = torch.randn(2, 96, 48).transpose(1, 2)  # not in rows
    wanted = gradients(F.linear, x, weight, bias, grad)
    tiles_only(monkeypatch)
    for one, other in zip(gradients(linear, x, weight, bias, grad), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)
    assert "_Linear" in type(linear(x, weight, bias).grad_fn).__name__


def gradients(function, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    y = function(x, weight, bias)
    learning = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, learning, grad)]


@needed
def test_a_gradient_of_the_gradient() -> None:
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)

    def second(function) -> Tensor:
        (first,) = torch.autograd.grad(function(x, weight).pow(2).sum(), weight, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), x)[0]

    torch.testing.assert_close(second(linear), second(F.linear), rtol=1e-4, atol=1e-2)


@needed
def test_a_batch_of_gradients() -> None:
    x, weight = torch.randn(64, 64, requires_grad=True), torch.randn(64, 64, requires_grad=True)
    grads = torch.randn(3, 64, 64)

    def batch(function) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x, weight), (x, weight), grads, is_grads_batched=True)

    for one, other in zip(batch(linear), batch(F.linear), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@needed
def test_outputs_can_be_changed_in_place() -> None:
    x = torch.randn(2, 32, 64, requires_grad=True)
    for layer in (Linear(64, 96), Linear(64, 96, bias=False), NF4Linear.from_linear(nn.Linear(64, 96))):
        for rows in (x, x[0]):
            (wanted,) = torch.autograd.grad(layer(rows).relu().sum(), x)
            assert torch.equal(torch.autograd.grad(layer(rows).relu_().sum(), x)[0], wanted)


@needed
def test_only_what_a_gradient_needs_is_kept() -> None:
    """So that what is not needed goes, and may be changed."""
    layer, x = Linear(64, 96), torch.randn(64, 64, requires_grad=True)
    hidden = x * 1.0
    y = layer.requires_grad_(False)(hidden)
    assert y.grad_fn.saved_tensors[0] is None
    hidden.add_(1)
    y.sum().backward()
    assert x.grad is not None
    y = layer.requires_grad_(True)(torch.randn(64, 64))
    with torch.no_grad():
        layer.weight.add_(1)
    y.sum().backward()


@needed
def test_freed_memory_is_an_error_and_no_crash() -> None:
    layer = Linear(64, 96)
    y = layer(torch.randn(64, 64, requires_grad=True))
    layer.weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError):
        y.backward(torch.randn(64, 96))


def test_no_features_and_strange_weights() -> None:
    for count in (0, 3):
        assert Linear(0, 4)(torch.randn(count, 0)).shape == (count, 4)
    x, vector = torch.randn(3, 5), torch.randn(5)
    assert torch.equal(linear(x, vector), F.linear(x, vector))


@needed
def test_scripts_and_traces_are_pytorchs() -> None:
    layer, x = Linear(64, 96), torch.randn(64, 64)
    wanted = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(torch.jit.script(layer)(x), wanted)
    torch.testing.assert_close(torch.fx.symbolic_trace(nn.Sequential(layer))(x), wanted)


@needed
def test_scratch_is_bounded() -> None:
    for M, K, N in ((4096, 16384, 16384), (2048, 20000, 2048), (1024, 16384, 1024), (512, 768, 128)):
        for threads in (1, 2, 4, 64, 128):
            plan = module._plan(M, K, N, (1, M), (N, 1), threads)
            sums = 4 * M * N * plan.parts if plan.divides_k else 0
            assert sums <= 32 * 2**20 and plan.scratch_bytes <= 1.4 * 2**20


@needed
def test_other_wishes_take_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(64, 64), torch.randn(64, 64)
    wanted = F.linear(x, layer.weight, layer.bias)
    monkeypatch.setattr(linear_module, "_Linear", None)
    torch.testing.assert_close(vmap(layer)(x.expand(3, 64, 64))[1], wanted)
    torch.testing.assert_close(
        torch.func.grad(lambda x: layer(x).sum())(x), layer.weight.sum(0).expand(64, 64)
    )
    torch.testing.assert_close(torch.jit.trace(layer, x, check_trace=False)(x), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(64, 64)(torch.randn(64, 32))
    with pytest.raises(RuntimeError):
        linear(x, torch.randn(64, 64), torch.randn(63))


@needed
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_graph_decides_when_the_batch_is_there(
    backend: str, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(linear_module, "_WORTH_A_GRAPH", 0)
    tiles, by_tiles = [], module._by_tiles
    monkeypatch.setattr(module, "_by_tiles", lambda *args: tiles.append(1) or by_tiles(*args))
    layer = Linear(64, 96)
    compiled = torch.compile(layer, backend=backend, dynamic=dynamic, fullgraph=True)
    for places in (32, 64, 3):
        tiles.clear()
        x, grad = torch.randn(2, places, 64, requires_grad=True), torch.randn(2, places, 96)
        learning = (x, layer.weight, layer.bias)
        wanted = torch.autograd.grad(F.linear(*learning), learning, grad)
        for one, other in zip(torch.autograd.grad(compiled(x), learning, grad), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
        assert len(tiles) == (3 if places % 32 == 0 else 0)
        assert torch.autograd.grad(compiled(x), layer.weight, grad)[0].is_contiguous()


@needed
def test_what_a_compiled_graph_calls_keeps_pytorchs_rules() -> None:
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((64, 32), (96, 32), (96,)))
    for inputs in ((x, weight, bias), (x, weight, None), (x.detach(), weight, bias)):
        torch.library.opcheck(linear_module._in_a_graph, inputs)
    torch.library.opcheck(linear_module._product_in_a_graph, (x.detach().t(), x.detach()))


@needed
def test_what_a_compiled_graph_leaves_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transforms of functions, gradients of gradients, and errors."""
    torch.compiler.reset()
    monkeypatch.setattr(linear_module, "_WORTH_A_GRAPH", 0)
    layer, x = Linear(64, 64), torch.randn(64, 64)
    for function in (torch.func.grad(lambda x: layer(x).square().sum()), vmap(layer)):
        compiled = torch.compile(function, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    compiled = torch.compile(layer, backend="eager")
    (first,) = torch.autograd.grad(compiled(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    (first,) = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).square().sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.square().sum(), x)[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=r"shapes cannot be multiplied|same reduction dim"):
        torch.compile(layer, backend="aot_eager")(torch.randn(4, 10))


@needed
def test_an_exported_graph_has_pytorchs_layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_WORTH_A_GRAPH", 0)
    graph = torch.export.export(Linear(64, 64), (torch.randn(64, 64),)).graph
    assert not [node for node in graph.nodes if "ai_learning" in str(node.target)]


@needed
def test_it_is_a_linear_layer_to_others() -> None:
    torch.manual_seed(0)
    ours = Linear(64, 96)
    torch.manual_seed(0)
    theirs = nn.Linear(64, 96)
    assert isinstance(ours, nn.Linear) and ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(32, 64)
    torch.testing.assert_close(functional_call(ours, theirs.state_dict(), x), theirs(x))
    assert ours(torch.empty(0, 64)).shape == (0, 96)


@needed
@pytest.mark.parametrize("trains_head", [True, False])
def test_the_loss_by_tiles_is_the_loss(trains_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(320, 64, requires_grad=True), torch.randn(9001, 64) * 0.1
    weight.requires_grad_(trains_head)
    targets = torch.randint(0, 9001, (320,))
    learning = [hidden, weight] if trains_head else [hidden]
    loss = linear_cross_entropy(hidden, weight, targets)
    ours = [loss.detach(), *torch.autograd.grad(loss, learning)]
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    for one, other in zip(ours, [exact.detach(), *torch.autograd.grad(exact, learning)], strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("N", "fitting", "chunk"),
    [(3072, 166, 160), (768, 166, 160), (320, 166, 160), (3072, 5000, 3072), (100, 30, 25), (10, 166, 10)],
)
def test_chunks_of_positions(N: int, fitting: int, chunk: int) -> None:
    assert _equal_chunks(N, fitting) == chunk


@needed
def test_where_linux_refuses_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_are_permitted", lambda: False)
    assert not has_tiles.__wrapped__()
