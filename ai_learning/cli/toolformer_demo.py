"""``ai-learning toolformer demo``: from raw text to a model that calls tools, here and now, with a report."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..checkpoint import load_gpt, save_checkpoint
from ..errors import InputError
from ..files import write_text
from ..model import GPT
from ..run_folder import RunFolder
from ..toolformer.tiny.experiment import Results, Tiny, TinyConfig
from ..toolformer.tiny.report import DEPARTURES, accuracy_rows, filter_rows, seconds_rows
from .common import console, parse
from .report import Report

MAKES_M = (
    "seed", "n_layer", "n_embd", "n_head", "pretrain_documents", "pretrain_plain", "batch_tokens", "lr",
    "embedding_lr", "muon_lr",
)  # fmt: skip
"""fields of ``TinyConfig`` that decide the pre-trained model"""


@dataclass(frozen=True)
class ToolformerDemo:
    """Pre-train a tiny GPT on plain text, let it teach itself three tools, and compare as the paper does."""

    out: Path = Path("runs/toolformer-demo")
    """folder for the report, the figures and what was annotated; an interrupted demo goes on from its M"""
    tiny: TinyConfig = field(default_factory=TinyConfig)


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(ToolformerDemo, args, "toolformer demo")
    marker = options.out / ".toolformer-demo"
    if options.out.is_dir() and any(options.out.iterdir()) and not marker.exists():
        raise InputError(f"{options.out} holds something other than a demo: give an empty folder")
    with RunFolder(options.out):
        write_text(marker, "made by `ai-learning toolformer demo`, which may replace all that is here\n")
        with StageProgress() as progress:
            tiny = Tiny(options.tiny, progress)
            results = tiny.run(pretrained(tiny, options.out / "m.pt"))
        write_results(options.out, results)
    say(results)
    console.print(f"open {options.out}/report.html; also there: results.json, annotated.jsonl")


def pretrained(tiny: Tiny, path: Path) -> GPT:
    """M: that of an interrupted demo, where it was made alike; else a new one, kept at ``path``."""
    made = {name: getattr(tiny.config, name) for name in MAKES_M}
    if path.exists():
        model, found = load_gpt(path)
        if found.get("made") == made:
            console.print(f"{path} is what this pre-training would give: going on from there")
            tiny.seconds["pre-training"] = found["seconds"]
            return model.eval()
    model = tiny.pretrain()
    save_checkpoint(model, path, made=made, seconds=tiny.seconds["pre-training"])
    return model


def say(results: Results) -> None:
    """The tables, on the terminal."""
    for title, (header, rows) in tables(results).items():
        table = Table(*header, title=title)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print("what Toolformer writes:")
    for text in results.written[:9]:
        console.print("  " + text, markup=False, soft_wrap=True)


def tables(results: Results) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Titles with header and rows."""
    return {
        "held-out problems solved, and perplexity of held-out plain text": accuracy_rows(results.scores),
        "the filter beside the truth": filter_rows(results),
        "where the time went": seconds_rows(results),
    }


def write_results(out: Path, results: Results) -> None:
    """``results.json``, ``annotated.jsonl`` and ``report.html``."""
    figures: dict[str, Any] = {
        "config": asdict(results.config),
        "parameters": results.parameters,
        "scores": {name: asdict(scores) for name, scores in results.scores.items()},
        "filter": [{tool: asdict(a) for tool, a in each.items()} for each in results.agreement],
        "documents in C*": results.kept,
        "CPU seconds": results.seconds,
    }
    write_text(out / "results.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    lines = [json.dumps(_line(*pair), ensure_ascii=False) for pair in results.annotated]
    write_text(out / "annotated.jsonl", "\n".join(lines) + "\n")
    report = Report("A tiny Toolformer")
    report.text(
        f"{results.parameters:,} parameters, {results.config.n_layer} layers, {results.config.n_embd} wide, "
        f"seed {results.config.seed}; {results.kept} documents in C*. Where this leaves the paper:"
    )
    for departure in DEPARTURES:
        report.text(departure)
    for title, (header, rows) in tables(results).items():
        report.heading(title)
        report.table(header, rows)
    report.heading("What Toolformer writes")
    report.code("\n".join(results.written))
    report.write(out / "report.html")


def _line(item: Any, document: Any) -> dict[str, Any]:
    """A document of the last round with all candidates."""
    return {
        "kind": item.kind,
        "text": item.text,
        "date": document.date,
        "calls": [
            {
                "offset": c.offset,
                "call": str(c.call),
                "result": c.result,
                "gain": None if c.gain != c.gain else round(c.gain, 4),
                "kept": c.kept,
            }
            for c in document.candidates
        ],
    }


class StageProgress:
    """A bar for each stage; a line when it is done where there is no terminal."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "StageProgress":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, stage: str, share: float, figures: str) -> None:
        """Take news of a stage."""
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=1.0, figures="")
        self.progress.update(self.tasks[stage], completed=share, figures=figures)
        if share >= 1 and not console.is_terminal:
            print(f"{stage}: {figures}", flush=True)
