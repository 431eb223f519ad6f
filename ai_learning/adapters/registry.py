"""Bookkeeping of a model's adapters: which there are, in which layers, and what the model was before.

`lora` changes models with these functions; `peft`, `qlora` and `combine` read them.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..errors import InputError
from .config import LoRAConfig, is_named
from .layers import LoRALayer, SavedModule, can_adapt
from .nf4_linear import NF4Linear, is_bnb_4bit

DEFAULT = "default"
"""an adapter's name where none is given"""
REGISTRY = "_lora_registry"
"""the attribute of a model that holds its `Registry`"""


@dataclass
class Registry:
    """A model's adapters, and what it was before the first of them. Kept on the model itself."""

    requires_grad: dict[str, bool]
    """by parameter, before adapters were added"""
    biases: dict[str, Tensor] = field(default_factory=dict)
    """the other value of each trained bias: the frozen one while ``biases_trained``, else the trained one"""
    biases_trained: bool = False
    """whether the model's biases have their trained values now"""
    configs: dict[str, LoRAConfig] = field(default_factory=dict)
    """by adapter name"""
    swaps: dict[str, Any] = field(default_factory=dict)
    """by adapter name, how ``load_peft`` copies a file of the same layout"""
    task_types: dict[str, str | None] = field(default_factory=dict)
    """by adapter name, the task type that PEFT's file gives"""

    def copy(self) -> "Registry":
        """A copy with dicts of its own."""
        dicts: Any = {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)}
        return replace(self, **dicts)


def registry_of(model: nn.Module) -> Registry:
    """The model's registry.

    Raises:
        InputError: the model has no adapters.
    """
    registry: Registry | None = getattr(model, REGISTRY, None)
    if registry is None:
        raise InputError("the model has no adapters: inject_lora first (on this very module)")
    return registry


def adapter_names(model: nn.Module) -> list[str]:
    """Names of a model's adapters, in the order in which they were added; empty without any."""
    registry: Registry | None = getattr(model, REGISTRY, None)
    return list(registry.configs) if registry else []


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters whose updates are added now."""
    active = {name for layer in wrapped_layers(model).values() for name in layer.active}
    return [name for name in adapter_names(model) if name in active]


def adapter_config(model: nn.Module, adapter_name: str = DEFAULT) -> LoRAConfig:
    """The config an adapter was injected with.

    Raises:
        InputError: an unknown adapter.
    """
    registry = registry_of(model)
    if adapter_name not in registry.configs:
        there = ", ".join(map(repr, registry.configs)) or "none"
        raise InputError(f"no adapter {adapter_name!r}; there are {there}")
    return registry.configs[adapter_name]


def check_adapter_name(adapter_name: str) -> None:
    """Refuse a name that PyTorch's containers cannot hold.

    Raises:
        InputError: empty, with dots, or the name of a method of those containers.
    """
    if not adapter_name or "." in adapter_name:
        raise InputError(f"adapter_name={adapter_name!r} must be a name without dots")
    if any(hasattr(container(), adapter_name) for container in (nn.ParameterDict, nn.ModuleDict)):
        raise InputError(f"adapter_name={adapter_name!r} means something to PyTorch: choose another name")


def lora_candidates(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can carry an adapter, by path; a wrapped layer appears as its base layer."""
    found: dict[str, nn.Module] = {}

    def visit(module: nn.Module, path: str) -> None:
        if isinstance(module, SavedModule):
            return
        if isinstance(module, LoRALayer):
            found[path] = module.base_layer
            return
        if can_adapt(module):
            found[path] = module
        for name, child in module.named_children():
            visit(child, f"{path}.{name}" if path else name)

    visit(model, "")
    found.pop("", None)  # the model itself has no parent in which it could be replaced
    return found


