# %% [markdown]
# # Day 8 · A head for every task: GPT-1's fine-tuning
#
# About 40 minutes; it runs in about a minute. It needs day 2 and day 4.
#
# After this lesson you can
#
# - turn four kinds of task into sequences that one language model reads,
# - read a class off the state of a single token, without being fooled by padding,
# - say what pre-training is worth, and what the language model's loss adds.

# %%
import copy
from pathlib import Path

import numpy as np
import torch

from ai_learning.batches import TokenBatches
from ai_learning.checks import check, picture, quiz, show
from ai_learning.finetune import TaskBatches, package_task, task_loss, task_metrics
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.model.heads import TaskConfig, TaskModel, TaskTokens, task_sequences, with_extra_tokens
from ai_learning.optim import Together, adamw, muon_with_adamw
from ai_learning.text import read_texts
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.viz import plot_bars, plot_lines

_ = torch.manual_seed(8)

# %% [markdown]
# ## 1 · One model for four kinds of task
#
# Before 2018 every task had a network of its own. Radford et al. 2018, section 3.3, leave the model alone and
# write the task into its input, with three new tokens: *start*, *delimiter*, *extract*.

# %%
show(task_sequences)


# %%
START, DELIMITER, EXTRACT = 100, 101, 102


def task_inputs(task, parts):
    """The sequences of ids that one example becomes."""
    raise NotImplementedError


check(task_inputs, "day8.task_inputs")

# %% [markdown]
# **Predict first:** similarity has no first and no second text. How many sequences is one example, and in
# which order?

# %%
tokens = TaskTokens(START, DELIMITER, EXTRACT)
for task, parts in (
    ("classification", [[1, 2, 3]]),
    ("entailment", [[1, 2], [3]]),
    ("similarity", [[1, 2], [3]]),
    ("multiple_choice", [[1, 2], [3], [4], [5]]),
):
    print(f"{task:16}", task_sequences(task, parts, tokens, block_size=16))
assert len(task_sequences("similarity", [[1, 2], [3]], tokens, 16)) == 2

# %% [markdown]
# ## 2 · The state at one token
#
# The head reads the hidden state of the *extract* token: the only one that has seen everything.

# %%
show(TaskModel.forward)


# %%
def extract_scores(hidden, idx, token, weight):
    """(B, T, C) states and (B, T) ids → (B, n_classes) scores from the state at ``token``."""
    raise NotImplementedError


check(extract_scores, "day8.extract")

# %% [markdown]
# **Predict first:** rows are padded at the right, and no mask hides the padding. Why does it not matter?

# %%
small = GPT(GPTConfig(vocab_size=103, block_size=16, n_layer=2, n_head=2, n_embd=16, norm_first=False)).eval()
row = torch.tensor([[100, 1, 2, 3, 102]])
padded = torch.tensor([[100, 1, 2, 3, 102, 7, 7, 7]])
with torch.no_grad():
    short, long = small.hidden(row), small.hidden(padded)
assert short.shape == (1, 5, 16) and torch.allclose(short, long[:, :5], atol=1e-6)
print(
    "the extract token's state, with and without padding, differs by",
    (short - long[:, :5]).abs().max().item(),
)

# %% [markdown]
# ## 3 · First half: pre-training
#
# Text without labels is plentiful: the standard library's source (without the snippets held out below).

# %%
tokenizer = ByteTokenizer()
source = "\n".join(read_texts("builtin:stdlib-train"))[:2_000_000]
code = np.array(tokenizer.encode(source), dtype=np.int64)
config = GPTConfig(vocab_size=258, block_size=128, n_layer=3, n_head=4, n_embd=96)
pretrained = GPT(config)
batches = TokenBatches(code, 128, batch_size=8, seed=1)


