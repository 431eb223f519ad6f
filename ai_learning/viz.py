"""Plots: figures from numbers, saved as PNG or SVG by the file's ending."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_PLAIN: dict[str, Any] = {"parse_math": False}  # a $ in a text is a dollar, not the start of a formula


def plot_loss(rows: Sequence[Mapping[str, Any]], path: Path | str, title: str = "loss") -> None:
    """Training and held-out loss by step, from the rows of ``metrics.jsonl``."""
    figure, axes = _subplots(1, 1, (7, 4))
    ax = axes[0]
    for name, label, style in (("loss", "training", "-"), ("val_loss", "held out", "o-")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            x, y = zip(*points, strict=True)
            ax.plot(x, y, style, label=label, linewidth=1.0 if name == "loss" else 1.8, markersize=4)
    ax.set_xlabel("step", **_PLAIN)
    ax.set_ylabel("nats a token", **_PLAIN)
    ax.set_title(title, **_PLAIN)
    ax.grid(alpha=0.3)
    ax.legend()
    _save(figure, path)


def plot_attention(weights: "Tensor", labels: Sequence[str], path: Path | str, title: str = "") -> None:
    """Small multiples of one layer's attention: a panel a head, a row a query, a column a key.

    Args:
        weights: (H, T, S) of one sequence.
        labels: T texts of the tokens; spaces and line ends are made visible.
        path: PNG or SVG.
        title: above all panels.
    """
    n_head = weights.size(0)
    columns = min(n_head, 4)
    rows = math.ceil(n_head / columns)
    size = max(2.6, 0.17 * len(labels))
    figure, axes = _subplots(rows, columns, (size * columns, size * rows + 0.4))
    shown = [visible(label) for label in labels]
    for head, ax in enumerate(axes):
        if head >= n_head:
            ax.axis("off")
            continue
        # The square root lifts small weights into sight: a row over 30 keys has few above 0.1.
        ax.imshow(weights[head].detach().cpu().float().sqrt().numpy(), cmap="magma", vmin=0.0, vmax=1.0)
        ax.set_title(f"head {head}", fontsize=9, **_PLAIN)
        rotation = 90 if max(map(len, shown)) > 1 else 0
        ax.set_xticks(range(len(shown)), shown, fontsize=6, rotation=rotation, **_PLAIN)
        ax.set_yticks(range(len(shown)), shown, fontsize=6, **_PLAIN)
    figure.suptitle(title, **_PLAIN)
    _save(figure, path)


def plot_token_losses(
    losses: Sequence[float], labels: Sequence[str], path: Path | str, title: str = ""
) -> None:
    """A bar a token: what it cost the model.

    Args:
        losses: nats of tokens 1 to T − 1.
        labels: T texts; the first has no bar, nothing came before it.
        path: PNG or SVG.
        title: above the plot.
    """
    figure, axes = _subplots(1, 1, (max(5.0, 0.22 * len(labels)), 3))
    ax = axes[0]
    ax.bar(range(1, len(labels)), losses)
    ax.set_xticks(range(len(labels)), [visible(label) for label in labels], fontsize=6, rotation=90, **_PLAIN)
    ax.set_ylabel("nats", **_PLAIN)
    ax.set_title(title, **_PLAIN)
    _save(figure, path)


def plot_lens(
    words: Sequence[Sequence[str]],
    probabilities: Sequence[Sequence[float]],
    labels: Sequence[str],
    path: Path | str,
    title: str = "",
) -> None:
    """The likeliest next token by layer: a row a layer, the last on top, a column a position.

    Args:
        words: (n_layer + 1) × T texts of the likeliest tokens.
        probabilities: theirs.
        labels: T texts of the input.
        path: PNG or SVG.
        title: above the plot.
    """
    figure, axes = _subplots(1, 1, (max(5.0, 0.42 * len(labels)), 1 + 0.36 * len(words)))
    ax = axes[0]
    ax.imshow(probabilities, cmap="viridis", vmin=0.0, vmax=1.0, aspect="auto", origin="lower")
    for row, (texts, shares) in enumerate(zip(words, probabilities, strict=True)):
        for column, (text, share) in enumerate(zip(texts, shares, strict=True)):
            color = "black" if share > 0.6 else "white"
            ax.text(column, row, visible(text), ha="center", va="center", fontsize=6, color=color, **_PLAIN)
    ax.set_xticks(range(len(labels)), [visible(label) for label in labels], fontsize=6, rotation=90, **_PLAIN)
    ax.set_yticks(
        range(len(words)), ["embeddings", *(f"after {i}" for i in range(1, len(words)))], fontsize=7
    )
    ax.set_title(title, **_PLAIN)
    _save(figure, path)


def plot_lines(
    series: Mapping[str, Sequence[float]], path: Path | str, x: str, y: str, title: str = "", first: int = 0
) -> None:
    """Lines by name over ``first``, ``first + 1`` …, with axis labels ``x`` and ``y``."""
    figure, axes = _subplots(1, 1, (6, 3.5))
    ax = axes[0]
    for name, values in series.items():
        ax.plot(range(first, first + len(values)), values, "o-", label=name, markersize=3)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel(x, **_PLAIN)
    ax.set_ylabel(y, **_PLAIN)
    ax.set_title(title, **_PLAIN)
    ax.grid(alpha=0.3)
    if len(series) > 1:
        ax.legend(fontsize=7)
    _save(figure, path)


def plot_bars(groups: Mapping[str, Mapping[str, float]], path: Path | str, y: str, title: str = "") -> None:
    """Groups of bars: for each name on the x axis one bar a series, with its value above it."""
    figure, axes = _subplots(1, 1, (max(5.0, 1.6 * len(groups)), 3.5))
    ax = axes[0]
    series = list(dict.fromkeys(name for values in groups.values() for name in values))
    width = 0.8 / len(series)
    for number, name in enumerate(series):
        places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(groups))]
        heights = [values.get(name, 0.0) for values in groups.values()]
        bars = ax.bar(places, heights, width * 0.95, label=name)
        ax.bar_label(bars, fmt="%.3g", fontsize=7)
    ax.set_xticks(range(len(groups)), list(groups), fontsize=8, **_PLAIN)
    ax.set_ylabel(y, **_PLAIN)
    ax.set_title(title, **_PLAIN)
    ax.legend(fontsize=7)
    _save(figure, path)


def visible(text: str) -> str:
    """White space as signs that can be seen; what a font cannot show as a dot."""
    text = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "·" for c in text)


def _subplots(rows: int, columns: int, size: tuple[float, float]) -> tuple["Figure", list]:
    from matplotlib.figure import Figure  # no pyplot: no window system, no global state

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _save(figure: "Figure", path: Path | str) -> None:
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format=path.suffix.lstrip(".") or "png")
