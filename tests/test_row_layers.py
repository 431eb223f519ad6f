"""Small layers on tile registers, MLPs as one operation, cuts without copies: PyTorch's results, always."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

from ai_learning.adapters import LoRAConfig, inject_lora
from ai_learning.kernels import cpu_attention, cpu_mlp, row_layers
from ai_learning.kernels import linear as linear_module
from ai_learning.kernels.cpu_mlp import can_mlp, mlp
from ai_learning.kernels.gelu import gelu, gelu_new
from ai_learning.kernels.linear import Linear
from ai_learning.kernels.split import _Split, _whole, split
from ai_learning.model import GPT, GPTConfig
from ai_learning.model.mlp import MLP

needed = pytest.mark.skipif(not row_layers.has_loops(), reason="no tile registers (Intel AMX), or no numba")
FORMS = {"none": gelu, "tanh": gelu_new}


def layers(C: int, H: int, O: int, bias: bool = True, seed: int = 0) -> tuple[Linear, Linear]:  # noqa: E741
    torch.manual_seed(seed)
    return Linear(C, H, bias), Linear(H, O, bias)


def formula(x: Tensor, fc: nn.Linear, proj: nn.Linear, approximate: str) -> Tensor:
    """By PyTorch's operations."""
    return F.linear(F.gelu(F.linear(x, fc.weight, fc.bias), approximate=approximate), proj.weight, proj.bias)


def parts(x: Tensor, *modules: nn.Module) -> list[Tensor]:
    return [x, *(p for module in modules for p in module.parameters())]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact).norm() / exact.norm())


def gradients(y: Tensor, wanted: list[Tensor], grad: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(y, wanted, grad.to(y.dtype)))


def check(shape: tuple[int, ...], C: int, H: int, O: int, approximate: str, bias: bool) -> None:  # noqa: E741
    """Output and gradients as exact as PyTorch's, next to float64."""
    fc, proj = layers(C, H, O, bias)
    x = torch.randn(*shape, C, requires_grad=True)
    grad = torch.randn(*shape, O)
    assert can_mlp(x, fc, FORMS[approximate], proj)
    y = mlp(x, fc, FORMS[approximate], proj)
    found = [y, *gradients(y, parts(x, fc, proj), grad)]
    usual = formula(x, fc, proj, approximate)
    usual_all = [usual, *gradients(usual, parts(x, fc, proj), grad)]
    wide = x.detach().double().requires_grad_(), copy.deepcopy(fc).double(), copy.deepcopy(proj).double()
    exact = formula(*wide, approximate)
    exact_all = [exact, *gradients(exact, parts(*wide), grad)]
    for own, other, true in zip(found, usual_all, exact_all, strict=True):
        assert own.shape == other.shape
        assert error(own, true) < 1.5 * error(other, true) + 3e-7


# --- by rows ------------------------------------------------------------------------------------------------


@needed
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_an_mlp_and_its_gradients(
    threads: int, approximate: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(cpu_mlp, "frozen_linear", lambda *args: pytest.fail("not by rows"))
    check((4, 72), 96, 160, 64, approximate, bias)
    check((1056,), 32, 32, 32, approximate, bias)


@needed
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.integers(240, 500), st.booleans())
def test_sizes(C: int, H: int, O: int, rows: int, bias: bool) -> None:  # noqa: E741
    """Whole panels by rows, other numbers of rows by PyTorch's products."""
    check((rows,), 32 * C, 32 * H, 32 * O, "tanh", bias)
    check((rows // 32 * 32,), 32 * C, 32 * H, 32 * O, "none", bias)


@needed
@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "K", "N"), [(288, 96, 160), (1024, 32, 256), (256, 384, 32), (800, 128, 384)]
)
def test_a_layer_and_its_gradients(
    rows: int, K: int, N: int, bias: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, row_layers, "linear", "linear_backward")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    layer = Linear(K, N, bias)
    x, grad = torch.randn(rows // 16, 16, K, requires_grad=True), torch.randn(rows // 16, 16, N)
    found = [y := layer(x), *gradients(y, parts(x, layer), grad)]
    assert calls == {"linear": 1, "linear_backward": 1}
    usual = F.linear(x, layer.weight, layer.bias)
    double = x.detach().double().requires_grad_(), copy.deepcopy(layer).double()
    exact = F.linear(double[0], double[1].weight, double[1].bias)
    for own, other, true in zip(
        found,
        [usual, *gradients(usual, parts(x, layer), grad)],
        [exact, *gradients(exact, parts(*double), grad)],
        strict=True,
    ):
        assert own.shape == other.shape and error(own, true) < 1.5 * error(other, true) + 1e-7


@needed
def test_of_a_layer_only_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a frozen weight, or for a first layer, the gradients are PyTorch's products."""
    calls = count_calls(monkeypatch, row_layers, "linear", "linear_backward")
    layer, x = Linear(96, 160), torch.randn(288, 96)
    for frozen in (True, False):
        layer.weight.requires_grad_(not frozen)
        given = x.clone().requires_grad_(frozen)
        wanted = given if frozen else layer.weight
        expected = torch.autograd.grad(F.linear(given, layer.weight, layer.bias).square().sum(), wanted)
        found = torch.autograd.grad(layer(given).square().sum(), wanted)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert calls == {"linear": 2, "linear_backward": 0}


def count_calls(patch: pytest.MonkeyPatch, module: object, *names: str) -> dict[str, int]:
    found = dict.fromkeys(names, 0)

    def counted(name: str):  # type: ignore[no-untyped-def]
        function = getattr(module, name)

        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            found[name] += 1
            return function(*args, **kwargs)

        return call

    for name in names:
        patch.setattr(module, name, counted(name))
    return found


@needed
def test_autocast_means_other_numbers() -> None:
    layer, x = Linear(96, 160), torch.randn(288, 96, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@needed
def test_which_sizes_go_by_rows() -> None:
    assert row_layers.may_fit(torch.empty(512, 128), torch.empty(128, 512))  # 4/4/128's MLP
    assert not row_layers.may_fit(torch.empty(1536, 384), torch.empty(384, 1536))
    for shape in ((33, 64), (64, 33), (0, 64), (64,), (2, 32, 32)):
        assert not row_layers.may_fit(torch.empty(shape))
    assert [row_layers.are_enough(n) for n in (0, 32, 224, 256, 257, 288)] == [False] * 3 + [
        True,
        False,
        True,
    ]


@needed
def test_other_threads_in_the_backward_pass() -> None:
    """What is kept must not depend on them."""
    (fc, proj), x = layers(64, 128, 64), torch.randn(256, 64, requires_grad=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        y = mlp(x, fc, gelu, proj)
        torch.set_num_threads(1)
        found = gradients(y, parts(x, fc, proj), torch.ones_like(y))
    finally:
        torch.set_num_threads(before)
    expected = gradients(formula(x, fc, proj, "none"), parts(x, fc, proj), torch.ones_like(y))
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@needed
def test_what_is_not_finite_does_not_vanish() -> None:
    (fc, proj), x = layers(64, 128, 64), torch.randn(256, 64)
    x[5, 7] = torch.nan
    y = mlp(x.requires_grad_(), fc, gelu, proj)
    assert y[5].isnan().all() and y[6:].isfinite().all() and y[:5].isfinite().all()
    grad = torch.autograd.grad(y.sum(), fc.weight)[0]
    assert grad[:, 7].isnan().all()


# --- as one operation, whatever the size --------------------------------------------------------------------


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_large_layers(approximate: str, bias: bool) -> None:
    check((3, 50), 256, 1024, 128, approximate, bias)


@pytest.mark.parametrize("width", [pytest.param(64, marks=needed), 512])
def test_a_gradient_of_the_gradient(width: int) -> None:
    torch.manual_seed(0)
    fc, proj = (layer.double() for layer in layers(4, 8, 3))
    double = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    for approximate in FORMS:
        assert torch.autograd.gradgradcheck(
            lambda x, *p, how=approximate: cpu_mlp._MLP.apply(x, *p, how),
            (double, fc.weight, fc.bias, proj.weight, proj.bias),
        )
    fc, proj = layers(width, 4 * width, width)
    x = torch.randn(256, width, requires_grad=True)
    twice = []
    for y in (mlp(x, fc, gelu, proj), formula(x, fc, proj, "none")):
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        twice.append(torch.autograd.grad(first.square().sum(), [x, fc.weight, proj.bias]))
    for own, other in zip(*twice, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [pytest.param(64, marks=needed), 512])
def test_a_batch_of_gradients_and_one_row(width: int) -> None:
    fc, proj = layers(width, 4 * width, width)
    for shape in ((256, width), (width,)):
        x = torch.randn(shape, requires_grad=True)
        grads = torch.randn(3, *shape)
        found, expected = (
            torch.autograd.grad(y, [x, fc.weight, proj.bias], grads, is_grads_batched=True)
            for y in (mlp(x, fc, gelu, proj), formula(x, fc, proj, "none"))
        )
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    x = torch.randn(width, requires_grad=True)
    (first,) = torch.autograd.grad(mlp(x, fc, gelu, proj).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("width", [pytest.param(64, marks=needed), 512])
def test_gelu_of_the_first_layer_is_not_kept(width: int) -> None:
    kept: list[Tensor] = []
    model = MLP(GPTConfig(n_embd=width, n_head=4))
    x = torch.randn(2, 128, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(x)
    assert sum(t.numel() == 4 * x.numel() for t in kept) == 1


@pytest.mark.parametrize("width", [pytest.param(64, marks=needed), 512])
def test_gradients_that_lie_otherwise(width: int) -> None:
    """Expanded, turned, every second one; and kept tensors that came back as others."""
    fc, proj = layers(width, 4 * width, width)
    x = torch.randn(2, 128, width, requires_grad=True)
    expected = formula(x, fc, proj, "none")
    for how in (
        lambda y: y.sum(),
        lambda y: (y.transpose(0, 2) * torch.arange(2.0)).sum(),
        lambda y: y[:, ::2, ::2].square().sum(),
    ):
        own, other = (
            torch.autograd.grad(how(y), parts(x, fc, proj), retain_graph=True)
            for y in (mlp(x, fc, gelu, proj), expected)
        )
        for found, true in zip(own, other, strict=True):
            torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-3)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t, lambda t: t.mT.contiguous().mT if t.dim() > 1 else t
    ):
        y = mlp(x, fc, gelu, proj)
    own = torch.autograd.grad(y.sum(), fc.weight)[0]
    torch.testing.assert_close(own, torch.autograd.grad(expected.sum(), fc.weight)[0], rtol=1e-3, atol=1e-3)


def test_what_is_left_to_the_layers_themselves() -> None:
    """Each of these must call both layers as modules."""
    config = GPTConfig(n_embd=512, n_head=4, n_layer=1, vocab_size=16, block_size=8)
    model, x = MLP(config), torch.randn(2, 8, 512, requires_grad=True)

    def takes(model: MLP = model, x: Tensor = x) -> bool:
        return can_mlp(x, model.c_fc, model.activation, model.c_proj)

    assert takes()
    with torch.no_grad():
        assert not takes()
    assert not takes(x=x.detach())
    assert not takes(x=x.double()) and not takes(x=x[..., :100])
    model.c_fc.weight.requires_grad_(False)
    assert not takes()
    model.c_fc.weight.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not takes()
    for register in (
        model.c_fc.register_forward_hook,
        model.c_proj.register_forward_pre_hook,
        model.c_fc.register_full_backward_hook,
        model.c_proj.register_full_backward_pre_hook,
    ):
        handle = register(lambda *args: None)
        assert not takes()
        handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert not takes()
    handle.remove()
    assert takes()
    assert not takes(MLP(GPTConfig(n_embd=512, n_head=4, activation="relu2")))
    changed = copy.deepcopy(model)
    changed.c_fc.forward = lambda x: x
    assert not takes(changed)
    changed = copy.deepcopy(model)
    nn.utils.parametrizations.weight_norm(changed.c_proj)
    assert not takes(changed)
    gpt = inject_lora(GPT(config), LoRAConfig(r=2, target_modules=["c_fc"])).requires_grad_(True)
    assert not takes(gpt.h[0].mlp)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [pytest.param(64, marks=needed), 512])
def test_shapes_that_are_not_two_layers(width: int) -> None:
    """PyTorch spreads a bias of one number; of others it complains."""
    x = torch.randn(256, width, requires_grad=True)
    for change in ("fc_bias", "proj_bias", "flat"):
        fc, proj = layers(width, 4 * width, width)
        if change == "flat":
            proj.weight = nn.Parameter(torch.randn(4 * width))
        else:
            (fc if change == "fc_bias" else proj).bias = nn.Parameter(torch.ones(1))
        assert not can_mlp(x, fc, gelu, proj)


def test_an_activation_that_cannot_be_looked_up() -> None:
    class Unhashable:
        __hash__ = None

        def __call__(self, x: Tensor) -> Tensor:
            return x

    assert not can_mlp(torch.randn(256, 64, requires_grad=True), *layers(64, 64, 64)[:1], Unhashable(), None)


def test_a_hook_sees_what_it_should() -> None:
    model = MLP(GPTConfig(n_embd=512, n_head=4))
    seen: list[Tensor] = []
    model.c_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(2, 8, 512, requires_grad=True)
    model(x)
    torch.testing.assert_close(seen[0], gelu_new(model.c_fc(x)))


def test_transforms_take_pytorchs() -> None:
    model = MLP(GPTConfig(n_embd=512, n_head=4))
    x = torch.randn(3, 8, 512)
    state = {name: value.detach() for name, value in model.named_parameters()}

    def loss(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, state, (x,)).square().mean()

    each = vmap(torch.func.grad(loss), in_dims=(None, 0))(state, x)
    model.zero_grad()
    loss(dict(model.named_parameters()), x.requires_grad_()).backward()
    torch.testing.assert_close(each["c_fc.weight"].mean(0), model.c_fc.weight.grad, rtol=1e-3, atol=1e-5)
    given = ((x.detach(),), (torch.ones_like(x),))
    _, forward = torch.func.jvp(model, *given)
    _, expected = torch.func.jvp(lambda x: formula(x, model.c_fc, model.c_proj, "tanh"), *given)
    torch.testing.assert_close(forward, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("width", [pytest.param(64, marks=needed), 512])
def test_recomputed(width: int) -> None:
    """Activation checkpoints unpack what was saved once only."""
    model = GPT(GPTConfig(n_embd=width, n_head=2, n_layer=2, vocab_size=32, block_size=128))
    x = torch.randn(2, 128, width, requires_grad=True)
    found = []
    for run in (model.h[0], lambda x: checkpoint(model.h[0], x, use_reentrant=False)):
        found.append(torch.autograd.grad(run(x).square().sum(), [x, *model.h[0].parameters()]))
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


# --- in graphs ----------------------------------------------------------------------------------------------


@needed
@pytest.mark.parametrize("rows", [256, 250, 8])
def test_operations_keep_pytorchs_rules(rows: int) -> None:
    """Fakes, gradients and schemas, by rows and by PyTorch's products."""
    (fc, proj), x = layers(64, 128, 64), torch.randn(rows, 64, requires_grad=True)
    utils = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    given = (x, fc.weight, fc.bias, proj.weight, proj.bias, "none")
    torch.library.opcheck(cpu_mlp._in_a_graph, given, test_utils=utils)
    without = (x, fc.weight, None, proj.weight, None, "tanh")
    torch.library.opcheck(cpu_mlp._in_a_graph, without, test_utils=utils)
    layer = (x, fc.weight, fc.bias)
    torch.library.opcheck(linear_module._in_a_graph, layer, test_utils=utils)
    turned = torch.randn(64, rows).t()
    grad = torch.randn(rows, 128)
    torch.library.opcheck(
        linear_module._all_gradients_in_a_graph, (turned, fc.weight.detach(), grad), test_utils=utils[:2]
    )


@needed
def test_what_operations_refuse() -> None:
    """Loops would read, and write, past the end of 16-bit numbers: hooks of saved tensors may make some."""
    (fc, proj), x = layers(64, 128, 64), torch.randn(256, 64)
    weights = [p.detach() for p in (fc.weight, fc.bias, proj.weight, proj.bias)]
    y, wide = cpu_mlp._in_a_graph(x, *weights, "none")
    given = (x, weights[0], weights[2], wide, torch.ones_like(y))
    assert len(cpu_mlp._backward_in_a_graph(*given, "none")) == 5
    for n in range(5):
        wrong = [t.bfloat16() if place == n else t for place, t in enumerate(given)]
        with pytest.raises(TypeError, match="float32"):
            cpu_mlp._backward_in_a_graph(*wrong, "none")
        short = [t[1:].contiguous() if place == n else t for place, t in enumerate(given)]
        with pytest.raises(TypeError, match="not"):
            cpu_mlp._backward_in_a_graph(*short, "none")
    with pytest.raises(TypeError, match="float32"):
        cpu_mlp._in_a_graph(x.double(), *weights, "none")
    with pytest.raises(TypeError, match="not"):
        cpu_mlp._in_a_graph(x[:, :32], *weights, "none")
    with pytest.raises(TypeError, match="bias"):
        cpu_mlp._in_a_graph(x, weights[0], weights[1][:1], *weights[2:], "none")
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t),
        pytest.raises(TypeError, match="float32"),
    ):
        compiled = torch.compile(lambda x: mlp(x, fc, gelu, proj), backend="aot_eager")
        compiled(x.requires_grad_()).sum().backward()


def test_modules_can_be_loaded_again() -> None:
    """As notebooks do whose sources change."""
    code = (
        "import importlib, torch, ai_learning.kernels.linear as l, ai_learning.kernels.compile_ops as g;"
        "importlib.reload(l);"
        "importlib.reload(g); importlib.reload(l);"
        "torch.compile(l.Linear(128, 128), backend='aot_eager')(torch.randn(256, 128)).sum().backward()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needed
def test_compiled_autograd_takes_pytorchs() -> None:
    layer, x = Linear(128, 128), torch.randn(256, 128, requires_grad=True)
    expected = torch.autograd.grad(F.linear(x, layer.weight, layer.bias).square().sum(), layer.weight)[0]
    y = layer(x).square().sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        y.backward()
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-3)


@needed
def test_a_compiled_model_calls_both(monkeypatch: pytest.MonkeyPatch) -> None:
    mlps = count_calls(monkeypatch, row_layers, "mlp", "mlp_backward", "linear", "linear_backward")
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_embd=128, n_head=4, n_layer=1, vocab_size=32, block_size=64))
    compiled = torch.compile(model, dynamic=True)
    for rows, by_rows in ((4, 1), (3, 0), (8, 1)):
        idx = torch.randint(32, (rows, 64))
        for name in mlps:
            mlps[name] = 0
        found = torch.autograd.grad(compiled(idx).square().mean(), list(model.parameters()))
        assert mlps == {
            "mlp": by_rows, "mlp_backward": by_rows, "linear": 2 * by_rows, "linear_backward": 2 * by_rows
        }  # fmt: skip
        expected = torch.autograd.grad(model(idx).square().mean(), list(model.parameters()))
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-6)


