"""Token files: the ids of a corpus on disk, read through a memory map.

A token file is a safetensors file, so other tools can open it too. It holds ``tokens`` (uint16 or uint32,
one id after the other) and ``document_ends`` (uint64, the position after each document's last token); its
metadata names the vocabulary and the tokenizer's fingerprint, so that a model can refuse the wrong one, and
holds a checksum of the header, so that a damaged header is not read as other tokens. The tokens themselves
are not checked: that would read the whole file.

A folder of such files (``data prepare --shard-tokens``) is one sequence: `TokenFolder`.
"""

import json
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import TracebackType

import numpy as np

from .errors import InputError
from .files import atomic_path

SUFFIX = ".tokens"
PROGRESS_FILE = "progress.json"
"""in a folder of shards: how far ``encode_files`` is"""
_MARK = b'{"__metadata__": {"format": "ai_learning.tokens/'  # after the eight bytes of the header's length
_HEADER_BYTES = 4096  # reserved at the front: the counts are known only at the end
_DTYPES = {
    name: np.dtype(code) for name, code in {"U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}.items()
}


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where all ids fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class TokenFileWriter:
    """Write the ids of any number of documents in bounded memory; the file appears when all is written.

    Args:
        path: the file to make.
        vocab_size: decides the width: uint16 up to 65,536 ids, uint32 above.
        fingerprint: the tokenizer's.

    Example:
        >>> with TokenFileWriter("corpus.tokens", 258, "…") as writer:  # doctest: +SKIP
        ...     writer.add_document([72, 105, 256])
    """

    def __init__(self, path: Path | str, vocab_size: int, fingerprint: str) -> None:
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.dtype = token_dtype(vocab_size)
        self.n_tokens = 0
        self._ends: list[int] = []

    def __enter__(self) -> "TokenFileWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            self._file = stack.enter_context(temporary.open("wb"))
            self._file.write(b" " * _HEADER_BYTES)
            # On exit these run in reverse: finish, close, rename. If one fails, the file is not renamed.
            stack.push(self._finish_unless_failed)
            self._stack = stack.pop_all()
        return self

    def add(self, ids: Iterable[int] | np.ndarray) -> None:
        """Append ids to the current document."""
        array = ids if isinstance(ids, np.ndarray) else np.asarray(list(ids), np.int64)
        if array.size and not (0 <= array.min() and array.max() < self.vocab_size):
            raise InputError(
                f"token ids from {array.min()} to {array.max()} do not fit a vocabulary of {self.vocab_size}"
            )
        self._file.write(np.ascontiguousarray(array, self.dtype).data)
        self.n_tokens += array.size

    def end_document(self) -> None:
        """End the current document."""
        self._ends.append(self.n_tokens)

    def sync(self) -> None:
        """Flush what was written so far to disk, so that closing the file takes less time."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def add_documents(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Append several documents, which end at the positions ``ends`` of ``ids`` (the last may go on)."""
        self._ends.extend((ends + self.n_tokens).tolist())
        self.add(ids)

    def add_document(self, ids: Iterable[int] | np.ndarray) -> None:
        """Append one whole document."""
        self.add(ids)
        self.end_document()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _finish_unless_failed(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        if not self._ends or self._ends[-1] != self.n_tokens:
            self.end_document()
        size = self.n_tokens * self.dtype.itemsize
        padding = -size % 8  # uint64 wants its place in the file aligned to eight
        ends = np.asarray(self._ends, dtype="<u8").tobytes()
        if padding:  # safetensors allows no hole between tensors, so the gap is a tensor itself
            self._file.write(b"\0" * padding)
        self._file.write(ends)
        header: dict = {
            "__metadata__": {
                "format": "ai_learning.tokens/1",
                "vocab_size": str(self.vocab_size),
                "fingerprint": self.fingerprint,
            },
            "tokens": _entry(self.dtype, self.n_tokens, 0, size),
        }
        if padding:
            header["padding"] = _entry(np.dtype("u1"), padding, size, size + padding)
        header["document_ends"] = _entry(
            np.dtype("<u8"), len(self._ends), size + padding, size + padding + len(ends)
        )
        header["__metadata__"]["crc32"] = _checksum(header)
        text = json.dumps(header).encode()
        if 8 + len(text) > _HEADER_BYTES:
            raise InputError(
                f"the header of {self.path} needs {8 + len(text)} bytes and has {_HEADER_BYTES}: "
                f"the fingerprint of {len(self.fingerprint)} characters is too long"
            )
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER_BYTES - 8) + text)


def _checksum(header: dict) -> str:
    """CRC-32 of everything in the header but the checksum itself, as eight hexadecimal digits."""
    meta = {name: value for name, value in header["__metadata__"].items() if name != "crc32"}
    return f"{zlib.crc32(json.dumps({**header, '__metadata__': meta}).encode()):08x}"


def _entry(dtype: np.dtype, count: int, start: int, end: int) -> dict:
    name = next(name for name, known in _DTYPES.items() if known == dtype)
    return {"dtype": name, "shape": [count], "data_offsets": [start, end]}


