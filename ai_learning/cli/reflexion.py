"""``ai-learning reflexion``: run an agent that reflects, report on runs, look at the sandbox, see a demo."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..errors import InputError
from ..reflexion.calls import Budget, Retry
from ..reflexion.results import RunResult, TaskResult, read_run
from ..reflexion.tasks.base import Task
from ..reflexion.trace import Event, read_trace, write_page
from .common import console, flag, parse

HELP = {
    "run": "let an agent try tasks, reflect on its failures and try again",
    "report": "tables, the success-by-trial plot and the cost of runs, as a page",
    "doctor": "what holds the programs that a model writes on this machine, and which models can be asked",
    "demo": "train a small GPT that reflects, here and now, and see the gain",
}


StrategyName = Literal[
    "none",
    "last_attempt",
    "reflexion",
    "last_attempt_reflexion",
    "immediate_reflection",
    "immediate_refinement",
]


@dataclass(frozen=True)
class Run:
    """Let an agent try tasks, reflect on its failures and try again (Shinn et al. 2023).

    Killed or interrupted, it goes on with --resume --out FOLDER.
    """

    task: Literal["humaneval", "mbpp", "hotpotqa", "env", "programs"] = "programs"
    """the data's format; programs: a few problems that come along; env: text environments"""
    data: str = ""
    """a file of that format (JSON, JSONL, .gz, Parquet); for env MODULE:FUNCTION, which returns tasks"""
    model: str = "scripted"
    """ours:CHECKPOINT, hf:NAME_OR_FOLDER, PROVIDER:MODEL (openai:, anthropic:, ollama: …), or the script that
    comes with the task programs"""
    base_url: str | None = None
    """an OpenAI-compatible server (vLLM, llama.cpp, Ollama …): --model is then its model's name"""
    reflector: str | None = None
    """another model for the reflections"""
    judge: str | None = None
    """another model for --evaluator model"""
    strategy: StrategyName = "reflexion"
    """what a trial knows of those before it"""
    trials: int = 4
    """at most so many a task"""
    window: int | None = None
    """reflections shown, the paper's Ω; 3, for programs 1"""
    actor: Literal["cot", "react", "code"] | None = None
    """by the task: code for programs, react where there is something to act on, else cot"""
    evaluator: Literal["truth", "unit_tests", "model"] | None = None
    """by the task: for programs unit tests that the model writes, else the truth (exact match, the world)"""
    most_actions: int | None = None
    """in a trial; 30, for questions 6"""
    n_tests: int = 6
    """unit tests that the model may write"""
    allow_unsafe: bool = False
    """run programs even where the machine cannot isolate them: only for models that you trust"""
    articles: str | None = None
    """hotpotqa: what to search in place of the questions' own paragraphs: a folder of articles (.txt, .md;
    their names are the titles), hf:NAME or builtin:reference"""
    shared: bool = False
    """hotpotqa: search the paragraphs of all questions, not only the question's own"""
    shown_tests: int = 0
    """mbpp: tests that become examples in the prompt and are hidden tests no longer"""
    samples: int = 1
    """independent runs of each task, for pass@k by the unbiased estimator"""
    limit: int | None = None
    """only the first so many tasks"""
    temperature: float | None = None
    """the provider's own when left out; 0 for local models"""
    max_tokens: int | None = None
    """of an answer"""
    top_p: float | None = None
    """keep the likeliest tokens that reach this probability"""
    seed: int | None = None
    """for local models, and for servers that take one"""
    device: str = "cpu"
    """of a local model"""
    prompts: Path | None = None
    """a folder of your own prompts, laid out as ai_learning/reflexion/prompts"""
    concurrency: int = 4
    """tasks at a time"""
    budget: Budget = field(default_factory=Budget)
    retry: Retry = field(default_factory=Retry)
    out: Path = Path("runs/reflexion")
    """folder for checkpoints, trace and results"""
    resume: bool = False
    """go on with the run in --out, with its own options; limits and patience may be new"""
    verbose: bool = False
    """show every step as it happens"""


NOT_SAVED = {"budget", "retry", "concurrency", "out", "resume", "verbose", "allow_unsafe"}
"""of no matter to a run that is resumed"""


SAMPLE = "#"
"""between a task's id and the number of its sample"""


@dataclass(frozen=True)
class Report:
    """Tables, the success-by-trial plot and the cost of runs, as a page; several runs are compared.

    Also writes each run's trace.html again, which a run that was killed does not have.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of runs, finished or not"""
    out: Path | None = None
    """the page; report.html in the first run's folder when left out"""