def wrapped_layers(model: nn.Module) -> dict[str, LoRALayer | SavedModule]:
    """The wrappers of all adapted layers, by path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALayer | SavedModule)}


def wrap(model: nn.Module, path: str, kind: type[Any]) -> Any:
    """The wrapper of class ``kind`` at ``path``, created if there is none."""
    module = model.get_submodule(path)
    if isinstance(module, kind):
        return module
    if isinstance(module, LoRALayer | SavedModule):
        raise InputError(f"{path} cannot both carry an update and be trained whole (modules_to_save)")
    wrapper = kind(module, path).train(module.training)
    put_module(model, path, wrapper)
    return wrapper


def put_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at ``path``."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def planned_layers(model: nn.Module, config: LoRAConfig) -> tuple[list[str], list[str]]:
    """The paths that a config would give a low-rank update, and those that it would train whole."""
    whole = modules_named(model, config.modules_to_save)
    candidates = lora_candidates(model)
    inside = {path for path in candidates if any(f"{path}.".startswith(f"{saved}.") for saved in whole)}
    targets = config.targets(candidates, output_heads(model) | inside)
    return targets, _not_adapted(model, whole, targets)


def output_heads(model: nn.Module) -> set[str]:
    """The output heads, which ``all-linear`` leaves out.

    They are known by their name, by transformers' ``get_output_embeddings``, or by a tied weight.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if callable(get_head) else None
    names = {"lm_head"}
    if type(model).__name__.endswith("Classification"):  # transformers' classes
        names |= {"score", "classifier"}
    found = set()
    for path, module in lora_candidates(model).items():
        if module is head or path.rpartition(".")[2] in names or _shares_weight(model, module):
            found.add(path)
    return found


def modules_named(model: nn.Module, names: Sequence[str], option: str = "modules_to_save") -> list[str]:
    """The paths of the modules that an option such as ``modules_to_save`` names.

    Raises:
        InputError: a name that matches no module.
    """
    paths = [path for path, _ in model.named_modules() if path]
    inside = tuple(f"{path}." for path in wrapped_layers(model))
    paths = [path for path in paths if not path.startswith(inside)] if inside else paths
    found: list[str] = []
    for name in names:
        matching = [path for path in paths if is_named(path, name)]
        if not matching:
            raise InputError(
                f"{option}: {name!r} matches no module; there are "
                + ", ".join(sorted({path.rpartition(".")[2] for path in paths} - {""}))
            )
        found += [path for path in matching if path not in found]
    return found


def _not_adapted(model: nn.Module, whole: list[str], targets: Sequence[str]) -> list[str]:
    """``whole``, after a check that no module inside them carries an update.

    Raises:
        InputError: one does.
    """
    wrapped = list(wrapped_layers(model))  # by other adapters
    for path in whole:
        inside_it = [p for p in [*targets, *wrapped] if p.startswith(path + ".")]
        if path in targets or inside_it:
            clash = path if path in targets else inside_it[0]
            raise InputError(
                f"modules_to_save: {path} is trained whole, so {clash} in it cannot carry an adapter as well"
            )
    return whole


def _shares_weight(model: nn.Module, module: nn.Module, further: Sequence[nn.Module] = ()) -> bool:
    """Whether another module, of the model or of ``further``, has the same weight tensor."""
    weight = module.weight
    return any(
        other is not module and any(p is weight for p in other._parameters.values())
        for other in (*model.modules(), *further)
    )


def was_tied(model: nn.Module, layer: LoRALayer | SavedModule, kept: Sequence[nn.Module]) -> bool:
    """Whether a merged layer's frozen weight was tied to another module's.

    Args:
        model: with adapters.
        layer: one of its wrappers.
        kept: the frozen layers that merged ones have replaced.
    """
    if isinstance(layer, SavedModule):
        return any(
            p is q
            for module in layer.original.modules()
            for p in module._parameters.values()
            if p is not None
            for other in model.modules()
            if other not in set(layer.modules())
            for q in other._parameters.values()
        )
    return layer._kept is not None and _shares_weight(model, layer._kept, kept)


