"""Checkpoints: one ``.pt`` file that holds a whole training state and is read without executing anything.

The file is a dict: ``config`` (of the model, as a plain dict), ``state_dict``, and whatever else training
needs (``optimizer``, ``step``, ``rng`` …). Writing is atomic and keeps the previous file beside the new one;
a file that turns out truncated or corrupt when read is replaced by that previous one.
"""

import lzma
import os
import pickle
import re
import warnings
import zipfile
import zlib
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .adapted import AdaptedConfig, AdaptedGPT
from .chat_template import read_chat_template
from .errors import CheckpointError, InputError
from .files import atomic_path
from .model import GPT, GPTConfig, untied
from .model.heads import TaskConfig, TaskModel
from .tokenizers import ByteTokenizer, Tokenizer, load


def save_checkpoint(
    model: nn.Module, path: Path | str, *, state_dict: dict[str, Any] | None = None, **extra: Any
) -> None:
    """Write ``model`` and ``extra`` to ``path``, atomically; an older file becomes ``NAME.prev.pt``.

    Args:
        model: its ``config`` and ``state_dict()`` are stored.
        path: the ``.pt`` file.
        state_dict: in place of the model's own, where its parameters are shared out over processes.
        extra: tensors, numbers (NumPy's too), strings, and dicts, lists or tuples of them.

    Raises:
        CheckpointError: the file cannot be written (disk full, no permission); the old one is untouched.
        ValueError: something else in ``extra``, which could not be read again without executing it.

    Example:
        >>> save_checkpoint(model, "runs/first/last.pt", step=100)  # doctest: +SKIP
    """
    path = Path(path)
    if "config" in extra:
        raise ValueError("config=… is the model's own: give yours another name")
    weights = model.state_dict() if state_dict is None else state_dict
    if any("_orig_mod." in name for name in weights):  # of what torch.compile wraps: no other model has it
        weights = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    config = model_config(model)
    if isinstance(config, GPTConfig):
        config = untied(config, weights)
    extra = {name: _plain(value, name) for name, value in extra.items()}
    content = {"config": _plain(asdict(config), "config"), "state_dict": weights, **extra}
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:  # as a file: a path would put its name into the archive
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists() and _is_intact(path):  # a damaged file must not replace a good previous one
                _keep(path)
        _note_intact(path)
    except (OSError, RuntimeError) as error:  # PyTorch's writer reports a full disk as a RuntimeError
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"cannot write {path}: {reason}; the previous checkpoint is untouched"
        ) from error


