"""Lessons run, show the library's source, and copy none of it."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ai_learning
from ai_learning.checks import show
from ai_learning.model import causal_mask

ROOT = Path(ai_learning.__file__).parents[1]
SCRIPTS = sorted((ROOT / "lessons").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_script_runs(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pictures = list(tmp_path.rglob("*.png"))
    assert pictures and all(p.stat().st_size > 3000 for p in pictures)
    assert not any((ROOT / "lessons").rglob("runs"))


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
