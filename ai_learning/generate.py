"""Sampling as pure functions on logits, and the loop that feeds the model its own tokens.

A context longer than ``block_size`` slides: the model then reads the last ``block_size`` tokens, and since
positions are absolute everything in the cache is out of date, so each further token costs a full pass.
"""

import hashlib
import math
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor

from . import decode_triton, shortlist
from .errors import whole_numbers
from .model import GPT, KVCache
from .shapes import Tokens
from .tokenizers import Tokenizer, encode_own
from .tokenizers.streaming import StreamDecoder

StopIds = SupportsIndex | Collection[SupportsIndex] | Tensor | None
_FLOAT32 = torch.finfo(torch.float32)
_PENALTIES = (0.01, 100.0)  # beyond, logits leave the range of 16 bits, and mean nothing long before

# --- from logits to a distribution ------------------------------------------------------------------------


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """(B, V) → (B, V): divided by ``temperature``; below 1 sharper, above 1 flatter.

    The largest logit is moved to 0 first, which changes no probability, so that no temperature overflows.
    """
    # What float32 would round to 0 or infinity is taken at its ends: all on the likeliest, or all alike.
    temperature = min(max(temperature, _FLOAT32.tiny), _FLOAT32.max)
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def apply_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep each row's ``k`` largest logits, and ties of the last; others ``-inf`` (Fan et al. 2018)."""
    kth = logits.topk(min(k, logits.size(-1)), dim=-1).values[..., -1:]  # (B, 1)
    return logits.masked_fill(logits < kth, -math.inf)


def apply_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens that reach probability ``p`` (Holtzman et al. 2020); 1 keeps all."""
    if p >= 1:  # float32's sums reach 1 long before the last token
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # mass of the more likely ones: 0 for the first
    p = max(p, _FLOAT32.tiny)  # one that float32 rounds to 0 would keep nothing
    return logits.masked_fill((before >= p).scatter(-1, order, before >= p), -math.inf)


def apply_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens at least ``min_p`` times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all."""
    if min_p <= 0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(min_p), -math.inf)


def apply_repetition_penalty(logits: Tensor, idx: Tokens, penalty: float) -> Tensor:
    """Make tokens already in ``idx`` (B, T) less likely: positive logits ÷, negative × (Keskar 2019)."""
    seen = logits.gather(-1, idx)
    return logits.scatter(-1, idx, torch.where(seen > 0, seen / penalty, seen * penalty))


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits: the repetition penalty first, the others in the fields' order.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0
    """0 takes the likeliest token"""
    top_k: int | None = None
    """keep that many tokens"""
    top_p: float | None = None
    """keep the likeliest tokens that reach this probability"""
    min_p: float | None = None
    """keep tokens at least this share as likely as the likeliest"""
    repetition_penalty: float = 1.0
    """above 1 discourages tokens already there"""

    def __post_init__(self) -> None:
        whole_numbers(self, "top_k")
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or positive")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1; leave it out to keep every token")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be from 0 to 1")
        low, high = _PENALTIES
        if not low <= self.repetition_penalty <= high:
            given = f"repetition_penalty={self.repetition_penalty}"
            raise ValueError(f"{given} must be positive, from {low} to {high:g}; 1 changes nothing")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, whatever came before."""
        return self.temperature == 0 and self.repetition_penalty == 1.0


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) → (B, V) float32 at a temperature above 0, with what may not be drawn at ``-inf``."""
    logits = apply_temperature(logits.float(), sampling.temperature)
    if sampling.top_k is not None:
        logits = apply_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = apply_top_p(logits, sampling.top_p)
    if sampling.min_p is not None:
        logits = apply_min_p(logits, sampling.min_p)
    return logits


