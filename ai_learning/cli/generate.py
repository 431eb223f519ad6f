"""``ai-learning generate``: continue a prompt, streamed to the terminal."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ..chat_template import end_of_answer
from ..checkpoint import open_model
from ..device import pick_device
from ..errors import InputError
from ..files import write_text
from ..generate import Sampling, check_seed, decode_stream, seed_of_sample, stream
from ..int8 import quantize_int8
from ..model import GPT
from ..sft import Example, Message, encode_prompt, template_of
from ..speculative import Acceptance, check_draft, speculative_stream
from ..text import read_texts
from ..tokenizers import Tokenizer, encode_own
from .common import DEMO_MODEL, check_out_file, open_language_model, parse


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with a trained model."""

    checkpoint: str = DEMO_MODEL
    """a .pt file of pretrain, finetune or demo; a Hugging Face folder; or a name on the hub"""
    prompt: Annotated[str, tyro.conf.arg(help_behavior_hint=r"(default: '\n')")] = "\n"
    """text to continue; - reads it from standard input"""
    chat: bool = False
    """the prompt is a user's message, written as the model's chat template does; only the answer is shown"""
    system: str | None = None
    """what the model is told before the conversation, with --chat"""
    chat_template: str | None = None
    """chatml or a Jinja file, with --chat; the model's own when left out"""
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
    """makes the samples repeatable; the first is that of one sample alone"""
    use_cache: bool = True
    """keep keys and values instead of computing them again"""
    int8: bool = False
    """weights in 8 bits: faster on a CPU, slightly other text"""
    draft: str | None = None
    """a smaller model of the same tokenizer that guesses ahead: the same text, sooner"""
    n_guesses: int = 4
    """tokens that the draft guesses at a time"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none or its own has been moved"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    out: Path | None = None
    """also write the samples to this file"""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples={self.samples} must be at least 1")
        if self.n_guesses < 1:
            raise ValueError(f"n_guesses={self.n_guesses} must be at least 1")
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must not be negative")
        if "" in self.stop:
            raise ValueError("a stop string is empty: it would end every text at once")
        check_seed(self.seed)
        _ = self.sampling  # refuses a value out of its range
        if self.draft is not None and not self.use_cache:
            raise ValueError("--draft needs the cache: leave --no-use-cache away")
        if not self.chat and (self.system is not None or self.chat_template is not None):
            raise ValueError("system and chat_template are for conversations: add --chat")

    @property
    def sampling(self) -> Sampling:
        """How tokens are drawn."""
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return Sampling(**{name: getattr(self, name) for name in names})


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Generate, args, "generate")
    check_out_file(options.out)
    device = pick_device(options.device)
    model, tokenizer, found = open_language_model(options.checkpoint, options.tokenizer, device)
    if options.int8:
        quantize_int8(model)
    draft = None
    if options.draft is not None:  # with the model's tokenizer: the draft's must be the same
        draft = open_model(options.draft, device, tokenizer=tokenizer)[0]
        check_draft(model, draft, options.sampling, options.n_guesses)
    prompt = "\n\n".join(read_texts("-")) if options.prompt == "-" else options.prompt
    stop = list(options.stop)
    if options.chat:
        ids, end = conversation(prompt, tokenizer, options, found)
        shown, stop = "", stop + [end] * bool(end)
    else:
        ids, shown = encode_own(tokenizer, prompt) or [tokenizer.eos_id or 0], prompt
    idx = torch.tensor([ids], device=model.wte.weight.device)
    texts = []
    for number in range(options.samples):
        sys.stdout.write(shown)
        pieces = []
        for piece in decode_stream(new_ids(model, draft, idx, options, number), tokenizer, stop=stop):
            sys.stdout.write(piece)
            sys.stdout.flush()
            pieces.append(piece)
        sys.stdout.write("\n" if number == options.samples - 1 else "\n" + "-" * 40 + "\n")
        texts.append(shown + "".join(pieces))
    if options.out:
        write_text(options.out, ("\n" + "-" * 40 + "\n").join(texts) + "\n")


def conversation(
    prompt: str, tokenizer: Tokenizer, options: Generate, found: Mapping[str, Any]
) -> tuple[list[int], str]:
    """Ids that ask the model for its answer to ``prompt``, and what its template writes after an answer."""
    template = template_of(options.chat_template, found)
    if template.source is None:
        raise InputError(f"{options.checkpoint} brings no chat template: name one, as --chat-template chatml")
    told = () if options.system is None else (Message("system", options.system),)
    answered = Example((*told, Message("user", prompt), Message("assistant", "answer")), chat=True)
    try:
        end = end_of_answer(template.source, **(template.variables or {}))
        return encode_prompt(answered, tokenizer, template), end
    except ValueError as error:
        raise InputError(str(error)) from None


def new_ids(
    model: GPT, draft: GPT | None, idx: torch.Tensor, options: Generate, number: int
) -> Iterator[int]:
    """The ids of one continuation, as they come."""
    sampling, n = options.sampling, options.max_new_tokens
    seed = seed_of_sample(options.seed, number)
    if draft is None:
        steps = stream(model, idx, n, sampling, seed=seed, use_cache=options.use_cache)
        yield from (int(chosen) for chosen in steps)
        return
    acceptance = Acceptance()
    yield from speculative_stream(
        model, draft, idx, n, sampling, n_guesses=options.n_guesses, seed=seed, acceptance=acceptance
    )
    guesses = f"{acceptance.accepted} of {acceptance.guessed} guesses kept ({acceptance.rate:.0%})"
    print(f"\n{guesses}, {acceptance.passes} passes of the large model", file=sys.stderr)
