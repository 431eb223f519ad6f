"""Token files: the ids of a corpus on disk, read through a memory map.

A token file is a safetensors file, so other tools can open it too. It holds ``tokens`` (uint16 or uint32,
one id after the other) and ``document_ends`` (uint64, the position after each document's last token); its
metadata names the vocabulary and the tokenizer's fingerprint, so that a model can refuse the wrong one.
"""

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from .errors import InputError
from .files import atomic_path

_HEADER_BYTES = 4096  # reserved at the front: the counts are known only at the end


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 where all ids fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class TokenFileWriter:
    """Append ids of any number of documents in bounded memory; the file appears only when all is written.

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
        self._atomic = atomic_path(self.path)
        self._file = self._atomic.__enter__().open("wb")
        self._file.write(b" " * _HEADER_BYTES)
        return self

    def add(self, ids: Iterable[int] | np.ndarray) -> None:
        """Append ids to the document under way."""
        array = ids if isinstance(ids, np.ndarray) else np.asarray(list(ids), np.int64)
        if array.size and not (0 <= array.min() and array.max() < self.vocab_size):
            raise InputError(
                f"token ids from {array.min()} to {array.max()} do not fit a vocabulary of {self.vocab_size}"
            )
        self._file.write(np.ascontiguousarray(array, self.dtype).data)
        self.n_tokens += array.size

    def end_document(self) -> None:
        """Mark the end of the document under way."""
        self._ends.append(self.n_tokens)

    def add_documents(self, ids: np.ndarray, ends: np.ndarray) -> None:
        """Append ids in which documents end at the positions ``ends`` (the last one may go on)."""
        self._ends.extend((ends + self.n_tokens).tolist())
        self.add(ids)

    def add_document(self, ids: Iterable[int] | np.ndarray) -> None:
        """Append one whole document."""
        self.add(ids)
        self.end_document()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            self._atomic.__exit__(kind, error, trace)

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
        text = json.dumps(header).encode()
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER_BYTES - 8) + text)
        if self._file.tell() > _HEADER_BYTES:
            raise InputError(f"the header of {self.path} outgrew {_HEADER_BYTES} bytes: {len(text)} needed")


def _entry(dtype: np.dtype, count: int, start: int, end: int) -> dict:
    name = {"u1": "U8", "u2": "U16", "u4": "U32", "u8": "U64"}[dtype.str[1:]]
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
            self.vocab_size = int(meta["vocab_size"])
            self.fingerprint = str(meta["fingerprint"])
            self.tokens = self._map(header["tokens"], 8 + length)
            self.document_ends = self._map(header["document_ends"], 8 + length)
        except (KeyError, TypeError, ValueError, struct.error) as error:
            raise InputError(
                f"{self.path} is not a token file, or is damaged ({error}): prepare it again"
            ) from None

    def _map(self, entry: dict, data_start: int) -> np.ndarray:
        dtype = np.dtype({"U16": "<u2", "U32": "<u4", "U64": "<u8"}[entry["dtype"]])
        start, _ = entry["data_offsets"]
        (count,) = entry["shape"]
        if count == 0:
            return np.empty(0, dtype)
        return np.memmap(self.path, dtype=dtype, mode="r", offset=data_start + start, shape=(count,))

    def __len__(self) -> int:
        return len(self.tokens)
