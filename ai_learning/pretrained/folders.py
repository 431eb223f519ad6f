"""A folder or a name on the hub: what ``AutoModelForCausalLM`` opens, opened and written."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..chat_template import write_chat_template
from ..errors import InputError
from ..model import GPT
from ..tokenizers import ByteTokenizer, Tokenizer
from .families import family_of_hf
from .weights import empty_gpt, fill, note_token_ids, to_hf, with_stored_head

# safetensors' names of the dtypes that a model may compute in
_DTYPE = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_pretrained(
    model: GPT,
    folder: Path | str,
    tokenizer: Tokenizer | None = None,
    *,
    chat_template: str | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and (with a tokenizer) ``AutoTokenizer`` open.

    Args:
        model: what to write: ``config.json`` and ``model.safetensors``.
        folder: made if need be; each file appears whole or not at all.
        tokenizer: its files go along.
        chat_template: of the tokenizer, Jinja source.
        special_tokens: what the template asks for, by name (``bos_token`` …).

    Raises:
        InputError: an architecture that transformers does not have, or a tokenizer with more ids than the
            model.
    """
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        ids = f"the tokenizer has {tokenizer.vocab_size} ids, the model {model.config.vocab_size}"
        raise InputError(f"{ids}: it is another's")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    theirs = to_hf(model)
    if tokenizer is not None:
        tokens = {
            name: text
            for name, text in (special_tokens or {}).items()
            if name != "eos_token" or text in _special_tokens(tokenizer)
        }
        if ends := _end_ids(model, tokenizer, tokens):  # else the model's own, if it has one
            theirs.config.eos_token_id = theirs.generation_config.eos_token_id = ends
        export_tokenizer(tokenizer, folder)
        if chat_template is not None:
            write_chat_template(folder, chat_template, tokens)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        with no_progress_bar():
            theirs.save_pretrained(temporary)
        usual = (Path(temporary) / "config.json").stat().st_mode
        for file in Path(temporary).iterdir():
            file.chmod(usual)  # safetensors' would be its owner's only
            file.replace(folder / file.name)


def _special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    found: dict[str, int] = getattr(tokenizer, "special_tokens", {})
    return found


def _end_ids(model: GPT, tokenizer: Tokenizer, tokens: Mapping[str, str]) -> int | list[int] | None:
    """What ends a text: a chat's answer ends in another token (``<|im_end|>``) than a document does."""
    special = _special_tokens(tokenizer)
    own = getattr(model, "hf_token_ids", {}).get("eos_token_id") or []
    named = special.get(tokens.get("eos_token", ""))
    own = [i for i in (own if isinstance(own, list) else [own]) if i in special.values()]
    ids = [i for i in dict.fromkeys([named, *own, tokenizer.eos_id]) if i is not None]
    return ids[0] if len(ids) == 1 else ids or None


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Loading and saving without transformers' bars."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def export_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that ``AutoTokenizer`` opens, giving the same ids.

    The byte tokenizer becomes a byte-pair encoding without a single merge.
    """
    (tokenizer.as_bpe() if isinstance(tokenizer, ByteTokenizer) else tokenizer).save(folder)


def load_pretrained(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> GPT:
    """A published model by its name on the hub, or one in a folder; weights from safetensors only.

    Weights are copied a few rows at a time, so little more than the model itself is ever held.

    Args:
        name_or_folder: a folder with ``config.json`` and safetensors, or a hub name such as ``gpt2``.
        dtype: of the weights, or its name (``"bfloat16"``); as they are in the file when ``None``.
        device: where to put them.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: nothing there, no safetensors, another architecture, or a tensor that does not fit.
    """
    if not str(name_or_folder):
        raise InputError("the name of the model is empty: give a folder, or a name on the hub")
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = download(str(name_or_folder), revision)
    theirs = _read_config(folder)
    family = family_of_hf(theirs)
    sources = _tensors(folder)
    stored = next(iter(sources.values())).dtype
    if stored is None:
        raise InputError(f"the weights in {folder} are of no dtype that a model computes in")
    config = with_stored_head(family.ours(theirs), family, sources)
    ours = empty_gpt(config, _dtype(dtype) or stored, torch.device(device))
    fill(ours, family, sources)
    note_token_ids(ours, theirs)
    return ours.eval()


def _dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if given is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype={given!r} is none that a model computes in; try 'bfloat16' or 'float32'")
    return found


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a model on the hub, fetched where it is not in the cache.

    The token comes from where huggingface_hub keeps it (``HF_TOKEN``, or ``hf auth login``), broken-off
    downloads go on, and with ``HF_HUB_OFFLINE=1`` only the cache is asked.

    Raises:
        InputError: it is not to be had, with the hub's reason.
    """
    from huggingface_hub import snapshot_download

    wanted = [
        "config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "tokenizer*",
        "vocab*",
        "merges.txt",
        "chat_template.jinja",
    ]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's errors share no base class
        reason = " ".join(str(error).split())
        raise InputError(f"{name!r} is no folder here, and not to be had from the hub: {reason}") from None


def _read_config(folder: Path) -> Any:
    from huggingface_hub.errors import StrictDataclassError  # a value of another type than the field's
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        own = folder / "best.pt"  # a run's folder, meant for what is in it
        raise InputError(f"no config.json in {folder}" + (f": give {own}" if own.is_file() else ""))
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, KeyError, ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(f"{folder}/config.json cannot be read: {' '.join(str(error).split())}") from None


def _tensors(folder: Path) -> dict[str, "InFile"]:
    """Every tensor of a folder's weights, by name, to be read when it is asked for."""
    from safetensors import SafetensorError, safe_open

    found: dict[str, InFile] = {}
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    if name in found:
                        raise InputError(f"{name} stands both in {found[name].file.name} and in {file.name}")
                    stored = opened.get_slice(name)
                    found[name] = InFile(
                        file, name, tuple(stored.get_shape()), _DTYPE.get(stored.get_dtype())
                    )
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged or no safetensors file: {error}") from None
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: others beside them may hold the same weights once more, or others.

    Raises:
        InputError: none; several, and no index that says which; or not all that the index names.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{index} names no weight files: {type(error).__name__}: {error}") from None
        if strange := [name for name in names if Path(name).name != name]:
            raise InputError(f"{index} names {strange[0]!r}, which does not lie in its folder")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputError(f"{folder} lacks {missing[0]}, which {index.name} names: fetch the model again")
        if names:
            return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"no .safetensors in {folder}; other weight files are not read: they can run code")
    if len(files) > 1:
        names = [file.name for file in files]
        raise InputError(
            f"{folder} holds {', '.join(names)}, and neither {whole.name} nor {index.name} says which to read"
        )
    return files


class InFile:
    """A tensor of a safetensors file, read from a memory map that is opened for each piece.

    Pages of a map count as memory while it is open: a map of the whole file, held until the end, would be a
    second copy of the model to whoever limits memory.
    """

    def __init__(self, file: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
        self.file, self.name, self.shape, self.dtype = file, name, shape, dtype

    def rows(self, start: int, stop: int) -> Tensor:
        """A copy of some rows."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as opened:
            tensor: Tensor = opened.get_slice(self.name)[start:stop]
            return tensor
