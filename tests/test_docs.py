"""The docs: no dead link, every page to be reached, every name and command there."""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import tyro
import yaml

import ai_learning
from ai_learning.cli import COMMANDS
from ai_learning.tokenizers import ByteTokenizer

ROOT = Path(ai_learning.__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def to_docs() -> ModuleType:
    pytest.importorskip("latex2mathml")
    spec = importlib.util.spec_from_file_location("to_docs", ROOT / "docs_tools" / "lessons.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages(to_docs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every page of the site by its place below docs/, the lessons' among them."""
    made = tmp_path_factory.mktemp("docs") / "lessons"
    to_docs.main(made)
    committed = {p.relative_to(DOCS).as_posix(): p for p in DOCS.rglob("*") if p.is_file()}
    committed = {name: p for name, p in committed.items() if not name.startswith("lessons/")}
    found = {**committed, **{f"lessons/{p.name}": p for p in made.iterdir()}}
    return {name: p.read_text(encoding="utf-8") if p.suffix == ".md" else "" for name, p in found.items()}


@cache
def nav() -> list[str]:
    def leaves(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]  # type: ignore[union-attr]

    return leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])


def links(page: str, text: str) -> list[str]:
    """Where a page's own links lead, as places below docs/."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http:", "https:", "#", "mailto:")):
            continue
        parts: list[str] = []
        for part in [*page.split("/")[:-1], *target.partition("#")[0].split("/")]:
            if part == "..":
                parts.pop()
            elif part != ".":
                parts.append(part)
        found.append("/".join(parts))
    return found


def test_the_navigation_has_no_dead_entry(pages: dict[str, str]) -> None:
    assert [name for name in nav() if name not in pages] == []
    assert len(nav()) == len(set(nav())) > 20


def test_no_page_has_a_dead_link(pages: dict[str, str]) -> None:
    dead = [(name, link) for name, text in pages.items() for link in links(name, text) if link not in pages]
    assert dead == []


def test_every_page_and_picture_can_be_reached(pages: dict[str, str]) -> None:
    seen, todo = set(nav()), list(nav())
    while todo:
        page = todo.pop()
        for link in links(page, pages[page]):
            if link not in seen:
                seen.add(link)
                todo.append(link)
    lost = {name for name in pages if name not in seen and not name.startswith("images/day")}
    assert lost == set()


def test_links_are_read_as_browsers_do() -> None:
    text = "[a](../faq.md#x) `[no](code.md)` ![p](../images/p.png) [far](https://x.y/z.md)"
    assert links("guide/page.md", text) == ["faq.md", "images/p.png"]


@pytest.mark.parametrize("page", sorted((DOCS / "api").glob("*.md")), ids=lambda p: p.stem)
def test_the_api_pages_name_what_exists_and_is_documented(page: Path) -> None:
    names = re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert names or page.stem == "index"
    for name in names:
        assert resolve(name).__doc__, f"{name} has no docstring"


def resolve(name: str) -> object:
    """A module, or what is in one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


def test_papers_lead_to_files_and_symbols_that_exist() -> None:
    rows = (DOCS / "papers.md").read_text(encoding="utf-8").splitlines()
    cells = [row.split("|")[3] for row in rows if row.startswith("| ") and "`" in row]
    assert len(cells) > 20
    for cell in cells:
        source, folder = "", ROOT / "ai_learning"
        for name in re.findall(r"`([^`]+)`", cell):
            if name.endswith(".py"):
                path = ROOT / "ai_learning" / name
                path = path if path.is_file() else folder / name  # beside the one named before it
                folder, source = path.parent, path.read_text(encoding="utf-8")
            elif re.fullmatch(r"[\w.]+", name):
                defined = rf"^\s*(?:def|class) {name.split('.')[-1]}\b|^{name.split('.')[-1]}\b.* = "
                assert re.search(defined, source, flags=re.MULTILINE), f"{name} in {cell}"


class Parsed(Exception):  # noqa: N818 - no error
    """A command line was read to its end."""


def shown_commands(text: str) -> list[list[str]]:
    """Every ``ai-learning …`` of the code blocks, with what is continued on the next line."""
    blocks = "\n".join(re.findall(r"^(?:```.*?^```|(?: {4}.*\n?)+)", text, flags=re.MULTILINE | re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    found = [re.search(r"(?:^|\s)(?:ai-learning|ai_learning\.cli) (?!\()(.+)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def test_commands_that_are_shown_can_be_typed(pages: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Their options exist, and take what is given; nothing is run."""

    def parsed(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        raise Parsed

    real = tyro.cli
    monkeypatch.setattr(tyro, "cli", parsed)
    # Its vocabulary's size is the default of an option, so this one is opened first.
    monkeypatch.setattr("ai_learning.cli.pretrain.tokenizer_by_name", lambda name: ByteTokenizer())
    texts = [*pages.values(), (ROOT / "README.md").read_text(encoding="utf-8")]
    commands = [words for text in texts for words in shown_commands(text) if words[0] in COMMANDS]
    assert len(commands) > 60 and {words[0] for words in commands} >= COMMANDS.keys() - {"lessons", "demo"}
    for name, *rest in commands:
        if name == "lessons" or "--help" in rest or rest in ([], ["doctor"]):  # these have no options
            continue
        rest = [word for word in rest if word not in ("…", "&&")]
        if "--resume" in rest:  # asks the run in the folder for its options
            continue
        module = importlib.import_module(f"ai_learning.cli.{COMMANDS[name][0]}")
        with pytest.raises(Parsed):
            module.main(rest)


def test_formulas_become_mathml_and_code_stays(to_docs: ModuleType) -> None:
    made = to_docs._formulas("a $x_1$ and `$HOME` and\n```\n$y$\n```\n$$\\frac{a}{b}$$")
    assert made.count("<math") == 2 and "`$HOME`" in made and "\n$y$\n" in made
    assert "<mfrac>" in made and "_" not in made.partition("`")[0]  # Markdown sees no emphasis


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    assert subprocess.run([sys.executable, ROOT / "docs_tools" / "lessons.py"]).returncode == 0
    build = [sys.executable, "-m", "zensical", "build", "--clean"]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stdout[-3000:]
    for page in (ROOT / "site").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'(?:src|href)="(?:https?:)?//[^"]*\.(?:js|css|woff2?|png|svg)"', text), page
