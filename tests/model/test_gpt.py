"""GPT-1 and GPT-2: sizes, initialisation, parity with transformers, and input that cannot be used."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig, KVCache, RopeScaling
from ai_learning.presets import PRESETS, preset
from ai_learning.pretrained import from_hf

# The sizes of the published checkpoints, tied head counted once.
PUBLISHED = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        assert GPT(preset(name)).n_params() == PUBLISHED[name]


def test_presets() -> None:
    assert not preset("gpt1").norm_first and not preset("gpt1-tiny").norm_first
    assert all(config.norm_first for name, config in PRESETS.items() if name.startswith("gpt2"))
    with pytest.raises(InputError, match="no preset 'gtp2'; did you mean 'gpt2'"):
        preset("gtp2")


def test_initialisation() -> None:
    model = GPT(GPTConfig(vocab_size=1000, block_size=64, n_layer=8, n_head=4, n_embd=256))
    residual = 0.02 / math.sqrt(16)
    for name, p in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert p.std().item() == pytest.approx(residual, rel=0.05), name
        elif name.endswith("weight") and p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.05), name
        elif name.endswith("bias"):
            assert not p.any(), name
    # so the untrained model is close to a uniform guess
    idx = torch.randint(0, 1000, (4, 64))
    targets = torch.randint(0, 1000, (4, 64))
    assert next_token_loss(model, idx, targets).item() == pytest.approx(math.log(1000), rel=0.05)


def transformers_model(kind: str, dtype: torch.dtype, std: float = 0.02, **sizes: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    common = dict(vocab_size=211, n_positions=48, initializer_range=std, bos_token_id=0, eos_token_id=0)
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **sizes))
    else:
        model = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**common, **sizes))
    return model.to(dtype).eval()


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
@pytest.mark.parametrize(
    "sizes", [dict(n_layer=2, n_head=2, n_embd=32), dict(n_layer=3, n_head=5, n_embd=65)]
)
@pytest.mark.parametrize("attention", ["reference", "fast"])
def test_logits_and_gradients_equal_transformers(kind: str, sizes: dict[str, int], attention: str) -> None:
    theirs = transformers_model(kind, torch.float64, std=0.2, **sizes)
    ours = from_hf(theirs)
    same = GPT(replace(ours.config, attention=attention)).double().eval()
    same.load_state_dict(ours.state_dict())
    idx = torch.randint(0, 211, (3, 48))
    reference = theirs(idx)
    torch.testing.assert_close(same(idx), reference.logits, atol=1e-12, rtol=1e-12)
    loss = next_token_loss(same, idx[:, :-1], idx[:, 1:])
    # transformers' own loss casts to float32: take the cross-entropy of its logits
    reference_loss = F.cross_entropy(reference.logits[:, :-1].flatten(0, 1), idx[:, 1:].flatten())
    torch.testing.assert_close(loss, reference_loss, atol=1e-12, rtol=1e-12)
    loss.backward()
    reference_loss.backward()
    theirs_grad = theirs.transformer.h[0].attn.c_attn.weight.grad.T
    torch.testing.assert_close(same.h[0].attn.c_attn.weight.grad, theirs_grad, atol=1e-12, rtol=1e-9)
    embedding = theirs.get_input_embeddings().weight.grad
    torch.testing.assert_close(same.wte.weight.grad, embedding, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt"])
def test_float32_logits(kind: str) -> None:
    theirs = transformers_model(kind, torch.float32, n_layer=4, n_head=4, n_embd=64)
    idx = torch.randint(0, 211, (2, 48))
    ours, reference = from_hf(theirs)(idx), theirs(idx).logits
    assert ((ours - reference).abs().max() / reference.abs().max()).item() < 5e-6


def test_from_hf_refuses_what_it_does_not_know() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = dict(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    with pytest.raises(InputError, match="scaled otherwise"):
        from_hf(
            transformers.GPT2LMHeadModel(
                transformers.GPT2Config(**sizes, scale_attn_by_inverse_layer_idx=True)
            )
        )
    bare = transformers.GPT2Model(transformers.GPT2Config(**sizes))  # published files have no head: tied
    assert from_hf(bare).lm_head.weight.shape == (16, 8)
    with pytest.raises(InputError, match=r"lacks lm_head\.weight"):
        from_hf(transformers.GPT2Model(transformers.GPT2Config(**sizes, tie_word_embeddings=False)))


def test_post_norm_ends_in_a_norm_and_pre_norm_does_not() -> None:
    config = GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16)
    idx = torch.randint(0, 50, (1, 8))
    post = GPT(replace(config, norm_first=False))
    assert isinstance(post.ln_f, nn.Identity)
    assert post.hidden(idx).mean(-1).abs().max() < 1e-5
    assert isinstance(GPT(config).ln_f, nn.LayerNorm)


def test_tied_and_untied_heads() -> None:
    config = GPTConfig(vocab_size=50, block_size=8, n_layer=1, n_head=1, n_embd=16)
    tied, untied = GPT(config), GPT(replace(config, tie_weights=False))
    assert tied.lm_head.weight is tied.wte.weight
    assert untied.n_params() - tied.n_params() == 50 * 16


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("attention", ["reference", "fast"])
def test_cached_logits_equal_uncached(norm_first: bool, attention: str) -> None:
    config = GPTConfig(
        vocab_size=64,
        block_size=32,
        n_layer=3,
        n_head=4,
        n_embd=32,
        norm_first=norm_first,
        attention=attention,
    )
    model = GPT(config).eval()
    idx = torch.randint(0, 64, (2, 32))
    whole = model(idx)
    cache = KVCache(config, batch_size=2)
    parts = [model(piece, cache=cache) for piece in idx.split([10, 1, 1, 5, 15], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 32


def test_truncated_cache_forgets() -> None:
    config = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=16)
    model, cache = GPT(config).eval(), KVCache(config, batch_size=1)
    idx = torch.randint(0, 64, (1, 8))
    model(idx, cache=cache)
    cache.truncate(5)
    torch.testing.assert_close(model(idx[:, 5:], cache=cache), model(idx)[:, 5:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="cannot truncate a cache of 8 positions to 9"):
        cache.truncate(9)


def test_left_padding_with_mask_and_positions_changes_nothing(tiny_gpt: GPT) -> None:
    idx = torch.randint(0, 64, (1, 6))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), idx], dim=1)
    positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4, 5]])
    visible = torch.tensor([[False] * 3 + [True] * 6])[:, None, None, :] | torch.eye(9, dtype=torch.bool)
    logits = tiny_gpt(padded, positions=positions, mask=visible)
    torch.testing.assert_close(logits[:, 3:], tiny_gpt(idx), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("idx", "message"),
    [
        (torch.zeros(5, dtype=torch.long), r"shape \(B, T\).*got \(5,\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"T ≥ 1, got \(1, 0\)"),
        (torch.zeros(1, 4), "integer ids, got torch.float32"),
        (torch.tensor([[1, 64]]), "token id 64 is outside the vocabulary of 64"),
        (torch.tensor([[-1, 3]]), "token id -1 is outside the vocabulary of 64"),
        (torch.zeros(1, 33, dtype=torch.long), "33 tokens exceeds block_size=32"),
    ],
)
def test_bad_input_raises_with_the_value(tiny_gpt: GPT, idx: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_gpt(idx)


def test_an_embedding_that_something_is_put_around_is_asked_no_more_than_its_rows(tiny_gpt: GPT) -> None:
    idx = torch.tensor([[1, 2]])
    want = tiny_gpt(idx)
    tiny_gpt.wte = torch.nn.Sequential(tiny_gpt.wte)  # type: ignore[assignment]
    assert torch.equal(tiny_gpt(idx), want)
    with pytest.raises(ValueError, match="token id 64 is outside the vocabulary of 64"):
        tiny_gpt(idx + 62)


def test_anothers_index_error_is_not_taken_for_a_bad_id(tiny_gpt: GPT) -> None:
    tiny_gpt.wte.register_forward_hook(lambda *given: [][0])
    with pytest.raises(IndexError, match="list index"):
        tiny_gpt(torch.tensor([[1, 2]]))


def test_positions_and_masks_that_cannot_be_used(tiny_gpt: GPT) -> None:
    idx, size = torch.zeros(1, 3, dtype=torch.long), tiny_gpt.config.block_size
    for first, bad in ((size - 2, size), (-1, -1)):
        with pytest.raises(ValueError, match=f"position {bad} is outside block_size={size}"):
            tiny_gpt(idx, positions=torch.arange(first, first + 3))
    with pytest.raises(ValueError, match="mask must be bool, False where a key is hidden"):
        tiny_gpt(idx, mask=torch.zeros(1, 1, 1, 3))
    assert torch.equal(tiny_gpt(idx, mask=torch.ones(1, 1, 1, 3, dtype=torch.long)), tiny_gpt(idx))


def test_a_full_cache_raises(tiny_gpt: GPT) -> None:
    cache = KVCache(tiny_gpt.config, batch_size=1, max_length=4)
    tiny_gpt(torch.zeros(1, 4, dtype=torch.long), cache=cache)
    with pytest.raises(ValueError, match="5 positions exceed the cache's 4"):
        tiny_gpt(torch.zeros(1, 1, dtype=torch.long), cache=cache)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(n_head=5, n_embd=64), "n_head=5 must divide n_embd=64; try 4 or 8"),
        (dict(n_layer=0), "n_layer=0 must be at least 1"),
        (dict(vocab_size=-3), "vocab_size=-3 must be at least 1"),
        (dict(dropout=1.0), "dropout=1.0 must be at least 0 and below 1"),
        (dict(activation="gelu-new"), "activation='gelu-new' is not known; did you mean 'gelu_new'"),
        (dict(attention="flash"), "attention='flash' is not known"),
        (dict(layer_norm_eps=0.0), "layer_norm_eps=0.0 must be positive"),
        (dict(layer_norm_eps=float("nan")), "layer_norm_eps=nan must be positive"),
        (dict(rope_theta=0.0), "rope_theta=0.0 must be positive"),
        (dict(rope_theta=float("nan")), "rope_theta=nan must be positive"),
        (dict(n_layer=2.5), "n_layer=2.5 must be a whole number"),
        (dict(n_embd="64"), "n_embd='64' must be a whole number"),
        (dict(head_dim=8.0), "head_dim=8.0 must be a whole number"),
        (dict(activation=None), "activation=None is not known; use gelu_new, gelu"),
        (dict(rope_scaling=RopeScaling()), "rope_scaling is for positions='rotary', not 'learned'"),
        (dict(n_embd=10**9, n_head=3), "n_head=3 must divide n_embd=1000000000; try 2 or 4"),
    ],
)
def test_bad_configs_name_value_and_way_out(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**values)  # type: ignore[arg-type]


def test_sizes_of_numpy_become_pythons() -> None:
    assert type(GPTConfig(n_layer=np.int64(2)).n_layer) is int


def test_a_batch_without_rows(tiny_gpt: GPT) -> None:
    assert tiny_gpt(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, tiny_gpt.config.vocab_size)


def test_a_cache_of_another_batch(tiny_gpt: GPT) -> None:
    with pytest.raises(ValueError, match=r"keys of shape \(3, .* do not fit a cache of \(2, "):
        tiny_gpt(torch.zeros(3, 4, dtype=torch.long), cache=KVCache(tiny_gpt.config, batch_size=2))


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        GPTConfig().n_layer = 3  # type: ignore[misc]


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_activations_and_no_bias(activation: str) -> None:
    config = GPTConfig(
        vocab_size=9, block_size=4, n_layer=1, n_head=1, n_embd=4, activation=activation, bias=False
    )
    model = GPT(config)
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert model(torch.tensor([[1, 2]])).shape == (1, 2, 9)
