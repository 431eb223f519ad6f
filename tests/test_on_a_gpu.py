"""What only a GPU does, beside the CPU's definition: the loss, steps of one token, training, optimizers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ai_learning import decode_triton
from ai_learning import loss as loss_module
from ai_learning.batches import TokenBatches
from ai_learning.device import on_a_gpu
from ai_learning.generate import generate
from ai_learning.kernels import loss_triton
from ai_learning.loss import linear_cross_entropy, next_token_loss
from ai_learning.model import GPT, GPTConfig, KVCache
from ai_learning.train import TrainConfig, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("vocab_size", [5, 128, 5000, 50257])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_and_its_gradients(monkeypatch: pytest.MonkeyPatch, vocab_size: int, weighted: bool) -> None:
    monkeypatch.setattr(loss_triton, "CHUNK_BYTES", 4 * 300 * vocab_size)  # several chunks
    monkeypatch.setattr(loss_module, "_FEW_LOGITS", 0)
    hidden, weight = torch.randn(700, 64), torch.randn(vocab_size, 64) / 8
    targets = torch.randint(0, vocab_size, (700,))
    targets[::7] = -100
    shares = torch.rand(700) if weighted else None
    found, wanted = [], []
    for device, out in (("cuda", found), ("cpu", wanted)):
        h, w = (t.to(device).double() if device == "cpu" else t.to(device) for t in (hidden, weight))
        h.requires_grad_()
        w.requires_grad_()
        s = None if shares is None else shares.to(device)
        loss = linear_cross_entropy(h, w, targets.to(device), s)
        (2 * loss).backward()
        out += [loss.detach().cpu(), h.grad.cpu(), w.grad.cpu()]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=4e-6)


def test_the_loss_in_bfloat16_is_that_of_its_logits() -> None:
    hidden = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16)
    weight = (torch.randn(1000, 64, device="cuda") / 8).requires_grad_()
    targets = torch.randint(0, 1000, (300,), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
        logits = F.linear(hidden, weight)
    loss.backward()
    want = F.cross_entropy(logits.float(), targets)
    torch.testing.assert_close(loss, want.detach(), rtol=1e-5, atol=1e-5)
    mine, weight.grad = weight.grad, None
    want.backward()
    assert mine.dtype == torch.float32
    assert float((mine - weight.grad).norm() / weight.grad.norm()) < 5e-3


def test_targets_that_lie_apart() -> None:
    hidden, weight = torch.randn(300, 16, device="cuda"), torch.randn(2000, 16, device="cuda")
    targets = torch.randint(0, 2000, (300, 3), device="cuda")
    for some in (targets[:, 0], targets[:1, 0].expand(300)):
        found = linear_cross_entropy(hidden, weight, some)
        torch.testing.assert_close(found, F.cross_entropy(hidden @ weight.T, some), rtol=1e-5, atol=1e-5)


def test_a_target_that_is_none_makes_the_loss_nan() -> None:
    hidden, weight = torch.randn(300, 16, device="cuda"), torch.randn(2000, 16, device="cuda")
    for wrong in (2000, -7):
        targets = torch.full((300,), wrong, device="cuda")
        assert linear_cross_entropy(hidden, weight, targets).isnan()


def gpt(**changes: object) -> GPT:
    sizes = {"vocab_size": 300, "block_size": 200, "n_layer": 3, "n_head": 3, "n_embd": 96}
    model = GPT(GPTConfig(**{**sizes, **changes})).cuda().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, {"bias": False}, {"activation": "gelu", "tie_weights": False}, {"n_embd": 192}]
)
@torch.inference_mode()
def test_a_decoder_step_is_the_models(changes: dict[str, object], early: bool) -> None:
    if early and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs compute capability 9")
    model = gpt(**changes)
    assert decode_triton.suits(model)
    for length in (1, 127, 128, 150):
        idx = torch.randint(0, 300, (1, length), device="cuda")
        caches = [KVCache(model.config, 1, device="cuda") for _ in range(2)]
        for cache in caches:
            model.hidden(idx, cache=cache)
        decoder = decode_triton.Decoder(model, caches[0], early=early)
        token = idx[:, -1:]
        for _ in range(20):
            want = model(token, cache=caches[1])[:, -1]
            decoder.step(token)
            torch.testing.assert_close(decoder.logits, want, rtol=1e-4, atol=1e-4)
            token = want.argmax(-1, keepdim=True)
            assert torch.equal(decoder.likeliest, token[0])


@pytest.mark.parametrize("width", [768, 1280])
@torch.inference_mode()
def test_a_decoder_in_bfloat16_is_nearer_to_float32_than_the_model(width: int) -> None:
    sizes = {"vocab_size": 50257, "block_size": 2048, "n_layer": 4, "n_head": width // 64, "n_embd": width}
    exact = gpt(**sizes)
    model = GPT(exact.config).cuda().bfloat16().eval()
    model.load_state_dict(exact.state_dict())
    exact.load_state_dict(model.state_dict())  # the same rounded weights
    idx = torch.randint(0, 50257, (1, 1500), device="cuda")
    own, narrow = (KVCache(model.config, 1, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    wide = KVCache(model.config, 1, device="cuda")
    for net, cache in ((model, own), (model, narrow), (exact, wide)):
        net.hidden(idx, cache=cache)
    decoder, token = decode_triton.Decoder(model, own), idx[:, -1:]
    errors, of_model = [], []  # most of either is the cache's, which the model has rounded
    for _ in range(30):
        want = exact(token, cache=wide)[:, -1]
        rounded = model(token, cache=narrow)[:, -1].float()
        decoder.step(token)
        errors.append(float((decoder.logits - want).norm()))
        of_model.append(float((rounded - want).norm()))
        token = want.argmax(-1, keepdim=True)
    assert sum(errors) < sum(of_model)


def test_a_prompt_as_long_as_the_block() -> None:
    model = gpt()
    for length in (180, 199, 200, 201):
        prompt = torch.randint(0, 300, (1, length), device="cuda")
        found = generate(model, prompt, 30, temperature=0)
        assert torch.equal(found, generate(model, prompt, 30, temperature=0, use_cache=False))


def test_generating_is_the_cpus() -> None:
    model = gpt()
    prompt = torch.randint(0, 300, (1, 9), device="cuda")
    found = generate(model, prompt, 250, temperature=0).cpu()  # past the block's end too
    assert torch.equal(found, generate(model.cpu(), prompt.cpu(), 250, temperature=0))


def test_samples_are_repeatable_and_follow_the_filter() -> None:
    model = gpt()
    prompt = torch.zeros(1, 4, dtype=torch.long, device="cuda")
    a, b = (generate(model, prompt, 40, top_k=20, repetition_penalty=1.2, seed=3) for _ in range(2))
    assert torch.equal(a, b)
    greedy = generate(model, prompt, 40, temperature=0)
    assert torch.equal(generate(model, prompt, 40, top_k=1, seed=5), greedy) and not torch.equal(a, greedy)


def test_a_full_cache_is_an_error() -> None:
    model = gpt()
    cache = KVCache(model.config, 1, 6, device="cuda")
    with torch.inference_mode():
        model.hidden(torch.zeros(1, 5, dtype=torch.long, device="cuda"), cache=cache)
        decoder = decode_triton.Decoder(model, cache)
        decoder.step(torch.zeros(1, 1, dtype=torch.long, device="cuda"))
        with pytest.raises(ValueError, match="6 positions are full"):
            decoder.step(torch.zeros(1, 1, dtype=torch.long, device="cuda"))


def _train(path: Path, text: np.ndarray, **changes: object) -> float:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=64, block_size=128, n_layer=2, n_head=2, n_embd=128))
    batches = TokenBatches(text, block_size=128, batch_size=16, seed=1)
    config = TrainConfig(steps=60, warmup=10, eval_every=60, save_every=60, **changes)
    done = train(model, lambda m, b: next_token_loss(m, *b), batches, config, path)
    assert next(model.parameters()).device.type == "cuda"
    return done.loss


@pytest.fixture
def text() -> np.ndarray:
    return np.tile(np.arange(4000) % 61, 4)


def test_training_is_the_cpus(tmp_path: Path, text: np.ndarray) -> None:
    exact = _train(tmp_path / "a", text, dtype="float32")
    assert abs(_train(tmp_path / "b", text) - exact) < 0.05  # bfloat16
    assert abs(_train(tmp_path / "c", text, compile=True) - exact) < 0.05


@pytest.mark.parametrize("name", ["adamw8bit", "paged_adamw", "paged_adamw8bit"])
def test_optimizers_with_a_small_state(tmp_path: Path, text: np.ndarray, name: str) -> None:
    pytest.importorskip("bitsandbytes")
    assert abs(_train(tmp_path / "a", text, optimizer=name) - _train(tmp_path / "b", text)) < 0.1


def test_the_stream_is_kept_in_bfloat16_while_training_only() -> None:
    model = gpt()
    seen = []
    model.h[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    idx = torch.zeros(1, 3, dtype=torch.long, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        with on_a_gpu(model, torch.device("cuda"), torch.bfloat16, fixed_shapes=True):
            model.train()(idx)
            model.eval()(idx)
        model.train()(idx)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
