"""Speculative decoding: a small model guesses, the large one checks all guesses in one pass.

Leviathan, Kalman and Matias (2023), "Fast Inference from Transformers via Speculative Decoding", algorithm 1.
The result is distributed as the large model's own samples; greedily it is the same text, token by token.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InputError
from .generate import Sampling, check_request, evaluation_mode, probabilities, seeded
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

    Where the draft's context ends nothing is guessed any more; where the model's ends, it slides as in
    ``generate.stream``.

    Args:
        model: whose text it is; like the draft put in evaluation mode while this runs.
        draft: a smaller model of the same tokenizer.
        idx: (1, T) prompt.
        max_new_tokens: at most this many.
        sampling: how to draw; ``Sampling(temperature=0)`` is greedy.
        n_guesses: tokens that the draft guesses at a time, γ in the paper.
        seed: makes the sample repeatable.
        acceptance: filled in as it goes.

    Raises:
        InputError: different vocabularies, more than one row, or a repetition penalty.
        ValueError: a number out of its range, or an empty prompt.
    """
    sampling = sampling or Sampling()
    stats = Acceptance() if acceptance is None else acceptance
    check_draft(model, draft, sampling, n_guesses)
    check_request(idx, max_new_tokens, seed)
    if idx.size(0) != 1:
        raise InputError(f"speculative decoding takes one prompt, (1, T); got {tuple(idx.shape)}")
    with evaluation_mode(model, draft):
        yield from _continued(model, draft, idx, max_new_tokens, sampling, n_guesses, seed, stats)


def check_draft(model: GPT, draft: GPT, sampling: Sampling, n_guesses: int) -> None:
    """Refuse a draft that cannot guess for the model.

    Raises:
        InputError: different vocabularies, or what a draft cannot follow.
    """
    if n_guesses < 1:
        raise InputError(f"n_guesses={n_guesses} must be at least 1")
    if draft.config.vocab_size != model.config.vocab_size:
        sizes = f"{draft.config.vocab_size} and {model.config.vocab_size} ids"
        raise InputError(f"draft and model must share a tokenizer; they have {sizes}")
    if sampling.repetition_penalty != 1.0:
        raise InputError("repetition_penalty changes with every token: leave it at 1 with a draft model")


def _continued(
    model: GPT,
    draft: GPT,
    idx: Tokens,
    max_new_tokens: int,
    sampling: Sampling,
    n_guesses: int,
    seed: int | None,
    stats: Acceptance,
) -> Iterator[int]:
    generator = seeded(seed, idx.device)
    end = idx.size(1) + max_new_tokens
    rooms = [m.config.block_size for m in (model, draft)]
    caches = [
        KVCache(m.config, 1, min(end, room), m.wte.weight.dtype, idx.device)
        for m, room in zip((model, draft), rooms, strict=True)
    ]
    text: list[int] = idx[0].tolist()
    while len(text) < end:
        guesses: list[int] = []
        wished: list[Tensor] = []  # the draft's distributions, one a guess
        # The model reads all guesses, the draft all but the last: both within their contexts.
        for _ in range(min(n_guesses, end - len(text) - 1, rooms[0] - len(text), rooms[1] - len(text) + 1)):
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
    """(n, V) distributions of what follows each of the last ``n`` tokens; reads what the cache lacks.

    Past the context it reads the last ``block_size`` tokens anew: their positions have all moved.
    """
    room, device = model.config.block_size, model.wte.weight.device
    if len(text) > room:
        hidden = model.hidden(torch.tensor([text[-room:]], device=device))[:, -n:]
    else:
        hidden = model.hidden(torch.tensor([text[cache.length :]], device=device), cache=cache)[:, -n:]
    return probabilities(model.lm_head(hidden)[0], sampling)


def _draw(p: Tensor, generator: torch.Generator | None) -> int:
    return int(torch.multinomial(p, 1, generator=generator))
