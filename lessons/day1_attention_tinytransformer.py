# %% [markdown]
# # Day 1 · Attention, and a transformer that has nothing else
#
# About 40 minutes to read and play; it runs in seconds. It needs nothing but this library.
#
# After this lesson you can
#
# - write scaled dot-product attention from the formula and say why each part is there,
# - say what the causal mask hides, and what goes wrong without it,
# - train a model that can *only* attend, and read off its weights how it solves the task.
#
# Run it as a script (`python lessons/day1_attention_tinytransformer.py`), or cell by cell in an editor.

# %%
from pathlib import Path

import torch
import torch.nn.functional as F

from ai_learning.checks import show
from ai_learning.model import GPTConfig, TinyTransformer, causal_mask, fast_attention, reference_attention
from ai_learning.viz import plot_attention

torch.manual_seed(1)

# %% [markdown]
# ## 1 · The formula
#
# Formula 1 of "Attention Is All You Need" (Vaswani et al. 2017, section 3.2.1):
#
# $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^T}{\sqrt{d_k}}\right)V$$
#
# | in the paper | in the code | shape |
# |---|---|---|
# | $Q, K, V$ | `q`, `k`, `v` | `(B, H, T, D)`, `(B, H, S, D)` |
# | $d_k$ | `q.size(-1)` = D | a number |
# | $\mathrm{softmax}(\cdot)$ | `weights` | `(B, H, T, S)`, rows sum to 1 |
#
# This is the function that the library runs. Read it line by line beside the formula.

# %%
show(reference_attention)

# %% [markdown]
# **Predict first:** one query, three keys. The query equals the second key. Which weight is largest, and does
# it come near 1?

# %%
keys = torch.eye(3).view(1, 1, 3, 3)  # (B=1, H=1, S=3, D=3): three keys at right angles
query = keys[:, :, 1:2]  # (1, 1, 1, 3)
values = torch.tensor([10.0, 20.0, 30.0]).view(1, 1, 3, 1).expand(1, 1, 3, 3)
output, weights = reference_attention(query, keys, values)
print("weights:", [round(w, 3) for w in weights.flatten().tolist()])
assert weights.argmax() == 1 and weights.max() < 0.5
assert weights.shape == (1, 1, 1, 3) and torch.allclose(weights.sum(), torch.tensor(1.0))

# %% [markdown]
# The second is largest, but not by much: scores of 0 and 1, divided by √3, are close. A trained model makes
# queries and keys *long* where it wants to be sure:

# %%
for length in (1, 4, 16):
    _, weights = reference_attention(query * length, keys, values)
    print(f"query {length:2d} times as long: {[round(w, 3) for w in weights.flatten().tolist()]}")
assert weights[0, 0, 0, 1] > 0.99

# %% [markdown]
# ### Why divide by √D?
#
# The product of two random vectors of length D has variance D. **Predict first:** with D = 512 and no
# division, how large is the largest of 64 weights on average?

# %%
q, k = torch.randn(200, 1, 1, 512), torch.randn(200, 1, 64, 512)
_, scaled = reference_attention(q, k, k)
unscaled = (q @ k.transpose(-2, -1)).softmax(-1)
print(f"largest weight with √D: {scaled.amax(-1).mean():.2f}, without: {unscaled.amax(-1).mean():.2f}")
assert scaled.amax(-1).mean() < 0.3 < 0.8 < unscaled.amax(-1).mean()

# %% [markdown]
# Without it the softmax is nearly one-hot before anything was learned, and passes almost no gradient.
#
# ## 2 · The causal mask
#
# A language model must not see the token that it is to predict. The mask is a triangle; what it hides gets a
# score of −∞ *before* the softmax, so that the rest still sums to 1.

# %%
show(causal_mask)
print(causal_mask(5).int())

# %%
x = torch.randn(1, 1, 5, 8)
before, weights = reference_attention(x, x, x, causal_mask(5))
changed = x.clone()
changed[:, :, 3:] = 99.0  # another future
after, _ = reference_attention(x, changed, changed, causal_mask(5))
assert torch.equal(before[:, :, :3], after[:, :, :3]), "the past must not depend on the future"
assert torch.equal(weights.triu(1), torch.zeros_like(weights))

# %% [markdown]
# PyTorch has a fused kernel for the same formula. It is what training uses; it gives no weights, but the same
# output, and the tests hold the two together:

# %%
fast, no_weights = fast_attention(x, x, x, causal_mask(5))
print("largest difference:", (fast - before).abs().max().item())
assert no_weights is None and torch.allclose(fast, before, atol=1e-6)

