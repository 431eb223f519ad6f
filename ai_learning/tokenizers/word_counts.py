"""Unique words and their counts: what training works on, and how it is kept on disk."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import atomic_path


class WordCounts:
    """Unique words in order of first appearance.

    Attributes:
        data: the bytes of all words, one after the other: (bytes,) uint8.
        offsets: where each starts, and the end of the last: (words + 1,) int64.
        counts: (words,) int64.
    """

    def __init__(self, data: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> None:
        self.data, self.offsets, self.counts = data, offsets, counts

    @classmethod
    def from_dict(cls, words: Mapping[bytes, int]) -> "WordCounts":
        """From word → count."""
        offsets = np.zeros(len(words) + 1, np.int64)
        np.cumsum([len(word) for word in words], out=offsets[1:])
        return cls(
            np.frombuffer(b"".join(words), np.uint8), offsets, np.array(list(words.values()), np.int64)
        )

    def __len__(self) -> int:
        return len(self.counts)

    def items(self) -> Iterator[tuple[bytes, int]]:
        """(word, count), in order."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        for start, end, count in zip(ends, ends[1:], self.counts.tolist(), strict=False):
            yield data[start:end], count


def save_counts(counts: WordCounts, path: str | Path, key: dict[str, Any]) -> None:
    """Keep word counts, and what they were counted from, in a safetensors file."""
    from safetensors.numpy import save_file

    tensors = {"data": counts.data, "offsets": counts.offsets, "counts": counts.counts}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": "ai_learning.word_counts/1", "key": json.dumps(key)})


def load_counts(path: str | Path, key: dict[str, Any]) -> WordCounts | None:
    """Word counts kept at ``path``; ``None`` if there are none yet.

    Raises:
        InputError: damaged, or counted from something else or with other settings.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        return None
    try:
        with safe_open(path, "np") as file:
            found = json.loads((file.metadata() or {})["key"])
            data, offsets, counts = (file.get_tensor(name) for name in ("data", "offsets", "counts"))
    except (KeyError, ValueError, OSError, SafetensorError) as error:
        raise InputError(
            f"{path} holds no word counts, or is damaged ({error}): delete it to count anew"
        ) from None
    different = next((name for name in key if found.get(name) != key[name]), None)
    if different is not None:
        raise InputError(
            f"{path} was counted with another {different} ({str(found.get(different))[:80]!r}): "
            "delete it to count anew, or name another file"
        )
    return WordCounts(data, offsets, counts)
