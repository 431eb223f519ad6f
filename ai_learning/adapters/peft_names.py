"""What a model's layers are called in transformers, where PEFT looks for them.

Our GPT-1 and GPT-2 differ from transformers' in a prefix, and in layers that are `Conv1D` there, with the
weight stored (in, out). Our Llama and Qwen 3 have other names, and one matrix where transformers has three:
queries, keys and values. Which one a model is shows in the module itself. Any other module keeps its names.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..hf_names import CONV1D, GPT1_EMBEDDINGS, LLAMA, LLAMA_C_ATTN, renamed
from .config import by_pattern
from .layers import weight_of
from .linear import is_conv1d

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""before every name in PEFT's files"""
LORA_KEY = re.compile(r"(.+)\.(lora_[AB]\.weight|lora_embedding_[AB]|lora_magnitude_vector)$")
DEFAULT_OF_PEFT = 8
"""PEFT's default of ``r`` and ``lora_alpha``"""
_UPDATE = {"lora_A.weight", "lora_B.weight", "lora_magnitude_vector"}
_COMPILED = "_orig_mod"  # the module that `torch.compile` wraps around another; its name is not in files


@dataclass(frozen=True)
class Part:
    """A tensor of a file that is only a part of one of our tensors."""

    key: str
    """key of our tensor; its layers still have transformers' names"""
    where: tuple[slice, ...]
    """the part of our tensor that it fills"""
    factor: float = 1.0
    """by which it is multiplied"""


@dataclass
class Joined:
    """A file's tensors and config, after those that are one tensor in our model were joined."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    """by the file's keys, where each joined tensor went"""
    alike: list[list[str]] = field(default_factory=list)
    """keys whose tensors were found equal, which ``parts`` relies on"""


class Names:
    """Translates names between our model ("here") and the same model in transformers ("there").

    This class is for any other model, whose names and tensors are the same on both sides.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        compiled = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == _COMPILED]
        self._compiled = {_plain(path): path for path in compiled}

    def there(self, path: str) -> str:
        """The path in transformers of our ``path``."""
        return self._there(_plain(path))

    def here(self, path: str) -> str:
        """Our path of transformers' ``path``."""
        path = self._here(path)
        around = [plain for plain in self._compiled if not plain or path.startswith(f"{plain}.")]
        if not around:
            return path
        innermost = max(around, key=len)
        return f"{self._compiled[innermost]}.{path[len(innermost) :].removeprefix('.')}"

    def layers_there(self, path: str) -> list[str]:
        """The layers in transformers that together are our layer at ``path``."""
        return [self.there(path)]

    def is_transposed(self, path: str) -> bool:
        """Whether transformers stores the linear weight at ``path`` transposed, (in, out)."""
        return False

    def tensor(self, path: str, tensor: Tensor) -> Tensor:
        """The weight at ``path`` from one side in the layout of the other."""
        return tensor.t() if self.is_transposed(path) and tensor.dim() == 2 else tensor

    def parted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Split those of our tensors that are several in transformers."""
        return state

    def joined(self, weights: dict[str, Tensor], config: dict[str, Any]) -> Joined:
        """Join a file's tensors that are one in our model, and adapt its config."""
        return Joined(weights, config)

    def _there(self, path: str) -> str:
        return path

    def _here(self, path: str) -> str:
        return path


