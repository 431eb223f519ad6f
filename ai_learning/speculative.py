"""Speculative decoding: a small model guesses, the large one checks all guesses in one pass.

Leviathan, Kalman and Matias (2023), "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
The result is distributed as the large model's own samples; greedily it is the same text, token by token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .generate import Sampling, probabilities
from .model import GPT, KVCache
from .shapes import Tokens


@dataclass
class Acceptance:
    """How the guesses fared."""

    guessed: int = 0
    accepted: int = 0
    passes: int = 0
    """of the large model"""

    @property
    def rate(self) -> float:
        """Share of the guesses that were kept."""
        return self.accepted / max(1, self.guessed)


@torch.inference_mode()
def speculative_stream(
    model: GPT,
    draft: GPT,
    idx: Tokens,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    n_guesses: int = 4,
    seed: int | None = None,
    acceptance: Acceptance | None = None,
) -> Iterator[int]:
    """Yield up to ``max_new_tokens`` ids that continue ``idx``.

    Args:
        model: whose text it is.
        draft: a smaller model of the same vocabulary.
        idx: (1, T) prompt.
        max_new_tokens: all must fit into both models' contexts together with the prompt.
        sampling: how to draw; ``Sampling(temperature=0)`` is greedy.
        n_guesses: tokens that the draft guesses at a time, γ in the paper.
        seed: makes the sample repeatable.
        acceptance: filled in as it goes.

    Raises:
        InputError: different vocabularies, more than one row, or too long for a context.
    """
    sampling = sampling or Sampling()
    stats = acceptance or Acceptance()
    if draft.config.vocab_size != model.config.vocab_size:
        sizes = f"{draft.config.vocab_size} and {model.config.vocab_size} ids"
        raise InputError(f"draft and model must share a tokenizer; they have {sizes}")
    if idx.dim() != 2 or idx.size(0) != 1:
        raise InputError(f"speculative decoding takes one prompt, (1, T); got {tuple(idx.shape)}")
    if sampling.repetition_penalty != 1.0:
        raise InputError("repetition_penalty changes with every token: leave it at 1 with a draft model")
    end = idx.size(1) + max_new_tokens
    room = min(model.config.block_size, draft.config.block_size)
    if end > room:
        raise InputError(f"{end} tokens exceed the smaller context of {room}: lower max_new_tokens")
    generator = None if seed is None else torch.Generator(device=idx.device).manual_seed(seed)
    caches = [KVCache(m.config, 1, end, m.wte.weight.dtype, idx.device) for m in (model, draft)]
    text: list[int] = idx[0].tolist()
    while len(text) < end:
        guesses: list[int] = []
        wished: list[Tensor] = []  # the draft's distributions, one a guess
        for _ in range(min(n_guesses, end - len(text) - 1)):
            q = _next(draft, caches[1], text + guesses, 1, sampling)[0]
            wished.append(q)
            guesses.append(_draw(q, generator))
        p = _next(model, caches[0], text + guesses, len(guesses) + 1, sampling)  # (γ + 1, V): one pass
        stats.passes += 1
        stats.guessed += len(guesses)
        kept = 0
        for guess, own, wish in zip(guesses, p, wished, strict=False):
            if torch.rand((), generator=generator, device=idx.device) * wish[guess] >= own[guess]:
                break
            kept += 1
        stats.accepted += kept
        if kept < len(guesses):  # what the draft wished for too much is taken away before drawing anew
            left = (p[kept] - wished[kept]).clamp(min=0)
            last = _draw(left / left.sum(), generator)
        else:
            last = _draw(p[kept], generator)
        new = [*guesses[:kept], last]
        text += new
        for cache in caches:  # keys and values of rejected guesses
            cache.truncate(min(cache.length, len(text) - 1))
        yield from new


def _next(model: GPT, cache: KVCache, text: list[int], n: int, sampling: Sampling) -> Tensor:
    """(n, V) distributions of what follows each of the last ``n`` tokens; reads what the cache lacks."""
    fresh = torch.tensor([text[cache.length :]], device=model.wte.weight.device)
    hidden = model.hidden(fresh, cache=cache)[:, -n:]
    return probabilities(model.lm_head(hidden)[0], sampling)


def _draw(p: Tensor, generator: torch.Generator | None) -> int:
    return int(torch.multinomial(p, 1, generator=generator))
