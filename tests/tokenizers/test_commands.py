"""``ai-learning tokenizer`` and ``ai-learning data``, as a user types them."""

import io
import json
import sys

import pytest

from ai_learning.cli import main
from ai_learning.cli.common import read_tokens
from ai_learning.token_file import TokenFile, TokenFolder
from ai_learning.tokenizers import BPETokenizer, load


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("low lower lowest né 👍 <|endoftext|>more\n" * 30, encoding="utf-8")
    assert main(["tokenizer", "train", "--data", "text.txt", "--vocab-size", "290", "--out", "tok"]) == 0
    return tmp_path


def run(capsys, *arguments):
    capsys.readouterr()
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_train_encode_decode(folder, capsys, monkeypatch):
    tokenizer = load(folder / "tok")
    assert (
        tokenizer.merges
        == BPETokenizer.train([(folder / "text.txt").read_text(encoding="utf-8")], 290).merges
    )
    code, out, _ = run(
        capsys, "tokenizer", "encode", "--tokenizer", "tok", "--text", "né low<|endoftext|>", "--special"
    )
    ids = list(map(int, out.split()))
    assert code == 0 and ids == tokenizer.encode("né low<|endoftext|>", allowed_special="all")
    assert (
        run(capsys, "tokenizer", "decode", "--tokenizer", "tok", "--ids", *map(str, ids))[1]
        == "né low<|endoftext|>"
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(out.encode())))
    assert run(capsys, "tokenizer", "decode", "--tokenizer", "tok")[1] == "né low<|endoftext|>"
    assert run(capsys, "tokenizer", "encode", "--tokenizer", "bytes", "--text", "né")[1] == "110 195 169\n"


def test_train_on_a_folder_and_go_on_from_counts(folder, capsys):
    texts = folder / "texts"
    texts.mkdir()
    for i in range(3):
        (texts / f"{i}.txt").write_text(f"number {i} low lower\r\n" * (9 + i), encoding="utf-8", newline="")
    arguments = ["tokenizer", "train", "--data", "texts", "--counts-file", "counts.safetensors"]
    assert run(capsys, *arguments, "--vocab-size", "270", "--out", "one")[0] == 0
    files = sorted(texts.iterdir())
    assert load("one").merges == BPETokenizer.train_from_files(files, 270).merges
    assert run(capsys, *arguments, "--vocab-size", "275", "--out", "two")[0] == 0  # counted already
    assert load("two").merges[: 270 - 257] == load("one").merges
    (texts / "0.txt").write_text("another text", encoding="utf-8")
    code, _, complaint = run(capsys, *arguments, "--out", "three")
    assert code == 2 and "counted with another source" in complaint and not (folder / "three").exists()
    (folder / "empty").mkdir()
    code, _, complaint = run(capsys, "tokenizer", "train", "--data", "empty")
    assert code == 2 and "no text in 'empty'" in complaint


def test_show_and_convert(folder, capsys):
    arguments = [
        "tokenizer",
        "show",
        "--tokenizer",
        "tok",
        "--text",
        "lowest né",
        "--ids",
        "--steps",
        "--stats",
    ]
    code, out, _ = run(capsys, *arguments, "--out", "page.html")
    assert code == 0 and "statistics" in out and "rank" in out and "low" in out
    assert "lo" in (folder / "page.html").read_text(encoding="utf-8")
    for kind, name in [
        ("gpt2", "g"),
        ("tokenizer.json", "t.json"),
        ("tiktoken", "r.tiktoken"),
        ("folder", "again"),
    ]:
        assert run(capsys, "tokenizer", "convert", "--source", "tok", "--to", kind, "--out", name)[0] == 0
    assert (
        run(
            capsys,
            "tokenizer",
            "convert",
            "--source",
            "tok",
            "--to",
            "minbpe",
            "--out",
            "m.model",
            "--renumber",
        )[0]
        == 0
    )
    ids = load("tok").encode("lowest né")
    for name in ("g", "t.json", "r.tiktoken", "again", "g/vocab.json"):
        out = run(capsys, "tokenizer", "encode", "--tokenizer", name, "--text", "lowest né")[1]
        assert list(map(int, out.split())) == ids, name
    assert BPETokenizer.from_minbpe_file("m.model").merges == load("tok").merges
    assert "g" in run(capsys, "tokenizer", "show", "--tokenizer", "tok", "g", "--text", "low")[1]


def test_bench(folder, capsys):
    code, out, _ = run(
        capsys,
        "tokenizer",
        "bench",
        "--tokenizer",
        "tok",
        "--data",
        "text.txt",
        "--repeat",
        "1",
        "--out",
        "b.json",
    )
    figures = json.loads((folder / "b.json").read_text())["MB/s"]
    assert code == 0 and "encode to an array" in out and all(value > 0 for value in figures.values())


