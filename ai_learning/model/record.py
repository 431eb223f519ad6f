"""A GPT with what makes a small one learn most from few tokens: the "record" preset's model.

Blocks of the library's own parts, and four additions found in the NanoGPT speed runs and in Canon layers:

- a short causal convolution over the last positions before attention and MLP, so that a token sees its
  neighbours without spending a head on them (Allen-Zhu 2025, "Canon layers"; So et al. 2021);
- each block reads a learned mix of the stream and the embeddings ``x0``;
- each attention mixes the first block's values into its own (Zhou et al. 2024, "value residual learning");
- logits bounded smoothly by tanh (Gemma Team 2024, section 2).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.linear import Linear
from ..shapes import Hidden, Logits, Tokens
from .attention import ATTENTION, causal_mask
from .gpt import GPTConfig
from .mlp import MLPS
from .norms import NORM
from .rotary import Angles, RotaryEmbedding, rotate


class ShortConvolution(nn.Module):
    """A causal convolution over time, one small filter a feature, added to its input; begins as nothing."""

    def __init__(self, width: int, length: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, length))

    def forward(self, x: Hidden) -> Hidden:
        """(B, T, C) → (B, T, C)."""
        length = self.weight.size(-1)
        padded = F.pad(x.transpose(1, 2), (length - 1, 0))  # (B, C, length − 1 + T)
        return x + F.conv1d(padded, self.weight, groups=x.size(-1)).transpose(1, 2)


class ValueMixingAttention(nn.Module):
    """Causal self-attention that adds the first block's values to its own."""

    mask: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.head_size = config.n_head, config.head_size
        self.c_attn = Linear(config.n_embd, 3 * config.n_head * config.head_size, bias=False)
        self.c_proj = Linear(config.n_head * config.head_size, config.n_embd, bias=False)
        self.q_norm = NORM[config.norm](config.head_size, config.layer_norm_eps, False)
        self.k_norm = NORM[config.norm](config.head_size, config.layer_norm_eps, False)
        self.value_mix = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.attention = ATTENTION[config.attention]
        self.register_buffer("mask", causal_mask(config.block_size), persistent=False)

    def forward(self, x: Hidden, angles: Angles, first_values: Tensor | None) -> tuple[Hidden, Tensor]:
        """(B, T, C) → (B, T, C), and this block's own values (B, H, T, D)."""
        B, T, _ = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, self.head_size).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind()  # 3 × (B, H, T, D)
        own = v
        if first_values is not None:
            v = self.value_mix[0] * v + self.value_mix[1] * first_values
        q, k = rotate(self.q_norm(q), *angles), rotate(self.k_norm(k), *angles)
        out, _ = self.attention(q, k, v, self.mask[:T, :T], is_causal=True)
        return self.c_proj(out.transpose(1, 2).reshape(B, T, -1)), own


class RecordBlock(nn.Module):
    """A pre-norm block with short convolutions and a way back to the embeddings."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = NORM[config.norm](config.n_embd, config.layer_norm_eps, False)
        self.conv_1 = ShortConvolution(config.n_embd)
        self.attn = ValueMixingAttention(config)
        self.ln_2 = NORM[config.norm](config.n_embd, config.layer_norm_eps, False)
        self.conv_2 = ShortConvolution(config.n_embd)
        self.mlp = MLPS[config.mlp](config)
        self.stream_mix = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Hidden, x0: Hidden, angles: Angles, first: Tensor | None) -> tuple[Hidden, Tensor]:
        """(B, T, C) → (B, T, C), and the attention's values."""
        x = self.stream_mix[0] * x + self.stream_mix[1] * x0
        branch, values = self.attn(self.conv_1(self.ln_1(x)), angles, first)
        x = x + branch
        return x + self.mlp(self.conv_2(self.ln_2(x))), values


class RecordGPT(nn.Module):
    """The record preset's language model: the interface of ``GPT`` without a cache.

    Args:
        config: its sizes, ``norm``, ``mlp``, ``activation``, ``rope_theta`` and ``attention`` are used.
        softcap: logits stay within ± this; infinite: they are not bounded.
    """

    def __init__(self, config: GPTConfig, softcap: float = 15.0) -> None:
        super().__init__()
        self.config, self.softcap = config, softcap
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.ln_0 = NORM[config.norm](config.n_embd, config.layer_norm_eps, False)
        self.rotary = RotaryEmbedding(config.head_size, config.rope_theta)
        blocks = [RecordBlock(config) for _ in range(config.n_layer)]
        # The first block's values are the first ones: it mixes none in, and DDP would wait for a gradient.
        blocks[0].attn.value_mix.requires_grad_(False)
        self.h = nn.ModuleList(blocks)
        self.ln_f = NORM[config.norm](config.n_embd, config.layer_norm_eps, False)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx: Tokens) -> Logits:
        """(B, T) ids → (B, T, V) logits."""
        logits = self.lm_head(self.hidden(idx))
        if math.isinf(self.softcap):
            return logits
        return self.softcap * torch.tanh(logits / self.softcap)

    def hidden(self, idx: Tokens) -> Hidden:
        """(B, T) ids → (B, T, C) final hidden states."""
        angles = self.rotary(torch.arange(idx.size(1), device=idx.device))
        x = x0 = self.ln_0(self.wte(idx))
        first: Tensor | None = None
        for block in self.h:
            x, values = block(x, x0, angles, first)
            first = values if first is None else first
        return self.ln_f(x)

    def n_params(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())