def likeliest(logits: Tensor) -> Tensor:
    """(B, V) → (B,): where each row's largest logit stands, the first of several."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and not logits.requires_grad:
        return torch.from_numpy(logits.numpy().argmax(-1))  # 14 times as fast as PyTorch's at 50,000 ids
    return logits.argmax(-1)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) → (B, V): what tokens are drawn from; greedy puts all on the likeliest."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, likeliest(logits)[:, None], 1.0)
    return filter_logits(logits, sampling).softmax(-1)


def next_token(
    logits: Tensor, idx: Tokens, sampling: Sampling, generator: torch.Generator | None = None
) -> Tensor:
    """(B, V) logits that follow (B, T) ``idx`` → (B,) ids."""
    if sampling.repetition_penalty != 1.0:
        logits = apply_repetition_penalty(logits, idx, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return likeliest(logits)
    p = filter_logits(logits, sampling).softmax(dim=-1)
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)


# --- the loop ---------------------------------------------------------------------------------------------


def check_request(idx: Tokens, max_new_tokens: int, seed: int | None) -> None:
    """Refuse arguments with which no prompt can be continued.

    Raises:
        ValueError: ``idx`` is not (B, T), or a number is out of its range.
    """
    if not isinstance(max_new_tokens, SupportsIndex):
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be a whole number")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must not be negative")
    check_seed(seed)
    if idx.dim() != 2:
        raise ValueError(f"idx must have shape (B, T), got {tuple(idx.shape)}")


def check_seed(seed: SupportsIndex | None) -> None:
    """Refuse what PyTorch's generators do not take.

    Raises:
        ValueError: no whole number, one below 0, or of more than 64 bits.
    """
    try:
        seed = None if seed is None else operator.index(seed)
    except TypeError:
        raise ValueError(f"seed={seed!r} must be a whole number") from None
    if seed is not None and seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    if seed is not None and seed >= 2**64:
        raise ValueError(f"seed={seed} must be below 2**64: give a smaller one")


def seeded(seed: SupportsIndex | None, device: torch.device) -> torch.Generator | None:
    """What samples are drawn from: with ``None``, the global generator."""
    if seed is None:
        return None
    return torch.Generator(device=device).manual_seed(operator.index(seed))  # which takes Python's only


def seed_of_sample(seed: int | None, number: int) -> int | None:
    """The seed of one of several samples: the first has ``seed`` itself, the others none that is near it.

    Counting up would make the second sample of seed 1 the first of seed 2.

    Example:
        >>> [seed_of_sample(7, number) for number in range(2)]
        [7, 57720475666258518]
    """
    if seed is None or number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}, {number}".encode()).digest()[:8], "big")


@contextmanager
def evaluation_mode(*models: GPT) -> Iterator[None]:
    """Put models in evaluation mode (no dropout) for a ``with`` block; each returns to its own mode after."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


