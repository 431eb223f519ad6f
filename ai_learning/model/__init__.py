"""The model: start at ``gpt.py`` (two minutes), then ``attention.py``."""

from .attention import ATTENTION, CausalSelfAttention, causal_mask, fast_attention, reference_attention
from .cache import KVCache
from .gpt import GPT, Block, GPTConfig, matrix_params, untied
from .mlp import MLP, GatedMLP, gelu_new
from .norms import RMSNorm
from .record import RecordBlock, RecordGPT
from .rotary import RopeScaling, RotaryEmbedding, rotate
from .tiny import TinyTransformer

BLOCKS = (Block, RecordBlock)
"""what FSDP, recomputation and ``torch.compile`` take one at a time"""

__all__ = [
    "ATTENTION",
    "BLOCKS",
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "GPTConfig",
    "GatedMLP",
    "KVCache",
    "RMSNorm",
    "RecordBlock",
    "RecordGPT",
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
