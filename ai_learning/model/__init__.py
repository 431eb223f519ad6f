"""The model: start at ``gpt.py`` (two minutes), then ``attention.py``."""

from .attention import ATTENTION, CausalSelfAttention, causal_mask, fast_attention, reference_attention
from .cache import KVCache
from .gpt import GPT, MLP, Block, GPTConfig
from .tiny import TinyTransformer

__all__ = [
    "ATTENTION",
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "GPTConfig",
    "KVCache",
    "TinyTransformer",
    "causal_mask",
    "fast_attention",
    "reference_attention",
]
