"""Model and optimisation together, at one size: what learns most from 1.5 million characters.

nanoGPT's published setting for a CPU (0.80 M parameters, 2000 steps of 12 × 64 characters of Shakespeare) is
the yardstick; ``benchmarks/sample_efficiency.py`` measures all of them, and what each change brings.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from .model import GPT, GPTConfig, RecordGPT
from .optim import muon_with_adamw


@dataclass(frozen=True)
class Recipe:
    """A model's configuration, its initialisation, and how it is trained."""

    model: GPTConfig
    """sizes and parts"""
    record: bool = False
    """build a ``RecordGPT`` instead of a ``GPT``"""
    softcap: float = 15.0
    """of a ``RecordGPT``'s logits"""
    weight_std: float | None = None
    """of the blocks' matrices at the start; the model's own when ``None``"""
    embedding_std: float | None = None
    """of the token embedding at the start; the model's own when ``None``"""
    zero_projections: bool = False
    """the last layer of each branch, and the head, begin at zero"""
    lr: float = 1e-3
    """AdamW's peak rate"""
    embedding_lr: float | None = None
    """of the token embedding; ``lr`` when ``None``"""
    head_lr: float | None = None
    """of an untied head; ``lr`` when ``None``"""
    muon_lr: float | None = None
    """of the blocks' matrices by Muon; AdamW trains them too when ``None``"""
    betas: tuple[float, float] = (0.9, 0.99)
    """AdamW's"""
    weight_decay: float = 0.1
    """AdamW's, on matrices and embeddings"""
    warmup: int = 100
    """steps of linear rise"""
    schedule: str = "linear"
    """see ``optim.lr_factor``"""
    lr_floor: float = 0.0
    """share of the peak rate at the end"""
    every_token_once: bool = True
    """windows side by side, shuffled anew each epoch; else at random places, some never seen"""
    steps: int = 2000
    """of ``batch_size`` windows"""
    batch_size: int = 12
    """windows of ``block_size`` tokens"""

    def build(self) -> nn.Module:
        """The model, initialised from the global random generator."""
        model = RecordGPT(self.model, self.softcap) if self.record else GPT(self.model)
        for name, parameter in model.named_parameters():
            last = name.endswith("c_proj.weight") or (name == "lm_head.weight" and not self.model.tie_weights)
            if self.zero_projections and last:
                nn.init.zeros_(parameter)
            elif self.weight_std is not None and parameter.dim() == 2 and name.startswith("h."):
                nn.init.normal_(parameter, std=self.weight_std)
            elif self.embedding_std is not None and name == "wte.weight":
                nn.init.normal_(parameter, std=self.embedding_std)
        return model

    def optimizers(self, model: nn.Module) -> list[torch.optim.Optimizer]:
        """The optimizers of the model; every group's ``lr`` is its peak."""
        return muon_with_adamw(
            model,
            lr=self.lr,
            muon_lr=self.muon_lr,
            lr_by_name={
                "wte.weight": self.embedding_lr or self.lr,
                "lm_head.weight": self.head_lr or self.lr,
            },
            betas=self.betas,
            weight_decay=self.weight_decay,
        )


_SIZES = GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False)
_MODERN = GPTConfig(
    vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128, bias=False, tie_weights=False,
    norm="rmsnorm", positions="rotary", rope_theta=200.0, qk_norm=True, activation="relu2",
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "nanogpt": Recipe(_SIZES, schedule="cosine", lr_floor=0.1, every_token_once=False),
    "classic": Recipe(_SIZES, lr=6e-3, muon_lr=0.02, weight_decay=0.0),
    "modern": Recipe(
        _MODERN,
        weight_std=0.08,
        zero_projections=True,
        lr=4e-3,
        embedding_lr=2e-1,
        head_lr=6e-3,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        warmup=10,
    ),
    "record": Recipe(
        replace(_MODERN, rope_theta=10000.0),
        record=True,
        weight_std=0.06,
        embedding_std=1.0,
        zero_projections=True,
        lr=1.5e-2,
        embedding_lr=4e-2,
        head_lr=8e-3,
        muon_lr=0.025,
        betas=(0.8, 0.95),
        weight_decay=0.0,
        warmup=10,
    ),
}