def test_an_exported_graph_has_pytorchs_layers_only() -> None:
    model = MLP(GPTConfig(n_embd=512, n_head=4))
    graph = torch.export.export(model, (torch.randn(2, 8, 512),)).graph
    assert not [node for node in graph.nodes if "ai_learning" in str(node.target)]


def test_names_of_operations_change_with_their_source() -> None:
    """PyTorch keeps graphs by these names."""
    from ai_learning.kernels.compile_ops import _digest

    for module, operation in ((cpu_mlp, cpu_mlp._in_a_graph), (linear_module, linear_module._in_a_graph)):
        assert operation.name().endswith("_" + _digest(module.__file__))  # type: ignore[arg-type]
    assert _digest("nowhere.zip/linear.py") == "unknown"


# --- cuts ---------------------------------------------------------------------------------------------------


def pieces_of(whole: Tensor, widths: list[int]) -> list[Tensor]:
    return list(whole.split(widths, dim=-1))


def test_a_cut_is_pytorchs() -> None:
    x = torch.randn(2, 3, 10, requires_grad=True)
    for own, other in zip(split(x, [2, 5, 3]), x.split([2, 5, 3], dim=-1), strict=True):
        assert torch.equal(own, other) and own.data_ptr() == other.data_ptr()
    weights = torch.randn(2, 3, 10)

    def loss(pieces: tuple[Tensor, ...]) -> Tensor:
        return sum((p * w).pow(3).sum() for p, w in zip(pieces, pieces_of(weights, [2, 5, 3]), strict=True))

    found, expected = (torch.autograd.grad(loss(cut(x)), x)[0] for cut in (
        lambda x: split(x, [2, 5, 3]), lambda x: x.split([2, 5, 3], dim=-1)
    ))  # fmt: skip
    assert torch.equal(found, expected)
    (partial,) = torch.autograd.grad(split(x, [2, 8])[1].sum(), x)
    assert torch.equal(partial, torch.cat([torch.zeros(2, 3, 2), torch.ones(2, 3, 8)], dim=-1))
    double = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: _Split.apply(x, [1, 3], -1)[1].pow(3), double)


