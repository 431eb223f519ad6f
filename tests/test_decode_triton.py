"""Which models the GPU's decoder takes, and how generating uses it: with stand-ins, on any machine."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ai_learning import decode_triton
from ai_learning.adapters import LoRAConfig, inject_lora, quantize_linears
from ai_learning.generate import generate
from ai_learning.kernels import triton_use
from ai_learning.model import GPT, GPTConfig, KVCache


def gpt(**changes: object) -> GPT:
    sizes = {"vocab_size": 64, "block_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return GPT(GPTConfig(**{**sizes, **changes})).eval()


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Triton could take any tensor."""
    monkeypatch.setattr(triton_use, "usable", lambda *tensors: True)


def replaced(model: GPT, name: str, module: nn.Module) -> GPT:
    model.set_submodule(name, module)
    return model


def changed(change: Callable[[GPT], object]) -> GPT:
    model = gpt()
    change(model)
    return model


def test_gpt2_is_taken(anywhere: None) -> None:
    assert decode_triton.suits(gpt())
    assert decode_triton.suits(gpt(bias=False, activation="gelu", tie_weights=False).bfloat16())


def test_not_without_a_gpu() -> None:
    assert not decode_triton.suits(gpt())


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_first": False},
        {"norm": "rmsnorm"},
        {"positions": "rotary"},
        {"mlp": "gated", "activation": "silu"},
        {"n_kv_head": 1},
        {"qk_norm": True},
        {"activation": "relu"},
        {"attention": "reference"},
        {"n_head": 4},  # of 8
        {"head_dim": 32},
        {"n_embd": 48},  # heads of 24
        {"intermediate_size": 130},  # rows of no whole 8 bytes
    ],
)
def test_other_models_are_not(anywhere: None, changes: dict[str, object]) -> None:
    assert not decode_triton.suits(gpt(**changes))


@pytest.mark.parametrize(
    "model",
    [
        lambda: changed(lambda m: inject_lora(m, LoRAConfig(r=2))),
        lambda: changed(quantize_linears),
        lambda: changed(lambda m: m.h[1].register_forward_hook(lambda *given: None)),
        lambda: changed(lambda m: setattr(m.h[1], "forward", lambda x, *given: x)),
        lambda: changed(lambda m: setattr(m.h[1].mlp, "activation", torch.relu)),
        lambda: changed(lambda m: setattr(m.h[1].attn, "attention", lambda *given, **more: None)),
        lambda: changed(lambda m: m.h[0].half()),
        lambda: replaced(gpt(), "ln_f", nn.RMSNorm(32)),
        lambda: nn.Linear(3, 3),
    ],
)
def test_changed_models_are_not(anywhere: None, model: Callable[[], nn.Module]) -> None:
    assert not decode_triton.suits(model())


class StandIn:
    """A decoder that asks the model."""

    made = 0

    def __init__(self, model: GPT, cache: KVCache) -> None:
        assert cache.length < cache.layers[0].k.size(2), "it could not take a step"
        StandIn.made += 1
        self.model, self.cache = model, cache

    def step(self, token: Tensor) -> None:
        self.logits = self.model(token, cache=self.cache)[:, -1]
        self.likeliest = self.logits.argmax(-1)


@pytest.mark.parametrize("length", [1, 40, 63, 64, 65])
@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"top_k": 5}, {"temperature": 0, "repetition_penalty": 1.3}]
)
def test_generating_is_the_same_with_it(
    monkeypatch: pytest.MonkeyPatch, length: int, how: dict[str, float]
) -> None:
    model, prompt = gpt(), torch.randint(0, 64, (1, length))
    want = generate(model, prompt, 40, seed=0, **how)
    monkeypatch.setattr(decode_triton, "suits", lambda model: True)
    monkeypatch.setattr(decode_triton, "Decoder", StandIn)
    monkeypatch.setattr(StandIn, "made", 0)
    assert torch.equal(generate(model, prompt, 40, seed=0, **how), want)
    assert StandIn.made == (length <= 64 - decode_triton.WORTH_STEPS)


def test_not_for_several_rows_nor_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_triton, "suits", lambda model: True)
    monkeypatch.setattr(decode_triton, "Decoder", StandIn)
    monkeypatch.setattr(StandIn, "made", 0)
    generate(gpt(), torch.zeros(2, 3, dtype=torch.long), 30)
    generate(gpt(), torch.zeros(1, 3, dtype=torch.long), 30, use_cache=False)
    assert StandIn.made == 0


def test_a_cache_that_is_full_or_for_several_rows_is_refused() -> None:
    model = gpt()
    for rows, capacity, complaint in ((1, 3, "3 positions are full"), (2, 5, "for 2 rows")):
        cache = KVCache(model.config, rows, capacity)
        with torch.inference_mode():
            model.hidden(torch.zeros(rows, 3, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match=complaint):
            decode_triton.Decoder(model, cache, graph=False)
