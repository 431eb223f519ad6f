"""The command, in one process: annotate, refilter, show, train, run, evaluate; and one-line errors."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ai_learning.checkpoint import save_checkpoint, tokenizer_reference
from ai_learning.cli import main
from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.toolformer import Annotated, GPTModel, annotate, filter_calls
from ai_learning.toolformer.store import AnnotatedCorpus, read_annotated

from .conftest import SUMS


@pytest.fixture(scope="module")
def place(writer: GPTModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    writer.tokenizer.save(folder / "tokenizer")
    save_checkpoint(writer.model, folder / "model.pt", tokenizer=tokenizer_reference(writer.tokenizer))
    (folder / "data.txt").write_text("\n".join(SUMS))
    AnnotatedCorpus(folder / "judged", format="jsonl").write([Annotated("3 plus 4")])
    return folder


def toolformer(*args: object) -> int:
    return main(["toolformer", *map(str, args)])


def test_from_text_to_a_model_that_calls(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, run = place / "annotated", place / "run"
    options = ["--model", place / "model.pt", "--data", place / "data.txt", "--split", "lines"]
    assert (
        toolformer("annotate", *options, "--out", out, "--tau-s", 0.05, "--tau-f", 0.05, "--k", 2, "--m", 3)
        == 0
    )
    said = capsys.readouterr().out
    documents = list(read_annotated(out))
    seen = [c for d in documents for c in d.candidates]
    kept = [c for c in seen if c.kept]
    assert len(documents) == len(SUMS) and 0 < len(kept) < len(seen)
    assert f"Calculator kept {len(kept):,} of {len(seen):,}" in said.replace("\n", " ")

    assert toolformer("refilter", "--data", out, "--tau-f", "0.05", "-9", "--out", place / "again") == 0
    again = [c for d in read_annotated(place / "again") for c in d.candidates]
    assert f"{len(kept):,}" in capsys.readouterr().out
    assert [c.loss_plus for c in again] == pytest.approx([c.loss_plus for c in seen], nan_ok=True)
    assert [c.kept for c in again] == [c.gain >= -9 for c in seen]

    assert toolformer("show", "--data", out, "--n", 2) == 0
    assert "Calculator(" in capsys.readouterr().out
    assert toolformer("show", "--data", out, "--out", place / "show.html", "--only-kept") == 0
    assert 'class="kept"' in (place / "show.html").read_text()

    short = [
        "--steps",
        4,
        "--batch-size",
        4,
        "--grad-accum",
        1,
        "--warmup",
        1,
        "--eval-every",
        2,
        "--save-every",
        2,
    ]
    training = [
        "--model",
        place / "model.pt",
        "--data",
        out,
        "--out",
        run,
        "--plain",
        place / "data.txt",
        *short,
    ]
    assert toolformer("train", *training, "--method", "lora", "--held-out", 0.2) == 0
    assert toolformer("train", *training) == 2
    assert "--resume it" in capsys.readouterr().err
    assert toolformer("train", "--resume", "--out", run) == 0

    capsys.readouterr()
    prompt = SUMS[8][: SUMS[8].rindex(" ")]
    writing = ["--model", run / "model.pt", "--tools", "Calculator", "--max-new-tokens", 3]
    assert toolformer("run", *writing, "--prompt", prompt, "--out", place / "out.txt") == 0
    assert "Calculator(" in capsys.readouterr().out
    assert (place / "out.txt").read_text().startswith(prompt + "<API>Calculator(")

    tasks = [{"Question": text[: text.rindex(" ")], "Answer": text[:-1].split()[-1]} for text in SUMS[:6]]
    (place / "task.json").write_text(json.dumps(tasks))
    scoring = ["--data", place / "task.json", "--model", run / "model.pt", "--out", place / "scores.json"]
    assert toolformer("evaluate", *scoring, "--max-new-tokens", 3) == 0
    scores = json.loads((place / "scores.json").read_text())
    assert scores["with tools"]["n"] == scores["calls disabled"]["n"] == 6
    assert scores["calls disabled"]["call_rate"] == 0


def test_the_judge_may_have_another_tokenizer_and_no_marks(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=258, block_size=96, n_layer=1, n_head=1, n_embd=16))
    save_checkpoint(gpt, tmp_path / "judge.pt", tokenizer=tokenizer_reference(ByteTokenizer()))
    (tmp_path / "data.txt").write_text("\n".join(SUMS[20:24]))
    options = [
        "--model",
        place / "model.pt",
        "--data",
        tmp_path / "data.txt",
        "--split",
        "lines",
        "--tau-f",
        -9,
    ]
    out = tmp_path / "out"
    assert toolformer("annotate", *options, "--scorer", tmp_path / "judge.pt", "--out", out) == 0
    documents = list(read_annotated(out))
    (expected,) = filter_calls(GPTModel(gpt, ByteTokenizer()), documents[:1], -9.0)
    losses = [(c.loss_result, c.loss_nothing, c.loss_call) for c in documents[0].candidates]
    assert losses and losses == [
        pytest.approx((c.loss_result, c.loss_nothing, c.loss_call), abs=1e-5, nan_ok=True)
        for c in expected.candidates
    ]
    assert any(c.kept for c in documents[0].candidates)


def test_several_processes_share_the_work(place: Path) -> None:
    out = place / "shared"
    options = [
        "--model",
        place / "model.pt",
        "--data",
        place / "data.txt",
        "--split",
        "lines",
        "--k",
        1,
        "--m",
        1,
    ]
    assert toolformer("annotate", *options, "--out", out, "--num-processes", 2) == 0
    assert sorted(int(d.id) for d in read_annotated(out)) == list(range(len(SUMS)))
    assert {file.name[:19] for file in out.glob("part-*")} == {"part-00000-of-00002", "part-00001-of-00002"}


def test_a_conversation(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("3 plus 4 equals\n" + "3 " * 100 + "\n\n"))
    assert (
        toolformer("run", "--model", place / "model.pt", "--tools", "Calculator", "--max-new-tokens", 3) == 0
    )
    said = capsys.readouterr().out
    assert "3 plus 4 equals" in said and "Calculator(" in said
    assert "error: a prompt of" in said  # and it went on


def test_a_failed_start_leaves_the_folder_usable(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--model",
        place / "model.pt",
        "--split",
        "lines",
        "--k",
        1,
        "--m",
        1,
        "--out",
        tmp_path / "out",
    ]
    data = ["--data", place / "data.txt"]
    assert toolformer("annotate", *options, "--data", tmp_path / "missing.txt") == 2
    assert (
        toolformer("annotate", *options, *data, "--part-size", 9, "--max-tokens", 2, "--prompts", "no") == 2
    )
    assert toolformer("annotate", *options, *data, "--shards", 2, "--limit", 9) == 0
    written = (tmp_path / "out" / "run.json").read_text()
    assert json.loads(written)["limit"] == 9
    # Now there are documents, and another shard must go with them.
    capsys.readouterr()
    assert toolformer("annotate", *options, *data, "--shards", 2, "--shard", 1, "--limit", 8) == 2
    assert "annotated with limit=9, not 8" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.json").read_text() == written


def test_what_another_command_noted_is_not_written_over(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text('{"command": "pretrain"}')
    options = ["--model", place / "model.pt", "--data", place / "data.txt"]
    assert toolformer("annotate", *options, "--out", tmp_path) == 2
    assert "made by `pretrain`" in capsys.readouterr().err
    assert (tmp_path / "run.json").read_text() == '{"command": "pretrain"}'


def test_of_two_shards_started_otherwise_the_first_to_write_counts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one starts, and is done, while the first one still computes its first part."""
    out = tmp_path / "out"
    options = ["--model", place / "model.pt", "--data", place / "data.txt", "--split", "lines", "--m", 1]
    options += ["--out", out, "--shards", 2]

    def late(*args: Any, **more: Any) -> Any:
        monkeypatch.undo()
        assert toolformer("annotate", *options, "--shard", 1, "--k", 2) == 0
        return annotate(*args, **more)

    monkeypatch.setattr("ai_learning.toolformer.job.annotate", late)
    assert toolformer("annotate", *options, "--shard", 0, "--k", 1) == 2
    assert "annotated with k=2, not 1" in capsys.readouterr().err
    assert len(list(out.glob("part-*"))) == 1


