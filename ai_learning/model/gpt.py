"""GPT-1 (Radford et al. 2018) and GPT-2 (Radford et al. 2019): one decoder, two places for the layer norm.

    idx ─ wte + wpe ─ block × n_layer ─ ln_f ─ lm_head ─ logits

Module names are GPT-2's published ones. What Llama and Qwen changed (RMSNorm, rotary positions, a gated MLP,
shared keys and values) stands in files of its own, chosen by the configuration. The model knows nothing of
training, sampling, adapters or quantization: those act on it from outside.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..errors import did_you_mean, whole_numbers
from ..shapes import Hidden, Logits, Mask, Tokens
from .attention import ATTENTION, CausalSelfAttention
from .cache import KVCache, LayerCache
from .mlp import ACTIVATION, MLPS
from .norms import NORM
from .rotary import Angles, RopeScaling, RotaryEmbedding


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
    """gelu_new, gelu, relu, relu2 or silu"""
    tie_weights: bool = True
    """the output head shares the token embedding's weight"""
    layer_norm_eps: float = 1e-5
    """added to the variance inside the layer norm's square root"""
    attention: str = "fast"
    """fast (fused kernel) or reference (the formula written out; gives the weights)"""

    # What later models changed; GPT-1 and GPT-2 leave it all as it is.
    norm: str = "layernorm"
    """layernorm or rmsnorm"""
    positions: str = "learned"
    """learned (an embedding of each place) or rotary (queries and keys turned by an angle)"""
    mlp: str = "plain"
    """plain or gated (SwiGLU, with activation silu)"""
    n_kv_head: int | None = None
    """heads of keys and values, each shared by n_head / n_kv_head queries; n_head when None"""
    head_dim: int | None = None
    """size of one head's vectors; n_embd / n_head when None"""
    intermediate_size: int | None = None
    """hidden features of the MLP; 4 · n_embd when None"""
    qk_norm: bool = False
    """RMSNorm on every query and key"""
    rope_theta: float = 10000.0
    """base of the rotary angles"""
    rope_scaling: RopeScaling | None = None
    """stretched angles for contexts longer than those of pre-training"""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        whole_numbers(self, *sizes, "n_kv_head", "head_dim", "intermediate_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.head_dim is None and self.n_embd % self.n_head:
            options = _divisors_near(self.n_head, self.n_embd)
            raise ValueError(f"n_head={self.n_head} must divide n_embd={self.n_embd}; try {options}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps={self.layer_norm_eps} must be positive, e.g. 1e-5")
        if not 1e-30 < self.rope_theta < 1e30:  # its powers are float32
            raise ValueError(f"rope_theta={self.rope_theta} must be positive, e.g. 10000")
        if isinstance(self.rope_scaling, dict):  # as a checkpoint keeps it
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        for name in ("n_kv_head", "head_dim", "intermediate_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1; leave it out for the usual size")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head={self.n_kv_head} must divide n_head={self.n_head}")
        choices: dict[str, Collection[str]] = {
            "activation": ACTIVATION,
            "attention": ATTENTION,
            "norm": NORM,
            "positions": ("learned", "rotary"),
            "mlp": MLPS,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in tuple(known):
                raise ValueError(f"{name}={value!r} is not known; {did_you_mean(value, known)}")
        if self.rope_scaling is not None and self.positions != "rotary":
            raise ValueError(f"rope_scaling is for positions='rotary', not {self.positions!r}")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    @property
    def head_size(self) -> int:
        """D, the size of one head's vectors."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        """Hidden features of the MLP."""
        return self.intermediate_size or 4 * self.n_embd


def matrix_params(config: GPTConfig) -> int:
    """Parameters in matrices and embeddings, without building them: nearly all that there are.

    Example:
        >>> f"{matrix_params(GPTConfig()) / 1e6:.1f} of GPT-2's 124.4 million"
        "124.3 of GPT-2's 124.4 million"
    """
    C = config.n_embd
    attention = 2 * C * config.head_size * (config.n_head + config.kv_heads)  # q and output, k and v
    mlp = (3 if config.mlp == "gated" else 2) * C * config.mlp_width
    tables = config.vocab_size * (1 if config.tie_weights else 2)
    tables += config.block_size if config.positions == "learned" else 0
    return tables * C + config.n_layer * (attention + mlp)


class Block(nn.Module):
    """Attention, then the MLP, each a branch added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.ln_1 = NORM[config.norm](config.n_embd, config.layer_norm_eps, config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = NORM[config.norm](config.n_embd, config.layer_norm_eps, config.bias)
        self.mlp = MLPS[config.mlp](config)

    def forward(
        self,
        x: Hidden,
        cache: LayerCache | None = None,
        mask: Mask | None = None,
        angles: Angles | None = None,
    ) -> Hidden:
        """(B, T, C) → (B, T, C)."""
        if self.norm_first:  # GPT-2: the stream itself is never normalised
            x = x + self.attn(self.ln_1(x), cache, mask, angles)[0]
            return x + self.mlp(self.ln_2(x))
        x = self.ln_1(x + self.attn(x, cache, mask, angles)[0])  # GPT-1
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
        learned = config.positions == "learned"
        self.wpe = nn.Embedding(config.block_size, config.n_embd) if learned else None
        self.rotary = (
            None if learned else RotaryEmbedding(config.head_size, config.rope_theta, config.rope_scaling)
        )
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = (
            NORM[config.norm](config.n_embd, config.layer_norm_eps, config.bias)
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
            ValueError: wrong shape or dtype, an id outside the vocabulary, too many positions or one too far.
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
        self._check_input(idx, start, positions, mask)
        if positions is None:
            positions = torch.arange(start, start + idx.size(1), device=idx.device)  # (T,)
        x = self.embed(idx)  # (B, T, C)
        if self.wpe is not None:
            x = x + _look_up(self.wpe, positions, _NO_POSITION, self.config.block_size)
        angles = self.rotary(positions) if self.rotary is not None else None
        return self.run_blocks(self.drop(x), cache, mask, angles)

    def embed(self, idx: Tokens) -> Hidden:
        """(B, T) ids → (B, T, C) rows of the token embedding.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        return _look_up(self.wte, idx, _NO_ID, self.config.vocab_size)

    def run_blocks(
        self,
        x: Hidden,
        cache: KVCache | None = None,
        mask: Mask | None = None,
        angles: Angles | None = None,
    ) -> Hidden:
        """(B, T, C) embeddings → (B, T, C) final hidden states."""
        layer_caches = cache if cache is not None else [None] * len(self.h)
        for block, layer_cache in zip(self.h, layer_caches, strict=True):
            x = block(x, layer_cache, mask, angles)
        return self.ln_f(x)

    def n_params(self) -> int:
        """Number of parameters; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())

    def _check_input(self, idx: Tokens, start: int, positions: Tokens | None, mask: Mask | None) -> None:
        if idx.dim() != 2 or idx.size(1) == 0:
            raise ValueError(f"idx must have shape (B, T) with T ≥ 1, got {tuple(idx.shape)}")
        if idx.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"idx must hold integer ids, got {idx.dtype}")
        end, block_size = start + idx.size(1), self.config.block_size
        if end > block_size:
            raise ValueError(f"sequence of {end} tokens exceeds block_size={block_size}: shorten it")
        # One that is added to the weights, as elsewhere, shows a key by 0 and hides it by −∞: the opposite.
        if isinstance(mask, Tensor) and mask.is_floating_point():
            raise ValueError(f"mask must be bool, False where a key is hidden; got {mask.dtype}")


_NO_ID, _NO_POSITION = "token id {} is outside the vocabulary of {}", "position {} is outside block_size={}"


def _look_up(table: nn.Module, numbers: Tokens, complaint: str, rows: int) -> Tensor:
    """Rows of an embedding.

    A CPU finds numbers that it has no row for as it goes, and only then they are looked for, which takes as
    long as a small layer. An accelerator's own check says less, but to look first would stall its queue.

    Raises:
        ValueError: the complaint, with the number and how many rows there are.
    """
    try:
        found: Tensor = table(numbers)
    except IndexError as error:
        low, high = (int(x) for x in torch.aminmax(numbers))
        if low >= 0 and high < rows:  # another's
            raise
        raise ValueError(complaint.format(low if low < 0 else high, rows)) from error
    return found


def _divisors_near(n_head: int, n_embd: int) -> str:
    """The next divisors of ``n_embd`` below and above ``n_head``, for a message."""
    small = [h for h in range(1, min(math.isqrt(n_embd), 10**6) + 1) if n_embd % h == 0]
    divisors = sorted({*small, *(n_embd // h for h in small)})
    below, above = ([h for h in divisors if (h > n_head) is more] for more in (False, True))
    return " or ".join(map(str, below[-1:] + above[:1]))


def untied(config: GPTConfig, state: Mapping[str, Tensor]) -> GPTConfig:
    """The config, but untied where a state dict's head has become another than its embedding."""
    head, embedding = state.get("lm_head.weight"), state.get("wte.weight")
    if not config.tie_weights or head is None or embedding is None or head.data_ptr() == embedding.data_ptr():
        return config
    return config if torch.equal(head, embedding) else replace(config, tie_weights=False)