def test_gradients_side_by_side_that_have_gradients() -> None:
    x, grads = torch.randn(2, 12, requires_grad=True), torch.randn(2, 12, requires_grad=True)
    parts = split(x, [4, 8])
    (found,) = torch.autograd.grad(parts, x, pieces_of(grads, [4, 8]), create_graph=True)
    assert torch.equal(torch.autograd.grad(found.sum(), grads)[0], torch.ones(2, 12))


def test_gradients_side_by_side_are_not_copied() -> None:
    whole = torch.randn(2, 3, 12)
    found = _whole(pieces_of(whole, [4, 4, 4]), 2)
    assert found is not None and found.data_ptr() == whole.data_ptr() and torch.equal(found, whole)
    inner = torch.randn(9, 2, 3, 12)[4]  # elsewhere than at the beginning of its memory
    found = _whole(pieces_of(inner, [2, 10]), 2)
    assert found is not None and torch.equal(found, inner)
    heads = torch.randn(2, 3, 5, 4)
    found = _whole(heads.split([3, 1, 1], dim=2), 2)
    assert found is not None and found.data_ptr() == heads.data_ptr() and torch.equal(found, heads)


def test_what_is_not_a_whole() -> None:
    whole = torch.randn(2, 3, 12)
    a, b, c = pieces_of(whole, [4, 4, 4])
    for pieces in (
        [a, c, b],
        [a, b],  # not all of it: rows are further apart
        [b, c],
        [a, b.clone(), c],
        [a, b, c[:1]],
        [a, b, c.double()],
        [a.transpose(0, 1), b.transpose(0, 1), c.transpose(0, 1)],
    ):
        assert _whole(pieces, 2) is None
    assert _whole(torch.randn(2, 3, 5, 4)[..., :2].split([3, 2], dim=2), 2) is None


@pytest.mark.skipif(not cpu_attention.has_loops(), reason="no AVX-512, or no numba")
def test_attention_hands_its_gradients_back_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.randn(12, 64, 3 * 128, requires_grad=True)
    q, k, v = (part.transpose(1, 2) for part in split(packed.view(12, 64, 12, 32), [4] * 3, dim=2))
    out = cpu_attention.causal_attention(q, k, v)
    expected = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=True).sum(), packed)
    monkeypatch.setattr(torch, "cat", lambda *args, **kwargs: pytest.fail("copied"))
    torch.testing.assert_close(torch.autograd.grad(out.sum(), packed), expected, rtol=1e-4, atol=1e-4)
