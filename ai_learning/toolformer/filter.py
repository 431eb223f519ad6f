"""Which calls help: the loss criterion (Schick et al. 2023, section 2, "Filtering API calls").

For a call c at place i of a text x, with its result r, the weighted loss of the text from i on is

    L_i(z) = − Σ_{j ≥ i} w_{j−i} · log p(x_j | z, x_{1:j−1})

    L⁺ = L_i(e(c, r))                     the model is shown the call and its result
    L⁻ = min(L_i(ε), L_i(e(c, ε)))        nothing, or the call without a result

and c is kept when L⁻ − L⁺ ≥ τ_f. The sequence that the model reads is ``lm.bos``, then z and x_1 … x_{j−1}: z
before the text (``position="prefix"``, the paper's choice) or at i (``"inline"``). The second term of L⁻
matters: without it, a call whose *argument* gives the answer away would be kept, though its result adds
nothing.

The model that judges may cut the text otherwise than the one that wrote the calls: then i is found anew, by
its place in characters.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import InputError
from .calls import Call
from .models import LanguageModel, as_language_model
from .settings import Settings, settings_of

POSITIONS = ("prefix", "inline")
HORIZON = 5  # w_t is 0 from t = 5 on


def loss_weights(n: int) -> list[float]:
    """w_0 … w_{n−1}: w̃_t = max(0, 1 − 0.2·t), divided by their sum over all t, which is 3 (section 4.1).

    Example:
        >>> [round(w, 4) for w in loss_weights(7)]
        [0.3333, 0.2667, 0.2, 0.1333, 0.0667, 0.0, 0.0]
    """
    raw = [max(0.0, 1 - 0.2 * t) for t in range(max(n, HORIZON))]
    return [w / sum(raw) for w in raw[:n]]


def weighted_loss(losses: Sequence[float]) -> float:
    """Σ_t w_t · losses[t]: nats of the tokens from place i on, the nearest counting most.

    Near the end of a text, where fewer than five tokens follow, those that are missing count nothing.
    """
    return math.fsum(w * loss for w, loss in zip(loss_weights(len(losses)), losses, strict=True))


@dataclass(frozen=True)
class Candidate:
    """A sampled call, with the losses that decide whether it is kept."""

    position: int
    """i: the call would stand before this token of the document (from 0)"""
    offset: int
    """the same place in characters"""
    call: Call
    result: str | None = None
    """r, or ``None`` where the tool failed"""
    error: str | None = None
    """why it failed"""
    probability: float = math.nan
    """p(``<API>``) at this place when it was sampled"""
    loss_result: float = math.nan
    """L_i(e(c, r)), in nats"""
    loss_nothing: float = math.nan
    """L_i(ε)"""
    loss_call: float = math.nan
    """L_i(e(c, ε))"""
    kept: bool = False
    """the verdict"""

    @property
    def loss_plus(self) -> float:
        """L⁺."""
        return self.loss_result

    @property
    def loss_minus(self) -> float:
        """L⁻."""
        return min(self.loss_nothing, self.loss_call)

    @property
    def gain(self) -> float:
        """L⁻ − L⁺; NaN where there is no result."""
        return self.loss_minus - self.loss_plus


@dataclass(frozen=True)
class Annotated:
    """A document and the calls that were sampled for it."""

    text: str
    candidates: tuple[Candidate, ...] = ()
    id: str = ""
    date: str | None = None
    """when the document was written, 2023-01-30"""

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """The calls that passed the filter."""
        return tuple(candidate for candidate in self.candidates if candidate.kept)


def filter_calls(
    model: LanguageModel,
    documents: Sequence[Annotated],
    threshold: float | Settings | dict[str, Settings] | None = None,
    *,
    position: str = "prefix",
    tokenizer: object = None,
) -> list[Annotated]:
    """Compute L⁺ and L⁻ of every executed call, and judge it.

    Args:
        model: computes the losses: a ``LanguageModel``, or a model with ``tokenizer``. Its tokenizer may be
            another than the annotator's: then i is the token of its own that begins at the candidate's
            ``offset``, or the one that ``offset`` lies in, and the losses are counted from there.
        documents: with their candidates, as ``annotate`` gives them.
        threshold: τ_f, one for all tools or by tool; the paper's when ``None``.
        position: ``"prefix"`` puts e(c, r) before the text, as the paper does for a model that has seen no
            calls yet (footnote 4): x is z, x_1 … x_n. ``"inline"`` puts it at i: x_1 … x_{i−1}, z, x_i … x_n,
            for a model that knows calls.
        tokenizer: of a model that is no ``LanguageModel`` yet.

    Returns:
        The same documents, their candidates with losses and verdicts. The losses stay NaN, and the call is
        not kept, where it has no result, where its sequence is longer than the model's context, or where it
        stands after text that the tokenizer does not decode to what it was (with a warning).

    Example:
        >>> guess = Candidate(position=4, offset=7, call=Call("Calculator", "3 + 4"), result="7")
        >>> filter_calls(model, [Annotated("3 + 4 = 7", (guess,))], 1.0)  # doctest: +SKIP
    """
    if position not in POSITIONS:
        raise InputError(f"position={position!r} is not known: use prefix (the paper's) or inline")
    lm = as_language_model(model, tokenizer)
    number: dict[_Scored, int] = {}  # each distinct sequence is scored once
    plans: list[list[list[int]]] = []
    for document in documents:
        offsets = _TokenOffsets(lm, document.text)
        plans.append(
            [
                [number.setdefault(row, len(number)) for row in _rows_of(lm, offsets, candidate, position)]
                for candidate in document.candidates
            ]
        )
    losses = [
        weighted_loss(values)
        for values in lm.token_losses([row for row, _ in number], [count for _, count in number])
    ]
    scored = [
        replace(
            document,
            candidates=tuple(
                _with_losses(candidate, *(losses[place] for place in places)) if places else candidate
                for candidate, places in zip(document.candidates, plan, strict=True)
            ),
        )
        for document, plan in zip(documents, plans, strict=True)
    ]
    return refilter(scored, threshold)


def refilter(
    documents: Iterable[Annotated], threshold: float | Settings | dict[str, Settings] | None = None
) -> list[Annotated]:
    """Judge the calls anew by the losses they have: τ_f can be changed without sampling again.

    Raises:
        InputError: NaN for a threshold, which would drop every call.
    """
    if isinstance(threshold, float) and math.isnan(threshold):
        raise InputError(f"tau_f={threshold} is no number: no call would be kept")
    found = []
    for document in documents:
        judged = tuple(
            replace(c, kept=bool(c.gain >= _tau_f(threshold, c.call.tool))) for c in document.candidates
        )
        found.append(replace(document, candidates=judged))
    return found


def _tau_f(threshold: float | Settings | dict[str, Settings] | None, tool: str) -> float:
    return float(threshold) if isinstance(threshold, int | float) else settings_of(threshold, tool).tau_f


def _with_losses(candidate: Candidate, result: float, nothing: float, call: float) -> Candidate:
    return replace(candidate, loss_result=result, loss_nothing=nothing, loss_call=call)


_Scored = tuple[tuple[int, ...], int]  # a sequence, and how many tokens at its end count


class _TokenOffsets:
    """A text as the ids of a model's tokenizer, and the character at which each of them begins."""

    def __init__(self, lm: LanguageModel, text: str) -> None:
        self.lm, self.text, self.ids = lm, text, lm.encode(text)
        self._at: dict[int, int | None] = {}

    def at(self, n: int) -> int | None:
        """Characters in the first n ids; ``None`` where those do not decode to the beginning of the text."""
        if n not in self._at:
            before = self.lm.decode(self.ids[:n])
            self._at[n] = len(before) if self.text.startswith(before) else None
        return self._at[n]

    @cached_property
    def starts(self) -> dict[int, int]:
        """Number of characters → number of ids that hold them.

        The smallest where there are several: ids inside a character may decode to nothing.
        """
        found: dict[int, int] = {}
        for n in range(len(self.ids) + 1):
            if (characters := self.at(n)) is not None:
                found.setdefault(characters, n)
        return found

    def place(self, candidate: Candidate) -> int | None:
        """i: the last id that begins at the candidate's offset or before; ``None`` where that is unknown."""
        i, offset = min(candidate.position, len(self.ids)), candidate.offset
        if self.at(i) == offset and (i == 0 or self.at(i - 1) != offset):  # it is the annotator's tokenizer
            return i
        before = max(characters for characters in self.starts if characters <= offset)
        # Text that decodes to something else (lower case, say) has no known place, nor has what follows it.
        return self.starts[before] if before == offset or max(self.starts) > offset else None


def _rows_of(lm: LanguageModel, offsets: _TokenOffsets, candidate: Candidate, position: str) -> list[_Scored]:
    """The sequences of L_i(e(c, r)), L_i(ε) and L_i(e(c, ε)); none where they cannot be scored."""
    if candidate.result is None:
        return []
    i, ids = offsets.place(candidate), offsets.ids
    if i is None:
        warnings.warn(
            "the tokenizer that judges does not give some text back as it was: calls after it are dropped",
            stacklevel=4,
        )
        return []
    after = ids[i : i + HORIZON]
    if not after or (i == 0 and not lm.bos):
        return []
    found: list[_Scored] = []
    for z in (lm.encode_call(candidate.call, candidate.result), [], lm.encode_call(candidate.call)):
        row = [*z, *ids[:i]] if position == "prefix" else [*ids[:i], *z]
        row = [*lm.bos, *row, *after]
        if len(row) > lm.block_size:
            return []
        found.append((tuple(row), len(after)))
    return found
