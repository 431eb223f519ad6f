"""Text to ids and back: one token a byte, or byte-pair encoding.

bpe               the algorithm, to be read
pretokenize       how text is split into words
bpe_tokenizer     ``BPETokenizer``, everything in one class
word_encoder      encoding in plain Python
fast, kernels     the same, compiled by numba
training          learning merges, in plain Python and compiled
formats           tokenizer.json, vocab.json + merges.txt, tiktoken, minbpe
render            tokens in colour, merges step by step
gpt1              GPT-1's own, over characters
"""

from .base import Tokenizer, load
from .bpe_tokenizer import BPETokenizer, UnknownTokenError
from .bytes import ByteTokenizer
from .gpt1 import GPT1Tokenizer

__all__ = ["BPETokenizer", "ByteTokenizer", "GPT1Tokenizer", "Tokenizer", "UnknownTokenError", "load"]
