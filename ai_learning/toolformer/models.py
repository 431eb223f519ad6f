"""What the method asks of a language model, for our GPT and for any ``AutoModelForCausalLM`` of transformers.

A backend has one method, ``logits``, and knows how to pick rows of its cache. Everything else (losses,
probabilities, sampling) is written once, on top of that, in batches of rows of like length.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..model import GPT, KVCache
from ..shapes import Logits, Tokens
from .calls import BYTES, MARKED, PLAIN, Call, CallFormat

_LOGIT_BYTES = 2**28  # of one batch


class LanguageModel:
    """A causal language model with its tokenizer and the way it writes calls.

    Every sequence that is scored or continued begins with ``bos``: the tokenizer's beginning-of-text token,
    or (for ours and GPT-2) the token that ends the document before; nothing, where it has neither.

    Args:
        tokenizer: has ``encode(text)`` and ``decode(ids)``.
        how: marks of calls; chosen to fit the tokenizer when ``None``.

    Raises:
        InputError: the mark that opens a call is not one token.
    """

    block_size: int
    """longest sequence, in tokens"""
    vocab_size: int
    device: torch.device

    def __init__(self, tokenizer: Any, how: CallFormat | None = None) -> None:
        self.tokenizer = tokenizer
        self.how = how or self._fitting_format()
        start = self.mark(self.how.start)
        if len(start) != 1:
            raise InputError(
                f"{self.how.start!r}, which opens a call, is {len(start)} tokens of this tokenizer, not one: "
                "add it as a special token, or choose another mark"
            )
        self.start_id = start[0]
        self.arrow_ids, self.end_ids = self.mark(self.how.arrow), self.mark(self.how.end)
        eos = getattr(tokenizer, "eos_id", None)
        eos = getattr(tokenizer, "eos_token_id", None) if eos is None else eos
        bos = getattr(tokenizer, "bos_token_id", None)
        self.eos_id: int | None = eos
        first = eos if bos is None else bos
        self.bos: list[int] = [] if first is None else [first]

    # --- what a backend writes ---------------------------------------------------------------------------

    def logits(self, ids: Tokens, padding: Tensor | None, keep: int, cache: Any = None) -> Logits:
        """(B, T) ids → (B, keep, V) logits of the last ``keep`` positions; extends ``cache`` in place.

        ``padding`` (B,) says how many ids at each row's left only fill it up; ``None`` when none do.
        """
        raise NotImplementedError

    def new_cache(self, rows: int, length: int) -> Any:
        """An empty cache for ``rows`` sequences of up to ``length`` tokens."""
        raise NotImplementedError

    def pick_rows(self, cache: Any, rows: Tensor) -> Any:
        """The cache of some rows only, or of some several times."""
        raise NotImplementedError

    # --- text and ids ------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, in which the marks of calls have no meaning."""
        tokenizer = self.tokenizer
        if hasattr(tokenizer, "encode_ordinary"):
            return list(tokenizer.encode_ordinary(text))
        if hasattr(tokenizer, "all_special_ids"):  # transformers
            return list(tokenizer.encode(text, add_special_tokens=False))
        return list(tokenizer.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids)))

    def mark(self, text: str) -> list[int]:
        """Ids of one of the marks: its own special token where there is one."""
        special = getattr(self.tokenizer, "special_tokens", None)
        if isinstance(special, dict) and text in special:
            return [special[text]]
        added = getattr(self.tokenizer, "added_tokens_encoder", None)
        if added and text in added:
            return [added[text]]
        return self.encode(text)

    def encode_call(self, call: Call, result: str | None = None) -> list[int]:
        """Ids of e(c, r), or of e(c) when ``result`` is ``None``."""
        how = self.how
        ids = [self.start_id, *self.encode(str(call))]
        if result is not None:
            ids += [*self.arrow_ids, *self.encode(how.gap + how.clean(result))]
        return ids + self.end_ids

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of every id alone."""
        return [self.decode([i]) for i in range(self.vocab_size)]

    def _fitting_format(self) -> CallFormat:
        return next((how for how in (MARKED, PLAIN) if len(self.mark(how.start)) == 1), BYTES)

    # --- in batches --------------------------------------------------------------------------------------

    def batches(
        self, lengths: Sequence[int], most_rows: int = 512, most_logits: int | None = None
    ) -> Iterator[list[int]]:
        """Numbers of rows, shortest first, so that a batch wastes little on padding and fits memory."""
        batch: list[int] = []
        budget = max(1, _LOGIT_BYTES // (4 * self.vocab_size))  # positions whose logits are held at once
        for row in sorted(range(len(lengths)), key=lengths.__getitem__):
            held = lengths[row] if most_logits is None else min(most_logits, lengths[row])
            full = len(batch) == most_rows or (len(batch) + 1) * held > budget
            # Rows of one length need no mask, which is faster: not worth a small batch, though.
            other = len(batch) >= 64 and lengths[row] != lengths[batch[0]]
            if batch and (full or other or (len(batch) + 1) * lengths[row] > 32768):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tokens, Tensor | None]:
        """(B, T) ids filled up on the left, and (B,) how many of them fill."""
        T = max(map(len, rows))
        ids = torch.tensor([[0] * (T - len(row)) + list(row) for row in rows], device=self.device)
        padding = torch.tensor([T - len(row) for row in rows], device=self.device)
        return ids, padding if bool(padding.any()) else None

    @torch.inference_mode()
    def token_losses(self, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[float]]:
        """Nats of the last ``counts[r]`` tokens of each row, given all before them.

        Args:
            rows: lists of ids.
            counts: how many at the end of each row to score, fewer than the row has.
        """
        losses: list[list[float]] = [[] for _ in rows]
        wanted = [row for row, count in enumerate(counts) if count]
        most = max((counts[row] for row in wanted), default=0)
        for batch in self.batches([len(rows[row]) for row in wanted], most_logits=most):
            numbers = [wanted[place] for place in batch]
            ids, padding = self.pad([rows[row][:-1] for row in numbers])
            keep = max(counts[row] for row in numbers)
            tails = [list(rows[row][-keep:]) for row in numbers]
            targets = torch.tensor([[0] * (keep - len(tail)) + tail for tail in tails], device=self.device)
            log_p = self.logits(ids, padding, keep).float().log_softmax(-1)  # (B, keep, V)
            found = -log_p.gather(-1, targets[..., None]).squeeze(-1)  # (B, keep)
            for row, values in zip(numbers, found.tolist(), strict=True):
                losses[row] = values[keep - counts[row] :]
        return losses

    @torch.inference_mode()
    def start_probabilities(self, rows: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[float]]:
        """p(``<API>`` | all before) at the last ``counts[r]`` places of each row; the last: after its end."""
        found: list[list[float]] = [[] for _ in rows]
        for batch in self.batches(list(map(len, rows))):
            ids, padding = self.pad([rows[row] for row in batch])
            keep = max(counts[row] for row in batch)
            logits = self.logits(ids, padding, keep).float()
            p = (logits[..., self.start_id] - logits.logsumexp(-1)).exp().tolist()  # (B, keep)
            for row, values in zip(batch, p, strict=True):
                found[row] = values[keep - counts[row] :]
        return found

    @torch.inference_mode()
    def continue_rows(
        self,
        rows: Sequence[Sequence[int]],
        max_new_tokens: int,
        *,
        choose: "Chooser",
        ends: Callable[[int, list[int]], bool],
        copies: int = 1,
    ) -> list[list[int]]:
        """New ids after each row: with the cache, the row itself read once for all its copies.

        Args:
            rows: lists of ids, none empty.
            max_new_tokens: at most that many.
            choose: see ``Chooser``.
            ends: asked after each new id, with the number of the copy and all its new ids; ``True`` ends it.
            copies: continuations of each row; copy c of row r has the number r · copies + c.

        Returns:
            ``len(rows) · copies`` lists.
        """
        new: list[list[int]] = [[] for _ in range(len(rows) * copies)]
        # A row near the end of the context must not cut short the others in its batch: it goes with its
        # equals.
        room = {row: self.block_size - len(ids) for row, ids in enumerate(rows)}
        groups: dict[int, list[int]] = {}
        for row in range(len(rows)):
            groups.setdefault(min(room[row], max_new_tokens), []).append(row)
        for group in groups.values():
            lengths = [len(rows[row]) for row in group]
            for batch in self.batches(lengths, most_rows=max(1, 512 // copies), most_logits=copies):
                picked = [group[place] for place in batch]
                self._continue_batch(rows, picked, new, max_new_tokens, choose, ends, copies)
        return new

    def _continue_batch(
        self,
        rows: Sequence[Sequence[int]],
        batch: list[int],
        new: list[list[int]],
        max_new_tokens: int,
        choose: "Chooser",
        ends: Callable[[int, list[int]], bool],
        copies: int,
    ) -> None:
        ids, padding = self.pad([rows[row] for row in batch])
        B, T = ids.shape
        steps = min(max_new_tokens, self.block_size - T)
        if steps <= 0:
            return
        cache = self.new_cache(B, T + steps)
        logits = self.logits(ids, padding, 1, cache)[:, -1]  # (B, V)
        numbers = [row * copies + copy for row in batch for copy in range(copies)]
        if copies > 1:
            wide = torch.arange(B, device=self.device).repeat_interleave(copies)
            logits, padding = logits[wide], None if padding is None else padding[wide]
            cache = self.pick_rows(cache, wide)
        going = [True] * len(numbers)
        for step in range(steps):
            live = [place for place, goes in enumerate(going) if goes]
            some = logits if len(live) == len(going) else logits[torch.tensor(live, device=self.device)]
            for place, token in zip(live, choose(some, [numbers[p] for p in live], step), strict=True):
                number = numbers[place]
                if token is not None:
                    new[number].append(token)
                going[place] = token is not None and not ends(number, new[number])
            live = [place for place in live if going[place]]
            if not live or step + 1 == steps:
                return
            if 4 * len(live) < 3 * len(going):  # picking copies the cache: not for each row that ends
                pick = torch.tensor(live, device=self.device)
                cache = self.pick_rows(cache, pick)
                padding = None if padding is None else padding[pick]
                numbers, going = [numbers[place] for place in live], [True] * len(live)
            last = torch.tensor(
                [[new[number][-1] if new[number] else 0] for number in numbers], device=self.device
            )
            logits = self.logits(last, padding, 1, cache)[:, -1]


Chooser = Callable[[Tensor, list[int], int], Sequence[int | None]]
"""(B, V) logits, the B numbers of the copies, the step → an id for each; ``None`` ends a copy without one."""


class GPTModel(LanguageModel):
    """Our own ``GPT``."""

    def __init__(self, model: GPT, tokenizer: Any, how: CallFormat | None = None) -> None:
        self.model = model.eval()
        self.block_size, self.vocab_size = model.config.block_size, model.config.vocab_size
        super().__init__(tokenizer, how)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the weights are."""
        return self.model.wte.weight.device

    def logits(self, ids: Tokens, padding: Tensor | None, keep: int, cache: Any = None) -> Logits:
        """See ``LanguageModel``."""
        positions = mask = None
        if padding is not None:
            start = 0 if cache is None else cache.length
            columns = torch.arange(start + ids.size(1), device=ids.device)  # (S,)
            queries = columns[start:]
            positions = (queries - padding[:, None]).clamp(min=0)  # (B, T): each row counts its own
            # Filling sees itself, so that no row of weights is empty.
            mask = (columns >= padding[:, None])[:, None, None, :] | (columns == queries[:, None])
        hidden = self.model.hidden(ids, cache=cache, positions=positions, mask=mask)
        return self.model.lm_head(hidden[:, -keep:])

    def new_cache(self, rows: int, length: int) -> KVCache:
        """See ``LanguageModel``."""
        return KVCache(self.model.config, rows, length, self.model.wte.weight.dtype, self.device)

    def pick_rows(self, cache: KVCache, rows: Tensor) -> KVCache:
        """See ``LanguageModel``."""
        for layer in cache:
            layer.k, layer.v = layer.k[rows], layer.v[rows]
        return cache


