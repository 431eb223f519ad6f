# %% [markdown]
# # Day 17 · Scale: many processes, one training
#
# About 30 minutes; it runs in one to two, most of them the start of real processes. It needs day 4.
#
# After this lesson you can
#
# - share a batch out over processes without an overlap, and add their gradients up to the big batch's,
# - run the same training on one process and on two, and see the same loss curve,
# - say before a run how much memory it needs, and after it how much of the processor it used.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.device import flops_per_token
from ai_learning.distributed import Team
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.presets import preset
from ai_learning.viz import plot_lines

torch.manual_seed(17)
Path("runs/day17").mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## 1 · One batch, shared out
#
# Data parallelism: every process (*rank*) holds the whole model, reads its own rows of the batch, and the
# gradients are averaged before each step. So that nothing depends on the number of ranks, all of them draw
# the **same** batch and each keeps its rows:

# %%
show(TokenBatches.__call__)

# %%
tokens = np.arange(1000, dtype=np.uint16)
whole = TokenBatches(tokens, block_size=4, batch_size=8, seed=0)
mine = [TokenBatches(tokens, 4, 8, seed=0, rank=r, world_size=2) for r in range(2)]
print("all rows: ", whole(0)[0][:, 0].tolist())
for rank, share in enumerate(mine):
    print(f"rank {rank}:   ", share(0)[0][:, 0].tolist())
assert mine[0](0)[0].shape == (4, 4)


# %%
def rank_rows(batch, rank, world_size):
    """(B, T) → (B / world_size, T): rows r, r + W, r + 2·W, …"""
    raise NotImplementedError


check(rank_rows, "day17.rank_rows")

# %% [markdown]
# ## 2 · Gradients add up
#
# The gradient of a mean is the mean of the gradients, as long as the shares are of one size. That one
# sentence carries both data parallelism (shares at the same time) and gradient accumulation (one after
# another).
#
# **Predict first:** four pieces of 2 rows against one batch of 8: are the gradients equal to the last bit?

# %%
config = GPTConfig(vocab_size=1000, block_size=4, n_layer=2, n_head=2, n_embd=32)
model = GPT(config)
x, y = whole(0)
big = torch.autograd.grad(next_token_loss(model, x, y), list(model.parameters()))
pieces = [slice(i, i + 2) for i in range(0, 8, 2)]
small = [torch.zeros_like(g) for g in big]
for piece in pieces:
    share = torch.autograd.grad(next_token_loss(model, x[piece], y[piece]), list(model.parameters()))
    small = [total + g / len(pieces) for total, g in zip(small, share, strict=True)]
worst = max((a - b).abs().max().item() for a, b in zip(big, small, strict=True))
print(f"largest difference: {worst:.1e}")
assert worst < 1e-6

# %% [markdown]
# Not to the last bit: sums in another order round otherwise. And where pieces are of different sizes, their
# means must be weighted. Write it:


# %%
def accumulate(gradients, counts):
    """The gradient of the mean loss over all tokens, from each piece's gradient and number of tokens."""
    raise NotImplementedError


check(accumulate, "day17.accumulate")

# %% [markdown]
# ## 3 · Two real processes
#
# `torchrun` starts the processes and tells each its rank; they meet over a local socket (gloo on CPUs, NCCL
# on GPUs). The model knows nothing of it: DDP is put around it from outside.

# %%
show(Team.wrap)

# %%
OPTIONS = [
    "--data", "builtin:reference", "--n-layer", "2", "--n-head", "2", "--n-embd", "32", "--block-size", "32",
    "--batch-size", "8", "--grad-accum", "2", "--steps", "12", "--log-every", "1", "--eval-every", "12",
    "--eval-batches", "2", "--save-every", "6", "--warmup", "2", "--device", "cpu",
]  # fmt: skip


def losses(name: str, launcher: list[str]) -> list[float]:
    """Train for a dozen steps in a fresh folder; the loss of each."""
    out = Path("runs/day17") / name
    command = [sys.executable, *launcher, "-m", "ai_learning.cli", "pretrain", *OPTIONS, "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


one = losses("one", [])
two = losses("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])
apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
print(f"{len(one)} steps; first losses {one[0]:.6f} and {two[0]:.6f}; never more than {apart:.1e} apart")
assert len(one) == len(two) == 12 and apart < 1e-5

# %%
plot_lines(
    {"one process": one, "two processes": two},
    Path("runs/day17/curves.png"),
    "step",
    "loss",
    "the same training on one process and on two",
)
picture("runs/day17/curves.png")

# %% [markdown]
# The second run left more than the first: a distributed checkpoint, each rank's share in a file of its own,
# that restores on any number of processes.

# %%
print(sorted(str(p.relative_to("runs/day17/two")) for p in Path("runs/day17/two/checkpoints").rglob("*")))

# %% [markdown]
# ## 4 · Does it fit?
#
# AdamW in float32 keeps four numbers a parameter: weight, gradient, two moments, 16 bytes. DDP keeps them on
# every GPU; FSDP gives each GPU its share and gathers a block when its turn comes. (Activations come on top;
# docs/scale.md has the whole formula, and `python -m benchmarks.plan` the table.)

# %%
print(f"{'model':12} {'parameters':>13} {'DDP, GB a GPU':>15} {'FSDP on 8, GB a GPU':>20}")
for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
    with torch.device("meta"):  # shapes only: nothing is allocated
        n = GPT(preset(name)).n_params()
    print(f"{name:12} {n:13,} {16 * n / 1e9:15.1f} {16 * n / 8 / 1e9:20.1f}")

# %% [markdown]
# ## 5 · How busy is the processor?
#
# *Model FLOPs utilisation*: what the mathematics needs, over what the chip could do in the same time.

# %%
show(flops_per_token)


# %%
def mfu(tokens_per_s, n_params, n_layer, n_embd, block_size, peak_flops):
    """A share from 0 to 1: 6·N + 12·n_layer·n_embd·block_size FLOPs a token."""
    raise NotImplementedError


check(mfu, "day17.mfu")

# %% [markdown]
# ## 6 · Exercises
#
# 1. **Kill a rank.** Start the run with `--steps 5000`, `kill -9` one of the two processes, read the one line
#    that is left, and go on with `--resume` on **one** process.
# 2. **Shards.** Run section 3 with `--parallel fsdp`. Are the losses still the same? What do the files hold?
# 3. **Plan.** How many GPUs of 80 GB does gpt2-xl need under DDP, under FSDP? When does it stop paying?
#
# ## Quiz

# %%
quiz("day17.sharding")

# %% [markdown]
# ## Read on
#
# - Rajbhandari et al. 2020, *ZeRO: Memory Optimizations Toward Training Trillion Parameter Models*.
# - Zhao et al. 2023, *PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel*.
# - Chowdhery et al. 2022, *PaLM*, appendix B: model FLOPs utilisation.
# - docs/scale.md: several machines, restarts, and the whole plan.
