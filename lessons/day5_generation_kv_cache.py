# %% [markdown]
# # Day 5 · Generation: from logits to text, and a cache that remembers
#
# About 40 minutes; it runs in under a minute. It needs day 3.
#
# After this lesson you can
#
# - turn logits into a token by temperature, top-k, top-p and min-p, and say what each is for,
# - say why a cache of keys and values changes the cost of a token but not one id,
# - write all of it and have it checked.

# %%
import time
from pathlib import Path

import numpy as np
import torch

from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.generate import (
    apply_min_p,
    apply_temperature,
    apply_top_k,
    apply_top_p,
    generate,
    generate_text,
    stream_text,
)
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig, KVCache
from ai_learning.model.cache import LayerCache
from ai_learning.optim import adamw
from ai_learning.text import read_text
from ai_learning.tokenizers import ByteTokenizer

_ = torch.manual_seed(5)

# %% [markdown]
# A model to play with, trained for some seconds as in day 2:

# %%
tokenizer = ByteTokenizer()
tokens = np.array(tokenizer.encode(read_text("builtin:reference")), dtype=np.int64)
config = GPTConfig(vocab_size=258, block_size=128, n_layer=3, n_head=4, n_embd=96)
model = GPT(config)
batches = TokenBatches(tokens, 64, batch_size=24, seed=1)
optimizer = adamw(model, lr=3e-3)
for step in range(500):
    loss = next_token_loss(model, *batches(step))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss {loss.item():.2f} nats a byte")
assert loss.item() < 2.4

# %% [markdown]
# ## 1 · From logits to a token
#
# After "The " the model gives a logit for each of 258 ids:

# %%
prompt = torch.tensor([tokenizer.encode("the valu")])
with torch.no_grad():
    logits = model(prompt)[:, -1]  # (1, V)
assert logits.shape == (1, config.vocab_size)
probabilities = logits.softmax(-1)[0]
for p, i in zip(*probabilities.topk(6), strict=True):
    print(f"{tokenizer.decode([int(i)])!r:6} {p:.3f}")
assert abs(probabilities.sum() - 1) < 1e-5

# %% [markdown]
# Always the likeliest (greedy) is safe and dull, and repeats itself:

# %%
print(generate_text(model, tokenizer, "The ", 150, temperature=0))

# %% [markdown]
# Drawing from all of them is lively, and now and then picks something absurd from the long tail. The filters
# cut the tail in different ways. **Predict first:** which of them keeps the same number of tokens whatever
# the model thinks?

# %%
for name, filtered in {
    "temperature 0.5": apply_temperature(logits, 0.5),
    "top-k 10": apply_top_k(logits, 10),
    "top-p 0.9": apply_top_p(logits, 0.9),
    "min-p 0.05": apply_min_p(logits, 0.05),
}.items():
    kept = int(filtered.isfinite().sum())
    print(f"{name:16} keeps {kept:3d} ids, the likeliest has {filtered.softmax(-1).max():.3f}")
assert int(apply_top_k(logits, 10).isfinite().sum()) == 10

# %%
show(apply_top_p)


# %%
def top_p(logits, p):
    """(B, V) → (B, V): keep the fewest likeliest tokens whose probabilities reach p; others -inf."""
    raise NotImplementedError


check(top_p, "day5.top_p")

# %%
for temperature in (0.5, 1.0, 1.5):
    print(f"--- temperature {temperature}")
    print(generate_text(model, tokenizer, "The ", 120, temperature=temperature, seed=1))

# %% [markdown]
# ## 2 · The cache
#
# For each new token the model reads the whole text again, though nothing about the earlier positions has
# changed: causal attention lets no position see a later one. What a later token needs of them is their keys
# and values. Keep those:

# %%
show(LayerCache)

# %% [markdown]
# **Predict first:** with the cache a step reads one token, without it the whole text. How many times faster
# are
# 120 tokens?

