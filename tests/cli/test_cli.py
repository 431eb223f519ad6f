"""The command: help, one-line errors with exit code 2, the whole road at a small size, signals."""

import json
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ai_learning import finetune
from ai_learning.checkpoint import load_checkpoint, save_checkpoint
from ai_learning.cli import COMMANDS, main
from ai_learning.cli.common import warn_of_warmup
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import to_hf
from ai_learning.run_folder import read_metrics
from ai_learning.text import package_snippets
from ai_learning.train import TrainConfig

SIZES = {"n-layer": 1, "n-head": 2, "n-embd": 16, "block-size": 16, "batch-size": 4, "warmup": 2}
SMALL = [part for name, value in SIZES.items() for part in (f"--{name}", value)] + ["--device", "cpu"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return path


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    assert call(capsys)[0] == 2
    assert call(capsys, "--version")[1].startswith("ai-learning ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_there(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, command, "--help")
    assert code == 0 and "usage: ai-learning" in out and not err


@pytest.mark.parametrize("command", ["demo", "pretrain", "finetune", "generate", "evaluate"])
def test_help_shows_defaults_and_seed_and_out(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert "(default:" in out and "--seed" in out and "--out" in out


def test_preset_decides_the_defaults_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "pretrain", "--preset", "gpt1", "--help")
    assert re.search(r"--n-embd INT.*\(default: 768\)", out)
    twice = ("--preset", "gpt2-tiny", "--preset=gpt1")
    _, out, _ = call(capsys, "pretrain", *twice, "--help")  # the last counts
    assert re.search(r"--n-embd INT.*\(default: 768\)", out)


@pytest.mark.parametrize(("warmup", "warns"), [(3, False), (4, True)])
def test_a_warmup_longer_than_the_run_is_told(warmup: int, warns: bool) -> None:
    with pytest.warns(UserWarning, match="never reaches lr=0.001") if warns else nullcontext():
        warn_of_warmup(TrainConfig(steps=3, warmup=warmup))


def test_a_folder_of_shards_is_trained_on_and_scored(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bpe, shards, out = tmp_path / "bpe", tmp_path / "shards", tmp_path / "run"
    text = ("--data", corpus, "--tokenizer", bpe)
    assert call(capsys, "tokenizer", "train", "--data", corpus, "--vocab-size", 270, "--out", bpe)[0] == 0
    code, said, err = call(capsys, "data", "prepare", *text, "--shard-tokens", 500, "--out", shards)
    assert code == 0, err
    n_tokens = re.search(r"([\d,]+) tokens", said)
    assert n_tokens is not None and len(list(shards.glob("*.tokens"))) > 2
    run = ("pretrain", "--data", shards, "--tokenizer", bpe, "--out", out, "--steps", 2, *SMALL)
    code, said, err = call(capsys, *run)
    assert code == 0 and f"{n_tokens[1]} tokens" in " ".join(said.split()), err
    assert call(capsys, "pretrain", "--resume", "--out", out)[0] == 0
    score = ("evaluate", "--checkpoint", out / "last.pt", "--data", shards, "--out", tmp_path / "score.json")
    assert call(capsys, *score)[0] == 0
    assert json.loads((tmp_path / "score.json").read_text())["n_bytes"] == corpus.stat().st_size
    code, _, err = call(capsys, "tokenizer", "train", "--data", shards, "--out", tmp_path / "bpe2")
    assert code == 2 and "is a folder of token files, not of text" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrian"], "no command 'pretrian'; did you mean 'pretrain'?"),
        (["pretrain", "--n-hed", "4"], "did you mean --n-head"),
        (["pretrain", "--n-head", "5"], "n_head=5 must divide n_embd=128; try 4 or 8"),
        (["pretrain", "--preset", "gpt3"], "no preset 'gpt3'; did you mean 'gpt2'"),
        (["pretrain", "--steps", "many"], "'many'"),
        (["pretrain", "--data", "no/such/file"], "no such file or folder: no/such/file"),
        (["pretrain", "--vocab-size", "100"], "vocab_size=100 is too small: the tokenizer has 258 ids"),
        (["pretrain", "--resume", "--out", "no/such/run"], "no run in no/such/run"),
        (["generate", "--checkpoint", "no.pt"], "no checkpoint at no.pt"),
        (["finetune", "--checkpoint", "no.pt"], "no checkpoint at no.pt"),
        (["evaluate", "--checkpoint", "no.pt"], "no checkpoint at no.pt"),
        (["pretrain", "--held-out", "1.5"], "held_out=1.5 must be between 0 and 1"),
        (["pretrain", "--eval-batches", "0"], "eval_batches=0 must be at least 1"),
        (["pretrain", "--seed", "-3"], "seed=-3 must not be negative"),
        (["pretrain", "--data", "builtin:reference", "--device", "cpu:x"], "device 'cpu:x' is not available"),
        (["pretrain", "--n-layer", "100000000000000"], "parameters needs at least"),
        (["pretrain", "--batch-size", "10000000000"], "and the model need at least"),
        (["generate", "--samples", "0"], "samples=0 must be at least 1"),
        (["evaluate", "--max-tokens", "-5"], "max_tokens=-5 must not be negative"),
        (["finetune", "--lm-coef", "-1"], "lm_coef=-1.0 must not be negative"),
        (["demo", "--steps", "0"], "steps=0"),
        (["lessons", "start", "day99"], "no lesson 'day99'; there are day1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    args: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *args)
    assert code == 2
    assert message in err and err.count("\n") == 1 and "Traceback" not in err


def test_the_road_in_small(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code, text, err = call(
        capsys,
        "pretrain",
        "--data",
        corpus,
        "--out",
        out,
        "--steps",
        40,
        "--eval-every",
        20,
        "--lr",
        0.01,
        *SMALL,
    )
    assert code == 0, err
    assert {"last.pt", "best.pt", "metrics.jsonl", "run.json", "loss.png", "tokenizer"} <= {
        p.name for p in out.iterdir()
    }
    losses = [row["val_loss"] for row in read_metrics(out / "metrics.jsonl") if "val_loss" in row]
    picture = (out / "loss.png").stat().st_mtime_ns
    code, _, err = call(capsys, "pretrain", "--data", corpus, "--out", out, "--steps", 1, *SMALL)
    assert code == 2 and "already holds a run" in err
    assert (out / "loss.png").stat().st_mtime_ns == picture  # a refused run leaves the folder alone
    assert losses[-1] < losses[0] - 1

    ask = (
        "generate",
        "--checkpoint",
        out / "best.pt",
        "--prompt",
        "the ",
        "--max-new-tokens",
        30,
        "--seed",
        4,
    )
    one, two = call(capsys, *ask), call(capsys, *ask, "--out", tmp_path / "sample.txt")
    assert one[0] == 0 and one[1].startswith("the ") and len(one[1]) > 20
    assert one[1] == two[1] == (tmp_path / "sample.txt").read_text()

    code, text, _ = call(
        capsys,
        "evaluate",
        "--checkpoint",
        out / "best.pt",
        "--data",
        corpus,
        "--out",
        tmp_path / "score.json",
    )
    score = json.loads((tmp_path / "score.json").read_text())
    assert code == 0 and score["n_bytes"] == corpus.stat().st_size
    assert score["loss"] == pytest.approx(losses[-1], rel=0.25)

    rows = tmp_path / "task.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": t, "label": t}) + "\n" for t in ("fox", "dog") for _ in range(10))
    )
    tuned = tmp_path / "tuned"
    code, text, err = call(
        capsys, "finetune", "--checkpoint", out / "best.pt", "--data", rows, "--out", tuned, "--steps", 30,
        "--eval-every", 30, "--lr", 0.01, "--batch-size", 8,
    )  # fmt: skip
    assert code == 0, err
    assert "held-out accuracy 100.0%" in text
    ask = ("evaluate", "--checkpoint", tuned / "best.pt", "--out", tmp_path / "accuracy.json")
    code, text, err = call(capsys, *ask)  # the checkpoint knows what was held out
    assert code == 0, err
    scored = json.loads((tmp_path / "accuracy.json").read_text())
    assert scored["accuracy"] == 1.0 and scored["examples"] == 2
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "fox", "label": "fox"}\n' * 3)  # one class only: numbered as in training
    code, text, err = call(capsys, *ask, "--data", other)
    assert code == 0, err
    scored = json.loads((tmp_path / "accuracy.json").read_text())
    assert scored["accuracy"] == 1.0 and scored["examples"] == 3
    code, _, err = call(capsys, "finetune", "--resume", "--out", tuned)  # finished: says so, breaks nothing
    assert code == 0, err
    code, _, err = call(capsys, "pretrain", "--resume", "--out", tuned)
    assert code == 2 and "was made by `finetune`" in err
    code, _, err = call(capsys, "finetune", "--resume", "--out", tuned, "--lm-coef", 0)
    assert code == 2 and "was started with lm_coef=0.5, not 0.0" in err
    assert call(capsys, "generate", "--checkpoint", tuned / "best.pt", "--max-new-tokens", 5)[0] == 0


