"""``ai-learning demo``: the road from text to a fine-tuned GPT-1, here and now, with a report at its end."""

import os
import platform
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from ..batches import tokenize
from ..checkpoint import load_gpt
from ..errors import InputError
from ..evaluate import score_tokens
from ..files import atomic_path, write_text
from ..finetune import TaskData
from ..generate import generate_text
from ..loss import bits_per_byte
from ..model import GPT
from ..presets import preset
from ..run_folder import RunFolder, read_metrics
from ..text import read_texts
from ..tokenizers import ByteTokenizer
from ..trace import record
from ..train import Interrupted, TrainConfig, TrainResult
from ..viz import plot_attention, plot_loss
from .common import console, parse
from .finetune import Finetune, finetune
from .pretrain import Pretrain, pretrain
from .report import Report

PROMPTS = ("def ", "class Error(", '"""Return ', "import ")


@dataclass(frozen=True)
class Demo:
    """Pre-train a small GPT-1 on the standard library's source, sample, fine-tune, and write a report."""

    out: Path = Path("runs/demo")
    """folder for everything that the demo makes: an empty one, or an earlier demo's, which is replaced"""
    steps: int = 1200
    """pre-training steps"""
    finetune_steps: int = 160
    """fine-tuning steps, for the pre-trained model and again from random weights"""
    seed: int = 1337
    """of weights, batches and samples"""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.finetune_steps < 1:
            raise ValueError(
                f"steps={self.steps} and finetune_steps={self.finetune_steps} must be at least 1"
            )


@dataclass(frozen=True)
class _Results:
    pretrain: TrainResult
    data: TaskData
    finetune: TrainResult
    scratch: TrainResult
    seconds: dict[str, float]


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Demo, args, "demo")
    marker = options.out / ".demo"
    if options.out.is_dir() and any(options.out.iterdir()) and not marker.exists():
        raise InputError(f"{options.out} holds something other than a demo: give an empty folder")
    with RunFolder(options.out):
        write_text(marker, "made by `ai-learning demo`, which may replace all that is here\n")
        for stage in ("pretrain", "finetune", "from_scratch"):
            shutil.rmtree(options.out / stage, ignore_errors=True)
        try:
            results = _run(options)
        except Interrupted as stop:
            stop.args = (f"stopped; what was trained so far is in {options.out}; a new demo starts over",)
            raise
    _say_goodbye(options.out, results)


