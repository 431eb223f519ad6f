"""What ``ai-learning finetune --method full|lora|qlora`` can be asked for."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..adapted import COMPUTE
from ..adapters import LoRAConfig
from ..train import TrainConfig
from .common import DEMO_MODEL

BUILTIN = "builtin:function-names"
LR = {"full": 1e-3, "lora": 4e-3, "qlora": 4e-3}


@dataclass(frozen=True)
class Instruct:
    """Fine-tune a language model on instruction data: all weights, an adapter, or an adapter on four bits.

    Data: rows with prompt and response, messages (OpenAI), conversations (ShareGPT) or text, from .jsonl,
    .json, .csv, .tsv, .parquet or hf:NAME. Only answers are learned. With --method head (GPT-1's task heads)
    the options are others: ai-learning finetune --method head --help.
    """

    method: Literal["full", "lora", "qlora"] = "lora"
    """full: all weights; lora: a low-rank adapter; qlora: the same on a base in four bits"""
    checkpoint: str = DEMO_MODEL
    """the base: a .pt file, a folder of Hugging Face's, or a name on the hub"""
    data: str = BUILTIN
    """builtin:function-names (docstring → name, from the standard library), a file, or hf:NAME?split=train"""
    eval_data: str | None = None
    """held-out data; a share of --data when left out"""
    held_out: float = 0.1
    """that share"""
    out: Path = Path("runs/instruct")
    """folder for checkpoints, the adapter, metrics, plots and the report"""
    resume: bool = False
    """go on with the run in --out, with its own options"""
    epochs: float = 0.0
    """passes over the data; sets --steps when above 0"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none"""
    prompt_column: str | None = None
    """what the data calls the prompt, if not prompt, instruction or question"""
    response_column: str | None = None
    """what the data calls the response, if not response, completion, output or answer"""
    chat_template: str | None = None
    """chatml, none, or a Jinja file; the base's own where it brings one"""
    on_bad_row: Literal["fatal", "skip"] = "fatal"
    """a row that cannot be used ends the command with its file and line, or is left out and told"""
    too_long: Literal["skip", "cut"] = "skip"
    """a conversation longer than the model's input is a bad row, or is cut at its end"""
    max_length: int = 2048
    """longest example in tokens, at most the model's own longest input"""
    layout: Literal["auto", "stream", "pack", "pad"] = "auto"
    """stream: no padding; pack: masked rows; pad; auto: stream on a CPU with fast attention, else pack"""
    lora_r: int = 8
    """rank of the adapter"""
    lora_alpha: float = 16.0
    """the update is scaled by alpha / r"""
    lora_dropout: float = 0.0
    """probability of dropping an input of A"""
    lora_targets: str = "all-linear"
    """all-linear, or names with commas: c_attn,c_proj"""
    lora_plus: float = 1.0
    """how much faster B learns than A (LoRA+ suggests 16)"""
    use_dora: bool = False
    """learn the length of every weight row apart from its direction"""
    use_rslora: bool = False
    """scale by alpha / √r"""
    quant_type: Literal["nf4", "fp4", "int4"] = "nf4"
    """of the base, with qlora"""
    double_quant: bool = True
    """quantize the blocks' scales too"""
    compute_dtype: str | None = None
    """of products with 4-bit weights: float32, bfloat16, float16; the input's when left out"""
    compare: bool = False
    """also train all weights on the same batches, and say which share of that gain the adapter has"""
    samples: int = 4
    """held-out prompts to answer before and after"""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=300, batch_size=32, lr=LR["lora"], warmup=20, schedule="linear", lr_floor=0.0,
            weight_decay=0.0, beta2=0.999, eval_every=50, save_every=100,
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be between 0 and 1")
        if not (self.epochs >= 0 and math.isfinite(self.epochs)):
            raise ValueError(f"epochs={self.epochs} must be a number, not negative")
        if self.train.optimizer == "muon" and (self.method != "full" or self.lora_plus > 1):
            raise ValueError("muon is for whole matrices: use it with --method full, or --optimizer adamw")
        if self.compute_dtype is not None and self.compute_dtype not in COMPUTE:
            raise ValueError(f"compute_dtype={self.compute_dtype!r} is not known; use {', '.join(COMPUTE)}")
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2")
        if self.samples < 0 or self.lora_plus < 1:
            raise ValueError(
                f"samples={self.samples} must be at least 0, lora_plus={self.lora_plus} at least 1"
            )
        if (self.prompt_column is None) != (self.response_column is None):
            raise ValueError("--prompt-column and --response-column go together")
        if self.compare and self.method == "full":
            raise ValueError("--compare trains all weights beside an adapter: use it with lora or qlora")

    @property
    def lora(self) -> LoRAConfig:
        """The adapter's config."""
        names = [name.strip() for name in self.lora_targets.split(",")]
        return LoRAConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=names if len(names) > 1 else names[0],
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )
