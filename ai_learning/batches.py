"""From a token file to (x, y): seeded, and the batch of any step can be made without the ones before it."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from .errors import InputError
from .shapes import Tokens
from .token_file import Shards, TokenFile, TokenFolder, token_dtype
from .tokenizers import Tokenizer, encode_own


class TokenBatches:
    """Windows of ``block_size + 1`` tokens at random places; the batch is a pure function of the step.

    So resuming needs no state but the step, and every rank takes its rows of one global batch: the same
    ``seed`` and ``batch_size`` give the same training on any number of ranks.

    Args:
        tokens: (n,) ids, usually memory maps (``open_tokens``): only the windows are read.
        block_size: T.
        batch_size: rows over all ranks.
        seed: of the order.
        rank: which share of the rows this process takes.
        world_size: number of processes.

    Raises:
        InputError: fewer tokens than one window, or ``batch_size`` not divisible by ``world_size``.

    Example:
        >>> batches = TokenBatches(np.arange(100), block_size=4, batch_size=2)
        >>> x, y = batches(step=7)
        >>> tuple(x.shape), bool((x[:, 1:] == y[:, :-1]).all())
        ((2, 4), True)
    """

    fixed_shapes = True
    """``train`` is told that every batch has the same shape"""

    def __init__(
        self,
        tokens: np.ndarray | Shards,
        block_size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(tokens) <= block_size:
            need = f"a window of block_size={block_size} needs {block_size + 1}"
            raise InputError(f"{len(tokens)} tokens are too few: {need}; add text or lower block_size")
        if batch_size < 1 or batch_size % world_size:
            raise InputError(
                f"batch_size={batch_size} must be a positive multiple of world_size={world_size}"
            )
        self.tokens = tokens
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size

    def __call__(self, step: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets of one step: two (batch_size // world_size, T) int64 tensors."""
        generator = np.random.default_rng((self.seed, step))
        starts = generator.integers(0, len(self.tokens) - self.block_size, size=self.batch_size)
        return windows(self.tokens, starts[self.rank :: self.world_size], self.block_size)


class Prefetched:
    """Reads the next batch while the model works on this one: a corpus larger than memory is read from disk.

    Args:
        batches: a pure function of the step; called in another thread.
        pin: into page-locked memory, from which a copy to the GPU does not wait.
    """

    def __init__(self, batches: TokenBatches, pin: bool = False) -> None:
        self.batches, self.pin = batches, pin
        self.world_size, self.fixed_shapes = batches.world_size, batches.fixed_shapes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._coming: dict[int, Future[tuple[Tokens, Tokens]]] = {}

    def __call__(self, step: int) -> tuple[Tokens, Tokens]:
        """The batch of ``step``; the one after it is begun."""
        for wanted in (step, step + 1):
            if wanted not in self._coming:
                self._coming[wanted] = self._reader.submit(self._read, wanted)
        for old in self._coming.keys() - {step, step + 1}:
            del self._coming[old]
        return self._coming[step].result()

    def _read(self, step: int) -> tuple[Tokens, Tokens]:
        x, y = self.batches(step)
        return (x.pin_memory(), y.pin_memory()) if self.pin else (x, y)


def windows(tokens: np.ndarray | Shards, starts: np.ndarray, block_size: int) -> tuple[Tokens, Tokens]:
    """(len(starts), T) inputs, and targets one token later."""
    rows = np.stack([tokens[start : start + block_size + 1] for start in starts]).astype(np.int64)
    block = torch.from_numpy(rows)  # (B, T + 1)
    return block[:, :-1].contiguous(), block[:, 1:].contiguous()


def evaluation_batches(
    tokens: np.ndarray | Shards, block_size: int, batch_size: int, max_batches: int | None = None
) -> list[tuple[Tokens, Tokens]]:
    """The same batches every time: windows side by side; with ``max_batches``, spread over the whole text."""
    starts = np.arange(0, len(tokens) - block_size, block_size)
    if len(starts) == 0:
        raise InputError(f"{len(tokens)} held-out tokens are too few for block_size={block_size}")
    if max_batches is not None and len(starts) > max_batches * batch_size:
        starts = starts[np.linspace(0, len(starts) - 1, max_batches * batch_size).astype(int)]
    return [
        windows(tokens, starts[i : i + batch_size], block_size) for i in range(0, len(starts), batch_size)
    ]


def split(
    tokens: np.ndarray | Shards, held_out: float = 0.1
) -> tuple[np.ndarray | Shards, np.ndarray | Shards]:
    """The first part to train on, the last ``held_out`` share to evaluate on (nanoGPT's split)."""
    cut = len(tokens) - int(len(tokens) * held_out)
    if isinstance(tokens, Shards):
        return tokens.part(slice(cut)), tokens.part(slice(cut, None))
    return tokens[:cut], tokens[cut:]


def tokenize(texts: Iterable[str] | str, tokenizer: Tokenizer) -> np.ndarray:
    """All documents as one array of ids, in memory, each ended by ``eos_id``.

    For a corpus larger than memory write a token file (``ai-learning data prepare``) and open that.

    Args:
        texts: documents, or one.
        tokenizer: gives the ids.

    Raises:
        InputError: no documents.
    """
    texts = [texts] if isinstance(texts, str) else texts  # one is one, not its letters
    dtype = token_dtype(tokenizer.vocab_size)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    found = [np.array(encode_own(tokenizer, text) + end, dtype) for text in texts]
    if not found:
        raise InputError("no documents to tokenize: give a text")
    return np.concatenate(found)


def digest(tokens: np.ndarray | Shards) -> str:
    """A short hash that tells two corpora apart: of all tokens, or of 64 MB spread over a larger corpus.

    The same for one file and for shards of it.
    """
    hasher = hashlib.sha256(f"{tokens.dtype.str} {len(tokens)}".encode())
    piece = 2**20 // tokens.itemsize
    starts = np.arange(0, len(tokens), piece)
    if len(starts) > 64:
        starts = np.linspace(0, len(tokens) - piece, 64).astype(int)
    for start in starts:
        hasher.update(tokens[start : start + piece].tobytes())
    return hasher.hexdigest()[:16]


def open_tokens(path: Path | str, vocab_size: int, fingerprint: str | None = None) -> TokenFile | TokenFolder:
    """Open a token file, or a folder of them, for a model; refuse what another tokenizer wrote.

    Raises:
        InputError: another fingerprint, or ids that the model does not have.
    """
    file = TokenFolder(path) if Path(path).is_dir() else TokenFile(path)
    if fingerprint is not None and file.fingerprint != fingerprint:
        raise InputError(
            f"{path} was written by another tokenizer (fingerprint {file.fingerprint}, "
            f"expected {fingerprint}): prepare it again"
        )
    if file.vocab_size > vocab_size:
        raise InputError(f"{path} has ids up to {file.vocab_size - 1}, the model only {vocab_size}")
    return file
