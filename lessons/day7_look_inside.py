# %% [markdown]
# # Day 7 · Looking inside: attention, the stream, the logit lens
#
# About 35 minutes; it runs in under a minute. It needs day 5.
#
# After this lesson you can
#
# - record what a model computes without changing a line of it,
# - read its stream layer by layer as if each were the last,
# - find a head that copies, and prove what it does by numbers.

# %%
import math
from pathlib import Path

import torch
import torch.nn.functional as F

from ai_learning.checks import check, picture, quiz, show
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import muon_with_adamw
from ai_learning.trace import logit_lens, record, token_losses
from ai_learning.viz import plot_attention, plot_lens, plot_lines

_ = torch.manual_seed(7)

# %% [markdown]
# ## 1 · Recording from outside
#
# The fused kernel never holds the attention weights. While recording, the reference function stands in its
# place, and is put back afterwards:

# %%
show(record)

# %% [markdown]
# ## 2 · A model that must copy
#
# Random letters, then the same letters again: `q w x … q w x …`. The first half cannot be guessed. In the
# second half every letter can be found: look back for what you just read, and take what came after it. That
# is what *induction heads* do (Olsson et al. 2022); it takes two layers. Train a model on nothing else:

# %%
V, HALF = 40, 16
config = GPTConfig(
    vocab_size=V, block_size=2 * HALF, n_layer=2, n_head=2, n_embd=64, positions="rotary", bias=False
)
model = GPT(config)


def make_batch(rows: int) -> torch.Tensor:
    """(rows, 2 · HALF) random letters, then the same again."""
    first = torch.randint(0, V, (rows, HALF))
    return torch.cat([first, first], dim=1)


optimizers = muon_with_adamw(model, lr=3e-3, muon_lr=0.02)
for step in range(700):
    batch = make_batch(64)
    loss = F.cross_entropy(model(batch)[:, HALF:-1].flatten(0, 1), batch[:, HALF + 1 :].flatten())
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    if step % 100 == 0:
        print(f"step {step:4d}: {loss.item():.3f} nats a letter of the second half")
assert loss.item() < 0.3

# %% [markdown]
# **Predict first:** the loss of each position of one sequence. What does it look like in the first half,
# and in the second?

# %%
idx = make_batch(1)
with torch.no_grad(), record(model) as trace:
    logits = model(idx)
losses = token_losses(logits, idx)[0]
assert losses.shape == (2 * HALF - 1,)
out = Path("runs/day7")
plot_lines(
    {"loss": losses.tolist()}, out / "losses.png", "position", "nats", "random letters, then the same again"
)
picture(out / "losses.png")
early, late = losses[: HALF - 1].mean(), losses[HALF:].mean()
print(f"first half {early:.2f} (ln {V} = {math.log(V):.2f}), second {late:.2f}")
assert late < 1 < early

# %% [markdown]
# ## 3 · Find the head
#
# **Predict first:** position `t` of the second half reads a letter that stood at `t − HALF`. Where must it
# look for the *next* letter?

# %%
labels = [chr(97 + i % 26) for i in idx[0].tolist()]
plot_attention(trace.attention[1][0], labels, out / "attention.png", "second layer")
picture(out / "attention.png")
shares = {}
for layer, weights in enumerate(trace.attention):
    for head in range(config.n_head):
        copied = weights[0, head, HALF:-1, :].diagonal(1)[: HALF - 1].mean().item()
        previous = weights[0, head].diagonal(-1).mean().item()
        shares[layer, head] = (previous, copied)
        where = f"{previous:.0%} on the letter before, {copied:.0%} on the one to copy"
        print(f"layer {layer}, head {head}: {where}")
assert max(copied for _, copied in shares.values()) > 0.3

# %% [markdown]
# Layer 0 tells each letter what stood before it; layer 1 looks for the place where *that* is the letter
# just read. Neither could do it alone.
#
# ## 4 · The logit lens
#
# The stream after each block, read by the model's own norm and head, as if no block followed:

# %%
show(logit_lens)


# %%
def lens(stream, weight, bias, head):
    """(n_layer + 1, T, C) stream → (n_layer + 1, T, V) logits; weight and bias are the final norm's."""
    raise NotImplementedError


check(lens, "day7.logit_lens")

# %%
found = logit_lens(model, trace.residual)[:, 0].softmax(-1)  # (n_layer + 1, T, V)
best = found.max(-1)
words = [[chr(97 + i % 26) for i in row] for row in best.indices.tolist()]
plot_lens(words, best.values.tolist(), labels, out / "lens.png", "the likeliest next letter, layer by layer")
picture(out / "lens.png")
right = [(found[layer, HALF:-1].argmax(-1) == idx[0, HALF + 1 :]).float().mean().item() for layer in range(3)]
print("right in the second half after 0, 1, 2 blocks:", [f"{r:.0%}" for r in right])
assert right[2] > 0.8 > right[0]

# %% [markdown]
# ## 5 · How widely does a head look?
#
# Entropy in bits: 0 for one key, 5 for 32 keys alike.


# %%
def attention_entropy(weights):
    """(B, H, T, S) → (H,): mean bits."""
    raise NotImplementedError


check(attention_entropy, "day7.attention_entropy")
print("bits by layer and head:", trace.entropy().mean((1, 3)).tolist())

# %% [markdown]
# ## 6 · Exercises
#
# 1. **Cut a head.** Set the columns of `c_proj` that belong to one head to zero. Which head ends the copying?
# 2. **One layer** (`n_layer=1`): how far does the loss of the second half fall now?
# 3. **Your own text:** `ai-learning inspect runs/demo/gpt1_tiny_pretrain.pt --text "for x in xs:"`.
#
# ## Quiz

# %%
quiz("day7.lens")

# %% [markdown]
# ## Read on
#
# - nostalgebraist 2020, *interpreting GPT: the logit lens*.
# - Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits*; Olsson et al. 2022, *In-context
#   Learning and Induction Heads*.
# - Day 8: a head of another kind.
