"""``ai-learning toolformer annotate``: a corpus with calls, by one process or by many."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..files import write_text
from ..run_folder import read_options, with_absolute_paths
from .common import DEMO_MODEL, console, parse, to_resume

COMMAND = "toolformer annotate"


@dataclass(frozen=True)
class Annotate:
    """Sample calls in plain text, execute them, and keep those that make the text likelier."""

    model: str = DEMO_MODEL
    """a checkpoint (.pt), a folder of transformers, or a name on the hub"""
    data: str = "builtin:reference"
    """a text source (see data prepare), or JSON lines with text and, where known, date or url"""
    split: Literal["paragraphs", "lines", "documents"] = "paragraphs"
    """what becomes a document"""
    tools: tuple[str, ...] = ("Calculator",)
    """Calculator, Calendar, WikiSearch=SOURCE, QA=FILE, MT, or MODULE:NAME (LangChain's or yours)"""
    out: Path = Path("runs/toolformer/annotated")
    """folder for the annotated documents"""
    format: Literal["parquet", "jsonl"] = "parquet"
    """of the files"""
    resume: bool = False
    """go on with the annotation in --out, with its own options"""
    tau_s: float | None = None
    """a call may begin where p(<API>) is greater; the paper's for each tool when left out (0.05, or 0)"""
    tau_f: float | None = None
    """least L⁻ − L⁺ of a call that is kept; the paper's when left out (1.0, or 0.5)"""
    k: int | None = None
    """places in a document; the paper's when left out (5, or 20)"""
    m: int | None = None
    """calls sampled at each place; the paper's when left out (5, or 10)"""
    prompts: str = "auto"
    """none (a model trained on calls), paper, a folder with a NAME.txt for each tool, or auto: paper for
    models of transformers, none for a checkpoint of ours"""
    scorer: str | None = None
    """another model whose losses judge the calls; the annotator itself when left out (the paper)"""
    name_tools: bool = False
    """write each tool's name after <API>: as many samples for each tool"""
    position: Literal["prefix", "inline"] = "prefix"
    """where the call stands when losses are computed: before the text (the paper) or in its place"""
    prefilter: bool = True
    """the paper's heuristics: calculator only near numbers, calendar only with a date, translation only near
    another language"""
    max_tokens: int | None = None
    """longer documents are cut; what fits the model's context, at most 1024, when left out"""
    max_call_tokens: int = 32
    """a call that has not ended by then is dropped"""
    temperature: float = 1.0
    """of sampling"""
    part_size: int = 256
    """documents in a part of the output: what a crash can cost"""
    limit: int | None = None
    """annotate the first documents only"""
    shard: int = int(os.environ.get("RANK", "0"))
    """which share of the documents this process takes (under torchrun: its rank)"""
    shards: int = int(os.environ.get("WORLD_SIZE", "1"))
    """in how many shares they are"""
    num_processes: int = 1
    """start that many processes here, each with its share"""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …, mps, or auto for the best there is"""
    seed: int = 0
    """of sampling"""

    def __post_init__(self) -> None:
        for name in ("part_size", "num_processes", "max_call_tokens", "max_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be 0, which is greedy, or a positive number"
            )
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} must be from 0 to {2**64 - 1}")
        if not self.tools:
            raise ValueError("--tools names none: give at least one, such as Calculator")
        if self.num_processes > 1 and self.shards > 1:
            raise ValueError("--num-processes makes its own shards: leave --shard and --shards out")


# What may differ between a run and its continuation: it changes no row.
_FREE = {"out", "resume", "shard", "num_processes", "device"}


def main(args: list[str]) -> int | None:
    """Entry point."""
    default = to_resume(Annotate, args, COMMAND) or Annotate()
    if "--resume" in args and default.shards > 1 and "--shard" not in args and "RANK" not in os.environ:
        default = replace(default, num_processes=default.shards, shards=1)  # all of them
    options = parse(Annotate, args, COMMAND, default=default)
    if options.num_processes > 1:
        return _in_processes(options, args)
    annotate_shard(options)
    return None


def annotate_shard(options: Annotate) -> None:
    """Annotate this process's share."""
    from itertools import islice

    from ..toolformer.documents import read_documents
    from ..toolformer.job import Progress, annotate_corpus
    from ..toolformer.models import open_language_model
    from ..toolformer.prefilter import PREFILTERS
    from ..toolformer.store import AnnotatedCorpus
    from ..toolformer.toolbox import open_tools

    corpus = AnnotatedCorpus(options.out, options.shard, options.shards, options.format)
    if corpus.done() and not options.resume:
        raise InputError(f"{options.out} already holds an annotation: --resume it, or choose another folder")
    tools = open_tools(options.tools)
    names = [tool.name for tool in tools]
    settings = _settings(options, names)
    documents = read_documents(options.data, options.split)
    device = _own_device(options.device)
    lm = open_language_model(options.model, device)
    scorer = open_language_model(options.scorer, device) if options.scorer else None
    started, shown, before = time.perf_counter(), 0.0, len(corpus.done())
    label = f"shard {options.shard + 1} of {options.shards}: " if options.shards > 1 else ""

    def tell(progress: Progress) -> None:
        nonlocal shown
        if time.perf_counter() - shown >= 2:
            rate = (progress.documents - before) / (time.perf_counter() - started)
            console.print(f"{label}{progress} · {rate:,.1f} documents/s", markup=False)
            shown = time.perf_counter()

    with corpus:
        _note(options, corpus)
        try:
            progress = annotate_corpus(
                lm,
                islice(documents, options.limit),
                tools,
                corpus,
                most_tokens=options.max_tokens,
                part_size=options.part_size,
                before_part=lambda: _note(options, corpus),
                on_part=tell,
                settings=settings,
                prompts=_prompts(options, names, lm),
                name_tools=options.name_tools,
                position=options.position,
                temperature=options.temperature,
                max_call_tokens=options.max_call_tokens,
                prefilters=PREFILTERS if options.prefilter else None,
                scorer=scorer,
                seed=options.seed,
            )
        except KeyboardInterrupt:
            written = len(corpus.done())
            console.print(
                f"{label}stopped: {written:,} documents are written; --resume goes on", markup=False
            )
            raise
    console.print(f"{label}{progress} → {options.out}", markup=False)


def _own_device(device: str) -> str:
    """Each process of this machine takes a GPU of its own, where GPUs are asked for and there are any."""
    if device not in ("cuda", "auto") or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    n = torch.cuda.device_count()
    return f"cuda:{int(os.environ['LOCAL_RANK']) % n}" if n else device


def _settings(options: Annotate, names: list[str]) -> dict[str, Any]:
    from ..toolformer.settings import settings_of

    given = {name: getattr(options, name) for name in ("tau_s", "tau_f", "k", "m")}
    changed = {name: value for name, value in given.items() if value is not None}
    return {name: replace(settings_of(None, name), **changed) for name in names}


def _prompts(options: Annotate, names: list[str], lm: Any) -> dict[str, str] | None:
    from ..toolformer.models import TransformersModel
    from ..toolformer.prompts import prompts

    how = options.prompts
    if how == "auto":
        how = "paper" if isinstance(lm, TransformersModel) else "none"
    if how == "none":
        return None
    if how == "paper":
        try:
            return prompts(names, lm.how)
        except ValueError as error:
            raise InputError(f"{error} and give its folder as --prompts") from None
    found = {}
    for name in names:
        file = Path(how) / f"{name}.txt"
        if not file.is_file():
            raise InputError(f"no prompt for {name}: expected {file} (or --prompts none, paper)")
        found[name] = file.read_text(encoding="utf-8")
        if "{text}" not in found[name]:
            raise InputError(f"{file} must have {{text}} where the document goes")
    return found


def _note(options: Annotate, corpus: Any) -> None:
    """Write what was asked for; once there is a part, whoever goes on must ask for the same.

    Noted at the start, so that an interrupted run is resumed, and asked again before each part: a start that
    failed must not make the folder unusable, and of two shards started otherwise the one that writes first
    counts.
    """
    import json

    file = options.out / "run.json"
    asked = {k: v for k, v in asdict(options).items() if k not in _FREE}
    paths = ("model", "data", "scorer")
    asked = with_absolute_paths(json.loads(json.dumps({"command": COMMAND, **asked}, default=str)), *paths)
    # Read in any case: what another command noted there is not written over.
    saved = read_options(options.out, COMMAND) if file.exists() else None
    if saved is None or not corpus.parts():
        write_text(file, json.dumps(asked, indent=2, ensure_ascii=False) + "\n")
        return
    old = {"command": COMMAND, **with_absolute_paths(saved, *paths)}
    for name in sorted({*old, *asked}):
        if old.get(name) != asked.get(name):
            raise InputError(
                f"{options.out} was annotated with {name}={old.get(name)!r}, not {asked.get(name)!r}: "
                "go on with the same options, or choose another folder"
            )


def _in_processes(options: Annotate, args: list[str]) -> int:
    """One process a share; each goes on by itself where another fails, and Ctrl-C reaches them all."""
    n = options.num_processes
    threads = str(max(1, (os.cpu_count() or 1) // n))
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    start = [sys.executable, "-m", "ai_learning.cli", *COMMAND.split(), *args, "--num-processes", "1"]
    running = [
        subprocess.Popen(
            [*start, "--shards", str(n), "--shard", str(rank)],
            env={**environment, "LOCAL_RANK": str(rank)},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        for rank in range(n)
    ]
    try:
        codes = [process.wait() for process in running]
    except KeyboardInterrupt:
        for process in running:
            _interrupt(process)
        raise
    return next((code for code in codes if code), 0)


def _end_with_parent() -> None:
    """Else the shares of a job that was killed would stay in use until they are done."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; parts are written whole or not at all


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """A terminal's Ctrl-C reached it already; a signal to this process alone did not."""
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
