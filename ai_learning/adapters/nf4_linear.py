"""`NF4Linear`: a linear layer whose frozen weight is kept in 4 bits and de-quantised whenever it is used."""

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.compile_ops import define_gradient, is_exporting, operation
from ..kernels.linear import PLAIN, frozen_linear
from ..kernels.products import mm
from . import nf4_triton
from .codes import dynamic_code
from .linear import FrozenLinear, is_conv1d, is_conv1d_class
from .nf4 import ABSMAX_BLOCK, QuantState, check_state_shapes, dequantize_4bit, quantize_4bit

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_PACKED = "weight.quant_state.bitsandbytes__"
_TENSORS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def is_bnb_4bit(module: nn.Module) -> bool:
    """Whether it is bitsandbytes' Linear4bit."""
    return any(
        c.__name__ == "Linear4bit" and c.__module__.startswith("bitsandbytes.") for c in type(module).__mro__
    )


def check_is_quantized(linear: Any) -> None:
    """Raise InputError for a Linear4bit whose weight is still dense."""
    if getattr(linear.weight, "quant_state", None) is None:
        raise InputError(
            "the Linear4bit is not quantized yet: bitsandbytes does so when it is moved to a device, "
            "such as linear.to('cpu')"
        )


class NF4Linear(nn.Module):
    """``y = x Wᵀ + b`` with W in 4 bits (QLoRA, equation 5). The weight is frozen; the bias may be trained.

    Only the codes are stored. W is de-quantised for the forward product and again for the backward one, so a
    layer never holds more than its own 4.1 to 4.5 bits a parameter between uses. Nothing else changes
    between calls: neither ``eval()`` nor a forward pass touches the state.

    ``state_dict()`` has the keys of ``bitsandbytes.nn.Linear4bit`` and loads from them.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether a bias is added.
        compute_dtype: what input and weight are converted to for the product; the input's dtype when
            ``None``.
        compress_statistics: double quantization of the absmax values.
        quant_type: ``"nf4"``, ``"fp4"`` or ``"int4"``.
        blocksize: elements of a block.

    Attributes:
        weight: (⌈n/2⌉, 1) uint8, the packed codes.
        state: the `QuantState` that goes with them.
        plain_class: what it was made from and `as_linear` gives back: nn.Linear, or transformers' Conv1D.
    """

    plain_class: type[nn.Module] = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        compute_dtype: torch.dtype | None = None,
        compress_statistics: bool = True,
        quant_type: str = "nf4",
        blocksize: int = 64,
    ) -> None:
        super().__init__()
        fresh = nn.Linear(in_features, out_features, bias)  # for its initial weights
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype = compute_dtype
        self.compress_statistics, self.quant_type, self.blocksize = compress_statistics, quant_type, blocksize
        self.register_parameter("bias", fresh.bias)
        self.quantize_(fresh.weight)

    bias: nn.Parameter | None
    state: QuantState

    @classmethod
    def from_linear(cls, linear: nn.Module, **settings: Any) -> "NF4Linear":
        """Quantize an nn.Linear or transformers' Conv1D; ``settings`` as for the class. The bias is kept."""
        weight = linear.weight
        if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
            raise InputError(
                f"cannot quantize {type(linear).__name__}: it has no matrix of floats as its weight"
            )
        if not isinstance(linear, nn.Linear):  # Conv1D keeps (in, out)
            weight = weight.t()
        layer = cls._empty(weight.shape[1], weight.shape[0], **settings)
        if type(linear) in PLAIN or is_conv1d(linear):
            layer.plain_class = type(linear)
        layer.bias = linear.bias if isinstance(linear.bias, nn.Parameter) else None
        layer.quantize_(weight)
        return layer.train(linear.training)

    @classmethod
    def from_bnb(cls, linear: Any) -> "NF4Linear":
        """Take over a quantized ``bitsandbytes.nn.Linear4bit``.

        Raises:
            InputError: another kind of layer, or one that has not been quantized yet.
        """
        if not is_bnb_4bit(linear):
            raise InputError(f"{type(linear).__name__} is no bitsandbytes.nn.Linear4bit: use from_linear")
        check_is_quantized(linear)
        layer = cls._empty(linear.in_features, linear.out_features, compute_dtype=linear.compute_dtype)
        source = getattr(linear, "source_cls", None)  # what transformers put it in the place of
        if isinstance(source, type) and is_conv1d_class(source):
            layer.plain_class = source
        layer.bias = linear.bias
        layer.load_state_dict(linear.state_dict())
        return layer.train(linear.training)

    @classmethod
    def _empty(cls, in_features: int, out_features: int, **settings: Any) -> "NF4Linear":
        """A layer without weights, made without drawing random numbers."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = in_features, out_features
        layer.compute_dtype = settings.pop("compute_dtype", None)
        layer.compress_statistics = settings.pop("compress_statistics", True)
        layer.quant_type = settings.pop("quant_type", "nf4")
        layer.blocksize = settings.pop("blocksize", 64)
        if settings:
            raise InputError(f"NF4Linear has no setting {', '.join(settings)}")
        layer.register_parameter("bias", None)
        layer.register_parameter("weight", None)
        return layer

    def quantize_(self, weight: Tensor) -> None:
        """Replace the weight by the codes of ``weight`` (out_features, in_features)."""
        packed, state = quantize_4bit(
            weight,
            self.quant_type,
            blocksize=self.blocksize,
            compress_statistics=self.compress_statistics,
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.state = state

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), the shape of W."""
        return self.out_features, self.in_features

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W (out_features, in_features), in the dtype it was quantized from by default."""
        if torch.compiler.is_compiling() and not is_exporting():
            return _dense_in_a_graph(*self._told(), dtype or self.state.dtype)
        return dequantize_4bit(self.weight, self.state, dtype=dtype)

    @property
    def model_dtype(self) -> torch.dtype:
        """The dtype of the model around it: of the bias, which follows ``.to()``, or of the weight it had."""
        return self.state.dtype if self.bias is None else self.bias.dtype

    def as_linear(self, weight: Tensor | None = None) -> nn.Module:
        """The plain layer it was made from (`plain_class`), with W or ``weight`` (out, in), and this bias."""
        weight = self.dequantize() if weight is None else weight
        with torch.device("meta"):  # nothing is allocated, no random number drawn
            linear: nn.Module
            if issubclass(self.plain_class, nn.Linear):
                linear = self.plain_class(self.in_features, self.out_features)
            else:  # Conv1D keeps (in, out)
                linear = self.plain_class(self.out_features, self.in_features)
                weight = weight.t().contiguous()
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.register_parameter("bias", None)
        if self.bias is not None:
            same = self.bias.dtype == weight.dtype
            linear.bias = (
                self.bias if same else nn.Parameter(self.bias.detach().to(weight.dtype), requires_grad=False)
            )
        return linear.train(self.training)

    def compute_dtype_for(self, x: Tensor) -> torch.dtype:
        """The dtype the product is computed in for this input."""
        if self.compute_dtype is not None:
            return self.compute_dtype
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) → (..., out_features), in the input's dtype.

        Raises:
            InputError: an input that is no floats.
        """
        if not x.is_floating_point():
            raise InputError(f"a linear layer multiplies floats, not {x.dtype}")
        dtype = self.compute_dtype_for(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        if x.numel() == self.in_features and not torch.is_grad_enabled() and self._multiplies_at_once(x):
            return nf4_triton.multiply(self.weight, self.state, x.to(dtype).contiguous(), bias).to(x.dtype)
        if torch.compiler.is_compiling() and not is_exporting():
            made: Tensor = _in_a_graph(x.to(dtype), bias, *self._told())
            return made if self.compute_dtype is None else made.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            weight: Callable[[], Tensor] = lambda: self.dequantize(dtype)  # noqa: E731
            y: Tensor = FrozenLinear.apply(x.to(dtype), weight, bias)
        return y if self.compute_dtype is None else y.to(x.dtype)

    def _told(self) -> tuple[Any, ...]:
        """What an operation in a graph is told of the weight."""
        state = self.state
        nested = (state.nested_absmax, state.offset)
        return self.weight, state.absmax, *nested, state.quant_type, state.blocksize, list(self.shape)

    def _multiplies_at_once(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or x.device != self.weight.device or x.shape[-1] != self.in_features:
            return False
        return _multiplies_at_once(self.weight, self.state)

    # ---- state in bitsandbytes' layout -----------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "NF4Linear":
        """Move to a device with the module; a change of dtype must not round the statistics."""
        super()._apply(fn, recurse)
        self.state = self.state.to(self.weight.device)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state = self.state
        facts: dict[str, Any] = {
            "quant_type": state.quant_type,
            "blocksize": state.blocksize,
            "dtype": str(state.dtype).removeprefix("torch."),
            "shape": list(state.shape),
        }
        destination[prefix + "weight.absmax"] = state.absmax
        destination[prefix + "weight.quant_map"] = state.code.clone()
        if state.nested_absmax is not None and state.offset is not None:
            facts |= {
                "nested_blocksize": ABSMAX_BLOCK,
                "nested_dtype": "float32",
                "nested_offset": state.offset.item(),
            }
            destination[prefix + "weight.nested_absmax"] = state.nested_absmax
            # a copy, as of the other table: safetensors refuses two layers that share one
            destination[prefix + "weight.nested_quant_map"] = dynamic_code().to(
                state.absmax.device, copy=True
            )
        # bitsandbytes keeps what is no tensor as JSON in a tensor of bytes, for safetensors' sake.
        text = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
        destination[f"{prefix}{_PACKED}{state.quant_type}"] = text

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        packed_key = next((key for key in own if key.startswith(_PACKED)), None)
        if packed_key is None or "weight" not in own or "weight.absmax" not in own:
            missing_keys.append(f"{prefix}{_PACKED}{self.quant_type}")
            return
        try:
            packed, state = self._read_state(own, packed_key)
        except (InputError, KeyError, TypeError, ValueError) as error:
            error_msgs.append(f"{prefix}weight is no 4-bit weight of this layer: {error}")
            return
        assign = bool(local_metadata and local_metadata.get("assign_to_params_buffers"))
        device = packed.device if assign or self.weight is None else self.weight.device
        self.weight = nn.Parameter(packed.to(device, copy=True), requires_grad=False)
        self.state = state.to(device)
        self.quant_type, self.blocksize = state.quant_type, state.blocksize
        self.compress_statistics = state.nested
        known = {"weight", packed_key, *(f"weight.{name}" for name in _TENSORS)}
        if self.bias is not None:
            known.add("bias")
            if "bias" not in own:
                missing_keys.append(prefix + "bias")
            elif own["bias"].shape != self.bias.shape:
                error_msgs.append(
                    f"size mismatch for {prefix}bias: it has shape {tuple(own['bias'].shape)}, "
                    f"the layer {tuple(self.bias.shape)}"
                )
            elif assign:
                self.bias = nn.Parameter(own["bias"], requires_grad=self.bias.requires_grad)
            else:
                with torch.no_grad():
                    self.bias.copy_(own["bias"])
        if strict:
            unexpected_keys += [prefix + key for key in own if key not in known]

    def _read_state(self, own: Mapping[str, Tensor], packed_key: str) -> tuple[Tensor, QuantState]:
        facts = json.loads(bytes(own[packed_key].cpu().tolist()).decode())
        if tuple(facts["shape"]) != self.shape:
            raise InputError(f"it has shape {tuple(facts['shape'])}, the layer {self.shape}")
        nested = own.get("weight.nested_absmax")
        if nested is not None and facts["nested_blocksize"] != ABSMAX_BLOCK:
            raise InputError(
                f"nested_blocksize {facts['nested_blocksize']} is not supported, only {ABSMAX_BLOCK}"
            )
        absmax = own["weight.absmax"]
        if absmax.dim() != 1:
            raise InputError(
                f"its absmax has shape {tuple(absmax.shape)}: bitsandbytes repacks a weight for the "
                "processor when it is first used in eval(), and cannot undo it; take the state before"
            )
        if (absmax.dtype == torch.uint8) != (nested is not None):
            raise InputError("its double quantization lacks a part (weight.absmax or weight.nested_absmax)")
        packed = own["weight"]
        packed = packed.contiguous().view(torch.uint8).view(-1, 1)  # other storage types hold the same bytes
        state = QuantState(
            absmax.clone() if absmax.dtype == torch.uint8 else absmax.to(torch.float32, copy=True),
            self.shape,
            _DTYPES[facts["dtype"]],
            int(facts["blocksize"]),
            facts["quant_type"],
            None if nested is None else torch.tensor(facts["nested_offset"], dtype=torch.float32),
            None if nested is None else nested.to(torch.float32, copy=True),
        )
        check_state_shapes(state.shape, state.blocksize, state.absmax)
        if packed.numel() != (prod(self.shape) + 1) // 2:
            raise InputError(f"{packed.numel()} bytes of codes for shape {self.shape}")
        if not torch.equal(own["weight.quant_map"].cpu(), state.code.cpu()):
            raise InputError(f"its table of values is not that of {state.quant_type}")
        return packed, state

    def extra_repr(self) -> str:
        """Sizes and type."""
        nested = ", double quantization" if self.compress_statistics else ""
        sizes = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, {self.quant_type}{nested}"


def _multiplies_at_once(packed: Tensor, state: QuantState) -> bool:
    """Whether one token's product can be had without de-quantising the weight."""
    return state.shape[1] % 2 == 0 and nf4_triton.usable(packed, state)


# ---- in a graph that torch.compile makes, which calls both passes without looking inside -------------------
# Looking inside, the compiler would see W made twice of the same codes, make it once, and keep it.


def _like_dense(
    packed: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None,
    quant_type: str, blocksize: int, shape: list[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return packed.new_empty(shape, dtype=dtype)


@operation("dense_4bit", _like_dense, devices=("CPU", "CUDA"))
def _dense_in_a_graph(
    packed: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None,
    quant_type: str, blocksize: int, shape: list[int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """What `NF4Linear.dequantize` does."""
    rows, columns = shape
    state = QuantState(absmax, (rows, columns), dtype, blocksize, quant_type, offset, nested_absmax)
    return dequantize_4bit(packed, state)


def _like_output(
    x: Tensor, bias: Tensor | None, packed: Tensor, absmax: Tensor, nested_absmax: Tensor | None,
    offset: Tensor | None, quant_type: str, blocksize: int, shape: list[int],
) -> Tensor:  # fmt: skip
    return x.new_empty(*x.shape[:-1], shape[0])


@operation("linear_4bit", _like_output, devices=("CPU", "CUDA"))
def _in_a_graph(
    x: Tensor, bias: Tensor | None, packed: Tensor, absmax: Tensor, nested_absmax: Tensor | None,
    offset: Tensor | None, quant_type: str, blocksize: int, shape: list[int],
) -> Tensor:  # fmt: skip
    """What `NF4Linear.forward` does: x (..., in) → (..., out)."""
    rows, columns = shape
    state = QuantState(absmax, (rows, columns), x.dtype, blocksize, quant_type, offset, nested_absmax)
    if x.numel() == x.shape[-1] == columns and _multiplies_at_once(packed, state):
        return nf4_triton.multiply(packed, state, x.contiguous(), bias)
    return frozen_linear(x, dequantize_4bit(packed, state), bias)


def _like_gradient(
    grad: Tensor, packed: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None,
    quant_type: str, blocksize: int, shape: list[int],
) -> Tensor:  # fmt: skip
    return grad.new_empty(*grad.shape[:-1], shape[1])


@operation("linear_4bit_gradient", _like_gradient, devices=("CPU", "CUDA"))
def _gradient_in_a_graph(
    grad: Tensor, packed: Tensor, absmax: Tensor, nested_absmax: Tensor | None, offset: Tensor | None,
    quant_type: str, blocksize: int, shape: list[int],
) -> Tensor:  # fmt: skip
    """The gradient of x (..., in) from the output's (..., out)."""
    W = _dense_in_a_graph(packed, absmax, nested_absmax, offset, quant_type, blocksize, shape, grad.dtype)
    return mm(grad.reshape(-1, grad.shape[-1]), W).view(*grad.shape[:-1], -1)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, packed, absmax, nested_absmax, offset, *ctx.how = inputs
    ctx.save_for_backward(packed, absmax, nested_absmax, offset)


def _gradients_in_a_graph(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs_x, needs_bias, *_ = ctx.needs_input_grad
    d_x = _gradient_in_a_graph(grad, *ctx.saved_tensors, *ctx.how) if needs_x else None
    d_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if needs_bias else None
    return d_x, d_bias, *[None] * 7


define_gradient(_in_a_graph, _gradients_in_a_graph, setup_context=_keep)