# %% [markdown]
# ## 3 · A transformer of attention alone
#
# Embeddings, one attention layer on a residual stream, a linear head. No MLP: what attention cannot do, this
# model cannot do.

# %%
show(TinyTransformer)

# %% [markdown]
# ### The task: say it backwards
#
# Eight random digits, a separator, then the same digits in reverse. Every answer stands in the input, at a
# place that depends on where we are: a task made for attention.
#
#     3 1 4 1 5 9 2 6 | 6 2 9 5 1 4 1 3

# %%
LENGTH, SEPARATOR = 8, 10
config = GPTConfig(
    vocab_size=11, block_size=2 * LENGTH, n_layer=1, n_head=2, n_embd=64, attention="reference"
)


def make_batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, 16) inputs, and targets that count only where the answer is asked for."""
    digits = torch.randint(0, 10, (rows, LENGTH))
    sequence = torch.cat([digits, torch.full((rows, 1), SEPARATOR), digits.flip(1)], dim=1)  # (rows, 17)
    inputs, targets = sequence[:, :-1], sequence[:, 1:].clone()
    targets[:, :LENGTH] = -100
    return inputs, targets


def exact_match(model: TinyTransformer, rows: int = 1000) -> float:
    """Share of sequences answered without a single mistake."""
    inputs, targets = make_batch(rows)
    guess = model(inputs)[0].argmax(-1)
    return ((guess == targets) | (targets == -100)).all(dim=1).float().mean().item()


model = TinyTransformer(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters; untrained: {exact_match(model):.1%} right")
for step in range(1, 2001):
    inputs, targets = make_batch(64)
    logits, _ = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        score = exact_match(model)
        print(f"step {step:4d}: loss {loss.item():.4f}, {score:.1%} of sequences exactly right")
        if score == 1.0:
            break
assert score == 1.0, "one attention layer solves this"

# %% [markdown]
# ## 4 · Read its mind
#
# **Predict first:** row = position that asks, column = position that it looks at. After the separator the
# first answer is the *last* digit, then the one before … What will the picture look like?

# %%
digits = [3, 1, 4, 1, 5, 9, 2, 6]
sequence = torch.tensor([[*digits, SEPARATOR, *digits[::-1][:-1]]])  # (1, 16)
logits, all_weights = model(sequence)
answer = logits[0, LENGTH:].argmax(-1).tolist()
print("asked:   ", digits)
print("answered:", answer)
assert answer == digits[::-1]
labels = [str(d) if d < 10 else "|" for d in sequence[0].tolist()]
out = Path("runs/day1")
plot_attention(all_weights[0][0], labels, out / "attention.png", "reversing eight digits")
print(f"picture: {out / 'attention.png'}")

# %% [markdown]
# A diagonal that runs the other way: position `8 + i` looks at position `7 − i`. Let us check it in numbers
# (both heads together, as the output adds them up):

# %%
looks_at = all_weights[0][0].sum(dim=0)[LENGTH:].argmax(-1).tolist()
print("looks at:", looks_at)
assert looks_at == list(range(LENGTH - 1, -1, -1))

# %% [markdown]
# ## 5 · Exercises
#
# Change this file and run it again.
#
# 1. **Break the mask.** Copy `TinyTransformer` into this file and call its attention without a mask: training
#    loss falls at once, on *every* position. Why is it worthless?
# 2. **Sort instead of reverse.** Make the answer `digits.sort(dim=1).values`. Does one layer still reach
#    100 %? Give it two (`n_layer=2`). What must the second do that the first cannot?
# 3. **One head or four?** Set `n_head` to 1, then 4. What changes in the picture, and in the number of steps?
# 4. **No positions.** Set `model.wpe.weight` to zero and freeze it. Which part of the task is now impossible?
#
# ## Quiz
#
# *Why −∞ before the softmax, and not 0 after it?*
#
# - "It makes no difference": it does: zeroed weights no longer sum to 1, and hidden keys still took their
#   share of the sum, so the past would depend on the future.
# - "−∞ is numerically safer": it is not; a row that is hidden entirely becomes NaN.
# - **"So that hidden keys take no share": right.**
#
# ## Read on
#
# - Vaswani et al. 2017, *Attention Is All You Need*, sections 3.2.1 to 3.2.3.
# - Bahdanau, Cho, Bengio 2015, *Neural Machine Translation by Jointly Learning to Align and Translate*.
# - Day 2: GPT-1, where an MLP, layer norms and more layers join in.
