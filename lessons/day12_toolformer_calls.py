# %% [markdown]
# # Day 12 · Toolformer: which calls help?
#
# About 45 minutes; it runs in about a minute. It needs days 4 and 5.
#
# After this lesson you can
#
# - write a call into a text, read it back, and say where a model would put one,
# - compute the loss criterion by hand: what a call saves, and why its *result* must be what saves it,
# - tell from $L^- - L^+$ which calls are right, without anyone having labelled them.
#
# The paper is Schick et al. 2023, *Toolformer*; section numbers below are its own.

# %%
from dataclasses import replace
from pathlib import Path
from random import Random

import torch

from ai_learning.checks import check, picture, quiz, show
from ai_learning.toolformer import Annotated, Calculator, Calendar, Call, Candidate, filter_calls, parse_call
from ai_learning.toolformer.calls import MARKED
from ai_learning.toolformer.filter import weighted_loss
from ai_learning.toolformer.tiny import Tiny, TinyConfig
from ai_learning.viz import plot_lines

_ = torch.manual_seed(12)

# %% [markdown]
# ## 1 · A tool is a function from text to text
#
# What a model writes is input from a stranger. So a calculator parses; it never evaluates, never raises:

# %%
calculator = Calculator()
for expression in ("37 + 24", "3 * (4 + 5)", "1 / 0", "9**9**9", "__import__('os')"):
    print(f"{expression:20} → {calculator(expression)}")
print(Calendar()("2024-02-29"))
assert calculator("37 + 24") == "61" and calculator("9**9**9").startswith("error")

# %% [markdown]
# A call is text too: `<API>`, the call, `→`, the result, `</API>` (section 2).

# %%
call = Call("Calculator", "37 + 24")
print(MARKED.write(call), "and with its result", MARKED.write(call, calculator(call.argument)))
assert parse_call(str(call)) == call
show(parse_call)


# %%
def my_parse_call(text):
    """("Calculator", "3 + 4") of "Calculator(3 + 4)"; None where the text is no call."""
    raise NotImplementedError


check(my_parse_call, "day12.parse_call")

# %% [markdown]
# ## 2 · A model that has seen a few calls
#
# GPT-J learned from examples in its prompt what a call looks like. A tiny model cannot: ours is pre-trained
# on plain text about a made-up world, then shown 50 examples that a person wrote. Day 13 goes on from there.

# %%
tiny = Tiny(TinyConfig(pretrain_documents=26_000))
model = tiny.pretrain()
annotator = tiny.lm(tiny.bootstrap(model))
print(f"{model.n_params():,} parameters")
print({stage: f"{seconds:.0f} CPU seconds" for stage, seconds in tiny.seconds.items()})

# %%
item = tiny.world.item("Calculator", Random(5), held_out=True)
ids = torch.tensor([[*annotator.bos, *annotator.encode(item.text)]])
logits = model(ids)
assert logits.shape == (1, ids.size(1), tiny.tokenizer.vocab_size)
starts = annotator.start_probabilities([ids[0].tolist()], [ids.size(1)])[0]
for token, p in zip(["·", *map(tiny.tokenizer.token, annotator.encode(item.text))], starts, strict=True):
    print(f"{token:>12}  then <API>: {p:.3f}  {'█' * round(40 * p)}")

# %% [markdown]
# Calls are sampled where that probability is above $\tau_s$, at up to $k$ places:


# %%
def call_places(p, tau_s, k):
    """Places i with p[i] > tau_s, in increasing order; of more than k the k with the greatest p."""
    raise NotImplementedError


check(call_places, "day12.call_places")

# %% [markdown]
# ## 3 · The loss criterion
#
# With the weighted loss of the text from place $i$ on, $L_i(z) = -\sum_j w_{j-i} \log p(x_j \mid z, x_{<j})$:
#
# $$L^+ = L_i(e(c, r)) \qquad L^- = \min(L_i(\varepsilon),\ L_i(e(c, \varepsilon)))$$
#
# and a call is kept when $L^- - L^+ \ge \tau_f$.

