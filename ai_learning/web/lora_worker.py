"""Trains a LoRA adapter on plain text, in a process that the page starts.

It leaves an ordinary run's folder, and in it ``adapter/`` in PEFT's format.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ..adapters import LoRAConfig, inject_lora, save_peft
from ..batches import TokenBatches, digest, evaluation_batches, split, tokenize
from ..checkpoint import open_with_tokenizer
from ..errors import InputError
from ..generate import generate_text
from ..loss import next_token_loss
from ..text import read_texts
from ..train import Interrupted, TrainConfig, train


def main(args: list[str]) -> int:
    """Train as asked; 130 after an interruption that was saved, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="lora_worker", description=__doc__)
    for name in ("checkpoint", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("rank", "steps", "batch-size", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("alpha", "lr"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args(args)
    try:
        run(asked)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(asked: argparse.Namespace) -> None:
    """Train the adapter, and save it."""
    model, tokenizer, _ = open_with_tokenizer(asked.checkpoint, asked.device)
    tokens = tokenize(read_texts(asked.data), tokenizer)
    training, held_out = split(tokens, 0.1)
    length = min(model.config.block_size, max(8, len(held_out) - 1), 512)
    val = evaluation_batches(held_out, length, asked.batch_size, 4)
    torch.manual_seed(asked.seed)
    lora = LoRAConfig(r=asked.rank, lora_alpha=asked.alpha)
    inject_lora(model, lora)
    every = max(1, asked.steps // 10)
    how = TrainConfig(
        steps=asked.steps, batch_size=asked.batch_size, lr=asked.lr, warmup=max(1, asked.steps // 20),
        weight_decay=0.0, eval_every=every, save_every=every, sample_every=every,
        log_every=max(1, asked.steps // 100), seed=asked.seed, device=asked.device,
    )  # fmt: skip
    train(
        model,
        lambda model, batch: next_token_loss(model, *batch),
        TokenBatches(training, length, asked.batch_size, asked.seed),
        how,
        asked.out,
        evaluate=lambda model: {"val_loss": sum(float(next_token_loss(model, *b)) for b in val) / len(val)},
        sample=lambda _: generate_text(model, tokenizer, "", 120, temperature=0.8, seed=0),
        resume=asked.resume,
        identity={"data_digest": digest(tokens), "lora": asdict(lora), "checkpoint": asked.checkpoint},
    )
    save_peft(model, Path(asked.out) / "adapter", base_model=asked.checkpoint)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
