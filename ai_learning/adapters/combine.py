"""One adapter out of several: their updates added up, or the parts they agree on (`add_weighted_adapter`).

    cat           the sum itself; its rank is the sum of the ranks
    svd           the closest update of a given rank to that sum (Eckart and Young 1936)
    linear        factors added, not updates: cheap, and wrong by the products of one's B with another's A

and, with pruning of each update before it is added, on factors as ``linear`` or, with ``_svd``, on updates:

    magnitude_prune   the largest entries only
    ties              those, and of them only the ones with the sign of the majority (Yadav et al. 2023)
    dare_linear       a random part, scaled up (Yu et al. 2024, "Language Models are Super Mario")
    dare_ties         a random part, scaled up, with the majority's sign
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..errors import InputError
from .config import anchored, exactly
from .layers import LoRALayer
from .lora import delete_adapter, inject_lora, use_adapter
from .registry import adapter_config, adapter_names, lora_candidates, wrapped_layers

PRUNED = ("magnitude_prune", "ties", "dare_linear", "dare_ties")
COMBINATIONS = ("cat", "svd", "linear", *PRUNED, *(f"{name}_svd" for name in PRUNED))
_SIGNS = ("total", "frequency")


@torch.no_grad()
def add_weighted_adapter(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    *,
    svd_rank: int | None = None,
    density: float = 1.0,
    majority_sign_method: str = "total",
) -> nn.Module:
    """Add the adapter ``Σ weightᵢ · updateᵢ`` beside those it is made of; the active ones stay active.

    Args:
        model: with adapters.
        adapters: which to combine; a layer that only some of them adapt gets the sum of those.
        weights: one for each, negative ones too: ``[1, -1]`` is what the first knows and the second does not.
        adapter_name: the new one's.
        combination_type: ``cat`` (the sum itself, of the sum of the ranks), ``svd`` (the closest update of
            rank ``svd_rank``), ``linear`` (factors added: a rough approximation), or with pruning before:
            ``magnitude_prune``, ``ties``, ``dare_linear``, ``dare_ties``, each of the factors or, with
            ``_svd`` behind its name, of the updates.
        svd_rank: rank with ``svd`` and ``…_svd``; the greatest of the adapters' when left out.
        density: share of the entries that pruning keeps, in (0, 1]; 1 prunes nothing.
        majority_sign_method: how ``ties`` elects a sign: ``total`` (of the sum) or ``frequency`` (of the
            count).

    Returns:
        The same model.

    Raises:
        InputError: unknown names, weights that do not match, adapters that are no plain sums of low-rank
            updates (DoRA, trained biases or modules), or ``linear`` with unequal ranks. The model is left
            as it was.

    Example:
        >>> from ai_learning.adapters import LoRAConfig
        >>> from ai_learning.model import GPT, GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=9, block_size=4, n_layer=1, n_head=1, n_embd=8))
        >>> for name in ("poems", "code"):
        ...     _ = inject_lora(model, LoRAConfig(r=2), name)
        >>> _ = add_weighted_adapter(model, ["poems", "code"], [0.5, 0.5], "both", "cat")
        >>> adapter_config(model, "both").r
        4
    """
    _check(model, adapters, weights, combination_type, svd_rank, density, majority_sign_method)
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for path, layer in wrapped_layers(model).items():
        if isinstance(layer, LoRALayer) and any(name in layer.adapters for name in adapters):
            made[path] = _combined(
                layer, adapters, weights, combination_type, svd_rank, density, majority_sign_method
            )
            if not all(torch.isfinite(factor).all() for factor in made[path]):
                raise InputError(f"{path}: the sum is not finite; look at the weights of {list(adapters)}")
    ranks = {path: len(A) for path, (A, _) in made.items()}
    r = max(ranks.values())
    config = replace(
        adapter_config(model, adapters[0]),
        r=r,
        lora_alpha=float(r),
        use_rslora=False,
        target_modules=exactly(list(made), lora_candidates(model)),
        exclude_modules=(),
        layers_to_transform=None,
        rank_pattern={anchored(path): rank for path, rank in ranks.items() if rank != r},
        alpha_pattern={anchored(path): float(rank) for path, rank in ranks.items() if rank != r},
    )
    with use_adapter(model, None):  # whatever is active now is active again after
        inject_lora(model, config, adapter_name)
    try:
        for path, (A, B) in made.items():
            combined = model.get_submodule(path)
            assert isinstance(combined, LoRALayer)
            combined.lora_A[adapter_name].copy_(A).requires_grad_(False)  # not active, so not trained
            combined.lora_B[adapter_name].copy_(B).requires_grad_(False)
    except BaseException:
        delete_adapter(model, adapter_name)
        raise
    return model


# ---- the ways ------------------------------------------------------------------------------------

Factors = tuple[Tensor, Tensor]  # A (R, I), B (O, R)


def _combined(
    layer: LoRALayer,
    adapters: Sequence[str],
    weights: Sequence[float],
    how: str,
    svd_rank: int | None,
    density: float,
    signs: str,
) -> Factors:
    """The new factors of one layer, in fp32 or wider: there are no decompositions in 16 bits."""
    parts = [(name, w) for name, w in zip(adapters, weights, strict=True) if name in layer.adapters]
    wide = torch.promote_types(layer.lora_A[parts[0][0]].dtype, torch.float32)
    factors = [(layer.lora_A[name].to(wide), layer.lora_B[name].to(wide)) for name, _ in parts]
    scales = [w * layer.adapters[name].scaling for name, w in parts]
    rank = svd_rank or max(len(A) for A, _ in factors)
    if how in ("cat", "svd"):
        A, B = _side_by_side(factors, scales)
        if how == "cat" or not (torch.isfinite(A).all() and torch.isfinite(B).all()):
            return A, B
        return _closest(A, B, rank)
    if how.endswith("_svd"):
        updates = [
            B @ A * layer.adapters[name].scaling for (name, _), (A, B) in zip(parts, factors, strict=True)
        ]
        update = _pruned_sum(updates, [w for _, w in parts], how.removesuffix("_svd"), density, signs)
        return _truncated(update, rank) if torch.isfinite(update).all() else (update, update)
    return _factors_summed(factors, scales, layer.path, how, density, signs)


def _side_by_side(factors: Sequence[Factors], scales: Sequence[float]) -> Factors:
    """``Σ s·B·A`` as one product: A stacked (ΣR, I), B side by side (O, ΣR)."""
    A = torch.cat([A * s for (A, _), s in zip(factors, scales, strict=True)])
    return A, torch.cat([B for _, B in factors], dim=1)


def _closest(A: Tensor, B: Tensor, rank: int) -> Factors:
    """The best approximation of ``B·A`` of a rank, from the factors: the product itself is never formed.

    ``B = Q₁R₁`` and ``Aᵀ = Q₂R₂`` with orthonormal columns, so the singular values of ``B·A`` are those of
    the small ``R₁R₂ᵀ``.
    """
    Q_out, R_out = torch.linalg.qr(B)
    Q_in, R_in = torch.linalg.qr(A.t())
    U, S, Vh = torch.linalg.svd(R_out @ R_in.t(), full_matrices=False)
    return _padded(Vh[:rank] @ Q_in.t(), Q_out @ (U[:, :rank] * S[:rank]), rank)


def _truncated(update: Tensor, rank: int) -> Factors:
    """The best approximation of an update (O, I) of a rank."""
    U, S, Vh = torch.linalg.svd(update, full_matrices=False)
    return _padded(Vh[:rank], U[:, :rank] * S[:rank], rank)


def _padded(A: Tensor, B: Tensor, rank: int) -> Factors:
    """With zeros up to a rank that the layer does not have."""
    missing = rank - len(A)
    return nn.functional.pad(A, (0, 0, 0, missing)), nn.functional.pad(B, (0, missing))


def _factors_summed(
    factors: Sequence[Factors], scales: Sequence[float], path: str, how: str, density: float, signs: str
) -> Factors:
    """A's and B's added apart, each with the root of its scale; a negative sign goes to A."""
    ranks = [len(A) for A, _ in factors]
    if len(set(ranks)) > 1:
        raise InputError(f"{path}: adapters of ranks {ranks} cannot be combined by {how!r}: use 'svd'")
    roots = [math.sqrt(abs(s)) for s in scales]
    signed = [math.copysign(root, s) for root, s in zip(roots, scales, strict=True)]
    return (
        _pruned_sum([A for A, _ in factors], signed, how, density, signs),
        _pruned_sum([B for _, B in factors], roots, how, density, signs),
    )


def _pruned_sum(
    tensors: Sequence[Tensor], weights: Sequence[float], how: str, density: float, signs: str
) -> Tensor:
    """``Σ weight · tensor`` of what pruning leaves; with ``ties`` the mean over those that agree in sign."""
    if how != "linear" and density < 1:
        prune = _random_part if how.startswith("dare") else _largest
        tensors = [prune(tensor, density) for tensor in tensors]
    stacked = torch.stack(list(tensors))  # (n, …)
    weighted = stacked * stacked.new_tensor(weights).view(-1, *[1] * (stacked.dim() - 1))
    if not how.endswith("ties"):
        return weighted.sum(0)
    elected = (stacked.sum(0) if signs == "total" else stacked.sign().sum(0)) >= 0
    agrees = stacked.sign() == torch.where(elected, 1, -1)
    return (weighted * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(tensor: Tensor, density: float) -> Tensor:
    keep = tensor.abs().flatten().topk(int(density * tensor.numel())).indices
    return tensor * torch.zeros_like(tensor).flatten().index_fill(0, keep, 1).view_as(tensor)


def _random_part(tensor: Tensor, density: float) -> Tensor:
    return tensor * torch.bernoulli(torch.full_like(tensor, density)) / density


# ---- bad input -----------------------------------------------------------------------------------


def _check(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    how: str,
    svd_rank: int | None,
    density: float,
    signs: str,
) -> None:
    if how not in COMBINATIONS:
        raise InputError(f"combination_type={how!r} is unknown: use one of {', '.join(COMBINATIONS)}")
    if isinstance(adapters, str) or not adapters or len(adapters) != len(weights):
        raise InputError(
            f"adapters={adapters!r} and weights={weights!r} must be two lists of the same length, not empty"
        )
    if len(set(adapters)) < len(adapters):
        raise InputError(f"adapters={list(adapters)} names one twice: give it the sum of its weights")
    if not all(isinstance(weight, int | float) and math.isfinite(weight) for weight in weights):
        raise InputError(f"weights={list(weights)} must be finite numbers")
    if svd_rank is not None and svd_rank < 1:
        raise InputError(f"svd_rank={svd_rank} must be at least 1, or left out")
    if not 0 < density <= 1:
        raise InputError(f"density={density} must be above 0 and at most 1")
    if signs not in _SIGNS:
        raise InputError(f"majority_sign_method={signs!r} is unknown: use one of {', '.join(_SIGNS)}")
    known = adapter_names(model)
    for name in adapters:
        config = adapter_config(model, name)
        for is_so, what in (
            (config.use_dora, "is DoRA, which rescales whole rows"),
            (config.bias != "none", "trained biases"),
            (bool(config.modules_to_save), "trained whole modules"),
        ):
            if is_so:
                raise InputError(
                    f"adapter {name!r} {what}, so it cannot be combined with others; of {known}, plain "
                    "LoRA adapters can"
                )
