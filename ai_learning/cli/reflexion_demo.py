"""``ai-learning reflexion demo``: a GPT that learns to reflect, here and now, and what that is worth."""

import json
import random
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.table import Table

from ..chat_model import GPTChatModel
from ..checkpoint import save_checkpoint
from ..errors import InputError
from ..files import write_text
from ..model import GPT
from ..reflexion import Reflexion
from ..reflexion.household.experiment import CONDITIONS, MAIN, Experiment, Outcome, experiment, mean_curves
from ..reflexion.household.runner import LONGEST_REFLECTION
from ..reflexion.household.text import PROMPTS, TOKENIZER
from ..reflexion.household.training import Schooling
from ..reflexion.household.world import MAX_ACTIONS, PLACES, draw_task, split_pairs
from ..run_folder import RunFolder
from ..viz import plot_lines
from .common import TrainingProgress, console, parse
from .demo import _hardware as hardware
from .report import Report


@dataclass(frozen=True)
class Demo:
    """Train a small GPT to act and to reflect, and print the paper's figure: success by trial."""

    out: Path = Path("runs/reflexion_demo")
    """folder for everything that the demo makes: an empty one, or an earlier demo's, which is replaced"""
    seed: int = 0
    """of the weights, the demonstrations, the held-out pairs and the tasks"""
    seeds: int = 1
    """how many seeds, counted on from --seed; the figure shows their mean"""
    tasks: int = 200
    """held-out tasks a seed"""
    train: Schooling = field(default_factory=Schooling)

    def __post_init__(self) -> None:
        for name in ("seeds", "tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")


def main(args: list[str]) -> int:
    """Entry point."""
    options = parse(Demo, args, "reflexion demo")
    marker = options.out / ".reflexion_demo"
    if options.out.is_dir() and any(options.out.iterdir()) and not marker.exists():
        raise InputError(f"{options.out} holds something other than a demo: give an empty folder")
    with RunFolder(options.out):
        write_text(marker, "made by `ai-learning reflexion demo`, which may replace all that is here\n")
        shutil.rmtree(options.out / "graph", ignore_errors=True)
        began = time.perf_counter()
        experiments = [_one_seed(options, options.seed + number) for number in range(options.seeds)]
        example = _example(options, experiments[0].model)
        _write_report(options, experiments, example, time.perf_counter() - began)
    _say_goodbye(options, experiments)
    return 0


