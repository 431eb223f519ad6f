"""Adapters: the same prompt to the base, with LoRA beside it, merged into it, in NF4, and with both."""

import copy
import math
from pathlib import Path
from typing import Any, Literal

import torch
from fastapi import APIRouter
from pydantic import Field
from torch import nn

from ...adapters import NF4Linear, eject_lora, load_peft, quantize_linears
from ...errors import InputError
from ...generate import generate_text
from ...loss import next_token_loss
from ...model import GPT
from ...tokenizers import encode_own
from ..bench import Bench, Name
from ..guard import Refused
from ..jobs import Jobs
from .training import MAX_TRAINING_TEXT, Source, checked_text, put_text
from .write import Sampling

LARGEST = 1_000_000_000  # parameters: each variant is a copy of the whole model
Variant = Literal["base", "lora", "merged", "nf4", "qlora"]


class Train(Sampling):
    """An adapter to train on a text."""

    text: str = Field("", max_length=MAX_TRAINING_TEXT)
    source: Source = "builtin:reference"
    rank: int = Field(8, ge=1, le=256)
    alpha: float = Field(16, gt=0, le=1024)
    steps: int = Field(150, ge=10, le=10_000)
    lr: float = Field(3e-3, gt=0, le=1)
    batch_size: int = Field(12, ge=1, le=64)


class Write(Sampling):
    """A continuation by one variant."""

    variant: Variant = "base"
    adapter: Name = ""
    max_new_tokens: int = Field(120, ge=1, le=400)


def router(bench: Bench, jobs: Jobs) -> APIRouter:
    """The panel's questions."""
    api = APIRouter(prefix="/api/adapters")

    def folders() -> dict[str, Path]:
        own = {name: jobs.folder / name / "adapter" for name in jobs.names("lora")}
        own = {name: path for name, path in own.items() if (path / "adapter_config.json").is_file()}
        return {**bench.adapters, **own}

    @api.get("")
    def overview() -> dict[str, Any]:
        """Adapters that can be chosen, and the trainings that make some."""
        runs = jobs.names("lora")
        return {"adapters": list(folders()), "runs": runs, "running": jobs.running()}

    @api.post("/train")
    def train(ask: Train) -> dict[str, Any]:
        """Begin to train an adapter for a model."""
        opened = bench.opened(ask.model)
        if opened.source is None:
            raise Refused(409, "this model was not opened from a file, so no other process can train on it")
        text, source = checked_text(ask.source, ask.text), opened.source

        def prepare(out: Path) -> list[str]:
            options = {
                "checkpoint": source,
                "data": put_text(ask.source, text, out),
                "out": out,
                "rank": ask.rank,
                "alpha": ask.alpha,
                "steps": ask.steps,
                "lr": ask.lr,
                "batch-size": ask.batch_size,
                "seed": ask.seed or 0,
                "device": bench.device,
            }
            return [part for name, value in options.items() for part in (f"--{name}", str(value))]

        about = ask.model_dump(include={"model", "source", "rank", "alpha", "steps", "lr", "batch_size"})
        return {"name": jobs.start("lora", "ai_learning.web.lora_worker", prepare, **about)}

    @api.post("/write")
    def write(ask: Write) -> dict[str, Any]:
        """What one variant writes, and its figures."""
        opened = bench.opened(ask.model)
        folder = folders().get(ask.adapter)
        if folder is None and ask.variant in ("lora", "merged", "qlora"):
            raise Refused(
                404, f"there is no adapter {ask.adapter[:40]!r}: train one, or start with --adapter"
            )
        if opened.model.n_params() > LARGEST:
            raise Refused(409, f"the model has more than {LARGEST:,} parameters: too many to copy for this")
        with bench.writing():
            try:
                model = build(opened.model, ask.variant, folder)
                text = generate_text(model, opened.tokenizer, ask.text, ask.max_new_tokens, **ask.options())
            except InputError as error:
                raise Refused(422, str(error)) from None
            ids = encode_own(opened.tokenizer, ask.text)[-opened.model.config.block_size :]
            return {"text": text, **figures(opened.model, model, ids or [0])}

    return api


def build(base: GPT, variant: Variant, adapter: Path | None) -> GPT:
    """The model as ``variant`` says: the base itself, or a changed copy."""
    if variant == "base":
        return base
    model = copy.deepcopy(base)
    if variant in ("nf4", "qlora"):
        quantize_linears(model)
    if variant in ("lora", "merged", "qlora"):
        assert adapter is not None
        load_peft(model, adapter)
    if variant == "merged":
        eject_lora(model, merge=True, untie=True)  # plain layers again
    return model.eval()


@torch.inference_mode()
def figures(base: GPT, model: GPT, ids: list[int]) -> dict[str, Any]:
    """How far ``model`` is from ``base`` on a text, and what it weighs.

    Returns:
        ``kl``: KL(base ‖ model) of the next token after the text, nats; ``difference``: the largest between
        two logits; ``loss``: nats a token of the text; ``bytes``: of all weights, adapters included.
    """
    idx = torch.tensor([ids], device=base.wte.weight.device)
    own, others = (m(idx)[0, -1].double().log_softmax(-1) for m in (base, model))
    loss = float(next_token_loss(model, idx[:, :-1], idx[:, 1:])) if len(ids) > 1 else math.nan
    return {
        "kl": max(0.0, float((own.exp() * (own - others)).sum())),
        "difference": float((base(idx)[0, -1] - model(idx)[0, -1]).abs().max()),
        "loss": None if math.isnan(loss) else loss,
        "bytes": weight_bytes(model),
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and of what stands for them in 4 bits; a shared one counts once."""
    tensors: dict[int, torch.Tensor] = {id(p): p for p in model.parameters()}
    for layer in model.modules():
        if isinstance(layer, NF4Linear):
            statistics = (layer.state.absmax, layer.state.nested_absmax, layer.state.offset)
            tensors |= {id(t): t for t in (layer.weight, *statistics) if t is not None}
    return sum(t.numel() * t.element_size() for t in tensors.values())
