"""``ai-learning reflexion demo``: a GPT that learns to reflect, here and now, and what that is worth."""

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from ..chat_model import GPTChatModel
from ..checkpoint import load_checkpoint, save_checkpoint
from ..errors import InputError
from ..files import write_text
from ..model import GPT, GPTConfig
from ..reflexion import Reflexion
from ..reflexion.household.experiment import (
    Outcome,
    Result,
    experiment,
    findings,
    mean_curves,
    seed_table,
    success_table,
)
from ..reflexion.household.model import LookBackGPT
from ..reflexion.household.runner import LONGEST_REFLECTION
from ..reflexion.household.text import PROMPTS, TOKENIZER
from ..reflexion.household.training import Schooling
from ..reflexion.household.world import MAX_ACTIONS, PLACES, draw_task, split_pairs
from ..run_folder import RunFolder
from ..viz import plot_lines
from .common import TrainingProgress, console, parse
from .demo import hardware
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
    resume: bool = False
    """keep the seeds that an interrupted demo in --out has finished"""
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
        seeds = range(options.seed, options.seed + options.seeds)
        models, results = zip(*(_one_seed(options, seed) for seed in seeds), strict=True)
        _example(options, models[0])
        _write_report(options, results, time.perf_counter() - began)
    _say_goodbye(options, results)
    return 0


def _one_seed(options: Demo, seed: int) -> tuple[GPT, Result]:
    how = {"tasks": options.tasks, **asdict(options.train)}
    checkpoint, figures = options.out / f"seed{seed}.pt", options.out / f"seed{seed}.json"
    console.print(f"\n[bold]seed {seed}[/bold]: a script demonstrates; after that the model is on its own")
    if options.resume and figures.exists():
        found = load_checkpoint(checkpoint)
        if found["how"] != how:
            changed = next(name for name in how if found["how"].get(name) != how[name])
            raise InputError(
                f"seed {seed} in {options.out} was made with {changed}={found['how'].get(changed)}, not "
                f"{how[changed]}: resume it unchanged, or start another"
            )
        model: GPT = LookBackGPT(GPTConfig(**found["config"]))
        model.load_state_dict(found["state_dict"])
        result = Result.load(figures)
        for name, outcome in result.outcomes.items():
            _print_outcome(name, outcome)
        return model.eval(), result
    figures.unlink(missing_ok=True)
    with TrainingProgress(options.train.steps) as progress:
        model, result = experiment(
            options.train, seed, options.tasks, listener=progress, on_outcome=_print_outcome
        )
    save_checkpoint(model, checkpoint, how=how)
    result.save(figures)  # last: where it is, the seed is done
    return model, result


def _print_outcome(name: str, outcome: Outcome) -> None:
    curve = "  ".join(f"{share:4.0%}" for share in outcome.curve)
    truth = "" if outcome.truth is None else f"   {outcome.truth:.1%} of {outcome.claims:,} claims true"
    console.print(f"  {name:<25}{curve}{truth}", markup=False, soft_wrap=True)


def _example(options: Demo, model: GPT) -> None:
    """One task through the real graph, to be read step by step."""
    _, held_out = split_pairs(options.seed)
    rng = random.Random(f"example {options.seed}")
    chat = partial(GPTChatModel, gpt=model, tokenizer=TOKENIZER, name_of_model="demo")
    actor = chat(max_tokens=2, temperature=0.7, seed=options.seed)  # a verb and a noun
    reflector = chat(max_tokens=LONGEST_REFLECTION)
    agent = Reflexion(
        actor,
        reflector=reflector,
        trials=6,
        most_actions=MAX_ACTIONS,
        prompts=PROMPTS,
        out=options.out / "graph",
    )
    agent.run([draw_task(held_out, rng, number) for number in range(3)])


# --- the report ---------------------------------------------------------------------------------------------


def _write_report(options: Demo, results: Sequence[Result], seconds: float) -> None:
    """``report.html`` and the plot, from what was measured."""
    plot = options.out / "success_by_trial.png"
    title = f"held-out tasks, {_seeds(options)}"
    plot_lines(mean_curves(results), plot, "trial", "share of tasks solved", title, first=1)

    page = Report("Reflexion: a small GPT that learns from its failures by writing itself notes")
    page.text(
        f"A GPT of {results[0].parameters:,} parameters, trained from nothing on a script's demonstrations "
        f"({options.train.steps} batches of {options.train.batch_size}), is the actor and the reflector. "
        f"A thing is hidden in one of {len(PLACES)} places, a trial of {MAX_ACTIONS} actions sees three of "
        "them, and only what is remembered of earlier trials can make the next one better. "
        f"{options.tasks} tasks a seed, {_seeds(options)}, whose kinds and things never came together in a "
        f"demonstration; PyTorch {torch.__version__} on {hardware()}; {seconds:.0f} s in all."
    )
    page.heading("Solved after each trial")
    page.table(*success_table(results))
    page.image(plot, "share of tasks solved after each trial")
    page.heading("What the figure says")
    for line in findings(results):
        page.text(line)
    page.heading("By seed, after the last trial")
    page.table(*seed_table(results))
    page.heading("The same through the graph")
    page.text(
        "Three tasks by LangGraph, step by step, with every prompt: graph/trace.html. The figures above come "
        "from a runner that plays all tasks at once; with greedy decoding the two do the same."
    )
    page.write(options.out / "report.html")


def _seeds(options: Demo) -> str:
    last = options.seed + options.seeds - 1
    return f"seed {options.seed}" if options.seeds == 1 else f"mean of seeds {options.seed} to {last}"


def _say_goodbye(options: Demo, results: Sequence[Result]) -> None:
    header, rows = success_table(results)
    table = Table(*header, title=f"success by trial, {_seeds(options)}")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in findings(results):
        console.print(line, markup=False)
    cost = sum(sum(one.cpu_seconds.values()) for one in results) / len(results)
    console.print(f"{cost:.0f} CPU seconds a seed", markup=False)
    console.print(
        f"open {options.out}/report.html; three tasks step by step: {options.out}/graph/trace.html",
        markup=False,
        soft_wrap=True,
    )
    console.print("programs in the sandbox: ai-learning reflexion run --task programs", markup=False)
