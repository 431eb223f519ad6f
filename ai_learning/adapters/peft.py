"""PEFT's file format, both ways: ``adapter_config.json`` and ``adapter_model.safetensors``.

Files are written with the names that a model has in transformers (`peft_names`), so that PEFT opens them
there, and read from such files.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_path, write_text
from .config import LoRAConfig, anchored, by_pattern, exactly, find_targets, is_named
from .hot_swap import remember, swap_known
from .layers import Adapter, LoRALayer, SavedModule
from .linear import is_conv1d
from .lora import delete_adapter, inject_lora, load_lora_state_dict, lora_state_dict, set_adapter
from .peft_names import CONFIG_FILE, DEFAULT_OF_PEFT, LORA_KEY, PREFIX, WEIGHTS_FILE, Names, names_of
from .registry import (
    DEFAULT,
    adapter_config,
    adapter_names,
    as_it_was_on_error,
    lora_candidates,
    modules_named,
    plain_parameters,
    registry_of,
    wrapped_layers,
)

# Options that change what an adapter computes; an adapter that uses one is refused rather than read wrongly.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_CHANGES_BASE = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # initialisations that edit the frozen weights


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _are_numbers_by_pattern(value: Any) -> bool:
    try:
        return all(re.compile(key) and isinstance(number, int | float) for key, number in value.items())
    except (AttributeError, re.error):
        return False


_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "lora_alpha": ("a number", lambda v: isinstance(v, int | float)),
    "lora_dropout": ("a number", lambda v: isinstance(v, int | float)),
    "target_modules": ("a text or a list of texts", lambda v: isinstance(v, str) or _are_texts(v)),
    "modules_to_save": ("a list of texts", _are_texts),
    "alpha_pattern": ("numbers by pattern", _are_numbers_by_pattern),
    "rank_pattern": ("numbers by pattern", _are_numbers_by_pattern),
}
"""what a config's values must be"""


def save_peft(
    model: nn.Module,
    folder: Path | str,
    adapter_name: str = DEFAULT,
    *,
    base_model: str | None = None,
    task_type: str | None = "auto",
) -> None:
    """Write an adapter as PEFT does: ``PeftModel.from_pretrained(transformers_model, folder)`` opens it.

    Args:
        model: with adapters.
        folder: made if need be; each file is replaced atomically.
        adapter_name: which adapter.
        base_model: name or folder of the frozen model, noted in the config.
        task_type: noted in the config; ``"auto"`` is what `load_peft` found, or ``CAUSAL_LM`` where the model
            has an ``lm_head`` or writes text (as transformers has it), or none.

    Raises:
        InputError: an unknown adapter.
    """
    config, names = adapter_config(model, adapter_name), names_of(model)
    if task_type == "auto":
        writes = hasattr(model, "lm_head") or hasattr(model, "prepare_inputs_for_generation")
        task_type = registry_of(model).task_types.get(adapter_name, "CAUSAL_LM" if writes else None)
    layers = {
        p: m
        for p, m in wrapped_layers(model).items()
        if isinstance(m, LoRALayer) and adapter_name in m.adapters
    }
    state: dict[str, Tensor] = {}
    for key, tensor in lora_state_dict(model, adapter_name).items():
        path, _, name = key.rpartition(".")
        if path in layers and name == "bias":  # a trained bias of a layer that PEFT, too, has wrapped
            key = f"{path}.base_layer.{name}"
        state[PREFIX + names.there(key)] = names.tensor(key, tensor).clone(
            memory_format=torch.contiguous_format
        )
    state = names.parted(state)
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    transposed = any(names.is_transposed(f"{path}.weight") for path in layers)
    text = {
        "alpha_pattern": _patterns_there(config.alpha_pattern, layers, names),
        "base_model_name_or_path": base_model,
        "bias": config.bias,
        "fan_in_fan_out": transposed or any(is_conv1d(layer.base_layer) for layer in layers.values()),
        "inference_mode": True,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "modules_to_save": _saved_there(model, config.modules_to_save, names) or None,
        "peft_type": "LORA",
        "r": config.r,
        "rank_pattern": _patterns_there(config.rank_pattern, layers, names),
        "target_modules": _target_names(model, config, list(layers), names),
        "task_type": task_type,
        "use_dora": config.use_dora,
        "use_rslora": config.use_rslora,
    }
    # Not sorted: the first pattern that fits counts.
    write_text(folder / CONFIG_FILE, json.dumps(text, indent=2) + "\n")


