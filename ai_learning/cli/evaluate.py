"""``ai-learning evaluate``: what a text costs a model, or how often a task model is right."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from ..checkpoint import build_model, load_checkpoint, open_tokenizer
from ..evaluate import score_tokens
from ..files import write_text
from ..finetune import TaskBatches, task_metrics
from ..model import GPT
from ..model.heads import TaskModel, TaskTokens
from ..train import pick_device
from .common import console, parse, read_tokens, tokenizer_by_name
from .finetune import load_task


@dataclass(frozen=True)
class Evaluate:
    """Perplexity and bits per byte of a text; with a fine-tuned checkpoint, accuracy on its task."""

    checkpoint: Path = Path("runs/demo/gpt1_tiny_pretrain.pt")
    """a .pt file of pretrain, finetune or demo"""
    data: str | None = None
    """text to score (builtin:reference when left out), or the task's data (builtin:packages)"""
    stride: int | None = None
    """tokens that each window advances; smaller gives every token more context; block_size when left out"""
    max_tokens: int = 200_000
    """score at most this many tokens; 0 scores all"""
    batch_size: int = 16
    """windows, or examples, at once"""
    held_out: float = 0.1
    """share of a JSONL task file that was held out in training"""
    seed: int = 1337
    """the one that the task was split with"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    out: Path | None = None
    """also write the figures to this JSON file"""


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Evaluate, args, "evaluate")
    device = pick_device(options.device)
    checkpoint = load_checkpoint(options.checkpoint, device)
    model = build_model(checkpoint).to(device)
    if options.tokenizer is None:
        tokenizer = open_tokenizer(checkpoint, options.checkpoint)
    else:
        tokenizer = tokenizer_by_name(options.tokenizer)
    figures: dict[str, float]
    if isinstance(model, TaskModel):
        task = model.config.task
        data = load_task(options.data or "builtin:packages", task, options.held_out, options.seed)
        block_size, tokens = model.config.gpt.block_size, TaskTokens.after(model.config.gpt.vocab_size - 3)
        batches = TaskBatches(data.held_out, task, tokenizer, tokens, block_size, options.batch_size)
        metrics = task_metrics(model, batches)
        figures = {
            "accuracy": metrics["val_accuracy"],
            "loss": metrics["val_loss"],
            "majority_accuracy": data.majority_accuracy(),
            "examples": len(data.held_out),
        }
    else:
        assert isinstance(model, GPT)
        ids = read_tokens(options.data or "builtin:reference", tokenizer)
        ids = ids[: options.max_tokens or None]
        n_bytes = len(tokenizer.decode_bytes(i for i in ids.tolist() if i != tokenizer.eos_id))
        figures = asdict(
            score_tokens(model, ids, n_bytes, stride=options.stride, batch_size=options.batch_size)
        )
    table = Table("figure", "value", title=str(options.checkpoint))
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    console.print(table)
    if options.out:
        write_text(options.out, json.dumps(figures, indent=2) + "\n")
