"""Token files: what is written is read, by other tools too; what is damaged is refused."""

import json
import struct

import numpy as np
import pytest

from ai_learning.errors import InputError
from ai_learning.token_file import TokenFile, TokenFileWriter, token_dtype


@pytest.mark.parametrize(("vocab_size", "dtype"), [(258, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_round_trip(tmp_path, vocab_size, dtype):
    path = tmp_path / "a.tokens"
    with TokenFileWriter(path, vocab_size, "print") as writer:
        writer.add_document([1, 2, 3])
        writer.add_documents(np.array([4, 5, 6], np.uint32), np.array([1]))
        writer.add([vocab_size - 1])
    found = TokenFile(path)
    assert found.tokens.dtype == dtype == token_dtype(vocab_size)
    assert found.tokens.tolist() == [1, 2, 3, 4, 5, 6, vocab_size - 1]
    assert found.document_ends.tolist() == [3, 4, 7] and len(found) == 7
    assert (found.vocab_size, found.fingerprint) == (vocab_size, "print")


def test_opens_in_safetensors(tmp_path):
    from safetensors.numpy import load_file

    path = tmp_path / "a.tokens"
    with TokenFileWriter(path, 258, "print") as writer:
        writer.add_document([7, 8, 9])
    tensors = load_file(path)
    assert tensors["tokens"].tolist() == [7, 8, 9] and tensors["document_ends"].tolist() == [3]


def test_nothing_is_left_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), TokenFileWriter(tmp_path / "a", 258, "f") as writer:
        writer.add([1])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "a.tokens"
    with TokenFileWriter(path, 258, "f") as writer:
        writer.add_document(list(range(200)))
    good = path.read_bytes()
    header = json.loads(good[8:4096])
    header["__metadata__"]["format"] = "other/1"
    other = struct.pack("<Q", 4088) + json.dumps(header).encode().ljust(4088)
    for data in (b"", good[:5], good[:2000], other + good[4096:], b"text " * 100, good[:4200]):
        path.write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            TokenFile(path)
    with pytest.raises(InputError, match="no token file"):
        TokenFile(tmp_path / "none")
