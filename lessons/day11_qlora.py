# %% [markdown]
# # Day 11 · Instructions on four bits: SFT and QLoRA
#
# About 50 minutes; it runs in about a minute and a half. It needs days 9 and 10.
#
# After this lesson you can
#
# - turn questions and answers into batches that learn the answers only,
# - pack examples of unlike lengths without padding and without leaks,
# - fine-tune an adapter on a base in four bits, and merge the two without losing it.

# %%
import copy
import time
from pathlib import Path

import numpy as np
import torch

from ai_learning.adapters import (
    LoRAConfig,
    NF4Linear,
    eject_lora,
    inject_lora,
    prepare_qlora,
    quantize_linears,
)
from ai_learning.adapters.linear import LoRALinearFunction
from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.generate import generate
from ai_learning.loss import next_token_loss
from ai_learning.memory import megabytes, plan_memory
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw
from ai_learning.sft import (
    DocumentMask,
    SFTBatches,
    encode_examples,
    encode_prompt,
    name_examples,
    names_training_text,
    sft_loss,
    sft_metrics,
)
from ai_learning.sft.batches import inputs_and_targets
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.viz import plot_bars, plot_lines

_ = torch.manual_seed(11)

# %% [markdown]
# ## 1 · Learn the answer, not the question
#
# Every Python carries instruction data: what a function does, and what it is called.

# %%
tokenizer = ByteTokenizer()
training, held_out = name_examples()
for example in held_out[:3]:
    print(repr(example.messages[0].content), "→", example.response)
data = encode_examples(training, tokenizer, block_size=128)
print(f"{len(data):,} examples; {data.n_targets / len(data.ids):.0%} of the bytes are answers")

# %% [markdown]
# **Predict first:** the loss counts only where the *target* is part of an answer. Is the answer's first byte
# a target? From which input is it predicted?

# %%
show(inputs_and_targets)


# %%
def answer_targets(ids, is_answer):
    """Inputs and targets (L − 1,); −100 where the target is no answer's."""
    raise NotImplementedError


check(answer_targets, "day11.answer_targets")

# %% [markdown]
# ## 2 · No padding, and no leaks
#
# Examples are of unlike lengths. Padded to the longest, much of the work is for nothing. One after another in
# one row they must not see each other, and each must count its positions from 0.


# %%
def packing_mask(lengths):
    """(N, N) bool: who may see whom when documents of these lengths share a row."""
    raise NotImplementedError


check(packing_mask, "day11.packing_mask")
print(DocumentMask([3, 1, 2]).dense().int())

# %% [markdown]
# The library writes the mask out only in its tests: `DocumentMask` answers the attention kernel itself, one
# document at a time, so that hidden pairs are never computed.

# %%
show(DocumentMask)

# %% [markdown]
# **Predict first:** three layouts of the same 32 examples. Which two figures are the same in all of them, and
# which one is not?

# %%
config = GPTConfig(vocab_size=258, block_size=128, n_layer=3, n_head=4, n_embd=96)
base = GPT(config)
losses = []
for layout in ("pad", "pack", "stream"):
    batch = SFTBatches(data, 32, 128, layout=layout)(0)
    sft_loss(base, batch, layout).backward()
    base.zero_grad()
    started = time.process_time()
    loss = sft_loss(base, batch, layout)
    loss.backward()
    losses.append(loss.item())
    seconds = time.process_time() - started
    print(f"{layout:7} {tuple(batch[0].shape)!s:10} loss {loss.item():.6f}, {seconds * 1000:.0f} ms")
assert batch[0].shape == batch[1].shape and max(losses) - min(losses) < 1e-5

# %% [markdown]
# ## 3 · A base that has not seen the answers
#
# Pre-trained on the standard library without the files that are held out.

# %%
code = np.array(tokenizer.encode("\n".join(names_training_text())[:2_000_000]), dtype=np.int64)
batches = TokenBatches(code, 128, batch_size=8, seed=1)
optimizer = adamw(base.train(), lr=3e-3, weight_decay=0.0)