# %%
start = torch.tensor([tokenizer.encode("The ")])
seconds, results = {}, {}
for use_cache in (True, False, True, False):
    began = time.perf_counter()
    results[use_cache] = generate(model, start, 120, temperature=0, use_cache=use_cache)
    seconds[use_cache] = time.perf_counter() - began
print(f"{1000 * seconds[True] / 120:.1f} ms a token with, {1000 * seconds[False] / 120:.1f} ms without")
assert torch.equal(results[True], results[False]), "the same ids, to the last one"

# %% [markdown]
# And the same logits, whether all at once or one by one:

# %%
idx = torch.tensor([tokenizer.encode("for x in range(10):")])
with torch.no_grad():
    whole = model(idx)
    cache = KVCache(config, batch_size=1)
    steps = torch.cat([model(idx[:, t : t + 1], cache=cache) for t in range(idx.size(1))], dim=1)
print("largest difference:", (whole - steps).abs().max().item())
assert torch.allclose(whole, steps, atol=1e-4) and cache.length == idx.size(1)

# %% [markdown]
# What does it cost to keep them? Two vectors of `n_embd` numbers a layer and position:

# %%
from ai_learning.presets import preset

for name in ("gpt2", "gpt2-xl"):
    big = preset(name)
    size = 2 * big.n_layer * big.n_embd * big.block_size * 2
    print(f"{name}: {size / 1e6:.0f} MB for {big.block_size} positions in 16 bits")


# %%
def cached_attention(q, k, v, past):
    """Causal attention of T new positions to the past (None or (keys, values)) and to themselves.

    Returns (output, (keys, values)) with the new ones appended.
    """
    raise NotImplementedError


check(cached_attention, "day5.kv_cache")

# %% [markdown]
# ## 3 · Streaming
#
# A page shows tokens as they come. Bytes that are only half a character wait for the rest:

# %%
pieces = list(stream_text(model, tokenizer, "def ", 40, temperature=0.8, seed=3))
print(pieces[:12])
assert all("�" not in piece for piece in pieces)

# %% [markdown]
# How sure is the model along a text? The entropy of each step, in bits:

# %%
text = "The value of the expression is the result of the call."
ids = torch.tensor([tokenizer.encode(text)])
with torch.no_grad():
    log_p = model(ids).log_softmax(-1)[0]
entropy = -(log_p.exp() * log_p).sum(-1) / np.log(2)
from matplotlib.figure import Figure

figure = Figure(figsize=(9, 2.6), layout="constrained")
ax = figure.subplots()
ax.bar(range(len(text) - 1), entropy[:-1])
ax.set_xticks(range(len(text) - 1), [c if c != " " else "␣" for c in text[1:]], fontsize=7)
ax.set_ylabel("bits before it")
out = Path("runs/day5/entropy.png")
out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(out, dpi=100)
picture(out)

# %% [markdown]
# The first letter of a word is a surprise; its end is not.
#
# ## 4 · Exercises
#
# `ai-learning lessons start day5` writes a file with today's five: temperature, top-k, top-p, min-p, cache.
#
# 1. **Repeat yourself.** Find a prompt at which greedy decoding loops. Which `repetition_penalty` ends it?
# 2. **Longer than the context.** Ask for 400 tokens of a model with `block_size` 128. What happens to the
#    time a token, and why?
# 3. **A cache for a batch.** Two prompts of the same length at once: is a step twice as slow?
#
# ## Quiz

# %%
quiz("day5.cache")
print()
quiz("day5.top_p")

# %% [markdown]
# ## Read on
#
# - Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*: top-p.
# - Nguyen et al. 2024, *Min-p Sampling*; Fan et al. 2018, *Hierarchical Neural Story Generation*: top-k.
# - Pope et al. 2022, *Efficiently Scaling Transformer Inference*: what caches cost at scale.
# - Day 6: the published weights in the same model.