def main(args: list[str]) -> int | None:
    """Entry point."""
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "run": _run,
        "report": _report,
        "doctor": _doctor,
        "demo": _demo,
    }
    if not args or args[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<8}{text}" for name, text in HELP.items())
        console.print(
            f"usage: ai-learning reflexion COMMAND [options]\n\n{lines}", markup=False, soft_wrap=True
        )
        console.print("\n`ai-learning reflexion COMMAND --help` shows every option with its default.")
        return 0 if args else 2
    if args[0] not in commands:
        raise InputError(f"no command {args[0]!r}: use {', '.join(commands)}")
    return commands[args[0]](args[1:])


def _demo(args: list[str]) -> int | None:
    from . import reflexion_demo

    return reflexion_demo.main(args)


# --- run ----------------------------------------------------------------------------------------------------


def _run(args: list[str]) -> int:
    from ..reflexion import Reflexion

    options = parse(Run, args, "reflexion run", default=_defaults(args))
    tasks = load_tasks(options)
    agent = Reflexion(
        _open(options, options.model),
        strategy=options.strategy,
        trials=options.trials,
        window=options.window,
        actor=options.actor,
        evaluator=options.evaluator,
        reflector=None if options.reflector is None else _open(options, options.reflector),
        judge=None if options.judge is None else _open(options, options.judge),
        most_actions=options.most_actions,
        n_tests=options.n_tests,
        allow_unsafe=options.allow_unsafe,
        budget=options.budget,
        retry=options.retry,
        concurrency=options.concurrency,
        prompts=options.prompts,
        out=options.out,
        resume=options.resume,
    )
    result = RunResult(options.trials)
    about = {
        **{one.name: getattr(options, one.name) for one in fields(Run) if one.name not in NOT_SAVED},
        "data_digest": hashlib.sha256(repr([(task.id, task.prompt) for task in tasks]).encode()).hexdigest()[
            :16
        ],
    }
    go_on = f"go on with: ai-learning reflexion run --resume --out {options.out}"
    began = time.monotonic()
    try:
        with _Progress(len(tasks), options.trials, result, options.verbose) as progress:
            for event in agent.stream(tasks, result, about):
                progress(event)
    except KeyboardInterrupt:
        console.print(go_on, markup=False, soft_wrap=True)
        raise
    _print_curve(f"{options.strategy}, {time.monotonic() - began:.0f} s", result, options.samples)
    if result.stopped:
        console.print(f"stopped: {result.stopped}; {go_on}, and more of it", markup=False, soft_wrap=True)
    console.print(
        f"{options.out}/trace.html shows every step; `ai-learning reflexion report {options.out}` sums up",
        markup=False,
        soft_wrap=True,
    )
    broken = [task for task in result.tasks if task.error]
    for task in broken[:3]:
        console.print(f"{task.id} could not go on: {task.error}", markup=False, soft_wrap=True)
    return 1 if len(broken) == len(result.tasks) else 0


def _defaults(args: list[str]) -> Run:
    if "--resume" not in args:
        return Run()
    from ..run_folder import read_options

    out = flag(args, "--out", str(Run.out))
    saved = read_options(out, "reflexion")
    known = {one.name for one in fields(Run)} - NOT_SAVED
    found = {name: value for name, value in saved.items() if name in known}
    if found.get("prompts"):
        found["prompts"] = Path(found["prompts"])
    return Run(**found, out=Path(out))


def _open(options: Run, name: str) -> Any:
    from ..chat_model import open_chat_model

    if name == "scripted":
        if options.task != "programs":
            raise InputError("model 'scripted' only knows the task programs: name a model with --model")
        from ..reflexion.scripted import ScriptedModel

        return ScriptedModel()
    return open_chat_model(
        name,
        base_url=options.base_url,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        top_p=options.top_p,
        seed=options.seed,
        timeout_s=options.retry.timeout_s,
        device=options.device,
    )


