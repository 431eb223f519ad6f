"""Day 1's model: attention and little else, small enough to look at every weight."""

import torch
from torch import nn

from ..shapes import Logits, Tokens, Weights
from .attention import CausalSelfAttention
from .gpt import GPTConfig


class TinyTransformer(nn.Module):
    """Embeddings, ``n_layer`` causal attention layers on a residual stream, and a linear head: no MLP.

    What attention can do alone is all that this model can do, so its weights tell the whole story.

    Args:
        config: its sizes, ``dropout``, ``bias``, ``attention`` and ``qk_norm`` are used, nothing else.

    Example:
        >>> config = GPTConfig(vocab_size=12, block_size=8, n_layer=1, n_head=1, n_embd=16)
        >>> logits, weights = TinyTransformer(config)(torch.zeros(2, 8, dtype=torch.long))
        >>> tuple(logits.shape), len(weights)
        ((2, 8, 12), 1)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.attn = nn.ModuleList(CausalSelfAttention(config) for _ in range(config.n_layer))
        self.norm = nn.ModuleList(nn.LayerNorm(config.n_embd) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, idx: Tokens) -> tuple[Logits, list[Weights | None]]:
        """Logits and attention weights.

        Args:
            idx: (B, T) int64 ids.

        Returns:
            (B, T, V) logits, and a (B, H, T, T) tensor of weights a layer (``None`` with fast attention).

        Raises:
            ValueError: not (B, T), or T > ``block_size``.
        """
        if idx.dim() != 2 or idx.size(1) > self.config.block_size:
            expected = f"(B, T) with T ≤ block_size={self.config.block_size}"
            raise ValueError(f"idx must have shape {expected}, got {tuple(idx.shape)}")
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1), device=idx.device))  # (B, T, C)
        all_weights = []
        for attn, norm in zip(self.attn, self.norm, strict=True):
            output, weights = attn(norm(x))
            x = x + output
            all_weights.append(weights)
        return self.head(x), all_weights
