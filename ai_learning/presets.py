"""Named configurations: ``preset("gpt2")``.

Sizes are the published ones (Radford et al. 2018, section 4.1; 2019, table 2; the released checkpoints).
"""

import difflib

from .errors import InputError
from .model import GPTConfig

PRESETS: dict[str, GPTConfig] = {
    "gpt1": GPTConfig(vocab_size=40478, block_size=512, dropout=0.1, norm_first=False),
    # The same post-norm architecture, small enough for a laptop.
    "gpt1-tiny": GPTConfig(vocab_size=258, block_size=128, n_layer=4, n_head=4, n_embd=128, norm_first=False),
    "gpt2-tiny": GPTConfig(vocab_size=258, block_size=128, n_layer=4, n_head=4, n_embd=128),
    "gpt2": GPTConfig(dropout=0.1),
    "gpt2-medium": GPTConfig(n_layer=24, n_head=16, n_embd=1024, dropout=0.1),
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280, dropout=0.1),
    "gpt2-xl": GPTConfig(n_layer=48, n_head=25, n_embd=1600, dropout=0.1),
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
        guess = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {guess[0]!r}?" if guess else f"use one of {', '.join(PRESETS)}"
        raise InputError(f"no preset {name!r}; {hint}")
    return PRESETS[name]