def _one_seed(options: Demo, seed: int) -> Experiment:
    console.print(f"\n[bold]seed {seed}[/bold]: demonstrations by a script; then the model is on its own")
    with TrainingProgress(options.train.steps) as progress:
        done = experiment(options.train, seed, options.tasks, listener=progress, on_outcome=_print_outcome)
    save_checkpoint(done.model, options.out / f"seed{seed}.pt", seed=seed)
    found = {name: asdict(outcome) for name, outcome in done.outcomes.items()}
    result = {"seed": seed, "cpu_seconds": done.cpu_seconds, "tasks": options.tasks, "outcomes": found}
    write_text(options.out / f"seed{seed}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return done


def _print_outcome(name: str, outcome: Outcome) -> None:
    curve = "  ".join(f"{share:4.0%}" for share in outcome.curve)
    truth = "" if outcome.truth is None else f"   {outcome.truth:.1%} of {outcome.claims:,} claims true"
    console.print(f"  {name:<25}{curve}{truth}", markup=False, soft_wrap=True)


def _example(options: Demo, model: GPT) -> Path:
    """One task through the real graph, to be read step by step."""
    _, held_out = split_pairs(options.seed)
    rng = random.Random(f"example {options.seed}")
    options_of_both = {"gpt": model, "tokenizer": TOKENIZER, "name_of_model": "demo"}
    actor = GPTChatModel(**options_of_both, max_tokens=2, temperature=0.7, seed=options.seed)
    reflector = GPTChatModel(**options_of_both, max_tokens=LONGEST_REFLECTION)
    agent = Reflexion(
        actor,
        reflector=reflector,
        trials=6,
        most_actions=MAX_ACTIONS,
        prompts=PROMPTS,
        out=options.out / "graph",
    )
    agent.run([draw_task(held_out, rng, number) for number in range(3)])
    return options.out / "graph" / "trace.html"


# --- the report ---------------------------------------------------------------------------------------------


def _write_report(options: Demo, experiments: list[Experiment], example: Path, seconds: float) -> None:
    """``report.html`` and the plot, from what was measured."""
    curves = mean_curves(experiments)
    plot = options.out / "success_by_trial.png"
    title = f"held-out tasks, {_seeds(options)}"
    plot_lines(curves, plot, "trial", "share of tasks solved", title, first=1)

    model = experiments[0].model
    page = Report("Reflexion: a small GPT that learns from its failures by writing itself notes")
    page.text(
        f"A GPT of {model.n_params():,} parameters, trained from nothing on a script's demonstrations "
        f"({options.train.steps} batches of {options.train.batch_size}), is the actor and the reflector. "
        f"A thing is hidden in one of {len(PLACES)} places, a trial of {MAX_ACTIONS} actions sees three of "
        "them, and only what is remembered of earlier trials can make the next one better. "
        f"{options.tasks} tasks a seed, {_seeds(options)}, whose kinds and things never came together in a "
        f"demonstration; PyTorch {torch.__version__} on {hardware()}; {seconds:.0f} s in all."
    )
    page.heading("Solved after each trial")
    page.table(*success_table(experiments))
    page.image(plot, "share of tasks solved after each trial")
    page.heading("What the figure says")
    for line in findings(curves):
        page.text(line)
    page.heading("By seed, after the last trial")
    page.table(*seed_table(experiments))
    page.heading("The same through the graph")
    page.text(
        f"Three tasks by LangGraph, step by step, with every prompt: {example.relative_to(options.out)}. The "
        "figures above come from a runner that plays all tasks at once; a test holds the two together."
    )
    page.write(options.out / "report.html")


def _seeds(options: Demo) -> str:
    last = options.seed + options.seeds - 1
    return f"seed {options.seed}" if options.seeds == 1 else f"mean of seeds {options.seed} to {last}"


def success_table(experiments: list[Experiment]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: mean success by trial, and the share of the reflections' claims that are true."""
    curves = mean_curves(experiments)
    trials = len(next(iter(curves.values())))
    header = ["", *(f"after {number}" for number in range(1, trials + 1)), "claims true"]
    rows = []
    for name, curve in curves.items():
        outcomes = [one.outcomes[name] for one in experiments]
        claims = sum(outcome.claims for outcome in outcomes)
        true = sum(outcome.true_claims for outcome in outcomes)
        rows.append([name, *(f"{share:.1%}" for share in curve), f"{true / claims:.1%}" if claims else "–"])
    return header, rows


def seed_table(experiments: list[Experiment]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: success after the last trial by seed, and what each seed cost."""
    header = ["seed", *CONDITIONS, "CPU seconds: training + evaluation"]
    rows = [
        [
            str(one.seed),
            *(f"{one.outcomes[name].curve[-1]:.1%}" for name in CONDITIONS),
            " + ".join(f"{one.cpu_seconds[part]:.0f}" for part in ("training", "evaluation")),
        ]
        for one in experiments
    ]
    return header, rows


def findings(curves: dict[str, list[float]]) -> list[str]:
    """What was measured, as sentences."""
    last = {name: 100 * curve[-1] for name, curve in curves.items()}
    trials = len(curves[MAIN])
    return [
        f"After {trials} trials reflexion (Ω = 3) has solved {last[MAIN]:.1f} %: "
        f"{last[MAIN] - last['none']:+.1f} points against trying again with no memory, "
        f"{last[MAIN] - last['last attempt']:+.1f} against seeing the last attempt.",
        f"Without the words the gain is gone: empty reflections {last['empty reflections']:.1f} %, another "
        f"task's {last['shuffled reflections']:.1f} %, no memory {last['none']:.1f} %.",
        "The last attempt shows three places; reflections pass on all that were seen. (A searcher with a "
        "fixed order would need only the last: this actor draws, as a sampled language model does.)",
    ]


def _say_goodbye(options: Demo, experiments: list[Experiment]) -> None:
    header, rows = success_table(experiments)
    table = Table(*header, title=f"success by trial, {_seeds(options)}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in findings(mean_curves(experiments)):
        console.print(line, markup=False)
    cost = sum(sum(one.cpu_seconds.values()) for one in experiments) / len(experiments)
    console.print(f"{cost:.0f} CPU seconds a seed", markup=False)
    console.print(
        f"open {options.out}/report.html; three tasks step by step: {options.out}/graph/trace.html",
        markup=False,
        soft_wrap=True,
    )
    console.print("programs in the sandbox: ai-learning reflexion run --task programs", markup=False)