def load_peft(model: nn.Module, folder: Path | str, adapter_name: str = DEFAULT) -> LoRAConfig:
    """Put an adapter that PEFT (or `save_peft`) wrote on a model, and make it active.

    An adapter of the same name is replaced: when layers and ranks are the same, by copying the weights in
    place (a hot swap), so optimizers and compiled code keep their tensors.

    Args:
        model: the frozen model: ours, or any whose names are those in the file.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        adapter_name: the name it gets.

    Returns:
        Its config.

    Raises:
        InputError: missing or damaged files, an option that is not supported, layers the model does not have,
            or shapes that do not fit. The model is left as it was.
    """
    folder = Path(folder)
    swapped = swap_known(model, folder, adapter_name)
    if swapped is not None:
        return swapped
    names = names_of(model)
    joined = names.joined(_read_weights(folder), _read_config(folder))
    text = joined.config
    state, paths, foreign = _translate(joined.weights, names)
    config = _config_here(text, model, state, paths, names)
    foreign |= _take_frozen(model, config, state)
    _check_foreign_bases(model, foreign, folder, text)
    if not (adapter_name in adapter_names(model) and _swap(model, adapter_name, config, state)):
        known = lora_candidates(model)
        for path in paths:
            if path not in known:
                raise InputError(
                    f"{folder}: the adapter has weights for {path!r}, which the model does not have"
                )
        _check_shapes(config, state, known, folder)
        with as_it_was_on_error(model):
            if adapter_name in adapter_names(model):
                delete_adapter(model, adapter_name)
            inject_lora(model, config, adapter_name)
            try:
                load_lora_state_dict(model, state, adapter_name)
            except InputError as error:
                raise InputError(f"{folder}: {error}") from None
    registry_of(model).task_types[adapter_name] = text.get("task_type")
    remember(model, folder, adapter_name, names, joined)
    return config


# ---- writing -------------------------------------------------------------------------------------


def _target_names(model: nn.Module, config: LoRAConfig, paths: list[str], names: Names) -> list[str] | str:
    """What means exactly these layers to PEFT: short names where they suffice, else paths, or a pattern."""
    narrowed = config.exclude_modules or config.layers_to_transform is not None
    wanted = [there for path in paths for there in names.layers_there(path)]
    known = {there: layer for p, layer in lora_candidates(model).items() for there in names.layers_there(p)}
    if type(names) is Names and not isinstance(config.target_modules, str) and not narrowed:
        return sorted(config.target_modules)
    short = sorted({path.rpartition(".")[2] for path in wanted})
    if set(find_targets(known, short, set())) == set(wanted):
        return short
    if isinstance(exactly(wanted, known), list):
        return wanted
    return f"({'|'.join(map(re.escape, wanted))})"


def _patterns_there(patterns: Mapping[str, Any], paths: Iterable[str], names: Names) -> dict[str, Any]:
    """The same for the layers there: those that are anchored begin where paths begin there."""
    if any(names.layers_there(path)[0].rpartition(".")[2] != path.rpartition(".")[2] for path in paths):
        return {  # other names: layer by layer
            anchored(there): value
            for path in paths
            if (value := by_pattern(patterns, path, None)) is not None
            for there in names.layers_there(path)
        }
    begin = re.escape(names.there(""))
    return {
        f"^{begin}{p[1:]}" if p.startswith("^") and not p.startswith("^lm_head") else p: value
        for p, value in patterns.items()
    }


# ---- reading -------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no {CONFIG_FILE} in {folder}: it is not a folder that PEFT saved") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if not isinstance(text, dict) or text.get("peft_type") != "LORA":
        kind = text.get("peft_type") if isinstance(text, dict) else None
        raise InputError(f"{path} describes peft_type={kind!r}; only LORA is supported")
    for name, (kind, is_it) in _KINDS.items():
        if text.get(name) is not None and not is_it(text[name]):
            raise InputError(f"{path}: {name}={text[name]!r} must be {kind}")
    used = [name for name in _UNSUPPORTED if text.get(name)]
    if used:
        raise InputError(f"{path} uses {', '.join(used)}, which is not supported here")
    init = text.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise InputError(
            f"{path}: init_lora_weights={init!r} changed the frozen weights too; save it in PEFT with "
            "path_initial_model_for_weight_conversion first"
        )
    return text


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path, pickled = folder / WEIGHTS_FILE, folder / "adapter_model.bin"
    try:
        if path.is_file() or not pickled.is_file():
            return load_file(path)
    except FileNotFoundError:
        raise InputError(f"no {WEIGHTS_FILE} in {folder}: it is not a folder that PEFT saved") from None
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is damaged or no safetensors file ({error})") from None
    try:
        loaded = torch.load(pickled, weights_only=True, map_location="cpu")
    except Exception as error:  # a pickle can fail in any way; weights_only runs nothing of it
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{pickled} is damaged, or holds more than tensors ({reason})") from None
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise InputError(f"{pickled} must hold tensors by name, not {type(loaded).__name__}")
    return loaded


