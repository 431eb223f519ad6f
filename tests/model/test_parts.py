"""What later models changed: RMSNorm, rotary positions, gated MLPs, shared keys and values."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.model import (
    GPT,
    CausalSelfAttention,
    GatedMLP,
    GPTConfig,
    KVCache,
    RMSNorm,
    RopeScaling,
    RotaryEmbedding,
    rotate,
)
from ai_learning.presets import preset

SMALL = GPTConfig(
    vocab_size=31,
    block_size=24,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=32,
    bias=False,
    activation="silu",
    norm="rmsnorm",
    positions="rotary",
    mlp="gated",
    qk_norm=True,
)


def test_rms_norm_is_torchs() -> None:
    x = torch.randn(3, 5, 8)
    norm = RMSNorm(8, eps=0.1)  # large, so that its place under the root can be seen
    torch.nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, eps=0.1))
    assert norm(x.bfloat16()).dtype == torch.bfloat16 or norm.weight.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(shift=st.integers(0, 1000), distance=st.integers(0, 50))
def test_rotary_products_depend_on_the_distance_alone(shift: int, distance: int) -> None:
    rotary = RotaryEmbedding(8).double()
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def product(at_q: int, at_k: int) -> float:
        turned_q = rotate(q, *rotary(torch.tensor([at_q])))
        return (turned_q * rotate(k, *rotary(torch.tensor([at_k])))).sum().item()

    assert product(distance, 0) == pytest.approx(product(shift + distance, shift), abs=1e-3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_keeps_lengths_and_turns_pairs(interleaved: bool) -> None:
    rotary = RotaryEmbedding(6, theta=100.0)
    x = torch.randn(1, 2, 5, 6)
    turned = rotate(x, *rotary(torch.arange(5)), interleaved=interleaved)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(turned[:, :, 0], x[:, :, 0])
    # By complex numbers, as the paper writes it.
    pairs = x.unflatten(-1, (3, 2)) if interleaved else x.unflatten(-1, (2, 3)).transpose(-1, -2)
    angle = torch.arange(5)[:, None] * 100.0 ** -(torch.arange(3) / 3)
    expected = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones(5, 3), angle)
    )
    expected = expected if interleaved else expected.transpose(-1, -2)
    torch.testing.assert_close(turned, expected.flatten(-2), atol=1e-5, rtol=1e-5)


def test_angles_are_never_rounded() -> None:
    """In bfloat16 the frequencies would be off by a part in 400: far from the start, by whole turns."""
    model = GPT(SMALL)
    expected = model.rotary(torch.tensor([8191]))[0].clone()  # type: ignore[misc]
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        model.to(dtype)
        assert torch.equal(model.rotary(torch.tensor([8191]))[0], expected)  # type: ignore[misc]
    assert model.to("meta").rotary.inv_freq.device.type == "meta"  # type: ignore[union-attr]


def test_gated_mlp_is_swiglu() -> None:
    mlp = GatedMLP(SMALL)
    x = torch.randn(2, 3, 32)
    expected = (F.silu(x @ mlp.c_gate.weight.T) * (x @ mlp.c_fc.weight.T)) @ mlp.c_proj.weight.T
    torch.testing.assert_close(mlp(x), expected)


def test_shared_keys_are_repeated_keys() -> None:
    """Grouped-query attention is attention whose keys and values are written out for each query head."""
    layer = CausalSelfAttention(GPTConfig(n_embd=32, n_head=4, n_kv_head=2, block_size=8))
    full = CausalSelfAttention(GPTConfig(n_embd=32, n_head=4, block_size=8))
    q, k, v = (t.view(-1, 8, 32) for t in layer.c_attn.weight.split((32, 16, 16)))
    wide = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).view(-1, 32)
    full.load_state_dict(layer.state_dict() | {"c_attn.weight": wide, "c_attn.bias": torch.zeros(96)})
    torch.nn.init.zeros_(layer.c_attn.bias)
    x = torch.randn(2, 8, 32)
    torch.testing.assert_close(layer(x)[0], full(x)[0])


@pytest.mark.parametrize("attention", ["fast", "reference"])
def test_a_new_token_reads_shared_keys_where_they_lie(
    attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = GPTConfig(n_embd=24, n_head=6, n_kv_head=2, block_size=8, attention=attention)
    layer, x = CausalSelfAttention(config), torch.randn(3, 7, 24)
    mask = torch.ones(3, 1, 7, 7, dtype=torch.bool)
    mask[1, :, 2:, :2] = False
    output, weights = layer(x, mask=mask)
    cache = KVCache(config, batch_size=3).layers[0]
    layer(x[:, :6], cache, mask[:, :, :6, :6])
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", None)  # would copy the whole cache
    last, last_weights = layer(x[:, 6:], cache, mask[:, :, 6:])
    torch.testing.assert_close(last, output[:, 6:])
    if weights is not None and last_weights is not None:
        torch.testing.assert_close(last_weights, weights[:, :, 6:])
    assert (weights is None) is (last_weights is None) is (attention == "fast")


def test_cache_and_positions_with_rotary() -> None:
    model = GPT(SMALL).eval()
    idx = torch.randint(0, 31, (2, 20))
    cache = KVCache(SMALL, batch_size=2)
    assert cache.layers[0].k.size(1) == 2
    parts = [model(idx[:, :7], cache=cache), *(model(idx[:, t : t + 1], cache=cache) for t in range(7, 20))]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(idx), atol=1e-5, rtol=1e-5)
    # Moving every position alike changes nothing: only distances count.
    torch.testing.assert_close(model(idx, positions=torch.arange(3, 23)), model(idx), atol=1e-4, rtol=1e-4)
    spread = torch.arange(20) * 2
    assert not torch.allclose(model(idx, positions=spread), model(idx), atol=1e-3)


def test_left_padding_with_positions_and_mask_changes_nothing() -> None:
    model = GPT(SMALL).eval()
    idx = torch.randint(0, 31, (1, 6))
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), idx], dim=1)
    positions = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 3, 4, 5]])
    mask = torch.ones(1, 1, 10, 10, dtype=torch.bool)
    mask[..., 4:, :4] = False  # padded rows see themselves, so that no row is empty
    torch.testing.assert_close(
        model(padded, positions=positions, mask=mask)[:, 4:], model(idx), atol=1e-5, rtol=1e-5
    )


def test_mask_grows_with_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ai_learning.model.attention.MASK_SIZE", 4)
    config = GPTConfig(vocab_size=16, block_size=20, n_layer=1, n_head=1, n_embd=8, attention="reference")
    torch.manual_seed(0)
    grown = GPT(config).eval()
    assert grown.h[0].attn.mask.shape == (4, 4)
    monkeypatch.undo()
    torch.manual_seed(0)
    idx = torch.randint(0, 16, (2, 17))
    torch.manual_seed(0)
    torch.testing.assert_close(grown(idx), GPT(config).eval()(idx))
    assert len(grown.h[0].attn.mask) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_head": 3}, "n_kv_head=3 must divide n_head=4"),
        ({"norm": "batchnorm"}, "norm='batchnorm' is not known; use layernorm, rmsnorm"),
        ({"positions": "rotery"}, "did you mean 'rotary'"),
        ({"mlp": "moe"}, "mlp='moe' is not known"),
        ({"head_dim": 0}, "head_dim=0 must be at least 1"),
        ({"intermediate_size": -1}, "intermediate_size=-1 must be at least 1"),
    ],
)
def test_bad_values_say_what_to_do(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{"n_head": 4, "n_embd": 32} | changes)
    with pytest.raises(ValueError, match="head_dim=3 must be even"):
        GPT(GPTConfig(vocab_size=8, n_layer=1, n_head=2, n_embd=6, positions="rotary"))
    with pytest.raises(ValueError, match="factor"):
        RopeScaling(factor=0.5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama3-8b", 8_030_261_248),
        ("llama3.2-1b", 1_235_814_400),
        ("smollm2-135m", 134_515_008),
        ("qwen3-0.6b", 596_049_920),
    ],
)
def test_published_sizes(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert GPT(preset(name)).n_params() == parameters


def test_relu2_and_the_names() -> None:
    from ai_learning.model.mlp import relu2

    assert relu2(torch.tensor([-2.0, 3.0])).tolist() == [0.0, 9.0]
