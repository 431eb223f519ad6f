# %% [markdown]
# # Day 9 · LoRA: teach a model something new with a tenth of its weights
#
# About 40 minutes; it runs in about a minute. It needs day 4.
#
# After this lesson you can
#
# - write the low-rank update, merge it, and take it out again without a trace,
# - say what r and alpha do, and why B begins at zero,
# - fine-tune with a small share of the weights and measure what it cost the old task.

# %%
import copy
from pathlib import Path

import numpy as np
import torch

from ai_learning.adapters import (
    LoRAConfig,
    eject_lora,
    inject_lora,
    lora_state_dict,
    merge_lora,
    unmerge_lora,
)
from ai_learning.adapters.layers import LoRALayer
from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw
from ai_learning.text import read_text
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.viz import plot_lines

_ = torch.manual_seed(9)

# %% [markdown]
# ## 1 · A thin detour
#
# Hu et al. 2021, equation 3: $h = W_0 x + \frac{\alpha}{r} B A x$. $W_0$ is frozen; $A$ is $r \times$ in,
# $B$ is out $\times r$.

# %%
show(LoRALayer.forward)


# %%
def lora_forward(x, weight, bias, A, B, alpha):
    """x (…, n_in), weight (n_out, n_in), bias (n_out,), A (r, n_in), B (n_out, r) → (…, n_out)."""
    raise NotImplementedError


check(lora_forward, "day9.lora_forward")

# %% [markdown]
# **Predict first:** both A and B at zero, or only B: which of the two can learn anything? Look at the
# gradients.

# %%
x, target = torch.randn(8, 6), torch.randn(8, 5)
for name, a in (("A at zero", torch.zeros(2, 6)), ("A random", torch.randn(2, 6))):
    A, B = a.requires_grad_(), torch.zeros(5, 2, requires_grad=True)
    (x @ A.T @ B.T - target).square().mean().backward()
    print(f"{name}: |dA| = {A.grad.norm():.3f}, |dB| = {B.grad.norm():.3f}")
assert B.grad.norm() > 0

# %% [markdown]
# ## 2 · A model, and something new
#
# First a base, trained on prose; then Python source, which it has never seen:

# %%
tokenizer = ByteTokenizer()
prose = np.array(tokenizer.encode(read_text("builtin:reference")), dtype=np.int64)
code = np.array(tokenizer.encode(read_text("builtin:stdlib")[:400_000]), dtype=np.int64)
config = GPTConfig(vocab_size=258, block_size=64, n_layer=3, n_head=4, n_embd=96)
base = GPT(config)


def fit(model: torch.nn.Module, tokens: np.ndarray, steps: int, lr: float) -> list[float]:
    """Train what is not frozen; the loss of every 20 steps."""
    batches = TokenBatches(tokens, 64, batch_size=16, seed=1)
    optimizer = adamw(model, lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        loss = next_token_loss(model, *batches(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [sum(losses[i : i + 20]) / 20 for i in range(0, steps, 20)]


@torch.no_grad()
def measure(model: torch.nn.Module, tokens: np.ndarray) -> float:
    """Nats a byte on four fixed batches of the end of a text."""
    batches = TokenBatches(tokens[-40_000:], 64, batch_size=64, seed=0)
    return sum(next_token_loss(model, *batches(i)).item() for i in range(4)) / 4


fit(base, prose[:-40_000], 500, 3e-3)
before = measure(base, prose), measure(base, code)
print(f"base: prose {before[0]:.3f}, code {before[1]:.3f} nats a byte")

# %% [markdown]
# **Predict first:** how many parameters has an update of rank 8 on every linear layer of a block?

# %%
adapted = copy.deepcopy(base)
inject_lora(adapted, LoRAConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"]))
trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
print(f"{trained:,} of {base.n_params():,} parameters are trained: {trained / base.n_params():.1%}")
assert trained < 0.2 * base.n_params()
frozen = {name: p.clone() for name, p in adapted.named_parameters() if not p.requires_grad}
curves = {"LoRA, r = 8": fit(adapted, code[:-40_000], 300, 5e-3)}
assert all(torch.equal(p, dict(adapted.named_parameters())[name]) for name, p in frozen.items())

# %%
full = copy.deepcopy(base)
curves["all weights"] = fit(full, code[:-40_000], 300, 2e-3)
out = Path("runs/day9")
plot_lines(curves, out / "loss.png", "20 steps", "nats a byte", "learning Python source")
picture(out / "loss.png")
for name, model in (("base", base), ("LoRA", adapted), ("all weights", full)):
    print(f"{name:12} prose {measure(model, prose):.3f}, code {measure(model, code):.3f}")
gain = before[1] - measure(adapted, code)
print(f"LoRA has {gain / (before[1] - measure(full, code)):.0%} of the gain of training all weights")
assert gain > 0.2

# %% [markdown]
# Both forget some prose. But the base is still there, bit for bit: take the adapter off and it is back.
#
# ## 3 · Merging
#
# The update is a matrix like the weight, so it can be added to it, and then costs nothing:


# %%
def lora_merge(weight, A, B, alpha, fan_in_fan_out):
    """A new weight that answers as the layer with its update does."""
    raise NotImplementedError


check(lora_merge, "day9.lora_merge")

# %%
idx = torch.randint(0, 256, (1, 32))
expected = adapted.eval()(idx)
assert expected.shape == (1, 32, 258)
merge_lora(adapted)
print("merged, logits differ by", (adapted(idx) - expected).abs().max().item())
unmerge_lora(adapted)
eject_lora(adapted, merge=False)
assert all(torch.equal(a, b) for a, b in zip(adapted.parameters(), base.parameters(), strict=True))
print("taken off: the base, bit for bit")

# %% [markdown]
# ## 4 · Rank

# %%
for r in (1, 4, 16):
    trial = copy.deepcopy(base)
    inject_lora(trial, LoRAConfig(r=r, lora_alpha=2 * r, target_modules=["c_attn", "c_proj", "c_fc"]))
    fit(trial, code[:-40_000], 150, 5e-3)
    size = sum(t.numel() for t in lora_state_dict(trial).values())
    print(f"r = {r:2d}: {size:6,} parameters, code {measure(trial, code):.3f}")

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day9.lora_parameters`**, and the two above, in a file: `ai-learning lessons start day9`.
# 2. **Where does it matter?** Adapt only `c_attn`, then only `c_fc`, at the same number of parameters.
# 3. **Two at once.** Train a second adapter on prose, and switch between them with `use_adapter`.
#
# ## Quiz

# %%
quiz("day9.zero")
print()
quiz("day9.rank")

# %% [markdown]
# ## Read on
#
# - Hu et al. 2021, *LoRA: Low-Rank Adaptation of Large Language Models*, sections 4 and 7.
# - Kalajdzievski 2023, *rsLoRA*; Liu et al. 2024, *DoRA*.
# - Day 10: the frozen weights in four bits.
