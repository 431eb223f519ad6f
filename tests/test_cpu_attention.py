"""Attention as compiled loops is the formula; PyTorch's kernel is taken where they do not fit."""

import math
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from ai_learning.kernels import cpu_attention as module
from ai_learning.kernels.cpu_attention import can_loop, causal_attention
from ai_learning.kernels.loops import threads
from ai_learning.model import GPT, GPTConfig
from ai_learning.model.attention import causal_mask, fast_attention, reference_attention

needed = pytest.mark.skipif(not module.has_loops(), reason="no AVX-512, or no numba")
OURS = "_CausalAttentionBackward"


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 0)


def heads(B: int, H: int, T: int, D: int, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """q, k and v as a model has them: views of one (B, T, 3·H·D) tensor."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(B, T, 3 * H * D, generator=generator) * scale
    parts = (part.view(B, T, H, D).transpose(1, 2) for part in packed.split(H * D, dim=-1))
    return [part.detach().requires_grad_() for part in parts]


def with_gradients(function, tensors: list[Tensor], grad: Tensor) -> list[Tensor]:
    out = function(*tensors)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference_attention(q, k, v, causal_mask(q.size(-2)))[0]


@needed
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 4),
    st.floats(0.01, 2), st.integers(0, 10**6),
)  # fmt: skip
def test_it_is_the_formula(B: int, H: int, tiles: int, wide: int, scale: float, seed: int) -> None:
    T, D = 8 * tiles, 32 * wide
    tensors = heads(B, H, T, D, seed, scale)
    grad = torch.randn(B, T, H, D, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    for ours, wanted in zip(
        with_gradients(causal_attention, tensors, grad),
        with_gradients(by_definition, exact, grad.double()),
        strict=True,
    ):
        size = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=5e-5 * size)


@needed
@pytest.mark.parametrize("T", [8, 16, 24, 32, 40, 56, 64, 200, 1024])
def test_as_close_to_float64_as_pytorchs_kernel(T: int) -> None:
    tensors, grad = heads(2, 2, T, 64), torch.randn(2, T, 2, 64).transpose(1, 2)
    exact = with_gradients(
        by_definition, [t.detach().double().requires_grad_() for t in tensors], grad.double()
    )
    theirs = with_gradients(partial(F.scaled_dot_product_attention, is_causal=True), tensors, grad)
    ours = with_gradients(causal_attention, tensors, grad)
    for one, other, wanted in zip(ours, theirs, exact, strict=True):
        assert (one - wanted).abs().max() <= 4 * (other - wanted).abs().max() + 1e-6


@needed
def test_no_position_sees_a_later_one() -> None:
    q, k, v = heads(1, 1, 64, 32)
    before = causal_attention(q, k, v)
    with torch.no_grad():
        for tensor in (q, k, v):
            tensor[:, :, 41:] = 1e9
    after = causal_attention(q, k, v)
    assert torch.equal(after[:, :, :41], before[:, :, :41]) and not torch.equal(after, before)
    grad = torch.zeros_like(after)
    grad[:, :, :41] = 1.0
    for gradient in torch.autograd.grad(after, (q, k, v), grad):
        assert gradient[:, :, :41].isfinite().all() and not gradient[:, :, 41:].any()


@needed
def test_scores_of_any_size() -> None:
    """Largest first, largest last, and differences that no exponential holds."""
    q, k, v = heads(1, 1, 64, 32)
    with torch.no_grad():
        q.fill_(1.0)
        for slope in (1.0, -1.0, 30.0, -30.0):
            k.copy_((slope * torch.arange(64.0)).view(1, 1, 64, 1).expand_as(k))
            ours = causal_attention(q, k, v)
            torch.testing.assert_close(ours, by_definition(q, k, v), rtol=1e-4, atol=1e-4)
        k[0, 0, 3] = math.inf
        assert causal_attention(q, k, v)[0, 0, 3:].isnan().all()


@needed
def test_gradients_of_another_layout_and_of_a_part() -> None:
    tensors = heads(2, 2, 16, 32)
    for grad in (
        torch.ones(()).expand(2, 2, 16, 32),  # as of a sum: every number is the same one
        torch.randn(2, 2, 32, 16).transpose(2, 3),
        torch.randn(2, 2, 16, 64)[..., ::2],
    ):
        ours = with_gradients(causal_attention, tensors, grad)
        for one, other in zip(ours, with_gradients(by_definition, tensors, grad), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    (alone,) = torch.autograd.grad(causal_attention(*tensors).sum(), tensors[1])
    torch.testing.assert_close(
        alone, torch.autograd.grad(by_definition(*tensors).sum(), tensors[1])[0], rtol=1e-4, atol=1e-5
    )


@needed
def test_keys_that_serve_all_heads() -> None:
    """A dimension that is no distance apart is read again and again."""
    q, k, v = heads(2, 4, 16, 32)
    with torch.no_grad():
        k, v = k[:, :1].expand_as(k), v[:, :1].expand_as(v)
        torch.testing.assert_close(causal_attention(q, k, v), by_definition(q, k, v), rtol=1e-4, atol=1e-5)


@needed
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_same_bits_on_any_number_of_threads(count: int) -> None:
    before = torch.get_num_threads()
    tensors, grad = heads(3, 4, 96, 32), torch.randn(3, 4, 96, 32)
    one = with_gradients(causal_attention, tensors, grad)
    try:
        torch.set_num_threads(count)
        for _ in range(5):
            again = with_gradients(causal_attention, tensors, grad)
            assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    finally:
        torch.set_num_threads(before)


@needed
def test_several_threads_of_python_at_once() -> None:
    tensors, grad = heads(2, 4, 64, 32), torch.randn(2, 4, 64, 32)
    wanted, found = with_gradients(causal_attention, tensors, grad), []

    def work() -> None:
        found.extend(with_gradients(causal_attention, tensors, grad) for _ in range(10))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 40
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, wanted, strict=True))


# --- where PyTorch's kernel is taken ------------------------------------------------------------------------


def is_ours(q: Tensor, k: Tensor, v: Tensor, **options: float) -> bool:
    mask = causal_mask(q.size(-2)) if q.size(-2) == k.size(-2) else None
    out = fast_attention(q, k, v, mask, is_causal=mask is not None, **options)[0]
    return type(out.grad_fn).__name__ == OURS


@needed
def test_the_fast_function_takes_it_where_it_fits() -> None:
    q, k, v = heads(2, 2, 16, 32)
    assert is_ours(q, k, v)
    assert not is_ours(q, k, v, dropout_p=0.5)
    assert type(fast_attention(q, k, v)[0].grad_fn).__name__ != OURS  # no mask at all
    triangle = causal_mask(16)
    assert type(fast_attention(q, k, v, triangle)[0].grad_fn).__name__ != OURS  # no promise
    assert not is_ours(q[:, :, 8:], k, v)  # fewer queries than keys
    for B, H, T, D in ((2, 2, 12, 32), (2, 2, 16, 48), (1, 1, 1032, 32)):
        assert not is_ours(*heads(B, H, T, D))
    assert not is_ours(*(t.detach().double().requires_grad_() for t in (q, k, v)))
    assert not is_ours(*(t.detach().bfloat16().requires_grad_() for t in (q, k, v)))
    wide = torch.randn(2, 2, 16, 64, requires_grad=True)[..., ::2]
    assert not is_ours(wide, k, v)


@needed
def test_few_products_are_not_worth_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_IT", 2 * 2 * 16 * 16 * 32 + 1)
    assert not is_ours(*heads(2, 2, 16, 32)) and is_ours(*heads(2, 2, 24, 32))


@needed
def test_transforms_tracing_and_other_wishes_take_pytorchs() -> None:
    q, k, v = heads(3, 2, 16, 32)
    mask = causal_mask(16)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return fast_attention(q, k, v, mask, is_causal=True)[0]

    wanted = by_definition(q, k, v)
    each = torch.func.vmap(lambda *one: attend(*(t[None] for t in one))[0])(q, k, v)
    torch.testing.assert_close(each, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(make_fx(attend)(q, k, v)(q, k, v), wanted, rtol=1e-4, atol=1e-5)
    assert can_loop(q, k, v)
    with forward_ad.dual_level():
        assert not can_loop(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_loop(q, k, v) and attend(q, k, v).dtype == torch.bfloat16
    with sdpa_kernel(SDPBackend.MATH):
        assert not can_loop(q, k, v)
    with torch.no_grad():  # nothing is compiled for a prompt
        assert not can_loop(q, k, v)
    assert not can_loop(*(t.detach() for t in (q, k, v)))


def compiled_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each pass that a compiled graph makes."""
    calls: list[str] = []
    for name in ("_forward", "_backward"):
        real = getattr(module, name)
        noted = lambda *given, name=name, real=real: calls.append(name) or real(*given)  # noqa: E731
        monkeypatch.setattr(module, name, noted)
    return calls


@needed
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_graph_calls_both_passes(backend: str, dynamic: bool, monkeypatch) -> None:
    torch.compiler.reset()
    calls = compiled_calls(monkeypatch)

    @partial(torch.compile, backend=backend, dynamic=dynamic, fullgraph=True)
    def attend(packed: Tensor) -> Tensor:
        B, T, _ = packed.shape
        q, k, v = (part.view(B, T, 2, 32).transpose(1, 2) for part in packed.split(64, dim=-1))
        return fast_attention(q, k, v, causal_mask(T), is_causal=True)[0]

    for B, T in ((3, 16), (2, 24), (2, 20)):  # the last one is no whole number of tiles
        calls.clear()
        packed, grad = torch.randn(B, T, 192, requires_grad=True), torch.randn(B, 2, T, 32)
        q, k, v = (part.view(B, T, 2, 32).transpose(1, 2) for part in packed.split(64, dim=-1))
        (wanted,) = torch.autograd.grad(by_definition(q, k, v), packed, grad)
        out = attend(packed)
        torch.testing.assert_close(out, by_definition(q, k, v), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(*torch.autograd.grad(out, packed, grad), wanted, rtol=1e-4, atol=1e-5)
        assert calls == ([] if T % 8 else ["_forward", "_backward"])
    with torch.no_grad():
        attend(torch.randn(2, 24, 192))
        assert not calls


@needed
def test_what_a_compiled_graph_calls_keeps_pytorchs_rules() -> None:
    q, k, v = heads(2, 2, 16, 32)
    columns = k.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    for keys in (k, columns):
        torch.library.opcheck(module._in_a_graph, (q, keys, v))
        torch.testing.assert_close(
            module._in_a_graph(q, keys, v)[0].transpose(1, 2), by_definition(q, k, v), rtol=1e-4, atol=1e-5
        )
    out, stats = (t.detach() for t in module._in_a_graph(q, k, v))
    given = [t.detach() for t in (q, k, v)]
    for grad in (
        torch.randn(2, 16, 2, 32),
        torch.randn(2, 16, 32, 2).transpose(2, 3),
        torch.ones(1).expand_as(out),
    ):
        torch.library.opcheck(module._backward_in_a_graph, (*given, out, stats, grad))


@needed
def test_an_exported_graph_has_pytorchs_attention_only() -> None:
    model = GPT(GPTConfig(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=64))
    graph = torch.export.export(model, (torch.zeros(2, 16, dtype=torch.long),)).graph
    assert not [node for node in graph.nodes if "ai_learning" in str(node.target)]


def test_an_exported_graph_fixes_no_size() -> None:
    model = GPT(GPTConfig(vocab_size=50, block_size=64, n_layer=1, n_head=2, n_embd=64))
    sizes = ({0: torch.export.Dim("b", min=1, max=64)},)
    given = (torch.zeros(2, 64, dtype=torch.long),)
    exported = torch.export.export(model, given, dynamic_shapes=sizes).module()
    idx = torch.randint(0, 50, (9, 64))
    torch.testing.assert_close(exported(idx), model(idx), rtol=1e-4, atol=1e-5)


@needed
def test_what_a_compiled_graph_calls_refuses_what_its_loops_do_not_take() -> None:
    operation = module._in_a_graph
    good = heads(2, 2, 16, 32)
    bad = [heads(2, 2, 13, 32), heads(2, 2, 16, 20), [t.double() for t in good], [t.bfloat16() for t in good]]
    for q, k, v in (*bad, (good[0], *heads(2, 2, 8, 32)[1:]), (good[0][0], good[1], good[2])):
        with pytest.raises(TypeError, match="attention's loops need"):
            operation(q.detach(), k.detach(), v.detach())
    for q, k, v in bad:
        B, H, T, D = q.shape
        given = [t.detach() for t in (q, k, v)]
        with pytest.raises(TypeError, match="attention's loops need"):
            out = torch.zeros(B, T, H, D)
            module._backward_in_a_graph(*given, out, torch.zeros(2, B, H, T), out)
    given = [t.detach() for t in good]
    out, stats = operation(*given)
    for wrong in ((out[:, :8], stats, out), (out, stats[:1], out), (out, stats, out[:1])):
        with pytest.raises(TypeError, match="attention's gradient needs"):
            module._backward_in_a_graph(*given, *wrong)
    with pytest.raises(TypeError, match="attention's loops need float32"):
        module._backward_in_a_graph(*given, out, stats, out.double())


@needed
def test_tensors_that_hooks_have_kept_otherwise_in_a_graph() -> None:
    mask = causal_mask(16)
    attend = torch.compile(lambda *qkv: fast_attention(*qkv, mask, is_causal=True)[0], backend="eager")
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t):
        out = attend(*heads(2, 2, 16, 32))
    with pytest.raises(TypeError, match="attention's loops need float32"):
        out.sum().backward()


@needed
def test_fewer_heads_than_threads_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert not can_loop(*heads(2, 2, 16, 32)) and can_loop(*heads(3, 2, 16, 32))


@needed
def test_gradients_of_gradients_and_many_at_once() -> None:
    tensors = heads(2, 2, 16, 32)
    for function in (causal_attention, by_definition):
        (first,) = torch.autograd.grad(function(*tensors).square().sum(), tensors[0], create_graph=True)
        second = torch.autograd.grad(first.square().sum(), tensors)
        if function is causal_attention:
            ours = second
    for one, other in zip(ours, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    grads = torch.randn(3, 2, 2, 16, 32)
    many = torch.autograd.grad(causal_attention(*tensors), tensors, grads, is_grads_batched=True)
    for number, grad in enumerate(grads):
        alone = torch.autograd.grad(causal_attention(*tensors), tensors, grad)
        for one, other in zip(many, alone, strict=True):
            torch.testing.assert_close(one[number], other, rtol=1e-4, atol=1e-5)


@needed
def test_tensors_that_hooks_have_kept_otherwise() -> None:
    tensors, grad = heads(2, 2, 16, 32), torch.randn(2, 2, 16, 32)
    wanted = torch.autograd.grad(by_definition(*tensors), tensors, grad)
    for pack, unpack in (
        (lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2), lambda t: t),
        (lambda t: t.numpy(force=True), torch.from_numpy),
    ):
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            out = causal_attention(*tensors)
        for one, other in zip(torch.autograd.grad(out, tensors, grad), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t):
        out = causal_attention(*tensors)
    with pytest.raises(RuntimeError, match="dtype"):  # an error, not memory of half the size
        torch.autograd.grad(out, tensors, grad)


@needed
def test_the_default_device_does_not_matter() -> None:
    tensors, grad = heads(2, 2, 16, 32), torch.randn(2, 2, 16, 32)
    wanted = with_gradients(causal_attention, tensors, grad)
    with torch.device("meta"):
        again = with_gradients(causal_attention, tensors, grad)
    assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))


