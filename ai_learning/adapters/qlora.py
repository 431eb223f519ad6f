"""QLoRA (Dettmers et al. 2023): the frozen linear layers in 4 bits, then LoRA on them."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .config import ALL_LINEAR, LoRAConfig, find_targets
from .layers import LoRALayer, weight_of
from .lora import inject_lora
from .nf4 import FLOATS
from .nf4_linear import NF4Linear, check_is_quantized, is_bnb_4bit
from .registry import (
    DEFAULT,
    check_adapter_name,
    lora_candidates,
    modules_named,
    output_heads,
    planned_layers,
    put_module,
)

OPTIMIZERS = ("adamw", "adamw8bit", "paged_adamw", "paged_adamw8bit", "torchao_adamw8bit")
"""names that ``make_optimizer`` knows"""
_BITSANDBYTES = {
    "adamw8bit": "AdamW8bit",
    "paged_adamw": "PagedAdamW",
    "paged_adamw8bit": "PagedAdamW8bit",
}


def quantize_linears(
    model: nn.Module,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    *,
    quant_type: str = "nf4",
    compress_statistics: bool = True,
    blocksize: int = 64,
    compute_dtype: torch.dtype | None = None,
    skip_modules: Sequence[str] = (),
) -> list[str]:
    """Replace linear layers by `NF4Linear`, in place; bitsandbytes' Linear4bit are taken over as they are.

    Args:
        model: any module.
        target_modules: as in `LoRAConfig`; ``"all-linear"`` leaves output heads as they are.
        quant_type: ``"nf4"``, ``"fp4"`` or ``"int4"``.
        compress_statistics: double quantization.
        blocksize: elements of a block.
        compute_dtype: of the products; the input's dtype when ``None``.
        skip_modules: names of modules that are left as they are, with all in them.

    Returns:
        The paths of the layers that were replaced.

    Raises:
        InputError: a pattern that matches nothing, adapters that are on already, or a layer that cannot be
            quantized (its weight is shared, or no matrix of 16 or 32 bit floats). Nothing is changed then.
    """
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise InputError("the model has adapters already: quantize first, then inject_lora")
    candidates = {
        path: module
        for path, module in lora_candidates(model).items()
        if not isinstance(module, NF4Linear | nn.Embedding)
    }
    skipped = tuple(f"{path}." for path in modules_named(model, skip_modules, "skip_modules"))
    if skipped:
        candidates = {path: layer for path, layer in candidates.items() if not f"{path}.".startswith(skipped)}
    heads = output_heads(model)
    try:
        paths = find_targets(candidates, target_modules, heads)
    except InputError as error:
        done = any(isinstance(module, NF4Linear) for module in model.modules())
        raise InputError(f"{error}{'; others are in 4 bits already' if done else ''}") from None
    for path in paths:
        _check_quantizable(model, path, candidates[path])
    for path in paths:
        if is_bnb_4bit(candidates[path]):
            put_module(model, path, NF4Linear.from_bnb(candidates[path]))
            continue
        layer = NF4Linear.from_linear(
            candidates[path],
            quant_type=quant_type,
            compress_statistics=compress_statistics,
            blocksize=blocksize,
            compute_dtype=compute_dtype,
        )
        put_module(model, path, layer)
    return paths


def _check_quantizable(model: nn.Module, path: str, layer: nn.Module) -> None:
    weight = weight_of(layer)
    if is_bnb_4bit(layer):
        check_is_quantized(layer)
    elif weight.dim() != 2 or weight.dtype not in FLOATS:
        raise InputError(
            f"{path} has a {weight.dtype} weight of shape {tuple(weight.shape)}, which cannot be "
            "quantized: leave it out"
        )
    if sum(weight is p for _, p in model.named_parameters(remove_duplicate=False)) > 1:
        raise InputError(
            f"{path} shares its weight with another layer, so it cannot be quantized; leave it out"
        )


def prepare_qlora(
    model: nn.Module,
    config: LoRAConfig | None = None,
    adapter_name: str = DEFAULT,
    *,
    quant_type: str = "nf4",
    compress_statistics: bool = True,
    blocksize: int = 64,
    compute_dtype: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
) -> nn.Module:
    """Quantize every linear layer but the output head, then put LoRA on them, in place.

    Args:
        model: any module.
        config: of the adapter; the paper puts it on all linear layers, which is the default.
        adapter_name: its name.
        quant_type: see `quantize_linears`.
        compress_statistics: see `quantize_linears`.
        blocksize: see `quantize_linears`.
        compute_dtype: see `quantize_linears`; the paper computes in bf16.
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.

    Returns:
        The same model. After training, ``eject_lora(model, merge=True)`` gives linear layers in the dtype
        that the model had before.

    Raises:
        InputError: see `quantize_linears` and `inject_lora`.
    """
    config = config or LoRAConfig()
    # Refuse what inject_lora would refuse before anything is quantized.
    check_adapter_name(adapter_name)
    planned_layers(model, config)
    if gradient_checkpointing:
        _blocks(model)
    quantize_linears(
        model,
        skip_modules=config.modules_to_save,
        quant_type=quant_type,
        compress_statistics=compress_statistics,
        blocksize=blocksize,
        compute_dtype=compute_dtype,
    )
    inject_lora(model, config, adapter_name)
    if gradient_checkpointing:
        checkpoint_blocks(model)
    return model


def checkpoint_blocks(model: nn.Module) -> int:
    """Recompute each block of every nn.ModuleList in the backward pass while training (Chen et al. 2016).

    Returns:
        The number of blocks.

    Raises:
        InputError: a model without an nn.ModuleList.
    """
    blocks = _blocks(model)
    for block in blocks:
        if not hasattr(block, "_forward_without_checkpoint"):
            block._forward_without_checkpoint = block.forward
            block.forward = functools.partial(_checkpointed, block)
    return len(blocks)


def _blocks(model: nn.Module) -> list[Any]:
    blocks: list[Any] = [
        block for modules in model.modules() if isinstance(modules, nn.ModuleList) for block in modules
    ]
    if not blocks:
        raise InputError(f"{type(model).__name__} has no nn.ModuleList of blocks to checkpoint")
    return blocks


def _checkpointed(block: Any, *args: Any, **kwargs: Any) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(block._forward_without_checkpoint, *args, use_reentrant=False, **kwargs)
    return block._forward_without_checkpoint(*args, **kwargs)


def _tensors_of(parameters: Iterable[Any]) -> Iterator[torch.Tensor]:
    for p in parameters:
        yield from (p["params"] if isinstance(p, dict) else [p])


def make_optimizer(
    parameters: Iterable[Any], name: str = "adamw", *, lr: float = 2e-4, **settings: Any
) -> torch.optim.Optimizer:
    """An optimizer by name; the 8-bit and paged ones keep their state small (QLoRA, section 3).

    Args:
        parameters: parameters, named or not, or groups of them (`lora_plus_groups`); frozen ones are skipped.
        name: ``adamw`` (PyTorch), ``adamw8bit``, ``paged_adamw``, ``paged_adamw8bit`` (bitsandbytes; paging
            needs a GPU) or ``torchao_adamw8bit``.
        lr: learning rate.
        settings: passed on to the optimizer.

    Raises:
        InputError: an unknown name, a paged one without a GPU, or the library it comes from is not installed.
    """
    chosen = [p[1] if isinstance(p, tuple) else p for p in parameters]  # of (name, parameter)
    chosen = [p for p in chosen if isinstance(p, dict) or p.requires_grad]
    if name == "adamw":
        return torch.optim.AdamW(chosen, lr=lr, **settings)
    if name not in OPTIMIZERS:
        raise InputError(f"optimizer {name!r} is unknown: use one of {', '.join(OPTIMIZERS)}")
    if name.startswith("paged") and not any(p.is_cuda for p in _tensors_of(chosen)):
        raise InputError(f"{name} pages memory between GPU and host: it needs a GPU; use adamw or adamw8bit")
    library = "torchao" if name.startswith("torchao") else "bitsandbytes"
    try:
        if library == "torchao":
            from torchao.optim import AdamW8bit  # type: ignore[import-not-found]

            optimizer_class = AdamW8bit
        else:
            import bitsandbytes

            optimizer_class = getattr(bitsandbytes.optim, _BITSANDBYTES[name])
    except ImportError:
        raise InputError(
            f"optimizer {name!r} needs {library}: pip install {library}, or use 'adamw'"
        ) from None
    optimizer: torch.optim.Optimizer = optimizer_class(chosen, lr=lr, **settings)
    return optimizer
