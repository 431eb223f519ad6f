"""Files into token files: the ids of the whole, in order, resumable."""

import json
import os
import random

import numpy as np
import pytest
from random_texts import random_text

from ai_learning.errors import InputError
from ai_learning.token_file import TokenFile, TokenFileWriter, TokenFolder
from ai_learning.tokenizers import BPETokenizer, streaming
from ai_learning.tokenizers import encode_files as module


@pytest.fixture
def files(tmp_path, prose):
    texts = [
        prose[:200_000],
        "one<|endoftext|>two née 日本語<|endoftext|>",
        "",
        "naïve café — " * 5000 + "end",
    ]
    paths = [tmp_path / f"{i}.txt" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    return texts, paths


def expected_ids(tokenizer, texts):
    ids, _ends = [], []
    for text in texts:
        ids += tokenizer.encode(text, allowed_special="all")
        if not text.endswith("<|endoftext|>"):
            ids.append(tokenizer.eos_id)
    return ids, [i + 1 for i, token in enumerate(ids) if token == tokenizer.eos_id]


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_one_token_file(gpt2, files, tmp_path, workers, monkeypatch):
    texts, paths = files
    monkeypatch.setattr(module, "_CHUNK", 10_000)
    report = gpt2.encode_files(paths, tmp_path / "out.tokens", workers)
    ids, ends = expected_ids(gpt2, texts)
    found = TokenFile(tmp_path / "out.tokens")
    assert found.tokens.dtype == np.uint16 and found.fingerprint == gpt2.fingerprint
    assert found.tokens.tolist() == ids and found.document_ends.tolist() == ends
    assert (report.files, report.tokens, report.documents) == (4, len(ids), 5)
    assert report.n_bytes == sum(path.stat().st_size for path in paths)


def test_without_eos_and_special_tokens(gpt2, files, tmp_path):
    texts, paths = files
    gpt2.encode_files(paths, tmp_path / "out.tokens", append_eos=False, allowed_special=())
    ids = [i for text in texts for i in gpt2.encode_ordinary(text)]
    found = TokenFile(tmp_path / "out.tokens")
    assert found.tokens.tolist() == ids and len(found.document_ends) == 4


def test_shards_resume_where_they_stopped(gpt2, files, tmp_path, monkeypatch):
    texts, paths = files
    monkeypatch.setattr(module, "_CHUNK", 10_000)
    folder = tmp_path / "shards"
    seen = []

    def interrupt(n_bytes):
        seen.append(n_bytes)
        if len(seen) == 12:
            raise KeyboardInterrupt

    options = {"shard_tokens": 9000, "num_workers": 2}
    with pytest.raises(KeyboardInterrupt):
        gpt2.encode_files(paths, folder, on_bytes=interrupt, **options)
    finished = json.loads((folder / "progress.json").read_text())["report"]["shards"]
    assert 1 <= finished == len(list(folder.glob("*.tokens")))
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tokens")}
    report = gpt2.encode_files(paths, folder, **options)
    assert report.resumed_shards == finished
    assert all((folder / name).stat().st_mtime_ns == time for name, time in before.items())
    shards = [TokenFile(path) for path in sorted(folder.glob("*.tokens"))]
    assert len(shards) == report.shards > 3
    assert all(len(shard) == 9000 for shard in shards[:-1]) and 0 < len(shards[-1]) <= 9000
    ids, ends = expected_ids(gpt2, texts)
    assert [i for shard in shards for i in shard.tokens.tolist()] == ids
    assert (report.tokens, report.documents) == (len(ids), len(ends))
    assert report.n_bytes == sum(path.stat().st_size for path in paths)
    together = TokenFolder(folder)
    assert together.tokens[8_000:19_000].tolist() == ids[8_000:19_000]
    assert gpt2.encode_files(paths, folder, **options).shards == report.shards  # nothing left to do
    with pytest.raises(InputError, match="another shard_tokens"):
        gpt2.encode_files(paths, folder, shard_tokens=8000)


def test_a_chunk_of_many_shards(gpt2, tmp_path, prose):
    """A small file is encoded in one piece, and still fills no shard beyond what was asked for."""
    path, folder = tmp_path / "a.txt", tmp_path / "shards"
    path.write_text(prose[:30_000], encoding="utf-8")

    def interrupt(n_bytes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # the piece ends with the file: its first shards are there
        gpt2.encode_files(path, folder, shard_tokens=1000, on_bytes=interrupt)
    with pytest.raises(InputError, match="is not finished: give the same `data prepare` again"):
        TokenFolder(folder)
    report = gpt2.encode_files(path, folder, shard_tokens=1000)
    ids, _ = expected_ids(gpt2, [prose[:30_000]])
    assert report.resumed_shards == report.shards - 1 and report.documents == 1
    assert TokenFolder(folder).tokens[:].tolist() == ids
    os.utime(path, (1, 1))  # another file, for all that is known
    with pytest.raises(InputError, match="made with another files"):
        gpt2.encode_files(path, folder, shard_tokens=1000)
    (folder / "shard-00002.tokens").unlink()
    with pytest.raises(InputError, match=r"and `data prepare` wrote .* prepare it again"):
        TokenFolder(folder)


def test_a_shard_that_is_gone(gpt2, tmp_path, prose):
    path, folder = tmp_path / "a.txt", tmp_path / "shards"
    path.write_text(prose[:30_000], encoding="utf-8")
    gpt2.encode_files(path, folder, shard_tokens=1000)
    (folder / "shard-00001.tokens").unlink()
    with pytest.raises(InputError, match=r"shard-00001\.tokens is missing, which was written"):
        gpt2.encode_files(path, folder, shard_tokens=1000)


def test_a_source_is_not_written_over(gpt2, tmp_path):
    path, link = tmp_path / "a.txt", tmp_path / "b.txt"
    path.write_text("a")
    link.symlink_to(path)
    with pytest.raises(InputError, match=r"a\.txt is what is to be read: write to another file"):
        gpt2.encode_files([link], path)
    assert path.read_text() == "a"


def test_processes_where_there_is_no_compiled_path(tmp_path, prose):
    tokenizer = BPETokenizer.train([prose[:5000]], 300, pattern=r"\w+|\W+")
    path = tmp_path / "a.txt"
    path.write_text(prose[:20_000] + "<|endoftext|>" + prose[:10_000], encoding="utf-8")
    report = tokenizer.encode_files([path, path], tmp_path / "out", 2)
    ids, _ = expected_ids(tokenizer, [path.read_text(encoding="utf-8")] * 2)
    assert not tokenizer.prepare() and report.documents == 4
    assert TokenFile(tmp_path / "out").tokens.tolist() == ids


def test_bad_input(gpt2, tmp_path):
    with pytest.raises(InputError, match="no file at"):
        gpt2.encode_files([tmp_path / "none"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path = tmp_path / "a.txt"
    path.write_text("a")
    for options, complaint in [
        ({"num_workers": 0}, "num_workers=0"),
        ({"shard_tokens": 0}, "shard_tokens=0"),
    ]:
        with pytest.raises(InputError, match=complaint):
            gpt2.encode_files(path, tmp_path / "out", **options)


def test_token_file_refuses_ids_that_do_not_fit(tmp_path):
    for bad in ([300], [-1], np.array([300], np.uint16)):
        with (
            pytest.raises(InputError, match="do not fit"),
            TokenFileWriter(tmp_path / "x", 258, "f") as writer,
        ):
            writer.add(bad)
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("which", ["gpt2", "gpt4"])
def test_ranges_are_safe_whatever_is_read_of_them(which, request, tmp_path, monkeypatch):
    """Cuts found in a window of a few bytes change no ids: not at special tokens, nor in damaged UTF-8."""
    tokenizer = request.getfixturevalue(which)
    generator = random.Random(which)
    path = tmp_path / "text.txt"
    for trial in range(150):
        pieces = [random_text(generator, generator.randint(1, 30)).encode() for _ in range(20)]
        pieces += (
            [b"<|endoftext|>"] * 6 + [b"plain words, too 12 "] * 6 + [b"\xff", b"\xe4\xb8"] * (trial % 3)
        )
        generator.shuffle(pieces)
        data = b"".join(pieces)
        path.write_bytes(data)
        monkeypatch.setattr(streaming, "_WINDOW", generator.choice([2, 8, 16, 64, 4096]))
        ranges = list(
            streaming.safe_ranges(path, tokenizer.pattern, ["<|endoftext|>"], generator.choice([9, 40, 150]))
        )
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
        assert ranges[-1][1] == len(data) and len(ranges) > 1
        ids = []
        for start, stop in ranges:
            text = streaming.read_range(path, start, stop).decode("utf-8", "replace")
            ids += tokenizer.encode(text, allowed_special="all")
        assert ids == tokenizer.encode(data.decode("utf-8", "replace"), allowed_special="all"), data


def test_an_empty_file_is_one_empty_range(gpt2, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert list(streaming.safe_ranges(tmp_path / "empty", gpt2.pattern, [], 10)) == [(0, 0)]
    report = gpt2.encode_files(tmp_path / "empty", tmp_path / "out.tokens")
    assert report.documents == 1 and report.tokens == 1
