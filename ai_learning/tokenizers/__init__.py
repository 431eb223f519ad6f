"""Text to ids and back: one token a byte, or byte-pair encoding."""

from .base import Tokenizer, load
from .bytes import ByteTokenizer

__all__ = ["ByteTokenizer", "Tokenizer", "load"]
