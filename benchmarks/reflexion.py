"""Reflexion on the household: success by trial, against no memory, the last attempt, and controls.

    python -m benchmarks.reflexion --seeds 0 1 2

A seed whose result is in ``--runs`` already is not run again.
"""

import argparse
from pathlib import Path

import torch

from ai_learning.reflexion.household.experiment import (
    CONDITIONS,
    Result,
    experiment,
    findings,
    seed_table,
    success_table,
)
from ai_learning.reflexion.household.training import Schooling

from .common import hardware

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run what is missing, and print (or with ``--write`` note) the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks a seed")
    parser.add_argument("--steps", type=int, default=Schooling.steps, help="batches of demonstrations")
    parser.add_argument("--runs", type=Path, default=Path("runs/reflexion_benchmark"))
    parser.add_argument("--write", action="store_true", help="write RESULTS_reflexion.md")
    args = parser.parse_args()

    results = [one_seed(seed, args) for seed in args.seeds]
    text = page(results, args)
    print(text)
    if args.write:
        (HERE / "RESULTS_reflexion.md").write_text(text, encoding="utf-8")


def one_seed(seed: int, args: argparse.Namespace) -> Result:
    """From the folder of runs, or now."""
    path = args.runs / f"seed{seed}_{args.steps}x{args.tasks}.json"
    if not path.exists():
        args.runs.mkdir(parents=True, exist_ok=True)
        _, result = experiment(
            Schooling(steps=args.steps),
            seed,
            args.tasks,
            on_outcome=lambda name, outcome: print(
                f"seed {seed}, {name}: {outcome.curve[-1]:.1%}", flush=True
            ),
        )
        result.save(path)
    return Result.load(path)


def page(results: list[Result], args: argparse.Namespace) -> str:
    """Markdown."""
    how = CONDITIONS["none"]
    cost = sum(sum(one.cpu_seconds.values()) for one in results) / len(results)
    seeds = " ".join(map(str, args.seeds))
    parts = [
        "# Reflexion, offline: success by trial",
        f"{hardware()}; `python -m benchmarks.reflexion --seeds {seeds} --write`.",
        f"One GPT of {results[0].parameters:,} parameters is actor and reflector, trained from nothing on a "
        f"script's demonstrations ({args.steps} batches). {args.tasks} tasks a seed whose (family, thing) "
        f"pairs are in no demonstration; at most {how.trials} trials each, actor's temperature "
        f"{how.temperature}, reflector greedy. {cost:.0f} CPU seconds a seed, for training and all "
        "conditions together.",
        f"Share of tasks solved, mean of {len(results)} seeds. A claim (a place has the thing, or has not) "
        "is true where the task's own trials had shown it.",
        _table(*success_table(results)),
        "By seed, after the last trial:",
        _table(*seed_table(results)),
        *findings(results),
    ]
    return "\n\n".join(parts) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    main()