class TokenFile:
    """A token file opened through a memory map: nothing is read until it is indexed.

    Attributes:
        tokens: (n,) uint16 or uint32.
        document_ends: (documents,) uint64.
        vocab_size: of the tokenizer that wrote it.
        fingerprint: of the tokenizer that wrote it.

    Raises:
        InputError: missing, damaged, or no token file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"no token file at {self.path}: make one with `ai-learning data prepare`")
        try:
            with self.path.open("rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                if length > 2**20:
                    raise ValueError(f"header length {length}")
                header = json.loads(file.read(length))
            meta = header["__metadata__"]
            if meta["format"] != "ai_learning.tokens/1":
                raise ValueError(f"format {meta['format']!r}")
            if meta.get("crc32", _checksum(header)) != _checksum(header):  # older files have none
                raise ValueError("the checksum of its header does not match")
            self.vocab_size = int(meta["vocab_size"])
            self.fingerprint = str(meta["fingerprint"])
            _check_layout(header, self.path.stat().st_size - 8 - length)
            self.tokens = self._map(header["tokens"], ("U16", "U32"), 8 + length)
            self.document_ends = self._map(header["document_ends"], ("U64",), 8 + length)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, struct.error) as error:
            raise InputError(
                f"{self.path} is not a token file, or is damaged ({error}): prepare it again"
            ) from None

    def _map(self, entry: dict, dtypes: tuple[str, ...], data_start: int) -> np.ndarray:
        if entry["dtype"] not in dtypes:
            raise ValueError(f"dtype {entry['dtype']!r}, expected {' or '.join(dtypes)}")
        dtype = _DTYPES[entry["dtype"]]
        start, _ = entry["data_offsets"]
        (count,) = entry["shape"]
        if count == 0:
            return np.empty(0, dtype)
        return np.memmap(self.path, dtype=dtype, mode="r", offset=data_start + start, shape=(count,))

    def __len__(self) -> int:
        return len(self.tokens)


def _check_layout(header: dict, n_bytes: int) -> None:
    """Tensors stand one after the other and fill the ``n_bytes`` after the header, as safetensors asks."""
    position = 0
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
        (start, end), (count,) = entry["data_offsets"], entry["shape"]
        if start != position or end - start != count * _DTYPES[entry["dtype"]].itemsize or count < 0:
            raise ValueError(f"{count} × {entry['dtype']} at bytes {start} to {end}, expected at {position}")
        position = end
    if position != n_bytes:
        raise ValueError(f"{n_bytes} bytes of data, expected {position}")


def is_token_file(path: Path) -> bool:
    """Whether a file is a token file, by its first bytes, whatever its name."""
    with path.open("rb") as file:
        return file.read(8 + len(_MARK))[8:] == _MARK


def holds_tokens(folder: Path) -> bool:
    """Whether a folder holds token files."""
    return any(folder.glob("*" + SUFFIX))


class Shards:
    """Ids of several arrays as one sequence; ``shards[a:b]`` is an array, copied only across a border.

    Args:
        parts: arrays of one dtype, usually memory maps.

    Example:
        >>> shards = Shards([np.array([1, 2, 3]), np.array([4, 5])])
        >>> len(shards), shards[1:3].tolist(), shards[2:5].tolist()
        (5, [2, 3], [3, 4, 5])
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = [part for part in parts if len(part)] or list(parts[:1])
        self._starts = list(accumulate(map(len, self._parts), initial=0))  # the last one is the length
        self.dtype = self._parts[0].dtype
        self.itemsize = self.dtype.itemsize

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, place: slice) -> np.ndarray:
        found = self._between(place)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def part(self, place: slice) -> "Shards":
        """A slice as ``Shards``, without copying, however long."""
        return Shards(self._between(place))

    def _between(self, place: slice) -> list[np.ndarray]:
        start, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError(f"a step of {step}: only stretches can be taken of shards")
        found: list[np.ndarray] = []
        number = max(0, bisect_right(self._starts, start) - 1)
        while number < len(self._parts) and (self._starts[number] < stop or not found):
            offset = self._starts[number]
            found.append(self._parts[number][start - offset : max(start, stop) - offset])
            start, number = max(start, self._starts[number + 1]), number + 1
        return found or [self._parts[0][:0]]


class TokenFolder:
    """The token files of a folder, in the order of their names, as one long one.

    Attributes:
        tokens: (n,) uint16 or uint32; windows may cross from one file into the next.
        vocab_size: of the tokenizer that wrote them.
        fingerprint: of the tokenizer that wrote them.

    Raises:
        InputError: no token files; not all by one tokenizer; or some that ``data prepare`` made are missing.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        files = [TokenFile(file) for file in sorted(self.path.glob("*" + SUFFIX))]
        if not files:
            raise InputError(f"no token files in {self.path}: make some with `ai-learning data prepare`")
        first = files[0]
        self.vocab_size, self.fingerprint = first.vocab_size, first.fingerprint
        for file in files:
            if (file.vocab_size, file.fingerprint) != (self.vocab_size, self.fingerprint):
                raise InputError(
                    f"{file.path.name} and {first.path.name} in {self.path} were written by different "
                    f"tokenizers (fingerprints {file.fingerprint} and {first.fingerprint}): keep them apart"
                )
        self.tokens = Shards([file.tokens for file in files])
        self._check_whole(len(files))

    def _check_whole(self, n_files: int) -> None:
        """Part of a corpus must not pass for all of it."""
        path = self.path / PROGRESS_FILE
        if not path.is_file():  # token files that were put together by hand
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            done = state["next"][0] >= len(state["settings"]["files"])
            shards, tokens = int(state["report"]["shards"]), int(state["report"]["tokens"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(f"{path} is damaged ({error!r}): prepare the folder again") from None
        if not done:
            raise InputError(f"{self.path} is not finished: give the same `data prepare` again, it goes on")
        if (n_files, len(self.tokens)) != (shards, tokens):
            raise InputError(
                f"{self.path} holds {len(self.tokens):,} tokens in {n_files} files, and `data prepare` wrote "
                f"{tokens:,} in {shards}: prepare it again"
            )

    def __len__(self) -> int:
        return len(self.tokens)
