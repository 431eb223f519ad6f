"""A model writes calls into plain text (Schick et al. 2023, section 2, "Sampling API calls" and "Executing").

    p_i = p(<API> | P(x), x_1 … x_{i−1})     the places: the k greatest p_i above τ_s
    c ~ p(· | P(x), x_1 … x_{i−1}, <API>)    m calls at each, up to </API>
    r = the tool's answer to c

P(x) is the prompt that shows the model how: see ``prompts``. A model that was fine-tuned on annotated text
needs none.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date as Date
from typing import Any

import numpy as np

from ..errors import InputError
from .calls import Call, parse_call
from .checks import at_least, check_draws
from .draws import sampler
from .ends import CallEnd
from .filter import Annotated, Candidate, filter_calls
from .models import LanguageModel, as_language_model
from .settings import Settings, settings_of
from .tools import Tool, as_tools, is_error, run_calls


@dataclass(frozen=True)
class Document:
    """A text with what tools may want to know of it.

    Attributes:
        text: the plain text.
        id: tells it from the others; decides its random numbers.
        date: when it was written, 2023-01-30: the calendar's today.
    """

    text: str
    id: str = ""
    date: str | None = None


Prefilter = Callable[[Document], bool]


def annotate(
    model: Any,
    documents: Iterable[str | Document],
    tools: Sequence[Any],
    *,
    settings: Settings | Mapping[str, Settings] | None = None,
    prompts: Mapping[str, str] | None = None,
    name_tools: bool = False,
    position: str = "prefix",
    temperature: float = 1.0,
    max_call_tokens: int = 32,
    seed: int = 0,
    prefilters: Mapping[str, Prefilter] | None = None,
    tokenizer: Any = None,
    scorer: Any = None,
) -> list[Annotated]:
    """Sample calls, execute them, and judge each by the loss criterion.

    Args:
        model: a ``LanguageModel`` (see ``as_language_model``), or a model with its ``tokenizer``.
        documents: plain texts.
        tools: ours or LangChain's.
        settings: τ_s, τ_f, k and m for all tools, or by tool's name; the paper's when ``None``.
        prompts: by tool's name, what P(x) is, with ``{text}`` for x (``prompts.PROMPTS`` has the library's
            own). ``None`` for a model that was fine-tuned on annotated text: then one pass serves all tools.
        name_tools: a pass for each tool, with its name written after ``<API>``: as many samples for each.
        position: where e(c, r) stands when losses are computed; see ``filter_calls``.
        temperature: of sampling; 0 takes the likeliest.
        max_call_tokens: a call that has not ended by then is dropped.
        seed: another seed, other samples. A document's samples depend on the seed and its ``id`` alone.
        prefilters: by tool's name, which documents are worth it (``prefilter.PREFILTERS`` has the paper's).
        tokenizer: of a model that is no ``LanguageModel`` yet.
        scorer: the ``LanguageModel`` whose losses filter; the same one when ``None``. It reads calls in its
            own marks and its own tokens (see ``filter_calls``).

    Returns:
        A row for each document, in order, with all its candidates; ``.kept`` are those that passed.

    Raises:
        InputError: no tools, or a value out of its range.

    Example:
        >>> rows = annotate(model, ["12 + 30 is 42."], [Calculator()], tokenizer=tokenizer)  # doctest: +SKIP
        >>> [(str(c.call), c.result, c.gain, c.kept) for c in rows[0].candidates]  # doctest: +SKIP
        [('Calculator(12 + 30)', '42', 2.1, True)]
    """
    lm = as_language_model(model, tokenizer)
    found = sample_calls(
        lm,
        documents,
        tools,
        settings=settings,
        prompts=prompts,
        name_tools=name_tools,
        temperature=temperature,
        max_call_tokens=max_call_tokens,
        seed=seed,
        prefilters=prefilters,
    )
    threshold = settings if settings is None or isinstance(settings, Settings) else dict(settings)
    judge = lm if scorer is None else as_language_model(scorer)
    return filter_calls(judge, execute_calls(found, tools), threshold, position=position)


def sample_calls(
    model: Any,
    documents: Iterable[str | Document],
    tools: Sequence[Any],
    *,
    settings: Settings | Mapping[str, Settings] | None = None,
    prompts: Mapping[str, str] | None = None,
    name_tools: bool = False,
    temperature: float = 1.0,
    max_call_tokens: int = 32,
    seed: int = 0,
    prefilters: Mapping[str, Prefilter] | None = None,
    tokenizer: Any = None,
) -> list[Annotated]:
    """The first step of ``annotate`` alone: candidates without results."""
    check_draws(temperature, seed)
    at_least(1, max_call_tokens=max_call_tokens)
    lm = as_language_model(model, tokenizer)
    known = as_tools(tools)
    if not known:
        raise InputError("tools=[]: nothing could be called; give at least one, such as Calculator()")
    texts = [
        document if isinstance(document, Document) else Document(document, str(number))
        for number, document in enumerate(documents)
    ]
    ids = [lm.encode(document.text) for document in texts]
    worth = {name: (prefilters or {}).get(name, lambda document: True) for name in known}
    found: list[dict[tuple[int, Call], Candidate]] = [{} for _ in texts]
    for turn in _passes(known, settings, prompts, name_tools):
        chosen = [n for n, document in enumerate(texts) if any(worth[name](document) for name in turn.tools)]
        some = [texts[n] for n in chosen]
        heads = [[*lm.bos, *lm.encode(turn.before(document.text))] for document in some]
        rows = [ids[n] for n in chosen]
        places = _places(lm, heads, rows, turn.settings, max_call_tokens)
        for number, candidate in _sampled(
            lm, some, heads, rows, places, turn, temperature, max_call_tokens, seed
        ):
            if worth[candidate.call.tool](some[number]):
                key = (candidate.position, candidate.call)
                found[chosen[number]].setdefault(key, candidate)
    return [
        Annotated(d.text, tuple(c[key] for key in sorted(c, key=lambda k: k[0])), d.id, d.date)
        for d, c in zip(texts, found, strict=True)
    ]


def execute_calls(documents: Sequence[Annotated], tools: Sequence[Any]) -> list[Annotated]:
    """Every candidate's result, or why there is none; each distinct call is made once."""
    known = as_tools(tools)
    wanted = [(c.call, _date(document)) for document in documents for c in document.candidates]
    answers = run_calls(wanted, known)
    return [
        replace(
            document,
            candidates=tuple(_answered(c, answers[c.call, _date(document)]) for c in document.candidates),
        )
        for document in documents
    ]


