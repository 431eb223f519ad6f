"""Training: words counted once, then merges learned on the unique words.

Counting: the text is split into words (special tokens cut it first and are no part of any), and each unique
word is kept with its count. Merging works on those: pair counts and the places of each pair are kept up to
date merge by merge, and a heap gives the best pair without a rescan. ``bpe.train`` is the same without any of
this.

Both steps exist twice, in plain Python (here and ``plain_trainer``) and compiled (``fast_trainer``), with the
same result. Small inputs run in plain Python, which needs nothing to load.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import fast, special
from .bpe_tokenizer import END_OF_TEXT, BPETokenizer
from .plain_trainer import learn_plain
from .pretokenize import SplitPattern, split_pattern, splitter
from .streaming import safe_byte_chunks, safe_chunks, safe_cut_bytes, utf8_chunks
from .tie_breaks import TIE_BREAKS, TieBreak
from .word_counts import WordCounts, load_counts, save_counts

_COMPILED_FROM = 2**21  # characters; below, plain Python is done before the kernels are loaded
_CHUNK = 2**19  # characters or bytes read at once: larger blocks of changing size fragment memory
_BATCH = 2**21  # handed to a thread at once


Chunk = str | bytes  # bytes: valid UTF-8; either can be counted apart from the others
Report = Callable[[int, int], None]  # (merges so far, merges wanted)


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str | SplitPattern | None = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    num_workers: int | None = None,
    min_frequency: int = 1,
    tie_break: str = "hf",
    counts_file: str | Path | None = None,
    progress: bool = False,
    compiled: bool | None = None,
) -> BPETokenizer:
    """Learn a vocabulary from texts.

    Ids are the 256 bytes, then the merges in order, then the special tokens. The same texts and settings give
    the same merges on every machine, for every number of workers.

    Args:
        texts: documents; words never reach from one into the next.
        vocab_size: ids in all. When no pair is left that is frequent enough, there are fewer, with a warning.
        pattern: how text is split into words (see ``BPETokenizer``).
        special_tokens: cut out of the text before anything else, and numbered last.
        num_workers: threads that count; ``None`` takes two where the machine has them and the text is large.
            Without the compiled path they are processes: a script needs ``if __name__ == "__main__":`` then.
        min_frequency: pairs rarer than this are not merged.
        tie_break: among pairs of equal count: ``"hf"`` as Hugging Face tokenizers (smaller ids in GPT-2's
            byte order), ``"rustbpe"`` (smaller ids, bytes by value), ``"minbpe"`` (first seen), ``"cs336"``
            (greater bytes).
        counts_file: the word counts are kept here; if the file is there already, they are read from it and
            the texts are not: an interrupted training goes on from its counts.
        progress: show bars on stderr.
        compiled: force the compiled path (or plain Python) rather than choosing by size.

    Raises:
        InputError: settings that cannot be, no text at all, or a counts file that belongs to other settings.
    """
    settings = _Settings(vocab_size, pattern, special_tokens, num_workers, min_frequency, tie_break)
    if isinstance(texts, str):
        raise InputError("texts must be an iterable of strings, not one string: pass [text]")

    def chunks() -> Iterator[str]:
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"texts must hold strings, found {type(text).__name__}")
            yield text

    return _train(settings, chunks(), "texts", counts_file, progress, compiled)


def train_from_files(
    paths: str | Path | Iterable[str | Path],
    vocab_size: int,
    *,
    pattern: str | SplitPattern | None = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    num_workers: int | None = None,
    min_frequency: int = 1,
    tie_break: str = "hf",
    counts_file: str | Path | None = None,
    progress: bool = False,
    compiled: bool | None = None,
) -> BPETokenizer:
    """Learn a vocabulary from files of any size.

    A file is read in pieces that are cut only where the pattern splits whatever follows, so that the result
    is that of the whole file; what stays in memory are the unique words. (A pattern of your own gives no such
    places: then a file is cut only at special tokens.) Bytes that are no UTF-8 count as U+FFFD.

    Args and errors are those of ``train``.
    """
    settings = _Settings(vocab_size, pattern, special_tokens, num_workers, min_frequency, tie_break)
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            raise InputError(f"no file at {file}")

    def chunks() -> Iterator[bytes]:
        for file in files:
            yield from safe_byte_chunks(file, settings.pattern, settings.special_tokens, _CHUNK)

    source = [[str(file.resolve()), file.stat().st_size] for file in files]
    return _train(settings, chunks(), source, counts_file, progress, compiled)


class _Settings:
    """Checked settings of a training."""

    def __init__(
        self,
        vocab_size: int,
        pattern: str | SplitPattern | None,
        special_tokens: Sequence[str],
        num_workers: int | None,
        min_frequency: int,
        tie_break: str,
    ) -> None:
        if isinstance(special_tokens, str):
            special_tokens = [special_tokens]
        self.special_tokens = list(dict.fromkeys(special_tokens))
        self.n_merges = vocab_size - 256 - len(self.special_tokens)
        if self.n_merges < 0:
            raise InputError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(self.special_tokens)} "
                f"special tokens need {256 + len(self.special_tokens)}"
            )
        if tie_break not in TIE_BREAKS:
            raise InputError(f"tie_break={tie_break!r} is not known; use {', '.join(TIE_BREAKS)}")
        if min_frequency < 0:
            raise InputError(f"min_frequency={min_frequency} must be 0 or more")
        if num_workers is not None and num_workers < 1:
            raise InputError(f"num_workers={num_workers} must be 1 or more")
        if "" in self.special_tokens:
            raise InputError("a special token cannot be empty")
        self.pattern = split_pattern(pattern)
        self.tie_break = TIE_BREAKS[tie_break]
        self.min_count = max(1, min_frequency)
        # workers that count in parallel lose the order of first appearance, which minbpe's rule needs
        self.num_workers = 1 if tie_break == "minbpe" else num_workers

    def key(self, source: Any) -> dict[str, Any]:
        """The settings that word counts depend on, kept with them in a counts file."""
        return {"pattern": self.pattern.regex, "special_tokens": self.special_tokens, "source": source}


def _train(
    settings: _Settings,
    chunks: Iterator[Chunk],
    source: Any,
    counts_file: str | Path | None,
    progress: bool,
    compiled: bool | None,
) -> BPETokenizer:
    counts = load_counts(counts_file, settings.key(source)) if counts_file else None
    with _bars(progress) as bars:
        if counts is None:
            counts = _count(settings, chunks, bars.counting, compiled)
            if counts_file:
                save_counts(counts, counts_file, settings.key(source))
        if len(counts) == 0:
            raise InputError("no text to train on: every document is empty")
        merges = learn_merges(
            counts, settings.n_merges, settings.tie_break, settings.min_count, bars.merging, compiled
        )
    if len(merges) < settings.n_merges:
        warnings.warn(
            f"only {len(merges)} of {settings.n_merges} merges: "
            f"no other pair occurs {settings.min_count} times",
            stacklevel=4,
        )
    tokens = [bytes([byte]) for byte in settings.tie_break.byte_order]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    pairs = [(tokens[left], tokens[right]) for left, right in merges]
    special = {text: len(tokens) + i for i, text in enumerate(settings.special_tokens)}
    return BPETokenizer(dict(enumerate(tokens)), pairs, special, settings.pattern)


# --- progress -----------------------------------------------------------------------------------------------


class _Bars:
    """Receives progress, and shows nothing."""

    def counting(self, n_characters: int) -> None:
        pass

    def merging(self, done: int, wanted: int) -> None:
        pass


@contextmanager
def _bars(show: bool) -> Iterator[_Bars]:
    if not show:
        yield _Bars()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as view:
        words = view.add_task("counting words", total=None, rate="")
        merges = view.add_task("learning merges", total=None, start=False, rate="")

        class Shown(_Bars):
            def counting(self, n_characters: int) -> None:
                view.advance(words, n_characters)
                task = view.tasks[words]
                view.update(words, rate=f"{task.completed / 1e6:,.1f} M characters")

            def merging(self, done: int, wanted: int) -> None:
                task = view.tasks[merges]
                if task.start_time is None:
                    view.update(words, total=view.tasks[words].completed)
                    view.start_task(merges)
                seconds = view.tasks[merges].elapsed or 0
                rate = f"{done:,} of {wanted:,}" + (
                    f", {done / seconds:,.0f} merges/s" if seconds > 0 else ""
                )
                view.update(merges, completed=done, total=wanted, rate=rate)

        yield Shown()


# --- counting -----------------------------------------------------------------------------------------------


def _count(
    settings: _Settings, chunks: Iterator[Chunk], report: Callable[[int], None], compiled: bool | None
) -> WordCounts:
    possible = bool(settings.pattern.family) and fast.can_load()
    if compiled and not possible:
        raise InputError("compiled=True needs numba and a named pattern (or none)")
    first: list[Chunk] = []
    size = 0
    if compiled is None:  # read on until there is text enough to make loading the kernels worth it
        compiled = possible and fast.is_loaded()
        while possible and not compiled and (chunk := next(chunks, None)) is not None:
            first.append(chunk)
            size += len(chunk)
            compiled = size >= _COMPILED_FROM
    everything = _chain(first, chunks)
    if compiled:
        return _count_compiled(settings, everything, report)
    is_small = compiled is False and len(first) > 0
    workers = 1 if is_small else settings.num_workers or 1  # starting processes would take longer
    return _count_plain(settings, everything, report, workers)


def _chain(first: list[Chunk], rest: Iterator[Chunk]) -> Iterator[Chunk]:
    while first:
        yield first.pop(0)
    yield from rest


def _count_plain(
    settings: _Settings, chunks: Iterator[Chunk], report: Callable[[int], None], workers: int
) -> WordCounts:
    """Count in this process, or in several."""
    tokens = frozenset(settings.special_tokens)

    def pieces() -> Iterator[str]:
        for chunk in chunks:
            text = chunk.decode() if isinstance(chunk, bytes) else fast.without_surrogates(chunk)
            for part in safe_chunks([text], settings.pattern, tokens, _CHUNK):
                yield from (piece for piece, is_special in special.segments(part, tokens) if not is_special)
                report(len(part))

    total: Counter[str] = Counter()
    if workers > 1:
        from multiprocessing import get_context

        with get_context("spawn").Pool(workers) as pool:
            for counted in pool.imap(_count_piece, ((settings.pattern, piece) for piece in pieces())):
                total.update(counted)
    else:
        split = splitter(settings.pattern)
        for piece in pieces():
            total.update(split(piece))
    return WordCounts.from_dict({word.encode(): times for word, times in total.items()})


def _count_piece(job: tuple[SplitPattern, str]) -> Counter[str]:
    pattern, piece = job
    return Counter(splitter(pattern)(piece))


def _count_compiled(
    settings: _Settings, chunks: Iterator[Chunk], report: Callable[[int], None]
) -> WordCounts:
    with fast.announced("the fast trainer"):
        from .fast_trainer import FastCounter

        FastCounter(settings.pattern).add(b"warm up")
    tokens = frozenset(settings.special_tokens)

    def pieces() -> Iterator[bytes]:
        for chunk in chunks:
            parts = [chunk] if isinstance(chunk, bytes) else utf8_chunks(chunk, settings.pattern, tokens)
            for part in parts:
                yield from special.byte_segments(part, tokens)
                report(len(part))

    workers = settings.num_workers or min(2, _cores())
    counters = [FastCounter(settings.pattern) for _ in range(workers)]
    if workers == 1:
        for piece in pieces():
            counters[0].add(piece)
        return counters[0].result()
    # Each thread has a counter and takes every n-th batch, so the result never depends on timing. Small
    # documents go in batches: handing one over costs as much as counting some kilobytes.
    with ThreadPoolExecutor(workers) as pool:
        batches = _batches(_small_enough(pieces(), settings))
        while turn := [batch for _, batch in zip(range(workers), batches, strict=False)]:
            list(pool.map(lambda counter, batch: counter.add_all(batch), counters, turn))
    for counter in counters[1:]:
        counters[0].add_counter(counter)
    return counters[0].result()


def _small_enough(pieces: Iterator[bytes], settings: _Settings) -> Iterator[bytes]:
    """Cut pieces that are so long that the other threads would have to wait for the one that has them."""
    for piece in pieces:
        while len(piece) > 2 * _BATCH and settings.pattern.family in ("gpt2", "gpt4"):
            cut = safe_cut_bytes(piece[:_BATCH])
            if not cut:
                break
            yield piece[:cut]
            piece = piece[cut:]
        yield piece


def _batches(pieces: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- merging ------------------------------------------------------------------------------------------------


def learn_merges(
    counts: WordCounts,
    n_merges: int,
    tie_break: TieBreak = TIE_BREAKS["hf"],
    min_count: int = 1,
    report: Report = lambda done, wanted: None,
    compiled: bool | None = None,
) -> list[tuple[int, int]]:
    """Merges as pairs of ids; the i-th makes id 256 + i.

    Args:
        counts: unique words.
        n_merges: how many at most.
        tie_break: see ``TIE_BREAKS``.
        min_count: no pair rarer than this.
        report: called now and then with (merges so far, merges wanted).
        compiled: force one path or the other.
    """
    if n_merges == 0:
        return []
    if compiled is None:
        compiled = fast.is_loaded() or len(counts.data) > _COMPILED_FROM // 4
    longest = int(np.diff(counts.offsets).max(initial=0))
    if tie_break.name == "cs336" and longest > 4096:
        compiled = False  # the kernels could not know beforehand how much memory the tokens' bytes need
    if compiled and fast.can_load() and len(counts.data) < 2**31:
        with fast.announced("the fast trainer"):
            from .fast_trainer import learn_compiled

            return learn_compiled(counts, n_merges, tie_break.code, tie_break.byte_order, min_count, report)
    return learn_plain(counts, n_merges, tie_break, min_count, report)
