"""An annotated text in colour: each call by L⁻ − L⁺, kept or dropped, as HTML or in a terminal."""

import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from .filter import Annotated, Candidate

if TYPE_CHECKING:
    from rich.text import Text

_STRONG = 3.0  # nats at which a colour is full


def to_terminal(document: Annotated, only_kept: bool = False) -> "Text":
    """The text with its calls: green those kept, red those dropped, the stronger the greater |L⁻ − L⁺|."""
    from rich.text import Text

    found = Text()
    for piece in _pieces(document, only_kept):
        if isinstance(piece, str):
            found.append(piece)
        else:
            red, green, blue = _colour(piece)
            style = f"black on rgb({red},{green},{blue})" + ("" if piece.kept else " strike")
            found.append(f"[{_label(piece)}]", style=style)
            found.append(f"{_signed(piece)}", style="dim")
    return found


def to_html(documents: Iterable[Annotated], title: str = "Calls by L⁻ − L⁺", only_kept: bool = False) -> str:
    """A page that stands alone: calls coloured, with both losses where the pointer rests."""
    bodies = [_html(document, only_kept) for document in documents]
    return _PAGE.format(title=html.escape(title), body="\n".join(bodies))


def save_html(
    documents: Sequence[Annotated], path: Path | str, title: str = "Calls by L⁻ − L⁺", only_kept: bool = False
) -> None:
    """Write ``to_html``, whole or not at all."""
    write_text(Path(path), to_html(documents, title, only_kept))


def _pieces(document: Annotated, only_kept: bool) -> Iterable[str | Candidate]:
    """Text and calls in reading order; of several calls at one place the best first."""
    shown = [c for c in document.candidates if c.kept or not only_kept]
    shown.sort(key=lambda c: (c.offset, -c.gain if c.gain == c.gain else math.inf))
    place = 0
    for candidate in shown:
        if candidate.offset > place:
            yield document.text[place : candidate.offset]
            place = candidate.offset
        yield candidate
    yield document.text[place:]


def _label(c: Candidate) -> str:
    return f"{c.call} → {c.result if c.result is not None else c.error or '?'}"


def _signed(c: Candidate) -> str:
    return "" if c.gain != c.gain else f"{c.gain:+.2f}".replace("-", "−")


def _colour(c: Candidate) -> tuple[int, int, int]:
    """Green for kept, red for dropped, grey where there is no result; pale near zero."""
    if c.gain != c.gain:
        return 225, 225, 225
    share = 0.25 + 0.75 * min(abs(c.gain) / _STRONG, 1.0)
    full = (95, 200, 120) if c.kept else (240, 120, 110)
    red, green, blue = (round(255 + (part - 255) * share) for part in full)
    return red, green, blue


def _html(document: Annotated, only_kept: bool) -> str:
    parts = []
    for piece in _pieces(document, only_kept):
        if isinstance(piece, str):
            parts.append(html.escape(piece))
            continue
        red, green, blue = _colour(piece)
        told = (
            f"{'kept' if piece.kept else 'dropped'}: "
            + (f"L⁻ − L⁺ = {_signed(piece)}; " if piece.gain == piece.gain else "no result; ")
            + f"L⁺ {piece.loss_plus:.3f}, L⁻ the lesser of nothing {piece.loss_nothing:.3f} "
            + f"and the call alone {piece.loss_call:.3f}"
            + f"; p(<API>) {piece.probability:.3f}"
        )
        parts.append(
            f'<span class="{"kept" if piece.kept else "dropped"}" '
            f'style="background:rgb({red},{green},{blue})" title="{html.escape(told, quote=True)}">'
            f"{html.escape(_label(piece))}<sub>{_signed(piece)}</sub></span>"
        )
    return f"<p>{''.join(parts)}</p>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font: 16px/1.9 system-ui, sans-serif; max-width: 52em; margin: 2em auto; padding: 0 1em; }}
p {{ white-space: pre-wrap; border-bottom: 1px solid #ddd; padding-bottom: 1em; }}
span {{ border-radius: 4px; padding: 1px 5px; margin: 0 2px; font: 14px ui-monospace, monospace; }}
span.kept {{ outline: 1px solid #2d7a44; }}
span.dropped {{ text-decoration: line-through; }}
span {{ box-decoration-break: clone; -webkit-box-decoration-break: clone; }}
sub {{ font-size: 11px; margin-left: 4px; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>Green: kept. Red: dropped. Grey: no result. Rest the pointer on a call for its losses.</p>
{body}
</body>
</html>
"""