def _answered(candidate: Candidate, answer: str) -> Candidate:
    if is_error(answer):
        return replace(candidate, result=None, error=answer)
    return replace(candidate, result=answer, error=None)


def _date(document: Annotated) -> Date | None:
    return Date.fromisoformat(document.date) if document.date else None


@dataclass(frozen=True)
class _Pass:
    """One reading of all documents: for one tool with its prompt, or for all tools without."""

    name: str
    tools: frozenset[str]
    settings: Settings
    prompt: str = ""
    begun: str = ""
    """what is written after ``<API>`` for the model"""

    def before(self, text: str) -> str:
        return self.prompt.replace("{text}", text)


def _passes(
    tools: Mapping[str, Tool],
    settings: Settings | Mapping[str, Settings] | None,
    prompts: Mapping[str, str] | None,
    name_tools: bool,
) -> list[_Pass]:
    if prompts is None and not name_tools:
        each = [settings_of(settings, name) for name in tools]
        joint = Settings(tau_s=min(s.tau_s for s in each), k=max(s.k for s in each), m=max(s.m for s in each))
        return [_Pass("all", frozenset(tools), joint)]
    for name in tools:
        if prompts is not None and name not in prompts:
            raise ValueError(f"no prompt for {name}: add prompts[{name!r}], a text with {{text}} in it")
    return [
        _Pass(
            name,
            frozenset([name]),
            settings_of(settings, name),
            "" if prompts is None else prompts[name],
            f"{name}(" if name_tools else "",
        )
        for name in tools
    ]


def _places(
    lm: LanguageModel, heads: list[list[int]], ids: list[list[int]], settings: Settings, room: int
) -> list[list[tuple[int, float]]]:
    """For each document up to k places (i, p_i) with p_i > τ_s, in order."""
    rows, counts = [], []
    for head, text in zip(heads, ids, strict=True):
        row = [*head, *text[:-1]][: max(0, lm.block_size - room - 1)]
        n = max(0, len(row) - len(head) + 1) if head else len(row)  # without a head nothing precedes place 0
        rows.append(row)
        counts.append(n if text else 0)
    asked = [number for number, count in enumerate(counts) if count]
    p = lm.start_probabilities([rows[number] for number in asked], [counts[number] for number in asked])
    found: list[list[tuple[int, float]]] = [[] for _ in ids]
    for number, values in zip(asked, p, strict=True):
        first = 0 if heads[number] else 1
        chosen = choose_places(values, settings.tau_s, settings.k)
        found[number] = [(place + first, values[place]) for place in chosen]
    return found


def choose_places(p: Sequence[float], tau_s: float, k: int) -> list[int]:
    """Places i where p_i > τ_s, in order; of more than ``k`` those where it is greatest.

    Example:
        >>> choose_places([0.1, 0.9, 0.04, 0.3], tau_s=0.05, k=2)
        [1, 3]
    """
    above = [i for i, value in enumerate(p) if value > tau_s]
    return sorted(sorted(above, key=lambda i: -p[i])[:k])


def _sampled(
    lm: LanguageModel,
    texts: list[Document],
    heads: list[list[int]],
    ids: list[list[int]],
    places: list[list[tuple[int, float]]],
    turn: _Pass,
    temperature: float,
    max_call_tokens: int,
    seed: int,
) -> Iterable[tuple[int, Candidate]]:
    """Candidates with the numbers of their documents."""
    spots = []  # (document, i, p_i, the place in characters)
    for number, found in enumerate(places):
        for i, p in found:
            before = lm.decode(ids[number][:i])
            # Not inside a character, which some tokenizers decode to a sign of their own, others to nothing.
            more = i == 0 or (before and before != lm.decode(ids[number][: i - 1]))
            if more and texts[number].text.startswith(before):
                spots.append((number, i, p, len(before)))
    if not spots:
        return
    begun = lm.encode(turn.begun) if turn.begun else []
    rows = [[*heads[n], *ids[n][:i], lm.start_id, *begun] for n, i, _, _ in spots]
    m = turn.settings.m
    keys = np.array(
        [_key(texts[n].id, turn.name, i) + copy for n, i, _, _ in spots for copy in range(m)], dtype=np.uint64
    )
    end = CallEnd(lm)
    samples = lm.continue_rows(
        rows,
        max_call_tokens,
        choose=sampler(keys, seed, temperature),
        ends=lambda _, new: end(new),
        copies=m if temperature > 0 else 1,
    )
    each = m if temperature > 0 else 1
    for spot, (n, i, p, offset) in enumerate(spots):
        for new in samples[spot * each : (spot + 1) * each]:
            cut = end.cut(new) if new else None
            call = parse_call(turn.begun + cut[0]) if cut else None
            if call is not None and call.tool in turn.tools:
                yield n, Candidate(i, offset, call, probability=p)


def _key(*parts: object) -> int:
    """A number for what is sampled; the copies count on from it."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
