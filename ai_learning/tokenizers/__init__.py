"""Text to ids and back: one token a byte, or byte-pair encoding.

bpe               the algorithm, to be read
pretokenize       how text is split into words
bpe_tokenizer     ``BPETokenizer``, everything in one class
word_encoder      encoding in plain Python
fast, kernels     the same, compiled by numba
training          learning merges, in plain Python and compiled
formats           tokenizer.json, vocab.json + merges.txt, tiktoken, minbpe
render            tokens in colour, merges step by step
"""

from .base import Tokenizer, load
from .bpe_tokenizer import BPETokenizer, UnknownTokenError
from .bytes import ByteTokenizer

__all__ = ["BPETokenizer", "ByteTokenizer", "Tokenizer", "UnknownTokenError", "load"]
