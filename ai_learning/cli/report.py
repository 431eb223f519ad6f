"""One self-contained HTML page: headings, tables, text and pictures, nothing loaded from elsewhere."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..files import write_text

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; --edge: #8884; }}
  body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }}
  h1 {{ font-size: 1.6rem; }}  h2 {{ font-size: 1.2rem; margin-top: 2.2rem; }}
  img {{ max-width: 100%; background: #fff; border-radius: 6px; }}
  pre {{ overflow-x: auto; padding: .8rem; border: 1px solid var(--edge); border-radius: 6px; }}
  table {{ border-collapse: collapse; }}  td, th {{ padding: .3rem .9rem .3rem 0; text-align: left; }}
  tr + tr td {{ border-top: 1px solid var(--edge); }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


class Report:
    """Collect sections, then write the page.

    Example:
        >>> report = Report("A run")
        >>> report.text("What happened.")
        >>> report.table(["model", "loss"], [["tiny", "1.93"]])
        >>> report.write("runs/report.html")  # doctest: +SKIP
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """A section begins."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Text as it is, in a fixed-width box."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table with a header."""
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        self._parts.append(f"<table><tr>{head}</tr>" + "".join(f"<tr>{c}</tr>" for c in cells) + "</table>")

    def image(self, path: Path, alt: str) -> None:
        """A PNG, embedded."""
        data = base64.b64encode(path.read_bytes()).decode()
        self._parts.append(f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">')

    def write(self, path: Path | str) -> None:
        """Write the page, atomically."""
        write_text(path, _PAGE.format(title=escape(self.title), body="\n".join(self._parts)))
