# %% [markdown]
# # Day 14 · Reflexion: learn from a failure by writing yourself a note
#
# About 40 minutes; it runs in about a minute and a half. It needs day 5; days 11 to 13 help.
#
# After this lesson you can
#
# - say what actor, evaluator, self-reflection and the two memories are, and where each is in the code,
# - measure what reflections bring, against no memory and against the last attempt,
# - check with controls that the gain comes from what the reflections say.

# %%
import random
from pathlib import Path

import torch

from ai_learning.checks import check, picture, quiz, show
from ai_learning.reflexion.evaluators import heuristic
from ai_learning.reflexion.graph import build_graph
from ai_learning.reflexion.household import teacher
from ai_learning.reflexion.household.demonstrations import demonstrate
from ai_learning.reflexion.household.experiment import CONDITIONS, summarise
from ai_learning.reflexion.household.runner import run_all
from ai_learning.reflexion.household.text import TOKENIZER
from ai_learning.reflexion.household.training import Schooling, batches, school
from ai_learning.reflexion.household.world import PLACES, HouseholdTask, draw_task, split_pairs
from ai_learning.reflexion.memory import Memory
from ai_learning.viz import plot_lines

_ = torch.manual_seed(14)

# %% [markdown]
# ## 1 · No gradient, only words
#
# Shinn et al. 2023: the weights stay as they are. What a failure teaches is written down, and the next trial
# reads it. Algorithm 1 of the paper, as a graph:

# %%
print(build_graph().get_graph().draw_mermaid())
show(Memory.add)

# %% [markdown]
# The trajectory of a trial is the short-term memory. The reflections are the long-term memory, of which the
# actor sees the last Ω.


# %%
def remember(reflections, new, window):
    """Add a reflection; return (all, the last `window` of them), oldest first."""
    raise NotImplementedError


check(remember, "day14.memory_window")

# %% [markdown]
# An evaluator says when a trial is over. For acting in a world the paper has two rules of thumb:

# %%
show(heuristic)


# %%
def gives_up(turns, most_actions):
    """turns is a list of (action, answer): return "loop", "too many actions" or ""."""
    raise NotImplementedError


check(gives_up, "day14.heuristic")

# %% [markdown]
# ## 2 · A world in which only memory helps
#
# A thing is behind one of fifteen doors. A trial of six actions sees three of them, and says nothing but what
# was there. The thing stays where it is from trial to trial.

# %%
task = HouseholdTask("an example", "heat", "mug", "table", hidden="box2")
house = task.environment()
print(house.reset())
for action in ("go box2", "open box2", "take mug", "heat mug", "go table", "put mug"):
    print(f"> {action:12}", house.step(action))

# %% [markdown]
# **Predict first:** trying at random, how many tasks are solved after six trials? With the last attempt in
# view? With a note of everything seen? (One look in fifteen counts in each trial, three teach.)
#
# A script demonstrates. It reads what the model reads, acts, and after a failure writes a reflection:

# %%
prompt = """now:
Observation: task: put a hot mug on table
go box1
Observation: closed
open box1
Observation: empty"""
print(teacher.act(teacher.Notes(prompt), random.Random(0)))
print(teacher.reflect(prompt, random.Random(0)))

# %%
train, held_out = split_pairs(seed=14)
one = demonstrate(train, random.Random(2))[0]
words = TOKENIZER.decode(one.ids).split()
print(" ".join(word.upper() if learn else word for word, learn in zip(words, one.learn, strict=True)))

# %% [markdown]
# In capitals: what the model learns to write, actions and reflections. All else is the world's, or was
# written before.

# %%
x, y = next(batches(train, batch_size=16, seed=0))
assert x.shape == y.shape and x.shape[0] == 16
print(f"{x.shape[1]} words in a row, of which {(y >= 0).float().mean():.0%} are learnt")

# %% [markdown]
# ## 3 · One model, two roles
#
# A GPT with 0.16 million parameters learns both. (`ai-learning reflexion demo` trains it longer.)

# %%
losses = []
model = school(train, Schooling(steps=600), seed=14, listener=lambda row: losses.append(row["loss"]))
print(f"{model.n_params():,} parameters, loss {losses[0]:.2f} → {sum(losses[-20:]) / 20:.2f}")

# %% [markdown]
# From here on nothing is scripted: the model acts, and the model reflects, on tasks whose pair of family and
# thing it has never seen.

# %%
rng = random.Random(0)
tasks = [draw_task(held_out, rng, number) for number in range(100)]
curves, runs = {}, {}
for name in ("none", "last attempt", "reflexion, Ω = 3", "shuffled reflections"):
    runs[name] = run_all(model, tasks, CONDITIONS[name], seed=14)
    outcome = summarise(runs[name], CONDITIONS[name].trials)
    curves[name] = outcome.curve
    truth = "" if outcome.truth is None else f"   {outcome.truth:.0%} of its claims are true"
    print(f"{name:22}", "  ".join(f"{share:4.0%}" for share in outcome.curve), truth)

out = Path("runs/day14")
plot_lines(curves, out / "success.png", "trial", "share solved", "success by trial, held-out tasks", first=1)
picture(out / "success.png")
assert curves["reflexion, Ω = 3"][-1] > curves["none"][-1] + 0.2
assert curves["shuffled reflections"][-1] < curves["none"][-1] + 0.1

# %% [markdown]
# What did it write to itself?

# %%
run = max(runs["reflexion, Ω = 3"], key=lambda run: len(run.reflections))
print(f"{run.trials[0][0].observation} — it is in {run.task.hidden}")
for number, steps in enumerate(run.trials, start=1):
    print(f"\ntrial {number}:", "; ".join(f"{step.action} → {step.observation}" for step in steps[1:]))
    if number <= len(run.reflections):
        print("  note:", run.reflections[number - 1])

# %% [markdown]
# ## 4 · Where does the gain come from?
#
# Given the reflection on another task, the model trusts it all the same, and the gain is gone: it was in what
# the words say. The last attempt is a memory too, but a short one: three places, and no more.
#
# **Predict first:** what happens to "last attempt" in a house with six places? And to "none"?

# %%
looks, places = 3, len(PLACES)
for n in (6, places):
    seen = min(1.0, (5 * looks + 1) / n)
    print(f"{n:2d} places: all notes kept, at best {seen:.0%}; no memory {1 - (1 - 1 / n) ** 6:.0%}")

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day14.memory_window`** and **`day14.heuristic`**, above, in a file: `ai-learning lessons start day14`.
# 2. **Lost words.** Run the condition "empty reflections". Which other curve must it equal, and why exactly?
# 3. **A liar.** Change each "no … in A B C" to leave one place out. How many truths does the gain need?
# 4. **A real model.** `ai-learning reflexion run --task programs --model …`: programs, tests, and a sandbox.
#
# ## Quiz

# %%
quiz("day14.weights")
print()
quiz("day14.shuffled")

# %% [markdown]
# ## Read on
#
# - Shinn et al. 2023, *Reflexion: Language Agents with Verbal Reinforcement Learning*: algorithm 1 is
#   `reflexion/graph.py`, the window Ω `Memory.shown`, the rules of section 4.1 `heuristic`.
# - Yao et al. 2023, *ReAct*: acting and thinking in turns. Madaan et al. 2023, *Self-Refine*.
# - Huang et al. 2024, *Large Language Models Cannot Self-Correct Reasoning Yet*: without feedback from
#   outside there is often nothing to reflect on.
