"""Day 1's model learns what attention alone can do."""

import pytest
import torch
import torch.nn.functional as F

from ai_learning.model import GPTConfig, TinyTransformer


def test_shapes_and_weights() -> None:
    config = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, attention="reference")
    logits, weights = TinyTransformer(config)(torch.randint(0, 11, (3, 7)))
    assert logits.shape == (3, 7, 11)
    assert [w.shape for w in weights] == [(3, 2, 7, 7)] * 2


def test_learns_to_repeat_the_first_token() -> None:
    config = GPTConfig(vocab_size=8, block_size=6, n_layer=1, n_head=1, n_embd=16, attention="reference")
    model = TinyTransformer(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        idx = torch.randint(0, 8, (64, 6))
        logits, _ = model(idx)
        loss = F.cross_entropy(logits[:, -1], idx[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    idx = torch.randint(0, 8, (256, 6))
    logits, weights = model(idx)
    assert (logits[:, -1].argmax(-1) == idx[:, 0]).float().mean() > 0.99
    assert weights[0][:, 0, -1].argmax(-1).eq(0).float().mean() > 0.99  # and it looks at the first token


@pytest.mark.parametrize("shape", [(4,), (1, 9)])
def test_wrong_shapes_raise(shape: tuple[int, ...]) -> None:
    model = TinyTransformer(GPTConfig(vocab_size=8, block_size=8, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(ValueError, match=r"\(B, T\) with T ≤ block_size=8"):
        model(torch.zeros(shape, dtype=torch.long))
