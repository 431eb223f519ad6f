"""``ai-learning finetune --method full|lora|qlora``: a language model and instruction data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..run_folder import read_options
from ..train import TrainConfig
from .common import console, flag, parse
from .instruct_options import LR, Instruct
from .instruct_report import report
from .instruct_run import Run


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Instruct, args, "finetune", default=_defaults(args))
    instruct(options)


def _defaults(args: list[str]) -> Instruct:
    """The defaults that ``--help`` shows: the method's, or those of the run to be resumed."""
    if "--resume" in args:
        out = flag(args, "--out", str(Instruct.out))
        saved = read_options(out, "finetune")
        how = TrainConfig(**saved.pop("train"))
        return Instruct(**{**saved, "out": Path(out), "train": how})
    defaults, method = Instruct(), flag(args, "--method", Instruct.method)
    if method not in LR:
        return defaults
    how = replace(defaults.train, lr=LR[method])
    return replace(defaults, method=method, train=how)  # type: ignore[arg-type]


def instruct(options: Instruct) -> dict[str, Any]:
    """Run it: the figures before and after, as they are written to ``results.json``."""
    run = Run(options)
    result, peak = run.fit()
    figures = run.figures(result)
    if options.compare:
        console.print("the same with all weights:")
        full = replace(
            options,
            method="full",
            compare=False,
            samples=0,
            out=options.out / "full",
            train=replace(options.train, lr=LR["full"], optimizer="adamw"),
        )
        resumed = replace(full, resume=(full.out / "run.json").exists())
        other = Run(resumed)
        figures["full"] = other.figures(other.fit()[0])["after"]
    figures["memory"] = {"estimated": run.plan.peak, "measured": peak}
    return report(options, run, figures)
