"""What an adapter is (`LoRAConfig`) and which layers of a model it goes to (`find_targets`)."""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from ..errors import InputError

ALL_LINEAR = "all-linear"
_BIAS = ("none", "all", "lora_only")
_INIT = ("kaiming", "gaussian")

T = TypeVar("T")


@dataclass(frozen=True)
class LoRAConfig:
    """A low-rank update ``W + s·B·A`` of chosen linear layers (Hu et al. 2021, section 4.1).

    Attributes:
        r: rank of the update; A is (r, in_features), B is (out_features, r).
        lora_alpha: the update is scaled by ``s = lora_alpha / r``.
        lora_dropout: probability of dropping an input of A while training.
        target_modules: ``"all-linear"`` (every linear layer but the output head), a regular expression that
            matches whole paths, or a list of names (``"c_attn"`` or ``"h.0.attn.c_attn"``).
        exclude_modules: layers that ``target_modules`` would mean and that get no update all the same, given
            as ``target_modules`` are; a name that matches nothing is an error.
        layers_to_transform: the block, or list of blocks, whose layers are meant (the first number in a
            path); ``None``: all blocks, and what stands outside of them.
        use_rslora: scale by ``lora_alpha / √r`` instead (rsLoRA, Kalajdzievski 2023).
        use_dora: learn the length of every row of the weight apart from its direction (DoRA, Liu et al.
            2024).
        bias: which biases are trained too: ``"none"``, ``"all"`` of the model, or ``"lora_only"`` of the
            targets.
        modules_to_save: names of modules that are trained whole and saved with the adapter.
        init: how A starts: ``"kaiming"`` (uniform, as nn.Linear) or ``"gaussian"`` (std 1/r). B starts at
            zero, so that a fresh adapter changes nothing.
        rank_pattern: ranks of single layers, by name or regular expression, where they differ from ``r``.
        alpha_pattern: the same for ``lora_alpha``.

    Raises:
        InputError: a value that cannot work.
    """

    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.0
    target_modules: str | Sequence[str] = ALL_LINEAR
    exclude_modules: str | Sequence[str] = ()
    layers_to_transform: int | Sequence[int] | None = None
    use_rslora: bool = False
    use_dora: bool = False
    bias: str = "none"
    modules_to_save: Sequence[str] = ()
    init: str = "kaiming"
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, empty in (("modules_to_save", ()), ("rank_pattern", {}), ("alpha_pattern", {})):
            if getattr(self, name) is None:  # as PEFT has it
                object.__setattr__(self, name, empty)
        for name in ("rank_pattern", "alpha_pattern"):
            _check_patterns(name, getattr(self, name))
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if not (isinstance(value, str) or _are_names(value)):
                raise InputError(f"{name}={value!r} must be a list of names, such as ['c_attn']")
            if not isinstance(value, str | Sequence):  # a set: files keep lists
                object.__setattr__(self, name, sorted(value))
        for r in (self.r, *self.rank_pattern.values()):
            if isinstance(r, bool) or not isinstance(r, int) or r < 1:
                raise InputError(f"r={r!r} is no rank: use an integer of at least 1, such as 8")
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            if not _is_number(alpha) or not math.isfinite(alpha):
                raise InputError(f"lora_alpha={alpha!r} must be a finite number, such as {2 * self.r}")
        if not _is_number(self.lora_dropout) or not 0 <= self.lora_dropout < 1:
            raise InputError(
                f"lora_dropout={self.lora_dropout!r} must be at least 0 and below 1, such as 0.05"
            )
        if self.bias not in _BIAS:
            raise InputError(f"bias={self.bias!r} is unknown: use one of {', '.join(_BIAS)}")
        if self.init not in _INIT:
            raise InputError(f"init={self.init!r} is unknown: use one of {', '.join(_INIT)}")
        if not self.target_modules:
            raise InputError(f"target_modules={self.target_modules!r} names no layer: try {ALL_LINEAR!r}")
        wanted = self.layers_to_transform
        if wanted is not None and not _are_block_numbers([wanted] if isinstance(wanted, int) else wanted):
            raise InputError(f"layers_to_transform={wanted!r} must be a block's number, or a list: [0, 1]")
        if wanted is not None and not isinstance(wanted, int | list | tuple):
            object.__setattr__(self, "layers_to_transform", sorted(wanted))
        if isinstance(self.modules_to_save, str):
            raise InputError(
                f"modules_to_save={self.modules_to_save!r} must be a list: [{self.modules_to_save!r}]"
            )

    def targets(self, candidates: Mapping[str, nn.Module], heads: set[str]) -> list[str]:
        """The paths among ``candidates`` that get an update, in the model's order.

        Args:
            candidates: layers that can carry an adapter, by path.
            heads: paths that ``"all-linear"`` leaves out (output heads).

        Raises:
            InputError: a name or pattern that matches nothing (the candidates are listed), a block that the
                model does not have, or nothing left.
        """
        found = find_targets(candidates, self.target_modules, heads)
        if self.exclude_modules:
            excluded = set(find_targets(candidates, self.exclude_modules, set(), "exclude_modules"))
            found = [path for path in found if path not in excluded]
        if self.layers_to_transform is not None:
            wanted = self.layers_to_transform
            numbers = {wanted} if isinstance(wanted, int) else set(wanted)
            there = {number for path in candidates if (number := block_number(path)) is not None}
            if unknown := sorted(numbers - there):
                blocks = f"blocks {min(there)} to {max(there)}" if there else "no numbered blocks"
                raise InputError(f"layers_to_transform={wanted!r}: the model has {blocks}, not {unknown[0]}")
            found = [path for path in found if block_number(path) in numbers]
        if not found:
            without = f" without exclude_modules={self.exclude_modules!r}" if self.exclude_modules else ""
            kept = self.layers_to_transform
            inside = "" if kept is None else f" inside layers_to_transform={kept!r}"
            raise InputError(f"target_modules={self.target_modules!r}{without}{inside} leaves no layer")
        return found

    def rank(self, path: str) -> int:
        """The rank at the layer ``path``."""
        return by_pattern(self.rank_pattern, path, self.r)

    def scaling(self, path: str) -> float:
        """``s`` at the layer ``path``: alpha / r, or alpha / √r for rsLoRA."""
        r = self.rank(path)
        return by_pattern(self.alpha_pattern, path, self.lora_alpha) / (
            math.sqrt(r) if self.use_rslora else r
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_names(value: object) -> bool:
    return isinstance(value, Collection) and all(isinstance(name, str) for name in value)


def _check_patterns(option: str, patterns: object) -> None:
    if not isinstance(patterns, Mapping):
        raise InputError(f"{option}={patterns!r} must be a mapping, such as {{'c_attn': 4}}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (TypeError, re.error) as error:
            raise InputError(f"{option}: {pattern!r} is no regular expression ({error})") from None


def _are_block_numbers(numbers: object) -> bool:
    if isinstance(numbers, str) or not isinstance(numbers, Collection) or not numbers:
        return False
    return all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)


def exactly(paths: Sequence[str], candidates: Mapping[str, nn.Module]) -> str | list[str]:
    """``target_modules`` that mean these paths and no others: as names, "fc" would mean block.fc too."""
    if find_targets(candidates, paths, set()) == [path for path in candidates if path in paths]:
        return list(paths)
    return f"({'|'.join(map(re.escape, paths))})"


def anchored(path: str) -> str:
    """A key of ``rank_pattern`` or ``alpha_pattern`` that means this path and none that ends in it."""
    return f"^{re.escape(path)}"


def by_pattern(patterns: Mapping[str, T], path: str, default: T) -> T:
    """The value of the first pattern that means ``path``."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return default


def is_named(path: str, name: str) -> bool:
    """Whether ``name`` is ``path`` or its end, cut at a dot: c_attn names h.0.attn.c_attn."""
    return path == name or path.endswith("." + name)


def block_number(path: str) -> int | None:
    """The first number in a path, which is the block's: h.3.attn.c_attn → 3; lm_head → ``None``."""
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return int(match[1]) if match else None


def find_targets(
    candidates: Mapping[str, nn.Module],
    target_modules: str | Sequence[str],
    excluded: set[str],
    option: str = "target_modules",
) -> list[str]:
    """The paths among ``candidates`` that ``target_modules`` means, in the model's order.

    Args:
        candidates: layers that can carry an adapter, by path.
        target_modules: see `LoRAConfig`.
        excluded: paths that ``"all-linear"`` leaves out (output heads).
        option: what a message calls ``target_modules``.

    Raises:
        InputError: a name or pattern that matches nothing; the candidates are listed.
    """
    if target_modules == ALL_LINEAR:
        found = [path for path, module in candidates.items() if path not in excluded]
        found = [path for path in found if not isinstance(candidates[path], nn.Embedding)]
        if not found:
            raise _no_match(ALL_LINEAR, candidates, option)
        return found
    if isinstance(target_modules, str) and re.fullmatch(r"[\w.]+", target_modules):
        target_modules = [target_modules]
    if isinstance(target_modules, str):
        try:
            found = [path for path in candidates if re.fullmatch(target_modules, path)]
        except re.error as error:
            raise InputError(
                f"{option}={target_modules!r} is no regular expression ({error}); "
                "a list of names needs no pattern"
            ) from None
        if not found:
            raise _no_match(target_modules, candidates, option)
        return found
    for name in target_modules:
        if not any(is_named(path, name) for path in candidates):
            raise _no_match(name, candidates, option)
    return [path for path in candidates if any(is_named(path, name) for name in target_modules)]


def _no_match(wanted: str, candidates: Mapping[str, nn.Module], option: str) -> InputError:
    names = list(_short_names(candidates))
    listed = ", ".join(names) if names else "none: the model has no linear layer"
    return InputError(f"{option}: {wanted!r} matches no layer; the candidates are {listed}")


def _short_names(paths: Mapping[str, nn.Module]) -> Iterator[str]:
    """Paths with runs of layer numbers folded: h.0.attn.c_attn, h.1.attn.c_attn → h.*.attn.c_attn."""
    seen = set()
    for path in paths:
        short = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", path)
        if short not in seen:
            seen.add(short)
            yield short