@needed
def test_in_a_forked_child_and_on_pythons_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, grad = heads(2, 4, 64, 32), torch.randn(2, 4, 64, 32)
    wanted = with_gradients(causal_attention, tensors, grad)

    def is_same() -> bool:
        again = with_gradients(causal_attention, tensors, grad)
        return all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))

    if (child := os.fork()) == 0:
        signal.alarm(60)  # rather than wait for threads that are not there
        os._exit(0 if is_same() else 1)
    assert os.waitpid(child, 0)[1] == 0
    monkeypatch.setattr(threads, "_gomp", lambda: None)
    monkeypatch.setattr(threads, "_WORTH_A_PYTHON_THREAD", 1)
    assert is_same()


@needed
def test_a_model_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, block_size=64, n_layer=2, n_head=2, n_embd=64))
    idx, calls, run = torch.randint(0, 50, (3, 64)), [], module._run
    monkeypatch.setattr(module, "_run", lambda *args: calls.append(1) or run(*args))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        F.cross_entropy(model(idx).flatten(0, 1), idx.flatten()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    ours = gradients()
    assert len(calls) == 4  # two layers, two passes
    monkeypatch.setattr(module, "_WORTH_IT", math.inf)
    for one, other in zip(ours, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert len(calls) == 4


def test_the_compiler_is_not_imported_for_who_never_compiles() -> None:
    code = "import sys, ai_learning.generate, ai_learning.optim, ai_learning.cli\n"
    code += "assert 'torch._dynamo' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
