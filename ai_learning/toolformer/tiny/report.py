"""Results as tables: headers and rows of text, for the terminal, the page and the benchmark."""

from collections.abc import Mapping

from .experiment import Results, Scores
from .world import KINDS

Rows = tuple[list[str], list[list[str]]]

DEPARTURES = (
    "A tiny model learns nothing from a prompt: it is fine-tuned on 50 hand-written annotated texts first.",
    "Its pre-training text is made to help: pages of exercises, hints and solutions show both halves of a "
    "call, an expression in brackets and a result, but never a question with its answer.",
    "The marks begin as the embeddings of like words: → as [, </API> as ], the tools' names as 'see'.",
    "The annotator filters its own calls, with e(c, r) at its place in the text; the paper's M sees it "
    "as a prefix.",
    "Annotating goes in rounds, each annotator trained on what the one before kept, and no tool may have "
    "more than twice the calls of the rarest.",
)
"""where the tiny reproduction leaves Schick et al. 2023"""


def accuracy_rows(scores_by_name: Mapping[str, Scores]) -> Rows:
    """The paper's comparison: models by tools, and perplexities."""
    header = ["model", *KINDS, "mean", "perplexity", "where no tool is needed"]
    rows = [
        [
            name,
            *(f"{scores.accuracy[kind]:.1%}" for kind in KINDS),
            f"{scores.mean:.1%}",
            f"{scores.perplexity:.3f}",
            f"{scores.perplexity_no_tool:.3f}",
        ]
        for name, scores in scores_by_name.items()
    ]
    return header, rows


def filter_rows(results: Results) -> Rows:
    """By round and tool: what was sampled, what was right, what was kept."""
    header = ["round", "tool", "sampled", "right", "kept", "precision", "recall"]
    rows = [
        [
            str(number + 1),
            kind,
            str(a.sampled),
            str(a.right),
            str(a.kept),
            f"{a.precision:.2f}",
            f"{a.recall:.2f}",
        ]
        for number, each in enumerate(results.agreement)
        for kind, a in each.items()
    ]
    return header, rows


def seconds_rows(results: Results) -> Rows:
    """CPU seconds by stage."""
    rows = [[stage, f"{seconds:.0f}"] for stage, seconds in results.seconds.items()]
    return ["stage", "CPU seconds"], [*rows, ["in all", f"{sum(results.seconds.values()):.0f}"]]