def test_a_head_on_a_model_that_names_no_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, rows, out = tmp_path / "base.pt", tmp_path / "task.jsonl", tmp_path / "run"
    save_checkpoint(GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=1, n_embd=8)), base)
    rows.write_text("".join(json.dumps({"text": t, "label": t}) + "\n" for t in "ab" * 4))
    head = ("finetune", "--checkpoint", base, "--data", rows, "--out", out, "--steps", 2, "--warmup", 0)
    code, _, err = call(capsys, *head)
    assert code == 2 and "base.pt names no tokenizer: give one with --tokenizer" in err
    code, _, err = call(capsys, *head, "--tokenizer", tmp_path / "none")
    assert code == 2 and str(tmp_path / "none") in err and err.count("\n") == 1
    code, _, err = call(capsys, *head, "--tokenizer", "bytes")
    assert code == 0, err
    assert call(capsys, "evaluate", "--checkpoint", out / "best.pt", "--out", tmp_path / "score.json")[0] == 0
    code, _, err = call(capsys, "finetune", "--resume", "--out", out)  # remembers it
    assert code == 0, err
    half = GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=1, n_embd=8))
    to_hf(half).to(torch.bfloat16).save_pretrained(tmp_path / "half")  # a folder, in 16 bits
    folder = ("--checkpoint", tmp_path / "half", "--out", tmp_path / "other", "--tokenizer", "bytes")
    code, _, err = call(capsys, *head, *folder)
    assert code == 0, err
    dtypes = {p.dtype for p in load_checkpoint(tmp_path / "other" / "best.pt")["state_dict"].values()}
    assert dtypes == {torch.float32}
    save_checkpoint(GPT(GPTConfig(vocab_size=99, block_size=16, n_layer=1, n_head=1, n_embd=8)), base)
    code, _, err = call(capsys, *head, "--tokenizer", "bytes", "--out", tmp_path / "more ids")
    assert code == 2 and "ids, " + str(base) + " only 99: give the one it was trained with" in err


