"""Rows out of files: each with where it stands, and one that cannot be read told rather than lost."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import open_dataset


@dataclass(frozen=True)
class BadRow:
    """A row that is no row, and why."""

    reason: str


Row = tuple[str, Mapping[str, Any] | BadRow]

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def rows_of(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """(where, row) of every row of a source.

    Raises:
        InputError: no such source, or a file that as a whole cannot be read.
    """
    if not isinstance(source, str | Path):
        return ((f"row {number}", _mapping(row)) for number, row in enumerate(source))
    if str(source).startswith("hf:"):
        name, rows, _ = open_dataset(str(source).removeprefix("hf:"))
        return ((f"{name}, row {number}", _mapping(row)) for number, row in enumerate(rows))
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _table, ".tsv": _table, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: instruction data is read from {', '.join(FORMATS)} or hf:NAME")
    return readers[path.suffix.lower()](path)


def _mapping(row: Any) -> Mapping[str, Any] | BadRow:
    return row if isinstance(row, Mapping) else BadRow("it is no object with fields")


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}, line {number}", _parsed(line.removeprefix(b"\xef\xbb\xbf"))


def _parsed(line: bytes) -> Mapping[str, Any] | BadRow:
    try:
        return _mapping(json.loads(line.decode("utf-8")))
    except UnicodeDecodeError:
        return BadRow("it is not UTF-8")
    except ValueError as error:
        return BadRow(f"it is not JSON ({error})")
    except RecursionError:
        return BadRow("it is nested too deeply")


def _json(path: Path) -> Iterator[Row]:
    """A list of rows; or, as many such files are, one row a line after all."""
    data = path.read_bytes()
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if b"\n{" in data.strip():
            yield from _json_lines(path)
            return
        raise InputError(f"{path} is not JSON ({error})") from None
    if isinstance(rows, Mapping):
        rows = _rows_in(rows, path)
    if not isinstance(rows, list):
        raise InputError(f"{path} holds no list of rows")
    for number, row in enumerate(rows):
        yield f"{path}, item {number}", _mapping(row)


def _rows_in(whole: Mapping[str, Any], path: Path) -> list[Any]:
    """The list of objects that an object holds; or the object itself, where it is a row."""
    lists = {
        key: value
        for key, value in whole.items()
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
    }
    if not lists or any(_is_chat(value) for value in lists.values()):
        return [whole]
    if len(lists) > 1:
        keys = ", ".join(map(repr, lists))
        raise InputError(f"{path} holds several lists of objects ({keys}): keep the one that holds the rows")
    return next(iter(lists.values()))


def _is_chat(items: list[Any]) -> bool:
    """Whether a list holds the messages of one row, and not rows."""
    said = {"content", "tool_calls", "function_call"}
    keys = [set(item) for item in items if isinstance(item, Mapping)]
    return all(("role" in there and there & said) or {"from", "value"} <= there for there in keys)


def _table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # a cell may hold a whole text
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        line = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield f"{path}, line {line}", BadRow(f"it is no row of a table ({error})")
                line = reader.line_num + 1
                continue
            if cells is None:
                return
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                _check_names(header, path)
            elif len(cells) != len(header):
                yield where, BadRow(f"it has {len(cells)} fields, the header {len(header)}")
            else:
                yield where, dict(zip(header, cells, strict=True))


def _check_names(columns: list[str], path: Path) -> None:
    """Of two columns with one name a row would silently keep the last."""
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise InputError(f"{path} has two columns {twice[0]!r}: give one of them another name")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"reading {path} needs pyarrow: pip install pyarrow") from None
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                _check_names(batch.schema.names, path)
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or no Parquet file ({reason})") from None
