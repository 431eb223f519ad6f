"""Int8 weights: close to fp32, applied from outside, and refused where they cannot be."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ai_learning.adapters import LoRAConfig, eject_lora, inject_lora
from ai_learning.checkpoint import save_checkpoint
from ai_learning.errors import InputError
from ai_learning.generate import generate
from ai_learning.int8 import Int8Linear, quantize_int8
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained

CONFIG = GPTConfig(vocab_size=258, block_size=32, n_layer=2, n_head=2, n_embd=64)


@pytest.mark.parametrize("bias", [True, False])
def test_rows_have_their_own_scale_and_errors_are_small(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 40, bias=bias)
    linear.weight.data[3] *= 1000  # an outlier row must not spoil the others
    quantized = Int8Linear(linear)
    off = (quantized.weight - linear.weight).abs().amax(dim=1) / linear.weight.abs().amax(dim=1)
    assert off.max() <= 0.5 / 127 + 1e-6
    x = torch.randn(5, 7, 96)
    expected = linear(x)
    error = (quantized(x) - expected).norm(dim=(0, 1)) / expected.norm(dim=(0, 1))
    assert quantized(x).shape == (5, 7, 40) and error.max() < 0.03
    assert quantized(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(8,), (0, 8), (2, 0, 8), (2, 3, 8)])
def test_any_number_of_rows_as_a_linear_layer(shape: tuple[int, ...]) -> None:
    layer, x = nn.Linear(8, 5), torch.randn(shape)
    y = Int8Linear(layer)(x)
    assert y.shape == (*shape[:-1], 5)
    torch.testing.assert_close(y, layer(x).detach(), atol=0.1, rtol=0)


def test_model_keeps_its_predictions() -> None:
    torch.manual_seed(1)
    model = GPT(CONFIG).eval()
    idx = torch.randint(0, 258, (2, 32))
    expected = model(idx).log_softmax(-1)
    kept = model.wte.weight.clone()
    assert quantize_int8(model) is model
    assert not any(type(m) is nn.Linear for m in model.modules())
    assert torch.equal(model.wte.weight, kept) and isinstance(model.lm_head, Int8Linear)
    found = model(idx).log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1).mean()
    assert 0 < divergence < 1e-3
    assert generate(model, idx[:, :4], 8, temperature=0).shape == (2, 12)


def test_a_model_that_would_lose_its_weights_is_not_saved(tmp_path: Path) -> None:
    """Nor given to transformers, where they would be zeros; a copy in memory is no loss."""
    model = quantize_int8(GPT(CONFIG))
    idx = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(copy.deepcopy(model)(idx), model(idx))
    for save in (lambda: save_checkpoint(model, tmp_path / "a.pt"), lambda: save_pretrained(model, tmp_path)):
        with pytest.raises(InputError, match="save the model before quantize_int8"):
            save()
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_it_is_trained() -> None:
    """Only what goes past the layers would have had a gradient, and a wrong one."""
    model = quantize_int8(GPT(CONFIG))
    idx = torch.zeros(1, 5, dtype=torch.long)
    with pytest.raises(RuntimeError, match="does not require grad"):
        next_token_loss(model, idx, idx).backward()


def test_adapters_are_merged_before() -> None:
    """Merged afterwards, into weights that are made for the question, they would be lost."""
    model = GPT(CONFIG)
    inject_lora(model, LoRAConfig(r=2))
    with pytest.raises(InputError, match="the model has adapters"):
        quantize_int8(model)
    assert isinstance(quantize_int8(eject_lora(model, merge=True)), GPT)


def test_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"holds no nn\.Linear"):
        quantize_int8(nn.LayerNorm(3))
    with pytest.raises(InputError, match="move the model there first"):
        quantize_int8(GPT(CONFIG).to("meta"))