class TransformersModel(LanguageModel):
    """Any ``AutoModelForCausalLM``."""

    def __init__(self, model: Any, tokenizer: Any, how: CallFormat | None = None) -> None:
        import inspect

        self.model = model.eval()
        text = model.config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        self.block_size = int(getattr(text, "max_position_embeddings", None) or 2**20)
        taken = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in taken
        self._counts = "position_ids" in taken
        super().__init__(tokenizer, how)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the weights are."""
        return next(self.model.parameters()).device

    def logits(self, ids: Tokens, padding: Tensor | None, keep: int, cache: Any = None) -> Logits:
        """See ``LanguageModel``."""
        start = 0 if cache is None else cache.get_seq_length()
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None}
        if padding is not None:
            columns = torch.arange(start + ids.size(1), device=ids.device)  # (S,)
            options["attention_mask"] = (columns >= padding[:, None]).long()
            if self._counts:
                options["position_ids"] = (columns[start:] - padding[:, None]).clamp(min=0)
        if self._keeps:
            options["logits_to_keep"] = keep
        return self.model(input_ids=ids, **options).logits[:, -keep:]

    def new_cache(self, rows: int, length: int) -> Any:
        """See ``LanguageModel``."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def pick_rows(self, cache: Any, rows: Tensor) -> Any:
        """See ``LanguageModel``."""
        cache.batch_select_indices(rows)
        return cache


