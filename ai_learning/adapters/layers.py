"""The modules that replace a model's layers while it has adapters: `LoRALayer` and `SavedModule`."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.linear import PLAIN
from .linear import DoRALinearFunction, LoRALinearFunction, dora_norm, is_conv1d, not_zero
from .nf4_linear import NF4Linear

_WEIGHTS = ("lora_A", "lora_B", "lora_magnitude_vector")
Rows = Sequence[str | None]  # one adapter name for each row of a batch; None is the base model


@dataclass(frozen=True)
class Adapter:
    """The settings of one adapter in one layer."""

    r: int
    scaling: float
    dropout: float
    use_dora: bool


def weight_of(module: nn.Module) -> Tensor:
    """``module.weight``, asserted to be a tensor for the type checker."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def can_adapt(module: nn.Module) -> bool:
    """Whether `LoRALayer` can wrap the module."""
    return isinstance(module, nn.Linear | NF4Linear | nn.Embedding) or is_conv1d(module)


class LoRALayer(nn.Module):
    """A frozen linear layer (or embedding) and any number of low-rank updates of it, by name.

    The forward pass adds the active updates: ``y = x Wᵀ + b + Σ s·(x Aᵀ) Bᵀ``. `merge` puts a layer with the
    sum ``W + Σ s·B·A`` in the place of the frozen one, which is kept, untouched, for `unmerge`.

    Args:
        base_layer: nn.Linear, transformers' Conv1D, `NF4Linear` or nn.Embedding. An embedding is the linear
            layer whose input is one-hot: A is (r, vocabulary), B is (width, r).
        path: where it stands in the model, for messages.

    Attributes:
        lora_A: (r, in_features) by adapter name.
        lora_B: (out_features, r) by adapter name.
        lora_magnitude_vector: (out_features,) by adapter name, DoRA only.
        active: names of the adapters whose updates are added.
        rows: one name for each row of the batch, or None: the active ones for all rows.
    """

    def __init__(self, base_layer: nn.Module, path: str) -> None:
        super().__init__()
        weight = weight_of(base_layer)
        if not (isinstance(base_layer, NF4Linear) or weight.is_floating_point()):
            raise InputError(
                f"{path}: cannot adapt {type(base_layer).__name__} with a {weight.dtype} weight; "
                "turn it into an NF4Linear first (NF4Linear.from_bnb)"
            )
        self.base_layer = base_layer
        self.path = path
        self.transposed = is_conv1d(base_layer) or isinstance(base_layer, nn.Embedding)  # weight is (in, out)
        rows, columns = base_layer.shape if isinstance(base_layer, NF4Linear) else weight.shape
        self.out_features, self.in_features = (columns, rows) if self.transposed else (rows, columns)
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.lora_magnitude_vector = nn.ParameterDict()
        self.adapters: dict[str, Adapter] = {}
        self.active: tuple[str, ...] = ()
        self.rows: Rows | None = None
        self._kept: nn.Module | None = None
        self._merged_dtype: torch.dtype | None = None
        self._norm_cache: tuple[Any, Tensor] | None = None
        self._rows_cache: tuple[Any, tuple[Tensor, Tensor, Tensor]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_kept":  # hidden from parameters(), state_dict() and train(): it only waits for unmerge
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # ---- adapters --------------------------------------------------------------------------------

    def add(self, name: str, adapter: Adapter, init: str = "kaiming") -> None:
        """Add a fresh adapter; it changes nothing until it is trained (B, or an embedding's A, is zero)."""
        if name in self.adapters:
            raise InputError(f"{self.path} has an adapter {name!r} already: choose another name")
        weight = weight_of(self._kept or self.base_layer)
        # 16-bit and 4-bit bases get fp32 adapters: an update of 1e-4 would vanish in a bf16 sum.
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32
        A = torch.empty(adapter.r, self.in_features, dtype=dtype, device=weight.device)
        B = torch.zeros(self.out_features, adapter.r, dtype=dtype, device=weight.device)
        if self.is_embedding:  # PEFT's choice: the table's side is zero
            A.zero_()
            B.normal_()
        elif init == "gaussian":
            A.normal_(std=1 / adapter.r)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # fan_in is in_features, because A is (r, in)
        self.lora_A[name] = nn.Parameter(A)
        self.lora_B[name] = nn.Parameter(B)
        self.adapters[name] = adapter
        if adapter.use_dora:
            W = self.dense_weight(self._kept or self.base_layer).to(dtype)
            self.lora_magnitude_vector[name] = nn.Parameter(torch.linalg.vector_norm(W, dim=1))

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self.adapters.pop(name, None)
        for weights in (self.lora_A, self.lora_B, self.lora_magnitude_vector):
            weights.pop(name) if name in weights else None
        self.active = tuple(active for active in self.active if active != name)

    def contents(self) -> dict[str, Any]:
        """A snapshot for `put_back`: the adapters, by reference, and which are active."""
        weights = {name: dict(getattr(self, name).items()) for name in _WEIGHTS}
        layers = {"base_layer": self.base_layer, "_kept": self._kept}
        return {**weights, **layers, "adapters": dict(self.adapters), "active": self.active}

    def put_back(self, contents: dict[str, Any]) -> None:
        """Return to a snapshot that `contents` gave."""
        for name in _WEIGHTS:  # in place: other code may hold these dicts
            weights = getattr(self, name)
            weights.clear()
            weights.update(contents[name])
        self.adapters, self.active = dict(contents["adapters"]), contents["active"]
        self.base_layer, self._kept = contents["base_layer"], contents["_kept"]

    # ---- weights ---------------------------------------------------------------------------------

    @property
    def is_embedding(self) -> bool:
        """Whether it wraps an embedding."""
        return isinstance(self.base_layer, nn.Embedding)

    def dense_weight(self, base: nn.Module | None = None) -> Tensor:
        """The frozen weight as (out_features, in_features); a 4-bit one de-quantised to fp32."""
        base = self.base_layer if base is None else base
        if isinstance(base, NF4Linear):
            return base.dequantize(torch.float32)
        weight = weight_of(base)
        return weight.t() if self.transposed else weight

    def delta(self, name: str) -> Tensor:
        """The update ``s·B·A`` (out_features, in_features) of one adapter."""
        return (self.lora_B[name] @ self.lora_A[name]) * self.adapters[name].scaling

    def adapted_weight(self, names: Sequence[str]) -> Tensor:
        """``W + Σ s·B·A`` (out_features, in_features) in the adapters' precision; DoRA's rows rescaled."""
        W = self.dense_weight()
        for name in names:
            W = W.to(self.lora_A[name].dtype) + self.delta(name)
            if self.adapters[name].use_dora:
                norm = not_zero(torch.linalg.vector_norm(W.detach(), dim=1))
                W = W * (self.lora_magnitude_vector[name] / norm).unsqueeze(1)
        return W

    @property
    def merged(self) -> bool:
        """Whether the updates are inside the weight now."""
        return self._kept is not None

    @property
    def bias(self) -> Tensor | None:
        """The frozen layer's bias."""
        return getattr(self.base_layer, "bias", None)

    @property
    def weight(self) -> Tensor:
        """The weight in effect, in the base's own layout and dtype, for code that reads ``layer.weight``
        (losses, tied heads).

        Raises:
            InputError: when no single weight has the layer's effect (adapters by row; dropout while training,
                there as soon as more than its shape or dtype is asked for).
        """
        if self.merged or not (self.active or self.rows):
            return weight_of(self.base_layer)
        if self.rows is not None:
            raise InputError(
                f"{self.path}: each row has its own adapter, so there is no one weight; call the layer"
            )
        base = self.base_layer
        if self.training and any(self.adapters[name].dropout for name in self.active):
            return self._unknown_weight()
        own = base.model_dtype if isinstance(base, NF4Linear) else weight_of(base).dtype
        W = self.adapted_weight(self.active).to(own)
        return W.t() if self.transposed else W

    def _unknown_weight(self) -> Tensor:
        base = self.base_layer
        weight: Tensor = weight_of(base).detach()
        if isinstance(base, NF4Linear):
            weight = torch.zeros((), dtype=base.model_dtype, device=weight.device).expand(base.shape)
        return weight.as_subclass(_Unknown).of(self.path)

    @torch.no_grad()
    def merge(self, names: Sequence[str], dtype: torch.dtype | None = None) -> None:
        """Replace the frozen layer by one with the weight ``W + Σ s·B·A``; `unmerge` puts it back.

        A 4-bit layer becomes the plain one it was made from, in the model's dtype (or ``dtype``): rounded
        back to 4 bits, the sum would lose most of the update. A tied weight is not written to: the new weight
        is this layer's own.

        Raises:
            InputError: merged already, or a sum that is not finite.
        """
        if self.merged:
            raise InputError(f"{self.path} is merged already: unmerge_lora first")
        self.check_together(names)
        base = self.base_layer
        if getattr(base, "max_norm", None) is not None:
            raise InputError(
                f"{self.path} has max_norm: rows are shortened when they are read, so none can be merged"
            )
        hooks = {type(hook).__name__ for hook in base._forward_pre_hooks.values()}
        if nn.utils.parametrize.is_parametrized(base) or hooks & {"WeightNorm", "SpectralNorm"}:
            raise InputError(
                f"{self.path} makes its weight anew for each call (as with weight_norm): take that off by "
                "torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm"
            )
        W = self.adapted_weight(names)
        own = base.model_dtype if isinstance(base, NF4Linear) else weight_of(base).dtype
        W = W.to(dtype or own)
        if not torch.isfinite(W).all():  # in the dtype that stays: fp16 ends at 65,504
            raise InputError(
                f"{self.path}: merging {list(names)} gives NaN or Inf; look at the adapter's weights"
            )
        if isinstance(base, NF4Linear):
            merged: nn.Module = base.as_linear(W)
        else:
            merged = copy.copy(base)
            # copy.copy shares the dicts of parameters: this one needs its own before the weight is exchanged.
            merged._parameters = dict(base._parameters)
            merged._parameters["weight"] = nn.Parameter(
                (W.t() if self.transposed else W).clone(memory_format=torch.contiguous_format),
                requires_grad=False,
            )
        self.base_layer = merged
        self._kept, self._merged_dtype = base, W.dtype

    def unmerge(self) -> None:
        """Put the frozen layer back: the same module, so its weight is bit for bit what it was."""
        if self._kept is None:
            return
        merged = weight_of(self.base_layer)
        # A cast of the whole model reached the merged layer only; what merge() itself chose is no cast.
        cast = None if merged.dtype == self._merged_dtype else merged.dtype
        self._kept.to(device=merged.device, dtype=cast).train(self.training)
        self.base_layer, self._kept = self._kept, None

    def check_together(self, names: Sequence[str]) -> None:
        """Refuse adapters that cannot be active at the same time.

        Raises:
            InputError: one of several uses DoRA.
        """
        if len(names) > 1 and any(self.adapters[name].use_dora for name in names):
            raise InputError(
                f"{self.path}: DoRA rescales whole rows, so {list(names)} cannot be summed; choose one"
            )

    # ---- forward ---------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features), or ids (...) for an embedding → (..., out_features)."""
        if self.rows is not None:
            return self._forward_rows(x, self.rows)
        if self.merged or not self.active:
            return self.base_layer(x)
        if len(self.active) == 1 and self._fusable(x, self.active[0]):
            return self._forward_fused(x, self.active[0])
        return self._forward_plain(x, self.active)

    def _forward_plain(self, x: Tensor, names: Sequence[str]) -> Tensor:
        """The definition, in PyTorch's own operations: any number of adapters, dropout, mixed dtypes."""
        self.check_together(names)
        y = self.base_layer(x)
        for name in names:
            adapter = self.adapters[name]
            A, B = self.lora_A[name], self.lora_B[name]
            if self.is_embedding:
                update = self._look_up(x, A) @ B.t() * adapter.scaling
                if adapter.use_dora:
                    scale = self._dora_ratio(name)
                    update = (scale - 1) * y + scale * update
                y = y + update.to(y.dtype)
                continue
            dropped = F.dropout(x.to(A.dtype), adapter.dropout, self.training)
            update = F.linear(F.linear(dropped, A), B) * adapter.scaling
            if adapter.use_dora:
                W = self.dense_weight().to(A.dtype)
                scale = self._dora_ratio(name, W)
                base = F.linear(dropped, W) if self.training and adapter.dropout else self._without_bias(y)
                update = (scale - 1) * base + scale * update
            y = y + update.to(y.dtype)
        return y

    def _look_up(self, ids: Tensor, A: Tensor) -> Tensor:
        """ids (...) → columns of A (..., R), with the embedding's own padding and scale.

        Its padding id gets no gradient, and the result is scaled where the embedding scales its own
        (``embed_scale``, in Gemma).
        """
        padding = self.base_layer.padding_idx if isinstance(self.base_layer, nn.Embedding) else None
        found = F.embedding(ids, A.t(), padding)
        scale = getattr(self.base_layer, "embed_scale", None)
        return found if scale is None else found * scale

    def _without_bias(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y - self.bias

    def _fusable(self, x: Tensor, name: str) -> bool:
        """Whether the written-out gradients apply: one dtype, a frozen weight, no dropout, no hooks."""
        base, A = self.base_layer, self.lora_A[name]
        if self.is_embedding or torch.is_autocast_enabled(x.device.type):
            return False
        if self.training and self.adapters[name].dropout:
            return False
        weight = weight_of(base)
        hooked = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks
        if hooked or weight.requires_grad:
            return False
        if isinstance(base, NF4Linear):
            if torch.compiler.is_compiling():  # NF4Linear has its own operation for compiled graphs
                return False
            return x.dtype == A.dtype == base.compute_dtype_for(x) == torch.float32
        own_forward = type(base).forward not in (plain.forward for plain in PLAIN) and not is_conv1d(base)
        return x.dtype == A.dtype == weight.dtype and not own_forward

    def _forward_fused(self, x: Tensor, name: str) -> Tensor:
        A, B, adapter = self.lora_A[name], self.lora_B[name], self.adapters[name]
        if adapter.use_dora:
            return DoRALinearFunction.apply(
                x,
                self.dense_weight,
                self.bias,
                A,
                B,
                adapter.scaling,
                self.lora_magnitude_vector[name],
                self._weight_norm2(None),
            )
        return LoRALinearFunction.apply(x, self.dense_weight, self.bias, A, B, adapter.scaling)

    @torch.no_grad()
    def _weight_norm2(self, W: Tensor | None) -> Tensor:
        """‖W‖² of every row, kept while the frozen weight stays the same tensor with the same content."""
        if torch.compiler.is_compiling():  # a graph has no data pointers to compare
            return _square_norm(self.dense_weight() if W is None else W)
        weight = weight_of(self.base_layer)
        if weight.is_inference():  # counts no changes
            return _square_norm(self.dense_weight() if W is None else W)
        place = (id(self.base_layer), weight.data_ptr(), weight.device, weight.dtype)
        key = (*place, weight._version, _some_of(weight))
        if self._norm_cache is None or self._norm_cache[0] != key:
            self._norm_cache = (key, _square_norm(self.dense_weight() if W is None else W))
        return self._norm_cache[1]

    def _forward_rows(self, x: Tensor, rows: Rows) -> Tensor:
        """Every row of the batch with its own adapter: one batched product for all of them."""
        if self.merged:
            raise InputError(f"{self.path} is merged, so rows cannot choose an adapter: unmerge_lora first")
        if x.shape[0] != len(rows):
            raise InputError(
                f"{self.path}: {len(rows)} adapter names for a batch of {x.shape[0]} rows; "
                "give one name for each row"
            )
        names = sorted({name for name in rows if name is not None and name in self.adapters})
        if self.training and any(self.adapters[name].dropout for name in names):  # adapters differ in dropout
            own = [(name,) if name in names else () for name in rows]
            return torch.cat([self._forward_plain(r, n) for r, n in zip(x.split(1), own, strict=True)])
        y = self.base_layer(x)
        if not names:
            return y
        index, A, B = self._stacked(rows, names, x.device)
        if self.is_embedding:
            down = torch.stack([self._look_up(ids, a) for ids, a in zip(x, A, strict=True)])
            flat = down.reshape(len(rows), x.shape[1:].numel(), down.shape[-1])  # (B, ..., R) → (B, T, R)
        else:
            T = x.shape[1:-1].numel()
            flat = x.to(A.dtype).reshape(len(rows), T, self.in_features)  # (B, ..., I) → (B, T, I)
            flat = flat @ A.transpose(1, 2)  # (B, T, I) @ (B, I, R) → (B, T, R)
        if not any(self.adapters[name].use_dora for name in names):
            if y.dtype == B.dtype and not torch.is_grad_enabled():
                # y was made by this call and nobody else holds it, so it can be added to in place.
                y.view(*flat.shape[:2], y.shape[-1]).baddbmm_(flat, B.transpose(1, 2))
                return y
            update = (flat @ B.transpose(1, 2)).view(y.shape)  # (B, T, R) @ (B, R, O) → (B, ..., O)
            return y + update.to(y.dtype)
        update = (flat @ B.transpose(1, 2)).view(y.shape)  # (B, T, R) @ (B, R, O) → (B, ..., O)
        ratio = self._dora_ratios(names)[index]  # (B, O)
        ratio = ratio.view(len(rows), *([1] * (y.dim() - 2)), -1)
        update = (ratio - 1) * self._without_bias(y) + ratio * update
        return y + update.to(y.dtype)

    def _stacked(
        self, rows: Rows, names: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For each row: index of its adapter (B,), A (B, R, I), s·B (B, O, R).

        Smaller ranks are padded with zeros; a row without an adapter here has index n and zeros. While no
        gradient is wanted the result is kept until the rows or any of the weights change.
        """
        weights = [(self.lora_A[name], self.lora_B[name]) for name in names]
        key = None
        counted = not any(weight.is_inference() for pair in weights for weight in pair)
        if counted and not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            versions = [(a.data_ptr(), a._version, b.data_ptr(), b._version) for a, b in weights]
            key = (rows, versions, [self.adapters[name] for name in names])
            if self._rows_cache is not None and self._rows_cache[0] == key:
                return self._rows_cache[1]
        r = max(self.adapters[name].r for name in names)
        A = [F.pad(a, (0, 0, 0, r - a.shape[0])) for a, _ in weights]
        B = [
            F.pad(b, (0, r - b.shape[1])) * self.adapters[name].scaling
            for name, (_, b) in zip(names, weights, strict=True)
        ]
        place = {name: i for i, name in enumerate(names)}
        index = torch.tensor([place.get(name or "", len(names)) for name in rows], device=device)
        result = (
            index,
            torch.stack([*A, torch.zeros_like(A[0])])[index],
            torch.stack([*B, torch.zeros_like(B[0])])[index],
        )
        self._rows_cache = None if key is None else (key, result)
        return result

    def _dora_ratio(self, name: str, W: Tensor | None = None) -> Tensor:
        """m / ‖W + sBA‖ (O,), the norm held constant."""
        A, B, s = self.lora_A[name], self.lora_B[name], self.adapters[name].scaling
        W = self.dense_weight().to(A.dtype) if W is None else W
        with torch.no_grad():
            norm = dora_norm(W, self._weight_norm2(W), A, B, s)
        return self.lora_magnitude_vector[name] / norm

    def _dora_ratios(self, names: Sequence[str]) -> Tensor:
        """`_dora_ratio` (n+1, O) of each adapter; 1 for those without DoRA, and for no adapter."""
        W = self.dense_weight().to(self.lora_A[names[0]].dtype)
        one = W.new_ones(self.out_features)
        ratios = [self._dora_ratio(name, W) if self.adapters[name].use_dora else one for name in names]
        return torch.stack([*ratios, one])

    def extra_repr(self) -> str:
        """Names and ranks."""
        return ", ".join(f"{name}: r={adapter.r}" for name, adapter in self.adapters.items())


def _some_of(weight: Tensor) -> list[float]:
    """Numbers of some rows, to tell by that a weight is another.

    Its version does not count what is written through ``.data``, and a new one that is put there may lie
    where the old one lay. An accelerator would be stalled, and is not asked.
    """
    if not weight.is_cpu or weight.numel() == 0:
        return []
    some: list[float] = weight.detach()[:: -(-len(weight) // 64), 0].tolist()
    return some


def _square_norm(W: Tensor) -> Tensor:
    """‖w‖² of each row w (O,), in float32 at least."""
    return W.to(torch.promote_types(W.dtype, torch.float32)).square().sum(1)


class _Unknown(Tensor):
    """Stands for a weight that does not exist: shape and dtype can be read, any other use raises."""

    path = ""

    def of(self, path: str) -> "_Unknown":
        """The same, with the name of the layer."""
        self.path = path
        return self

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"the weight of {self.path}, which LoRA dropout leaves unknown"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _KNOWN:
            return super().__torch_function__(func, types, args, kwargs or {})
        path = next((a.path for a in args if isinstance(a, _Unknown)), "a layer")
        raise InputError(f"{path}: LoRA dropout is on, so no weight equals the layer; call it, or eval()")


_ASKED = ("dtype", "shape", "device", "ndim", "layout", "requires_grad", "is_cpu", "is_cuda", "is_meta")
_KNOWN = {getattr(Tensor, name).__get__ for name in _ASKED} | {
    getattr(Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "element_size")
}


class SavedModule(nn.Module):
    """A module that adapters train whole (``modules_to_save``): the original, and one copy an adapter."""

    def __init__(self, original: nn.Module, path: str) -> None:
        super().__init__()
        self.original = original
        self.path = path
        self.copies = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.rows: Rows | None = None
        self.merged = False

    def add(self, name: str) -> None:
        """Give an adapter its own trainable copy. A tied weight is untied in the copy."""
        self.copies[name] = copy.deepcopy(self.original).requires_grad_(True)

    def contents(self) -> dict[str, Any]:
        """A snapshot for `put_back`: the copies, by reference, and which are active."""
        return {"copies": dict(self.copies.items()), "active": self.active, "merged": self.merged}

    def put_back(self, contents: dict[str, Any]) -> None:
        """Return to a snapshot that `contents` gave."""
        self.copies.clear()
        self.copies.update(contents["copies"])
        self.active, self.merged = contents["active"], contents["merged"]

    def remove(self, name: str) -> None:
        """Forget an adapter's copy."""
        if name in self.copies:
            del self.copies[name]
        self.active = tuple(active for active in self.active if active != name)

    @property
    def current(self) -> nn.Module:
        """The copy of the active adapter, or the original."""
        mine = [name for name in self.active if name in self.copies]
        if len(mine) > 1:
            raise InputError(f"{self.path}: {mine} each have their own copy, so only one can be active")
        return self.copies[mine[0]] if mine else self.original

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module in effect."""
        if self.rows is not None and any(name in self.copies for name in self.rows if name):
            raise InputError(
                f"{self.path} was trained whole by an adapter, so rows cannot mix: run them apart"
            )
        return self.current(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Reads ``layer.weight`` and the like from the module in effect."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.current, name)
