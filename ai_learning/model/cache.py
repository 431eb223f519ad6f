"""The key-value cache: what attention computed for earlier positions, kept so that it is not done again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ..shapes import Heads

if TYPE_CHECKING:
    from .gpt import GPTConfig


class LayerCache:
    """Keys and values of one layer, in tensors allocated once: appending copies only the new positions."""

    def __init__(self, k: Heads, v: Heads) -> None:
        self.k, self.v = k, v  # (B, H, capacity, D)
        self.length = 0

    def append(self, k: Heads, v: Heads) -> tuple[Heads, Heads]:
        """Store (B, H, T, D) new keys and values; return all so far as (B, H, S, D) views.

        Raises:
            ValueError: more positions than the cache was made for, or another number of rows.
        """
        if k.size(0) != self.k.size(0):  # one row would be taken for all
            raise ValueError(f"keys of shape {tuple(k.shape)} do not fit a cache of {tuple(self.k.shape)}")
        start, T = self.length, k.size(2)
        end = start + T
        if end > self.k.size(2):
            raise ValueError(f"{end} positions exceed the cache's {self.k.size(2)}: make a larger KVCache")
        self.k.narrow(2, start, T).copy_(k)
        self.v.narrow(2, start, T).copy_(v)
        self.length = end
        return self.k.narrow(2, 0, end), self.v.narrow(2, 0, end)


class KVCache:
    """One ``LayerCache`` a layer, given to ``GPT`` as an argument.

    Args:
        config: of the model that will use it.
        batch_size: rows.
        max_length: positions to make room for; ``block_size`` when ``None``.
        dtype: of the model's activations.
        device: of the model.

    Example:
        >>> from ai_learning.model import GPT, GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=8)).eval()
        >>> cache = KVCache(model.config, batch_size=1)
        >>> logits = model(torch.tensor([[1, 2, 3]]), cache=cache)  # the prompt
        >>> logits = model(torch.tensor([[4]]), cache=cache)  # then one token at a time
        >>> cache.length
        4
    """

    def __init__(
        self,
        config: "GPTConfig",
        batch_size: int,
        max_length: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        capacity = config.block_size if max_length is None else max_length
        shape = (batch_size, config.kv_heads, capacity, config.head_size)
        self.layers = [
            LayerCache(
                torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device)
            )
            for _ in range(config.n_layer)
        ]

    def __iter__(self) -> Iterator[LayerCache]:
        return iter(self.layers)

    @property
    def length(self) -> int:
        """Positions stored so far."""
        return self.layers[0].length

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on (a rejected draft, another continuation)."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        for layer in self.layers:
            layer.length = length
