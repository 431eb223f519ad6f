"""``ai-learning inspect``: what a model does with a text, as plots and numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ..device import pick_device
from ..errors import InputError
from ..files import write_text
from ..model import GPT
from ..tokenizers import Tokenizer, encode_own
from ..trace import logit_lens, record, token_losses
from ..viz import plot_attention, plot_lens, plot_lines, plot_token_losses
from .common import DEMO_MODEL, console, open_language_model, parse

LARGEST = 256  # tokens: a plot of more cannot be read


@dataclass(frozen=True)
class Inspect:
    """Attention of every head, the residual stream, the logit lens and what each token costs."""

    checkpoint: Annotated[str, tyro.conf.Positional] = DEMO_MODEL
    """a .pt file, a folder of Hugging Face's, or a name on the hub"""
    text: str = "for name in names:\n    print(name)"
    """what to look at, at most 256 tokens"""
    out: Path = Path("runs/inspect")
    """folder for the plots and inspect.json"""
    format: str = "png"
    """png or svg"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none or its own has been moved"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""

    def __post_init__(self) -> None:
        if self.format not in ("png", "svg"):
            raise ValueError(f"format={self.format!r} is not known; use png or svg")


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Inspect, args, "inspect")
    device = pick_device(options.device)
    model, tokenizer, _ = open_language_model(options.checkpoint, options.tokenizer, device)
    ids = encode_own(tokenizer, options.text)
    most = min(LARGEST, model.config.block_size)
    if not 2 <= len(ids) <= most:
        raise InputError(f"the text has {len(ids)} tokens: give 2 to {most}")
    found = look(model, tokenizer, ids, options.out, options.format)
    write_text(options.out / "inspect.json", json.dumps(found, indent=1) + "\n")
    console.print(f"{sum(found['losses']) / len(found['losses']):.3f} nats a token; plots in {options.out}")


def look(model: GPT, tokenizer: Tokenizer, ids: list[int], out: Path, suffix: str = "png") -> dict[str, Any]:
    """Write the plots of one text into ``out`` and return their numbers.

    Args:
        model: what to look into.
        tokenizer: names the tokens.
        ids: T of them.
        out: made if need be.
        suffix: png or svg.

    Returns:
        ``tokens`` (T), ``losses`` (T − 1, nats), ``residual_rms`` (n_layer + 1), ``attention_entropy``
        (n_layer × n_head, bits), ``lens`` (n_layer + 1 × T likeliest tokens with their probability).
    """
    out.mkdir(parents=True, exist_ok=True)
    idx = torch.tensor([ids], device=model.wte.weight.device)
    with torch.no_grad(), record(model) as trace:
        logits = model(idx)
    labels = [tokenizer.decode([i]) or f"<{i}>" for i in ids]
    for layer, weights in enumerate(trace.attention):
        plot_attention(weights[0], labels, out / f"attention_{layer}.{suffix}", f"attention, layer {layer}")
    losses = token_losses(logits, idx)[0].tolist()
    plot_token_losses(losses, labels, out / f"losses.{suffix}", "what each token costs")
    sizes = [x.float().square().mean().sqrt().item() for x in trace.residual]
    plot_lines(
        {"stream": sizes}, out / f"residual.{suffix}", "after block", "root mean square", "residual stream"
    )
    best = logit_lens(model, trace.residual)[:, 0].float().softmax(-1).max(-1)  # (L + 1, T)
    words = [[tokenizer.decode([i]) or f"<{i}>" for i in row] for row in best.indices.tolist()]
    plot_lens(
        words, best.values.tolist(), labels, out / f"lens.{suffix}", "logit lens: the likeliest next token"
    )
    entropy = trace.entropy()[:, 0].mean(-1)  # (L, H)
    heads = {f"layer {layer}": row for layer, row in enumerate(entropy.tolist())}
    plot_lines(heads, out / f"entropy.{suffix}", "head", "bits", "how widely each head looks")
    return {
        "tokens": labels,
        "losses": losses,
        "residual_rms": sizes,
        "attention_entropy": entropy.tolist(),
        "lens": [
            [[word, round(p, 5)] for word, p in zip(*row, strict=True)]
            for row in zip(words, best.values.tolist(), strict=True)
        ],
    }
