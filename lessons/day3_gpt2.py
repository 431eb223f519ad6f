# %% [markdown]
# # Day 3 · GPT-2: the same block, larger
#
# About 35 minutes; it runs in about a minute. It needs day 2.
#
# After this lesson you can
#
# - say the four things that changed from GPT-1 to GPT-2, and why,
# - count the parameters of any GPT by hand,
# - explain why some weights begin smaller than others, and see what happens otherwise.

# %%
import math
from dataclasses import replace
from pathlib import Path

import torch

from ai_learning.checks import check, picture, quiz, show
from ai_learning.model import GPT, GPTConfig
from ai_learning.presets import PRESETS, preset
from ai_learning.trace import record

_ = torch.manual_seed(3)

# %% [markdown]
# ## 1 · What changed
#
# Radford et al. 2019, section 2.3, in one paragraph: the layer norm moves to the *input* of each branch, one
# more is added after the last block, the weights that end a residual branch begin smaller by $1/\sqrt{N}$,
# and vocabulary, context and batch grow. In the library that is the same class with another configuration:

# %%
print("gpt1:", preset("gpt1"))
print("gpt2:", preset("gpt2"))
show(GPT.hidden)
show(GPT.run_blocks)

# %% [markdown]
# | in the paper | in the code |
# |---|---|
# | "layer normalization was moved to the input of each sub-block" | `norm_first=True` |
# | "an additional layer normalization was added after the final self-attention block" | `ln_f` |
# | "scale the weights of residual layers at initialization by a factor of $1/\sqrt{N}$" | `init_weights` |
# | 50,257 tokens, context 1024 | `vocab_size`, `block_size` |
#
# ## 2 · Four sizes
#
# **Predict first:** `gpt2-medium` has twice the layers of `gpt2` and a third more width. How many times the
# parameters?

# %%
sizes = {}
for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
    with torch.device("meta"):  # shapes only: nothing is allocated
        sizes[name] = GPT(preset(name)).n_params()
    print(f"{name:12} {sizes[name] / 1e6:8.1f} M parameters")
assert sizes["gpt2"] == 124_439_808
assert set(sizes) <= set(PRESETS)

# %% [markdown]
# ### Your turn: count them
#
# A block has $12C^2$ in its matrices. What else?


# %%
def count_parameters(vocab_size, block_size, n_layer, n_embd):
    """Parameters of a GPT-2 with biases; the head shares the token embedding."""
    raise NotImplementedError


check(count_parameters, "day3.count_parameters")

# %% [markdown]
# Where do they sit? **Predict first:** which part of GPT-2 small is largest: embeddings, attention or MLPs?

# %%
C, V, T, L = 768, 50257, 1024, 12
parts = {"wte": V * C, "wpe": T * C, "attention": L * (4 * C * C + 4 * C), "MLPs": L * (8 * C * C + 5 * C)}
for part, count in parts.items():
    print(f"{part:10} {count / 1e6:6.1f} M  {count / sizes['gpt2']:5.1%}")
assert max(parts, key=parts.get) == "MLPs"

# %% [markdown]
# ## 3 · The stream must not grow
#
# Every block adds two branches to the residual stream. Variances add up, so with equal branches the stream
# after 48 layers would be $\sqrt{96}$ times as large as one branch. GPT-2 begins each branch smaller instead:

# %%
show(GPT.init_weights)

# %% [markdown]
# **Predict first:** how large is the stream after each block, with the scaling and without?

# %%
config = GPTConfig(vocab_size=258, block_size=64, n_layer=24, n_head=4, n_embd=128)
idx = torch.randint(0, 256, (4, 64))
assert GPT(config)(idx).shape == (4, 64, config.vocab_size)


def stream_sizes(model: GPT) -> list[float]:
    """Root mean square of the residual stream before the first block and after each."""
    with torch.no_grad(), record(model) as trace:
        model(idx)
    return [x.square().mean().sqrt().item() for x in trace.residual]


scaled = GPT(config)
unscaled = GPT(config)
for name, parameter in unscaled.named_parameters():
    if name.endswith("c_proj.weight"):
        torch.nn.init.normal_(parameter, std=0.02)
with_scaling, without = stream_sizes(scaled), stream_sizes(unscaled)
print("with scaling:   ", [round(s, 3) for s in with_scaling[::6]])
print("without scaling:", [round(s, 3) for s in without[::6]])
growth = without[-1] / with_scaling[-1]
print(f"after {config.n_layer} blocks: {growth:.1f} times as large")
assert growth > 2

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(6, 3.5), layout="constrained")
ax = figure.subplots()
ax.plot(with_scaling, "o-", label="c_proj scaled by 1/√(2·n_layer)")
ax.plot(without, "s--", label="every weight at 0.02")
ax.set_xlabel("after block")
ax.set_ylabel("RMS of the residual stream")
ax.legend()
out = Path("runs/day3/stream.png")
out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(out, dpi=100)
picture(out)

# %% [markdown]
# ### Your turn: the rule


# %%
def init_std(name, n_layer):
    """Standard deviation of a weight's first values, by its name, e.g. "h.3.mlp.c_proj.weight"."""
    raise NotImplementedError


check(init_std, "day3.init_std")

# %% [markdown]
# ## 4 · One table for both ends
#
# The head's weight *is* the token embedding. **Predict first:** the gradient of `wte.weight` has two sources.
# Which rows get a gradient from the input side, and which from the output side?

# %%
tiny = GPT(replace(config, n_layer=1))
assert tiny.lm_head.weight is tiny.wte.weight
tokens = torch.tensor([[10, 11, 12]])
loss = tiny(tokens).log_softmax(-1)[0, -1, 13].neg()  # target 13 after 10, 11, 12
loss.backward()
row_sizes = tiny.wte.weight.grad.norm(dim=1)
print("target 13:", round(row_sizes[13].item(), 3), "· input 12:", round(row_sizes[12].item(), 3))
print("median of all others:", f"{row_sizes.median().item():.2e}")
assert row_sizes[13] > 20 * row_sizes.median() and (row_sizes > 0).all()

# %% [markdown]
# Every row gets one from the head: the softmax pushes all other tokens down a little. Only the three tokens
# of the input get one from the input side as well.
#
# A model that knows nothing loses ln V nats a token. Does ours, at the start?

# %%
with torch.no_grad():
    logits = scaled(idx)
start = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 258, (4 * 64,))).item()
print(f"loss {start:.3f}, ln 258 = {math.log(258):.3f}")
assert abs(start - math.log(258)) < 0.3

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day3.embed`**: what enters the first block. `ai-learning lessons start day3` writes a file with the
#    three exercises of today.
# 2. **Untie the head** (`tie_weights=False`) in the model of day 2 and train both. Which is better after 800
#    steps? How many parameters more?
# 3. **Deeper or wider?** At the same number of parameters, train 2 layers × 192 and 8 layers × 96.
#
# ## Quiz

# %%
quiz("day3.tied")
print()
quiz("day3.init")

# %% [markdown]
# ## Read on
#
# - Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, section 2.3.
# - Press, Wolf 2017, *Using the Output Embedding to Improve Language Models*: tied weights.
# - Day 4: the loop that trains it.
