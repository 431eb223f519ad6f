# %% [markdown]
# # Day 16 · Byte-pair encoding, the tokenizer of GPT-2
#
# About 50 minutes; it runs in under a minute. It needs nothing but this library.
#
# After this lesson you can
#
# - write counting, merging, training and encoding, and have each checked,
# - say why text is split before merging, and why encoding follows the order of learning,
# - train a tokenizer on real text and judge it by numbers.

# %%
import time
from pathlib import Path

from matplotlib.figure import Figure

from ai_learning.checks import check, picture, quiz, show
from ai_learning.text import read_text
from ai_learning.tokenizers import BPETokenizer, bpe
from ai_learning.tokenizers.render import merge_steps

# %% [markdown]
# ## 1 · The algorithm
#
# Give the most frequent pair of neighbours a symbol of its own; again, and again (Sennrich et al. 2016,
# section 3.2). Over bytes, as in GPT-2, nothing is ever unknown. Wikipedia's example:

# %%
merges = bpe.train([(list(b"aaabdaaabac"), 1)], 3)
print(merges, "→", bpe.encode(b"aaabdaaabac", merges))
assert merges == [(97, 97), (97, 98), (256, 257)]
show(bpe.train)

# %% [markdown]
# Four small functions. Write them; each check says what is wrong:


# %%
def count_pairs(words):
    """(ids, how often) pairs → dict (left, right) → count."""
    raise NotImplementedError


check(count_pairs, "day16.count_pairs")


# %%
def merge(ids, pair, new_id):
    """A new list in which every pair of neighbours is replaced by new_id, from left to right."""
    raise NotImplementedError


check(merge, "day16.merge")


# %%
def encode(word, merges):
    """Ids of one word (bytes): while any learned pair is there, merge the one learned first."""
    raise NotImplementedError


check(encode, "day16.encode")

# %% [markdown]
# ## 2 · Why text is split first
#
# **Predict first:** without a split pattern, what will the longest tokens of English prose be?

# %%
text = read_text("builtin:reference")
split = BPETokenizer.train([text], 1000)
whole = BPETokenizer.train([text], 1000, pattern=None)
for name, tokenizer in (("GPT-2's pattern", split), ("no pattern", whole)):
    longest = sorted(tokenizer.vocab.values(), key=len, reverse=True)[1:7]
    print(f"{name:16}", [t.decode("utf-8", "replace") for t in longest])
assert any(b" " in token.strip() for token in whole.vocab.values())

# %% [markdown]
# Whole phrases, glued together: they compress this text and no other. With the pattern a merge stays inside
# a word.
#
# ## 3 · Read a tokenizer

# %%
sample = "The tokenizer tokenizes untokenizable tokens."
ids = split.encode(sample)
print([split.decode([i]) for i in ids])
assert split.decode(ids) == sample
for word in merge_steps(split, " statement"):
    for step in word:
        print(step)

# %% [markdown]
# **Predict first:** how many bytes does a token hold on average, with vocabularies of 300, 1000 and 4000?

# %%
held_out, training = text[:40_000], text[40_000:]
sizes, rates = (300, 500, 1000, 2000, 4000), []
for size in sizes:
    tokenizer = BPETokenizer.train([training], size)
    rates.append(len(held_out.encode()) / len(tokenizer.encode(held_out)))
    print(f"{size:5d} ids: {rates[-1]:.2f} bytes a token")
assert rates == sorted(rates)
figure = Figure(figsize=(5, 2.8), layout="constrained")
ax = figure.subplots()
ax.semilogx(sizes, rates, "o-")
ax.set_xlabel("vocabulary")
ax.set_ylabel("bytes a token, held out")
out = Path("runs/day16")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "compression.png", dpi=100)
picture(out / "compression.png")

# %% [markdown]
# Each doubling brings less. And the text it was trained on matters:

# %%
code = read_text("builtin:stdlib")[:200_000]
on_code = BPETokenizer.train([code], 1000)
for name, tokenizer in (("trained on prose", split), ("trained on code", on_code)):
    print(f"{name}: code at {len(code.encode()) / len(tokenizer.encode(code)):.2f} bytes a token")
assert len(on_code.encode(code)) < len(split.encode(code))

# %% [markdown]
# ## 4 · The same ids, faster
#
# `bpe.py` counts everything anew for every merge. The library's trainer updates only what a merge has
# changed, and gives the same merges; the tests hold the two together. **Predict first:** how many times
# faster?

# %%
words = [(list(word.encode()), 1) for word in text[:20_000].split(" ")]
began = time.perf_counter()
slow = bpe.train(words, 100)
slow_seconds = time.perf_counter() - began
began = time.perf_counter()
BPETokenizer.train([text[:20_000]], 356)
fast_seconds = time.perf_counter() - began
print(f"{slow_seconds:.2f} s and {fast_seconds:.3f} s for 100 merges of 20,000 characters")
assert len(slow) == 100
shape = (len(split.vocab), len(split.merges))
assert shape == (
    split.vocab_size,
    split.vocab_size - 256 - 1,
)  # .shape of a tokenizer: bytes, merges, one special

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day16.train`**, and the three above, in a file: `ai-learning lessons start day16`.
# 2. **A tie.** Two pairs are equally frequent. Whose rule does the library follow, and what would change
#    with another?
# 3. **Your language:** train on text of yours, and compare bytes a token with GPT-2's vocabulary on the
#    same text.
#
# ## Quiz

# %%
quiz("day16.first")
print()
quiz("day16.split")

# %% [markdown]
# ## Read on
#
# - Sennrich, Haddow, Birch 2016, *Neural Machine Translation of Rare Words with Subword Units*.
# - Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, section 2.2: bytes.
# - Provilkov et al. 2020, *BPE-Dropout*: not always the same way to cut a word.
