"""GPT-1 (Radford et al. 2018) and GPT-2 (Radford et al. 2019): one decoder, two places for the layer norm.

    idx ─ wte + wpe ─ block × n_layer ─ ln_f ─ lm_head ─ logits

Module names are GPT-2's published ones. The model knows nothing of training, sampling, adapters or
quantization: those act on it from outside.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shapes import Hidden, Logits, Mask, Tokens
from .attention import ATTENTION, CausalSelfAttention
from .cache import KVCache, LayerCache


def gelu_new(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, as in both GPT papers' code (Hendrycks & Gimpel 2016)."""
    return F.gelu(x, approximate="tanh")


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {"gelu_new": gelu_new, "gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the shape and the arithmetic of a ``GPT``.

    Raises:
        ValueError: a value that cannot work, with the value and a way out.
    """

    vocab_size: int = 50257
    """ids are in range(vocab_size)"""
    block_size: int = 1024
    """longest sequence, in tokens"""
    n_layer: int = 12
    """number of blocks"""
    n_head: int = 12
    """attention heads in each block"""
    n_embd: int = 768
    """width of the residual stream"""
    dropout: float = 0.0
    """on embeddings, attention weights and residual branches"""
    bias: bool = True
    """biases in linear layers and layer norms"""
    norm_first: bool = True
    """True: layer norm before each branch and a final one (GPT-2); False: after each residual sum (GPT-1)"""
    activation: str = "gelu_new"
    """gelu_new, gelu or relu"""
    tie_weights: bool = True
    """the output head shares the token embedding's weight"""
    layer_norm_eps: float = 1e-5
    """added to the variance inside the layer norm's square root"""
    attention: str = "fast"
    """fast (fused kernel) or reference (the formula written out; gives the weights)"""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n_embd % self.n_head:
            divisors = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            near = [h for h in divisors if h < self.n_head][-1:] + [h for h in divisors if h > self.n_head][
                :1
            ]
            options = " or ".join(map(str, near))
            raise ValueError(f"n_head={self.n_head} must divide n_embd={self.n_embd}; try {options}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.layer_norm_eps <= 0:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be positive, e.g. 1e-5")
        for name, known in (("activation", list(ACTIVATION)), ("attention", list(ATTENTION))):
            value = getattr(self, name)
            if value not in known:
                guess = difflib.get_close_matches(value, known, n=1)
                hint = f"did you mean {guess[0]!r}?" if guess else f"use {' or '.join(map(repr, known))}"
                raise ValueError(f"{name}={value!r} is not known; {hint}")


class MLP(nn.Module):
    """Position-wise feed-forward layer: widen four times, bend, narrow (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.activation = ACTIVATION[config.activation]
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Hidden) -> Hidden:
        """(B, T, C) → (B, T, 4C) → (B, T, C)."""
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


class Block(nn.Module):
    """Attention, then the MLP, each a branch added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Hidden, cache: LayerCache | None = None, mask: Mask | None = None) -> Hidden:
        """(B, T, C) → (B, T, C)."""
        if self.norm_first:  # GPT-2: the stream itself is never normalised
            x = x + self.attn(self.ln_1(x), cache, mask)[0]
            return x + self.mlp(self.ln_2(x))
        x = self.ln_1(x + self.attn(x, cache, mask)[0])  # GPT-1
        return self.ln_2(x + self.mlp(x))


class GPT(nn.Module):
    """A decoder-only transformer language model.

    Args:
        config: sizes and switches; see ``ai_learning.presets`` for the published ones.

    Example:
        >>> model = GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=2, n_head=2, n_embd=32))
        >>> tuple(model(torch.zeros(3, 5, dtype=torch.long)).shape)
        (3, 5, 258)
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = (
            nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps, bias=config.bias)
            if config.norm_first
            else nn.Identity()  # GPT-1's last block already ends in a norm
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Normal(0, 0.02); branches' last layers smaller by 1/√(2·n_layer) (GPT-2 paper, section 2.3)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                std = 0.02
                if name.endswith("c_proj") and self.config.norm_first:
                    std /= math.sqrt(2 * self.config.n_layer)
                nn.init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        idx: Tokens,
        *,
        cache: KVCache | None = None,
        positions: Tokens | None = None,
        mask: Mask | None = None,
    ) -> Logits:
        """Logits of the next token at every position.

        Args:
            idx: (B, T) int64 ids.
            cache: keys and values of the positions before ``idx``; extended in place.
            positions: (B, T) or (T,) places of the tokens; counted on from the cache when ``None``.
            mask: broadcasts to (B, 1, T, S); ``False`` hides a key, besides the future (padding, packing).

        Returns:
            (B, T, V) logits.

        Raises:
            ValueError: wrong shape or dtype, an id outside the vocabulary, too many positions.
        """
        return self.lm_head(self.hidden(idx, cache=cache, positions=positions, mask=mask))

    def hidden(
        self,
        idx: Tokens,
        *,
        cache: KVCache | None = None,
        positions: Tokens | None = None,
        mask: Mask | None = None,
    ) -> Hidden:
        """(B, T, C) final hidden states, what ``lm_head`` reads; same arguments as ``forward``."""
        start = cache.length if cache is not None else 0
        self._check_input(idx, start)
        if positions is None:
            positions = torch.arange(start, start + idx.size(1), device=idx.device)  # (T,)
        x = self.drop(self.wte(idx) + self.wpe(positions))  # (B, T, C)
        layer_caches = cache if cache is not None else [None] * len(self.h)
        for block, layer_cache in zip(self.h, layer_caches, strict=True):
            x = block(x, layer_cache, mask)
        return self.ln_f(x)

    def n_params(self) -> int:
        """Number of parameters; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())

    def _check_input(self, idx: Tokens, start: int) -> None:
        if idx.dim() != 2 or idx.size(1) == 0:
            raise ValueError(f"idx must have shape (B, T) with T ≥ 1, got {tuple(idx.shape)}")
        if idx.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"idx must hold integer ids, got {idx.dtype}")
        end, block_size = start + idx.size(1), self.config.block_size
        if end > block_size:
            raise ValueError(f"sequence of {end} tokens exceeds block_size={block_size}: shorten it")
        # On an accelerator this look would stall the queue; there the embedding's own check stands.
        if idx.device.type == "cpu" and not torch.compiler.is_compiling() and idx.numel():
            low, high = (int(x) for x in torch.aminmax(idx))
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise ValueError(f"token id {bad} is outside the vocabulary of {self.config.vocab_size}")
