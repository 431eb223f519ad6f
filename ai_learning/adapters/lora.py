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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import LoRAConfig
from .layers import Adapter, LoRALayer, SavedModule
from .registry import (
    DEFAULT,
    REGISTRY,
    Registry,
    active_adapters,
    adapter_config,
    adapter_names,
    adapter_tensors,
    as_it_was_on_error,
    check_adapter_name,
    layer_tensors,
    mark_dense,
    mark_untied,
    plain_parameters,
    planned_layers,
    put_module,
    registry_of,
    show_biases,
    trained_biases,
    was_tied,
    wrap,
    wrapped_layers,
)


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
            merged model, one that is wrapped in DistributedDataParallel.
    """
    config = config or LoRAConfig()
    check_adapter_name(adapter_name)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise InputError(
            "the model is wrapped in DistributedDataParallel already, which adds up no gradients of weights "
            "that come later: inject_lora into its .module, and wrap that anew"
        )
    registry: Registry | None = getattr(model, REGISTRY, None)
    if registry and adapter_name in registry.configs:
        raise InputError(
            f"the model has an adapter {adapter_name!r} already: choose another name, or eject_lora"
        )
    if any(layer.merged for layer in wrapped_layers(model).values()):
        raise InputError("the model's adapters are merged: unmerge_lora before adding one")
    if registry and config.bias != "none" and any(c.bias != "none" for c in registry.configs.values()):
        raise InputError("two adapters cannot both train biases: there is one set of them; use bias='none'")
    targets, saved = planned_layers(model, config)
    with as_it_was_on_error(model):
        _inject(model, config, adapter_name, targets, saved)
    return model


def _inject(
    model: nn.Module, config: LoRAConfig, adapter_name: str, targets: list[str], saved: list[str]
) -> None:
    registry: Registry | None = getattr(model, REGISTRY, None)
    if registry is None:
        registry = Registry(
            {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
        )
        setattr(model, REGISTRY, registry)
        model.requires_grad_(False)
    for path in targets:
        settings = Adapter(config.rank(path), config.scaling(path), config.lora_dropout, config.use_dora)
        wrap(model, path, LoRALayer).add(adapter_name, settings, config.init)
    for path in saved:
        wrap(model, path, SavedModule).add(adapter_name)
    registry.configs[adapter_name] = config
    for path, bias in trained_biases(model, config, adapter_name).items():
        registry.biases.setdefault(path, bias.detach().clone())
    set_adapter(model, adapter_name)


def set_adapter(model: nn.Module, names: str | Sequence[str] | None) -> None:
    """Make one adapter active, the sum of several, or none (``None``: the base model).

    Active adapters can be trained, all others are frozen.

    Raises:
        InputError: an unknown name, a merged model, or DoRA adapters that cannot be summed.
    """
    chosen = _names(model, names)
    wrappers = wrapped_layers(model)
    for layer in wrappers.values():
        if layer.merged:
            raise InputError(f"{layer.path} is merged: unmerge_lora before choosing adapters")
        if isinstance(layer, LoRALayer):
            layer.check_together([name for name in chosen if name in layer.adapters])
        elif len([name for name in chosen if name in layer.copies]) > 1:
            raise InputError(
                f"{layer.path}: {chosen} each trained their own copy of it, so only one can be active"
            )
    for layer in wrappers.values():
        _choose(layer, chosen)
    registry = registry_of(model)
    show_biases(model, any(registry.configs[name].bias != "none" for name in chosen))
    parameters = plain_parameters(model)
    for path in registry.biases:
        parameters[path].requires_grad_(False)
    for name in chosen:
        for bias in trained_biases(model, registry.configs[name], name).values():
            bias.requires_grad_(True)


@contextmanager
def use_adapter(model: nn.Module, names: str | Sequence[str] | None) -> Iterator[nn.Module]:
    """`set_adapter` for the calls inside a ``with`` block.

    Example:
        >>> with use_adapter(model, None):  # doctest: +SKIP
        ...     base_logits = model(idx)
    """
    before = {path: layer.active for path, layer in wrapped_layers(model).items()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    biases_trained = registry_of(model).biases_trained
    set_adapter(model, names)
    try:
        yield model
    finally:
        for path, layer in wrapped_layers(model).items():
            layer.active = before.get(path, layer.active)
        if adapter_names(model):
            show_biases(model, biases_trained)
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
    registry = registry_of(model)
    for name in _names(model, [name for name in dict.fromkeys(names) if name is not None]):
        if registry.configs[name].bias != "none":
            raise InputError(
                f"adapter {name!r} trained biases, which all rows share: use_adapter for its rows"
            )
    wrappers = list(wrapped_layers(model).values())
    for layer in wrappers:
        if layer.merged:
            raise InputError(f"{layer.path} is merged: unmerge_lora before mixing adapters")
    before, biases_trained = [layer.rows for layer in wrappers], registry.biases_trained
    show_biases(model, False)
    for layer in wrappers:
        layer.rows = tuple(names)
    try:
        yield model
    finally:
        for layer, rows in zip(wrappers, before, strict=True):
            layer.rows = rows
        if adapter_names(model):
            show_biases(model, biases_trained)


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
    layers = list(wrapped_layers(model).values())
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
    registry_of(model)
    for layer in wrapped_layers(model).values():
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
    registry = registry_of(model)
    wrappers = wrapped_layers(model)
    if merge is None:
        merge = any(layer.merged for layer in wrappers.values())
    was_merged = any(layer.merged for layer in wrappers.values())
    if merge and not was_merged:
        merge_lora(model)
    elif not merge:
        unmerge_lora(model)
    kept = [layer._kept for layer in wrappers.values() if isinstance(layer, LoRALayer) and layer._kept]
    tied = [path for path, layer in wrappers.items() if layer.merged and was_tied(model, layer, kept)]
    if tied and not untie:
        if not was_merged:
            unmerge_lora(model)
        raise InputError(
            f"{tied[0]} shares its weight with another layer, so a merged one cannot stay tied: "
            "pass untie=True to give it its own"
        )
    if not merge:
        show_biases(model, False)
    for path, layer in wrappers.items():
        plain = (
            layer.base_layer if isinstance(layer, LoRALayer) else layer.current if merge else layer.original
        )
        put_module(model, path, plain)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(registry.requires_grad.get(name, False) and parameter.is_floating_point())
    delattr(model, REGISTRY)
    if tied:
        mark_untied(model)
    if merge:
        mark_dense(model)
    return model


def delete_adapter(model: nn.Module, adapter_name: str) -> None:
    """Remove one adapter; with the last one the model is as it was.

    If it was the only active one, the first of the others becomes active.
    """
    config, registry = adapter_config(model, adapter_name), registry_of(model)
    unmerge_lora(model)
    if len(registry.configs) == 1:
        eject_lora(model, merge=False)
        return
    if config.bias != "none":
        show_biases(model, False)
        parameters = plain_parameters(model)
        for path in registry.biases:
            parameters[path].requires_grad_(False)
        registry.biases.clear()
    active = adapter_name in active_adapters(model)
    del registry.configs[adapter_name]
    registry.swaps.pop(adapter_name, None)
    registry.task_types.pop(adapter_name, None)
    for path, layer in wrapped_layers(model).items():
        layer.remove(adapter_name)
        if isinstance(layer, LoRALayer) and not layer.adapters:
            put_module(model, path, layer.base_layer)
        elif isinstance(layer, SavedModule) and not layer.copies:
            put_module(model, path, layer.original)
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
    return {name: tensor.detach() for name, tensor in adapter_tensors(model, adapter_name).items()}


@torch.no_grad()
def load_lora_state_dict(model: nn.Module, state: Mapping[str, Tensor], adapter_name: str = DEFAULT) -> None:
    """Copy weights saved by `lora_state_dict` into an adapter that is on the model already.

    Raises:
        InputError: keys or shapes that differ. Nothing is copied then.
    """
    own = lora_state_dict(model, adapter_name)
    if any(layer.merged for layer in wrapped_layers(model).values()):
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
        for layer in wrapped_layers(model).values()
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


def _names(model: nn.Module, names: str | Sequence[str] | None) -> list[str]:
    registry_of(model)
    chosen = [] if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        adapter_config(model, name)  # refuses one that is not there
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
    return [tensor for _, tensor in layer_tensors(layer, name)]


def _unmerge(layer: LoRALayer | SavedModule) -> None:
    if isinstance(layer, LoRALayer):
        layer.unmerge()
    else:
        layer.merged = False
