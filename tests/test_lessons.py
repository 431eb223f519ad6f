"""Lessons run, show the library's source, and copy none of it."""

import ast
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

import ai_learning
from ai_learning.checks import show
from ai_learning.model import causal_mask

ROOT = Path(ai_learning.__file__).parents[1]
SCRIPTS = sorted((ROOT / "lessons").glob("[dD]ay*.py"))
NOTEBOOKS = [script for script in SCRIPTS if not script.name.startswith("day1_")]
QUICK = ("day1_", "day3_", "day6_", "day15_", "Day16_")  # the others train for half a minute and more


@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[] if s.name.startswith(QUICK) else [pytest.mark.slow]) for s in SCRIPTS],
    ids=lambda p: p.stem,
)
def test_script_runs(script: Path, tmp_path: Path) -> None:
    """A lesson's cells, one after another, in an empty folder: its asserts hold, and it draws."""
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pictures = list(tmp_path.rglob("*.png"))
    assert pictures and all(p.stat().st_size > 3000 for p in pictures)
    assert not any((ROOT / "lessons").rglob("runs"))


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lessons_build", ROOT / "lessons" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_its_source_with_outputs(source: Path, build: ModuleType) -> None:
    """What is read is what is edited: ``python lessons/build.py`` makes them equal again."""
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    committed, fresh = nbformat.reads(text, as_version=4), build.unrun(source)
    nbformat.validate(committed)
    assert [c.source for c in committed.cells] == [c.source for c in fresh.cells]
    outputs = [output for cell in committed.cells for output in cell.get("outputs", [])]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert len(text.encode()) <= 1_000_000
    assert "site-packages" not in text, "it shows where its maker's libraries lie"
    printed = "".join(output.get("text", "") for output in outputs)
    for shown in re.finditer(r"^# (ai_learning/\S+), line (\d+)\n", printed, re.MULTILINE):
        lines = (ROOT / shown[1]).read_text(encoding="utf-8").splitlines(keepends=True)
        now = "".join(inspect.getblock(lines[int(shown[2]) - 1 :])).rstrip()
        assert printed[shown.end() :].startswith(now), f"{shown[0]} is another now: build the lesson anew"


@pytest.mark.parametrize("source", SCRIPTS, ids=lambda p: p.stem)
def test_every_lesson_has_its_parts(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    for part in ("After this lesson you can", "show(", "**Predict first:**", "Exercises", "Quiz", "Read on"):
        assert part in text, f"no {part!r}"
    assert "assert " in text and ".shape" in text


def definitions(path: Path) -> dict[str, str]:
    """Syntax trees of functions and classes, without docstrings and names: what a copy would share."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and sum(1 for _ in ast.walk(node)) > 40:
            body = [
                s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
            found[node.name] = "\n".join(ast.dump(s) for s in body)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_no_library_definition_is_copied(script: Path) -> None:
    library = {
        tree: f"{path.name}: {name}"
        for path in (ROOT / "ai_learning").rglob("*.py")
        for name, tree in definitions(path).items()
    }
    copies = {name: library[tree] for name, tree in definitions(script).items() if tree in library}
    assert not copies


def test_a_copy_would_be_seen(tmp_path: Path) -> None:
    source = ROOT / "ai_learning" / "model" / "tiny.py"
    shutil.copyfile(source, tmp_path / "copy.py")
    assert definitions(tmp_path / "copy.py").items() <= definitions(source).items()
    assert "TinyTransformer" in definitions(tmp_path / "copy.py")


def test_show_prints_file_line_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    show(causal_mask)
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("# ai_learning/model/attention.py, line ")
    assert second == "def causal_mask(block_size: int) -> Mask:"
    lines = (ROOT / "ai_learning" / "model" / "attention.py").read_text().splitlines()
    assert lines[int(first.split()[-1]) - 1] == second
    with pytest.raises(ValueError, match="5 has no Python source"):
        show(5)
