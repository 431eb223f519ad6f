"""Training: a small GPT on a text of the reader's own, watched while it learns."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ...files import write_text
from ...text import read_texts
from ..bench import Bench, Name
from ..guard import Refused
from ..jobs import Jobs
from .tokens import learn

MAX_TRAINING_TEXT = 1_000_000
MIN_TRAINING_TEXT = 2_000

Source = Literal["own", "builtin:reference", "builtin:stdlib", "builtin:docstrings"]


@dataclass(frozen=True)
class Size:
    """Of the model."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int


SIZES = {"small": Size(2, 4, 64, 64), "tiny": Size(4, 4, 128, 128), "medium": Size(6, 6, 192, 256)}


class Start(BaseModel):
    """What to train, and how."""

    source: Source = "own"
    text: str = Field("", max_length=MAX_TRAINING_TEXT)
    size: Literal["small", "tiny", "medium"] = "small"
    tokens: Literal["bytes", "bpe"] = "bytes"
    vocab_size: int = Field(512, ge=257, le=4096)
    steps: int = Field(500, ge=10, le=20_000)
    batch_size: int = Field(12, ge=1, le=64)
    lr: float = Field(3e-3, gt=0, le=1)
    seed: int = Field(1337, ge=0, lt=2**31)


class Which(BaseModel):
    """A run."""

    name: Name


def router(bench: Bench, jobs: Jobs) -> APIRouter:
    """The panel's questions."""
    api = APIRouter(prefix="/api/training")

    @api.get("")
    def overview() -> dict[str, Any]:
        """All runs, and the one that is being trained."""
        return {"runs": jobs.names("run"), "running": jobs.running(), "starts": jobs.starts}

    @api.get("/{name}")
    def report(name: str, after: int = 0) -> dict[str, Any]:
        """How far a run is."""
        return jobs.report(name, max(0, after))

    @api.post("/start")
    def start(ask: Start) -> dict[str, Any]:
        """Begin a new run."""
        text = checked_text(ask.source, ask.text)
        about = {**ask.model_dump(exclude={"text"}), "n_chars": None if text is None else len(text)}
        return {"name": jobs.start("run", "ai_learning.cli", lambda out: prepare(ask, text, out), **about)}

    def prepare(ask: Start, text: str | None, out: Path) -> list[str]:
        every = max(1, ask.steps // 10)
        options = {
            **asdict(SIZES[ask.size]),
            "steps": ask.steps,
            "batch_size": ask.batch_size,
            "lr": ask.lr,
            "warmup": max(1, ask.steps // 20),
            "eval_every": every,
            "save_every": every,
            "sample_every": every,
            "log_every": max(1, ask.steps // 200),
            "seed": ask.seed,
            "device": bench.device,
            "data": put_text(ask.source, text, out),
            "out": out,
        }
        if ask.tokens == "bpe":
            folder = out.with_name(f"{out.name}-tokenizer")
            learn(read_texts(str(options["data"])), ask.vocab_size).save(folder)
            options["tokenizer"] = folder
        if beginning := re.match(r"\s*(\w{1,20})", text or ""):
            # An own text is one document: what begins a document is never seen in training.
            options["sample_prompt"] = beginning[1]
        flags = [(f"--{name.replace('_', '-')}", str(value)) for name, value in options.items()]
        return ["pretrain", *(part for pair in flags for part in pair)]

    @api.post("/stop")
    def stop() -> dict[str, Any]:
        """Save and end what is running."""
        jobs.stop()
        return {}

    @api.post("/resume")
    def resume(ask: Which) -> dict[str, Any]:
        """Go on with a run that was stopped."""
        jobs.resume(ask.name)
        return {"name": ask.name}

    return api


def checked_text(source: str, text: str) -> str | None:
    """The reader's own text, or ``None`` for a built-in one.

    Raises:
        Refused: too short to learn from.
    """
    if source != "own":
        return None
    if len(text) < MIN_TRAINING_TEXT:
        raise Refused(422, f"{len(text):,} characters are too few: give {MIN_TRAINING_TEXT:,} or more")
    return text


def put_text(source: str, text: str | None, out: Path) -> str:
    """Write an own text beside the run's folder; what to give as ``--data``."""
    if text is None:
        return source
    path = out.with_name(f"{out.name}.txt")
    write_text(path, text)
    return str(path)
