"""Text to ids and back: one token a byte, or byte-pair encoding.

bpe                                the algorithm, to be read
pretokenize                        how text is split into words
bpe_tokenizer                      ``BPETokenizer``, everything in one class
word_encoder, fast_encoder         encoding, in plain Python and compiled by numba
training                           learning a vocabulary
word_counts, tie_breaks            what it works on, and who wins among equals
plain_trainer, fast_trainer        in plain Python and compiled
fast, kernels                      what all that is compiled shares
streaming, encode_files, batch     text in pieces, files into token files, many texts at once
special, offsets                   special tokens; where in the text a token stands
formats                            tokenizer.json, vocab.json + merges.txt, tiktoken, minbpe
render                             tokens in colour, merges step by step
gpt1                               GPT-1's own, over characters
"""

from .base import Tokenizer, encode_own, load
from .bpe_tokenizer import BPETokenizer, UnknownTokenError
from .bytes import ByteTokenizer
from .gpt1 import GPT1Tokenizer

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "GPT1Tokenizer",
    "Tokenizer",
    "UnknownTokenError",
    "encode_own",
    "load",
]
