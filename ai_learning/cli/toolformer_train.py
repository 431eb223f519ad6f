"""``ai-learning toolformer train``: fine-tune a model on a corpus with calls."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from ..adapters import LoRAConfig
from ..errors import InputError
from ..train import TrainConfig
from .common import DEMO_MODEL, TrainingProgress, console, parse, to_resume, to_save
from .pretrain import loss_plot

COMMAND = "toolformer train"


@dataclass(frozen=True)
class Train:
    """Fine-tune a model on C*: documents with their kept calls (by default as in the paper's appendix B)."""

    model: str = DEMO_MODEL
    """a checkpoint (.pt), a folder of transformers, or a name on the hub"""
    data: Path = Path("runs/toolformer/annotated")
    """folder or file of annotated documents"""
    plain: str | None = None
    """a text source whose documents are mixed in, without calls"""
    plain_share: float = 0.5
    """share of such documents, at most"""
    out: Path = Path("runs/toolformer")
    """folder of the run: model.pt, or the folder model for transformers'"""
    resume: bool = False
    """go on with the run in --out, with its own options"""
    method: Literal["full", "lora", "qlora"] = "full"
    """all weights, low-rank adapters, or adapters on weights in 4 bits; adapters are merged at the end"""
    r: int = 16
    """rank of the adapters"""
    lora_alpha: float = 32.0
    """their scale is alpha / r"""
    tau_f: float | None = None
    """judge the calls anew with this threshold"""
    per_tool: int = 25_000
    """documents for each tool, those with calls first come first served (the paper: up to 25k)"""
    without_calls: bool = False
    """also take the documents in which no call was kept"""
    held_out: float = 0.02
    """share of the rows to measure on"""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=2000, batch_size=32, grad_accum=4, lr=1e-5, schedule="constant", warmup=200,
            weight_decay=0.0, beta2=0.999, eval_every=500, save_every=500,
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be at least 0 and below 1")
        if not 0 <= self.plain_share < 1:
            raise ValueError(f"plain_share={self.plain_share} must be at least 0 and below 1")
        for name in ("r", "per_tool"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Train, args, COMMAND, default=to_resume(Train, args, COMMAND) or Train())
    path, loss = train_on_calls(options)
    told = "" if loss is None else f"held-out loss {loss:.3f}; "
    console.print(f"done: {told}`ai-learning toolformer run --model {path}` writes with it", markup=False)


def train_on_calls(options: Train) -> tuple[Path, float | None]:
    """Run it; the trained model's place, and its loss on the rows held out."""
    import hashlib
    import random

    from ..toolformer.finetune import finetune
    from ..toolformer.models import GPTModel, open_language_model

    lm = open_language_model(options.model)
    rows = _rows(options, lm)
    random.Random(options.train.seed).shuffle(rows)
    n_held_out = round(options.held_out * len(rows))
    held_out, rows = rows[:n_held_out], rows[n_held_out:]
    steps = options.train.steps
    with (
        TrainingProgress(steps, "fine-tuning") as progress,
        loss_plot(options.out, "toolformer", str(options.data)),
    ):
        result = finetune(
            lm,
            rows,
            options.train,
            options.out,
            method=options.method,
            lora=LoRAConfig(r=options.r, lora_alpha=options.lora_alpha, target_modules="all-linear"),
            held_out=held_out,
            listener=progress,
            resume=options.resume,
            options=to_save(options, COMMAND, "model", "data", "plain"),
            identity={"rows": hashlib.sha256(repr((rows, held_out)).encode()).hexdigest()[:16]},
        )
    path = options.out / ("model.pt" if isinstance(lm, GPTModel) else "model")
    return path, result.metrics.get("val_loss")


def _rows(options: Train, lm: Any) -> list[list[int]]:
    """C* as ids, with plain documents among them."""
    from ..toolformer.corpus import training_rows
    from ..toolformer.documents import fit, read_documents
    from ..toolformer.filter import refilter
    from ..toolformer.store import read_annotated

    taken: Counter[str] = Counter()
    chosen = []
    for document in read_annotated(options.data):
        if options.tau_f is not None:
            (document,) = refilter([document], options.tau_f)
        tools = {candidate.call.tool for candidate in document.kept}
        if not tools and not options.without_calls:
            continue
        if tools and all(taken[tool] >= options.per_tool for tool in tools):
            continue
        taken.update(tools)
        chosen.append(document)
    if not taken:
        raise InputError(f"no call in {options.data} was kept: lower --tau-f, or annotate more text")
    console.print(" · ".join(f"{tool}: {n:,} documents" for tool, n in sorted(taken.items())), markup=False)
    plain: list[str] = []
    if options.plain is not None:
        most = int(len(chosen) * options.plain_share / (1 - options.plain_share))
        pieces = (fit(lm, document, lm.block_size - 2) for document in read_documents(options.plain))
        plain = [piece.text for piece in islice(chain.from_iterable(pieces), most)]
    return training_rows(lm, chosen, plain)
