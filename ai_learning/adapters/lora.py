"""LoRA on a whole model, from outside: inject, choose, merge, unmerge, eject, save.

    config = LoRAConfig(r=8, target_modules=["c_attn"])
    inject_lora(model, config)          # only adapter weights are trainable now
    … train …
    state = lora_state_dict(model)      # a small dict of tensors
    merge_lora(model)                   # the updates inside the weights: full speed
    unmerge_lora(model)                 # the frozen weights again, bit for bit
    eject_lora(model)                   # the model as it was

Nothing here knows the model's class: layers are found by name and put back by name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import LoRAConfig, is_named
from .layers import Adapter, LoRALayer, SavedModule, can_adapt

DEFAULT = "default"
_REGISTRY = "_lora_registry"


@dataclass
class Registry:
    """What the model was like before adapters came, and which came. Kept on the model itself."""

    requires_grad: dict[str, bool]
    # The values that each trained bias does not have now: the frozen ones while the adapter that trains them
    # is active (`biases_trained`), the trained ones at other times.
    biases: dict[str, Tensor] = field(default_factory=dict)
    biases_trained: bool = False
    configs: dict[str, LoRAConfig] = field(default_factory=dict)
    swaps: dict[str, Any] = field(default_factory=dict)  # how `load_peft` copies a file of the same layout
    task_types: dict[str, str | None] = field(default_factory=dict)  # that PEFT's files name

    def copy(self) -> "Registry":
        """One that does not change with this one."""
        dicts: Any = {name: dict(value) for name, value in vars(self).items() if isinstance(value, dict)}
        return replace(self, **dicts)


def inject_lora(model: nn.Module, config: LoRAConfig | None = None, adapter_name: str = DEFAULT) -> nn.Module:
    """Put an adapter on a model, in place: freeze everything, wrap the target layers, make the adapter
    active.

    A fresh adapter does not change the model's output. Called again with another name, it adds a second
    adapter beside the first.

    Args:
        model: any module; its linear layers (nn.Linear, transformers' Conv1D, `NF4Linear`) and embeddings
            can be targets.
        config: ranks, targets and switches; ``LoRAConfig()`` by default.
        adapter_name: to tell adapters apart.

    Returns:
        The same model.

    Raises:
        InputError: a pattern that matches nothing (the candidates are listed), a name taken already, a
            merged model.
    """
    config = config or LoRAConfig()
    _check_name(adapter_name)
    registry: Registry | None = getattr(model, _REGISTRY, None)
    if registry and adapter_name in registry.configs:
        raise InputError(
            f"the model has an adapter {adapter_name!r} already: choose another name, or eject_lora"
        )
    if any(layer.merged for layer in _wrappers(model).values()):
        raise InputError("the model's adapters are merged: unmerge_lora before adding one")
    if registry and config.bias != "none" and any(c.bias != "none" for c in registry.configs.values()):
        raise InputError("two adapters cannot both train biases: there is one set of them; use bias='none'")
    targets, saved = _plan(model, config)
    with _as_it_was_on_error(model):
        _inject(model, config, adapter_name, targets, saved)
    return model


def _check_name(adapter_name: str) -> None:
    if not adapter_name or "." in adapter_name:
        raise InputError(f"adapter_name={adapter_name!r} must be a name without dots")
    if any(hasattr(container(), adapter_name) for container in (nn.ParameterDict, nn.ModuleDict)):
        raise InputError(f"adapter_name={adapter_name!r} means something to PyTorch: choose another name")


def _plan(model: nn.Module, config: LoRAConfig) -> tuple[list[str], list[str]]:
    """The paths that get an update, and those that are trained whole."""
    whole = _modules_named(model, config.modules_to_save)
    candidates = lora_candidates(model)
    inside = {path for path in candidates if any(f"{path}.".startswith(f"{saved}.") for saved in whole)}
    targets = config.targets(candidates, _heads(model) | inside)
    return targets, _not_adapted(model, whole, targets)


def _inject(
    model: nn.Module, config: LoRAConfig, adapter_name: str, targets: list[str], saved: list[str]
) -> None:
    registry: Registry | None = getattr(model, _REGISTRY, None)
    if registry is None:
        registry = Registry(
            {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
        )
        setattr(model, _REGISTRY, registry)
        model.requires_grad_(False)
    for path in targets:
        settings = Adapter(config.rank(path), config.scaling(path), config.lora_dropout, config.use_dora)
        _wrapped(model, path, LoRALayer).add(adapter_name, settings, config.init)
    for path in saved:
        _wrapped(model, path, SavedModule).add(adapter_name)
    registry.configs[adapter_name] = config
    for path, bias in _trained_biases(model, config, adapter_name).items():
        registry.biases.setdefault(path, bias.detach().clone())
    set_adapter(model, adapter_name)


@contextmanager
def _as_it_was_on_error(model: nn.Module) -> Iterator[None]:
    """Put back, when something fails, what adapters the model had: the very tensors, and which are active."""
    wrappers = _wrappers(model)
    contents = {path: layer.contents() for path, layer in wrappers.items()}
    registry: Registry | None = getattr(model, _REGISTRY, None)
    noted = None if registry is None else registry.copy()
    flags = [(p, p.requires_grad) for p in model.parameters()]
    shown = [(p, p.data) for p in _plain_parameters(model).values()]
    try:
        yield
    except BaseException:
        for path, layer in _wrappers(model).items():
            if path not in wrappers:
                _put(model, path, layer.base_layer if isinstance(layer, LoRALayer) else layer.original)
        for path, layer in wrappers.items():
            layer.put_back(contents[path])
            _put(model, path, layer)
        for p, data in shown:
            p.data = data
        for p, flag in flags:
            p.requires_grad_(flag)
        if noted is not None:
            noted.swaps.clear()
            setattr(model, _REGISTRY, noted)
        elif hasattr(model, _REGISTRY):
            delattr(model, _REGISTRY)
        raise


def lora_candidates(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that can carry an adapter, by path; a wrapped layer appears unwrapped, under its own."""
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
    found.pop("", None)  # a bare layer has no parent to be exchanged in
    return found


def set_adapter(model: nn.Module, names: str | Sequence[str] | None) -> None:
    """Make one adapter active, the sum of several, or none (``None``: the base model).

    Active adapters can be trained, all others are frozen.

    Raises:
        InputError: an unknown name, a merged model, or DoRA adapters that cannot be summed.
    """
    chosen = _names(model, names)
    wrappers = _wrappers(model)
    for layer in wrappers.values():
        if layer.merged:
            raise InputError(f"{layer.path} is merged: unmerge_lora before choosing adapters")
        if isinstance(layer, LoRALayer):
            layer._check_together([name for name in chosen if name in layer.adapters])
        elif len([name for name in chosen if name in layer.copies]) > 1:
            raise InputError(
                f"{layer.path}: {chosen} each trained their own copy of it, so only one can be active"
            )
    for layer in wrappers.values():
        _choose(layer, chosen)
    registry = _registry(model)
    _show_biases(model, any(registry.configs[name].bias != "none" for name in chosen))
    parameters = _plain_parameters(model)
    for path in registry.biases:
        parameters[path].requires_grad_(False)
    for name in chosen:
        for bias in _trained_biases(model, registry.configs[name], name).values():
            bias.requires_grad_(True)


@contextmanager
def use_adapter(model: nn.Module, names: str | Sequence[str] | None) -> Iterator[nn.Module]:
    """`set_adapter` for the calls inside a ``with`` block.

    Example:
        >>> with use_adapter(model, None):  # doctest: +SKIP
        ...     base_logits = model(idx)
    """
    before = {path: layer.active for path, layer in _wrappers(model).items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    biases_trained = _registry(model).biases_trained
    set_adapter(model, names)
    try:
        yield model
    finally:
        for path, layer in _wrappers(model).items():
            layer.active = before.get(path, layer.active)
        if adapter_names(model):
            _show_biases(model, biases_trained)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags.get(name, parameter.requires_grad))


@contextmanager
def adapters_by_row(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """Give each row of the batch its own adapter (``None``: the base model) inside a ``with`` block.

    All rows go through the base weights together, and their updates through one batched product.

    Args:
        model: with adapters.
        names: one for each row of the batch (axis 0 of every adapted layer's input).

    Raises:
        InputError: an unknown name, an adapter that trained biases (all rows share them), or a merged model;
            on the call, a batch of another length.
    """
    registry = _registry(model)
    for name in _names(model, [name for name in dict.fromkeys(names) if name is not None]):
        if registry.configs[name].bias != "none":
            raise InputError(
                f"adapter {name!r} trained biases, which all rows share: use_adapter for its rows"
            )
    wrappers = list(_wrappers(model).values())
    for layer in wrappers:
        if layer.merged:
            raise InputError(f"{layer.path} is merged: unmerge_lora before mixing adapters")
    before, biases_trained = [layer.rows for layer in wrappers], registry.biases_trained
    _show_biases(model, False)
    for layer in wrappers:
        layer.rows = tuple(names)
    try:
        yield model
    finally:
        for layer, rows in zip(wrappers, before, strict=True):
            layer.rows = rows
        if adapter_names(model):
            _show_biases(model, biases_trained)


def merge_lora(
    model: nn.Module, adapters: str | Sequence[str] | None = None, *, dtype: torch.dtype | None = None
) -> nn.Module:
    """Compute with ``W + s·B·A`` in one product: each adapted layer gets a merged weight, the frozen one is
    kept.

    A tied weight is not written to: an adapted output head gets a weight of its own and the embedding stays.
    A 4-bit layer is merged into the model's dtype (or ``dtype``), because rounding the sum to 4 bits would
    lose most of the update.

    Args:
        model: with adapters.
        adapters: which; the active ones by default.
        dtype: of the merged weights; each frozen weight's own by default.

    Returns:
        The same model.

    Raises:
        InputError: no adapters, merged already, or a merged weight that is not finite. Nothing is changed
            then.
    """
    if adapters is not None:
        set_adapter(model, adapters)
    layers = list(_wrappers(model).values())
    if not layers:
        raise InputError("the model has no adapters to merge: inject_lora first")
    if all(not layer.active for layer in layers):
        raise InputError("no adapter is active: name the ones to merge")
    done: list[LoRALayer | SavedModule] = []
    try:
        for layer in layers:
            if layer.merged:
                raise InputError(f"{layer.path} is merged already: unmerge_lora first")
            if isinstance(layer, LoRALayer) and layer.active:
                layer.merge(layer.active, dtype)
                done.append(layer)
            elif isinstance(layer, SavedModule) and layer.active:
                layer.merged = True
                done.append(layer)
    except BaseException:
        for layer in done:
            _unmerge(layer)
        raise
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Undo `merge_lora`: every frozen weight returns, the very tensor it was. Returns the model."""
    _registry(model)
    for layer in _wrappers(model).values():
        _unmerge(layer)
    return model


def eject_lora(model: nn.Module, *, merge: bool | None = None, untie: bool = False) -> nn.Module:
    """Take the adapters off: plain layers again, under their old names.

    Args:
        model: with adapters.
        merge: ``True`` leaves the updates in the weights; ``False`` gives back the model as it was, bit for
            bit; ``None`` keeps to the state it is in (merged or not).
        untie: allow a merged layer to leave a weight that it shared with another (an output head tied to the
            embedding); a ``config`` that says the two are tied is changed to say they are not.

    Returns:
        The same model.

    Raises:
        InputError: no adapters, or a merged layer whose weight was tied and ``untie`` is false: saved as a
            tied model it would lose the update.
    """
    registry = _registry(model)
    wrappers = _wrappers(model)
    if merge is None:
        merge = any(layer.merged for layer in wrappers.values())
    was_merged = any(layer.merged for layer in wrappers.values())
    if merge and not was_merged:
        merge_lora(model)
    elif not merge:
        unmerge_lora(model)
    kept = [layer._kept for layer in wrappers.values() if isinstance(layer, LoRALayer) and layer._kept]
    tied = [path for path, layer in wrappers.items() if layer.merged and _was_tied(model, layer, kept)]
    if tied and not untie:
        if not was_merged:
            unmerge_lora(model)
        raise InputError(
            f"{tied[0]} shares its weight with another layer, so a merged one cannot stay tied: "
            "pass untie=True to give it its own"
        )
    if not merge:
        _show_biases(model, False)
    for path, layer in wrappers.items():
        plain = (
            layer.base_layer if isinstance(layer, LoRALayer) else layer.current if merge else layer.original
        )
        _put(model, path, plain)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(registry.requires_grad.get(name, False) and parameter.is_floating_point())
    delattr(model, _REGISTRY)
    if tied:
        _mark_untied(model)
    return model


def delete_adapter(model: nn.Module, adapter_name: str) -> None:
    """Remove one adapter; with the last one the model is as it was.

    If it was the only active one, the first of the others becomes active.
    """
    registry = _registry(model)
    if adapter_name not in registry.configs:
        raise InputError(f"no adapter {adapter_name!r}; there are {_listed(registry)}")
    unmerge_lora(model)
    if len(registry.configs) == 1:
        eject_lora(model, merge=False)
        return
    if registry.configs[adapter_name].bias != "none":
        _show_biases(model, False)
        parameters = _plain_parameters(model)
        for path in registry.biases:
            parameters[path].requires_grad_(False)
        registry.biases.clear()
    active = adapter_name in active_adapters(model)
    del registry.configs[adapter_name]
    registry.swaps.pop(adapter_name, None)
    registry.task_types.pop(adapter_name, None)
    for path, layer in _wrappers(model).items():
        layer.remove(adapter_name)
        if isinstance(layer, LoRALayer) and not layer.adapters:
            _put(model, path, layer.base_layer)
        elif isinstance(layer, SavedModule) and not layer.copies:
            _put(model, path, layer.original)
    if active and not active_adapters(model):
        set_adapter(model, next(iter(registry.configs)))


def lora_state_dict(model: nn.Module, adapter_name: str = DEFAULT) -> dict[str, Tensor]:
    """The adapter's weights, and nothing of the frozen model.

    Keys are ``{path}.lora_A.weight`` (r, in), ``{path}.lora_B.weight`` (out, r),
    ``{path}.lora_magnitude_vector`` (out,), for embeddings ``{path}.lora_embedding_A`` and ``_B``; trained
    biases and modules under their own names.

    Raises:
        InputError: an unknown adapter.
    """
    return {name: tensor.detach() for name, tensor in _adapter_tensors(model, adapter_name).items()}


def _adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The tensors themselves that `lora_state_dict` shows."""
    config = adapter_config(model, adapter_name)
    state: dict[str, Tensor] = {}
    for path, layer in _wrappers(model).items():
        if isinstance(layer, SavedModule):
            if adapter_name in layer.copies:
                copied = layer.copies[adapter_name].state_dict(keep_vars=True)
                state |= {f"{path}.{name}": tensor for name, tensor in copied.items()}
        elif adapter_name in layer.adapters:
            state |= {f"{path}.{name}": tensor for name, tensor in _layer_tensors(layer, adapter_name)}
    return state | _trained_biases(model, config, adapter_name)


@torch.no_grad()
def load_lora_state_dict(model: nn.Module, state: Mapping[str, Tensor], adapter_name: str = DEFAULT) -> None:
    """Copy weights saved by `lora_state_dict` into an adapter that is on the model already.

    Raises:
        InputError: keys or shapes that differ. Nothing is copied then.
    """
    own = lora_state_dict(model, adapter_name)
    if any(layer.merged for layer in _wrappers(model).values()):
        raise InputError("the model's adapters are merged: unmerge_lora before loading weights")
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise InputError(
            f"the weights do not fit adapter {adapter_name!r}: missing {missing[:3] or 'none'}, "
            f"unexpected {extra[:3] or 'none'}"
        )
    for key, tensor in own.items():
        if tensor.shape != state[key].shape:
            raise InputError(f"{key} has shape {tuple(state[key].shape)}, the model's {tuple(tensor.shape)}")
    for key, tensor in own.items():
        tensor.copy_(state[key])


def adapter_config(model: nn.Module, adapter_name: str = DEFAULT) -> LoRAConfig:
    """The config an adapter was injected with.

    Raises:
        InputError: an unknown adapter.
    """
    registry = _registry(model)
    if adapter_name not in registry.configs:
        raise InputError(f"no adapter {adapter_name!r}; there are {_listed(registry)}")
    return registry.configs[adapter_name]


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on a model, in the order they came; empty without any."""
    registry: Registry | None = getattr(model, _REGISTRY, None)
    return list(registry.configs) if registry else []


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters whose updates are added now."""
    active = {name for layer in _wrappers(model).values() for name in layer.active}
    return [name for name in adapter_names(model) if name in active]


def lora_plus_groups(
    model: nn.Module, lr: float, *, ratio: float = 16.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimizer groups of LoRA+ (Hayou et al. 2024, section 4): B learns ``ratio`` times as fast as A.

    Args:
        model: with adapters.
        lr: of A, and of everything that is neither A nor B.
        ratio: lr of B over lr of A; the paper suggests about 16.
        weight_decay: of matrices; vectors (biases, magnitudes) have none.

    Raises:
        InputError: no trainable adapter weights, or a ratio below 1.
    """
    if ratio < 1:
        raise InputError(f"ratio={ratio} must be at least 1: B is the one that learns faster")
    # What starts at zero: of an embedding that is A.
    starts_at_zero = {
        id(weight)
        for layer in _wrappers(model).values()
        if isinstance(layer, LoRALayer)
        for weight in (layer.lora_A if layer.is_embedding else layer.lora_B).values()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    n_B = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_B = id(parameter) in starts_at_zero
            n_B += is_B
            decay = weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((lr * ratio if is_B else lr, decay), []).append(parameter)
    if not n_B:
        raise InputError("no adapter is being trained: inject_lora or set_adapter first")
    return [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


# ---- inside --------------------------------------------------------------------------------------


def _wrappers(model: nn.Module) -> dict[str, LoRALayer | SavedModule]:
    return {path: m for path, m in model.named_modules() if isinstance(m, LoRALayer | SavedModule)}


def _registry(model: nn.Module) -> Registry:
    registry: Registry | None = getattr(model, _REGISTRY, None)
    if registry is None:
        raise InputError("the model has no adapters: inject_lora first (on this very module)")
    return registry


def _listed(registry: Registry) -> str:
    return ", ".join(map(repr, registry.configs)) or "none"


def _names(model: nn.Module, names: str | Sequence[str] | None) -> list[str]:
    chosen = [] if names is None else [names] if isinstance(names, str) else list(names)
    registry = _registry(model)
    for name in chosen:
        if name not in registry.configs:
            raise InputError(f"no adapter {name!r}; there are {_listed(registry)}")
    return chosen


def _choose(layer: LoRALayer | SavedModule, chosen: Sequence[str]) -> None:
    mine = layer.adapters if isinstance(layer, LoRALayer) else layer.copies
    layer.active = tuple(name for name in chosen if name in mine)
    for name in mine:
        for parameter in _adapter_parameters(layer, name):
            parameter.requires_grad_(name in layer.active)


def _adapter_parameters(layer: LoRALayer | SavedModule, name: str) -> list[Tensor]:
    if isinstance(layer, SavedModule):
        return list(layer.copies[name].parameters())
    return [tensor for _, tensor in _layer_tensors(layer, name)]


def _layer_tensors(layer: LoRALayer, name: str) -> Iterator[tuple[str, Tensor]]:
    kind = (
        ("lora_embedding_A", "lora_embedding_B") if layer.is_embedding else ("lora_A.weight", "lora_B.weight")
    )
    yield kind[0], layer.lora_A[name]
    yield kind[1], layer.lora_B[name]
    if name in layer.lora_magnitude_vector:
        yield "lora_magnitude_vector", layer.lora_magnitude_vector[name]


def _parent(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, name = _parent(model, path)
    setattr(parent, name, module)


def _wrapped(model: nn.Module, path: str, kind: type[Any]) -> Any:
    """The wrapper of this kind at ``path``; made if there is none."""
    module = model.get_submodule(path)
    if isinstance(module, kind):
        return module
    if isinstance(module, LoRALayer | SavedModule):
        raise InputError(f"{path} cannot both carry an update and be trained whole (modules_to_save)")
    wrapper = kind(module, path).train(module.training)
    _put(model, path, wrapper)
    return wrapper


def _heads(model: nn.Module) -> set[str]:
    """Output heads, which ``all-linear`` leaves out: by name, by transformers' word, or by a tied weight."""
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


def _shares_weight(model: nn.Module, module: nn.Module, further: Sequence[nn.Module] = ()) -> bool:
    """Whether another module has the very same weight, of the model's or of the further ones."""
    weight = module.weight
    return any(
        other is not module and any(p is weight for p in other._parameters.values())
        for other in (*model.modules(), *further)
    )


def _was_tied(model: nn.Module, layer: LoRALayer | SavedModule, kept: Sequence[nn.Module]) -> bool:
    """Whether a merged layer's own weight was another's too; ``kept``: what stood where layers are merged."""
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


def _mark_untied(model: nn.Module) -> None:
    config: Any = getattr(model, "config", None)
    if is_dataclass(config) and getattr(config, "tie_weights", False):
        model.config = replace(config, tie_weights=False)  # type: ignore[assignment, type-var]
    elif getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False


def _modules_named(model: nn.Module, names: Sequence[str], option: str = "modules_to_save") -> list[str]:
    """The paths that an option like ``modules_to_save`` means."""
    paths = [path for path, _ in model.named_modules() if path]
    inside = tuple(f"{path}." for path in _wrappers(model))
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
    """The modules that are trained whole, once it is sure that nothing in them carries an update."""
    wrapped = list(_wrappers(model))  # by other adapters
    for path in whole:
        inside_it = [p for p in [*targets, *wrapped] if p.startswith(path + ".")]
        if path in targets or inside_it:
            clash = path if path in targets else inside_it[0]
            raise InputError(
                f"modules_to_save: {path} is trained whole, so {clash} in it cannot carry an adapter as well"
            )
    return whole


def _trained_biases(model: nn.Module, config: LoRAConfig, adapter_name: str) -> dict[str, Tensor]:
    """The biases that the adapter trains, by the path they have without adapters; see `Registry.biases`."""
    if config.bias == "none":
        return {}
    registry, wrappers = _registry(model), _wrappers(model)
    whole = tuple(
        f"{p}." for p, m in wrappers.items() if isinstance(m, SavedModule) and adapter_name in m.copies
    )
    found: dict[str, Tensor] = {}
    for path, parameter in _plain_parameters(model).items():
        layer, _, name = path.rpartition(".")
        if name != "bias" or path.startswith(whole):  # what is trained whole has its own
            continue
        wrapper = wrappers.get(layer)
        if config.bias == "all" or (isinstance(wrapper, LoRALayer) and adapter_name in wrapper.adapters):
            found[path] = parameter if registry.biases_trained else registry.biases.get(path, parameter)
    return found


def _show_biases(model: nn.Module, trained: bool) -> None:
    """Put the trained biases into the model, or the frozen ones back; the parameters stay the same."""
    registry = _registry(model)
    if registry.biases_trained == trained:
        return
    parameters = _plain_parameters(model)
    for path, waiting in registry.biases.items():
        bias = parameters[path]
        registry.biases[path], bias.data = bias.data, waiting.to(bias.device, bias.dtype)
    registry.biases_trained = trained


def _plain_parameters(model: nn.Module, tied: bool = False) -> dict[str, nn.Parameter]:
    """The frozen model's parameters by the paths they have without wrappers; ``tied``: by all their paths."""
    return {
        re.sub(r"\.(base_layer|original)(?=\.)", "", name): parameter
        for name, parameter in model.named_parameters(remove_duplicate=not tied)
        if ".copies." not in name
    }


def _unmerge(layer: LoRALayer | SavedModule) -> None:
    if isinstance(layer, LoRALayer):
        layer.unmerge()
    else:
        layer.merged = False