def mark_untied(model: nn.Module) -> None:
    """Note in the model's config that head and embedding are not tied any more."""
    config: Any = getattr(model, "config", None)
    if is_dataclass(config) and getattr(config, "tie_weights", False):
        model.config = replace(config, tie_weights=False)  # type: ignore[assignment, type-var]
    elif getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def mark_dense(model: nn.Module) -> None:
    """Note in the config of a model that bitsandbytes had quantized that it is not, once no layer has 4 bits.

    Saved as a quantized one, its merged weights would be taken for codes.
    """
    config: Any = getattr(model, "config", None)
    if not getattr(getattr(config, "quantization_config", None), "load_in_4bit", False):
        return
    if any(isinstance(module, NF4Linear) or is_bnb_4bit(module) for module in model.modules()):
        return
    vars(config).pop("quantization_config")
    for name in ("hf_quantizer", "quantization_method"):
        vars(model).pop(name, None)
    vars(model).update(is_quantized=False, is_loaded_in_4bit=False)


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The tensors of `lora_state_dict`, not detached."""
    config = adapter_config(model, adapter_name)
    state: dict[str, Tensor] = {}
    for path, layer in wrapped_layers(model).items():
        if isinstance(layer, SavedModule):
            if adapter_name in layer.copies:
                copied = layer.copies[adapter_name].state_dict(keep_vars=True)
                state |= {f"{path}.{name}": tensor for name, tensor in copied.items()}
        elif adapter_name in layer.adapters:
            state |= {f"{path}.{name}": tensor for name, tensor in layer_tensors(layer, adapter_name)}
    return state | trained_biases(model, config, adapter_name)


def layer_tensors(layer: LoRALayer, name: str) -> Iterator[tuple[str, Tensor]]:
    """An adapter's tensors in a layer, under PEFT's names."""
    kind = (
        ("lora_embedding_A", "lora_embedding_B") if layer.is_embedding else ("lora_A.weight", "lora_B.weight")
    )
    yield kind[0], layer.lora_A[name]
    yield kind[1], layer.lora_B[name]
    if name in layer.lora_magnitude_vector:
        yield "lora_magnitude_vector", layer.lora_magnitude_vector[name]


def trained_biases(model: nn.Module, config: LoRAConfig, adapter_name: str) -> dict[str, Tensor]:
    """The biases that the adapter trains, by their path in the model without adapters."""
    if config.bias == "none":
        return {}
    registry, wrappers = registry_of(model), wrapped_layers(model)
    whole = tuple(
        f"{p}." for p, m in wrappers.items() if isinstance(m, SavedModule) and adapter_name in m.copies
    )
    found: dict[str, Tensor] = {}
    for path, parameter in plain_parameters(model).items():
        layer, _, name = path.rpartition(".")
        if name != "bias" or path.startswith(whole):  # a module trained whole has its own bias
            continue
        wrapper = wrappers.get(layer)
        if config.bias == "all" or (isinstance(wrapper, LoRALayer) and adapter_name in wrapper.adapters):
            found[path] = parameter if registry.biases_trained else registry.biases.get(path, parameter)
    return found


def show_biases(model: nn.Module, trained: bool) -> None:
    """Put the trained biases into the model, or the frozen ones back; the parameters stay the same."""
    registry = registry_of(model)
    if registry.biases_trained == trained:
        return
    parameters = plain_parameters(model)
    for path, waiting in registry.biases.items():
        bias = parameters[path]
        registry.biases[path], bias.data = bias.data, waiting.to(bias.device, bias.dtype)
    registry.biases_trained = trained


def plain_parameters(model: nn.Module, tied: bool = False) -> dict[str, nn.Parameter]:
    """The model's own parameters by path, wrappers left out; with ``tied``, a tied one by all its paths."""
    return {
        re.sub(r"\.(base_layer|original)(?=\.)", "", name): parameter
        for name, parameter in model.named_parameters(remove_duplicate=not tied)
        if ".copies." not in name
    }


@contextmanager
def as_it_was_on_error(model: nn.Module) -> Iterator[None]:
    """Restore the model's adapters and parameters if the ``with`` block raises."""
    wrappers = wrapped_layers(model)
    contents = {path: layer.contents() for path, layer in wrappers.items()}
    registry: Registry | None = getattr(model, REGISTRY, None)
    noted = None if registry is None else registry.copy()
    flags = [(p, p.requires_grad) for p in model.parameters()]
    shown = [(p, p.data) for p in plain_parameters(model).values()]
    try:
        yield
    except BaseException:
        for path, layer in wrapped_layers(model).items():
            if path not in wrappers:
                put_module(model, path, layer.base_layer if isinstance(layer, LoRALayer) else layer.original)
        for path, layer in wrappers.items():
            layer.put_back(contents[path])
            put_module(model, path, layer)
        for p, data in shown:
            p.data = data
        for p, flag in flags:
            p.requires_grad_(flag)
        if noted is not None:
            noted.swaps.clear()
            setattr(model, REGISTRY, noted)
        elif hasattr(model, REGISTRY):
            delattr(model, REGISTRY)
        raise
