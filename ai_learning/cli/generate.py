"""``ai-learning generate``: continue a prompt, streamed to the terminal."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from ..checkpoint import open_model
from ..errors import InputError
from ..files import write_text
from ..generate import Sampling, decode_stream, stream_text
from ..int8 import quantize_int8
from ..model import GPT
from ..speculative import Acceptance, speculative_stream
from ..text import read_texts
from ..tokenizers import Tokenizer
from ..train import pick_device
from .common import parse, tokenizer_by_name


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a trained model."""

    checkpoint: str = "runs/demo/gpt1_tiny_pretrain.pt"
    """a .pt file of pretrain, finetune or demo; a Hugging Face folder; or a name on the hub"""
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
    int8: bool = False
    """weights in 8 bits: faster on a CPU, slightly other text"""
    draft: str | None = None
    """a smaller model of the same tokenizer that guesses ahead: the same text, sooner"""
    n_guesses: int = 4
    """tokens that the draft guesses at a time"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    out: Path | None = None
    """also write the samples to this file"""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")
        if self.n_guesses < 1:
            raise ValueError(f"n_guesses={self.n_guesses} must be at least 1")


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Generate, args, "generate")
    device = pick_device(options.device)
    model, tokenizer, _ = open_model(options.checkpoint, device)
    if options.tokenizer is not None:
        tokenizer = tokenizer_by_name(options.tokenizer)
    if tokenizer is None:
        raise InputError(f"{options.checkpoint} names no tokenizer: give one with --tokenizer")
    if options.int8:
        quantize_int8(model)
    draft = None if options.draft is None else open_model(options.draft, device)[0]
    prompt = "\n\n".join(read_texts("-")) if options.prompt == "-" else options.prompt
    texts = []
    for number in range(options.samples):
        sys.stdout.write(prompt)
        pieces = []
        for piece in pieces_of(model, draft, tokenizer, prompt, options, number):
            sys.stdout.write(piece)
            sys.stdout.flush()
            pieces.append(piece)
        sys.stdout.write("\n" if number == options.samples - 1 else "\n" + "-" * 40 + "\n")
        texts.append(prompt + "".join(pieces))
    if options.out:
        write_text(options.out, ("\n" + "-" * 40 + "\n").join(texts) + "\n")


def pieces_of(
    model: GPT, draft: GPT | None, tokenizer: Tokenizer, prompt: str, options: Generate, number: int
) -> Iterator[str]:
    """The text of one continuation, as it comes."""
    sampling = {
        name: getattr(options, name)
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    }
    seed = None if options.seed is None else options.seed + number
    if draft is None:
        yield from stream_text(
            model,
            tokenizer,
            prompt,
            options.max_new_tokens,
            stop=options.stop,
            seed=seed,
            use_cache=options.use_cache,
            **sampling,
        )
        return
    idx = torch.tensor([tokenizer.encode(prompt) or [tokenizer.eos_id or 0]], device=model.wte.weight.device)
    acceptance = Acceptance()
    ids = speculative_stream(
        model,
        draft,
        idx,
        options.max_new_tokens,
        Sampling(**sampling),
        n_guesses=options.n_guesses,
        seed=seed,
        acceptance=acceptance,
    )
    yield from decode_stream(ids, tokenizer, stop=options.stop)
    guesses = f"{acceptance.accepted} of {acceptance.guessed} guesses kept ({acceptance.rate:.0%})"
    print(f"\n{guesses}, {acceptance.passes} passes of the large model", file=sys.stderr)
