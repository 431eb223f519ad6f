"""``ai-learning export``: a checkpoint as a folder that transformers opens, and onto the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..adapters import eject_lora, load_peft
from ..checkpoint import is_adapter, open_model
from ..errors import InputError
from ..model import GPT
from ..pretrained import save_pretrained
from ..pretrained.card import write_card
from ..pretrained.hub import check_name, push_folder
from ..tokenizers import Tokenizer
from .common import console, parse, tokenizer_by_name

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Export:
    """Write a model in Hugging Face's format; with an adapter, merged into it."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """a .pt file (a model's or an adapter's), a folder of Hugging Face's, or a name on the hub"""
    out: Path = Path("exported")
    """folder to write: config, weights, tokenizer, model card"""
    adapter: Path | None = None
    """a PEFT folder to put on the model first; needs --merge"""
    merge: bool = False
    """merge the adapter, from --adapter or from the checkpoint itself, into the weights"""
    dtype: str | None = None
    """float32, bfloat16 or float16; the model's own when left out"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none or its own has been moved"""
    push: str | None = None
    """user/name: put the folder on the hub, too"""
    private: bool = False
    """make a new repository private"""
    license: str = "other"
    """for the model card"""
    name: str | None = None
    """for the model card; the name on the hub, or the folder's, when left out"""
    revision: str | None = None
    """branch, tag or commit on the hub to read from"""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not known; use {', '.join(DTYPES)}")
        if self.adapter is not None and not self.merge:
            raise ValueError(
                "--adapter needs --merge: one that is not merged stays the PEFT folder that it is"
            )
        if self.push is not None:
            check_name(self.push)


def main(args: list[str]) -> None:
    """Entry point."""
    import torch

    options = parse(Export, args, "export")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise InputError(f"{options.out} is not an empty folder: choose another --out")
    given = None if options.tokenizer is None else tokenizer_by_name(options.tokenizer)
    model, tokenizer, found = open_model(options.checkpoint, revision=options.revision, tokenizer=given)
    own = is_adapter(found)  # opened, it is merged into its base
    if own and (not options.merge or options.adapter is not None):
        raise InputError(f"{options.checkpoint} is an adapter: give --merge, and no other --adapter")
    if options.merge and not own and options.adapter is None:
        raise InputError(f"--merge needs --adapter: {options.checkpoint} is a whole model")
    if options.adapter is not None:
        load_peft(model, options.adapter)
        eject_lora(model, merge=True, untie=True)
    if options.dtype is not None:
        model.to(getattr(torch, options.dtype))
    template = {name: found[name] for name in ("chat_template", "special_tokens") if name in found}
    save_pretrained(model, options.out, tokenizer, **template)
    source = Path(options.checkpoint)
    run_folder = source.parent if source.is_file() else None
    name = options.name or options.push or options.out.name
    write_card(options.out, run_folder, model, name, license=options.license)
    console.print(f"{options.out}: {_contents(model, tokenizer)}", markup=False)
    if options.push is not None:
        url = push_folder(options.out, options.push, private=options.private)
        console.print(f"pushed to {url}", markup=False)


def _contents(model: GPT, tokenizer: Tokenizer | None) -> str:
    weights = (
        f"{model.n_params():,} parameters in {str(next(model.parameters()).dtype).removeprefix('torch.')}"
    )
    return weights + ("" if tokenizer is None else f", a tokenizer of {tokenizer.vocab_size:,} ids")
