"""Hugging Face's weights in our classes: the published models, run by the code you read.

GPT-1, GPT-2, Llama (also SmolLM) and Qwen 3 (dense). What differs between transformers' architectures and
ours stands in ``families.py``, one small class each: configuration, names, layout.
"""

from .families import config_from_hf, config_to_hf
from .folders import load_pretrained, save_pretrained
from .weights import from_hf, to_hf

__all__ = ["config_from_hf", "config_to_hf", "from_hf", "load_pretrained", "save_pretrained", "to_hf"]
