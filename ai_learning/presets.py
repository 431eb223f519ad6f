"""Named configurations: ``preset("gpt2")``.

Sizes are the published ones (Radford et al. 2018, section 4.1; 2019, table 2; the released checkpoints' own
``config.json`` for Llama 3, SmolLM2 and Qwen 3).
"""

from dataclasses import replace

from .errors import InputError, did_you_mean
from .model import GPTConfig, RopeScaling

# What Llama and its heirs share.
LLAMA = GPTConfig(bias=False, activation="silu", norm="rmsnorm", positions="rotary", mlp="gated")

PRESETS: dict[str, GPTConfig] = {
    "gpt1": GPTConfig(vocab_size=40478, block_size=512, dropout=0.1, norm_first=False),
    # The same post-norm architecture, small enough for a laptop.
    "gpt1-tiny": GPTConfig(vocab_size=258, block_size=128, n_layer=4, n_head=4, n_embd=128, norm_first=False),
    "gpt2-tiny": GPTConfig(vocab_size=258, block_size=128, n_layer=4, n_head=4, n_embd=128),
    "gpt2": GPTConfig(dropout=0.1),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024, dropout=0.1),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280, dropout=0.1),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600, dropout=0.1),
    "llama3-8b": replace(
        LLAMA,
        vocab_size=128256,
        block_size=8192,
        n_layer=32,
        n_head=32,
        n_kv_head=8,
        n_embd=4096,
        intermediate_size=14336,
        rope_theta=500000.0,
        tie_weights=False,
    ),
    "llama3.2-1b": replace(
        LLAMA,
        vocab_size=128256,
        block_size=131072,
        n_layer=16,
        n_head=32,
        n_kv_head=8,
        n_embd=2048,
        intermediate_size=8192,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(factor=32.0),
    ),
    "smollm2-135m": replace(
        LLAMA,
        vocab_size=49152,
        block_size=8192,
        n_layer=30,
        n_head=9,
        n_kv_head=3,
        n_embd=576,
        intermediate_size=1536,
        rope_theta=100000.0,
    ),
    "qwen3-0.6b": replace(
        LLAMA,
        vocab_size=151936,
        block_size=40960,
        n_layer=28,
        n_head=16,
        n_kv_head=8,
        head_dim=128,
        n_embd=1024,
        intermediate_size=3072,
        rope_theta=1000000.0,
        layer_norm_eps=1e-6,
        qk_norm=True,
    ),
}


def preset(name: str) -> GPTConfig:
    """The configuration called ``name``; change it with ``dataclasses.replace``.

    Raises:
        InputError: no such preset.

    Example:
        >>> preset("gpt2").n_layer
        12
    """
    if name not in PRESETS:
        raise InputError(f"no preset {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
