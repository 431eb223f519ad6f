"""``ai-learning finetune``: a pre-trained model, and a labelled task (GPT-1's second half) or instructions.

``--method head`` is here; ``full``, ``lora`` and ``qlora`` are in ``instruct.py``.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ..checkpoint import check_tokenizer, tokenizer_reference
from ..errors import InputError
from ..finetune import TaskBatches, TaskData, package_task, read_task, task_loss, task_metrics
from ..memory import give_back_freed_memory
from ..model import GPT
from ..model.heads import TaskConfig, TaskModel, TaskTokens, with_extra_tokens
from ..run_folder import read_options
from ..run_state import check_is_free
from ..train import TrainConfig, TrainResult, train
from .common import (
    DEMO_MODEL,
    TrainingProgress,
    console,
    flag,
    open_language_model,
    parse,
    to_resume,
    to_save,
    warn_of_warmup,
)
from .pretrain import loss_plot


@dataclass(frozen=True)
class Finetune:
    """Fine-tune a pre-trained GPT on a labelled task, with GPT-1's input formats and auxiliary loss.

    On instruction data instead, with their own options: ai-learning finetune --method full|lora|qlora --help.
    """

    method: Literal["head", "full", "lora", "qlora"] = "head"
    """head: a task head on all weights; full, lora, qlora: instruction data"""
    checkpoint: Path = Path(DEMO_MODEL)
    """the pre-trained model: a .pt file, a folder of Hugging Face's, or a name on the hub"""
    data: str = "builtin:packages"
    """builtin:packages (which package of the standard library is this snippet from?) or a JSONL file"""
    task: Literal["classification", "entailment", "similarity", "multiple_choice"] = "classification"
    """what the JSONL file holds: text | premise, hypothesis | a, b | context, choices; and label"""
    out: Path = Path("runs/finetune")
    """folder for checkpoints, metrics and plots"""
    resume: bool = False
    """go on with the run in --out, with its own options"""
    from_scratch: bool = False
    """start from random weights of the same shape: what pre-training is worth"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none or its own has been moved"""
    held_out: float = 0.1
    """share of a JSONL file's rows to evaluate on"""
    lm_coef: float = 0.5
    """weight of the auxiliary language-model loss (the paper's λ)"""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=300, batch_size=32, lr=2e-3, warmup=30, schedule="linear", lr_floor=0.0, weight_decay=0.01,
            beta2=0.999, eval_every=50, save_every=100,
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be between 0 and 1")
        if self.lm_coef < 0:
            raise ValueError(f"lm_coef={self.lm_coef} must not be negative")


def main(args: list[str]) -> None:
    """Entry point."""
    if _method(args) != Finetune.method:
        from . import instruct

        instruct.main(args)
        return
    options = parse(Finetune, args, "finetune", default=to_resume(Finetune, args, "finetune") or Finetune())
    data, result = finetune(options)
    console.print(
        f"done: held-out accuracy {result.metrics['val_accuracy']:.1%}, "
        f"majority class {data.majority_accuracy():.1%}; see {options.out}/loss.png"
    )


def _method(args: list[str]) -> str:
    """What was asked for; of a run to be resumed, its own."""
    if "--resume" in args:
        saved = read_options(flag(args, "--out", str(Finetune.out)), "finetune")
        return str(saved.get("method", Finetune.method))
    method = flag(args, "--method", Finetune.method)
    # An unknown one is left to the parser, which says what there is.
    return method if method in ("full", "lora", "qlora") else Finetune.method


def finetune(options: Finetune, title: str = "fine-tuning") -> tuple[TaskData, TrainResult]:
    """Run it; see ``Finetune`` for what can be asked."""
    if options.train.checkpoint_activations:
        give_back_freed_memory()
    if not options.resume:
        check_is_free(options.out)
    warn_of_warmup(options.train)
    gpt, tokenizer, _ = open_language_model(str(options.checkpoint), options.tokenizer)
    # One id too many would be taken for one of the task's tokens.
    check_tokenizer(tokenizer, options.checkpoint, gpt.config.vocab_size, None)
    gpt.float()  # as the head; small steps would be lost in 16 bits
    data = load_task(options.data, options.task, options.held_out, options.train.seed)
    torch.manual_seed(options.train.seed)
    if options.from_scratch:
        gpt = GPT(gpt.config)
    model, tokens = task_model(gpt, data)
    how = options.train

    def batches(examples: list) -> TaskBatches:
        size = model.config.gpt.block_size
        return TaskBatches(examples, data.task, tokenizer, tokens, size, how.batch_size, how.seed)

    held_out = batches(data.held_out)
    with TrainingProgress(how.steps, title) as progress, loss_plot(options.out, title, options.data):
        result = train(
            model,
            lambda model, batch: task_loss(model, batch, options.lm_coef),  # type: ignore[arg-type]
            batches(data.train),
            how,
            options.out,
            evaluate=lambda model: task_metrics(model, held_out),  # type: ignore[arg-type]
            listener=progress,
            on_start=lambda: tokenizer.save(options.out / "tokenizer"),
            resume=options.resume,
            options=to_save(options, "finetune", "checkpoint", "data", "tokenizer"),
            identity={
                "task_data": _digest(data),
                "lm_coef": options.lm_coef,
                "from_scratch": options.from_scratch,
            },
            extra={
                "tokenizer": tokenizer_reference(tokenizer),
                "classes": list(data.classes),
                "task_source": {"data": options.data, "held_out": options.held_out, "seed": how.seed},
            },
        )
    return data, result


def _digest(data: TaskData) -> str:
    """A short hash of all examples and of their split."""
    return hashlib.sha256(repr((data.train, data.held_out)).encode("utf-8", "replace")).hexdigest()[:16]


def load_task(source: str, task: str, held_out: float, seed: int) -> TaskData:
    """A task by its source: ``builtin:packages`` or a JSONL file."""
    if source == "builtin:packages":
        return package_task()
    if source.startswith("builtin:"):
        raise InputError(f"no built-in task {source!r}: use builtin:packages or a JSONL file")
    return read_task(source, task, held_out, seed)


def task_model(gpt: GPT, data: TaskData) -> tuple[TaskModel, TaskTokens]:
    """``gpt`` with room for the three task tokens and a head for the task."""
    tokens = TaskTokens.after(gpt.config.vocab_size)
    extended = with_extra_tokens(gpt)
    n_classes = max(2, len(data.classes))
    return TaskModel(TaskConfig(gpt=extended.config, task=data.task, n_classes=n_classes), extended), tokens
