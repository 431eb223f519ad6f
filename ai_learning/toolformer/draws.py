"""How a next id is chosen: greedily, or at random in a way that does not depend on who shares the batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Chooser = Callable[[Tensor, list[int], int], Sequence[int | None]]
"""(B, V) logits, the B numbers of the copies, the step → an id for each; ``None`` ends a copy without one."""


def sampler(keys: np.ndarray, seed: int, temperature: float = 1.0) -> Chooser:
    """Draws the same ids for the same key, whichever rows share the batch and whichever process draws.

    Args:
        keys: (n,) uint64, one for each copy: what it is a sample of.
        seed: another seed, other samples.
        temperature: 0 takes the likeliest.
    """

    def choose(logits: Tensor, numbers: list[int], step: int) -> list[int]:
        if temperature == 0:
            return logits.argmax(-1).tolist()
        p = (logits.float() / temperature).softmax(-1).cumsum(-1)  # (B, V)
        draws = torch.from_numpy(uniforms(keys[numbers], seed, step)).to(p)
        found = torch.searchsorted(p, draws[:, None] * p[:, -1:], right=True).squeeze(-1)  # (B,)
        return found.clamp(max=p.size(-1) - 1).tolist()

    return choose


def uniforms(keys: np.ndarray, seed: int, step: int) -> np.ndarray:
    """(n,) float64 in [0, 1), a pure function of key, seed and step (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        return (mix(mix(mix(keys) + np.uint64(seed)) + np.uint64(step)) >> np.uint64(11)) * 2.0**-53


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser on uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
