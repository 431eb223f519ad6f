"""Where text comes from: the Python installation itself, files, folders, stdin, Hugging Face datasets.

Every source is named by one string, so that a command line, a config and a notebook say it the same way:

====================================  =========================================================
``builtin:reference``                 the language reference, about 0.5 MB of English prose
``builtin:stdlib``                    source of the standard library, about 10 MB
``builtin:docstrings``                its docstrings, about 2 MB
``PATH``                              a text file, or a folder: every text file in it, sorted
``-``                                 standard input
``hf:NAME?split=train&column=text``   a Hugging Face dataset (or a local dataset folder), streamed
====================================  =========================================================

Bytes that are not UTF-8 are ignored; line ends are kept as they are.
"""

import ast
import random
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from .errors import InputError

_SNIFF_BYTES = 8192


def read_texts(source: str | Path) -> Iterator[str]:
    """Documents of ``source``, one at a time (see the module's table of sources).

    Raises:
        InputError: at once for a name or path that does not exist and for a binary file; at the end for a
            source that held no text at all.

    Example:
        >>> next(read_texts("builtin:reference")).startswith('The "assert" statement')
        True
    """
    source = str(source)
    if source.startswith("builtin:"):
        name = source.removeprefix("builtin:")
        if name not in BUILTIN:
            raise InputError(f"no built-in corpus {name!r}: use {', '.join('builtin:' + n for n in BUILTIN)}")
        documents = BUILTIN[name]()
    elif source.startswith("hf:"):
        documents = _dataset_texts(source.removeprefix("hf:"))
    elif source == "-":
        documents = iter([sys.stdin.buffer.read().decode("utf-8", errors="ignore")])
    else:
        documents = _path_texts(Path(source))
    return _not_empty(documents, source)


def read_text(source: str | Path) -> str:
    """All documents of ``source`` as one string, separated by a blank line."""
    return "\n\n".join(read_texts(source))


def _not_empty(documents: Iterator[str], source: str) -> Iterator[str]:
    found = False
    for document in documents:
        if document.strip():
            found = True
            yield document
    if not found:
        raise InputError(f"no text in {source!r}: it is empty, or holds only white space and binary files")


# --- files and folders ------------------------------------------------------------------------------------


def _path_texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        return (read_file(file) for file in text_files(path))
    if not path.exists():
        raise InputError(
            f"no such file or folder: {path} (built-in text: {', '.join('builtin:' + n for n in BUILTIN)})"
        )
    if _is_binary(path):
        raise InputError(f"{path} is a binary file (it holds a zero byte): give a text file")
    return iter([read_file(path)])


def text_files(folder: Path) -> list[Path]:
    """Text files below ``folder``, sorted; hidden and binary files are left out."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not _is_binary(file)
    ]


def read_file(path: Path) -> str:
    """The file's text; bytes that are not UTF-8 are ignored, line ends stay as they are."""
    return path.read_bytes().decode("utf-8", errors="ignore")


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_SNIFF_BYTES)


# --- Hugging Face datasets --------------------------------------------------------------------------------


def _dataset_texts(spec: str) -> Iterator[str]:
    from datasets import load_dataset  # heavy: only for those who ask

    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query))
    split = options.pop("split", "train")
    column = options.pop("column", "text")
    config = options.pop("config", None)
    if options:
        raise InputError(f"unknown option {', '.join(options)} in 'hf:{spec}': use config, split, column")
    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        first = next(iter(rows), None)
    except Exception as error:  # the library's errors share no base class
        reason = " ".join(str(error).split())
        raise InputError(f"cannot open the dataset {name!r}, split {split!r}: {reason}") from None
    if first is not None and column not in first:
        raise InputError(f"no column {column!r} in {name!r}: it has {', '.join(first)}")
    return (str(row[column]) for row in rows)


# --- what every Python installation carries ---------------------------------------------------------------


def _language_reference() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))


def _stdlib_files() -> list[Path]:
    """Source of the standard library, without tests, character tables and what was installed on top."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    files = (file for file in sorted(root.rglob("*.py")) if file.is_file())
    return [file for file in files if not skipped.intersection(file.relative_to(root).parts)]


def _stdlib_source() -> Iterator[str]:
    return (read_file(file) for file in _stdlib_files())


def _stdlib_docstrings() -> Iterator[str]:
    for file in _stdlib_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            try:
                tree = ast.parse(read_file(file))
            except SyntaxError:  # lib2to3 ships files that are wrong on purpose
                continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    yield docstring


BUILTIN: dict[str, Callable[[], Iterator[str]]] = {
    "reference": _language_reference,
    "stdlib": _stdlib_source,
    "docstrings": _stdlib_docstrings,
}


# --- a supervised task from the same text: which package is this snippet from? ---------------------------

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")


@dataclass(frozen=True)
class Labelled:
    """A text and the number of its class."""

    text: str
    label: int


def package_snippets(
    n_chars: int = 120, held_out: float = 0.1, seed: int = 0
) -> tuple[list[Labelled], list[Labelled], tuple[str, ...]]:
    """Snippets of the standard library, labelled with the package that they are from.

    A snippet is ``n_chars`` consecutive characters. Every package gives the same number of snippets, and
    the held-out ones come from **other blocks of the files** than the training ones (blocks of twenty
    snippets), so that no held-out character was seen with its label.

    Returns:
        Training examples, held-out examples, and the class names in the order of the labels.
    """
    generator = random.Random(seed)
    train: list[list[str]] = []
    test: list[list[str]] = []
    root = Path(sysconfig.get_paths()["stdlib"])
    all_files = _stdlib_files()
    for package in PACKAGES:
        files = [file for file in all_files if file.relative_to(root).parts[0] == package]
        text = "\n".join(read_file(file) for file in files)
        size = 20 * n_chars
        blocks = [text[start : start + size] for start in range(0, len(text), size)]
        generator.shuffle(blocks)
        n_held_out = round(held_out * len(blocks))
        parts = _snippets(blocks[n_held_out:], n_chars), _snippets(blocks[:n_held_out], n_chars)
        for snippets in parts:
            generator.shuffle(snippets)
        train.append(parts[0])
        test.append(parts[1])
    return _balanced(train, generator), _balanced(test, generator), PACKAGES


def _snippets(blocks: list[str], n_chars: int) -> list[str]:
    pieces = (block[i : i + n_chars] for block in blocks for i in range(0, len(block), n_chars))
    return [piece for piece in pieces if len(piece) == n_chars and piece.strip()]


def _balanced(groups: list[list[str]], generator: random.Random) -> list[Labelled]:
    count = min(len(group) for group in groups)
    examples = [Labelled(text, label) for label, group in enumerate(groups) for text in group[:count]]
    generator.shuffle(examples)
    return examples