def as_language_model(model: Any, tokenizer: Any = None, how: CallFormat | None = None) -> LanguageModel:
    """A ``LanguageModel`` of our GPT or of transformers' model and its tokenizer; one that is one stays.

    Example:
        >>> from ai_learning.model import GPTConfig
        >>> from ai_learning.tokenizers import ByteTokenizer
        >>> gpt = GPT(GPTConfig(vocab_size=258, block_size=8, n_layer=1, n_head=1, n_embd=8))
        >>> as_language_model(gpt, ByteTokenizer()).how.start
        '['
    """
    if isinstance(model, LanguageModel):
        return model
    if tokenizer is None:
        raise InputError(f"a {type(model).__name__} needs its tokenizer: as_language_model(model, tokenizer)")
    return (GPTModel if isinstance(model, GPT) else TransformersModel)(model, tokenizer, how)


def open_language_model(
    source: str | Path, device: str = "cpu", how: CallFormat | None = None, dtype: str = "auto"
) -> LanguageModel:
    """A model by where it is: a checkpoint of ours (.pt), a folder of transformers, or a name on the hub.

    Args:
        source: where; weights of transformers are read from safetensors only.
        device: where to put it.
        how: marks of calls; chosen to fit when ``None``.
        dtype: of the weights of transformers' models; ``auto`` as they are stored.

    Raises:
        InputError: nothing there that can be opened.
    """
    path = Path(source)
    if path.suffix == ".pt" or path.is_file():
        from ..checkpoint import open_model

        gpt, tokenizer, _ = open_model(path, device)
        if tokenizer is None:
            raise InputError(f"{source} names no tokenizer")
        return GPTModel(gpt, tokenizer, how)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if path.is_absolute() and not path.is_dir():
        raise InputError(f"no model at {source}")
    try:
        theirs = AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"no model at {source!r}, here or on the hub: {reason}") from None
    return TransformersModel(theirs.to(device), tokenizer, how)


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
        return (
            torch.searchsorted(p, draws[:, None] * p[:, -1:]).squeeze(-1).clamp(max=p.size(-1) - 1).tolist()
        )

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
