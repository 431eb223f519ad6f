"""Attention: the formula, the fused kernel, the mask and the heads."""

import math

import pytest
import torch
from torch import Tensor

from ai_learning.model import (
    CausalSelfAttention,
    GPTConfig,
    KVCache,
    causal_mask,
    fast_attention,
    reference_attention,
)

SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 5, 4),
    (1, 2, 1, 7, 8),
    (2, 1, 3, 7, 5),
    (1, 4, 13, 13, 2),
    (3, 2, 17, 29, 16),
]


def qkv(B: int, H: int, T: int, S: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(B, H, n, D, dtype=dtype, requires_grad=True) for n in (T, S, S)]


def test_one_query_by_hand() -> None:
    q = torch.tensor([[[[1.0, 0.0]]]])
    k = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    v = torch.tensor([[[[10.0], [20.0]]]]).expand(1, 1, 2, 2)
    output, weights = reference_attention(q, k, v)
    first = math.exp(1 / math.sqrt(2)) / (math.exp(1 / math.sqrt(2)) + 1)
    assert weights.flatten().tolist() == pytest.approx([first, 1 - first])
    assert output.flatten().tolist() == pytest.approx([10 * first + 20 * (1 - first)] * 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", ["none", "causal", "random", "per row"])
def test_fast_equals_reference_and_so_do_gradients(shape: tuple[int, ...], masked: str) -> None:
    B, H, T, S, D = shape
    mask = {
        "none": None,
        "causal": causal_mask(S)[S - T : S, :S],
        "random": (torch.rand(T, S) < 0.5) | torch.eye(T, S, dtype=torch.bool),
        "per row": (torch.rand(B, 1, T, S) < 0.5) | torch.eye(T, S, dtype=torch.bool),
    }[masked]
    results = []
    for function in (reference_attention, fast_attention):
        torch.manual_seed(1)
        inputs = qkv(B, H, T, S, D)
        output, weights = function(*inputs, mask, is_causal=masked == "causal")
        output.square().sum().backward()
        results.append([output, *(x.grad for x in inputs)])
        assert output.shape == (B, H, T, D)
        assert weights is None or torch.allclose(weights.sum(-1), torch.ones(B, H, T))
    for ours, fused in zip(*results, strict=True):
        torch.testing.assert_close(ours, fused, atol=1e-5, rtol=1e-5)


def test_integer_masks_mean_the_same() -> None:
    q, k, v = qkv(1, 2, 4, 4, 8)
    mask = causal_mask(4)
    for function in (reference_attention, fast_attention):
        assert torch.equal(function(q, k, v, mask)[0], function(q, k, v, mask.long())[0])


@pytest.mark.parametrize("function", [reference_attention, fast_attention])
def test_a_promise_without_its_mask_is_refused(function: object) -> None:
    """PyTorch's own function makes the triangle itself: who expects that here would leak the future."""
    with pytest.raises(ValueError, match="is_causal=True promises what the mask is"):
        function(*qkv(1, 1, 4, 4, 8), None, is_causal=True)  # type: ignore[operator]


def test_a_refused_input_leaves_the_cache_alone() -> None:
    layer, cache = (
        CausalSelfAttention(config(block_size=4)),
        KVCache(config(n_layer=1), 1, max_length=8).layers[0],
    )
    layer(torch.randn(1, 4, 24), cache)
    with pytest.raises(ValueError, match="5 positions exceed block_size=4"):
        layer(torch.randn(1, 1, 24), cache)
    assert cache.length == 4


@pytest.mark.parametrize("function", [reference_attention, fast_attention])
def test_wrong_shapes_raise_with_the_shapes(function: object) -> None:
    q, k, v = qkv(1, 2, 4, 4, 8)
    for bad in [(q[0], k, v), (q, k[:, :1], v[:, :1]), (q, k, v[:, :, 1:]), (q[..., :4], k, v)]:
        with pytest.raises(ValueError, match=r"attention needs q \(B, H, T, D\)"):
            function(*bad)  # type: ignore[operator]


def config(**changes: object) -> GPTConfig:
    return GPTConfig(**{"n_embd": 24, "n_head": 3, "block_size": 16, "attention": "reference", **changes})  # type: ignore[arg-type]


def test_module_returns_output_and_weights() -> None:
    output, weights = CausalSelfAttention(config())(torch.randn(2, 5, 24))
    assert output.shape == (2, 5, 24)
    assert weights.shape == (2, 3, 5, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 5))
    assert torch.equal(weights.triu(1), torch.zeros_like(weights))
    assert CausalSelfAttention(config(attention="fast"))(torch.randn(2, 5, 24))[1] is None


def test_mask_is_a_buffer_made_once() -> None:
    layer = CausalSelfAttention(config())
    buffers = dict(layer.named_buffers())
    assert torch.equal(buffers["mask"], torch.ones(16, 16).tril().bool())
    assert "mask" not in layer.state_dict()


def test_equals_torchs_multihead_attention() -> None:
    ours = CausalSelfAttention(config())
    theirs = torch.nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.c_attn.weight)
        theirs.in_proj_bias.copy_(ours.c_attn.bias)
        theirs.out_proj.load_state_dict(ours.c_proj.state_dict())
    x = torch.randn(2, 7, 24)
    hidden = ~causal_mask(7)
    output, weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    for ours_one, theirs_one in zip(ours(x), (output, weights), strict=True):
        torch.testing.assert_close(ours_one, theirs_one, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("attention", ["reference", "fast"])
def test_the_future_does_not_leak(attention: str) -> None:
    layer = CausalSelfAttention(config(attention=attention))
    x = torch.randn(1, 9, 24)
    changed = x.clone()
    changed[:, 5:] += 10
    before, after = layer(x)[0], layer(changed)[0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_heads_are_independent() -> None:
    """Queries of head 0 multiplied by five leave every other head's weights alone."""
    layer = CausalSelfAttention(config())
    x = torch.randn(1, 6, 24)
    before = layer(x)[1]
    with torch.no_grad():
        layer.c_attn.weight[:8] *= 5  # rows of q that belong to head 0: D = 8
    after = layer(x)[1]
    assert torch.equal(before[:, 1:], after[:, 1:])
    assert not torch.allclose(before[:, 0], after[:, 0])


@pytest.mark.parametrize("attention", ["reference", "fast"])
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [4, 5], [3, 1, 1, 4]])
def test_cached_pieces_equal_the_whole(attention: str, pieces: list[int]) -> None:
    """The trap of ``is_causal`` with T ≠ S: a one-token step must see all keys, not only the first."""
    layer = CausalSelfAttention(config(attention=attention, n_layer=1))
    x = torch.randn(2, 9, 24)
    whole, _ = layer(x)
    cache = KVCache(config(n_layer=1), batch_size=2).layers[0]
    parts = [layer(part, cache)[0] for part in x.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=1e-5)


def test_dropout_only_in_training() -> None:
    layer = CausalSelfAttention(config(dropout=0.5, attention="fast"))
    x = torch.randn(1, 8, 24)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_module_names_wrong_input() -> None:
    layer = CausalSelfAttention(config())
    with pytest.raises(ValueError, match=r"expected x of shape \(B, T, 24\), got \(2, 5, 23\)"):
        layer(torch.randn(2, 5, 23))
    with pytest.raises(ValueError, match="17 positions exceed block_size=16"):
        layer(torch.randn(1, 17, 24))