# %%
show(weighted_loss)


# %%
def loss_weights(n):
    """w_0 … w_{n−1}, a list of floats."""
    raise NotImplementedError


def filter_gain(result, nothing, call):
    """L⁻ − L⁺ of a call, from three lists of losses."""
    raise NotImplementedError


check(loss_weights, "day12.loss_weights")
check(filter_gain, "day12.filter_gain")

# %% [markdown]
# **Predict first:** four calls at the answer's place. The right one; one with a wrong operand; one with a
# wrong operator; and one whose *argument* is already the answer, `Calculator(888)`. Which have
# $L^- - L^+ \ge 1$? And which would have it, if $L^-$ were only the loss with no call at all?


# %%
def variants(item):
    """The four calls, by name."""
    a, sign, b = item.call.argument.split()
    other = {"+": "-", "-": "+", "*": "+"}[sign]
    return {
        "right": item.call.argument,
        "wrong operand": f"{a} {sign} {int(b) + 7}",
        "wrong operator": f"{a} {other} {b}",
        "answer leaked": item.answer,
    }


def judged(items, name):
    """Documents with one candidate each, its losses computed."""
    documents = []
    for item in items:
        position = len(annotator.encode(item.prompt))
        argument = variants(item)[name]
        candidate = Candidate(position, item.start, Call("Calculator", argument), calculator(argument))
        documents.append(Annotated(item.text, (candidate,)))
    return [d.candidates[0] for d in filter_calls(annotator, documents, 1.0, position="inline")]


items = [tiny.world.item("Calculator", Random(f"day 12 {n}"), held_out=True) for n in range(200)]
share = {}
for name in ("right", "wrong operand", "wrong operator", "answer leaked"):
    candidates = judged(items, name)
    blind = [replace(c, loss_call=float("inf")) for c in candidates]
    share[name] = (
        sum(c.kept for c in candidates) / len(candidates),
        sum(c.gain >= 1.0 for c in blind) / len(blind),
    )
    print(f"{name:15} kept {share[name][0]:5.1%}   without the second term {share[name][1]:5.1%}")
assert share["right"][0] > share["wrong operand"][0] + 0.3
assert share["answer leaked"][1] > share["answer leaked"][0] + 0.02

# %% [markdown]
# Nobody said which calls were right. The text did: it goes on with 888, and only a call that says 888 makes
# that likely. But `Calculator(888)` says it too, *before* the calculator has answered. Its result adds
# nothing, and only the second term of $L^-$ sees that, as far as the model reads an answer in an argument.
# This tiny one often does not; a better reader is fooled more without the term, and less with it.
#
# ## 4 · Where to draw the line

# %%
curves = {}
taus = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25]
for name in share:
    gains = [c.gain for c in judged(items, name)]
    curves[name] = [sum(g >= tau for g in gains) / len(gains) for tau in taus]
out = Path("runs/day12")
plot_lines(curves, out / "kept.png", "τ_f, in steps of 0.25", "share kept", "what the filter keeps")
picture(out / "kept.png")

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day12.parse_call`, `day12.call_places`, `day12.loss_weights`, `day12.filter_gain`**, in a file:
#    `ai-learning lessons start day12`.
# 2. **Too early.** Put the right call six tokens before the answer. What is left of its gain, and why?
# 3. **A tool of your own.** Write a `Tool` that reverses a word, or wrap one of LangChain's
#    (`from_langchain`).
#
# ## Quiz

# %%
quiz("day12.minus")
print()
quiz("day12.weights")

# %% [markdown]
# ## Read on
#
# - Schick et al. 2023, sections 2 and 4.1, and appendix A: the prompts and thresholds.
# - The library: `toolformer/filter.py` is the criterion, `toolformer/annotate.py` what comes before it.
# - Day 13: the model teaches itself.
