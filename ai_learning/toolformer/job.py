"""Annotating a corpus of any size: in groups, in shards, each document exactly once."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..errors import InputError
from .annotate import Document, annotate
from .checks import at_least
from .documents import fit
from .filter import Annotated
from .models import LanguageModel
from .store import AnnotatedCorpus


@dataclass
class Progress:
    """What a job has done so far.

    Attributes:
        documents: written, in this run and before.
        seen: candidates by tool, in this run.
        kept: those of them that passed the filter.
    """

    documents: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)

    def add(self, documents: Sequence[Annotated]) -> None:
        """Count a group."""
        self.documents += len(documents)
        for document in documents:
            self.seen.update(candidate.call.tool for candidate in document.candidates)
            self.kept.update(candidate.call.tool for candidate in document.kept)

    def __str__(self) -> str:
        tools = [f"{tool} kept {self.kept[tool]:,} of {n:,}" for tool, n in sorted(self.seen.items())]
        return " · ".join([f"{self.documents:,} documents", *tools])


def annotate_corpus(
    lm: LanguageModel,
    documents: Iterable[Document],
    tools: Sequence[Any],
    corpus: AnnotatedCorpus,
    *,
    most_tokens: int | None = None,
    part_size: int = 256,
    before_part: Callable[[], None] = lambda: None,
    on_part: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> Progress:
    """Annotate the documents of this shard that are not yet in the corpus.

    Args:
        lm: the annotator.
        documents: all documents, in the same order in every process and every run.
        tools: what can be called.
        corpus: where rows go, and which shard this process has.
        most_tokens: longer documents are cut into pieces, each a document of its own; if ``None``, what fits
            the context twice with a prompt, and at most 1024 (the paper's longest sequence).
        part_size: documents annotated together and written as one part: what a crash can cost.
        before_part: called before each part is written; what it raises keeps the part from being written.
        on_part: told after each part.
        options: of ``annotate``.

    Raises:
        InputError: a value out of its range, or a context that has no room for text.
    """
    at_least(1, most_tokens=most_tokens, part_size=part_size)
    most = most_tokens
    if most is None:
        most = _fitting(lm, options.get("prompts"), options.get("max_call_tokens", 32))
    done = corpus.done()
    progress = Progress(len(done))
    mine = (piece for document in _shard(documents, corpus) for piece in fit(lm, document, most))
    todo = (document for document in mine if document.id not in done)
    while group := list(islice(todo, part_size)):
        found = annotate(lm, group, tools, **options)
        before_part()
        corpus.write(found)
        progress.add(found)
        on_part(progress)
    return progress


def _fitting(lm: LanguageModel, prompts: Mapping[str, str] | None, call: int) -> int:
    """A prompt holds the document, and the document follows it once more."""
    longest = max((len(lm.encode(prompt)) for prompt in (prompts or {}).values()), default=0)
    most = min(1024, (lm.block_size - longest - call) // 2)
    if most < 8:
        raise InputError(
            f"{lm.block_size} tokens of context have no room for text beside a prompt of {longest}: "
            "use --prompts none, or a model with a longer context"
        )
    return most


def _shard(documents: Iterable[Document], corpus: AnnotatedCorpus) -> Iterator[Document]:
    return (document for number, document in enumerate(documents) if corpus.is_mine(number))
