# %% [markdown]
# # Day 4 · Training: loss, optimizer, schedule, and a run that survives
#
# About 50 minutes; it runs in about a minute. It needs day 2.
#
# After this lesson you can
#
# - write the loss, one step of AdamW, clipping and the schedule, and have them checked,
# - say why the loss need not hold all logits at once, and what that saves,
# - stop a run, go on, and get the same numbers to the last bit.

# %%
import json
import math
import signal
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.loss import linear_cross_entropy, next_token_loss, reference_next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw, lr_factor, parameter_groups
from ai_learning.text import read_text
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.train import Interrupted, TrainConfig, train
from ai_learning.viz import plot_loss

_ = torch.manual_seed(4)

# %% [markdown]
# ## 1 · The loss
#
# $$\mathcal{L} = -\frac{1}{N}\sum_i \log P(u_i \mid u_1 \dots u_{i-1})$$
#
# (GPT-1 paper, equation 1, as a mean.) In nats: a model that spreads evenly over V tokens pays ln V.


# %%
def cross_entropy(logits, targets):
    """(B, T, V) logits, (B, T) ids with −100 for "does not count" → scalar mean in nats."""
    raise NotImplementedError


check(cross_entropy, "day4.cross_entropy")

# %% [markdown]
# ### All logits at once, or a chunk at a time
#
# 12 rows of 1024 tokens over 50,257 ids are 617 million logits, 2.5 GB in float32, and as much again for
# their gradient. The loss of a position needs only its own: compute a chunk, its loss and its gradient, keep
# the gradients of the hidden states, throw the logits away.

# %%
show(reference_next_token_loss)
show(linear_cross_entropy)

# %%
hidden = torch.randn(4, 64, 32, requires_grad=True)
weight = torch.randn(5000, 32, requires_grad=True)
targets = torch.randint(0, 5000, (4, 64))
chunked = linear_cross_entropy(hidden, weight, targets)
whole = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())
a = torch.autograd.grad(chunked, (hidden, weight))
b = torch.autograd.grad(whole, (hidden, weight))
print("loss differs by", (chunked - whole).abs().item())
print("gradients by   ", max((x - y).abs().max().item() for x, y in zip(a, b, strict=True)))
assert torch.allclose(chunked, whole, atol=1e-5)

# %% [markdown]
# ## 2 · The step
#
# AdamW keeps a mean of each gradient and of its square. **Predict first:** one gradient is 0.001, another
# 1000. How far does each parameter move in the very first step, with a learning rate of 0.1?

# %%
p = torch.nn.Parameter(torch.zeros(2))
p.grad = torch.tensor([1e-3, 1e3])
torch.optim.AdamW([p], lr=0.1, weight_decay=0.0).step()
print(p.data.tolist())
assert torch.allclose(p.data.abs(), torch.tensor([0.1, 0.1]), atol=1e-4)

# %% [markdown]
# As far as each other: the step is the gradient over its own size. Write it:


# %%
def adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay):
    """New (p, m, v) after one step of AdamW; step counts from 1."""
    raise NotImplementedError


check(adamw_step, "day4.adamw_step")

# %%
show(parameter_groups)
show(adamw)

# %% [markdown]
# ## 3 · The learning rate
#
# Small at first (the moments know nothing yet), then high, then down:

# %%
steps = range(400)
rows = {
    name: [lr_factor(s, 400, name, warmup=40, floor=0.1) for s in steps]
    for name in ("cosine", "wsd", "linear")
}
from matplotlib.figure import Figure

figure = Figure(figsize=(6, 3), layout="constrained")
ax = figure.subplots()
for name, values in rows.items():
    ax.plot(steps, values, label=name)
ax.set_xlabel("step")
ax.set_ylabel("share of the peak rate")
ax.legend()
out = Path("runs/day4")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "schedules.png", dpi=100)
picture(out / "schedules.png")
assert max(rows["cosine"]) == 1.0 and abs(rows["cosine"][-1] - 0.1) < 1e-3


# %%
def cosine_schedule(step, total, warmup, floor):
    """(step + 1) / warmup at first, then half a cosine from 1 down to floor."""
    raise NotImplementedError


