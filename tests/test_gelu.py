"""The compiled GELU is PyTorch's, and steps aside where only PyTorch's will do."""

import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad

from ai_learning.kernels import gelu as module
from ai_learning.kernels.gelu import gelu, gelu_new
from ai_learning.kernels.loops import processor_has, ready
from ai_learning.model import MLP, GPTConfig

numba_needed = pytest.mark.skipif(not ready(), reason="numba is not installed")
FORMS = {"none": gelu, "tanh": gelu_new}
KINDS = [("tanh", 1), ("tanh", 16), ("none", 16)]
"""the form, and how many numbers its loops take at once"""


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 1)


@pytest.fixture(params=KINDS, ids=str)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every pair of loops that this machine has, whatever the number of elements (a multiple of 16)."""
    form, at_once = request.param
    if not has_loops(form, at_once):
        pytest.skip("no such loops on this machine")
    monkeypatch.setattr(module, "_pair", partial(only, at_once))
    return form


def has_loops(form: str, at_once: int) -> bool:
    return ready() and ((form == "tanh" and at_once == 1) or processor_has("avx512f"))


def only(at_once: int, form: str, whole_registers: bool) -> Any:
    return REAL(form, whole_registers and at_once == 16)


REAL = module._pair


def both(form: str, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    x = x.detach().requires_grad_()
    y = FORMS[form](x)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def by_definition(form: str, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().double().requires_grad_()
    if form == "tanh":
        share = (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    else:
        share = torch.special.ndtr(x)
    y = x * share
    return y.detach(), torch.autograd.grad(y, x, grad.double())[0]


def is_a_loop(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_GeluBackward"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(0, 15), st.floats(1e-6, 30), st.integers(0, 10**6))
@pytest.mark.parametrize(("form", "at_once"), KINDS)
def test_it_is_the_definition(
    form: str, at_once: int, whole: int, rest: int, scale: float, seed: int
) -> None:
    if not has_loops(form, at_once):
        pytest.skip("no such loops on this machine")
    n = 16 * whole if at_once == 16 else 16 * whole + rest
    torch.manual_seed(seed)
    x, grad = torch.randn(n) * scale, torch.randn(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH_IT", 1)
        patch.setattr(module, "_pair", partial(only, at_once))
        assert is_a_loop(FORMS[form](x.requires_grad_()))
        for ours, exact in zip(both(form, x, grad), by_definition(form, x, grad), strict=True):
            atol = 4e-7 * max(1, float(grad.abs().max()))
            torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=atol)


def test_everywhere_it_is_as_exact_as_pytorchs(form: str) -> None:
    """Also where pieces meet, and beyond the last ones."""
    x = torch.linspace(-9, 9, 2**18)
    grad = torch.ones_like(x)
    (y, slope), (exact, exact_slope) = both(form, x, grad), by_definition(form, x, grad)
    theirs = F.gelu(x, approximate=form)
    assert float((y - exact).abs().max()) <= max(6e-7, float((theirs - exact).abs().max()))
    assert float((slope - exact_slope).abs().max()) < 4e-7


def test_nan_infinity_and_what_is_huge(form: str) -> None:
    x = torch.tensor(
        [math.nan, math.inf, -math.inf, 1e20, -1e20, 0.0, -0.0, 100.0, -100.0, 1e-40] + [1.0] * 6
    )
    y, slope = both(form, x, torch.ones_like(x))
    theirs = F.gelu(x.double(), approximate=form).float()  # its float32 kernel has NaN for infinity
    torch.testing.assert_close(y, theirs, equal_nan=True)
    limits = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert slope[0].isnan()
    # Where a cube is infinite PyTorch's slopes are NaN, and those of the portable loops.
    assert bool((slope[1:5].isnan() | (slope[1:5] == limits)).all())
    torch.testing.assert_close(slope[5:10], torch.tensor([0.5, 0.5, 1.0, 0.0, 0.5]))


def test_a_second_derivative(form: str) -> None:
    x = torch.randn(32, requires_grad=True)
    y = FORMS[form](x)
    assert is_a_loop(y)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    (theirs,) = torch.autograd.grad(F.gelu(x, approximate=form).square().sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(theirs.sum(), x)[0])


def test_a_gradient_that_is_no_plain_tensor(form: str) -> None:
    x = torch.randn(4, 8, requires_grad=True)
    for grad in (torch.ones(8, 4).t(), torch.ones(1).expand(4, 8), torch.zeros(4, 8)):
        ours, theirs = (
            torch.autograd.grad(FORMS[form](x), x, grad),
            torch.autograd.grad(F.gelu(x, approximate=form), x, grad),
        )
        torch.testing.assert_close(ours, theirs)


def test_gradients_in_batches_and_of_zeros(form: str) -> None:
    x = torch.randn(32, requires_grad=True)
    many = torch.randn(3, 32)
    (ours,) = torch.autograd.grad(FORMS[form](x), x, many, is_grads_batched=True)
    (theirs,) = torch.autograd.grad(F.gelu(x, approximate=form), x, many, is_grads_batched=True)
    torch.testing.assert_close(ours, theirs)
    (nothing,) = torch.autograd.grad(FORMS[form](x), x, torch._efficientzerotensor(x.shape))
    assert not nothing.any()


def test_without_a_gradient_only_the_tanh_form_is_a_loop(form: str) -> None:
    """PyTorch's exact one is as fast, and its first call loads nothing."""
    x = torch.randn(4, 32)
    wanted = both(form, x, x)[0] if form == "tanh" else F.gelu(x)
    assert torch.equal(FORMS[form](x), wanted)
    with torch.no_grad():
        assert torch.equal(FORMS[form](x.requires_grad_()), wanted)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_no_size_is_fixed_in_a_graph(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 1000)
    model = MLP(GPTConfig(n_embd=16, n_head=2, activation=activation))
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs, dynamic=True)
    for length in (5, 300):
        compiled(torch.randn(2, length, 16)).sum().backward()
    assert graphs.frame_count == 1
    sizes = {0: torch.export.Dim("b", min=1, max=1000)}
    exported = torch.export.export(model, (torch.randn(3, 5, 16),), dynamic_shapes=(sizes,)).module()
    x = torch.randn(900, 5, 16)
    torch.testing.assert_close(exported(x), model(x))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(form: str, threads: int) -> None:
    x, grad = torch.randn(2**18), torch.randn(2**18)
    before, results = torch.get_num_threads(), []
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            results.append(both(form, x, grad))
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_a_traced_model(activation: str) -> None:
    model = MLP(GPTConfig(n_embd=8, n_head=2, activation=activation))
    x = torch.randn(2, 3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


def test_what_only_pytorch_can_do(form: str) -> None:
    fn = FORMS[form]
    plain = torch.randn(4, 8)
    for x in (
        plain.double().requires_grad_(),
        plain.bfloat16().requires_grad_(),
        plain.clone().requires_grad_().t(),
    ):
        assert torch.equal(fn(x), F.gelu(x, approximate=form))
    gradient = torch.func.grad(lambda x: fn(x).sum())
    torch.testing.assert_close(gradient(plain.detach()), both(form, plain, torch.ones(4, 8))[1])
    with forward_ad.dual_level():
        dual = fn(forward_ad.make_dual(plain.clone().requires_grad_(), torch.ones(4, 8)))
        torch.testing.assert_close(
            forward_ad.unpack_dual(dual).tangent, both(form, plain, torch.ones(4, 8))[1]
        )
    per_row = torch.func.vmap(gradient)
    torch.testing.assert_close(per_row(plain.detach()), both(form, plain, torch.ones(4, 8))[1])


def test_a_compiled_model_keeps_its_own(form: str) -> None:
    x = torch.randn(48, requires_grad=True)
    compiled = torch.compile(FORMS[form], backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.gelu(x, approximate=form))
