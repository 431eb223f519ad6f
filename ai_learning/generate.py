"""Sampling as pure functions on logits, and the loop that feeds the model its own tokens.

A context longer than ``block_size`` slides: the model then reads the last ``block_size`` tokens, and since
positions are absolute everything in the cache is out of date, so each further token costs a full pass.
"""

import codecs
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from .model import GPT, KVCache
from .shapes import Tokens
from .tokenizers import Tokenizer

# --- from logits to a distribution ------------------------------------------------------------------------


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """(B, V) → (B, V): divided by ``temperature``; below 1 sharper, above 1 flatter.

    The largest logit is moved to 0 first, which changes no probability, so that no temperature overflows.
    """
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def apply_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep each row's ``k`` largest logits, and ties of the last; others ``-inf`` (Fan et al. 2018)."""
    kth = logits.topk(min(k, logits.size(-1)), dim=-1).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -math.inf)


def apply_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities reach ``p`` (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of the more likely ones: 0 for the first
    return logits.masked_fill((before >= p).scatter(-1, order, before >= p), -math.inf)


def apply_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens at least ``min_p`` times as likely as the likeliest (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(min_p), -math.inf)


def apply_repetition_penalty(logits: Tensor, idx: Tokens, penalty: float) -> Tensor:
    """Make tokens already in ``idx`` (B, T) less likely: positive logits ÷, negative × (Keskar 2019)."""
    seen = logits.gather(-1, idx)
    return logits.scatter(-1, idx, torch.where(seen > 0, seen / penalty, seen * penalty))


def next_token(
    logits: Tensor,
    idx: Tokens,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B, V) logits → (B,) ids. ``temperature=0`` takes the likeliest; filters apply in the order given."""
    if repetition_penalty != 1.0:
        logits = apply_repetition_penalty(logits, idx, repetition_penalty)
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = apply_temperature(logits.float(), temperature)
    if top_k is not None:
        logits = apply_top_k(logits, top_k)
    if top_p is not None:
        logits = apply_top_p(logits, top_p)
    if min_p is not None and min_p > 0:
        logits = apply_min_p(logits, min_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


# --- the loop ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def stream(
    model: GPT,
    idx: Tokens,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield (B,) ids, one step at a time; the arguments are those of ``generate``."""
    check_sampling(temperature, top_k, top_p, min_p, repetition_penalty, max_new_tokens, seed)
    if idx.dim() != 2:
        raise ValueError(f"idx must have shape (B, T), got {tuple(idx.shape)}")
    block_size = model.config.block_size
    generator = None
    if seed is not None:
        generator = torch.Generator(device=idx.device).manual_seed(seed)
    B, T = idx.shape
    end = T + max_new_tokens
    tokens = idx  # (B, ≥ length): grows by doubling, filled as we go
    cache = None
    if use_cache and T <= block_size:
        cache = KVCache(model.config, B, min(end, block_size), model.wte.weight.dtype, idx.device)
    was_training = model.training
    model.eval()
    try:
        for length in range(T, end):
            start = max(0, length - block_size)  # the window slides once the context is full
            if cache is not None and start == 0:
                logits = _last_logits(model, tokens[:, cache.length : length], cache)
            else:
                logits = _last_logits(model, tokens[:, start:length], None)
            chosen = next_token(
                logits,
                tokens[:, :length],
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                generator=generator,
            )
            if length == tokens.size(1):
                tokens = torch.cat([tokens, torch.empty_like(tokens)], dim=1)
            tokens[:, length] = chosen
            yield chosen
    finally:
        model.train(was_training)


def generate(
    model: GPT,
    idx: Tokens,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    stop: int | Sequence[int] | None = None,
    use_cache: bool = True,
) -> Tokens:
    """Continue ``idx`` by up to ``max_new_tokens`` tokens.

    Args:
        model: any ``GPT``; put in evaluation mode while this runs.
        idx: (B, T) prompt ids, T ≥ 1; a context longer than ``block_size`` slides (see the module).
        max_new_tokens: how many to add.
        temperature: 0 is greedy.
        top_k: keep that many tokens.
        top_p: keep the likeliest tokens that reach this probability.
        min_p: keep tokens at least this share as likely as the likeliest.
        repetition_penalty: above 1 discourages tokens already there.
        seed: makes the sample repeatable; ``None`` draws from the global generator.
        stop: id or ids that end a row; a row that ended is filled up with the id that ended it.
        use_cache: keep keys and values instead of computing them again; the same ids either way.

    Returns:
        (B, T + n) ids, n ≤ ``max_new_tokens``: fewer when every row stopped.

    Raises:
        ValueError: a sampling value out of its range, or an empty prompt.

    Example:
        >>> from ai_learning.model import GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=8))
        >>> tuple(generate(model, torch.zeros(2, 3, dtype=torch.long), 4, seed=0).shape)
        (2, 7)
    """
    stops = torch.tensor([stop] if isinstance(stop, int) else list(stop or []), device=idx.device)
    columns = [idx]
    finished = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    filler = torch.zeros(idx.size(0), dtype=idx.dtype, device=idx.device)
    for chosen in stream(
        model,
        idx,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        use_cache=use_cache,
    ):
        column = torch.where(finished, filler, chosen)
        columns.append(column[:, None])
        if len(stops):
            newly = torch.isin(column, stops) & ~finished
            filler = torch.where(newly, column, filler)
            finished |= newly
            if bool(finished.all()):
                break
    return torch.cat(columns, dim=1)


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    **sampling: float | int | bool | None,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` as text, never half a character and never past a stop string.

    An empty prompt starts from the tokenizer's end-of-document token, as training documents do.

    Args:
        model: the model.
        tokenizer: the one that it was trained with.
        prompt: text to continue.
        max_new_tokens: at most this many tokens.
        stop: strings that end the text; they are not shown themselves.
        should_stop: asked after every token; ``True`` ends the text.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty, seed, use_cache.
    """
    if "" in stop:
        raise ValueError("a stop string is empty: it would end every text at once")
    ids = tokenizer.encode(prompt) or [tokenizer.eos_id or 0]
    idx = torch.tensor([ids], device=model.wte.weight.device)
    held = max((len(s) for s in stop), default=1) - 1  # what could be the beginning of a stop string
    # Waits for the rest of a character that ends in a later token.
    errors = "ignore" if getattr(tokenizer, "errors", "replace") == "ignore" else "replace"
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    text, shown = "", 0
    for chosen in stream(model, idx, max_new_tokens, **sampling):  # type: ignore[arg-type]
        token = int(chosen)
        if token == tokenizer.eos_id or should_stop():
            break
        text += decoder.decode(tokenizer.decode_bytes([token]))
        ends = [place for place in (text.find(s, max(0, shown - held)) for s in stop) if place >= 0]
        if ends:
            yield text[shown : min(ends)]
            return
        safe = len(text) - held
        if safe > shown:
            yield text[shown:safe]
            shown = safe
    text += decoder.decode(b"", final=True)
    if text[shown:]:
        yield text[shown:]


def generate_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **options: object
) -> str:
    """The whole continuation that ``stream_text`` would yield."""
    return "".join(stream_text(model, tokenizer, prompt, max_new_tokens, **options))  # type: ignore[arg-type]


def _last_logits(model: GPT, idx: Tokens, cache: KVCache | None) -> Tensor:
    """(B, V): the head is asked for the last position only."""
    return model.lm_head(model.hidden(idx, cache=cache)[:, -1])


def check_sampling(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float,
    max_new_tokens: int,
    seed: int | None,
) -> None:
    """Raise ``ValueError`` for a value out of its range."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must not be negative")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be 0 (greedy) or positive")
    if seed is not None and seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k} must be at least 1; leave it out to keep every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must be above 0 and at most 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise ValueError(f"min_p={min_p} must be from 0 to 1")
    if not 0 < repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty={repetition_penalty} must be positive; 1 changes nothing")
