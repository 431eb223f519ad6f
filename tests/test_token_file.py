"""Token files: what is written is read, by other tools too; what is damaged is refused."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.token_file import Shards, TokenFile, TokenFileWriter, TokenFolder, is_token_file, token_dtype


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


def test_a_failure_at_the_end_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.tokens"
    with TokenFileWriter(path, 258, "f") as writer:
        writer.add_document([1, 2])
    good = path.read_bytes()

    long = pytest.raises(InputError, match="fingerprint of 5000 characters is too long")
    with long, TokenFileWriter(path, 258, "f" * 5000) as writer:
        writer.add_document([3])
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TokenFileWriter, "_finish", interrupted)
        with pytest.raises(KeyboardInterrupt), TokenFileWriter(path, 258, "f") as writer:
            writer.add_document([3])
    assert path.read_bytes() == good and list(tmp_path.iterdir()) == [path]


class FullDisk(io.FileIO):
    """Fails on closing, as a file does whose buffer no longer fits."""

    def close(self):
        if not self.closed:
            super().close()
            raise OSError("disk full")


@pytest.mark.parametrize("body_fails", [False, True])
def test_a_failure_to_close_leaves_the_old_file(tmp_path, monkeypatch, body_fails):
    path = tmp_path / "a.tokens"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
        with pytest.raises(OSError, match="disk full"), TokenFileWriter(path, 258, "f") as writer:
            writer.add_document([3])
            if body_fails:
                raise RuntimeError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("n_tokens", [3, 4])  # with padding before the ends, and without
def test_no_flipped_bit_of_the_header_is_read_as_something_else(tmp_path, n_tokens):
    path = tmp_path / "a.tokens"
    with TokenFileWriter(path, 258, "print9") as writer:
        writer.add_document(list(range(n_tokens)))
    good = path.read_bytes()
    same = 0
    for bit in range(8 * 4096):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = TokenFile(path)
        except InputError:
            continue
        same += 1
        assert found.tokens.tolist() == list(range(n_tokens)), bit
        assert found.document_ends.tolist() == [n_tokens], bit
        assert (found.vocab_size, found.fingerprint) == (258, "print9"), bit
    assert same < 200  # the name of the checksum may be lost, little else


def _with_header(good, change):
    header = json.loads(good[8:4096])
    del header["__metadata__"]["crc32"]  # older files have none
    change(header)
    return struct.pack("<Q", 4088) + json.dumps(header).encode().ljust(4088) + good[4096:]


def _set(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(header):
        for key in keys:
            header = header[key]
        header[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("tokens", "data_offsets", [0, 10]),  # not its shape
        _set("tokens", "shape", [3]),
        _set("tokens", "dtype", "U32"),
        _set("tokens", {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}),  # no ids
        _set("tokens", {"dtype": "U16", "shape": [-4], "data_offsets": [0, -8]}),
        _set("document_ends", "data_offsets", [0, 8]),  # on top of the tokens
        _set("document_ends", {"dtype": "U64", "shape": [2], "data_offsets": [0, 16]}),  # and to the end
        _set("document_ends", {"dtype": "U64", "shape": [2], "data_offsets": [8, 24]}),  # past the end
        _set("document_ends", {"dtype": "U64", "shape": [0], "data_offsets": [8, 8]}),  # before the end
        _set("tokens", [1]),
    ],
)
def test_tensors_must_fill_the_file(tmp_path, change):
    path = tmp_path / "a.tokens"
    with TokenFileWriter(path, 258, "f") as writer:
        writer.add_document([1, 2, 3, 4])
    good = path.read_bytes()
    path.write_bytes(_with_header(good, lambda header: None))
    assert TokenFile(path).tokens.tolist() == [1, 2, 3, 4]
    path.write_bytes(_with_header(good, change))
    with pytest.raises(InputError, match="damaged"):
        TokenFile(path)


# --- a folder of them -------------------------------------------------------------------------------------

_PLACES = st.one_of(st.none(), st.integers(-25, 25))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), _PLACES, _PLACES)
def test_shards_are_cut_as_one_array(lengths, start, stop):
    whole = np.arange(sum(lengths), dtype=np.uint16)
    shards = Shards(np.split(whole, np.cumsum(lengths)[:-1]))
    assert len(shards) == len(whole) and shards.dtype == shards[:].dtype == whole.dtype
    place = slice(start, stop)
    assert shards[place].tolist() == shards.part(place)[:].tolist() == whole[place].tolist()
    assert shards.part(place)[1:4].tolist() == whole[place][1:4].tolist()


def test_within_a_shard_nothing_is_copied():
    parts = [np.arange(5), np.arange(5, 9)]
    assert np.shares_memory(Shards(parts)[6:8], parts[1])
    assert np.shares_memory(Shards(parts).part(slice(2, 7))[:2], parts[0])


def test_a_folder_is_one_sequence_by_one_tokenizer(tmp_path):
    with pytest.raises(InputError, match="no token files in"):
        TokenFolder(tmp_path)
    for number, ids in enumerate(([1, 2, 3], [], [4, 5])):
        with TokenFileWriter(tmp_path / f"{number}.tokens", 258, "print") as writer:
            writer.add(ids)
    found = TokenFolder(tmp_path)
    assert found.tokens[1:4].tolist() == [2, 3, 4] and len(found) == 5
    assert (found.vocab_size, found.fingerprint) == (258, "print")
    (tmp_path / "progress.json").write_text("[]")
    with pytest.raises(InputError, match=r"progress\.json is damaged"):
        TokenFolder(tmp_path)
    with TokenFileWriter(tmp_path / "3.tokens", 258, "another") as writer:
        writer.add([6])
    with pytest.raises(InputError, match=r"3.tokens and 0.tokens .* different tokenizers"):
        TokenFolder(tmp_path)


def test_a_token_file_is_told_by_its_beginning(tmp_path):
    with TokenFileWriter(tmp_path / "noext", 258, "print") as writer:
        writer.add([1])
    assert is_token_file(tmp_path / "noext")
    for text in (b"", b"short", b"text of some length that is none, and goes on for a while" * 3):
        (tmp_path / "a.txt").write_bytes(text)
        assert not is_token_file(tmp_path / "a.txt")
