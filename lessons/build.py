"""Make the notebooks from their percent-format sources: run every cell and keep what it shows.

    python lessons/build.py            # all
    python lessons/build.py day2 day16 # some

The source (``day2_gpt1.py``) is what to edit; the notebook beside it is what to read.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
LARGEST = 1_000_000  # bytes of a notebook with its outputs


def sources() -> list[Path]:
    """Percent-format sources of the notebooks, in the order of their days (day 1 is a plain script)."""
    found = [p for p in HERE.glob("*.py") if re.match(r"day\d+_", p.name, re.IGNORECASE)]
    return sorted((p for p in found if day(p) > 1), key=day)


def day(path: Path) -> int:
    """Number of a lesson's day."""
    match = re.match(r"day(\d+)_", path.name, re.IGNORECASE)
    return int(match[1]) if match else 0


def unrun(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs and with ids that do not change from build to build."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{source.stem.lower()[:40]}-{number}".replace("_", "-")
        cell.metadata.clear()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def build(source: Path) -> Path:
    """Run a lesson in an empty folder and write its notebook.

    Raises:
        SystemExit: the notebook with its outputs is too large to commit.
    """
    notebook = unrun(source)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # when each cell ran: a diff would be full of it
        # Libraries' warnings name the folder where they are installed, which is nobody else's.
        outputs = cell.get("outputs", [])
        outputs[:] = [output for output in outputs if "site-packages" not in output.get("text", "")]
    target = source.with_suffix(".ipynb")
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        raise SystemExit(f"{target.name} would be {len(text):,} bytes: show less, at most {LARGEST:,}")
    target.write_text(text, encoding="utf-8")
    return target


def main() -> None:
    """Build the lessons that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("days", nargs="*", help="day2, day16 …; all when left out")
    wanted = {int(re.sub(r"\D", "", name) or 0) for name in parser.parse_args().days}
    unknown = wanted - {day(p) for p in sources()}
    if unknown:
        sys.exit(f"no notebook for day {', '.join(map(str, sorted(unknown)))}")
    for source in sources():
        if not wanted or day(source) in wanted:
            started = time.monotonic()
            target = build(source)
            print(f"{target.name}: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