class GPTNames(Names):
    """Our GPT-1 and GPT-2: ``transformer.`` before all but the head, `Conv1D` in the blocks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        blocks: Any = getattr(model, _COMPILED, model).h
        # transformers' GPT-1, the only post-norm model, has other names for the embeddings.
        post_norm = len(blocks) > 0 and getattr(blocks[0], "norm_first", True) is False
        self._embeddings = GPT1_EMBEDDINGS if post_norm else {}

    def is_transposed(self, path: str) -> bool:
        """See `Names`."""
        return CONV1D.fullmatch(_plain(path)) is not None

    def _there(self, path: str) -> str:
        if path.startswith("lm_head"):
            return path
        return f"transformer.{renamed(path, self._embeddings)}"

    def _here(self, path: str) -> str:
        return renamed(path.removeprefix("transformer."), {b: a for a, b in self._embeddings.items()})


class LlamaNames(Names):
    """Our Llama and Qwen 3, whose ``c_attn`` is ``q_proj``, ``k_proj`` and ``v_proj`` in transformers."""

    def layers_there(self, path: str) -> list[str]:
        """See `Names`: three layers for c_attn."""
        there = self.there(path)
        head, _, name = there.rpartition(".")
        return [f"{head}.{kind}" for kind in LLAMA_C_ATTN] if name == "c_attn" else [there]

    def parted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Names`: tensors with a row for each output of c_attn are cut; A is copied to all three."""
        found: dict[str, Tensor] = {}
        for key, tensor in state.items():
            before, dot, after = key.partition(".c_attn.")
            if not dot:
                found[key] = tensor
                continue
            parts = [tensor] * 3 if after == "lora_A.weight" else tensor.split(self._rows(before), dim=0)
            for kind, part in zip(LLAMA_C_ATTN, parts, strict=True):
                found[f"{before}.{kind}.{after}"] = part.clone(memory_format=torch.contiguous_format)
        return found

    def joined(self, weights: dict[str, Tensor], config: dict[str, Any]) -> Joined:
        """See `Names`. Three updates become one: its rank is the sum of theirs, its B block-diagonal."""
        key_of = re.compile(rf"(.+\.self_attn)\.({'|'.join(LLAMA_C_ATTN)})\.(.+)$")
        found = Joined(dict(weights), config)
        layers: dict[str, dict[str, dict[str, Tensor]]] = {}
        for key in weights:
            if match := key_of.match(key):
                layers.setdefault(match[1], {}).setdefault(match[2], {})[match[3]] = found.weights.pop(key)
        alphas: dict[str, float] = {}
        for before, by_kind in layers.items():
            rows = dict(zip(LLAMA_C_ATTN, self._rows(before), strict=True))
            self._join_whole(found, before, by_kind, rows)
            updates = {
                kind: by_kind[kind]
                for kind in LLAMA_C_ATTN  # in the order of the rows
                if {"lora_A.weight", "lora_B.weight"} <= by_kind.get(kind, {}).keys()
            }
            for kind, tensors in by_kind.items():  # those of no update stay, and are reported
                rest = tensors.keys() - (_UPDATE if kind in updates else set())
                found.weights |= {f"{before}.{kind}.{name}": tensors[name] for name in rest}
            if updates:
                self._check(before, updates, rows)
                alphas |= self._join_updates(found, before, updates, rows)
        found.config = {**config, "alpha_pattern": alphas | dict(config.get("alpha_pattern") or {})}
        return found

    def _join_whole(
        self, found: Joined, before: str, by_kind: dict[str, dict[str, Tensor]], rows: Mapping[str, int]
    ) -> None:
        """Move weights and biases of all three layers from ``by_kind`` into ``found``, as c_attn's."""
        for name in ("weight", "bias", "base_layer.weight", "base_layer.bias"):
            if all(name in by_kind.get(kind, {}) for kind in LLAMA_C_ATTN):
                key = f"{before}.c_attn.{name}"
                found.weights[key] = torch.cat([by_kind[kind].pop(name) for kind in LLAMA_C_ATTN])
                found.parts |= {f"{before}.{k}.{name}": Part(key, (at,)) for k, at in _blocks(rows).items()}

    def _join_updates(
        self, found: Joined, before: str, updates: Mapping[str, Mapping[str, Tensor]], rows: Mapping[str, int]
    ) -> dict[str, float]:
        """Put the joined update of c_attn into ``found``; return the ``alpha_pattern`` it needs."""
        path, whole = before.removeprefix(PREFIX), f"{before}.c_attn"
        ranks = {kind: len(tensors["lora_A.weight"]) for kind, tensors in updates.items()}
        scales = {kind: _scaling(found.config, f"{path}.{kind}", ranks[kind]) for kind in updates}
        scaling = next((scale for scale in scales.values() if scale), 1.0)
        all_A = {kind: tensors["lora_A.weight"] for kind, tensors in updates.items()}
        A = next(iter(all_A.values()))
        is_one = len(updates) == len(rows) and set(scales.values()) == {scaling}
        if is_one and all(torch.equal(A, other) for other in all_A.values()):  # as `parted` writes it
            r, columns = len(A), dict.fromkeys(updates, slice(None))
            found.alike.append([f"{before}.{kind}.lora_A.weight" for kind in updates])
        else:
            r, columns = sum(ranks.values()), _blocks(ranks)
        tensors = {
            "lora_A.weight": A.new_zeros(r, A.shape[1]),
            "lora_B.weight": A.new_zeros(sum(rows.values()), r),
        }
        magnitudes = [
            m for update in updates.values() if (m := update.get("lora_magnitude_vector")) is not None
        ]
        if magnitudes:
            layer = self.model.get_submodule(self.here(f"{path}.c_attn"))
            lengths = torch.linalg.vector_norm(self._frozen(layer).float(), dim=1)
            tensors["lora_magnitude_vector"] = lengths.to(
                torch.promote_types(magnitudes[0].dtype, lengths.dtype)
            )
        for kind, update in updates.items():
            at, column = _blocks(rows)[kind], columns[kind]
            parts = {
                "lora_A.weight": Part(f"{whole}.lora_A.weight", (column,)),
                "lora_B.weight": Part(f"{whole}.lora_B.weight", (at, column), scales[kind] / scaling),
                "lora_magnitude_vector": Part(f"{whole}.lora_magnitude_vector", (at,)),
            }
            for name in update.keys() & parts.keys():
                tensors[name][parts[name].where] = update[name] * parts[name].factor
                found.parts[f"{before}.{kind}.{name}"] = parts[name]
        found.weights |= {f"{whole}.{name}": tensor for name, tensor in tensors.items()}
        return {
            re.escape(f"{path}.c_attn"): scaling * (math.sqrt(r) if found.config.get("use_rslora") else r)
        }

    def _rows(self, before: str) -> list[int]:
        """How many outputs of c_attn are queries, keys and values; ``before`` is a key up to the layer."""
        path = before.removeprefix(PREFIX)
        try:
            attention: Any = self.model.get_submodule(self.here(path))
        except AttributeError:
            raise InputError(f"the adapter has weights for {path!r}, which the model does not have") from None
        heads = (attention.n_head, attention.kv_heads, attention.kv_heads)
        return [n * attention.head_size for n in heads]

    def _check(
        self, before: str, updates: Mapping[str, Mapping[str, Tensor]], rows: Mapping[str, int]
    ) -> None:
        """Raise InputError where an update's matrices do not fit c_attn, or each other."""
        layer: Any = self.model.get_submodule(self.here(f"{before.removeprefix(PREFIX)}.c_attn"))
        for kind, tensors in updates.items():
            A, B = tensors["lora_A.weight"], tensors["lora_B.weight"]
            if A.dim() != 2 or A.shape[1] != layer.in_features or B.shape != (rows[kind], len(A)):
                raise InputError(
                    f"{before}.{kind}: lora_A has shape {tuple(A.shape)} and lora_B {tuple(B.shape)}, but it "
                    f"is {layer.in_features} → {rows[kind]} wide"
                )
            m = tensors.get("lora_magnitude_vector")
            if m is not None and m.shape != (rows[kind],):
                raise InputError(
                    f"{before}.{kind}: lora_magnitude_vector has shape {tuple(m.shape)}, but the layer has "
                    f"{rows[kind]} outputs"
                )

    def _frozen(self, layer: nn.Module) -> Tensor:
        layer = getattr(layer, "base_layer", layer)
        dequantize = getattr(layer, "dequantize", None)
        return weight_of(layer) if dequantize is None else dequantize()

    def _there(self, path: str) -> str:
        if path.startswith("lm_head"):
            return path
        block = re.match(r"h\.(\d+)(?:\.|$)(.*)", path)
        before, rest = (f"model.layers.{block[1]}", block[2]) if block else ("model", path)
        return ".".join(filter(None, [before, renamed(rest, LLAMA)]))

    def _here(self, path: str) -> str:
        path = path.removeprefix("model.")
        block = re.match(r"layers\.(\d+)(?:\.|$)(.*)", path)
        before, rest = (f"h.{block[1]}", block[2]) if block else ("", path)
        return ".".join(filter(None, [before, renamed(rest, {b: a for a, b in LLAMA.items()})]))


