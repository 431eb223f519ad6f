"""``ai-learning toolformer``: annotate a corpus with tool calls, train on it, use and evaluate the result."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import write_text
from .common import console, parse

# name: module, what it does. Each module has a `main(args)` for its own part of the command.
PARTS = {
    "demo": (
        "toolformer_demo",
        "the whole method here and now, from raw text to a model that calls tools",
    ),
    "annotate": ("toolformer_annotate", "sample calls, execute them, keep those that make the text likelier"),
    "refilter": ("toolformer", "other thresholds for a corpus that is annotated already"),
    "show": ("toolformer", "an annotated corpus in colour, in the terminal or as a page"),
    "train": ("toolformer_train", "fine-tune a model on a corpus with calls"),
    "run": ("toolformer", "write with tools, and see the calls"),
    "evaluate": ("toolformer", "arithmetic, cloze, date and question tasks, with tools and without"),
}


def main(args: list[str]) -> int | None:
    """Entry point."""
    if not args or args[0] in ("-h", "--help"):
        console.print("usage: ai-learning toolformer COMMAND [options]\n", markup=False)
        for name, (_, summary) in PARTS.items():
            console.print(f"  {name:<9} {summary}", markup=False)
        console.print("\n`ai-learning toolformer COMMAND --help` shows every option with its default.")
        return 0 if args else 2
    name, *rest = args
    if name not in PARTS:
        raise InputError(f"no command {name!r}: use {', '.join(PARTS)}")
    module = PARTS[name][0]
    if module != "toolformer":
        found = importlib.import_module(f".{module}", __package__).main(rest)
        return found if isinstance(found, int) else None
    options = parse(_OPTIONS[name], rest, f"toolformer {name}")
    _ACTIONS[name](options)
    return None


@dataclass(frozen=True)
class Refilter:
    """Judge the candidates of an annotated corpus anew: the losses are stored, nothing is sampled."""

    data: Path = Path("runs/toolformer/annotated")
    """folder or file of annotated documents"""
    tau_f: tuple[float, ...] = (0.5, 1.0, 2.0)
    """thresholds to count at (the paper's table 2)"""
    out: Path | None = None
    """write a corpus with the verdicts of the last threshold into this folder"""


@dataclass(frozen=True)
class Show:
    """Annotated documents, each call coloured by L⁻ − L⁺: green kept, red dropped."""

    data: Path = Path("runs/toolformer/annotated")
    """folder or file of annotated documents"""
    n: int = 10
    """documents to show, of those with a candidate"""
    only_kept: bool = False
    """leave the dropped calls out"""
    out: Path | None = None
    """write an HTML page instead"""


@dataclass(frozen=True)
class Run:
    """Continue a prompt with tools at hand; without --prompt, ask again and again."""

    model: str = "runs/toolformer/model.pt"
    """a checkpoint (.pt), a folder of transformers, or a name on the hub"""
    tools: tuple[str, ...] = ("Calculator", "Calendar")
    """Calculator, Calendar, WikiSearch=SOURCE, QA=FILE, MT, or MODULE:NAME (LangChain's or yours)"""
    prompt: str | None = None
    """the text to continue"""
    max_new_tokens: int = 64
    """of text; calls do not count"""
    top_k: int = 10
    """a call begins where <API> is one of that many likeliest tokens (the paper's k)"""
    max_calls: int = 1
    """calls for a prompt; 0 disables them"""
    temperature: float = 0.0
    """0 is greedy"""
    seed: int = 0
    """of sampling"""
    device: str = "cpu"
    """cpu, cuda, mps, or auto for the best there is"""
    out: Path | None = None
    """write what was generated to this file"""


@dataclass(frozen=True)
class Evaluate:
    """Zero-shot accuracy by the paper's rules, with tools and with calls disabled."""

    data: Path
    """the task's file: ASDiv (.xml), SVAMP, MAWPS, LAMA, TempLAMA, Dateset, question and answer (.jsonl)"""
    kind: str = "math"
    """math (first number), cloze or dates (first 5 words), qa (first 20 words)"""
    model: str = "runs/toolformer/model.pt"
    """a checkpoint (.pt), a folder of transformers, or a name on the hub"""
    tools: tuple[str, ...] = ("Calculator",)
    """as for run; for cloze tasks the paper leaves QA out, for qa tasks WikiSearch stays"""
    max_new_tokens: int = 32
    """of an answer"""
    top_k: int = 10
    """a call begins where <API> is one of that many likeliest tokens"""
    max_calls: int = 1
    """calls for an example"""
    limit: int | None = None
    """take that many examples only"""
    batch_size: int = 32
    """examples decoded together"""
    seed: int = 0
    """decoding is greedy: kept for the record"""
    device: str = "cpu"
    """cpu, cuda, mps, or auto for the best there is"""
    out: Path | None = None
    """write every prediction to this JSON file"""


def _refilter(options: Refilter) -> None:
    from rich.table import Table

    from ..toolformer.filter import refilter
    from ..toolformer.store import AnnotatedCorpus, read_annotated

    documents = list(read_annotated(options.data))
    thresholds = options.tau_f or (1.0,)
    tools = sorted({c.call.tool for document in documents for c in document.candidates})
    table = Table("tool", "seen", *(f"kept at {tau:g}" for tau in thresholds))
    judged = {tau: refilter(documents, tau) for tau in thresholds}
    for tool in tools:
        seen = sum(c.call.tool == tool for d in documents for c in d.candidates)
        kept = [sum(c.call.tool == tool for d in judged[tau] for c in d.kept) for tau in thresholds]
        table.add_row(tool, f"{seen:,}", *(f"{n:,}" for n in kept))
    console.print(table)
    if options.out:
        corpus = AnnotatedCorpus(options.out)
        if corpus.parts():
            raise InputError(f"{options.out} holds annotated documents already: choose another folder")
        corpus.write(judged[thresholds[-1]])
        console.print(f"{len(documents):,} documents → {options.out}")


def _show(options: Show) -> None:
    from ..toolformer.picture import save_html, to_terminal
    from ..toolformer.store import read_annotated

    if options.n < 1:
        raise InputError(f"n={options.n} must be at least 1")
    chosen = []
    for document in read_annotated(options.data):
        if document.kept if options.only_kept else document.candidates:
            chosen.append(document)
        if len(chosen) == options.n:
            break
    if not chosen:
        raise InputError(f"no document of {options.data} has a call to show")
    if options.out:
        save_html(chosen, options.out, only_kept=options.only_kept)
        console.print(f"{len(chosen)} documents → {options.out}")
        return
    for document in chosen:
        console.print(to_terminal(document, options.only_kept))
        console.print()


def _run(options: Run) -> None:
    from ..toolformer.infer import Generation, check_writing, generate_with_tools
    from ..toolformer.models import open_language_model
    from ..toolformer.toolbox import open_tools

    check_writing(options.max_new_tokens, options.top_k, options.max_calls, options.temperature, options.seed)
    lm = open_language_model(options.model, options.device)
    tools = open_tools(options.tools)

    def write(prompt: str) -> Generation:
        found: Generation = generate_with_tools(
            lm,
            prompt,
            tools,
            max_new_tokens=options.max_new_tokens,
            top_k=options.top_k,
            max_calls=options.max_calls,
            temperature=options.temperature,
            seed=options.seed,
        )
        _print_generation(found)
        return found

    if options.prompt is not None:
        found = write(options.prompt)
        if options.out:
            write_text(options.out, found.prompt + found.annotated + "\n")
        return
    console.print(f"tools: {', '.join(tool.name for tool in tools)}; an empty line ends", style="dim")
    written = []
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            break
        if not prompt.strip():
            break
        try:
            found = write(prompt)
        except InputError as error:  # too long a prompt: the next may be shorter
            console.print(f"error: {error}", style="red", markup=False)
            continue
        written.append(found.prompt + found.annotated)
    if options.out:
        write_text(options.out, "\n".join(written) + "\n")


def _print_generation(found: Any) -> None:
    from rich.text import Text

    shown = Text(found.prompt)
    shown.append(found.text, style="bold")
    console.print(shown)
    for use in found.uses:
        line = f"  {use.call or use.written} → {use.result if use.result is not None else use.error}"
        console.print(line, style="cyan" if use.result is not None else "red", markup=False)


def _evaluate(options: Evaluate) -> None:
    import json

    from rich.table import Table

    from ..toolformer.checks import at_least
    from ..toolformer.infer import check_writing
    from ..toolformer.models import open_language_model
    from ..toolformer.tasks import evaluate, read_examples
    from ..toolformer.toolbox import open_tools

    at_least(1, limit=options.limit, batch_size=options.batch_size, max_new_tokens=options.max_new_tokens)
    check_writing(options.max_new_tokens, options.top_k, options.max_calls, 0.0, options.seed)
    examples = read_examples(options.data, options.kind)[: options.limit]
    lm = open_language_model(options.model, options.device)
    tools = open_tools(options.tools)
    table = Table("", "accuracy", "calls in", "examples")
    found = {}
    for name, given in (("with tools", tools), ("calls disabled", [])):
        with console.status(f"{name} …") as status:
            found[name] = evaluate(
                lm,
                examples,
                options.kind,
                given,
                at_once=options.batch_size,
                max_new_tokens=options.max_new_tokens,
                top_k=options.top_k,
                max_calls=options.max_calls,
                on_progress=lambda done, right, name=name, status=status: status.update(  # type: ignore[misc]
                    f"{name}: {done}/{len(examples)}, {right} right"
                ),
            )
        score = found[name]
        table.add_row(name, f"{score.accuracy:.1%}", f"{score.call_rate:.1%}", str(score.n))
    console.print(table)
    if options.out:
        content = {name: score.to_json() for name, score in found.items()}
        write_text(options.out, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


_OPTIONS: dict[str, type] = {"refilter": Refilter, "show": Show, "run": Run, "evaluate": Evaluate}
_ACTIONS: dict[str, Any] = {"refilter": _refilter, "show": _show, "run": _run, "evaluate": _evaluate}
