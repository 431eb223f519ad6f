"""Toolformer in a few minutes on a CPU: a made-up world, a tiny GPT, and the paper's comparison.

``words`` a tokenizer of whole words · ``templates``, ``world`` documents and problems · ``examples`` what a
person annotated · ``experiment`` the stages · ``measure`` accuracy, perplexity, the filter beside the truth ·
``fit`` training · ``report`` tables.
"""

from .experiment import Results, Scores, Tiny, TinyConfig
from .world import Item, World, tokenizer, world

__all__ = ["Item", "Results", "Scores", "Tiny", "TinyConfig", "World", "tokenizer", "world"]