def _run(options: Demo) -> _Results:
    out, seconds = options.out, {}
    pretrained, finetuned = out / "gpt1_tiny_pretrain.pt", out / "gpt1_tiny_finetune.pt"

    _stage(1, "pre-train a GPT-1 of 0.8 million parameters on the standard library's source, byte by byte")
    started = time.perf_counter()
    pretraining = pretrain(
        Pretrain(
            data="builtin:stdlib-train",
            preset="gpt1-tiny",
            out=out / "pretrain",
            model=preset("gpt1-tiny"),
            train=TrainConfig(
                steps=options.steps,
                batch_size=12,
                lr=3e-3,
                schedule="linear",
                lr_floor=0.0,
                warmup=max(1, options.steps // 15),
                eval_every=max(1, options.steps // 6),
                save_every=max(1, options.steps // 3),
                sample_every=max(1, options.steps // 3),
                seed=options.seed,
            ),
        )
    )
    _copy(out / "pretrain" / "best.pt", pretrained)
    shutil.copytree(out / "pretrain" / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    seconds["pre-training"] = time.perf_counter() - started

    _stage(2, "let it write, and look at its attention")
    started = time.perf_counter()
    gpt, _ = load_gpt(pretrained)
    samples = write_samples(gpt, out / "samples.txt", options.seed)
    console.print(samples[0], markup=False)
    draw_attention(gpt, "for name in names:\n    print(name)", out / "attention.png")
    seconds["samples and pictures"] = time.perf_counter() - started

    _stage(3, "fine-tune it: which package of the standard library is this snippet from?")
    started = time.perf_counter()
    how = Finetune(
        checkpoint=pretrained,
        out=out / "finetune",
        train=TrainConfig(
            steps=options.finetune_steps,
            batch_size=32,
            lr=2e-3,
            warmup=max(1, options.finetune_steps // 10),
            schedule="linear",
            lr_floor=0.0,
            weight_decay=0.01,
            beta2=0.999,
            eval_every=max(1, options.finetune_steps // 2),
            save_every=options.finetune_steps,
            seed=options.seed,
        ),
    )
    data, tuned = finetune(how)
    _copy(out / "finetune" / "best.pt", finetuned)
    _, scratch = finetune(
        Finetune(checkpoint=pretrained, out=out / "from_scratch", from_scratch=True, train=how.train),
        title="the same from random weights",
    )
    seconds["fine-tuning twice"] = time.perf_counter() - started

    _stage(4, "write the report")
    rows = read_metrics(out / "pretrain" / "metrics.jsonl")
    plot_loss(rows, out / "loss.png", "pre-training on the standard library's source")
    results = _Results(pretraining, data, tuned, scratch, seconds)
    write_report(out, gpt, samples, results)
    return results


def write_samples(model: GPT, path: Path, seed: int) -> list[str]:
    """A sample for each prompt, to a file and back."""
    tokenizer = ByteTokenizer()
    how = {"temperature": 0.8, "repetition_penalty": 1.1}
    samples = [
        prompt + generate_text(model, tokenizer, prompt, 300, seed=seed + number, **how)
        for number, prompt in enumerate(PROMPTS)
    ]
    write_text(path, ("\n" + "-" * 60 + "\n").join(samples) + "\n")
    return samples


def draw_attention(model: GPT, text: str, path: Path) -> None:
    """All heads of the layer that looks most sharply: whose largest weights are largest."""
    idx = torch.tensor([ByteTokenizer().encode(text)])
    with record(model) as trace, torch.no_grad():
        model(idx)
    sharpness = [weights.amax(dim=-1).mean().item() for weights in trace.attention]
    layer = sharpness.index(max(sharpness))
    plot_attention(trace.attention[layer][0], list(text), path, f"layer {layer}: row looks at column")


def write_report(out: Path, model: GPT, samples: list[str], results: _Results) -> None:
    """``report.html`` from what the run measured."""
    tokenizer = ByteTokenizer()
    prose = tokenize(read_texts("builtin:reference"), tokenizer)[:100_000]
    score = score_tokens(model, prose, int((prose < 256).sum()))
    tuned, scratch = (
        results.finetune.best_metrics["val_accuracy"],
        results.scratch.best_metrics["val_accuracy"],
    )
    majority = results.data.majority_accuracy()

    report = Report("From text to a fine-tuned GPT-1")
    report.text(
        f"A GPT-1 of {model.n_params():,} parameters (post-norm, {model.config.n_layer} layers, "
        f"{model.config.n_head} heads, {model.config.n_embd} wide, context {model.config.block_size} bytes), "
        f"trained from nothing with PyTorch {torch.__version__} on {hardware()}."
    )
    report.heading("1 · Pre-training")
    best = results.pretrain.best_val_loss or float("nan")
    report.table(
        ["text", "nats a byte", "bits a byte"],
        [
            ["held-out source of the standard library", f"{best:.3f}", f"{bits_per_byte(best, 1):.3f}"],
            ["language reference (prose it never saw)", f"{score.loss:.3f}", f"{score.bits_per_byte:.3f}"],
            ["a guess among 256 bytes", "5.545", "8.000"],
        ],
    )
    report.image(out / "loss.png", "training and held-out loss by step")
    report.heading("2 · What it writes")
    for text in samples:
        report.code(text)
    report.heading("3 · Where it looks")
    report.text("Each row is a byte asking, each column a byte it may look at: never one to its right.")
    report.image(out / "attention.png", "attention weights of all heads of one layer")
    report.heading("4 · Fine-tuning: which package is this snippet from?")
    report.text(
        f"{len(results.data.train):,} labelled snippets of 120 characters, {len(results.data.held_out):,} "
        f"held out (and left out of pre-training); classes: {', '.join(results.data.classes)}."
    )
    report.table(
        ["model", "held-out accuracy"],
        [
            ["pre-trained, then fine-tuned", f"{tuned:.1%}"],
            ["the same from random weights", f"{scratch:.1%}"],
            ["always the most frequent package", f"{majority:.1%}"],
        ],
    )
    report.heading("Time")
    report.table(["stage", "seconds"], [[k, f"{v:.0f}"] for k, v in results.seconds.items()])
    report.heading("What to try next")
    report.code("\n".join(next_commands(out)))
    report.write(out / "report.html")


def next_commands(out: Path) -> list[str]:
    """Three commands that go on from here, as they can be typed in this shell."""
    called = Path(sys.argv[0])
    program = "ai-learning"
    if not shutil.which(program) and called.name == program:  # `make demo` without the environment activated
        program = os.path.relpath(called)
    return [
        f"{program} generate --checkpoint {out}/gpt1_tiny_pretrain.pt --prompt 'class Parser'",
        f"{program} evaluate --checkpoint {out}/gpt1_tiny_finetune.pt",
        f"{program} pretrain --data FOLDER_OF_YOUR_OWN --steps 3000 --out runs/mine",
    ]


def _say_goodbye(out: Path, results: _Results) -> None:
    tuned, scratch = (
        results.finetune.best_metrics["val_accuracy"],
        results.scratch.best_metrics["val_accuracy"],
    )
    table = Table("result", "value", title="done")
    table.add_row("held-out loss", f"{results.pretrain.best_val_loss:.3f} nats a byte")
    table.add_row("accuracy, pre-trained and fine-tuned", f"{tuned:.1%}")
    table.add_row("accuracy, from random weights", f"{scratch:.1%}")
    table.add_row("accuracy, most frequent package", f"{results.data.majority_accuracy():.1%}")
    table.add_row("time", f"{sum(results.seconds.values()):.0f} s")
    console.print(table)
    console.print(f"open {out}/report.html; also there: samples.txt, loss.png, attention.png, two .pt files")
    console.print("try next:")
    for command in next_commands(out):
        console.print("  " + command, markup=False, soft_wrap=True)


def _stage(number: int, what: str) -> None:
    console.print(f"\n[bold]{number}/4[/bold] {what}")


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def hardware() -> str:
    """The GPU's name, or the kind of CPU and how many threads PyTorch uses: reports say what they ran on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