def _translate(
    weights: Mapping[str, Tensor], names: Names
) -> tuple[dict[str, Tensor], list[str], dict[str, Tensor]]:
    """PEFT's state → (ours, paths of the adapted layers, frozen weights that came along)."""
    state: dict[str, Tensor] = {}
    foreign: dict[str, Tensor] = {}
    paths: list[str] = []
    for key, tensor in weights.items():
        if not key.startswith(PREFIX):
            raise InputError(
                f"the adapter's weight {key!r} does not begin with {PREFIX!r}: not PEFT's format"
            )
        plain = key.removeprefix(PREFIX)
        if ".original_module." in plain:  # of a module that was trained whole: never used
            continue
        if ".modules_to_save." in plain:  # bias="all" sees the trained module's bias twice
            plain = plain.replace(".modules_to_save.", ".")
            if f"{PREFIX}{plain}" in weights:
                continue
        here = names.here(plain)
        match = LORA_KEY.match(here)
        if match:
            if not tensor.is_floating_point():
                raise InputError(f"the adapter's weight {key!r} is {tensor.dtype}: adapters hold floats")
            if match[1] not in paths:
                paths.append(match[1])
            state[here] = tensor
        elif here.endswith(".base_layer.bias"):
            state[here.replace(".base_layer.bias", ".bias")] = tensor
        elif ".base_layer." in here:
            foreign[here.replace(".base_layer.", ".")] = tensor
        else:
            state[here] = names.tensor(here, tensor)
    if not paths:
        raise InputError("the file has no LoRA weights (no key ends in lora_A.weight)")
    return state, paths, foreign


def _config_here(
    text: Mapping[str, Any], model: nn.Module, state: dict[str, Tensor], paths: list[str], names: Names
) -> LoRAConfig:
    """PEFT's config as a `LoRAConfig` that means exactly the layers in the file."""
    r, alpha = (DEFAULT_OF_PEFT if text.get(name) is None else text[name] for name in ("r", "lora_alpha"))
    ranks, alphas = {}, {}
    for path in paths:
        A = state.get(f"{path}.lora_A.weight", state.get(f"{path}.lora_embedding_A"))
        if A is not None and A.dim() in (3, 4, 5):
            raise InputError(f"the adapter's update of {path!r} is one of a convolution: not supported here")
        if A is None or A.dim() != 2:
            raise InputError(f"the adapter's file has no matrix lora_A for {path!r}: it is incomplete")
        if A.shape[0] != r:
            ranks[anchored(path)] = int(A.shape[0])
        own = by_pattern(text.get("alpha_pattern") or {}, names.there(path), None)
        if own is not None:
            alphas[anchored(path)] = own
    wanted = text.get("target_modules")
    candidates = lora_candidates(model)
    targets: str | list[str] = paths
    if set(paths) <= candidates.keys():  # another path is refused later
        targets = exactly(paths, candidates)
    if isinstance(wanted, list) and wanted:  # keep the short names if they mean the same layers here
        named = [path for path in candidates if any(is_named(path, name) for name in wanted)]
        targets = sorted(wanted) if set(named) == set(paths) else targets
    return LoRAConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=text.get("lora_dropout") or 0.0,
        target_modules=targets,
        use_rslora=bool(text.get("use_rslora")),
        use_dora=bool(text.get("use_dora")),
        bias=text.get("bias") or "none",
        # PEFT's task types name heads of several architectures: those that this one lacks mean nothing.
        modules_to_save=_saved_here(model, text.get("modules_to_save") or (), state, names),
        init="gaussian" if text.get("init_lora_weights") == "gaussian" else "kaiming",
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def _saved_there(model: nn.Module, saved: Sequence[str], names: Names) -> list[str]:
    """``modules_to_save`` in transformers' words."""
    found: list[str] = []
    everywhere = [there for path, _ in model.named_modules() if path for there in names.layers_there(path)]
    for name in saved:
        # To PEFT "norm" means input_layernorm, too: then in full, as under another name.
        means_more = any(there.endswith(name) and not is_named(there, name) for there in everywhere)
        for path in modules_named(model, [name]):
            for there in names.layers_there(path):
                last = there.rpartition(".")[2]
                word = last if name == last and not means_more else there
                found += [word] * (word not in found)
    return found


