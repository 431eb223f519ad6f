"""The GPU's kernels of the loss and of one-token steps, in Triton's interpreter: where there is no GPU.

`pip install triton` has them run; on a GPU, `test_on_a_gpu.py` tests the kernels themselves.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ai_learning import decode_triton
from ai_learning.kernels import loss_triton
from ai_learning.model import GPT, GPTConfig, KVCache


def check_loss() -> None:
    """Several chunks, a vocabulary that is filled up, positions that do not count, targets that are none."""
    torch.manual_seed(0)
    for N, C, V in ((5, 8, 10), (7, 16, 5000), (300, 8, 130), (3, 4, 128)):
        loss_triton.CHUNK_BYTES = 4 * V * 128
        hidden, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
        targets, shares = torch.randint(0, V, (N,)), torch.rand(N)
        shares[1], targets[1] = 0, -100
        given = (hidden.detach(), weight.detach(), targets, shares)
        loss, d_hidden, d_weight = loss_triton.loss_and_gradients(*given, (True, True))
        want = (F.cross_entropy(hidden @ weight.T, targets, reduction="none") * shares).sum()
        want.backward()
        torch.testing.assert_close(loss, want.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(d_hidden, hidden.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(d_weight, weight.grad, rtol=1e-4, atol=1e-5)
        targets[0] = V
        assert loss_triton.loss_and_gradients(*given, (False, False))[0].isnan()


def check_decoder() -> None:
    """Across the borders of chunks of keys; without biases, with both forms of GELU."""
    torch.manual_seed(0)
    for changes in ({}, {"bias": False}, {"activation": "gelu", "tie_weights": False}):
        model = GPT(
            GPTConfig(vocab_size=50, block_size=300, n_layer=2, n_head=3, n_embd=48, **changes)
        ).eval()
        with torch.inference_mode():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
            for length in (1, 127, 128, 200):
                idx = torch.randint(0, 50, (1, length))
                own, cache = (KVCache(model.config, 1, 260) for _ in range(2))
                model.hidden(idx, cache=own)
                model.hidden(idx, cache=cache)
                decoder, token = decode_triton.Decoder(model, own, graph=False), idx[:, -1:]
                for _ in range(3):
                    want = model(token, cache=cache)[:, -1]
                    decoder.step(token)
                    torch.testing.assert_close(decoder.logits, want, rtol=1e-5, atol=1e-5)
                    token = want.argmax(-1, keepdim=True)
                    assert torch.equal(decoder.likeliest, token[0])
                k, want_k = (c.layers[1].k[:, :, : cache.length] for c in (own, cache))
                torch.testing.assert_close(k, want_k, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check", ["check_loss", "check_decoder"])
def test_in_the_interpreter(in_triton_interpreter: Callable[[str], None], check: str) -> None:
    in_triton_interpreter(f"{check}()")
