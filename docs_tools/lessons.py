"""Lessons as pages of the docs site: ``python docs_tools/lessons.py`` writes ``docs/lessons/``.

Words become the page, code and what it printed become blocks, pictures become files: nothing but a browser is
needed to read a lesson.
"""

import base64
import re
import shutil
from pathlib import Path

import jupytext
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
LESSONS, DOCS = ROOT / "lessons", ROOT / "docs" / "lessons"


def main(out: Path = DOCS) -> list[Path]:
    """Write a page for each lesson, and the list of them; give all pages."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    sources = [*LESSONS.glob("[dD]ay*.ipynb"), *LESSONS.glob("day1_*.py")]
    pages = [page(source, out) for source in sorted(sources)]
    index = out / "index.md"
    index.write_text(_links((LESSONS / "README.md").read_text(encoding="utf-8")), encoding="utf-8")
    return [index, *pages]


def page(source: Path, out: Path) -> Path:
    """One lesson as Markdown."""
    notebook = jupytext.read(source)
    parts = [
        f"*This is `lessons/{source.name}`; `ai-learning lessons start {_day(source)}` copies it to you.*"
    ]
    pictures = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(_formulas(cell.source))
            continue
        if cell.cell_type == "code" and cell.source.strip():
            parts.append(_block(cell.source, "python"))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                picture = out / f"{source.stem}_{pictures}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![what the cell draws]({picture.name})")
                pictures += 1
            else:
                text = output.get("text") or data.get("text/plain") or ""
                parts.append(_block(_plain(text), "text"))
    heading = next((n for n, part in enumerate(parts) if part.startswith("# ")), None)
    if heading is None:  # the script's docstring is its beginning
        parts.insert(0, f"# {source.stem.replace('_', ' ')}")
    else:
        parts.insert(0, parts.pop(heading))
    path = out / f"{source.stem}.md"
    path.write_text(_links("\n\n".join(part for part in parts if part.strip()) + "\n"), encoding="utf-8")
    return path


def _lesson_link(match: re.Match) -> str:
    there = (LESSONS / match[2]).is_file()
    return f"[{match[1]}]({Path(match[2]).stem}.md)" if there else match[1]


def _day(source: Path) -> str:
    match = re.match(r"(day\d+)", source.name.lower())
    return match[1] if match else source.stem


def _block(text: str, language: str) -> str:
    if not text.strip():
        return ""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _formulas(text: str) -> str:
    """LaTeX as MathML, which browsers draw without a script; what stands in code stays."""
    parts = re.split(r"(```.*?```|`[^`]*`)", text, flags=re.DOTALL)
    for number in range(0, len(parts), 2):
        part = re.sub(r"\$\$(.+?)\$\$", lambda m: _formula(m[1], "block"), parts[number], flags=re.DOTALL)
        parts[number] = re.sub(r"\$([^$\n]+)\$", lambda m: _formula(m[1], "inline"), part)
    return "".join(parts)


def _formula(latex: str, display: str) -> str:
    made = convert(" ".join(latex.replace(r"\!", "").split()), display=display)
    return made.replace("|", "&#x7C;").replace("_", "&#x5F;").replace("*", "&#x2A;")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _links(text: str) -> str:
    """Links between lessons lead to their pages, links to docs to those pages, and to code to its name."""
    text = re.sub(r"\[([^\]]+)\]\(([dD]ay\w+\.(?:ipynb|py))\)", _lesson_link, text)
    text = re.sub(r"\]\(\.\./docs/([\w/]+\.(?:md|png))\)", r"](../\1)", text)
    return re.sub(
        r"\[([^\]]+)\]\((?!http)(?:\.\./)?(?:ai_learning|lessons|benchmarks|tests)/[^)]*\)", r"\1", text
    )


if __name__ == "__main__":
    print(f"{len(main())} pages in {DOCS}")
