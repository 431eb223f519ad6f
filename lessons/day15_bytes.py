# %% [markdown]
# # Day 15 · Bytes: the tokenizer that can say everything
#
# About 20 minutes; it runs in seconds. It needs nothing but this library.
#
# After this lesson you can
#
# - say what UTF-8 does to é, 東 and 🙂, and what a byte model sees of them,
# - decode whatever a model produces without ever failing,
# - show text as it comes, and never half a character.

# %%
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ai_learning.checks import check, picture, quiz, show
from ai_learning.model import GPT
from ai_learning.presets import preset
from ai_learning.text import read_text
from ai_learning.tokenizers import ByteTokenizer

# %% [markdown]
# ## 1 · 256 ids are enough
#
# A computer keeps text as bytes already. UTF-8 gives ASCII one byte and everything else two to four:

# %%
show(ByteTokenizer)
tokenizer = ByteTokenizer()
for text in ("a", "é", "東", "🙂", "Öl"):
    print(f"{text!r}: {tokenizer.encode(text)}")
assert tokenizer.decode(tokenizer.encode("naïve 🙂")) == "naïve 🙂"

# %% [markdown]
# **Predict first:** a sentence in English, Russian and Japanese. Which takes the most ids a character?

# %%
sentences = {
    "English": "Good morning",
    "Russian": "Доброе утро",
    "Greek": "Καλημέρα",
    "Japanese": "おはよう",
    "emoji": "🙂👍",
}
per_character = {name: len(tokenizer.encode(text)) / len(text) for name, text in sentences.items()}
print({name: round(n, 2) for name, n in per_character.items()})
figure = Figure(figsize=(5, 2.6), layout="constrained")
ax = figure.subplots()
ax.bar(list(per_character), list(per_character.values()))
ax.set_ylabel("ids a character")
out = Path("runs/day15")
out.mkdir(parents=True, exist_ok=True)
figure.savefig(out / "lengths.png", dpi=100)
picture(out / "lengths.png")
assert (
    per_character["English"] < per_character["Russian"] < per_character["Japanese"] < per_character["emoji"]
)

# %% [markdown]
# So a byte model's context of 128 holds 128 English letters and 42 Japanese ones. That unfairness is one
# reason for day 16.


# %%
def encode(text):
    """UTF-8 bytes of a text as ids."""
    raise NotImplementedError


check(encode, "day15.encode")

# %% [markdown]
# ## 2 · A model may say anything
#
# An untrained model draws from all 258 ids. **Predict first:** what share of its bytes is text?

# %%
torch.manual_seed(15)
model = GPT(preset("gpt1-tiny"))
from ai_learning.generate import generate

ids = generate(model, torch.tensor([[256]]), 100, seed=1)
assert ids.shape == (1, 101)
text = tokenizer.decode(ids[0].tolist())
print(repr(text[:60]))
print(f"{len(text.encode())} of 100 bytes survived decoding")

# %% [markdown]
# Nothing was raised: bytes that are no UTF-8 vanish, and the two special ids, 256 (end) and 257 (classify),
# stand for nothing.


# %%
def decode(ids):
    """Text of any ids; what is not UTF-8 vanishes; never raises."""
    raise NotImplementedError


check(decode, "day15.decode")

# %% [markdown]
# ## 3 · Streaming
#
# Tokens come one by one, and 🙂 is four of them. **Predict first:** what does decoding each byte alone show?

# %%
smile = "🙂".encode()
print([smile[:n].decode("utf-8", "replace") for n in range(1, 5)])


# %%
def stream(chunks):
    """What can be shown after each chunk of bytes, and at the end."""
    raise NotImplementedError


check(stream, "day15.stream")

# %% [markdown]
# ## 4 · Four corners of the same text
#
# What is in a text of half a million bytes?

# %%
prose = read_text("builtin:reference")
counts = torch.tensor(tokenizer.encode(prose)).bincount(minlength=258)
top = counts.topk(8)
print([(tokenizer.decode([int(i)]), int(n)) for n, i in zip(*top, strict=True)])
print(f"{int((counts > 0).sum())} of 258 ids occur")
p = counts[counts > 0] / counts.sum()
bits = float(-(p * p.log2()).sum())
print(f"{bits:.2f} bits a byte if every byte were drawn by itself; a trained model needs about 2")
assert 3.5 < bits < 5.5

# %% [markdown]
# ## 5 · Exercises
#
# The three above, in a file: `ai-learning lessons start day15`.
#
# 1. **Lone surrogates.** `ByteTokenizer().encode("\ud800")`: what comes out, and what with
#    `errors="replace"`?
# 2. **Count characters, not bytes:** how would a tokenizer of Unicode characters fail on a text it has not
#    seen?
#
# ## Quiz

# %%
quiz("day15.half")

# %% [markdown]
# ## Read on
#
# - Yergeau 2003, *RFC 3629: UTF-8*.
# - Xue et al. 2022, *ByT5: Towards a Token-Free Future*.
# - Day 16: byte-pair encoding.
