"""Annotated documents on disk: Parquet or JSON lines, in parts, so that a run can be killed and resumed.

    out/run.json                            what was asked for
    out/part-00003-of-00008-000012.parquet  shard 3's thirteenth part: it appears whole or not at all

A document belongs to the shard ``number % shards`` and its row stands in exactly one part. A process that
starts again reads which documents are done and goes on with the others: every document is there exactly once.
"""

import fcntl
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from ..files import atomic_path
from .calls import Call
from .filter import Annotated, Candidate

FORMATS = ("parquet", "jsonl")
_PART = re.compile(r"part-(?P<shard>\d{5})-of-(?P<shards>\d{5})-(?P<part>\d{6})\.(?P<format>parquet|jsonl)")


def to_row(document: Annotated) -> dict[str, Any]:
    """A plain dict: the text, and a list of candidates with each loss, L⁺, L⁻, L⁻ − L⁺ and the verdict."""
    return {
        "id": document.id,
        "text": document.text,
        "date": document.date,
        "candidates": [_candidate_row(candidate) for candidate in document.candidates],
    }


def _candidate_row(c: Candidate) -> dict[str, Any]:
    row = asdict(c)
    call = row.pop("call")
    row = {"tool": call["tool"], "argument": call["argument"], **row}
    row |= {"loss_plus": c.loss_plus, "loss_minus": c.loss_minus, "gain": c.gain}
    # NaN and infinity are not JSON; the latter come of the differences of huge losses, which are made anew.
    return {name: None if _is_no_number(value) else value for name, value in row.items()}


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


_FIELDS = {field.name: field for field in fields(Candidate) if field.name != "call"}


def from_row(row: dict[str, Any]) -> Annotated:
    """What ``to_row`` wrote; what follows from the losses is computed again.

    Raises:
        InputError: it is no such row.
    """
    try:
        candidates = []
        for found in row["candidates"]:
            values = {name: found[name] for name in _FIELDS}
            for name, field in _FIELDS.items():
                if values[name] is None and field.type in (float, "float"):
                    values[name] = float("nan")
            candidates.append(Candidate(call=Call(found["tool"], found["argument"]), **values))
        return Annotated(row["text"], tuple(candidates), row["id"], row["date"])
    except (KeyError, TypeError) as error:
        raise InputError(f"this is no row of an annotated corpus: {error!r} is wrong or missing") from None


class AnnotatedCorpus:
    """A folder of annotated documents.

    Args:
        folder: made when something is written.
        shard: which share of the documents this process writes.
        shards: how many processes share them.
        format: parquet or jsonl.

    Raises:
        InputError: a shard that does not exist, or a folder that was begun with another number of shards.

    Example:
        >>> corpus = AnnotatedCorpus("runs/annotated")  # doctest: +SKIP
        >>> corpus.write([Annotated("3 + 4 is 7.", id="0")])  # doctest: +SKIP
        >>> [document.text for document in corpus]  # doctest: +SKIP
        ['3 + 4 is 7.']
    """

    def __init__(self, folder: Path | str, shard: int = 0, shards: int = 1, format: str = "parquet") -> None:
        if not 0 <= shard < shards:
            raise InputError(f"shard={shard} must be from 0 to shards - 1 = {shards - 1}")
        if format not in FORMATS:
            raise InputError(f"format={format!r} is not known: use {' or '.join(FORMATS)}")
        self.folder, self.shard, self.shards, self.format = Path(folder), shard, shards, format
        self._next = 1 + max((part for part, _ in self._own_parts()), default=-1)

    def __enter__(self) -> "AnnotatedCorpus":
        """Keep the shard to this process; the system frees it however the process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / f".shard-{self.shard:05d}.lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise InputError(f"another process is writing shard {self.shard} of {self.folder}") from None
        for half in self.folder.glob(f".part-{self.shard:05d}-of-*.tmp"):  # of a process that was killed
            half.unlink()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def parts(self) -> list[Path]:
        """All parts of all shards, in order."""
        found = self.folder.iterdir() if self.folder.is_dir() else []
        return sorted(file for file in found if _PART.fullmatch(file.name))

    def _own_parts(self) -> Iterator[tuple[int, Path]]:
        for file in self.parts():
            match = _PART.fullmatch(file.name)
            assert match
            if int(match["shards"]) != self.shards:
                raise InputError(
                    f"{self.folder} was begun with {int(match['shards'])} shards, not {self.shards}: "
                    "go on with as many, or choose another folder"
                )
            if int(match["shard"]) == self.shard:
                yield int(match["part"]), file

    def is_mine(self, number: int) -> bool:
        """Whether the document of that number (from 0) belongs to this shard."""
        return number % self.shards == self.shard

    def done(self) -> set[str]:
        """Ids of the documents that this shard has written."""
        return {document.id for _, file in self._own_parts() for document in read_part(file)}

    def write(self, documents: Iterable[Annotated]) -> Path:
        """A new part, whole or not at all."""
        name = f"part-{self.shard:05d}-of-{self.shards:05d}-{self._next:06d}.{self.format}"
        with atomic_path(self.folder / name) as temporary:
            rows = [to_row(document) for document in documents]
            if self.format == "jsonl":
                lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
                temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            else:
                _write_parquet(rows, temporary)
        self._next += 1
        return self.folder / name

    def __iter__(self) -> Iterator[Annotated]:
        """Every document of every shard."""
        for file in self.parts():
            yield from read_part(file)


def read_annotated(source: Path | str) -> Iterator[Annotated]:
    """Documents of a folder, or of one parquet or jsonl file.

    Raises:
        InputError: nothing there, or another kind of file.
    """
    path = Path(source)
    if path.is_dir():
        corpus = [file for file in sorted(path.iterdir()) if _PART.fullmatch(file.name)]
        if not corpus:
            raise InputError(
                f"no annotated documents in {path}: `ai-learning toolformer annotate` writes them"
            )
        for file in corpus:
            yield from read_part(file)
        return
    if not path.is_file() or path.suffix.lstrip(".") not in FORMATS:
        raise InputError(f"{path} is no folder or file of annotated documents (.parquet or .jsonl)")
    yield from read_part(path)


def read_part(file: Path) -> Iterator[Annotated]:
    """Documents of one file.

    Raises:
        InputError: it is damaged.
    """
    try:
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").split("\n")  # splitlines also cuts at \x85
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(file).to_pylist()
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise InputError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return map(from_row, rows)


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text, number, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    losses = ("probability", "loss_result", "loss_nothing", "loss_call", "loss_plus", "loss_minus", "gain")
    candidate = pyarrow.struct(
        [
            *(("tool", text), ("argument", text), ("position", number), ("offset", number)),
            *(("result", text), ("error", text)),
            *((name, real) for name in losses),
            ("kept", pyarrow.bool_()),
        ]
    )
    schema = pyarrow.schema(
        [("id", text), ("text", text), ("date", text), ("candidates", pyarrow.list_(candidate))]
    )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
