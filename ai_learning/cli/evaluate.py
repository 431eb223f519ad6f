"""``ai-learning evaluate``: what a text costs a model, or how often a task model is right."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ..checkpoint import build_model, check_tokenizer, load_checkpoint, open_tokenizer
from ..device import pick_device
from ..errors import InputError
from ..evaluate import check_stride, score_tokens
from ..files import write_text
from ..finetune import TaskBatches, read_examples, task_metrics
from ..int8 import quantize_int8
from ..model.heads import TaskModel, TaskTokens
from ..multiple_choice import evaluate_questions, read_questions
from ..tokenizers import Tokenizer
from .common import (
    DEMO_MODEL,
    check_out_file,
    console,
    open_language_model,
    parse,
    read_tokens,
    tokenizer_by_name,
)
from .finetune import load_task


@dataclass(frozen=True)
class Evaluate:
    """Perplexity and bits per byte of a text; with a fine-tuned checkpoint, accuracy on its task."""

    checkpoint: str = DEMO_MODEL
    """a .pt file of pretrain, finetune or demo; a Hugging Face folder; or a name on the hub"""
    task: str | None = None
    """hellaswag, lambada or multiple_choice: score answers by likelihood, from --data or the hub"""
    limit: int = 0
    """of a task, at most this many questions; 0 asks all"""
    data: str | None = None
    """text to score (builtin:reference when left out); of a task model a JSONL file, all of it, or when left
    out what was held out in its training"""
    stride: int | None = None
    """tokens that each window advances; smaller gives every token more context; block_size when left out"""
    max_tokens: int = 200_000
    """score at most this many tokens; 0 scores all"""
    batch_size: int = 16
    """windows, or examples, at once"""
    int8: bool = False
    """score the model with weights in 8 bits, as `generate --int8` runs it"""
    seed: int | None = None
    """of the split into training and held-out examples; the checkpoint's own when left out"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none or its own has been moved"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    out: Path | None = None
    """also write the figures to this JSON file"""

    def __post_init__(self) -> None:
        if self.max_tokens < 0 or self.batch_size < 1:
            raise ValueError(
                f"max_tokens={self.max_tokens} must not be negative, batch_size={self.batch_size} at least 1"
            )
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must not be negative; 0 asks all questions")
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride={self.stride} must be at least 1")


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Evaluate, args, "evaluate")
    check_out_file(options.out)
    device = pick_device(options.device)
    figures: dict[str, float]
    if (task_checkpoint := _task_checkpoint(options, device)) is not None:
        for name in ("task", "limit", "stride", "int8"):
            if getattr(options, name):
                raise InputError(
                    f"--{name} is for language models: {options.checkpoint} was fine-tuned for "
                    f"{task_checkpoint['config']['task']!r}, and that is what is scored"
                )
        model = build_model(task_checkpoint).to(device)
        assert isinstance(model, TaskModel)
        if options.tokenizer is None:
            tokenizer = open_tokenizer(task_checkpoint, options.checkpoint)
        else:
            tokenizer, own = tokenizer_by_name(options.tokenizer), task_checkpoint.get("tokenizer")
            check_tokenizer(tokenizer, options.checkpoint, model.config.gpt.vocab_size, own)
        figures = _score_task(model, task_checkpoint, tokenizer, options)
    else:
        figures = _score_language(options, device)
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else f"{value:,}")
    console.print(options.checkpoint, table)
    if options.out:
        write_text(options.out, json.dumps(figures, indent=2) + "\n")


def _task_checkpoint(options: Evaluate, device: torch.device) -> dict[str, Any] | None:
    """The checkpoint, where it is that of a fine-tuned task model."""
    path = Path(options.checkpoint)
    if path.suffix != ".pt" and not path.is_file():
        return None
    checkpoint = load_checkpoint(path, device)
    return checkpoint if "task" in checkpoint["config"] else None


def _score_language(options: Evaluate, device: torch.device) -> dict[str, float]:
    model, tokenizer, _ = open_language_model(options.checkpoint, options.tokenizer, device)
    if options.int8:
        quantize_int8(model)
    check_stride(options.stride, model.config.block_size)  # reading the text may take long
    if options.task is not None:
        questions = read_questions(options.task, options.data, options.limit)
        return evaluate_questions(model, tokenizer, questions)
    ids = read_tokens(options.data or "builtin:reference", tokenizer)
    ids = ids[: options.max_tokens or None]
    n_bytes = len(tokenizer.decode_bytes(i for i in ids.tolist() if i != tokenizer.eos_id))
    return asdict(score_tokens(model, ids, n_bytes, stride=options.stride, batch_size=options.batch_size))


def _score_task(
    model: TaskModel, checkpoint: dict[str, Any], tokenizer: Tokenizer, options: Evaluate
) -> dict[str, float]:
    task, source = model.config.task, checkpoint.get("task_source")
    if options.data is not None and (source is None or options.data != source["data"]):
        examples, majority = read_examples(options.data, task, checkpoint.get("classes", [])), {}
    elif source is None:
        raise InputError(f"{options.checkpoint} does not say what it was trained on: give --data")
    else:
        seed = source["seed"] if options.seed is None else options.seed
        data = load_task(source["data"], task, source["held_out"], seed)
        examples, majority = data.held_out, {"majority_accuracy": data.majority_accuracy()}
    block_size, tokens = model.config.gpt.block_size, TaskTokens.after(model.config.gpt.vocab_size - 3)
    batches = TaskBatches(examples, task, tokenizer, tokens, block_size, options.batch_size)
    metrics = task_metrics(model, batches)
    return {
        "accuracy": metrics["val_accuracy"],
        "loss": metrics["val_loss"],
        **majority,
        "examples": len(examples),
    }
