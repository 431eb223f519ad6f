"""The model: start at ``gpt.py`` (two minutes), then ``attention.py``."""

from .attention import ATTENTION, CausalSelfAttention, causal_mask, fast_attention, reference_attention
from .cache import KVCache
from .gpt import GPT, Block, GPTConfig, matrix_params, untied
from .mlp import MLP, GatedMLP, gelu_new
from .norms import RMSNorm
from .rotary import RopeScaling, RotaryEmbedding, rotate
from .tiny import TinyTransformer

__all__ = [
    "ATTENTION",
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "GPTConfig",
    "GatedMLP",
    "KVCache",
    "RMSNorm",
    "RopeScaling",
    "RotaryEmbedding",
    "TinyTransformer",
    "causal_mask",
    "fast_attention",
    "gelu_new",
    "matrix_params",
    "reference_attention",
    "rotate",
    "untied",
]
