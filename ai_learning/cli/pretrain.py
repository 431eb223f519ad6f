"""``ai-learning pretrain``: text → tokens → batches → a trained GPT."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..batches import Prefetched, TokenBatches, digest, evaluation_batches, split
from ..checkpoint import tokenizer_reference
from ..device import check_size, own_device, pick_device
from ..distributed import sum_over_processes, world
from ..generate import generate_text
from ..loss import next_token_loss
from ..memory import give_back_freed_memory
from ..model import GPT, GPTConfig
from ..presets import preset
from ..run_folder import read_metrics
from ..run_state import check_is_free
from ..tokenizers import Tokenizer
from ..train import DivergedError, Interrupted, Metrics, TrainConfig, TrainResult, train
from ..viz import plot_loss
from .common import (
    TrainingProgress,
    console,
    fit_vocabulary,
    flag,
    parse,
    read_tokens,
    to_resume,
    to_save,
    tokenizer_by_name,
    warn_of_warmup,
)


@dataclass(frozen=True)
class Pretrain:
    """Train a GPT on text from nothing; resumable, bit for bit.

    On many processes and machines: ``torchrun --nproc-per-node=8 -m ai_learning.cli pretrain …``; the same
    options give the same training on any number of them, apart from dropout (docs/scale.md).
    """

    data: str = "builtin:stdlib"
    """builtin:reference, :stdlib, :docstrings; file or folder; -; hf:NAME; .tokens, or a folder of those"""
    tokenizer: str = "bytes"
    """bytes, or the folder of a saved tokenizer"""
    preset: str = "gpt2-tiny"
    """model to start from; the sizes below change it"""
    out: Path = Path("runs/pretrain")
    """folder for checkpoints, metrics and plots"""
    resume: bool = False
    """go on with the run in --out, with its own options"""
    held_out: float = 0.1
    """share of the text, at its end, to evaluate on"""
    eval_batches: int = 20
    """batches in each evaluation"""
    sample_prompt: str = ""
    """what samples on the way go on from; empty: the beginning of a document"""
    model: GPTConfig = field(default_factory=lambda: preset("gpt2-tiny"))
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be between 0 and 1")
        if self.eval_batches < 1:
            raise ValueError(f"eval_batches={self.eval_batches} must be at least 1")


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Pretrain, args, "pretrain", default=_defaults(args))
    result = pretrain(options)
    if not world().is_main:
        return
    console.print(
        f"done: step {result.step}, held-out loss {result.best_val_loss:.4f}, {result.seconds:.0f} s; "
        f"see {options.out}/loss.png"
    )
    console.print(
        f"try: ai-learning generate --checkpoint {options.out}/best.pt --prompt 'def '", markup=False
    )


def _defaults(args: list[str]) -> Pretrain:
    """The defaults that ``--help`` shows: of the preset and tokenizer, or of the run to be resumed."""
    resumed = to_resume(Pretrain, args, "pretrain")
    if resumed is not None:
        return resumed
    name = flag(args, "--preset", Pretrain.preset)
    tokenizer = flag(args, "--tokenizer", Pretrain.tokenizer)
    model = preset(name)
    vocab_size = tokenizer_by_name(tokenizer).vocab_size
    return Pretrain(
        preset=name, tokenizer=tokenizer, model=GPTConfig(**{**asdict(model), "vocab_size": vocab_size})
    )


def pretrain(options: Pretrain, title: str = "pre-training") -> TrainResult:
    """Run it; see ``Pretrain`` for what can be asked."""
    if options.train.checkpoint_activations:
        give_back_freed_memory()
    if not options.resume:
        check_is_free(options.out)
    here, how = world(), options.train
    tokenizer = tokenizer_by_name(options.tokenizer)
    config = fit_vocabulary(options.model, tokenizer)
    device = own_device(pick_device(how.device), here)
    check_size(config, how.batch_size, device, here, how.optimizer, how.parallel == "fsdp")
    warn_of_warmup(how)
    tokens = read_tokens(options.data, tokenizer)
    training, held_out = split(tokens, options.held_out)
    batches = TokenBatches(training, config.block_size, how.batch_size, how.seed, here.rank, here.size)
    ahead = Prefetched(batches, pin=device.type == "cuda")
    val = evaluation_batches(held_out, config.block_size, options.train.batch_size, options.eval_batches)
    torch.manual_seed(options.train.seed)
    model = GPT(config)
    if here.is_main:
        console.print(f"{options.data}: {len(tokens):,} tokens; model: {model.n_params():,} parameters")
    with (
        TrainingProgress(options.train.steps, title) if here.is_main else nullcontext(_silent) as progress,
        loss_plot(options.out, title, options.data) if here.is_main else nullcontext(),
    ):
        return train(
            model,
            lambda model, batch: next_token_loss(model, *batch),
            ahead,
            options.train,
            options.out,
            evaluate=lambda model: {"val_loss": mean_loss(model, val)},
            sample=lambda model: sample(model, tokenizer, options.sample_prompt),
            listener=progress,
            on_start=lambda: tokenizer.save(options.out / "tokenizer"),
            resume=options.resume,
            identity={"data_digest": digest(tokens), "held_out": options.held_out},
            options=to_save(options, "pretrain", "data", "tokenizer"),
            extra={"tokenizer": tokenizer_reference(tokenizer)},
        )


def _silent(row: Metrics) -> None:
    """What the processes beside the first one show."""


@contextmanager
def loss_plot(out: Path, title: str, data: str) -> Iterator[None]:
    """Draw what was logged when the run ends or breaks off; one that was refused leaves the folder alone."""

    def draw() -> None:
        rows = read_metrics(out / "metrics.jsonl")
        if rows:
            plot_loss(rows, out / "loss.png", f"{title}: {data}")

    try:
        yield
    except (Interrupted, DivergedError):
        draw()
        raise
    draw()


def mean_loss(model: Any, batches: list) -> float:
    """Mean next-token loss over batches, the last of which may be smaller; every process takes its rows."""
    device, here = next(model.parameters()).device, world()
    sums = torch.zeros(2, dtype=torch.float64)  # of the loss, of the targets
    for x, y in batches:
        mine = slice(here.rank, None, here.size)
        rows_x, rows_y = (x[mine], y[mine]) if here.rank < len(x) else (x[:1], y[:1])
        loss = float(next_token_loss(model, rows_x.to(device), rows_y.to(device)))
        # All take part in every batch, as FSDP needs; a process without rows counts for nothing.
        n = rows_y.numel() if here.rank < len(x) else 0
        sums += torch.tensor([loss * n, n], dtype=torch.float64)
    total, count = sum_over_processes(sums).tolist()
    return total / count


def sample(model: Any, tokenizer: Tokenizer, prompt: str = "", n: int = 200) -> str:
    """A short continuation, the same for the same weights."""
    return prompt + generate_text(model, tokenizer, prompt, n, temperature=0.8, seed=0)
