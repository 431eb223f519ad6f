# %% [markdown]
# # Day 10 · NF4: four bits for a weight
#
# About 40 minutes; it runs in under a minute. It needs day 3.
#
# After this lesson you can
#
# - derive NF4's sixteen values from the normal distribution,
# - quantize block by block, pack two codes in a byte, and come back,
# - say what four bits cost a model, and what double quantization saves.

# %%
import copy
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ai_learning.adapters import bits_per_parameter, dequantize_4bit, quantize_4bit, quantize_linears
from ai_learning.adapters.codes import code_table, nf4_code
from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw
from ai_learning.text import read_text
from ai_learning.tokenizers import ByteTokenizer

_ = torch.manual_seed(10)

# %% [markdown]
# ## 1 · Sixteen values
#
# Four bits name sixteen numbers. Which? Trained weights are nearly normal, so take values that each stand
# for about the same *share* of a normal distribution (Dettmers et al. 2023, section 3):

# %%
show(nf4_code)


# %%
def my_nf4_code():
    """The 16 values of NF4 (16,) fp32, ascending, from −1 to 1."""
    raise NotImplementedError


check(my_nf4_code, "day10.nf4_code")

# %% [markdown]
# **Predict first:** on normal numbers, which type has the smallest error: sixteen even steps (Int4), a
# 4-bit float (FP4), or NF4?

# %%
weights = torch.randn(64 * 4000)
errors = {}
for quant_type in ("int4", "fp4", "nf4"):
    back = dequantize_4bit(*quantize_4bit(weights, quant_type))
    assert back.shape == weights.shape
    errors[quant_type] = (back - weights).square().mean().sqrt().item()
print({name: round(error, 4) for name, error in errors.items()})
assert errors["nf4"] < errors["int4"] and errors["nf4"] < errors["fp4"]

# %%
figure = Figure(figsize=(7, 2.6), layout="constrained")
ax = figure.subplots()
ax.hist(
    (weights.view(-1, 64) / weights.view(-1, 64).abs().amax(1, keepdim=True)).flatten(), bins=120, color="0.8"
)
for row, name in enumerate(("int4", "fp4", "nf4")):
    ax.plot(code_table(name), [(1 + row) * 1500] * 16, "|", markersize=14, label=name)
ax.legend()
ax.set_xlabel("weight / absmax of its block")
out = Path("runs/day10")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "codes.png", dpi=100)
picture(out / "codes.png")

# %% [markdown]
# ## 2 · Blocks
#
# The table runs from −1 to 1; a block of 64 weights is divided by its own largest magnitude. **Predict
# first:** one weight of 1000 among 256 ordinary ones. How many are spoiled with one scale for all, and how
# many with blocks?

# %%
spoiled = torch.randn(256)
spoiled[5] = 1000.0
for blocksize in (256, 64):
    back = dequantize_4bit(*quantize_4bit(spoiled, blocksize=blocksize))
    lost = int(((back == 0) & (spoiled != 0)).sum())
    print(f"blocks of {blocksize}: {lost} of 256 became 0")
assert lost < 110  # the block of the outlier, and what is near 0 in any case


# %%
def quantize_blocks(x, blocksize, table):
    """x (n,), table (16,) → codes (n,) int64 and absmax (blocks,)."""
    raise NotImplementedError


check(quantize_blocks, "day10.quantize_blocks")


# %%
def pack_nibbles(codes):
    """(n,) codes → (⌈n / 2⌉,) uint8, the first of two in the high half."""
    raise NotImplementedError


check(pack_nibbles, "day10.pack_nibbles")

# %% [markdown]
# ## 3 · The constants, too
#
# One fp32 absmax for 64 weights is half a bit more for each. Double quantization keeps the absmax values in
# 8 bits:

# %%
for compress in (False, True):
    _, state = quantize_4bit(weights, compress_statistics=compress)
    print(f"double quantization {compress}: {bits_per_parameter(state):.3f} bits a weight")
assert 4.12 < bits_per_parameter(state) < 4.13

# %% [markdown]
# ## 4 · What it costs a model
#
# Train a small GPT for some seconds, then round its linear layers. **Predict first:** by how much does the
# loss rise?

# %%
tokenizer = ByteTokenizer()
tokens = np.array(tokenizer.encode(read_text("builtin:reference")), dtype=np.int64)
model = GPT(GPTConfig(vocab_size=258, block_size=64, n_layer=3, n_head=4, n_embd=96))
batches, optimizer = TokenBatches(tokens[20_000:], 64, batch_size=16, seed=1), adamw(model, lr=3e-3)
for step in range(400):
    loss = next_token_loss(model, *batches(step))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
held_out = TokenBatches(tokens[:20_000], 64, batch_size=128, seed=0)


@torch.no_grad()
def measure(m: GPT) -> float:
    """Held-out nats a byte."""
    return sum(next_token_loss(m, *held_out(i)).item() for i in range(3)) / 3


full = measure(model.eval())
print(f"fp32 {full:.4f}")
costs = {}
for name, options in {
    "int4": {"quant_type": "int4"},
    "fp4": {"quant_type": "fp4"},
    "nf4": {"quant_type": "nf4"},
    "nf4, double": {"quant_type": "nf4", "compress_statistics": True},
}.items():
    rounded = copy.deepcopy(model)
    quantize_linears(rounded, **options)
    costs[name] = measure(rounded) - full
    print(f"{name:12} +{costs[name]:.4f} nats a byte")
assert all(cost < 0.1 for cost in costs.values())

# %% [markdown]
# ## 5 · Exercises
#
# `ai-learning lessons start day10` writes a file with today's five: the values, blocks, packing,
# de-quantizing and double quantization.
#
# 1. **Block sizes** 16, 64, 256, 1024: error and bits a weight. Where is the best trade?
# 2. **A weight that is not normal:** quantize uniform numbers. Which type wins now?
#
# ## Quiz

# %%
quiz("day10.quantiles")
print()
quiz("day10.outlier")

# %% [markdown]
# ## Read on
#
# - Dettmers et al. 2023, *QLoRA: Efficient Finetuning of Quantized LLMs*, section 3 and appendix E.
# - Dettmers et al. 2022, *8-bit Optimizers via Block-wise Quantization*.
# - Day 11: QLoRA puts the two together.
