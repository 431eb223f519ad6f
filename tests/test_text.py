"""Text from the Python installation, files, folders, stdin and Hugging Face datasets."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from ai_learning.errors import InputError
from ai_learning.text import PACKAGES, package_snippets, package_training_text, read_text, read_texts


@pytest.mark.parametrize(
    ("name", "least"),
    [("reference", 300_000), ("stdlib", 5_000_000), ("stdlib-train", 5_000_000), ("docstrings", 500_000)],
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


@pytest.mark.parametrize("marker", ["run.json", ".lock"])
def test_folders_of_runs_are_no_text(tmp_path: Path, marker: str) -> None:
    run = tmp_path / "runs" / "one"
    (run / "samples").mkdir(parents=True)
    (run / marker).write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1}')
    (run / "samples" / "a.txt").write_text("written by the model")
    (tmp_path / "runs" / "notes.txt").write_text("notes")
    (tmp_path / "a.txt").write_text("text")
    assert list(read_texts(tmp_path)) == ["text", "notes"]
    with pytest.raises(InputError, match="one is the folder of a training run, not of text"):
        read_texts(run)


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


def _dataset(monkeypatch: pytest.MonkeyPatch, rows: Iterator[dict]) -> None:
    class Rows:
        def __iter__(self) -> Iterator[dict]:
            return rows

    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: Rows())


def test_dataset_rows_without_text_are_skipped_and_none_is_fetched_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetched = []

    def rows() -> Iterator[dict]:
        for text in ("one", None, "two"):
            fetched.append(text)
            yield {"text": text}

    class Again:
        def __iter__(self) -> Iterator[dict]:
            return rows()

    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: Again())
    assert list(read_texts("hf:some/name")) == ["one", "two"]
    assert fetched == ["one", None, "two"]


def test_a_dataset_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> Iterator[dict]:
        yield {"text": "one"}
        raise ConnectionError("connection\nlost")

    _dataset(monkeypatch, lost())
    texts = read_texts("hf:some/name")
    assert next(texts) == "one"
    with pytest.raises(InputError, match="cannot read row 1 of the dataset 'some/name': connection lost"):
        next(texts)
    _dataset(monkeypatch, iter([{"text": "one"}, {"title": "no text"}]))
    with pytest.raises(InputError, match="cannot read row 1"):
        list(read_texts("hf:some/name"))


def test_an_unreachable_dataset_makes_no_noise(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    noisy = [
        datasets.logging.get_logger("datasets.load"),
        hub_logging.get_logger("huggingface_hub.utils._http"),
    ]
    handlers = [(logger, logging.StreamHandler()) for logger in noisy]
    bars = []

    def unreachable(*args: object, **options: object) -> None:
        for logger in noisy:
            logger.warning("Retrying in 8s [Retry 5/5].")
        bars.append(datasets.are_progress_bars_disabled())
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    before = datasets.are_progress_bars_disabled()
    try:
        for logger, handler in handlers:
            logger.addHandler(handler)
        with pytest.raises(InputError, match="cannot open the dataset 'some/name', split 'train': no route"):
            read_texts("hf:some/name")
        assert capfd.readouterr() == ("", "")
        assert bars == [True] and datasets.are_progress_bars_disabled() is before
        noisy[1].warning("heard again")
        assert "heard again" in capfd.readouterr().err
    finally:
        for logger, handler in handlers:
            logger.removeHandler(handler)


def test_a_python_without_pydoc_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="this Python came without pydoc_data"):
        list(read_texts("builtin:reference"))


def test_folders_of_token_files_are_no_text(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "shard-00000.tokens").write_bytes(b"\0")
    (shards / "progress.json").write_text('{"next": [1, 0]}')
    (tmp_path / "a.txt").write_text("text")
    assert list(read_texts(tmp_path)) == ["text"]
    with pytest.raises(InputError, match="shards is a folder of token files, not of text"):
        read_texts(shards)


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
        ("", "the text source has no name"),
        ("hf:?split=train", "no name in 'hf:"),
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


def test_training_text_lacks_the_held_out_snippets_only() -> None:
    train, held_out, _ = package_snippets(seed=0)
    whole = "\n".join(read_texts("builtin:stdlib"))
    documents = list(read_texts("builtin:stdlib-train"))
    text = "\n\n".join(documents)
    still_there = [x.text for x in held_out if x.text in text]
    for snippet in still_there:
        assert whole.find(snippet, whole.index(snippet) + 1) >= 0  # it stands elsewhere as well
    assert len(still_there) < 0.03 * len(held_out)
    # What is trained on is there, but for the few snippets that go over the end of a file.
    assert sum(x.text not in text for x in train[::10]) < 0.02 * len(train[::10])
    assert all(document in whole for document in documents[::10])
    assert len(whole) * 0.96 < len(text) < len(whole)


def test_training_text_follows_its_seed() -> None:
    _, held_out, _ = package_snippets(seed=5)
    text = "\n\n".join(package_training_text(seed=5))
    assert sum(x.text in text for x in held_out) < 0.05 * len(held_out)
    other = [x.text for x in package_snippets(seed=0)[1]]
    assert sum(x in text for x in other) > 0.7 * len(other)
