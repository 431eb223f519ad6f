"""The compiled GELU is PyTorch's, and steps aside where only PyTorch's will do."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from ai_learning import gelu as module
from ai_learning.gelu import gelu_new
from ai_learning.model import MLP, GPTConfig

numba_needed = pytest.mark.skipif(not module._can_loop(), reason="numba is not installed")


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 1)


def both(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    x = x.detach().requires_grad_()
    y = gelu_new(x)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def by_definition(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().double().requires_grad_()
    y = x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return y.detach(), torch.autograd.grad(y, x, grad.double())[0]


@numba_needed
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(1e-6, 30), st.integers(0, 10**6))
def test_it_is_the_definition(n: int, scale: float, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_WORTH_IT", 1)
        torch.manual_seed(seed)
        x, grad = torch.randn(n) * scale, torch.randn(n)
        assert type(gelu_new(x.requires_grad_()).grad_fn).__name__ == "_GeluNewBackward"
        for ours, exact in zip(both(x, grad), by_definition(x, grad), strict=True):
            torch.testing.assert_close(
                ours.double(), exact, rtol=1e-5, atol=2e-6 * max(1, float(grad.abs().max()))
            )


@numba_needed
def test_nan_infinity_and_what_is_huge_are_as_in_pytorch() -> None:
    x = torch.tensor(
        [math.nan, math.inf, -math.inf, 1e20, -1e20, 0.0, -0.0, 100.0, -100.0, 1e-40]
    ).requires_grad_()
    for ours, theirs in zip(
        (gelu_new(x), *torch.autograd.grad(gelu_new(x).sum(), x)),
        (F.gelu(x, approximate="tanh"), *torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@numba_needed
def test_a_second_derivative() -> None:
    x = torch.randn(20, requires_grad=True)
    (first,) = torch.autograd.grad(gelu_new(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    (theirs,) = torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x, create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(theirs.sum(), x)[0])


@numba_needed
def test_a_gradient_that_is_no_plain_tensor() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    for grad in (torch.ones(6, 4).t(), torch.ones(1).expand(4, 6), torch.zeros(4, 6)):
        ours, theirs = (
            torch.autograd.grad(gelu_new(x), x, grad),
            torch.autograd.grad(F.gelu(x, approximate="tanh"), x, grad),
        )
        torch.testing.assert_close(ours, theirs)


@numba_needed
def test_gradients_in_batches_and_of_zeros() -> None:
    x = torch.randn(30, requires_grad=True)
    many = torch.randn(3, 30)
    (ours,) = torch.autograd.grad(gelu_new(x), x, many, is_grads_batched=True)
    (theirs,) = torch.autograd.grad(F.gelu(x, approximate="tanh"), x, many, is_grads_batched=True)
    torch.testing.assert_close(ours, theirs)
    (nothing,) = torch.autograd.grad(gelu_new(x), x, torch._efficientzerotensor(x.shape))
    assert not nothing.any()


def test_a_traced_model() -> None:
    model = MLP(GPTConfig(n_embd=8, n_head=2, activation="gelu_new"))
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


def test_what_only_pytorch_can_do() -> None:
    plain = torch.randn(4, 6)
    for x in (
        plain,
        plain.double().requires_grad_(),
        plain.bfloat16().requires_grad_(),
        plain.clone().requires_grad_().t(),
    ):
        assert torch.equal(gelu_new(x), F.gelu(x, approximate="tanh"))
    with torch.no_grad():
        assert torch.equal(gelu_new(plain), F.gelu(plain, approximate="tanh"))
    gradient = torch.func.grad(lambda x: gelu_new(x).sum())
    torch.testing.assert_close(gradient(plain.detach()), both(plain, torch.ones(4, 6))[1])
    with forward_ad.dual_level():
        dual = gelu_new(forward_ad.make_dual(plain.clone().requires_grad_(), torch.ones(4, 6)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, both(plain, torch.ones(4, 6))[1])
    per_row = torch.func.vmap(gradient)
    torch.testing.assert_close(per_row(plain.detach()), both(plain, torch.ones(4, 6))[1])


@numba_needed
def test_a_compiled_model_keeps_its_own() -> None:
    x = torch.randn(40, requires_grad=True)
    compiled = torch.compile(gelu_new, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.gelu(x, approximate="tanh"))
