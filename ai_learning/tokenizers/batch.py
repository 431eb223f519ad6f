"""Many texts at once, over threads: the compiled path leaves the interpreter lock while it works."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from .bpe_tokenizer import BPETokenizer

_WORTH_A_THREAD = 2**21  # characters


def encode_batch(
    tokenizer: "BPETokenizer", texts: Sequence[str], num_workers: int | None, allowed: frozenset[str]
) -> list[list[int]]:
    """Ids of each text; ``allowed`` special tokens are used, the text of others is text."""
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers={num_workers} must be 1 or more")

    def encode(part: Sequence[str]) -> list[list[int]]:
        return [tokenizer.encode(text, allowed_special=allowed, disallowed_special=()) for text in part]

    total = sum(map(len, texts))
    workers = num_workers or min(os.cpu_count() or 1, 1 + total // _WORTH_A_THREAD)
    if workers == 1 or len(texts) < 2:
        return encode(texts)
    if total > _WORTH_A_THREAD // 8:
        tokenizer.prepare()
    size = -(-len(texts) // (4 * workers))
    with ThreadPoolExecutor(workers) as pool:
        parts = pool.map(encode, [texts[start : start + size] for start in range(0, len(texts), size)])
        return [ids for part in parts for ids in part]
