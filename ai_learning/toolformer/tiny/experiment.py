"""The whole method on the tiny world: pre-train, bootstrap, annotate, filter, fine-tune, evaluate.

M ─ bootstrap ─ annotator ─┬─ sample · execute · filter ─ C* ─┐   a few rounds: each trains the next annotator
                           └──────────── fine-tune M ─────────┘
M                    the pre-trained model
M + C                M fine-tuned on the documents of C*, without the calls
Toolformer           M fine-tuned on C*
"""

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import torch

from ...errors import InputError
from ...model import GPT, GPTConfig
from ..annotate import annotate
from ..calls import MARKED
from ..checks import at_least, check_seed
from ..corpus import training_rows
from ..filter import Annotated, Candidate, refilter
from ..models import GPTModel
from ..settings import Settings
from .examples import examples
from .fit import fit, length_batches
from .measure import Agreement, accuracy, agreement, perplexity
from .words import WordTokenizer
from .world import KINDS, Item, tokenizer, world


@dataclass(frozen=True)
class TinyConfig:
    """Sizes, learning rates and thresholds of the tiny reproduction.

    Raises:
        ValueError: a value out of its range: here, as most are used only after minutes of pre-training.
    """

    seed: int = 0
    """of weights, documents and samples; the world itself is always the same"""

    n_layer: int = 2
    """blocks"""
    n_embd: int = 128
    """width"""
    n_head: int = 4
    """attention heads"""

    pretrain_documents: int = 50_000
    """plain texts, each read once"""
    pretrain_plain: float = 0.65
    """share of them that need no tool"""
    batch_tokens: int = 512
    """in a batch"""
    lr: float = 5e-3
    """AdamW's, in pre-training"""
    embedding_lr: float = 2e-2
    """AdamW's for the token embedding"""
    muon_lr: float = 0.03
    """Muon's, for the blocks' matrices"""
    tune_share: float = 0.3
    """of these rates in fine-tuning"""
    tune_batch_tokens: int = 384
    """in a batch of fine-tuning"""

    bootstrap_epochs: int = 20
    """over the hand-written examples, each with as many new plain texts"""
    rounds: int = 3
    """of annotating, at least; after each a new annotator is trained on all that was kept"""
    most_rounds: int = 6
    """at most, where few calls of some tool were kept"""
    enough: int = 800
    """kept calls of the rarest tool, from which on there are no more rounds than ``rounds``"""
    documents: int = 2000
    """read for calls in a round"""
    tune_epochs: int = 3
    """over C*, each with new plain texts"""
    tune_plain: float = 1.5
    """plain texts for each document of C*"""

    tau_s: float = 0.02
    """τ_s"""
    k: int = 3
    """places in a document"""
    m: int = 4
    """calls sampled at each"""
    tau_f: dict[str, float] = field(default_factory=lambda: {"Calculator": 0.8, "Calendar": 0.3, "QA": 0.5})
    """τ_f by tool: a weekday is one of seven, so less can be gained there"""
    second_term: bool = True
    """L⁻ counts the call without its result, as it should; ``False`` is an ablation"""

    test_items: int = 150
    """held-out problems of each kind"""

    def __post_init__(self) -> None:
        for one in fields(self):  # all that is counted
            if one.type is int and one.name not in ("seed", "enough"):
                at_least(1, **{one.name: getattr(self, one.name)})
        at_least(0, enough=self.enough, tune_plain=self.tune_plain)
        check_seed(self.seed)
        for name in ("lr", "embedding_lr", "muon_lr", "tune_share"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)} must be a positive number")
        if not 0 <= self.pretrain_plain <= 1:
            raise InputError(f"pretrain_plain={self.pretrain_plain} is a share: from 0 to 1")
        if set(self.tau_f) != set(KINDS):
            raise InputError(f"tau_f={self.tau_f} must have a threshold for each of {', '.join(KINDS)}")
        self.settings()
        self.model()

    def settings(self) -> dict[str, Settings]:
        """By tool."""
        return {kind: Settings(self.tau_s, self.tau_f[kind], self.k, self.m) for kind in KINDS}

    def model(self) -> GPTConfig:
        """A GPT with rotary positions, RMSNorm on queries and keys too, and squared ReLU."""
        return GPTConfig(
            vocab_size=tokenizer().vocab_size,
            block_size=96,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            bias=False,
            norm="rmsnorm",
            positions="rotary",
            rope_theta=1000.0,
            qk_norm=True,
            activation="relu2",
        )


LIKE = {"→": "[", "</API>": "]", **dict.fromkeys(KINDS, "see")}
"""what marks and names of tools begin as; ``<API>`` begins as the mean of all words"""

Listener = Callable[[str, float, str], None]
"""stage, share done, figures"""


def silent(stage: str, share: float, figures: str) -> None:
    """Shows nothing."""


