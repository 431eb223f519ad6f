"""Before and after: a table on the screen, ``results.json``, a plot and a page."""

import json
import math
from typing import Any

from rich.table import Table

from ..files import write_text
from ..memory import megabytes
from ..viz import plot_bars
from .common import console
from .instruct_options import Instruct
from .instruct_run import Run
from .report import Report


def report(options: Instruct, run: Run, figures: dict[str, Any]) -> dict[str, Any]:
    """Print the table of before and after, and write ``results.json``, ``report.html`` and a plot."""
    before, after, full = figures["before"], figures["after"], figures.get("full")
    columns = {
        "before": before,
        f"after ({options.method})": after,
        **({"all weights": full} if full else {}),
    }
    names = {
        "val_loss": ("loss (nats a token)", "{:.4f}"),
        "val_token_accuracy": ("tokens right", "{:.1%}"),
        "val_exact": ("answers right", "{:.1%}"),
    }
    rows = [[label, *(form.format(c[key]) for c in columns.values())] for key, (label, form) in names.items()]
    table = Table("held out", *columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    gain = before["val_loss"] - after["val_loss"]
    says = f"the held-out loss fell by {gain:.4f} nats a token"
    if full:
        figures["share_of_full_gain"] = gain / (before["val_loss"] - full["val_loss"] or math.nan)
        says += f", {figures['share_of_full_gain']:.0%} of what training all weights gains"
    memory = figures["memory"]
    used = f"memory: estimated {megabytes(memory['estimated'])}"
    if memory["measured"] is not None:
        used += f", measured {megabytes(memory['measured'])}"
    console.print(f"{says}\n{used}", markup=False, soft_wrap=True)
    answers = run.answers()
    figures["samples"] = [
        dict(zip(("prompt", "right", "before", "after"), answer, strict=True)) for answer in answers
    ]
    write_text(options.out / "results.json", json.dumps(figures, indent=2) + "\n")
    shares = {label: {c: columns[c][key] for c in columns} for key, (label, _) in names.items()}
    plot_bars(shares, options.out / "before_after.png", "", "held out")
    page = Report(f"Fine-tuning: {options.method}")
    page.text(f"{options.checkpoint} on {options.data}: {says}; {used}.")
    page.table(["held out", *columns], rows)
    page.image(options.out / "before_after.png", "held-out figures before and after")
    page.heading("Training")
    page.image(options.out / "loss.png", "loss by step")
    if answers:
        page.heading("Answers to held-out prompts")
        page.table(["prompt", "right", "before", "after"], answers)
    page.write(options.out / "report.html")
    _goodbye(options)
    return figures


def _goodbye(options: Instruct) -> None:
    best = options.out / "best.pt"
    lines = [f"report: {options.out}/report.html; checkpoint: {best}"]
    if options.method != "full":
        lines.append(f"adapter in PEFT's format: {options.out}/adapter")
        lines.append(f"try: ai-learning export {best} --merge --out {options.out}/merged")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
