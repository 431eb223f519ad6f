"""A model card: the README.md of a folder on the hub, made from what is known of the model and its run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..model import GPT

FILE = "README.md"
CURVE = "loss.png"


def model_card(
    model: GPT,
    *,
    name: str,
    run: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] = (),
    figures: Mapping[str, float] | None = None,
    picture: bool = False,
    license: str = "other",
) -> str:
    """The text of a card.

    Args:
        model: whose sizes are told.
        name: what the model is called, ``user/name`` on the hub.
        run: options of its training, as ``run.json`` keeps them.
        metrics: rows of its ``metrics.jsonl``.
        figures: what was measured on it (perplexity, bits per byte …).
        picture: whether ``loss.png`` lies beside the card.
        license: an identifier that the hub knows; ``other`` says nothing.
    """
    config = model.config
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: {license}\n---\n",
        f"# {name}\n",
        f"A decoder-only language model with {model.n_params():,} parameters.\n",
        "## Load it\n",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n',
        f'or, in the classes it was trained with, `ai_learning.pretrained.load_pretrained("{name}")`.\n',
        "## Architecture\n",
        _table(
            ("vocab_size", config.vocab_size),
            ("block_size", config.block_size),
            ("n_layer", config.n_layer),
            ("n_head", config.n_head),
            ("n_kv_head", config.kv_heads),
            ("n_embd", config.n_embd),
            ("norm", f"{config.norm}, {'before' if config.norm_first else 'after'} each branch"),
            ("positions", config.positions),
            ("activation", config.activation),
            ("tie_weights", config.tie_weights),
        ),
    ]
    if run:
        parts += ["## Training\n", _training(run)]
    held_out = [row for row in metrics if "val_loss" in row]
    if held_out:
        best = min(held_out, key=lambda row: row["val_loss"])
        parts.append(
            f"Held-out loss {held_out[-1]['val_loss']:.4f} nats a token after step {held_out[-1]['step']}; "
            f"lowest {best['val_loss']:.4f} after step {best['step']}.\n"
        )
    if picture:
        parts.append(f"![loss]({CURVE})\n")
    if figures:
        parts += ["## Measured\n", _table(*((k.replace("_", " "), f"{v:,.4f}") for k, v in figures.items()))]
    return "\n".join(parts)


def write_card(folder: Path, run_folder: Path | None, model: GPT, name: str, **more: Any) -> None:
    """Write the card into ``folder``, with the loss curve and options of a run's folder where there is one.

    Args:
        folder: of the saved model.
        run_folder: with ``run.json``, ``metrics.jsonl`` and ``loss.png``, as far as they exist.
        model: the model.
        name: see ``model_card``.
        more: see ``model_card``.
    """
    run: dict[str, Any] = {}
    metrics: list[dict[str, Any]] = []
    picture = False
    if run_folder is not None:
        if (run_folder / "run.json").is_file():
            run = json.loads((run_folder / "run.json").read_text(encoding="utf-8"))
        if (run_folder / "metrics.jsonl").is_file():
            lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            metrics = [json.loads(line) for line in lines if line.endswith("}")]
        if (run_folder / CURVE).is_file():
            (folder / CURVE).write_bytes((run_folder / CURVE).read_bytes())
            picture = True
    write_text(folder / FILE, model_card(model, name=name, run=run, metrics=metrics, picture=picture, **more))


def _training(run: Mapping[str, Any]) -> str:
    train = run.get("train", {})
    rows = [(key, run[key]) for key in ("data", "tokenizer", "preset") if run.get(key) is not None]
    rows += [(key, train[key]) for key in ("steps", "batch_size", "lr", "schedule", "seed") if key in train]
    return _table(*rows)


def _table(*rows: tuple[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows), ""])
