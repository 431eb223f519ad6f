# %% [markdown]
# # Day 13 · Toolformer: a model teaches itself to use tools
#
# About 45 minutes; it runs in about two minutes. It needs day 12.
#
# After this lesson you can
#
# - take a model from plain text to one that calls a calculator, a calendar and a base of facts,
# - put calls into a text and decode with them,
# - make the paper's comparison, and say which part of the gain is the tools'.
#
# The full size is `ai-learning toolformer demo`; here fewer documents are read.

# %%
from pathlib import Path

import torch

from ai_learning.checks import check, picture, quiz, show
from ai_learning.toolformer import generate_with_tools, interleave
from ai_learning.toolformer.tiny import Tiny, TinyConfig
from ai_learning.toolformer.tiny.experiment import balanced
from ai_learning.toolformer.tiny.measure import accuracy, agreement
from ai_learning.toolformer.tiny.report import DEPARTURES, accuracy_rows
from ai_learning.viz import plot_lines

_ = torch.manual_seed(13)

# %% [markdown]
# ## 1 · M: a model that has read plain text
#
# A third of the documents says something that a small model cannot know.

# %%
history = {"pre-training": []}


def listener(stage, share, figures):
    """Keeps the loss of pre-training, says when a stage is done."""
    if stage == "pre-training":
        history[stage].append(float(figures.split()[1]))
    if share >= 1:
        print(f"{stage}: {figures}")


tiny = Tiny(TinyConfig(pretrain_documents=26_000, tune_epochs=6, test_items=50), listener)
for kind in ("Calculator", "Calendar", "QA", "plain"):
    print(f"{kind:10}", next(i.text for i in tiny.world.items(100, "look", 0.5) if i.kind == kind))
m = tiny.pretrain()
out = Path("runs/day13")
plot_lines(history, out / "loss.png", "10 steps", "nats a token", "M reads")
picture(out / "loss.png")

# %% [markdown]
# ## 2 · A call put into a text
#
# $x^* = x_{1:i-1},\ e(c_i, r_i),\ x_{i:n}$ (section 2).

# %%
show(interleave)


# %%
def best_calls(calls, tau):
    """The calls that go into the text: at most one at each place, in order of place."""
    raise NotImplementedError


def my_interleave(ids, calls):
    """x*: the ids of a text with the ids of its calls between them."""
    raise NotImplementedError


check(best_calls, "day13.best_calls")
check(my_interleave, "day13.interleave")

# %% [markdown]
# ## 3 · Sample, execute, filter
#
# The annotator is M after 50 hand-written examples, where the paper's has a prompt. It is often wrong. That
# is one of the places where a reproduction this small leaves the paper; here are all of them:

# %%
for departure in DEPARTURES:
    print("-", departure)

# %% [markdown]
#
# **Predict first:** of all the calls that it writes, how many are right? And of those that the filter keeps?

# %%
annotator = tiny.bootstrap(m)
items, documents = tiny.annotate(annotator, 0)
total = sum(agreement(items, documents).values(), start=next(iter(agreement([], []).values())))
print(f"{total.sampled} calls sampled, {total.right / total.sampled:.0%} of them right")
print(f"{total.kept} kept, {total.precision:.0%} of them right")
assert total.precision > total.right / total.sampled
for document in [d for d in documents if d.kept][:6]:
    print("  ", interleave(document))

# %% [markdown]
# ## 4 · Fine-tune M on C*, and decode with tools


# %%
def decode(step, tool, ids, length):
    """Continue ids greedily with at most one call."""
    raise NotImplementedError


check(decode, "day13.decode")

# %%
corpus = balanced([document for document in documents if document.kept])
scores, toolformer = tiny.compare(m, corpus)
header, rows = accuracy_rows(scores)
for row in [header, *rows]:
    print("".join(f"{cell:>24}" if n else f"{cell:24}" for n, cell in enumerate(row)))
assert scores["Toolformer"].mean > scores["M + C"].mean + 0.2
assert scores["M"].mean < 0.1
assert scores["Toolformer"].perplexity < 1.1 * scores["M + C"].perplexity

# %% [markdown]
# M + C has read the same documents, without the calls: what it lacks is the tools, not the text. And
# Toolformer with its calls disabled knows no more than M + C.

# %%
for text in accuracy(tiny.lm(toolformer), tiny.test_items()[::20], tiny.tools)[1]:
    print(text)
answer = generate_with_tools(
    tiny.lm(m), "Anna had 37 pears and found 24 more. Now Anna has", tiny.tools, max_new_tokens=3
)
print("M, offered the tools:", answer.annotated)
assert not any(use.result for use in answer.uses)
logits = m(torch.tensor([tiny.tokenizer.encode("Anna had 37 pears")]))
assert logits.shape == (1, 4, tiny.tokenizer.vocab_size)

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day13.best_calls`, `day13.interleave`, `day13.decode`**, in a file: `ai-learning lessons start day13`.
# 2. **No filter.** Set every `tau_f` to −1000 and run again: what becomes of accuracy, and of the perplexity?
# 3. **Too small.** With `n_embd=32`, do tools still help? (The paper's figure 4: they begin to at 775 million
#    parameters.)
#
# ## Quiz

# %%
quiz("day13.disabled")
print()
quiz("day13.mixed")

# %% [markdown]
# ## Read on
#
# - Schick et al. 2023, sections 4.2 to 4.4: the comparison, perplexity, and scaling.
# - Parisi et al. 2022, *TALM*; Yao et al. 2023, *ReAct*: other ways to a model that acts.
# - `benchmarks/RESULTS_toolformer.md`: three seeds at full size, and what happens without the filter.
