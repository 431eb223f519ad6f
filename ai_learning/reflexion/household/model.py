"""A GPT whose positions also see the token before them, which makes copying quick to learn.

To say "what came after X the last time" a transformer must first move each token into the position after it:
that costs a layer and, in a small model, most of the training (Olsson et al. 2022, "induction heads"). Here
the shift is built in; the NanoGPT speed runs and Canon layers (Allen-Zhu 2025) have wider ones, as has
``model/record.py``.
"""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...model import GPT, GPTConfig, KVCache
from ...shapes import Hidden, Mask, Tokens


class LookBackGPT(GPT):
    """A ``GPT`` with rotary positions whose embeddings hold a learned share of the token before."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.look_back = nn.Parameter(torch.full((config.n_embd,), 0.5))
        self._before: WeakKeyDictionary[KVCache, Tensor] = WeakKeyDictionary()  # (B, 1) last ids of a cache

    def hidden(
        self,
        idx: Tokens,
        *,
        cache: KVCache | None = None,
        positions: Tokens | None = None,
        mask: Mask | None = None,
    ) -> Hidden:
        """(B, T) → (B, T, C), as ``GPT.hidden``. Before position 0, and in filling, stands id 0."""
        start = 0 if cache is None else cache.length
        self._check_input(idx, start, positions, mask)
        last = self._before.get(cache) if cache is not None and start else None
        last = torch.zeros_like(idx[:, :1]) if last is None else last
        if positions is None:
            positions = torch.arange(start, start + idx.size(1), device=idx.device)  # (T,)
        before = torch.cat([last, idx[:, :-1]], dim=1).masked_fill(positions == 0, 0)  # (B, T)
        x = self.embed(idx) + self.look_back * self.embed(before)  # (B, T, C)
        if cache is not None:
            self._before[cache] = idx[:, -1:]
        assert self.rotary is not None
        angles = self.rotary(positions)
        for block, layer_cache in zip(self.h, cache or [None] * len(self.h), strict=True):
            x = block(x, layer_cache, mask, angles)
        return self.ln_f(x)
