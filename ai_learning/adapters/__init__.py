"""Adapters: small trainable updates of a frozen model (LoRA), also of one kept in 4 bits (QLoRA).

They act on any ``nn.Module`` from outside, by the names of its layers; the model knows nothing of them.
"""

from .combine import add_weighted_adapter
from .config import LoRAConfig
from .layers import LoRALayer, SavedModule
from .lora import (
    adapters_by_row,
    delete_adapter,
    eject_lora,
    inject_lora,
    load_lora_state_dict,
    lora_plus_groups,
    lora_state_dict,
    merge_lora,
    set_adapter,
    unmerge_lora,
    use_adapter,
)
from .nf4 import (
    QuantState,
    bits_per_parameter,
    dequantize_4bit,
    dequantize_nf4,
    quantize_4bit,
    quantize_nf4,
)
from .nf4_linear import NF4Linear
from .peft import load_peft, save_peft
from .qlora import checkpoint_blocks, make_optimizer, prepare_qlora, quantize_linears
from .registry import adapter_config, adapter_names

__all__ = [
    "LoRAConfig",
    "LoRALayer",
    "NF4Linear",
    "QuantState",
    "SavedModule",
    "adapter_config",
    "adapter_names",
    "adapters_by_row",
    "add_weighted_adapter",
    "bits_per_parameter",
    "checkpoint_blocks",
    "delete_adapter",
    "dequantize_4bit",
    "dequantize_nf4",
    "eject_lora",
    "inject_lora",
    "load_lora_state_dict",
    "load_peft",
    "lora_plus_groups",
    "lora_state_dict",
    "make_optimizer",
    "merge_lora",
    "prepare_qlora",
    "quantize_4bit",
    "quantize_linears",
    "quantize_nf4",
    "save_peft",
    "set_adapter",
    "unmerge_lora",
    "use_adapter",
]
