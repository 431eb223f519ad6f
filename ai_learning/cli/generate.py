"""``ai-learning generate``: continue a prompt, streamed to the terminal."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..checkpoint import load_gpt, open_tokenizer
from ..files import write_text
from ..generate import stream_text
from ..text import read_texts
from ..train import pick_device
from .common import parse, tokenizer_by_name


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a trained model."""

    checkpoint: Path = Path("runs/demo/gpt1_tiny_pretrain.pt")
    """a .pt file of pretrain, finetune or demo"""
    prompt: str = "\n"
    """text to continue; - reads it from standard input"""
    max_new_tokens: int = 256
    """at most this many tokens more; a context longer than the model's slides"""
    temperature: float = 0.8
    """0 takes the likeliest token each time"""
    top_k: int | None = None
    """keep that many of the likeliest tokens"""
    top_p: float | None = None
    """keep the likeliest tokens that together reach this probability"""
    min_p: float | None = None
    """keep tokens at least this share as likely as the likeliest"""
    repetition_penalty: float = 1.0
    """above 1 discourages tokens already there"""
    stop: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """a string that ends the text; may be given several times"""
    samples: int = 1
    """how many continuations"""
    seed: int | None = None
    """makes the samples repeatable"""
    use_cache: bool = True
    """keep keys and values instead of computing them again"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    out: Path | None = None
    """also write the samples to this file"""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Generate, args, "generate")
    model, checkpoint = load_gpt(options.checkpoint, pick_device(options.device))
    if options.tokenizer is None:
        tokenizer = open_tokenizer(checkpoint, options.checkpoint)
    else:
        tokenizer = tokenizer_by_name(options.tokenizer)
    prompt = "\n\n".join(read_texts("-")) if options.prompt == "-" else options.prompt
    texts = []
    for number in range(options.samples):
        sys.stdout.write(prompt)
        pieces = []
        for piece in stream_text(
            model,
            tokenizer,
            prompt,
            options.max_new_tokens,
            stop=options.stop,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=None if options.seed is None else options.seed + number,
            use_cache=options.use_cache,
        ):
            sys.stdout.write(piece)
            sys.stdout.flush()
            pieces.append(piece)
        sys.stdout.write("\n" if number == options.samples - 1 else "\n" + "-" * 40 + "\n")
        texts.append(prompt + "".join(pieces))
    if options.out:
        write_text(options.out, ("\n" + "-" * 40 + "\n").join(texts) + "\n")
