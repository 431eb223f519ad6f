"""Imports point down only, and importing does nothing that can be seen."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ai_learning

ROOT = Path(ai_learning.__file__).parent

LAYERS = [
    {"shapes", "errors", "files", "kernels"},
    {"text", "chat_template", "token_file", "hf_names", "tokenizers", "model", "adapters"},
    {"batches", "loss", "optim", "generate", "decode_triton", "int8", "shortlist", "speculative"}
    | {"pretrained", "run_folder", "viz"},
    {
        "checkpoint",
        "device",
        "train",
        "run_state",
        "distributed",
        "evaluate",
        "multiple_choice",
        "finetune",
        "sft",
    }
    | {"adapted", "memory"},
    {"toolformer", "reflexion", "chat_model", "lm_harness", "trace", "checks", "presets", "recipes"},
    {"cli", "web"},
]
STRANGERS = [{"model", "adapters"}, {"model", "tokenizers"}]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    """Rooms of ai_learning that a file imports, wherever in the file it does so."""
    package = ["ai_learning", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names = [module] if module.count(".") else [f"{module}.{alias.name}" for alias in node.names]
        found |= {room_of(name) for name in names if name.startswith("ai_learning.")}
    return found & LEVEL.keys()


def violations(root: Path) -> list[str]:
    wrong = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        if room not in LEVEL:
            wrong.append(f"{room} stands in no layer: add it to LAYERS")
            continue
        for other in imports(path) - {room}:
            if LEVEL[other] > LEVEL[room]:
                wrong.append(f"{'/'.join(parts)} imports {other}, which is above it")
            if any({room, other} == pair for pair in STRANGERS):
                wrong.append(f"{'/'.join(parts)} imports {other}, which it must not know")
    return wrong


def test_imports_point_down() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("model/gpt.py", "from ..train import train"),
        ("model/gpt.py", "from ai_learning.cli import main"),
        ("loss.py", "from . import checkpoint"),
        ("model/attention.py", "from ..tokenizers import load"),
        ("text.py", "def f():\n    import ai_learning.train"),
    ],
)
def test_an_upward_import_is_seen(
    file: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "ai_learning" / file
    copy.parent.mkdir(parents=True)
    copy.write_text(line + "\n" + (ROOT / file).read_text(encoding="utf-8").replace("from __future__", "# "))
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "ai_learning")
    assert len(violations(tmp_path / "ai_learning")) == 1


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_import_is_silent_and_light() -> None:
    done = run_python("import ai_learning, sys; assert 'torch' not in sys.modules, 'torch was imported'")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tokenizers_do_not_need_torch() -> None:
    code = "import ai_learning.tokenizers, ai_learning.text, sys; assert 'torch' not in sys.modules"
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("module", ["model", "train", "generate", "finetune", "viz", "trace", "cli.pretrain"])
def test_import_prints_nothing(module: str) -> None:
    done = run_python(f"import ai_learning.{module}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