def _plain(value: Any, name: str) -> Any:
    """``value`` as ``weights_only`` can read it: NumPy's numbers become Python's, its arrays tensors."""
    if isinstance(value, np.generic):
        return _plain(value.item(), name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, dict):
        return {_plain(key, name): _plain(one, f"{name}[{key!r}]") for key, one in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_plain(one, name) for one in value)
    plain = (str, bytes, bool, int, float, complex, type(None), torch.device, torch.dtype, torch.Size)
    if isinstance(value, torch.Tensor) or type(value) in plain:
        return value
    raise ValueError(
        f"{name} is of {type(value).__name__}, which a checkpoint cannot hold: give tensors, numbers and "
        "texts, or dicts, lists and tuples of them"
    )


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``: nothing in the file is executed.

    Where the file is truncated or corrupt, a warning says so and the previous one is read instead.

    Returns:
        The dict that was saved; ``build_model`` makes a ``GPT`` of it.

    Raises:
        CheckpointError: no such file; no readable version of it; or one that asks to run code.
    """
    path = Path(path)
    previous = previous_path(path)
    if not path.exists():
        if not previous.exists():
            raise CheckpointError(f"no checkpoint at {path}")
        warnings.warn(f"{path} is missing; using the previous one, {previous}", stacklevel=2)
        return _read(previous, device)
    try:
        return _read(path, device)
    except _CorruptError as error:
        if not previous.exists():
            raise CheckpointError(f"{error}; there is no previous one to fall back to") from None
        warnings.warn(f"{error}; using the previous one, {previous}", stacklevel=2)
        return _read(previous, device)


def build_model(checkpoint: dict[str, Any]) -> nn.Module:
    """The model that a loaded checkpoint describes, in evaluation mode: a ``GPT``, or a ``TaskModel`` on one.

    An adapter's checkpoint gives a ``GPT`` too: its base is opened, and the adapter merged into it.

    Raises:
        CheckpointError: a field or tensor is missing or does not fit.
    """
    if is_adapter(checkpoint):
        return build_adapted(checkpoint).merged().eval()
    try:
        config = dict(checkpoint["config"])
        model: nn.Module
        if "gpt" in config:
            model = TaskModel(TaskConfig(**{**config, "gpt": GPTConfig(**config["gpt"])}))
        else:
            model = GPT(GPTConfig(**config))
        model.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the checkpoint does not describe a model of this library: {reason}") from None
    return model.eval()


def build_adapted(checkpoint: dict[str, Any]) -> AdaptedGPT:
    """The base and the adapter of an adapter's checkpoint, in evaluation mode.

    Raises:
        InputError: the base is not where it was, or is another model now.
        CheckpointError: a field or tensor is missing or does not fit.
    """
    config = AdaptedConfig(**checkpoint["config"])
    try:
        base, _, _ = _open_weights(config.base)  # its tokenizer may have been moved: the adapter has one
    except InputError as error:
        raise CheckpointError(
            f"the adapter's base cannot be opened ({error}): put it back, or merge the adapter's PEFT folder "
            "into a copy with `ai-learning export COPY --adapter FOLDER --merge`"
        ) from None
    model = AdaptedGPT(config, base)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()


def is_adapter(checkpoint: dict[str, Any]) -> bool:
    """Whether a loaded checkpoint holds an adapter and not a whole model."""
    return "lora" in checkpoint.get("config", {})


def load_gpt(path: Path | str, device: torch.device | str = "cpu") -> tuple[GPT, dict[str, Any]]:
    """The language model in a checkpoint (of a task model: the GPT inside it), and the checkpoint itself."""
    checkpoint = load_checkpoint(path, device)
    model = build_model(checkpoint).to(device)
    gpt = model.gpt if isinstance(model, TaskModel) else model
    assert isinstance(gpt, GPT)
    return gpt, checkpoint


def open_model(
    source: Path | str,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    *,
    tokenizer: Tokenizer | None = None,
) -> tuple[GPT, Tokenizer | None, dict[str, Any]]:
    """A language model and its tokenizer, whatever holds them.

    Args:
        source: a checkpoint (.pt), a folder that Hugging Face's ``save_pretrained`` wrote, or a hub name.
        device: where to put the model.
        revision: branch, tag or commit on the hub.
        tokenizer: taken in place of the model's own, which may have been moved: must be the same one.

    Returns:
        The model in evaluation mode, the tokenizer (``None`` where none is named), and what else was found
        there: the checkpoint's other contents, and the ``chat_template`` with its ``special_tokens``.

    Raises:
        InputError: nothing there that can be opened, or a tokenizer that is not the model's.
    """
    model, checkpoint, folder = _open_weights(source, device, revision)
    if checkpoint is not None:
        if tokenizer is not None:
            check_tokenizer(tokenizer, source, model.config.vocab_size, checkpoint.get("tokenizer"))
        elif checkpoint.get("tokenizer"):
            tokenizer = open_tokenizer(checkpoint, source)
        return model, tokenizer, _template_beside(folder / "tokenizer") | checkpoint
    named = any(
        (folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    )
    if tokenizer is None:
        return model, load(folder) if named else None, _template_beside(folder)
    own = None
    if named:
        with suppress(InputError):  # one that we cannot open is what another may be given for
            own = tokenizer_reference(load(folder))
    check_tokenizer(tokenizer, source, model.config.vocab_size, own)
    return model, tokenizer, _template_beside(folder)


def _open_weights(
    source: Path | str, device: torch.device | str = "cpu", revision: str | None = None
) -> tuple[GPT, dict[str, Any] | None, Path]:
    """The model in ``source``, its checkpoint (``None`` if in transformers' format), and its folder."""
    from .pretrained import load_pretrained
    from .pretrained.folders import download

    path = Path(source)
    if path.is_file() or path.suffix == ".pt":
        model, checkpoint = load_gpt(path, device)
        return model.eval(), checkpoint, path.parent
    if not path.is_dir() and (len(path.parts) > 2 or path.is_absolute()):
        raise InputError(f"no checkpoint at {source}")
    folder = path if path.is_dir() else download(str(source), revision)
    return load_pretrained(folder, device=device), None, folder


def check_tokenizer(
    tokenizer: Tokenizer, source: Path | str, vocab_size: int, reference: dict[str, str] | None
) -> None:
    """Refuse a tokenizer that is not the one of the model in ``source``: its text would be garbage.

    Args:
        tokenizer: the one that was given.
        source: of the model, for the message.
        vocab_size: of the model.
        reference: what the model says of its own tokenizer (``tokenizer_reference``), if anything.

    Raises:
        InputError: another fingerprint, or ids that the model does not have.
    """
    if tokenizer.vocab_size > vocab_size:
        sizes = f"{tokenizer.vocab_size:,} ids, {source} only {vocab_size:,}"
        raise InputError(f"the tokenizer has {sizes}: give the one it was trained with")
    # In Hugging Face's format the bytes are a byte-pair encoding without merges: the same ids.
    found = [tokenizer.fingerprint]
    if isinstance(tokenizer, ByteTokenizer):
        found.append(tokenizer.as_bpe().fingerprint)
    own = reference.get("fingerprint") if isinstance(reference, dict) else None
    if own is not None and own not in found:
        raise InputError(
            f"the tokenizer given is not that of {source} (fingerprint {found[0]}, expected {own}): "
            "leave it out, or give the same one"
        )


def open_with_tokenizer(
    source: Path | str, device: torch.device | str = "cpu"
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """`open_model` for callers that need the tokenizer.

    Raises:
        InputError: none is named.
    """
    model, tokenizer, found = open_model(source, device)
    if tokenizer is None:
        raise InputError(f"{source} names no tokenizer")
    return model, tokenizer, found


def _template_beside(tokenizer_folder: Path) -> dict[str, Any]:
    """The chat template there, by the names that checkpoints have for it; empty where there is none."""
    try:
        found = read_chat_template(tokenizer_folder)
    except InputError as error:  # the model can be used without it
        warnings.warn(f"left out: {error}", stacklevel=3)
        return {}
    return {} if found is None else {"chat_template": found[0], "special_tokens": found[1]}


def tokenizer_reference(tokenizer: Tokenizer, folder: str = "tokenizer") -> dict[str, str]:
    """A checkpoint's entry about its tokenizer: class, fingerprint, and the folder beside the checkpoint."""
    return {
        "class": type(tokenizer).__name__,
        "fingerprint": tokenizer.fingerprint,
        "folder": folder,
    }


def open_tokenizer(checkpoint: dict[str, Any], path: Path | str) -> Tokenizer:
    """The tokenizer that the checkpoint at ``path`` was trained with.

    Raises:
        CheckpointError: it names none, its entry is not complete, or another one lies in its place.
    """
    reference = checkpoint.get("tokenizer")
    if reference is None:
        raise CheckpointError(f"{path} names no tokenizer: give one with --tokenizer")
    wanted = tokenizer_reference(ByteTokenizer()).keys()
    if not isinstance(reference, dict) or wanted - reference.keys():
        lacking = ", ".join(key for key in wanted if not isinstance(reference, dict) or key not in reference)
        raise CheckpointError(f"the entry 'tokenizer' of {path} lacks {lacking}: give one with --tokenizer")
    if reference["class"] == "ByteTokenizer":
        return ByteTokenizer()
    tokenizer = load(Path(path).parent / reference["folder"])
    if tokenizer.fingerprint != reference["fingerprint"]:
        found = f"{tokenizer.fingerprint}, expected {reference['fingerprint']}"
        raise CheckpointError(f"the tokenizer beside {path} is not the model's (fingerprint {found})")
    return tokenizer


def model_config(model: nn.Module) -> Any:
    """The dataclass a model was made from.

    Raises:
        TypeError: it has none.
    """
    config = getattr(model, "config", None)
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{type(model).__name__} has no dataclass `config` to write into a checkpoint")
    return config


def gpt_config(model: nn.Module) -> Any:
    """The language model's config: the model's own, or the GPT's inside a task model's."""
    config = model_config(model)
    return getattr(config, "gpt", config)


def previous_path(path: Path) -> Path:
    """Where ``save_checkpoint`` keeps the file that stood at ``path`` before."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


class _CorruptError(CheckpointError):
    """A damaged file, for which the previous one may be read; one that asks to run code is refused."""


# What reading a damaged archive can raise.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, OSError, ValueError, KeyError,
    NotImplementedError,
)  # fmt: skip


def _keep(path: Path) -> None:
    """Make the old file reachable as the previous one, leaving ``path`` in place until it is replaced."""
    previous = previous_path(path)
    spare = previous.with_name(f".{previous.name}.tmp")
    with suppress(FileNotFoundError):
        spare.unlink()
    try:
        os.link(path, spare)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
    else:
        os.replace(spare, previous)


# Files that this process wrote or read whole, with size and time of change: they are not checked again.
_intact: dict[Path, tuple[int, int]] = {}


def _note_intact(path: Path) -> None:
    status = path.stat()
    _intact[path.absolute()] = (status.st_size, status.st_mtime_ns)


def _is_intact(path: Path) -> bool:
    status = path.stat()
    if _intact.get(path.absolute()) == (status.st_size, status.st_mtime_ns):
        return True
    try:
        _check_records(path)
    except _DAMAGE:
        return False
    return True


def _check_records(path: Path) -> None:
    """Compare the checksums, which ``torch.load`` does not: a flipped bit would be a wrong weight."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            # PyTorch's reader would take such a record for a folder or for compressed, and read nothing.
            if (
                record.compress_type != zipfile.ZIP_STORED
                or record.flag_bits & 1
                or record.external_attr & 16
            ):
                raise _CorruptError(f"{path} is corrupt (entry of {record.filename})")
        if damaged := archive.testzip():
            raise _CorruptError(f"{path} is corrupt (checksum of {damaged})")


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    try:
        _check_records(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else " ".join(str(error).split())[-160:]
        raise CheckpointError(f"{path} was refused: it asks to run code ({what})") from None
    except (CheckpointError, PermissionError, IsADirectoryError):
        raise
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:160]
        raise _CorruptError(f"{path} is truncated, corrupt or no checkpoint ({reason})") from None
    if not isinstance(content, dict) or not {"config", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path} is no checkpoint of this library: it lacks config and state_dict")
    _note_intact(path)
    return content
