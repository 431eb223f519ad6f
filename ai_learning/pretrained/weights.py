"""Copying weights between a transformers model and ours, a piece at a time, every fault by its name."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..model import GPT, CausalSelfAttention, GPTConfig, RotaryEmbedding, causal_mask, untied
from .families import Family, family_of, family_of_hf

_PIECE = 8 * 2**20  # bytes read at once: what is held beside the model


class Stored(Protocol):
    """A tensor that is read row by row."""

    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive); a tensor without axes as it is."""


class InMemory:
    """A tensor of a state dict."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def rows(self, start: int, stop: int) -> Tensor:
        """A view."""
        return self.tensor[start:stop]


def from_hf(model: Any) -> GPT:
    """A ``GPT`` with a copy of the weights of a transformers language model.

    Args:
        model: ``GPT2LMHeadModel``, ``OpenAIGPTLMHeadModel``, ``LlamaForCausalLM`` or ``Qwen3ForCausalLM``;
            unchanged.

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
    if isinstance(model, GPT) or not isinstance(model, nn.Module):
        raise InputError(f"from_hf takes a model of transformers, not {type(model).__name__}")
    first = next(model.parameters())
    family = family_of_hf(model.config)
    sources = {name: InMemory(tensor) for name, tensor in model.state_dict().items()}
    config = with_stored_head(family.ours(model.config), family, sources)
    ours = empty_gpt(config, first.dtype, first.device)
    fill(ours, family, sources)
    note_token_ids(ours, model.config)
    return ours.eval()


def note_token_ids(ours: GPT, config: Any) -> None:
    """Keep beside a model which of its ids mean something, for `to_hf`: our own configuration has no need."""

    def is_there(value: Any) -> bool:
        ids = value if isinstance(value, list) else [value]  # Llama 3 has several that end a text
        return all(isinstance(token, int) and 0 <= token < ours.config.vocab_size for token in ids)

    found = {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    setattr(ours, "hf_token_ids", {name: ids for name, ids in found.items() if is_there(ids)})  # noqa: B010


@torch.no_grad()
def to_hf(model: GPT) -> Any:
    """The transformers model with a copy of the weights; biases that ours lacks become zeros.

    A model that came from transformers still has the ids there that begin, end and fill up a text.

    Raises:
        InputError: an architecture that transformers does not have, or layers that are not plain ones.
    """
    if not isinstance(model, GPT):
        raise InputError(f"to_hf takes a GPT of ours, not {type(model).__name__}")
    state = model.state_dict()
    own = untied(model.config, state)
    family = family_of(own)
    first = next(model.parameters())
    config = family.theirs(own)
    for name, ids in getattr(model, "hf_token_ids", {}).items():
        setattr(config, name, ids)
    theirs = family.model_class()(config).to(device=first.device, dtype=first.dtype)
    targets = {_short(name): tensor for name, tensor in theirs.state_dict().items() if not _is_buffer(name)}
    for name, source in state.items():
        source = source.T if family.turned(name) else source
        start = 0
        for part, rows in family.parts(name, model.config):
            stop = len(source) if rows is None else start + rows
            target, own_rows = targets.pop(part, None), source[start:stop]
            if target is None or target.shape != own_rows.shape:
                raise _not_plain(name)
            target.copy_(own_rows)
            start = stop
    for part, target in targets.items():
        if not part.endswith(".bias"):
            raise _not_plain(part)
        target.zero_()
    return theirs.eval()


def _not_plain(name: str) -> InputError:
    return InputError(
        f"{name} is of a layer that is not as it was made: take adapters off first "
        "(eject_lora with merge=True), and export before weights are made 4 bits"
    )


def empty_gpt(config: GPTConfig, dtype: torch.dtype, device: torch.device) -> GPT:
    """A ``GPT`` with memory but no values yet: no time spent on an initialisation to be overwritten."""
    with torch.device("meta"):
        model = GPT(config)
    model.to(dtype).to_empty(device=device)
    if config.tie_weights:
        model.lm_head.weight = model.wte.weight
    for module in model.modules():  # buffers are no weights: made again
        if isinstance(module, CausalSelfAttention):
            module.mask.copy_(causal_mask(len(module.mask)))
        elif isinstance(module, RotaryEmbedding):
            fresh = RotaryEmbedding(config.head_size, config.rope_theta, config.rope_scaling)
            module.inv_freq = fresh.inv_freq.to(device)
    return model


def with_stored_head(config: GPTConfig, family: Family, sources: Mapping[str, Stored]) -> GPTConfig:
    """The config, but untied where a head is stored that is not the embedding: transformers' rule."""
    by_name = {_short(name): stored for name, stored in sources.items()}
    ((embedding, _),) = family.parts("wte.weight", config)
    head, embedded = by_name.get("lm_head.weight"), by_name.get(embedding)
    if not config.tie_weights or head is None or embedded is None or _are_equal(head, embedded):
        return config
    warnings.warn(
        "lm_head.weight is not the embedding, though the configuration ties them: they stay two", stacklevel=3
    )
    return replace(config, tie_weights=False)


def _are_equal(a: Stored, b: Stored) -> bool:
    """Whether two matrices hold the same numbers, NaN included; of other shapes `fill` complains."""
    if a.shape != b.shape or len(a.shape) != 2:
        return a.shape == b.shape
    at_once = max(1, _PIECE // (8 * max(1, a.shape[1])))
    for start in range(0, a.shape[0], at_once):
        mine, other = (stored.rows(start, min(start + at_once, a.shape[0])).double() for stored in (a, b))
        if not torch.allclose(mine, other, rtol=0, atol=0, equal_nan=True):
            return False
    return True


@torch.no_grad()
def fill(model: GPT, family: Family, sources: Mapping[str, Stored]) -> None:
    """Copy tensors with transformers' names into ``model``, all of them and nothing else.

    Raises:
        InputError: a tensor that is missing, left over or of another shape, by its name.
    """
    by_name = {_short(name): stored for name, stored in sources.items() if not _is_buffer(name)}
    state = model.state_dict()
    if model.config.tie_weights:
        state.pop("lm_head.weight")
        by_name.pop("lm_head.weight", None)
    plan = {name: list(family.parts(name, model.config)) for name in state}
    wanted = {part for parts in plan.values() for part, _ in parts}
    if missing := wanted - by_name.keys():
        raise InputError(f"the model lacks {min(missing)}")
    if extra := by_name.keys() - wanted:
        raise InputError(f"the model has {min(extra)}, which ours has no place for")
    for name, target in state.items():
        target = target.T if family.turned(name) else target
        start = 0
        for part, rows in plan[name]:
            stop = len(target) if rows is None else start + rows
            _copy(target[start:stop], by_name[part], part)
            start = stop


def _copy(target: Tensor, source: Stored, name: str) -> None:
    if source.shape != tuple(target.shape):
        raise InputError(f"{name} has shape {source.shape}, expected {tuple(target.shape)}")
    at_once = max(1, _PIECE // max(1, target[0].numel() * 4))
    for start in range(0, len(target), at_once):
        stop = min(start + at_once, len(target))
        target[start:stop].copy_(source.rows(start, stop))


def _short(name: str) -> str:
    """A name without the prefix that some files have and others do not."""
    return name.removeprefix("transformer.").removeprefix("model.")


def _is_buffer(name: str) -> bool:
    return name.endswith((".attn.bias", ".attn.masked_bias", "position_ids", "rotary_emb.inv_freq"))