@torch.inference_mode()
def stream(
    model: GPT,
    idx: Tokens,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    seed: int | None = None,
    use_cache: bool = True,
    padding: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield (B,) ids, one step at a time.

    Args:
        model: any ``GPT``; put in evaluation mode while this runs.
        idx: (B, T) prompts.
        max_new_tokens: how many steps.
        sampling: how to draw; ``Sampling()`` when ``None``.
        seed: makes the sample repeatable.
        use_cache: keep keys and values instead of computing them again.
        padding: (B,) how many ids at each row's beginning only fill it up; ``None`` when none do.

    Raises:
        ValueError: ``idx`` is not (B, T), or a number is out of its range.
    """
    sampling = sampling or Sampling()
    check_request(idx, max_new_tokens, seed)
    block_size = model.config.block_size
    generator = seeded(seed, idx.device)
    B, T = idx.shape
    end = T + max_new_tokens
    tokens = idx  # (B, ≥ length): prompt and continuation; grows by doubling, like a list
    cache = None
    if use_cache and T <= block_size:
        cache = KVCache(model.config, B, min(end, block_size), model.wte.weight.dtype, idx.device)
    pick = _picker(model, sampling, B, max_new_tokens, generator)
    may_decode = cache is not None and B == 1 and padding is None
    may_decode = may_decode and min(end, block_size) - T >= decode_triton.WORTH_STEPS
    decoder: decode_triton.Decoder | None = None  # made when the prompt is in the cache
    with evaluation_mode(model):
        for length in range(T, end):
            context = tokens[:, :length]
            start = max(0, length - block_size)  # the window slides once the context is full
            if may_decode and length == T + 1 and decode_triton.suits(model):
                decoder = decode_triton.Decoder(model, cast(KVCache, cache))
            if decoder is not None and start == 0:
                chosen = _decode_step(decoder, context, sampling, generator)
            elif cache is not None and start == 0:  # only the tokens that are not in the cache
                chosen = pick(_last_hidden(model, context[:, cache.length :], cache, padding), context)
            else:  # the whole window again
                left = None if padding is None else (padding - start).clamp(min=0)
                chosen = pick(_last_hidden(model, context[:, start:], None, left), context)
            if length == tokens.size(1):
                tokens = torch.cat([tokens, torch.empty_like(tokens)], dim=1)
            tokens[:, length] = chosen
            yield chosen


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
    stop: StopIds = None,
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
        stop: id or ids that end a row, numbers or a tensor; a row that ended is filled up with the id that
            ended it.
        use_cache: keep keys and values instead of computing them again; the same ids either way.

    Returns:
        (B, T + n) ids, n ≤ ``max_new_tokens``: fewer when every row stopped.

    Raises:
        ValueError: a sampling value out of its range, an empty prompt, or a stop that is no id.

    Example:
        >>> from ai_learning.model import GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=8))
        >>> tuple(generate(model, torch.zeros(2, 3, dtype=torch.long), 4, seed=0).shape)
        (2, 7)
    """
    stops = torch.tensor(_stop_ids(stop), dtype=torch.int64, device=idx.device)
    columns = [idx]
    finished = torch.zeros(idx.size(0), dtype=torch.bool, device=idx.device)
    filler = torch.zeros(idx.size(0), dtype=idx.dtype, device=idx.device)
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    for chosen in stream(model, idx, max_new_tokens, sampling, seed=seed, use_cache=use_cache):
        if len(stops):
            chosen = torch.where(finished, filler, chosen)
            newly = torch.isin(chosen, stops) & ~finished
            filler = torch.where(newly, chosen, filler)
            finished |= newly
        columns.append(chosen[:, None])
        if len(stops) and bool(finished.all()):
            break
    return torch.cat(columns, dim=1)


def generate_batch(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    stop: StopIds = None,
    seed: int | None = None,
    use_cache: bool = True,
    **sampling: Any,
) -> list[list[int]]:
    """Continue prompts of different lengths together; each as if it were alone.

    Shorter ones are padded on the left; the padding is hidden by a mask, and each row counts its positions
    from its own first id. Greedy ids do not depend on the other rows; samples do, since one random generator
    serves them all.

    Args:
        model: any ``GPT``.
        prompts: lists of ids, none empty.
        max_new_tokens: how many to add to each.
        stop: id or ids that end a row, numbers or a tensor; kept as its last.
        seed: makes the samples repeatable.
        use_cache: keep keys and values instead of computing them again.
        sampling: fields of ``Sampling``.

    Returns:
        Each prompt with its continuation.

    Raises:
        ValueError: an empty prompt, or a value out of its range.

    Example:
        >>> from ai_learning.model import GPTConfig
        >>> model = GPT(GPTConfig(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=8))
        >>> [len(ids) for ids in generate_batch(model, [[1], [2, 3, 4]], 2, temperature=0)]
        [3, 5]
    """
    if len(prompts) == 0 or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("every prompt needs at least one id")
    stops = set(_stop_ids(stop))
    prompts = [[operator.index(token) for token in prompt] for prompt in prompts]
    T = max(map(len, prompts))
    # Padded with the row's own first id, so that a repetition penalty finds no id that the prompt lacks.
    rows = [[prompt[0]] * (T - len(prompt)) + list(prompt) for prompt in prompts]
    device = model.wte.weight.device
    padding = torch.tensor([T - len(prompt) for prompt in prompts], device=device)
    found = [list(prompt) for prompt in prompts]
    open_rows = set(range(len(prompts)))
    steps = stream(
        model,
        torch.tensor(rows, device=device),
        max_new_tokens,
        Sampling(**sampling),
        seed=seed,
        use_cache=use_cache,
        padding=padding if bool(padding.any()) else None,
    )
    for chosen in steps:
        for row, token in enumerate(chosen.tolist()):
            if row in open_rows:
                found[row].append(token)
                if token in stops:
                    open_rows.remove(row)
        if not open_rows:
            break
    return found


def stream_text(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    *,
    stop: str | Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    seed: int | None = None,
    use_cache: bool = True,
    **sampling: Any,
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` as text, never half a character and never past a stop string.

    An empty prompt starts from the tokenizer's end-of-document token, as training documents do.

    Args:
        model: the model.
        tokenizer: the one that it was trained with.
        prompt: text to continue.
        max_new_tokens: at most this many tokens.
        stop: strings, or one, that end the text; they are not shown themselves.
        should_stop: asked after every token; ``True`` ends the text.
        seed: makes the sample repeatable.
        use_cache: keep keys and values instead of computing them again.
        sampling: fields of ``Sampling``.
    """
    ids = encode_own(tokenizer, prompt) or [tokenizer.eos_id or 0]
    idx = torch.tensor([ids], device=model.wte.weight.device)
    steps = stream(model, idx, max_new_tokens, Sampling(**sampling), seed=seed, use_cache=use_cache)
    yield from decode_stream((int(chosen) for chosen in steps), tokenizer, stop=stop, should_stop=should_stop)


def decode_stream(
    ids: Iterable[int],
    tokenizer: Tokenizer,
    *,
    stop: str | Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Yield the text of ids as they come; see ``stream_text``."""
    stop = [stop] if isinstance(stop, str) else stop
    if "" in stop:
        raise ValueError("a stop string is empty: it would end every text at once")
    errors = "ignore" if getattr(tokenizer, "errors", "replace") == "ignore" else "replace"
    decoder = StreamDecoder(tokenizer, errors)

    def pieces() -> Iterator[str]:
        for token in ids:
            if token == tokenizer.eos_id or should_stop():
                break
            yield decoder.add(token)
        yield decoder.finish()

    yield from cut_stream(pieces(), stop)


def cut_stream(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass pieces of text on up to the first stop string; what may be the beginning of one is held back.

    Example:
        >>> "".join(cut_stream(["one t", "wo\\nOb", "servation: x"], ["\\nObservation"]))
        'one two'
    """
    held = max((len(word) for word in stop), default=1) - 1
    text, shown = "", 0
    for piece in pieces:
        text += piece
        ends = [place for place in (text.find(word, max(0, shown - held)) for word in stop) if place >= 0]
        if ends:
            if min(ends) > shown:
                yield text[shown : min(ends)]
            return
        if len(text) - held > shown:
            yield text[shown : len(text) - held]
            shown = len(text) - held
    if text[shown:]:
        yield text[shown:]


def generate_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, **options: object
) -> str:
    """The whole continuation that ``stream_text`` would yield."""
    return "".join(stream_text(model, tokenizer, prompt, max_new_tokens, **options))  # type: ignore[arg-type]


def _stop_ids(stop: StopIds) -> list[int]:
    """The ids as a list: ``stop`` is one whole number or several, of Python's, NumPy's or PyTorch's types."""
    if stop is None:
        return []
    try:
        return [operator.index(cast(SupportsIndex, stop))]
    except TypeError:  # several
        pass
    try:
        return [operator.index(token) for token in cast(Iterable[SupportsIndex], stop)]
    except TypeError:
        raise ValueError(f"stop={stop!r} must be an id or several, whole numbers") from None


def _picker(
    model: GPT, sampling: Sampling, rows: int, n: int, generator: torch.Generator | None
) -> Callable[[Tensor, Tokens], Tensor]:
    """A function of (B, C) last hidden states and their (B, T) context that gives the next (B,) ids.

    Greedy decoding of many tokens does not need all the logits where the head `suits` a shortlist.
    """
    if sampling.is_greedy and n >= shortlist.WORTH_STEPS and shortlist.suits(model.lm_head):
        if rows == 1 or shortlist.takes_batches(model.lm_head):
            short = shortlist.Shortlist(model.lm_head)
            return lambda hidden, idx: short.likeliest(hidden)
        if rows >= shortlist.WORTH_A_BATCH:
            return lambda hidden, idx: shortlist.likeliest_of_batch(model.lm_head, hidden)
    return lambda hidden, idx: next_token(model.lm_head(hidden), idx, sampling, generator)


def _decode_step(
    decoder: decode_triton.Decoder, idx: Tokens, sampling: Sampling, generator: torch.Generator | None
) -> Tensor:
    """(1, T) ``idx``, all but the last id in the decoder's cache → the next id, (1,)."""
    decoder.step(idx[:, -1:])
    if sampling.is_greedy:
        return decoder.likeliest.clone()
    return next_token(decoder.logits, idx, sampling, generator)


def _last_hidden(model: GPT, idx: Tokens, cache: KVCache | None, padding: Tensor | None = None) -> Tensor:
    """(B, C) hidden states of the last position, the only one whose logits are needed."""
    if padding is None:
        return model.hidden(idx, cache=cache)[:, -1]
    start = 0 if cache is None else cache.length
    positions, mask = left_padded(padding, start, idx.size(1))
    return model.hidden(idx, cache=cache, positions=positions, mask=mask)[:, -1]


def left_padded(padding: Tensor, start: int, T: int) -> tuple[Tensor, Tensor]:
    """Positions and mask for ``GPT.hidden``, where rows are padded on the left.

    Args:
        padding: (B,) padding ids at the beginning of each row.
        start: columns that are in the cache already.
        T: columns that are computed now.

    Returns:
        (B, T) positions, each row counting from its own first id, and the (B, 1, T, S) mask.
    """
    columns = torch.arange(start + T, device=padding.device)  # (S,)
    queries = columns[start:]
    positions = (queries - padding[:, None]).clamp(min=0)
    shown = columns >= padding[:, None]  # (B, S)
    own = columns == queries[:, None]  # (T, S): padding sees itself, since a softmax over nothing is NaN
    return positions, shown[:, None, None, :] | own