def test_prepare(folder, capsys):
    tokenizer = load("tok")
    code, out, _ = run(
        capsys, "data", "prepare", "--data", "text.txt", "--tokenizer", "tok", "--out", "a.tokens"
    )
    found = TokenFile("a.tokens")
    expected = tokenizer.encode((folder / "text.txt").read_text(encoding="utf-8"), allowed_special="all")
    assert code == 0 and tokenizer.fingerprint in out and found.fingerprint == tokenizer.fingerprint
    assert found.tokens.tolist() == [*expected, tokenizer.eos_id] and len(found.document_ends) == 31
    assert (
        run(
            capsys,
            "data",
            "prepare",
            "--data",
            "text.txt",
            "--tokenizer",
            "tok",
            "--out",
            "s",
            "--shard-tokens",
            "50",
        )[0]
        == 0
    )
    assert TokenFile("s/shard-00000.tokens").tokens.tolist() == found.tokens.tolist()[:50]
    assert TokenFolder("s").tokens[:].tolist() == found.tokens.tolist()
    assert read_tokens("s", tokenizer)[:].tolist() == found.tokens.tolist()
    (folder / "a.tokens").rename("noext")
    assert read_tokens("noext", tokenizer).tolist() == found.tokens.tolist()
    assert run(capsys, "data", "prepare", "--data", "builtin:reference", "--out", "b.tokens")[0] == 0
    assert TokenFile("b.tokens").vocab_size == 258


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["tokenizer", "nothing"], "train, encode"),
        (["tokenizer", "encode", "--tokenizer", "nowhere", "--text", "x"], "no tokenizer at nowhere"),
        (["tokenizer", "train", "--vocab-size", "9"], "vocab_size=9"),
        (["tokenizer", "train", "--data", "nowhere.txt"], "nowhere.txt"),
        (["tokenizer", "train", "--pattern", "gpt5"], "gpt5"),
        (["tokenizer", "decode", "--tokenizer", "bytes", "--ids", "x"], "ids"),
        (["data", "nothing"], "prepare"),
        (["data", "prepare", "--shard-tokens", "5"], "--shard-tokens"),
        (["data", "prepare", "--tokenizer", "nowhere"], "nowhere"),
        (["data", "prepare", "--out", "."], "--out . is a folder: give the name of a file"),
        (["tokenizer", "bench", "--repeat", "0"], "repeat=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments)
    assert code == 2 and complaint in err and err.count("\n") == 1 and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_sources_without_text_are_refused(folder, capsys):
    """Read as files, without `read_texts`, and still with its complaints."""
    (folder / "b.bin").write_bytes(b"low\0lowest" * 9)
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n" * 9)
    for name, complaint in (
        ("b.bin", "b.bin is a binary file"),
        ("empty.txt", "no text in 'empty.txt'"),
        ("blank.txt", "no text in 'blank.txt'"),
    ):
        for command in (["tokenizer", "train"], ["data", "prepare", "--tokenizer", "tok"]):
            code, _, err = run(capsys, *command, "--data", name, "--out", "new")
            assert code == 2 and complaint in err and err.count("\n") == 1 and not (folder / "new").exists()
    code, _, err = run(
        capsys,
        "data",
        "prepare",
        "--data",
        "text.txt",
        "--tokenizer",
        "tok",
        "--shard-tokens",
        "9",
        "--out",
        "b.bin",
    )
    assert code == 2 and "out=b.bin is a file: with --shard-tokens name a folder" in err


def test_help(capsys):
    for command in ("train", "encode", "decode", "show", "convert", "bench"):
        code, out, _ = run(capsys, "tokenizer", command, "--help")
        assert code == 0 and "default" in out
    assert "default" in run(capsys, "data", "prepare", "--help")[1]


def test_sources_are_not_written_over(folder, capsys):
    before = (folder / "text.txt").read_bytes()
    for tokenizer in ("tok", "bytes"):
        arguments = ["--data", "text.txt", "--out", "text.txt", "--tokenizer", tokenizer]
        code, _, complaint = run(capsys, "data", "prepare", *arguments)
        assert code == 2 and "text.txt is what is to be read" in complaint
    show = ["tokenizer", "show", "--tokenizer", "tok", "--data", "text.txt"]
    code, _, complaint = run(capsys, *show, "--out", "text.txt")
    assert code == 2 and "text.txt is what is to be read" in complaint
    assert (folder / "text.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "--text", "x", "--tokenizer"], "--tokenizer names none"),
        (["show", "--text", "x", "--data", "text.txt"], "two texts: give one of them"),
        (["show", "--data", "text.txt", "--max-characters", "-1"], "max_characters=-1 must be at least 1"),
        (["encode", "--text", "x", "--tokenizer", "bytes", "--dropout", "0.5"], "bytes have none"),
    ],
)
def test_what_makes_no_sense_is_one_line(folder, capsys, arguments, message):
    code, _, complaint = run(capsys, "tokenizer", *arguments)
    assert code == 2 and message in complaint and "Traceback" not in complaint