def pretrain(steps: range) -> list[float]:
    """Some more steps; the mean loss of every 25."""
    losses = []
    for step in steps:
        loss = next_token_loss(pretrained, *batches(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [sum(losses[i : i + 25]) / 25 for i in range(0, len(losses), 25)]


optimizer = Together(muon_with_adamw(pretrained, lr=4e-3, muon_lr=0.02, weight_decay=0.0))
curve = pretrain(range(250))

# %%
curve += pretrain(range(250, 500))
print(f"pre-training loss: {curve[0]:.2f} → {curve[-1]:.2f} nats a byte")
assert curve[-1] < curve[0] - 0.5

# %% [markdown]
# ## 4 · Second half: which package is this snippet from?
#
# Eight packages, 120 characters, a few hundred labelled examples.

# %%
data = package_task()
data = type(data)(data.task, data.train[:800], data.held_out[:320], data.classes)
print(repr(data.train[0].parts[0][:70]), "→", data.classes[data.train[0].label])


def task_model(gpt: GPT) -> tuple[TaskModel, TaskTokens]:
    """The GPT with room for three more tokens, and a head of eight scores."""
    extended = with_extra_tokens(gpt)
    return TaskModel(TaskConfig(extended.config, data.task, len(data.classes)), extended), TaskTokens.after(
        258
    )


def finetune(gpt: GPT, lm_coef: float, steps: int = 100) -> tuple[dict[str, float], list[float]]:
    """Held-out figures after fine-tuning a copy, and the loss of every 10 steps."""
    torch.manual_seed(8)
    model, extra = task_model(copy.deepcopy(gpt))
    train = TaskBatches(data.train, data.task, tokenizer, extra, 128, batch_size=16, seed=2)
    test = TaskBatches(data.held_out, data.task, tokenizer, extra, 128, batch_size=32)
    learner = adamw(model.train(), lr=2e-3, weight_decay=0.01)
    losses = []
    for step in range(steps):
        loss = task_loss(model, train(step), lm_coef)
        learner.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        learner.step()
        losses.append(loss.item())
    return task_metrics(model.eval(), test), [sum(losses[i : i + 10]) / 10 for i in range(0, steps, 10)]


# %% [markdown]
# **Predict first:** one answer in eight is right by chance. How far does a pre-trained model get with 800
# examples, and how far the same network from random weights?

# %%
results = {"pre-trained": finetune(pretrained, lm_coef=0.5)}
print("pre-trained", results["pre-trained"][0])

# %%
results["from scratch"] = finetune(GPT(config), lm_coef=0.5)
print("from scratch", results["from scratch"][0])
assert results["pre-trained"][0]["val_accuracy"] > results["from scratch"][0]["val_accuracy"]
assert results["pre-trained"][0]["val_accuracy"] > 1.3 * data.majority_accuracy()

# %% [markdown]
# ## 5 · Half of the language model's loss
#
# $L_3 = L_2 + \lambda L_1$ (equation 5): while it learns the task, the model goes on predicting the text.


# %%
def combined_loss(scores, labels, token_losses, mask, lm_coef):
    """The task's cross-entropy, and λ times the language model's loss."""
    raise NotImplementedError


check(combined_loss, "day8.combined_loss")
show(task_loss)

# %%
results["pre-trained, λ = 0"] = finetune(pretrained, lm_coef=0.0)
out = Path("runs/day8")
shown = {name: {"held-out accuracy": found["val_accuracy"]} for name, (found, _) in results.items()}
shown["chance"] = {"held-out accuracy": data.majority_accuracy()}
plot_bars(shown, out / "accuracy.png", "", "which package is this snippet from?")
plot_lines(
    {n: c for n, (_, c) in results.items()}, out / "loss.png", "10 steps", "training loss", "fine-tuning"
)
picture(out / "accuracy.png")
picture(out / "loss.png")

# %% [markdown]
# The paper found that λ helps on large data sets and not on small ones (section 5, ablations): one run as
# small as this one does not decide it. Its own figures, for a model 150 times larger, on nine of its tasks:
#
# | | MNLI-m | SNLI | SciTail | QNLI | RTE | RACE | StoryCloze | CoLA | SST-2 |
# |---|---|---|---|---|---|---|---|---|---|
# | GPT-1 | 82.1 | 89.9 | 88.3 | 88.1 | 56.0 | 59.0 | 86.5 | 45.4 | 91.3 |
#
# ## 6 · Exercises
#
# 1. **Your own task:** rows of `{"text": …, "label": …}` in a file, then
#    `ai-learning finetune --method head --data rows.jsonl`.
# 2. **Freeze the model** and train the head alone. How much of the gain is left?
# 3. **Few examples:** 50 instead of 800, with and without pre-training.
#
# ## Quiz

# %%
quiz("day8.lm")

# %% [markdown]
# ## Read on
#
# - Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*, sections 3.2 to 5.
# - Howard & Ruder 2018, *Universal Language Model Fine-tuning* (ULMFiT).
# - Day 9: the same with a hundredth of the weights. Day 11: instructions in place of classes.
