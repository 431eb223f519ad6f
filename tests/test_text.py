"""Text from the Python installation, files, folders, stdin and Hugging Face datasets."""

import io
import json
import sys
from itertools import islice
from pathlib import Path

import pytest

from ai_learning.errors import InputError
from ai_learning.text import PACKAGES, package_snippets, read_text, read_texts


@pytest.mark.parametrize(
    ("name", "least"), [("reference", 300_000), ("stdlib", 5_000_000), ("docstrings", 500_000)]
)
def test_builtin_corpora(name: str, least: int) -> None:
    texts = list(read_texts(f"builtin:{name}"))
    assert sum(map(len, texts)) > least
    assert texts[:20] == list(islice(read_texts(f"builtin:{name}"), 20))  # the same order every time


def test_file_keeps_line_ends_and_drops_what_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\xff\n\xc3\xa9")
    assert read_text(path) == "one\r\ntwo\né"


def test_folder_is_sorted_and_without_binary_and_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("x")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    assert list(read_texts(tmp_path)) == ["x", "b"]


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"typed\xff in")))
    assert list(read_texts("-")) == ["typed in"]


def test_dataset_folder_through_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = [{"text": f"document {i}", "title": f"t{i}"} for i in range(3)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_texts(f"hf:{folder}")) == ["document 0", "document 1", "document 2"]
    assert list(read_texts(f"hf:{folder}?column=title"))[-1] == "t2"
    with pytest.raises(InputError, match=r"no column 'body'.*it has text, title"):
        read_texts(f"hf:{folder}?column=body")
    with pytest.raises(InputError, match="cannot open the dataset"):
        read_texts(f"hf:{folder}?split=nosuch")
    with pytest.raises(InputError, match="unknown option spilt"):
        read_texts(f"hf:{folder}?spilt=train")


def test_bad_sources_are_one_line(tmp_path: Path) -> None:
    binary, empty, blank = tmp_path / "x.bin", tmp_path / "empty.txt", tmp_path / "blank"
    binary.write_bytes(b"ab\0cd")
    empty.write_text("")
    blank.mkdir()
    for source, message in [
        (tmp_path / "missing.txt", "no such file or folder"),
        (binary, "is a binary file"),
        (empty, "no text in"),
        (blank, "no text in"),
        ("builtin:wikipedia", "no built-in corpus 'wikipedia': use builtin:reference"),
        (f"hf:{tmp_path}/nothing-here", "cannot open the dataset"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            list(read_texts(source))
        assert "\n" not in str(caught.value)


def test_package_snippets_are_balanced_and_apart() -> None:
    train, held_out, names = package_snippets()
    assert names == PACKAGES
    for examples in (train, held_out):
        counts = {label: sum(x.label == label for x in examples) for label in range(len(names))}
        assert len(set(counts.values())) == 1
        assert min(counts.values()) >= 100
        assert all(len(x.text) == 120 for x in examples)
    both = {x.text for x in train} & {x.text for x in held_out}
    assert len(both) < 0.01 * len(held_out)  # a snippet that stands twice in the library
    assert package_snippets() == (train, held_out, names)
    assert package_snippets(seed=1)[0] != train
