"""A GPT with an adapter as one model that trains and saves itself: only the adapter goes into a checkpoint.

``state_dict`` gives the adapter's weights alone, so that ``train`` writes small checkpoints; the frozen base
is named by where it lies, and by a digest, so that another model is not taken for it.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .adapters import (
    LoRAConfig,
    eject_lora,
    inject_lora,
    load_lora_state_dict,
    lora_state_dict,
    prepare_qlora,
)
from .errors import InputError
from .model import GPT, GPTConfig
from .shapes import Hidden, Logits, Tokens

COMPUTE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class AdaptedConfig:
    """What an adapter's checkpoint must say to be opened again."""

    gpt: GPTConfig
    """of the base"""
    base: str = ""
    """where the base lies: a checkpoint, a folder, or a name on the hub"""
    base_digest: str = ""
    """of the base's weights"""
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    """the adapter"""
    quant_type: str | None = None
    """nf4, fp4 or int4: the base's linear layers in 4 bits (QLoRA); ``None`` leaves them as they are"""
    double_quant: bool = True
    """quantize the blocks' scales too"""
    compute_dtype: str | None = None
    """of the products with 4-bit weights: float32, bfloat16 or float16; the input's when ``None``"""

    def __post_init__(self) -> None:
        if isinstance(self.gpt, dict):  # as a checkpoint keeps it
            object.__setattr__(self, "gpt", GPTConfig(**self.gpt))
        if isinstance(self.lora, dict):
            object.__setattr__(self, "lora", LoRAConfig(**self.lora))
        if self.compute_dtype is not None and self.compute_dtype not in COMPUTE:
            raise InputError(f"compute_dtype={self.compute_dtype!r} is not known; use {', '.join(COMPUTE)}")


class AdaptedGPT(nn.Module):
    """A GPT with LoRA on it, its base in 4 bits where the config says so.

    Args:
        config: see ``AdaptedConfig``.
        gpt: the base; changed in place.

    Raises:
        InputError: the base's weights are not those that the config's digest names.
    """

    def __init__(self, config: AdaptedConfig, gpt: GPT) -> None:
        super().__init__()
        found = weights_digest(gpt)
        if config.base_digest and config.base_digest != found:
            raise InputError(
                f"the adapter was trained on another model than {config.base or 'this one'} is now "
                f"(digest {found}, expected {config.base_digest})"
            )
        self.config = config
        self.gpt = gpt
        if config.quant_type is None:
            inject_lora(gpt, config.lora)
        else:
            prepare_qlora(
                gpt,
                config.lora,
                quant_type=config.quant_type,
                compress_statistics=config.double_quant,
                compute_dtype=None if config.compute_dtype is None else COMPUTE[config.compute_dtype],
            )

    @property
    def lm_head(self) -> nn.Module:
        """The base's output head."""
        return self.gpt.lm_head

    def forward(self, idx: Tokens, **inputs: Any) -> Logits:
        """(B, T) ids → (B, T, V) logits; arguments as ``GPT``'s."""
        logits: Tensor = self.gpt(idx, **inputs)
        return logits

    def hidden(self, idx: Tokens, **inputs: Any) -> Hidden:
        """(B, T) ids → (B, T, C) final hidden states; arguments as ``GPT``'s."""
        return self.gpt.hidden(idx, **inputs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The adapter's weights, and nothing of the base."""
        return lora_state_dict(self.gpt)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Put an adapter's weights on."""
        load_lora_state_dict(self.gpt, state_dict)

    def merged(self) -> GPT:
        """A plain GPT with the adapter in its weights, all in its own dtype; this object is used up."""
        eject_lora(self.gpt, merge=True, untie=True)
        return self.gpt


def weights_digest(model: nn.Module) -> str:
    """A short hash that tells two sets of weights apart: the first and last rows of every tensor."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        rows = tensor.detach().reshape(len(tensor) if tensor.dim() else 1, -1)
        for piece in (rows[:8], rows[-8:]):
            hasher.update(piece.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()[:16]
