"""The tiny Toolformer over several seeds, with its ablations: the tables of RESULTS_toolformer.md.

    python -m benchmarks.toolformer                    # three seeds
    python -m benchmarks.toolformer --ablations        # and the ablations, with the first seed
    python -m benchmarks.toolformer --sizes            # and smaller models, with the first seed

A run that is in ``--out`` already is not run again. One thread; seconds are of the CPU.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ai_learning.model import GPT
from ai_learning.toolformer.filter import refilter
from ai_learning.toolformer.settings import Settings
from ai_learning.toolformer.tiny import Results, Tiny, TinyConfig
from ai_learning.toolformer.tiny.experiment import without_second_term
from ai_learning.toolformer.tiny.measure import Agreement, agreement
from ai_learning.toolformer.tiny.world import KINDS

from .common import hardware

NEVER = dict.fromkeys(KINDS, -math.inf)
SCALES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
SIZES = ((1, 128), (2, 32), (2, 64), (2, 96))


def main() -> None:
    """Run what is missing, print all tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/toolformer-bench"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ablations", action="store_true", help="no filter, no second term, other τ_f")
    parser.add_argument("--sizes", action="store_true", help="smaller models")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.out)
    seeds = [bench.run(f"seed {seed}", TinyConfig(seed=seed)) for seed in args.seeds]
    print(hardware() + "\n")
    print(comparison(seeds))
    first = TinyConfig(seed=args.seeds[0])
    if args.ablations:
        rows = {"as it is": seeds[0]}
        for name, config in (
            ("no filter", replace(first, tau_f=NEVER)),
            ("L⁻ without its second term", replace(first, second_term=False)),
        ):
            rows[name] = bench.run(name, config)
        print(ablations(rows))
        print(sweep(bench.sweep(first)))
    if args.sizes:
        rows = {
            f"{layers} layers of {width}": bench.run(
                f"size {layers} {width}", replace(first, n_layer=layers, n_embd=width)
            )
            for layers, width in SIZES
        }
        print(sizes({**rows, f"{first.n_layer} layers of {first.n_embd}": seeds[0]}))


