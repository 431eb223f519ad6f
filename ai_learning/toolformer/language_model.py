"""The interface to a language model: losses, probabilities of ``<API>`` and continuations, in batches.

A backend (``models.py``) implements ``logits`` and the handling of its cache. Everything else is written
here, once for all backends, in batches of sequences of similar length.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..shapes import Logits, Tokens
from .calls import BYTES, MARKED, PLAIN, Call, CallFormat
from .draws import Chooser

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

    # --- what a backend implements -----------------------------------------------------------------------

    def logits(self, ids: Tokens, padding: Tensor | None, keep: int, cache: Any = None) -> Logits:
        """(B, T) ids → (B, keep, V) logits of the last ``keep`` positions; extends ``cache`` in place.

        ``padding`` (B,) is the number of padding ids at the left of each row; ``None`` where there are none.
        """
        raise NotImplementedError

    def new_cache(self, rows: int, length: int) -> Any:
        """An empty cache for ``rows`` sequences of up to ``length`` tokens."""
        raise NotImplementedError

    def pick_rows(self, cache: Any, rows: Tensor) -> Any:
        """The cache for the given rows of the batch; a row may be left out, or given several times."""
        raise NotImplementedError

    # --- text and ids ------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, in which the marks of calls have no meaning."""
        encode = getattr(self.tokenizer, "encode_ordinary", self.tokenizer.encode)
        return list(encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids)))

    def mark(self, text: str) -> list[int]:
        """Ids of one of the marks: its own special token where there is one."""
        special = self.special_tokens()
        return [special[text]] if text in special else self.encode(text)

    def special_tokens(self) -> dict[str, int]:
        """Text → id of the tokenizer's special tokens."""
        return dict(getattr(self.tokenizer, "special_tokens", None) or {})

    def encode_call(self, call: Call, result: str | None = None) -> list[int]:
        """Ids of e(c, r), or of e(c) when ``result`` is ``None``."""
        how = self.how
        ids = [self.start_id, *self.encode(str(call))]
        if result is not None:
            ids += [*self.arrow_ids, *self.encode(how.gap + how.clean(result))]
        return ids + self.end_ids

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each id by itself."""
        return [self.decode([i]) for i in range(self.vocab_size)]

    def _fitting_format(self) -> CallFormat:
        return next((how for how in (MARKED, PLAIN) if len(self.mark(how.start)) == 1), BYTES)

    # --- in batches --------------------------------------------------------------------------------------

    def batches(
        self, lengths: Sequence[int], most_rows: int = 512, most_logits: int | None = None
    ) -> Iterator[list[int]]:
        """Split sequences into batches that need little padding and fit into memory.

        Args:
            lengths: of the sequences, in tokens.
            most_rows: sequences in a batch.
            most_logits: positions of a sequence whose logits are asked for; all when ``None``.

        Yields:
            Indices into ``lengths``, the shortest sequences first.
        """
        batch: list[int] = []
        budget = max(1, _LOGIT_BYTES // (4 * self.vocab_size))  # positions whose logits are held at once
        for row in sorted(range(len(lengths)), key=lengths.__getitem__):
            held = lengths[row] if most_logits is None else min(most_logits, lengths[row])
            full = len(batch) == most_rows or (len(batch) + 1) * held > budget
            # Rows of equal length need no mask, which is faster; a small batch would cost more than that.
            other = len(batch) >= 64 and lengths[row] != lengths[batch[0]]
            if batch and (full or other or (len(batch) + 1) * lengths[row] > 32768):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tokens, Tensor | None]:
        """(B, T) ids padded on the left, and the (B,) numbers of padding ids; ``None`` without padding."""
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
        """p(``<API>`` | all before) at the last ``counts[r]`` places of each row, the last being its end."""
        found: list[list[float]] = [[] for _ in rows]
        for batch in self.batches(list(map(len, rows)), most_logits=max(counts, default=0)):
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
        """Continue each row ``copies`` times; the row itself is read once, with the cache.

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
        # All rows of a batch get as many steps as the longest has room for: group them by the room they have,
        # so that one near the end of the context does not cut the others short.
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