def load_tasks(options: Run) -> list[Task]:
    """The tasks that the options name.

    Raises:
        InputError: no data named, or data that cannot be read.
    """
    for name, value in (("limit", options.limit), ("samples", options.samples)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if options.task != "programs" and not options.data:
        what = "MODULE:FUNCTION" if options.task == "env" else "a file of its format"
        raise InputError(f"task {options.task} needs --data: {what}")
    tasks = list(_read_tasks(options))[: options.limit]
    if options.samples == 1:
        return tasks
    numbers = range(1, options.samples + 1)
    return [replace(task, id=f"{task.id}{SAMPLE}{number}") for task in tasks for number in numbers]


def _read_tasks(options: Run) -> Sequence[Any]:
    if options.task == "hotpotqa":
        from ..reflexion.tasks.questions import read_questions

        return read_questions(options.data, articles=options.articles, shared=options.shared)
    if options.task == "env":
        from ..reflexion.tasks.environments import load_environments

        return load_environments(options.data)
    from ..reflexion.scripted import PROGRAMS
    from ..reflexion.tasks.programming import read_humaneval, read_mbpp

    if options.task == "mbpp":
        tasks = read_mbpp(options.data, shown_tests=options.shown_tests)
    else:
        tasks = read_humaneval(options.data or PROGRAMS)
    return [replace(task, allow_unsafe=options.allow_unsafe) for task in tasks]


class _Progress:
    """A bar over tasks, or plain lines where there is no terminal; with ``verbose`` every step."""

    def __init__(self, n_tasks: int, trials: int, result: RunResult, verbose: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.result, self.trials, self.verbose = result, trials, verbose
        self.n_tasks = n_tasks
        self.live = console.is_terminal
        self.bar = Progress(
            TextColumn("tasks"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self.live,
        )
        self.row = self.bar.add_task("tasks", total=n_tasks, figures="")
        self.over: set[str] = set()

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        if self.verbose:
            self._show(event)
        tasks = self.result.tasks
        over = {task.id for task in tasks if task.error or self._ended(task)}
        solved = sum(task.solved for task in tasks)
        spent = self.result.spent
        cost = f", ${spent.cost:.2f}" if spent.cost else ""
        tokens = spent.input_tokens + spent.output_tokens
        figures = f"solved {solved}, {spent.calls:,} calls, {tokens:,} tokens{cost}"
        self.bar.update(self.row, completed=len(over), figures=figures)
        if not self.live and not self.verbose and over != self.over:
            for task in tasks:
                if task.id in over - self.over:
                    word = "error: " + task.error if task.error else "solved" if task.solved else "not solved"
                    trials = f"{len(task.trials)} trial{'s' * (len(task.trials) != 1)}"
                    print(f"{len(over)}/{self.n_tasks} {task.id}: {word}, {trials}; {figures}", flush=True)
        self.over = over

    def _ended(self, task: TaskResult) -> bool:
        return bool(task.trials) and (task.trials[-1].success or len(task.trials) >= self.trials)

    def _show(self, event: Event) -> None:
        for name in ("text", "observation", "feedback", "error"):
            if event.data.get(name):
                head = f"[{event.task} · trial {event.trial} · {event.node}]"
                self.bar.console.print(f"{head}\n{event.data[name]}\n", markup=False, soft_wrap=True)


def pass_at(result: RunResult, samples: int) -> dict[int, float]:
    """pass@k for k = 1, 10, 100 as far as the samples go, of the programs after the last trial."""
    from ..reflexion.tasks.programming import pass_at_k

    right: Counter[str] = Counter()
    for task in result.tasks:
        right[task.id.rpartition(SAMPLE)[0]] += task.solved
    ks = [k for k in (1, 10, 100) if k <= samples]
    return {k: sum(pass_at_k(samples, c, k) for c in right.values()) / len(right) for k in ks}


def _print_curve(title: str, result: RunResult, samples: int = 1) -> None:
    """The share solved after each trial, and what it took."""
    curve = "  ".join(f"{share:.1%}" for share in result.success_by_trial())
    spent = result.spent
    cost = f", ${spent.cost:.4f}" if spent.cost else ""
    tokens = f"{spent.input_tokens:,} tokens read and {spent.output_tokens:,} written"
    solved = sum(task.solved for task in result.tasks)
    lines = [
        title,
        f"  solved after trial 1 to {result.trials}: {curve}",
        f"  {solved} of {len(result.tasks)} tasks solved; {spent.calls:,} calls, {tokens}{cost}",
    ]
    if samples > 1:
        estimates = ", ".join(f"pass@{k} {value:.1%}" for k, value in pass_at(result, samples).items())
        lines.append(f"  {estimates} (unbiased, {samples} samples a task, after the last trial)")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


# --- report -------------------------------------------------------------------------------------------------


def _report(args: list[str]) -> None:
    from ..viz import plot_lines
    from .report import Report as Page

    options = parse(Report, args, "reflexion report")
    if not options.runs:
        raise InputError("name the folder of a run, or of several")
    runs = [(_label(path, options.runs), *read_run(path)) for path in options.runs]
    most = max(result.trials for _, result, _ in runs)
    for path in options.runs:
        write_page(read_trace(path / "trace.jsonl"), path / "trace.html", f"Trace of {path.name}")
    page = Page("Reflexion: " + ", ".join(label for label, _, _ in runs))
    page.heading("Solved after each trial")
    trials = [f"trial {number}" for number in range(1, most + 1)]
    page.table(["run", "strategy", "tasks", *trials], [_success_row(*run, most) for run in runs])
    out = options.out or options.runs[0] / "report.html"
    plot = out.with_name("success_by_trial.png")
    curves = {f"{label} ({about['strategy']})": result.success_by_trial() for label, result, about in runs}
    plot_lines(curves, plot, "trial", "share of tasks solved", "success by trial", first=1)
    page.image(plot, "share of tasks solved after each trial")
    page.heading("What it took")
    columns = ["run", "model", "errors", "calls", "tokens read", "tokens written", "cost"]
    page.table(columns, [_cost_row(*run) for run in runs])
    for label, result, about in runs:
        page.heading(f"Tasks of {label}")
        settings = {
            k: v for k, v in about.items() if v not in (None, "", False) and k not in ("tasks", "data_digest")
        }
        page.text("; ".join(f"{name} {value}" for name, value in settings.items()))
        page.table(
            ["task", "solved", "trials", "actions", "tokens", "last result"],
            [_task_row(task) for task in result.tasks],
        )
    page.write(out)
    for label, result, about in runs:
        title = f"{label}: {about['strategy']}, {about.get('model', '')}"
        _print_curve(title, result, about.get("samples", 1))
    console.print(f"→ {out}, {plot}", markup=False, soft_wrap=True)


def _label(path: Path, among: tuple[Path, ...]) -> str:
    return path.name if [one.name for one in among].count(path.name) == 1 else str(path)


def _success_row(label: str, result: RunResult, about: dict[str, Any], most: int) -> list[str]:
    curve = [f"{share:.1%}" for share in result.success_by_trial()]
    return [label, about["strategy"], str(len(result.tasks)), *curve, *["–"] * (most - len(curve))]


def _cost_row(label: str, result: RunResult, about: dict[str, Any]) -> list[str]:
    spent = result.spent
    errors = sum(bool(task.error) for task in result.tasks)
    counts = [f"{count:,}" for count in (errors, spent.calls, spent.input_tokens, spent.output_tokens)]
    return [label, about.get("model", ""), *counts, f"${spent.cost:.4f}" if spent.cost else "–"]


def _task_row(task: TaskResult) -> list[str]:
    last = task.error or (task.trials[-1].feedback if task.trials else "not begun")
    return [
        task.id,
        "yes" if task.solved else "no",
        str(len(task.trials)),
        str(sum(trial.actions for trial in task.trials)),
        f"{task.spent.input_tokens + task.spent.output_tokens:,}",
        last if len(last) <= 200 else last[:199] + "…",
    ]


# --- doctor -------------------------------------------------------------------------------------------------

PROVIDERS: dict[str, tuple[str | None, str | None]] = {
    "ours": (None, None),
    "hf": (None, None),
    "openai": ("langchain_openai", "OPENAI_API_KEY"),
    "anthropic": ("langchain_anthropic", "ANTHROPIC_API_KEY"),
    "ollama": ("langchain_ollama", None),
}


def _doctor(args: list[str]) -> int:
    if args and args[0] in ("-h", "--help"):
        console.print(f"usage: ai-learning reflexion doctor\n\n{HELP['doctor']}", markup=False)
        return 0
    if args:
        raise InputError(f"reflexion doctor takes no options, not {args[0]!r}")
    from ..reflexion.sandbox import doctor

    found = doctor()
    _print_rows("sandbox", found.rows)
    console.print(found.summary, style="bold", markup=False, soft_wrap=True)
    _print_rows("\nchat models", [(f"{name}:MODEL", *_provider(name)) for name in PROVIDERS])
    return 0 if found.safe else 1


def _provider(name: str) -> tuple[str, str]:
    """Whether a provider's models can be asked, and what is missing. No key is shown or tried."""
    package, key = PROVIDERS[name]
    if package and find_spec(package) is None:
        return "not installed", f'pip install "ai-learning[{name}]"'
    if key and not os.environ.get(key):
        return "no key", f"{key} is not set; a server of your own needs none: --base-url"
    return "ready", ""


def _print_rows(title: str, rows: list[tuple[str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not as markup: [x] is a text like any other
    console.print(table)