class Bench:
    """Runs, kept as JSON in a folder."""

    def __init__(self, out: Path) -> None:
        self.out = out
        out.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, config: TinyConfig) -> dict[str, Any]:
        """The figures of one run; those of one seed and size share M."""

        def work() -> dict[str, Any]:
            model, seconds = self.m(config)
            found = figures(Tiny(config).run(model))
            found["seconds"] = {"pre-training": seconds, **found["seconds"]}
            return found

        return self._once(name, work)

    def m(self, config: TinyConfig) -> tuple[GPT, float]:
        """The pre-trained model of a seed and size, made once, and the CPU seconds that it took."""
        path = self.out / f"m {config.seed} {config.n_layer} {config.n_embd}.pt"
        if not path.exists():
            tiny = Tiny(config)
            torch.save([tiny.pretrain().state_dict(), tiny.seconds["pre-training"]], path)
        state, seconds = torch.load(path, weights_only=True)
        model = GPT(config.model())
        model.load_state_dict(state)
        return model.eval(), seconds

    def sweep(self, config: TinyConfig) -> list[list[Any]]:
        """Precision and recall of the first round's calls for other τ_f, with both terms of L⁻ or one."""

        def work() -> list[list[Any]]:
            tiny = Tiny(config)
            items, found = tiny.annotate(tiny.bootstrap(self.m(config)[0]), 0)
            rows: list[list[Any]] = []
            for second in (True, False):
                for scale in SCALES:
                    settings = {
                        kind: Settings(config.tau_s, scale * config.tau_f[kind], config.k, config.m)
                        for kind in KINDS
                    }
                    judged = refilter(found, settings) if second else without_second_term(found, settings)
                    by_tool = agreement(items, judged)
                    total = sum(by_tool.values(), start=Agreement(0, 0, 0, 0))
                    rows.append([second, scale, total.kept, total.right, total.precision, total.recall])
            return rows

        return self._once("sweep", work)

    def _once(self, name: str, work: Callable[[], Any]) -> Any:
        path = self.out / f"{name}.json"
        if not path.exists():
            write(path, work())
        return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, value: Any) -> None:
    """As JSON."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def figures(results: Results) -> dict[str, Any]:
    """What the tables need."""
    return {
        "parameters": results.parameters,
        "scores": {name: {**asdict(scores), "mean": scores.mean} for name, scores in results.scores.items()},
        "filter": [
            {tool: [a.sampled, a.right, a.kept, a.kept_right] for tool, a in each.items()}
            for each in results.agreement
        ],
        "kept": results.kept,
        "seconds": results.seconds,
    }


def spread(values: list[float], how: Callable[[float], str]) -> str:
    """Mean, and from the least to the greatest."""
    if len(values) == 1:
        return how(values[0])
    return f"{how(statistics.mean(values))} ({how(min(values))} to {how(max(values))})"


def percent(value: float) -> str:
    """12.3 %."""
    return f"{100 * value:.1f}"


def comparison(runs: list[dict[str, Any]]) -> str:
    """The paper's comparison: mean and range over the seeds."""
    lines = [
        f"{runs[0]['parameters']:,} parameters, {len(runs)} seeds: mean (least to greatest)",
        "",
        f"| model | {' % | '.join(KINDS)} % | mean % | perplexity | where no tool is needed |",
        "| --- |" + " --- |" * (len(KINDS) + 3),
    ]
    for name in runs[0]["scores"]:
        scores = [run["scores"][name] for run in runs]
        cells = [spread([s["accuracy"][kind] for s in scores], percent) for kind in KINDS]
        cells += [spread([s["mean"] for s in scores], percent)]
        cells += [
            spread([s[key] for s in scores], "{:.3f}".format) for key in ("perplexity", "perplexity_no_tool")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    seconds = [sum(run["seconds"].values()) for run in runs]
    ratios = [
        run["scores"]["Toolformer"]["perplexity"] / run["scores"]["M + C"]["perplexity"] for run in runs
    ]
    no_tool = [
        run["scores"]["Toolformer"]["perplexity_no_tool"] / run["scores"]["M + C"]["perplexity_no_tool"]
        for run in runs
    ]
    lines += [
        "",
        f"Perplexity of Toolformer ÷ M + C: {spread(ratios, '{:.3f}'.format)}; "
        f"where no tool is needed: {spread(no_tool, '{:.3f}'.format)}.",
        f"CPU seconds a seed: {spread(seconds, '{:.0f}'.format)}.",
        "",
        "| round | tool | sampled | right | kept | precision | recall |",
        "| --- |" + " --- |" * 6,
    ]
    for number in range(len(runs[0]["filter"])):
        for kind in KINDS:
            a = [Agreement(*run["filter"][number][kind]) for run in runs]
            total = sum(a, start=Agreement(0, 0, 0, 0))
            lines.append(
                f"| {number + 1} | {kind} | {total.sampled} | {total.right} | {total.kept} | "
                f"{spread([x.precision for x in a], '{:.2f}'.format)} | "
                f"{spread([x.recall for x in a], '{:.2f}'.format)} |"
            )
    return "\n".join(lines) + "\n"


def ablations(runs: dict[str, dict[str, Any]]) -> str:
    """One line each."""
    lines = [
        f"| what | {' % | '.join(KINDS)} % | mean % | perplexity | documents in C* | precision, last round |",
        "| --- |" + " --- |" * (len(KINDS) + 4),
    ]
    for name, run in runs.items():
        scores = run["scores"]["Toolformer"]
        last = sum((Agreement(*v) for v in run["filter"][-1].values()), start=Agreement(0, 0, 0, 0))
        cells = [percent(scores["accuracy"][kind]) for kind in KINDS] + [percent(scores["mean"])]
        cells += [f"{scores['perplexity']:.3f}", str(run["kept"]), f"{last.precision:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sweep(rows: list[list[Any]]) -> str:
    """τ_f by precision and recall."""
    lines = [
        "| L⁻ | τ_f × | kept | right among the sampled | precision | recall |",
        "| --- |" + " --- |" * 5,
    ]
    for second, scale, kept, right, precision, recall in rows:
        name = "both terms" if second else "nothing only"
        lines.append(f"| {name} | {scale:g} | {kept} | {right} | {precision:.2f} | {recall:.2f} |")
    return "\n".join(lines) + "\n"


def sizes(runs: dict[str, dict[str, Any]]) -> str:
    """Below which size do tools not help?"""
    lines = ["| model | parameters | M % | M + C % | disabled % | Toolformer % |", "| --- |" + " --- |" * 5]
    for name, run in runs.items():
        cells = [percent(scores["mean"]) for scores in run["scores"].values()]
        lines.append(f"| {name} | {run['parameters']:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
