"""Hugging Face's weights in our classes: the published models, run by the code you read.

GPT-2 in transformers stores its projections as ``Conv1D`` (input × output); ours are ``nn.Linear``
(output × input), so those four matrices a block are transposed. All other names are the same.
"""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .model import GPT, CausalSelfAttention, GPTConfig, causal_mask

_CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
# transformers' names of the same arithmetic; GPT-1's "gelu" is the tanh approximation
_ACTIVATION = {"gelu_new": "gelu_new", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_new"}


def config_from_hf(config: Any) -> GPTConfig:
    """The ``GPTConfig`` of a transformers ``GPT2Config`` or ``OpenAIGPTConfig``.

    Raises:
        InputError: another architecture, or a switch that ours does not have.
    """
    if config.model_type == "gpt2":
        if config.n_inner not in (None, 4 * config.n_embd):
            raise InputError(f"n_inner={config.n_inner} is not supported: only 4 × n_embd")
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise InputError("attention scaled otherwise than by 1/√D is not supported")
        activation, dropout = _ACTIVATION.get(config.activation_function), config.resid_pdrop
    elif config.model_type == "openai-gpt":
        activation, dropout = {**_ACTIVATION, "gelu": "gelu_new"}.get(config.afn), config.resid_pdrop
    else:
        raise InputError(
            f"model type {config.model_type!r} is not supported: give a gpt2 or openai-gpt model"
        )
    if activation is None:
        raise InputError(f"an activation of {config} is not supported: only {', '.join(_ACTIVATION)}")
    return GPTConfig(
        vocab_size=config.vocab_size,
        block_size=config.n_positions,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        dropout=dropout,
        norm_first=config.model_type == "gpt2",
        activation=activation,
        tie_weights=config.tie_word_embeddings,
        layer_norm_eps=config.layer_norm_epsilon,
    )


def config_to_hf(config: GPTConfig) -> Any:
    """The transformers config of the same architecture: ``GPT2Config``, or for post-norm ``OpenAIGPTConfig``.

    Raises:
        InputError: a combination that neither has.
    """
    import transformers

    sizes = {
        "vocab_size": config.vocab_size,
        "n_positions": config.block_size,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": config.layer_norm_eps,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if config.norm_first:
        return transformers.GPT2Config(activation_function=config.activation, **sizes)
    if config.activation == "gelu":
        raise InputError("a post-norm GPT with activation='gelu' has no counterpart in transformers")
    return transformers.OpenAIGPTConfig(
        afn={"gelu_new": "gelu"}.get(config.activation, config.activation), **sizes
    )


def from_hf(model: Any) -> GPT:
    """A ``GPT`` with a copy of the weights of ``GPT2LMHeadModel`` or ``OpenAIGPTLMHeadModel``.

    Args:
        model: the transformers model; unchanged.

    Returns:
        In evaluation mode, in the model's dtype, on its device.

    Raises:
        InputError: another architecture; a missing, extra or mis-shaped tensor, by its name.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> theirs = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16))
        >>> from_hf(theirs).config.n_layer
        1
    """
    first = next(model.parameters())
    theirs = model.state_dict()
    ours = _empty_gpt(config_from_hf(model.config), first.dtype, first.device)
    _fill(ours, {name: partial(theirs.get, name) for name in theirs})
    return ours.eval()


@torch.no_grad()
def to_hf(model: GPT) -> Any:
    """The transformers model with a copy of the weights; biases that ours lacks become zeros.

    Raises:
        InputError: an architecture that transformers does not have.
    """
    import transformers

    config = config_to_hf(model.config)
    kind = transformers.GPT2LMHeadModel if model.config.norm_first else transformers.OpenAIGPTLMHeadModel
    first = next(model.parameters())
    theirs = kind(config).to(device=first.device, dtype=first.dtype)
    ours = model.state_dict()
    for name, target in theirs.state_dict().items():
        if _is_buffer(name):
            continue
        source = ours.get(our_name(name))
        if source is None:
            target.zero_()
        else:
            target.copy_(source.T if _CONV1D.search(our_name(name)) else source)
    return theirs.eval()


def save_pretrained(model: GPT, folder: Path | str, tokenizer: Any = None) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and (with a tokenizer) ``AutoTokenizer`` open.

    Args:
        model: what to write: ``config.json`` and ``model.safetensors``.
        folder: made if need be; each file appears whole or not at all.
        tokenizer: one with ``save(folder)``; its files go along.

    Raises:
        InputError: an architecture that transformers does not have.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    theirs = to_hf(model)
    if tokenizer is not None:
        theirs.config.eos_token_id = tokenizer.eos_id
        theirs.generation_config.eos_token_id = tokenizer.eos_id
        tokenizer.save(folder)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        theirs.save_pretrained(temporary)
        for file in Path(temporary).iterdir():
            file.replace(folder / file.name)


def load_pretrained(
    name_or_folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> GPT:
    """A published model by its name on the hub, or one in a folder; weights from safetensors only.

    Tensors are copied one by one from a memory map, so little more than the model itself is ever held.

    Args:
        name_or_folder: a folder with ``config.json`` and safetensors, or a hub name such as ``gpt2``.
        dtype: of the weights; as they are in the file when ``None``.
        device: where to put them.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: nothing there, no safetensors, another architecture, or a tensor that does not fit.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = _download(str(name_or_folder), revision)
    config = _read_config(folder)
    sources = _tensors(folder)
    with torch.inference_mode():
        stored = next(iter(sources.values()))().dtype
    ours = _empty_gpt(config, dtype or stored, torch.device(device))
    _fill(ours, sources)
    return ours.eval()


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    wanted = [
        "config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "tokenizer*",
        "vocab*",
        "merges.txt",
    ]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's errors share no base class
        reason = " ".join(str(error).split())
        raise InputError(f"{name!r} is no folder here, and not to be had from the hub: {reason}") from None


def _read_config(folder: Path) -> GPTConfig:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InputError(f"no config.json in {folder}")
    try:
        return config_from_hf(AutoConfig.from_pretrained(folder))
    except (OSError, KeyError) as error:
        raise InputError(f"{folder}/config.json cannot be read: {' '.join(str(error).split())}") from None


def _tensors(folder: Path) -> dict[str, Callable[[], Tensor]]:
    """Every tensor of a folder's safetensors files, by name, to be read when it is asked for."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"no .safetensors in {folder}; other weight files are not read: they can run code")

    def reader(file: Path, name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(file, framework="pt") as opened:  # closed again: the map's pages are given back
                tensor: Tensor = opened.get_tensor(name)
                return tensor

        return read

    found: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= {name: reader(file, name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise InputError(f"{file} is damaged or no safetensors file: {error}") from None
    return found


def _empty_gpt(config: GPTConfig, dtype: torch.dtype, device: torch.device) -> GPT:
    """A ``GPT`` with memory but no values yet: no time spent on an initialisation to be overwritten."""
    with torch.device("meta"):
        model = GPT(config)
    model.to(dtype).to_empty(device=device)
    if config.tie_weights:
        model.lm_head.weight = model.wte.weight
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.mask.copy_(causal_mask(config.block_size))
    return model


@torch.no_grad()
def _fill(model: GPT, sources: dict[str, Callable[[], Tensor]]) -> None:
    """Copy tensors with transformers' names into ``model``, all of them and nothing else."""
    by_name = {our_name(name): read for name, read in sources.items() if not _is_buffer(name)}
    state = model.state_dict()
    if model.config.tie_weights and "wte.weight" in by_name:
        state.pop("lm_head.weight")
        by_name.pop("lm_head.weight", None)
    if missing := state.keys() - by_name.keys():
        raise InputError(f"the model lacks {min(missing)}")
    if extra := by_name.keys() - state.keys():
        raise InputError(f"the model has {min(extra)}, which ours has no place for")
    for name, target in state.items():
        source = by_name[name]()
        source = source.T if _CONV1D.search(name) else source
        if source.shape != target.shape:
            raise InputError(f"{name} has shape {tuple(source.shape)}, expected {tuple(target.shape)}")
        target.copy_(source)


def our_name(name: str) -> str:
    """Our name of a transformers parameter."""
    name = name.removeprefix("transformer.")
    return name.replace("tokens_embed.", "wte.").replace("positions_embed.", "wpe.")  # GPT-1's names


def _is_buffer(name: str) -> bool:
    return name.endswith((".attn.bias", ".attn.masked_bias", "position_ids"))