@dataclass
class Scores:
    """What one model can do."""

    accuracy: dict[str, float]
    """by tool, on held-out problems"""
    perplexity: float
    """of held-out plain text, with ``<API>`` never written"""
    perplexity_no_tool: float
    """of those documents that need no tool"""

    @property
    def mean(self) -> float:
        """Over the tools."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass
class Results:
    """All that a run found."""

    config: TinyConfig
    parameters: int
    scores: dict[str, Scores]
    """by model, in the paper's order"""
    agreement: list[dict[str, Agreement]]
    """the filter beside the truth, by round and tool"""
    kept: int
    """documents in C*"""
    seconds: dict[str, float]
    """CPU seconds by stage"""
    annotated: list[tuple[Item, Annotated]]
    """the last round's documents"""
    written: list[str]
    """some of what Toolformer wrote"""


class Tiny:
    """One run, stage by stage.

    Example:
        >>> tiny = Tiny(TinyConfig())  # doctest: +SKIP
        >>> m = tiny.pretrain()  # doctest: +SKIP
        >>> annotator = tiny.bootstrap(m)  # doctest: +SKIP
        >>> items, rows = tiny.annotate(annotator, 0)  # doctest: +SKIP
    """

    def __init__(self, config: TinyConfig, listener: Listener = silent) -> None:
        self.config, self.listener = config, listener
        self.tokenizer, self.world, self.tools = tokenizer(), world(), world().tools()
        self.seconds: dict[str, float] = {}

    # --- models ------------------------------------------------------------------------------------------

    def pretrain(self, model: GPT | None = None) -> GPT:
        """M: a new model that has read plain text."""
        config = self.config
        with self.timed("pre-training"):
            if model is None:
                torch.manual_seed(config.seed)
                model = GPT(config.model())
                torch.nn.init.normal_(model.wte.weight, std=0.1)
            texts = self.texts(config.pretrain_documents, "pretrain", config.pretrain_plain)
            self._fit(model, self.rows(model, [], texts), "pre-training", self.config.batch_tokens, 1.0)
        return introduced(model, self.tokenizer)

    def bootstrap(self, m: GPT) -> GPT:
        """The first annotator: M, shown the hand-written examples."""
        lm = self.lm(m)
        shown = examples(lm, self.tools)
        rows: list[list[int]] = []
        for epoch in range(self.config.bootstrap_epochs):
            rows += self.rows(m, shown, self.texts(len(shown), f"bootstrap {epoch}"))
        with self.timed("bootstrap"):
            return self._fit(copy.deepcopy(m), rows, "bootstrap", 128)

    def tuned(self, m: GPT, documents: Sequence[Annotated], stage: str) -> GPT:
        """A model, fine-tuned on annotated documents and on plain ones."""
        with self.timed(stage):
            rows: list[list[int]] = []
            for epoch in range(self.config.tune_epochs):
                rows += self.rows(
                    m, documents, self.texts(round(self.config.tune_plain * len(documents)), f"mixed {epoch}")
                )
            return self._fit(copy.deepcopy(m), rows, stage, self.config.tune_batch_tokens)

    # --- the method --------------------------------------------------------------------------------------

    def annotate(self, annotator: GPT, number: int) -> tuple[list[Item], list[Annotated]]:
        """One round: sample, execute and filter the calls of new documents."""
        config, stage = self.config, f"annotating, round {number + 1}"
        with self.timed("annotating"):
            items = list(self.world.items(config.documents, f"{config.seed} C {number}", plain=0.2))
            lm, found = self.lm(annotator), []
            for first in range(0, len(items), 250):
                some = [i.document(f"{number}.{first + n}") for n, i in enumerate(items[first : first + 250])]
                found += annotate(
                    lm,
                    some,
                    self.tools,
                    settings=config.settings(),
                    name_tools=True,
                    position="inline",
                    max_call_tokens=16,
                    seed=config.seed,
                )
                self.listener(stage, len(found) / len(items), f"{sum(map(bool, map(kept, found)))} kept")
        return items, found if config.second_term else without_second_term(found, config.settings())

    def run(self, m: GPT | None = None) -> Results:
        """Everything, in order."""
        config = self.config
        m = self.pretrain() if m is None else m
        annotator = self.bootstrap(m)
        corpus: list[Annotated] = []
        agreements = []
        most_rounds = max(config.rounds, config.most_rounds)
        for number in range(most_rounds):
            items, found = self.annotate(annotator, number)
            agreements.append(agreement(items, found))
            corpus += [document for document in found if document.kept]
            if not corpus:
                raise InputError(
                    f"no call was kept in round {number + 1}: lower tau_f={config.tau_f}, or train longer"
                )
            if number + 1 >= config.rounds and rarest(corpus) >= config.enough:
                break
            if number + 1 < most_rounds:
                shown = [*examples(self.lm(m), self.tools), *balanced(corpus)]
                annotator = self.tuned(annotator, shown, f"annotator {number + 2}")
        corpus = balanced(corpus)
        scores, toolformer = self.compare(m, corpus)
        written = accuracy(self.lm(toolformer), self.test_items()[::10], self.tools)[1]
        return Results(
            config,
            m.n_params(),
            scores,
            agreements,
            len(corpus),
            dict(self.seconds),
            list(zip(items, found, strict=True)),
            written,
        )

    # --- measuring ---------------------------------------------------------------------------------------

    def compare(self, m: GPT, corpus: Sequence[Annotated]) -> tuple[dict[str, Scores], GPT]:
        """The paper's comparison: fine-tune M on C* and on C, score all; and Toolformer itself."""
        toolformer = self.tuned(m, corpus, "Toolformer")
        m_c = self.tuned(m, [replace(document, candidates=()) for document in corpus], "M + C")
        scores = {
            "M": self.scores(m, False),
            "M + C": self.scores(m_c, False),
            "Toolformer (disabled)": self.scores(toolformer, False),
            "Toolformer": self.scores(toolformer, True),
        }
        return scores, toolformer

    def test_items(self) -> list[Item]:
        """Held-out problems, as many of each kind."""
        from random import Random

        generator = Random(f"{self.config.seed} test")
        return [
            self.world.item(kind, generator, held_out=True)
            for kind in KINDS
            for _ in range(self.config.test_items)
        ]

    def scores(self, model: GPT, with_tools: bool) -> Scores:
        """Accuracy on held-out problems, perplexity on held-out text."""
        with self.timed("evaluating"):
            lm = self.lm(model)
            right, _ = accuracy(lm, self.test_items(), self.tools if with_tools else [])
            everything = self.texts(400, "held-out text")
            no_tool = self.texts(400, "held-out text", plain=1.0)
            return Scores(right, perplexity(lm, everything), perplexity(lm, no_tool))

    # --- parts -------------------------------------------------------------------------------------------

    def lm(self, model: GPT) -> GPTModel:
        """The model as the method sees it."""
        return GPTModel(model, self.tokenizer)

    def texts(self, count: int, what: str, plain: float | None = None) -> list[str]:
        """Plain documents; another ``what``, others."""
        share = self.config.pretrain_plain if plain is None else plain
        return [item.text for item in self.world.items(count, f"{self.config.seed} {what}", share)]

    def rows(self, model: GPT, documents: Sequence[Annotated], texts: Sequence[str]) -> list[list[int]]:
        """Ids to train on."""
        return training_rows(self.lm(model), documents, texts)

    def _fit(self, model: GPT, rows: list[list[int]], stage: str, tokens: int, share: float = 0.0) -> GPT:
        config, share = self.config, share or self.config.tune_share
        batches = length_batches(rows, tokens, config.seed)
        losses: list[float] = []

        def listen(step: int, loss: float) -> None:
            losses.append(loss)
            if step % 10 == 9 or step + 1 == len(batches):
                self.listener(
                    stage, (step + 1) / len(batches), f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}"
                )

        fit(
            model,
            batches,
            lr=config.lr * share,
            embedding_lr=config.embedding_lr * share,
            muon_lr=config.muon_lr * share,
            listener=listen,
        )
        return model

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds CPU seconds to a stage."""
        started = time.process_time()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - started


def introduced(model: GPT, own: WordTokenizer) -> GPT:
    """The marks of calls and the tools' names, which are in no plain text, begin as words of like use.

    Pre-training pushed them away from all that is ever said. (The paper's marks are words its model knows:
    " [", "->" and "]"; section 2, footnote 1.)
    """
    with torch.no_grad():
        known = model.wte.weight.clone()
        begin = {own.ids[new]: known[own.ids[like]] for new, like in LIKE.items()}
        begin[own.special_tokens[MARKED.start]] = known.mean(0)
        for new, vector in begin.items():
            noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(new))
            model.wte.weight[new] = vector + 0.02 * noise
    return model


def rarest(documents: Sequence[Annotated]) -> int:
    """How many documents call the tool that the fewest call."""
    of = Counter(document.kept[0].call.tool for document in documents)
    return min(of[kind] for kind in KINDS)


def balanced(documents: Sequence[Annotated], most: float = 2.0) -> list[Annotated]:
    """Of each tool's documents at most ``most`` times as many as of the rarest tool's; the first ones."""
    of = [document.kept[0].call.tool for document in documents]
    room = Counter(dict.fromkeys(KINDS, round(most * max(1, rarest(documents)))))
    found = []
    for document, tool in zip(documents, of, strict=True):
        if room[tool] > 0:
            room[tool] -= 1
            found.append(document)
    return found


def kept(document: Annotated) -> tuple[Candidate, ...]:
    """Its kept calls."""
    return document.kept


def without_second_term(documents: Sequence[Annotated], settings: dict[str, Settings]) -> list[Annotated]:
    """The ablation: L⁻ is the loss with nothing, whether or not the call alone would do as well."""
    blind = [
        replace(d, candidates=tuple(replace(c, loss_call=float("inf")) for c in d.candidates))
        for d in documents
    ]
    return refilter(blind, settings)
