"""Swapping PEFT's files of one layout: another file like the last goes straight into the adapter's tensors.

To interpret a file (`peft`) takes longer than to copy it. So where its tensors went is kept, which holds for
every file with the same config and the same header.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config import LoRAConfig
from .layers import LoRALayer
from .peft_names import CONFIG_FILE, LORA_KEY, PREFIX, WEIGHTS_FILE, Joined, Names, Part
from .registry import adapter_names, adapter_tensors, registry_of, wrapped_layers

_SAFETENSORS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True)
class _Piece:
    """Where a file's tensor goes: named by module and attribute, as the tensor itself may be exchanged."""

    held: dict[str, Any]
    attribute: str
    where: tuple[slice, ...]  # () is all of it
    factor: float
    start: int  # first and last byte
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    is_transposed: bool

    def source(self, data: Tensor) -> Tensor:
        tensor = data[self.start : self.stop].view(self.dtype).view(self.shape)
        if self.factor != 1.0:
            tensor = tensor * self.factor
        return tensor.t() if self.is_transposed else tensor

    def target(self) -> Tensor:
        tensor: Tensor = self.held[self.attribute]
        return tensor[self.where] if self.where else tensor


@dataclass
class _Swap:
    """Where the tensors of a file go: good for every file with the same config and the same header."""

    config: bytes
    header: bytes
    n_bytes: int
    pieces: list[_Piece]
    alike: list[list[slice]]  # bytes that must be the same


def remember(model: nn.Module, folder: Path, name: str, names: Names, joined: Joined) -> None:
    """Note how the file just loaded was laid out: the next like it is copied without being interpreted."""
    swaps = registry_of(model).swaps
    swaps.pop(name, None)
    read = _read_raw(folder)
    if read is None:
        return
    config, header, data = read
    places = {
        id(tensor): (held, attribute)
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for attribute, tensor in held.items()
    }
    own = adapter_tensors(model, name)
    entries = {key: entry for key, entry in json.loads(header).items() if key != "__metadata__"}
    pieces = []
    for key, entry in entries.items():
        part = joined.parts.get(key, Part(key, ()))
        here = names.here(part.key.removeprefix(PREFIX))
        target = own.get(here.replace(".base_layer.bias", ".bias"))
        if target is None or id(target) not in places or entry["dtype"] not in _SAFETENSORS:
            return  # frozen weights come along, or biases that wait: those are looked at each time
        dtype, shape = _SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
        flip = LORA_KEY.match(here) is None and names.is_transposed(here)
        held, attribute = places[id(target)]
        start, stop = entry["data_offsets"]
        pieces.append(_Piece(held, attribute, part.where, part.factor, start, stop, dtype, shape, flip))
    alike = [[slice(*entries[key]["data_offsets"]) for key in keys] for keys in joined.alike]
    if len(header) % 8 == 0:  # as safetensors writes it, so that the tensors are aligned
        swaps[name] = _Swap(config, header, data.numel(), pieces, alike)


@torch.no_grad()
def swap_known(model: nn.Module, folder: Path, name: str) -> LoRAConfig | None:
    """Copy a file laid out like the last one into the adapter; ``None`` if it is not."""
    if name not in adapter_names(model):
        return None
    registry = registry_of(model)
    known: _Swap | None = registry.swaps.get(name)
    read = _read_raw(folder) if known is not None else None
    if known is None or read is None or read[:2] != (known.config, known.header):
        return None
    if read[2].numel() != known.n_bytes:  # cut off: let the careful way say so
        return None
    if registry.configs[name].bias != "none" and not registry.biases_trained:
        return None  # what stands in the model now are the frozen ones
    for layer in wrapped_layers(model).values():
        mine = layer.adapters if isinstance(layer, LoRALayer) else layer.copies
        if layer.merged or layer.active != ((name,) if name in mine else ()):
            return None
    data = read[2]
    if not all(torch.equal(data[first], data[at]) for first, *rest in known.alike for at in rest):
        return None
    torch._foreach_copy_([p.target() for p in known.pieces], [p.source(data) for p in known.pieces])
    return registry.configs[name]


def _read_raw(folder: Path) -> tuple[bytes, bytes, Tensor] | None:
    """(config, header, tensor bytes) of a folder, unparsed; ``None`` if it is not as it should be."""
    try:
        config = (folder / CONFIG_FILE).read_bytes()
        raw = np.memmap(folder / WEIGHTS_FILE, dtype=np.uint8, mode="c")
    except (OSError, ValueError):  # missing, or empty
        return None
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    return config, raw[8:start].tobytes(), torch.from_numpy(raw[start:])