def _saved_here(
    model: nn.Module, saved: Sequence[str], state: Mapping[str, Tensor], names: Names
) -> tuple[str, ...]:
    """``modules_to_save`` of a file in this module's words; heads that it does not have mean nothing.

    PEFT takes whatever ends in the name: which modules are meant shows in the weights.
    """
    paths = [path for path, _ in model.named_modules() if path and path.rpartition(".")[2] != "_orig_mod"]
    found: list[str] = []
    for name in saved:
        meant = [p for p in paths if any(there.endswith(name) for there in names.layers_there(p))]
        filled = [path for path in meant if any(key.startswith(f"{path}.") for key in state)]
        if not filled:  # the weights are missing, which will be said
            filled = [p for p in meant if any(is_named(there, name) for there in names.layers_there(p))]
        last = {path.rpartition(".")[2] for path in filled}
        short = sorted(last) if filled == [p for p in paths if p.rpartition(".")[2] in last] else filled
        found += [word for word in short if word not in found]
    return tuple(found)


def _take_frozen(model: nn.Module, config: LoRAConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take out of ``state`` what the adapter has not trained: embeddings that PEFT saved beside it, and the
    second name of a tied bias."""
    plain = plain_parameters(model, tied=True)
    whole = tuple(f"{path}." for path in modules_named(model, config.modules_to_save))
    frozen: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for key in [key for key in state if LORA_KEY.match(key) is None and key in plain]:
        if key.startswith(whole):
            continue
        if config.bias != "none" and key.endswith("bias"):
            if first.setdefault(id(plain[key]), key) != key:
                del state[key]
        else:
            frozen[key] = state.pop(key)
    return frozen


def _check_foreign_bases(
    model: nn.Module, foreign: Mapping[str, Tensor], folder: Path, text: Mapping[str, Any]
) -> None:
    """PEFT saves the whole frozen layer of an adapted output head: it must be the one we have."""
    plain = plain_parameters(model, tied=True)
    for key, tensor in foreign.items():
        own = plain.get(key)
        if own is None or own.shape != tensor.shape or not torch.equal(own.cpu(), tensor.to(own.dtype)):
            saved = text.get("modules_to_save")
            if saved and text.get("ensure_weight_tying"):  # then it is no frozen one
                raise InputError(
                    f"{folder} uses ensure_weight_tying with modules_to_save={saved}, which trained {key} as "
                    "well: that is not supported here"
                )
            raise InputError(
                f"{folder} brings its own frozen {key}, which differs from the model's: "
                "it was trained on another model (or a resized vocabulary)"
            )


def _check_shapes(
    config: LoRAConfig, state: Mapping[str, Tensor], known: Mapping[str, nn.Module], folder: Path
) -> None:
    """Fail before anything is touched when a matrix does not fit its layer."""
    for key, tensor in state.items():
        match = LORA_KEY.match(key)
        if match is None:
            continue
        layer, r = LoRALayer(known[match[1]], match[1]), config.rank(match[1])
        A, B = (r, layer.in_features), (layer.out_features, r)
        fitting: dict[str, tuple[int, ...]] = {
            "lora_A.weight": A,
            "lora_embedding_A": A,
            "lora_B.weight": B,
            "lora_embedding_B": B,
            "lora_magnitude_vector": B[:1],
        }
        if tensor.shape != fitting[match[2]]:
            raise InputError(
                f"{folder}: {key} has shape {tuple(tensor.shape)}, but {match[1]} is {layer.in_features} → "
                f"{layer.out_features} wide, and r={r}"
            )


@torch.no_grad()
def _swap(model: nn.Module, name: str, config: LoRAConfig, state: Mapping[str, Tensor]) -> bool:
    """Copy into the adapter that is there, if it has the same tensors; say whether it did."""
    own = lora_state_dict(model, name)
    wrappers = wrapped_layers(model)
    merged = any(layer.merged for layer in wrappers.values())
    before = adapter_config(model, name)
    if any(getattr(before, field) != getattr(config, field) for field in ("use_dora", "bias")):
        return False
    if set(before.modules_to_save) != set(config.modules_to_save):
        return False
    if merged or own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
        return False
    for key, tensor in own.items():
        tensor.copy_(state[key])
    for path, layer in wrappers.items():
        if isinstance(layer, LoRALayer) and name in layer.adapters:
            layer.adapters[name] = Adapter(
                config.rank(path), config.scaling(path), config.lora_dropout, config.use_dora
            )
    registry_of(model).configs[name] = config
    if any(isinstance(layer, SavedModule) or layer.active != (name,) for layer in wrappers.values()):
        set_adapter(model, name)
    return True