def test_resume_uses_the_runs_own_options(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = (
        "--data",
        corpus,
        "--steps",
        60,
        "--save-every",
        10,
        "--eval-every",
        20,
        "--log-every",
        10,
        *SMALL,
    )
    assert call(capsys, "pretrain", "--out", whole, *common)[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "ai_learning.cli", "pretrain", "--out", str(parts), *map(str, common)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while process.poll() is None and not (parts / "last.pt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have finished before the signal came
        assert process.returncode == 130, err
        assert re.search(r"stopped by SIGINT after step \d+; saved", err) and "Traceback" not in err
    code, _, err = call(capsys, "pretrain", "--out", parts, "--resume")
    assert code == 0, err
    states = [torch.load(folder / "last.pt", weights_only=True)["state_dict"] for folder in (whole, parts)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    code, said, _ = call(capsys, "pretrain", "--out", parts, "--resume")
    assert code == 0 and "the run was finished at step 60; to go on" in said and "step 0/60" not in said
    code, said, err = call(capsys, "pretrain", "--out", parts, "--resume", "--steps", 64)
    assert code == 0 and "going on to step 64, not 60" in said and "done: step 64" in said, err
    corpus.write_text("other text " * 500)
    code, _, err = call(capsys, "pretrain", "--out", parts, "--resume")
    assert code == 2 and "was started with data_digest=" in err


def test_resumed_from_another_folder(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the head's fine-tuning and of pre-training; finished runs are opened all the same."""
    monkeypatch.chdir(corpus.parent)
    given = ("--data", corpus.name, "--out", "first", "--steps", 2, *SMALL)
    code, _, err = call(capsys, "pretrain", *given)
    assert code == 0, err
    Path("task.jsonl").write_text('{"text": "fox", "label": "a"}\n{"text": "dog", "label": "b"}\n' * 5)
    given = ("--checkpoint", "first/last.pt", "--data", "task.jsonl", "--out", "tuned", "--steps", 2)
    code, _, err = call(capsys, "finetune", *given, "--tokenizer", "first/tokenizer")
    assert code == 0, err
    first, tuned = Path("first").resolve(), Path("tuned").resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for command, out in (("pretrain", first), ("finetune", tuned)):
        code, _, err = call(capsys, command, "--resume", "--out", out)
        assert code == 0, err


def test_prompt_from_stdin_and_closed_pipe(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert call(capsys, "pretrain", "--data", corpus, "--out", out, "--steps", 2, *SMALL)[0] == 0
    base = [sys.executable, "-m", "ai_learning.cli", "generate", "--checkpoint", str(out / "last.pt")]
    done = subprocess.run(
        [*base, "--prompt", "-", "--max-new-tokens", "3"], input="quick", capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("quick")
    piped = subprocess.run(
        f"{' '.join(base)} --max-new-tokens 20000 --temperature 0 | head -c 10",
        shell=True,
        capture_output=True,
        timeout=60,
    )
    assert b"Traceback" not in piped.stderr and len(piped.stdout) == 10


def test_lessons_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "lessons")
    assert code == 0 and "day1_attention_tinytransformer.py" in out and "Attention" in out
    assert call(capsys, "lessons", "start", "day1", "--out", tmp_path)[0] == 0
    assert (tmp_path / "day1_attention_tinytransformer.py").exists()
    code, _, err = call(capsys, "lessons", "start", "day1", "--out", tmp_path)
    assert code == 2 and "is already there" in err


def test_demo_spares_what_it_did_not_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "pretrain" / "last.pt"
    kept.parent.mkdir()
    kept.write_text("weeks of work")
    code, _, err = call(capsys, "demo", "--out", tmp_path)
    assert code == 2 and "holds something other than a demo" in err
    assert kept.read_text() == "weeks of work"


def test_demo_in_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All stages on a few examples; the whole demo is what `make demo` runs."""
    train, held_out, names = package_snippets()
    monkeypatch.setattr(finetune, "package_snippets", lambda: (train[:64], held_out[:64], names))
    out = tmp_path / "demo"
    code, text, err = call(capsys, "demo", "--out", out, "--steps", 6, "--finetune-steps", 2)
    assert code == 0, err
    names = {
        "gpt1_tiny_pretrain.pt",
        "gpt1_tiny_finetune.pt",
        "loss.png",
        "attention.png",
        "samples.txt",
        "report.html",
    }
    assert names <= {p.name for p in out.iterdir()}
    report = (out / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 2 and "held-out accuracy" in report
    assert not re.search(r'(src|href)="(?!data:)', report)  # nothing is loaded from elsewhere
    assert text.count("ai-learning ") >= 3
    assert (
        call(capsys, "generate", "--checkpoint", out / "gpt1_tiny_pretrain.pt", "--max-new-tokens", 5)[0] == 0
    )
