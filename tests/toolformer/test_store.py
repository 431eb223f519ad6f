"""Annotated corpora on disk: round trips, resumption to the document, shards, and a killed process."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_learning.checkpoint import save_checkpoint, tokenizer_reference
from ai_learning.cli import main
from ai_learning.toolformer import Annotated, Calculator, Call, Candidate, Document, GPTModel, Settings
from ai_learning.toolformer.documents import fit, read_documents
from ai_learning.toolformer.job import annotate_corpus
from ai_learning.toolformer.store import AnnotatedCorpus, from_row, read_annotated, to_row

from .conftest import SUMS

EAGER = Settings(tau_s=0.05, tau_f=0.1, k=2, m=2)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.just(math.nan)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
candidates = st.builds(
    Candidate,
    position=st.integers(0, 99),
    offset=st.integers(0, 99),
    call=st.builds(Call, texts, texts),
    result=st.none() | texts,
    error=st.none() | texts,
    probability=floats,
    loss_result=floats,
    loss_nothing=floats,
    loss_call=floats,
    kept=st.booleans(),
)
documents = st.builds(
    Annotated,
    text=texts,
    candidates=st.lists(candidates, max_size=3).map(tuple),
    id=texts,
    date=st.none() | texts,
)


def same(a: Annotated, b: Annotated) -> bool:
    return repr(a) == repr(b)  # NaN is not equal to itself


@given(document=documents)
def test_rows_round_trip(document: Annotated) -> None:
    assert same(from_row(json.loads(json.dumps(to_row(document), allow_nan=False))), document)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
@given(some=st.lists(documents, max_size=4))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_round_trip(some: list[Annotated], format: str, tmp_path: Path) -> None:
    corpus = AnnotatedCorpus(tmp_path, format=format)
    file = corpus.write(some)
    found = list(read_annotated(file))
    assert len(found) == len(some) and all(map(same, found, some))


def test_every_loss_and_verdict_is_in_the_file(tmp_path: Path) -> None:
    """Readable without this library, by its columns."""
    import pyarrow.parquet

    one = Candidate(1, 1, Call("QA", "x"), "y", None, 0.5, 1.0, 3.0, 2.5, True)
    file = AnnotatedCorpus(tmp_path).write([Annotated("text", (one,), "0"), Annotated("none", (), "1")])
    rows = pyarrow.parquet.read_table(file).to_pylist()
    assert rows[1] == {"id": "1", "text": "none", "date": None, "candidates": []}
    found = rows[0]["candidates"][0]
    assert (found["loss_plus"], found["loss_minus"], found["gain"], found["kept"]) == (1.0, 2.5, 1.5, True)
    assert (found["tool"], found["argument"], found["result"], found["position"]) == ("QA", "x", "y", 1)


def ids(corpus: AnnotatedCorpus) -> list[str]:
    return sorted((document.id for document in corpus), key=lambda i: [int(part) for part in i.split(".")])


def test_shards_and_resumption_give_every_document_once(writer: GPTModel, tmp_path: Path) -> None:
    """Three shards, each broken off after its first part, then resumed; as one process in one go."""
    texts = [Document(text, str(n)) for n, text in enumerate(SUMS)]

    class StopNow(Exception):  # noqa: N818
        pass

    def stop(progress: Any) -> None:
        raise StopNow

    whole = AnnotatedCorpus(tmp_path / "whole")
    annotate_corpus(writer, texts, [Calculator()], whole, settings=EAGER)
    for shard in range(3):
        with pytest.raises(StopNow), AnnotatedCorpus(tmp_path / "parts", shard, 3) as corpus:
            annotate_corpus(writer, texts, [Calculator()], corpus, settings=EAGER, part_size=5, on_part=stop)
    assert len(ids(AnnotatedCorpus(tmp_path / "parts", 0, 3))) == 15
    for _ in range(2):  # the second time there is nothing left to do
        for shard in range(3):
            with AnnotatedCorpus(tmp_path / "parts", shard, 3) as corpus:
                progress = annotate_corpus(writer, texts, [Calculator()], corpus, settings=EAGER, part_size=5)
                assert progress.documents == 12
    assert ids(AnnotatedCorpus(tmp_path / "parts", 0, 3)) == ids(whole) == [str(n) for n in range(36)]
    calls = {d.id: [(c.position, c.call, c.kept) for c in d.candidates] for d in whole}
    assert calls == {
        d.id: [(c.position, c.call, c.kept) for c in d.candidates]
        for d in AnnotatedCorpus(tmp_path / "parts", 0, 3)
    }


def test_a_job_refuses_sizes_that_are_none(writer: GPTModel, tmp_path: Path) -> None:
    """0 is not "left out"."""
    for name in ("most_tokens", "part_size"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            annotate_corpus(writer, [], [Calculator()], AnnotatedCorpus(tmp_path), **{name: 0})


def test_a_folder_begun_otherwise_is_refused(tmp_path: Path) -> None:
    AnnotatedCorpus(tmp_path, 0, 2).write([])
    with pytest.raises(ValueError, match="begun with 2 shards, not 3"):
        AnnotatedCorpus(tmp_path, 0, 3)
    with pytest.raises(ValueError, match="shard=2 must be from 0 to shards - 1 = 1"):
        AnnotatedCorpus(tmp_path, 2, 2)
    with pytest.raises(ValueError, match="parquet or jsonl"):
        AnnotatedCorpus(tmp_path, format="csv")
    with (
        AnnotatedCorpus(tmp_path, 0, 2),
        pytest.raises(ValueError, match="another process is writing shard 0"),
    ):
        AnnotatedCorpus(tmp_path, 0, 2).__enter__()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", "{"), ("b.parquet", "PAR1"), ("c.jsonl", '{"text": "x"}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=r"cannot be read|is wrong or missing"):
            list(read_annotated(tmp_path / name))
    with pytest.raises(ValueError, match="no annotated documents"):
        list(read_annotated(tmp_path))
    with pytest.raises(ValueError, match="no folder or file"):
        list(read_annotated(tmp_path / "missing"))


# --- documents ----------------------------------------------------------------------------------------------


def test_documents_of_text_and_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n\n\n")
    for split, expected in (("paragraphs", ["one\ntwo", "three"]), ("lines", ["one", "two", "three"])):
        found = list(read_documents(str(tmp_path / "a.txt"), split))
        assert [d.text for d in found] == expected and [d.id for d in found] == [
            str(n) for n in range(len(found))
        ]
    rows: list[dict[str, object]] = [
        {"text": "a", "date": "2023-01-30T10:00"},
        {"text": "b", "url": "https://example.org/2021/03/05/x"},
        {"text": "c"},
    ]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dates = [d.date for d in read_documents(str(tmp_path / "b.jsonl"))]
    assert dates == ["2023-01-30", "2021-03-05", None]
    for bad in ("{", '{"txt": 1}', '{"text": 1}', '{"text": "a", "date": "soon"}', "[1]"):
        (tmp_path / "bad.jsonl").write_text(bad)
        with pytest.raises(ValueError, match="line 1"):
            list(read_documents(str(tmp_path / "bad.jsonl")))


@given(st.text("ab \n", max_size=80), st.integers(5, 30))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_long_documents_are_cut_without_loss(writer: GPTModel, text: str, most: int) -> None:
    pieces = list(fit(writer, Document(text, "7"), most))
    assert " ".join(piece.text for piece in pieces).split() == text.split()
    if len(pieces) > 1:
        assert [piece.id for piece in pieces] == [f"7.{n}" for n in range(len(pieces))]


# --- a process that is killed -------------------------------------------------------------------------------


@pytest.fixture
def model(writer: GPTModel, tmp_path: Path) -> Path:
    writer.tokenizer.save(tmp_path / "tokenizer")
    save_checkpoint(writer.model, tmp_path / "model.pt", tokenizer=tokenizer_reference(writer.tokenizer))
    return tmp_path / "model.pt"


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "ai_learning.cli", "toolformer", "annotate", *map(str, args)]


def stopped_on_the_way(args: list[object], out: Path, how: signal.Signals) -> int:
    """Start, wait for two more parts, stop; the exit status."""
    wanted = len(list(out.glob("part-*"))) + 2
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(*args), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 200
    while len(list(out.glob("part-*"))) < wanted and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=60)
    return process.returncode


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_interrupted_and_resumed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], processes: int
) -> None:
    # several processes are given two seconds to end by themselves: not time enough for all the text
    texts = SUMS * (12 if processes == 1 else 120)
    (tmp_path / "data.txt").write_text("\n".join(texts))
    out = tmp_path / "out"
    options: list[object] = [
        "--model",
        model,
        "--data",
        tmp_path / "data.txt",
        "--split",
        "lines",
        "--out",
        out,
    ]
    options += ["--part-size", 3, "--k", 2, "--m", 2, "--format", "jsonl", "--num-processes", processes]
    assert stopped_on_the_way(options, out, signal.SIGKILL) == -9
    if processes == 1:
        assert main(["toolformer", "annotate", *map(str, options)]) == 2
        assert "already holds an annotation: --resume it" in capsys.readouterr().err
        assert main(["toolformer", "annotate", "--resume", "--out", str(out), "--m", "3"]) == 2
        assert "annotated with m=2, not 3" in capsys.readouterr().err
    (out / f".part-00000-of-0000{processes}-000099.jsonl.1.ab.tmp").write_text("half")
    assert stopped_on_the_way(["--resume", "--out", out], out, signal.SIGINT) == 130
    shards = AnnotatedCorpus(out, 0, processes)
    assert 4 * 3 <= len(list(shards)) < len(texts)
    assert main(["toolformer", "annotate", "--resume", "--out", str(out)]) == 0
    counts = Counter(document.id for document in shards)
    assert counts == Counter(str(n) for n in range(len(texts)))
    assert not [file for file in out.iterdir() if file.name.endswith(".tmp")]