check(cosine_schedule, "day4.cosine_schedule")

# %% [markdown]
# ## 4 · The loop
#
# `train` is what `ai-learning pretrain` runs: metrics to a file, checkpoints, evaluation, Ctrl-C that saves.
# The batch of a step depends on the step alone, so a run can go on where it stopped.

# %%
tokenizer = ByteTokenizer()
tokens = np.array(tokenizer.encode(read_text("builtin:reference")), dtype=np.int64)
config = GPTConfig(vocab_size=258, block_size=64, n_layer=2, n_head=4, n_embd=64)
batches = TokenBatches(tokens[20_000:], config.block_size, batch_size=16, seed=1)
held_out = TokenBatches(tokens[:20_000], config.block_size, batch_size=64, seed=0)


def run(folder: Path, stop_after: int | None = None, resume: bool = False) -> GPT:
    """Train for 400 steps, or as if Ctrl-C came after ``stop_after``."""
    torch.manual_seed(7)
    model = GPT(config)

    def press_ctrl_c(row: dict) -> None:
        if row["step"] == stop_after:
            signal.raise_signal(signal.SIGINT)

    train(
        model,
        lambda m, batch: next_token_loss(m, *batch),
        batches,
        TrainConfig(steps=400, lr=3e-3, warmup=40, eval_every=100, save_every=100, device="cpu"),
        folder,
        evaluate=lambda m: {"val_loss": float(next_token_loss(m, *held_out(0)))},
        listener=press_ctrl_c,
        resume=resume,
    )
    return model


model = run(out / "run")
metrics = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
plot_loss(metrics, out / "loss.png", "400 steps")
picture(out / "loss.png")
last = [row["val_loss"] for row in metrics if "val_loss" in row][-1]
print(f"held out: {last:.3f} nats a byte, {last / math.log(2):.2f} bits a byte")
assert last < 2.7

# %% [markdown]
# **Predict first:** train the same again, but press Ctrl-C after 250 steps and go on. Are the weights equal
# to
# 1e-6, or equal?

# %%
try:
    run(out / "again", stop_after=250)
except Interrupted as stop:
    print(stop)
again = run(out / "again", resume=True)
assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
print("equal to the last bit")

# %% [markdown]
# ## 5 · Gradient accumulation
#
# A batch too large for memory is cut into parts whose gradients add up. **Predict first:** what goes wrong if
# each part's loss is not divided by the number of parts?

# %%
x, y = batches(0)
assert x.shape == y.shape == (16, config.block_size)
whole = torch.autograd.grad(next_token_loss(model, x, y), list(model.parameters()))
summed = [torch.zeros_like(g) for g in whole]
for part in range(4):
    piece = slice(4 * part, 4 * part + 4)
    grads = torch.autograd.grad(next_token_loss(model, x[piece], y[piece]) / 4, list(model.parameters()))
    for total, grad in zip(summed, grads, strict=True):
        total += grad
worst = max((a - b).abs().max().item() for a, b in zip(whole, summed, strict=True))
print(f"largest difference {worst:.1e}")
assert worst < 1e-5

# %% [markdown]
# ## 6 · Exercises
#
# `ai-learning lessons start day4` writes a file with today's four: loss, AdamW, clipping, schedule.
#
# 1. **No warm-up**, and a rate of 0.01: what does the loss curve look like in the first 50 steps?
# 2. **Clip harder.** `grad_clip=0.1` at the same rate. Why does it hurt so little? (Think of what Adam
#    divides by.)
# 3. **Kill it.** Start `ai-learning pretrain --out runs/mine --steps 2000`, press Ctrl-C, then
#    `--resume`. Compare `metrics.jsonl` with that of an uninterrupted run.
#
# ## Quiz

# %%
quiz("day4.decay")
print()
quiz("day4.accumulation")

# %% [markdown]
# ## Read on
#
# - Kingma, Ba 2015, *Adam*; Loshchilov, Hutter 2019, *Decoupled Weight Decay Regularization*.
# - Pascanu et al. 2013, *On the difficulty of training recurrent neural networks*: clipping.
# - Hu et al. 2024, *MiniCPM*, section 4: the schedule that can be stopped at any time.
# - Day 5: using the model.
