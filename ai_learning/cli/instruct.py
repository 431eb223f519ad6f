"""``ai-learning finetune --method full|lora|qlora``: a language model and instruction data."""

from dataclasses import replace
from typing import Any

from .common import console, flag, parse, to_resume
from .instruct_options import LR, Instruct
from .instruct_report import report
from .instruct_run import Run


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Instruct, args, "finetune", default=_defaults(args))
    instruct(options)


def _defaults(args: list[str]) -> Instruct:
    """The defaults that ``--help`` shows: the method's, or those of the run to be resumed."""
    resumed = to_resume(Instruct, args, "finetune")
    if resumed is not None:
        return resumed
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