@pytest.mark.parametrize(
    "args",
    [
        ["nothing"],
        ["annotate", "--model", "missing.pt"],
        ["annotate", "--model", "{}/model.pt", "--data", "missing.txt"],
        ["annotate", "--model", "{}/model.pt", "--tools", "Nothing"],
        ["annotate", "--model", "{}/model.pt", "--data", "{}/data.txt", "--k", "0"],
        ["annotate", "--model", "{}/model.pt", "--data", "{}/data.txt", "--tau-s", "2"],
        ["annotate", "--model", "{}/model.pt", "--data", "{}/data.txt", "--prompts", "{}/none"],
        ["annotate", "--resume", "--out", "{}/none"],
        ["annotate", "--shard", "2", "--shards", "2", "--model", "{}/model.pt"],
        ["annotate", "--num-processes", "2", "--shards", "2"],
        ["annotate", "--part-size", "0"],
        ["train", "--model", "{}/model.pt", "--data", "{}/none"],
        ["train", "--held-out", "1"],
        ["show", "--data", "{}/none"],
        ["show", "--n", "0"],
        ["refilter", "--data", "{}/data.txt"],
        ["run", "--model", "{}/model.pt", "--tools", "Calculator", "Calculator", "--prompt", "x"],
        ["run", "--model", "{}/model.pt", "--top-k", "x"],
        ["evaluate", "--model", "{}/model.pt", "--data", "{}/none.json"],
        ["evaluate", "--model", "{}/model.pt"],
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    args: list[str],
    place: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert toolformer(*(arg.replace("{}", str(place)) for arg in args)) == 2
    error = capsys.readouterr().err
    assert error.startswith("ai-learning toolformer: error: ") and error.count("\n") == 1
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("annotate --limit -1", "limit=-1 must be at least 1"),
        ("annotate --limit 0", "limit=0 must be at least 1"),
        ("annotate --max-tokens 0", "max_tokens=0 must be at least 1"),
        ("annotate --max-tokens -5", "max_tokens=-5 must be at least 1"),
        ("annotate --tools", "--tools names none"),
        ("annotate --seed -1", "seed=-1 must be from 0"),
        ("annotate --temperature nan", "temperature=nan must be 0"),
        ("annotate --tau-f nan", "tau_f=nan is no number"),
        ("annotate --device foo --data DATA", "device 'foo' is not available here"),
        ("refilter --tau-f nan --data JUDGED", "tau_f=nan is no number"),
        ("train --tau-f nan --data JUDGED --model MODEL", "tau_f=nan is no number"),
        ("run --temperature -1", "temperature=-1.0 must be 0"),
        ("run --temperature nan", "temperature=nan must be 0"),
        ("run --temperature 1 --seed -3", "seed=-3 must be from 0"),
        ("run --seed 99999999999999999999999", "seed=99999999999999999999999 must be from 0"),
        ("run --top-k 0", "top_k=0 must be at least 1"),
        ("run --max-new-tokens -1", "max_new_tokens=-1 must be at least 0"),
        ("run --max-calls -1", "max_calls=-1 must be at least 0"),
        ("run --device foo", "device 'foo' is not available here"),
        ("evaluate --data DATA --limit 0", "limit=0 must be at least 1"),
        ("evaluate --data DATA --limit -1", "limit=-1 must be at least 1"),
        ("evaluate --data DATA --batch-size 0", "batch_size=0 must be at least 1"),
        ("evaluate --data DATA --max-new-tokens 0", "max_new_tokens=0 must be at least 1"),
        ("evaluate --data DATA --top-k 0", "top_k=0 must be at least 1"),
    ],
)
def test_values_without_sense_are_refused_before_anything_is_read(
    args: str,
    said: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No model stands here: only a value that is looked at first is told of."""
    monkeypatch.chdir(tmp_path)
    known = {"DATA": place / "data.txt", "JUDGED": place / "judged", "MODEL": place / "model.pt"}
    assert toolformer(*(known.get(arg, arg) for arg in args.split())) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize("name", ["annotate", "refilter", "show", "train", "run", "evaluate"])
def test_help_shows_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert toolformer(name, "--help") == 0
    said = capsys.readouterr().out
    assert ("--out" in said and "--model" in said) or name in ("refilter", "show")
