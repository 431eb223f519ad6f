"""Int8 weights for decoding on a CPU: a quarter of the bytes to read for each token.

One token at a time, a linear layer is bound by reading its weight. Here each row of the weight is rounded to
8 bits with a scale of its own, inputs are rounded to 8 bits as they come (one scale a call), and the product
is taken in integers by PyTorch's own kernels (Jacob et al. 2018; VNNI instructions where the CPU has them).

Applied from outside, like NF4: the model does not know.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .adapters.layers import LoRALayer
from .errors import InputError
from .kernels.linear import PLAIN


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for inference on a CPU.

    Args:
        linear: the layer to take the place of; unchanged.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()  # (out, in)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scales = (weight.abs().amax(dim=1) / 127).clamp(
            min=1e-12
        )  # one a row: an outlier spoils its row only
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        with (
            warnings.catch_warnings()
        ):  # these tensors are to go from PyTorch; its int8 kernels still take them
            warnings.simplefilter("ignore", UserWarning)
            self.quantized = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack(self.quantized, bias)

    @property
    def weight(self) -> Tensor:
        """(out, in) float32: what the codes stand for."""
        return self.quantized.dequantize()

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out) in the dtype of ``x``."""
        rows = torch.atleast_2d(x.float())  # PyTorch's kernel takes no single vector
        y: Tensor = torch.ops.quantized.linear_dynamic(rows, self.packed, True)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint would lack this layer, and nobody would know before it is needed.

        Raises:
            InputError: always.
        """
        raise InputError("int8 weights are not saved: save the model before quantize_int8")

    def extra_repr(self) -> str:
        """Sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def quantize_int8(model: nn.Module) -> nn.Module:
    """Replace every ``nn.Linear`` of ``model`` by an ``Int8Linear``, in place.

    A head tied to the embedding becomes a layer of its own; the embedding stays as it is.

    Returns:
        The same model, in evaluation mode, with nothing in it to train: gradients would end at the first of
        these layers. It cannot be saved: make its weights int8 after it is loaded.

    Raises:
        InputError: not on a CPU, no linear layer in it, or adapters, which could not be merged any more.
    """
    if any(isinstance(module, LoRALayer) for module in model.modules()):
        raise InputError("the model has adapters: eject_lora(model, merge=True) first")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise InputError("int8 weights are for decoding on a CPU: move the model there first")
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and type(child) in PLAIN
    ]
    if not found:
        raise InputError(f"{type(model).__name__} holds no nn.Linear to quantize")
    for parent, name, child in found:
        setattr(parent, name, Int8Linear(child))
    return model.eval().requires_grad_(False)