def names_of(model: nn.Module) -> Names:
    """The translation that fits a model."""
    plain = getattr(model, _COMPILED, model)
    children = {name for name, _ in plain.named_children()}
    if not {"wte", "h", "ln_f"} <= children or "transformer" in children:
        return Names(model)
    # transformers' own GPT2Model has these children too, but keeps Conv1D in its blocks.
    if any(is_conv1d(module) for module in plain.modules()):
        return Names(model)
    if "wpe" in children:
        return GPTNames(model)
    is_gated = any(path.endswith(".c_gate") for path, _ in plain.named_modules())
    return LlamaNames(model) if is_gated else Names(model)


def _plain(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _COMPILED)


def _scaling(config: Mapping[str, Any], path: str, r: int) -> float:
    """``s``, the factor of an update, as PEFT computes it for the layer at ``path``."""
    usual = DEFAULT_OF_PEFT if config.get("lora_alpha") is None else config["lora_alpha"]
    alpha = by_pattern(config.get("alpha_pattern") or {}, path, usual)
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def _blocks(sizes: Mapping[str, int]) -> dict[str, slice]:
    """The slice of each name, when blocks of these sizes lie one after the other."""
    ends = list(itertools.accumulate(sizes.values()))
    return {name: slice(end - n, end) for (name, n), end in zip(sizes.items(), ends, strict=True)}