def pretrain(steps: range) -> None:
    """Some more steps."""
    for step in steps:
        loss = next_token_loss(base, *batches(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after {steps.stop} steps: {loss.item():.2f} nats a byte")


pretrain(range(250))

# %%
pretrain(range(250, 500))

# %% [markdown]
# ## 4 · Four bits, and an adapter on them
#
# Dettmers et al. 2023, equation 5: $Y = X \cdot \mathrm{dequant}(W) + X A B$. The base is frozen in NF4; only
# A and B learn. **Predict first:** what does the loss's gradient do at a frozen layer: stop, or go on?

# %%
show(LoRALinearFunction.backward)


# %%
def gradient_through(grad, W, A, B, s):
    """The gradient by x of y = x Wᵀ + s·(x Aᵀ) Bᵀ."""
    raise NotImplementedError


check(gradient_through, "day11.gradient_through")

# %%
models = {
    "all weights": copy.deepcopy(base),
    "LoRA": inject_lora(copy.deepcopy(base), LoRAConfig(r=8)),
    "QLoRA": prepare_qlora(copy.deepcopy(base), LoRAConfig(r=8)),
}
train = SFTBatches(data, 32, 128, seed=3)
test = SFTBatches(encode_examples(held_out[:400], tokenizer, 128), 64, 128)
short = SFTBatches(data, 2, 128)(0)
for name, model in models.items():
    plan = plan_memory(model, sft_loss, short, tokens=train(0)[0].numel(), targets=400)
    parts = ", ".join(f"{kind} {megabytes(size)}" for kind, size in plan.lines())
    print(f"{name:12} {megabytes(plan.peak)} at most: {parts}")
assert sum(isinstance(m, NF4Linear) for m in models["QLoRA"].modules()) == 4 * 3


# %%
def fit(model: torch.nn.Module, lr: float, steps: int = 100) -> list[float]:
    """Train what is not frozen; the loss of every 10 steps."""
    learner = adamw(model.train(), lr=lr, weight_decay=0.0)
    found = []
    for step in range(steps):
        for group in learner.param_groups:
            group["lr"] = lr * (1 - step / steps)
        loss = sft_loss(model, train(step))
        learner.zero_grad()
        loss.backward()
        learner.step()
        found.append(loss.item())
    model.eval()
    return [sum(found[i : i + 10]) / 10 for i in range(0, steps, 10)]


figures = {"base": sft_metrics(base.eval(), test)}
curves = {"all weights": fit(models["all weights"], 1e-3)}

# %%
curves["LoRA"] = fit(models["LoRA"], 4e-3)

# %%
curves["QLoRA"] = fit(models["QLoRA"], 4e-3)
for name, model in models.items():
    figures[name] = sft_metrics(model, test)
before = figures["base"]["val_loss"]
whole = before - figures["all weights"]["val_loss"]
for name, found in figures.items():
    gain = before - found["val_loss"]
    print(
        f"{name:12} loss {found['val_loss']:.3f}, bytes right {found['val_token_accuracy']:.1%}, "
        f"whole names {found['val_exact']:.1%}, share of the gain of all weights {gain / whole:.0%}"
    )
assert figures["LoRA"]["val_loss"] < before - 0.2 and figures["QLoRA"]["val_loss"] < before - 0.2

# %%
out = Path("runs/day11")
plot_bars(
    {n: {"nats a byte": f["val_loss"]} for n, f in figures.items()}, out / "loss.png", "", "held-out names"
)
plot_lines(curves, out / "curves.png", "10 steps", "nats a byte of the answer", "docstring → name")
picture(out / "loss.png")
picture(out / "curves.png")

# %%
for example in held_out[5:9]:
    prompt = torch.tensor([encode_prompt(example, tokenizer)])
    ids = generate(models["QLoRA"], prompt, 20, temperature=0.0, stop=tokenizer.eos_id)[0, prompt.size(1) :]
    asked = example.messages[0].content.splitlines()[0]
    print(f"{asked}\n    {tokenizer.decode(ids.tolist())}  ({example.response})")

# %% [markdown]
# ## 5 · Merging without losing it
#
# **Predict first:** merge the update, and round the sum to four bits again. What is left of the update?

# %%
merged = eject_lora(copy.deepcopy(models["QLoRA"]), merge=True)
idx = torch.tensor([encode_prompt(held_out[0], tokenizer)])
with torch.no_grad():
    exact = (merged(idx) - models["QLoRA"](idx)).abs().max().item()
again = copy.deepcopy(merged)
quantize_linears(again)
with torch.no_grad():
    rounded = (again(idx) - models["QLoRA"](idx)).abs().max().item()
loss = {
    "QLoRA": figures["QLoRA"]["val_loss"],
    "merged, in fp32": sft_metrics(merged, test)["val_loss"],
    "merged, and quantized again": sft_metrics(again, test)["val_loss"],
}
for name, value in loss.items():
    print(f"{name:28} {value:.4f}")
print(f"logits differ by {exact:.1e} merged in fp32, by {rounded:.1e} quantized again")
assert exact < 1e-3 and abs(loss["QLoRA"] - loss["merged, in fp32"]) < 1e-4
assert rounded > 100 * exact  # part of the update is lost, though the loss may fall by luck

# %% [markdown]
# ## 6 · Exercises
#
# 1. **Your own data:** rows of `{"prompt": …, "response": …}` or of chat messages, then
#    `ai-learning finetune --method qlora --data rows.jsonl`.
# 2. **LoRA+**: let B learn 16 times as fast as A (`lora_plus_groups`). Is the loss lower after 50 steps?
# 3. **Learn the question, too:** set all of `is_target` and compare the held-out loss of the answers.
#
# ## Quiz

# %%
quiz("day11.frozen")
print()
quiz("day11.packing")
print()
quiz("day11.merge")

# %% [markdown]
# ## Read on
#
# - Dettmers et al. 2023, *QLoRA: Efficient Finetuning of Quantized LLMs*, sections 3 and 4.
# - Hayou et al. 2024, *LoRA+*; Krell et al. 2021, *Efficient Sequence Packing without Cross-contamination*.
# - `docs/adapters.md`: the papers' tables beside what was measured here.
