# %% [markdown]
# # Day 6 · Real weights: the published models in the code you read
#
# About 30 minutes; it runs in seconds. It needs day 3.
#
# After this lesson you can
#
# - carry weights between transformers' models and ours, and say why some matrices must be turned,
# - prove that two models are the same by numbers, not by shapes,
# - open what you trained with `AutoModelForCausalLM`.
#
# Nothing is downloaded: transformers' own classes with random weights are as good a test as the published
# ones.

# %%
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ai_learning.checks import check, picture, quiz, show
from ai_learning.generate import generate
from ai_learning.model import GPT
from ai_learning.pretrained import from_hf, load_pretrained, save_pretrained, to_hf
from ai_learning.pretrained.families import GPT2, Llama

torch.manual_seed(6)
import transformers

transformers.utils.logging.disable_progress_bar()

# %% [markdown]
# ## 1 · The same model twice
#
# **Predict first:** both compute in float32. How far apart may their logits be?

# %%
sizes = {"vocab_size": 101, "n_positions": 64, "n_layer": 2, "n_head": 4, "n_embd": 64}
theirs = transformers.GPT2LMHeadModel(
    transformers.GPT2Config(bos_token_id=None, eos_token_id=None, **sizes)
).eval()
ours = from_hf(theirs)
idx = torch.randint(0, 101, (2, 40))
assert ours(idx).shape == (2, 40, 101)
difference = (ours(idx) - theirs(idx).logits).abs().max().item()
print(f"float32: {difference:.1e}")
exact = (from_hf(theirs.double())(idx) - theirs(idx).logits).abs().max().item()
print(f"float64: {exact:.1e}")
assert difference < 1e-5 and exact < 1e-12

# %% [markdown]
# In float64 nothing is left but the order of additions. A difference of 1e-3 would mean another formula.
#
# ## 2 · What is stored, and how
#
# GPT-2's published files hold `Conv1D` weights, (in, out); `nn.Linear` keeps (out, in):

# %%
show(GPT2.turned)
name = "transformer.h.0.attn.c_attn.weight"
print(tuple(theirs.state_dict()[name].shape), "→", tuple(ours.h[0].attn.c_attn.weight.shape))

# %% [markdown]
# **Predict first:** `attn.c_proj.weight` is square. Forget to turn it, and no shape complains. What happens
# to the logits?

# %%
theirs.float()
broken = from_hf(theirs)
with torch.no_grad():
    for block in broken.h:
        block.attn.c_proj.weight.copy_(block.attn.c_proj.weight.T.clone())
    wrong = (broken(idx) - theirs(idx).logits).abs().max().item()
print(f"off by {wrong:.3f}, where {difference:.1e} is right")
assert wrong > 1000 * difference


# %%
def to_linear(state):
    """GPT-2's published state dict with our names and shapes."""
    raise NotImplementedError


check(to_linear, "day6.to_linear")

# %% [markdown]
# ## 3 · Llama in the same classes
#
# Llama has other parts: RMSNorm, rotary positions, a gated MLP, fewer heads for keys than for queries. Each
# is a small file, chosen by the configuration; the road through the model is the same.

# %%
show(Llama.parts)
llama = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
        vocab_size=101,
        max_position_embeddings=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=64,
        intermediate_size=160,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
).eval()
small_llama = from_hf(llama)
print(small_llama.config)
assert isinstance(small_llama, GPT)
assert (small_llama(idx) - llama(idx).logits).abs().max() < 1e-5

# %% [markdown]
# Greedy continuations must be the same tokens, every one:

# %%
ids = generate(small_llama, idx[:, :8], 40, temperature=0)
reference = llama.generate(idx[:, :8], max_new_tokens=40, do_sample=False)
assert torch.equal(ids, reference)
print("40 greedy tokens, identical")

# %% [markdown]
# ## 4 · The way back
#
# What you train opens elsewhere. `save_pretrained` writes a folder as Hugging Face does:

# %%
out = Path("runs/day6/model")
save_pretrained(ours, out)
print(sorted(p.name for p in out.iterdir()))
opened = transformers.AutoModelForCausalLM.from_pretrained(out)
assert torch.allclose(opened(idx).logits, ours(idx), atol=1e-5)
assert torch.equal(load_pretrained(out)(idx), ours(idx))
assert torch.allclose(to_hf(small_llama)(idx).logits, llama(idx).logits, atol=1e-5)

# %% [markdown]
# Where do the differences of float32 come from? They grow from layer to layer, as rounding does:

# %%
from ai_learning.trace import record

with record(ours) as trace, torch.no_grad():
    ours(idx)
    states = theirs(idx, output_hidden_states=True).hidden_states
    off = [(a - b).abs().max().item() for a, b in zip(trace.residual, states[:-1], strict=False)]
figure = Figure(figsize=(5, 2.8), layout="constrained")
ax = figure.subplots()
ax.bar(range(len(off)), off)
ax.set_xlabel("after block")
ax.set_ylabel("largest difference")
figure.savefig(Path("runs/day6") / "rounding.png", dpi=100)
picture(Path("runs/day6") / "rounding.png")

# %% [markdown]
# ## 5 · Exercises
#
# 1. **`day6.to_linear`**, above or in a file (`ai-learning lessons start day6`).
# 2. **With a network:** `load_pretrained("gpt2")`, and `ai-learning generate --checkpoint gpt2 --prompt
#    "The"`.
# 3. **Break another one.** Swap `c_gate` and `c_fc` of the small Llama. Which test would have noticed?
#
# ## Quiz

# %%
quiz("day6.conv1d")

# %% [markdown]
# ## Read on
#
# - Touvron et al. 2023, *LLaMA*; Grattafiori et al. 2024, *The Llama 3 Herd of Models*.
# - Su et al. 2021, *RoFormer*; Shazeer 2020, *GLU Variants Improve Transformer*; Ainslie et al. 2023, *GQA*.
# - Day 7: looking inside.
