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
    """How many of the draft's guesses the model accepted."""

    guessed: int = 0
    accepted: int = 0
    passes: int = 0
    """forward passes of the large model"""

    @property
    def rate(self) -> float:
        """Share of the guesses that were accepted."""
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

    Once the text is longer than the draft's context, the model goes on alone; its own context slides as in
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
    """Algorithm 1, repeated: γ guesses, one pass of the model, the accepted guesses and one token more."""
    generator = seeded(seed, idx.device)
    end = idx.size(1) + max_new_tokens
    model_context, draft_context = model.config.block_size, draft.config.block_size
    model_cache, draft_cache = (
        KVCache(m.config, 1, min(end, m.config.block_size), m.wte.weight.dtype, idx.device)
        for m in (model, draft)
    )
    text: list[int] = idx[0].tolist()
    while len(text) < end:
        guesses: list[int] = []
        q: list[Tensor] = []  # (V,) the draft's distribution of each guess
        # The model reads all guesses, the draft all but the last: both must stay within their contexts.
        room = min(model_context - len(text), draft_context - len(text) + 1)
        for _ in range(min(n_guesses, end - len(text) - 1, room)):
            q.append(_next(draft, draft_cache, text + guesses, 1, sampling)[0])
            guesses.append(_draw(q[-1], generator))
        p = _next(model, model_cache, text + guesses, len(guesses) + 1, sampling)  # (γ + 1, V): one pass
        stats.passes += 1
        stats.guessed += len(guesses)
        accepted = 0
        for guess, p_i, q_i in zip(guesses, p, q, strict=False):  # accept with probability p / q
            if torch.rand((), generator=generator, device=idx.device) * q_i[guess] >= p_i[guess]:
                break
            accepted += 1
        stats.accepted += accepted
        if accepted < len(guesses):  # the rejected guess is replaced by a draw from max(0, p − q), normalised
            left = (p[accepted] - q[accepted]).clamp(min=0)
            last = _draw(left / left.sum(), generator)
        else:
            last = _draw(p[accepted], generator)
        new = [*guesses[:accepted], last]
        text += new
        for cache in (model_cache, draft_cache):  # forget keys and values of rejected guesses
            cache.truncate(min(cache.length, len(text) - 1))
        yield from new


def _next(model: GPT, cache: KVCache, text: list[int], n: int, sampling: Sampling) -> Tensor:
    """(n, V) distributions of the token after each of the last ``n``; computes only what the cache lacks.

    A text longer than the context is computed anew, its last ``block_size`` tokens: all positions have moved.
    """
    room, device = model.config.block_size, model.wte.weight.device
    if len(text) > room:
        hidden = model.hidden(torch.tensor([text[-room:]], device=device))[:, -n:]
    else:
        hidden = model.hidden(torch.tensor([text[cache.length :]], device=device), cache=cache)[:, -n:]
    return probabilities(model.lm_head(hidden)[0], sampling)


def _draw(p: Tensor, generator: torch.Generator | None) -> int:
    return int(torch.multinomial(p, 1, generator=generator))
