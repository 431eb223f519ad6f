"""Files into token files: bounded memory, several workers, shards that can be resumed."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..files import check_is_no_source, write_text
from ..token_file import PROGRESS_FILE, TokenFileWriter, token_dtype
from . import special
from .special import SpecialSet
from .streaming import read_range, safe_ranges, valid_utf8

if TYPE_CHECKING:
    from .bpe_tokenizer import BPETokenizer

_CHUNK = 2**19  # bytes encoded at once: small, because large blocks of changing size fragment memory
_BATCH = 2**21  # bytes handed to a worker at once
_SYNC = 2**25  # bytes of text between two times that the disk is waited for
SHARD_NAME = "shard-{:05d}.tokens"


@dataclass
class EncodeReport:
    """What ``encode_files`` did.

    Attributes:
        files: source files.
        documents: ends that were marked.
        tokens: ids written, in all shards and all runs.
        n_bytes: bytes of text.
        shards: token files.
        resumed_shards: those that an earlier run had finished.
        seconds: wall time of this run.
    """

    files: int = 0
    documents: int = 0
    tokens: int = 0
    n_bytes: int = 0
    shards: int = 0
    resumed_shards: int = 0
    seconds: float = 0.0


def encode_files(
    tokenizer: "BPETokenizer",
    paths: str | Path | Iterable[str | Path],
    out: str | Path,
    num_workers: int | None = None,
    *,
    shard_tokens: int | None = None,
    append_eos: bool = True,
    allowed_special: SpecialSet = "all",
    on_bytes: Callable[[int], None] = lambda n: None,
) -> EncodeReport:
    """Encode text files into one token file, or into a folder of shards.

    Each file is a document, and ends with ``eos_id``; so does each part of it that the text of the end token
    ends. Ids are those of the whole file, whatever the chunks and workers. Bytes that are no UTF-8 become
    U+FFFD.

    A single token file appears when all is written. With shards, each appears when it is full, and the same
    call made again after an interruption goes on behind the last one. A document may go on in the next shard:
    together they are one sequence (``TokenFolder``).

    Args:
        tokenizer: any BPE tokenizer.
        paths: files, in this order.
        out: the token file; with ``shard_tokens`` a folder.
        num_workers: threads that encode (processes without the compiled path); ``None`` is one.
        shard_tokens: ids in each shard; the last one has the rest.
        append_eos: end each file with ``eos_id``, if the tokenizer has one and the file does not end so
            already.
        allowed_special: special tokens whose text becomes their id; the text of others stays text.
        on_bytes: called with the bytes that each chunk had, to show progress.

    Raises:
        InputError: a missing file, or shards in ``out`` that were made from other files or settings.
    """
    started = time.perf_counter()
    files = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    for file in files:
        if not file.is_file():
            raise InputError(f"no file at {file}")
    check_is_no_source(out, files)
    if num_workers is not None and num_workers < 1:
        raise InputError(f"num_workers={num_workers} must be 1 or more")
    if shard_tokens is not None and shard_tokens < 1:
        raise InputError(f"shard_tokens={shard_tokens} must be 1 or more")
    allowed, _ = tokenizer.resolve_special(allowed_special, ())
    job = _Job(tokenizer, files, allowed, append_eos)
    if shard_tokens is None:
        report = EncodeReport(files=len(files), shards=1)
        with TokenFileWriter(out, tokenizer.vocab_size, tokenizer.fingerprint) as writer:
            for chunk in _encoded(job, (0, 0), num_workers or 1):
                _write(writer, chunk, report)
                on_bytes(chunk.n_bytes)
    else:
        report = _encode_shards(job, Path(out), shard_tokens, num_workers or 1, on_bytes)
    report.seconds = time.perf_counter() - started
    return report


@dataclass(frozen=True)
class _Chunk:
    """A stretch of a file that can be encoded apart."""

    file: int
    start: int
    stop: int
    ends_file: bool

    @property
    def next_place(self) -> tuple[int, int]:
        return (self.file + 1, 0) if self.ends_file else (self.file, self.stop)


@dataclass
class _Encoded:
    """Ids of a chunk, and where the next one begins."""

    ids: np.ndarray
    ends: np.ndarray  # positions after the ids that end a document
    n_bytes: int
    next_place: tuple[int, int]  # (file, byte)


class _Job:
    """What a worker needs; it can be sent to another process."""

    def __init__(
        self, tokenizer: "BPETokenizer", files: list[Path], allowed: frozenset[str], append_eos: bool
    ) -> None:
        self.tokenizer, self.files, self.allowed, self.append_eos = tokenizer, files, allowed, append_eos
        self.dtype = token_dtype(tokenizer.vocab_size)

    def encode_all(self, batch: list[_Chunk]) -> list[_Encoded]:
        return [self.encode(chunk) for chunk in batch]

    def encode(self, chunk: _Chunk) -> _Encoded:
        data = valid_utf8(read_range(self.files[chunk.file], chunk.start, chunk.stop))
        tokenizer, eos = self.tokenizer, self.tokenizer.eos_id
        parts: list[np.ndarray] = []
        raw = [token.encode() for token in self.allowed]
        pieces: Iterator[tuple[bytes, bool]]
        if any(token[:1] in data and token in data for token in raw):
            text = special.segments(data.decode(), self.allowed)
            pieces = ((piece.encode(), is_special) for piece, is_special in text)
        else:
            pieces = iter([(data, False)] if data else [])
        for piece, is_special in pieces:
            if is_special:
                parts.append(np.array([tokenizer.special_tokens[piece.decode()]], self.dtype))
            else:
                parts.append(tokenizer.encode_utf8(piece, self.dtype))
        if chunk.ends_file and self.append_eos and eos is not None and not (parts and parts[-1][-1:] == eos):
            parts.append(np.array([eos], self.dtype))
        ids = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, self.dtype)
        ends = np.flatnonzero(ids == eos) + 1 if eos is not None else np.empty(0, np.int64)
        if chunk.ends_file and (not len(ends) or ends[-1] != len(ids)):
            ends = np.append(ends, len(ids))
        return _Encoded(ids, ends, chunk.stop - chunk.start, chunk.next_place)


_job_of_process: _Job | None = None


def _start_process(job: _Job) -> None:
    global _job_of_process
    _job_of_process = job


def _encode_in_process(batch: list[_Chunk]) -> list[_Encoded]:
    assert _job_of_process is not None
    return _job_of_process.encode_all(batch)


def _chunks(job: _Job, start: tuple[int, int]) -> Iterator[_Chunk]:
    for number in range(start[0], len(job.files)):
        skipped = start[1] if number == start[0] else 0
        ranges = safe_ranges(job.files[number], job.tokenizer.pattern, job.allowed, _CHUNK, skipped)
        begin, end = next(ranges)
        for following in ranges:
            yield _Chunk(number, begin, end, ends_file=False)
            begin, end = following
        yield _Chunk(number, begin, end, ends_file=True)


def _encoded(job: _Job, start: tuple[int, int], workers: int) -> Iterator[_Encoded]:
    """Encode chunks side by side; results in order, only a few in memory."""
    compiled = job.tokenizer.prepare()
    if workers == 1:
        yield from map(job.encode, _chunks(job, start))
        return
    pool: Executor
    encode: Callable[[list[_Chunk]], list[_Encoded]]
    if compiled:
        pool, encode = ThreadPoolExecutor(workers), job.encode_all
    else:
        from multiprocessing import get_context

        pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_process, (job,))
        encode = _encode_in_process
    waiting: deque[Future[list[_Encoded]]] = deque()
    with pool:
        for batch in _batches(_chunks(job, start)):
            waiting.append(pool.submit(encode, batch))
            if len(waiting) > workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _batches(chunks: Iterator[_Chunk]) -> Iterator[list[_Chunk]]:
    """Several chunks a job: handing one over can wait longer for the interpreter lock than it takes."""
    batch: list[_Chunk] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += chunk.stop - chunk.start
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(writer: TokenFileWriter, chunk: _Encoded, report: EncodeReport) -> None:
    _write_part(writer, chunk, report, 0, len(chunk.ids))
    if chunk.next_place[1] // _SYNC != (chunk.next_place[1] - chunk.n_bytes) // _SYNC:
        writer.sync()  # while the workers go on
    report.n_bytes += chunk.n_bytes


def _write_part(
    writer: TokenFileWriter, chunk: _Encoded, report: EncodeReport, start: int, stop: int
) -> None:
    """Ids start … stop−1 of a chunk, with the document ends among them."""
    ends = chunk.ends[((chunk.ends > start) | (start == 0)) & (chunk.ends <= stop)]
    writer.add_documents(chunk.ids[start:stop], ends - start)
    report.tokens += stop - start
    report.documents += len(ends)


def _encode_shards(
    job: _Job,
    folder: Path,
    shard_tokens: int,
    workers: int,
    on_bytes: Callable[[int], None],
) -> EncodeReport:
    tokenizer, files = job.tokenizer, job.files
    settings = {
        "fingerprint": tokenizer.fingerprint,
        "files": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "shard_tokens": shard_tokens,
        "append_eos": job.append_eos,
        "allowed_special": sorted(job.allowed),
    }
    report, place, written = EncodeReport(files=len(files)), (0, 0), 0
    progress_path = folder / PROGRESS_FILE
    if progress_path.is_file():
        report, place, written = _read_progress(progress_path, settings)
        report.resumed_shards = report.shards
    chunks, chunk = _encoded(job, place, workers), None
    while place[0] < len(files):
        with TokenFileWriter(
            folder / SHARD_NAME.format(report.shards), tokenizer.vocab_size, tokenizer.fingerprint
        ) as writer:
            while writer.n_tokens < shard_tokens and place[0] < len(files):
                chunk = chunk or next(chunks)
                stop = min(len(chunk.ids), written + shard_tokens - writer.n_tokens)
                _write_part(writer, chunk, report, written, stop)
                written = stop
                if written == len(chunk.ids):
                    report.n_bytes += chunk.n_bytes
                    on_bytes(chunk.n_bytes)
                    place, written, chunk = chunk.next_place, 0, None
        report.shards += 1
        # Where the chunk under way begins, and how many of its ids stand in a shard already.
        state = {"settings": settings, "next": [*place, written], "report": asdict(report)}
        write_text(progress_path, json.dumps(state, indent=1) + "\n")
    return report


def _read_progress(path: Path, settings: dict[str, Any]) -> tuple[EncodeReport, tuple[int, int], int]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        found, (file, start, *rest) = state["settings"], map(int, state["next"])
        report = EncodeReport(**state["report"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error!r}): delete the folder to start anew") from None
    different = next((name for name in settings if found.get(name) != settings[name]), None)
    if different is not None:
        raise InputError(
            f"{path.parent} holds shards made with another {different}: use another folder, or delete it"
        )
    shards = [path.parent / SHARD_NAME.format(number) for number in range(report.shards)]
    missing = next((shard for shard in shards if not shard.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing} is missing, which was written: delete the folder to start anew")
    return report, (file, start), rest[0] if rest else 0  # older ones ended each shard with a chunk
