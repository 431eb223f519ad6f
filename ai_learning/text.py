"""Where text comes from: the Python installation itself, files, folders, stdin, Hugging Face datasets.

Every source is named by one string, so that a command line, a config and a notebook say it the same way:

====================================  =================================================================
``builtin:reference``                 the language reference, about 0.5 MB of English prose
``builtin:stdlib``                    source of the standard library, about 10 MB
``builtin:stdlib-train``              the same without the blocks that package_snippets() holds out (seed 0)
``builtin:docstrings``                the standard library's docstrings, about 2 MB
``PATH``                              a text file, or a folder: every text file in it, sorted
``-``                                 standard input
``hf:NAME?split=train&column=text``   a Hugging Face dataset (or a local dataset folder), streamed
====================================  =================================================================

Bytes that are not UTF-8 are ignored; line ends are kept as they are. A folder is read without hidden files,
binary files, folders of token files and those of training runs: a run must not learn from its own output.
"""

import ast
import logging
import random
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count, groupby
from pathlib import Path
from urllib.parse import parse_qsl

from .errors import InputError
from .token_file import SUFFIX

_SNIFF_BYTES = 8192
_RUN_FILES = ("run.json", ".lock")  # a folder that holds one of them is a run's (see run_folder.py)
_BINARY = "{} is a binary file (it holds a zero byte): give a text file"
_NO_TEXT = "no text in {!r}: it is empty, or holds only white space and binary files"


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
    if not source.strip():
        raise InputError("the text source has no name: give a file, a folder, builtin:NAME or hf:NAME")
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
        raise InputError(_NO_TEXT.format(source))


# --- files and folders ------------------------------------------------------------------------------------


def _path_texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        return (read_file(file) for file in text_files(path))
    if not path.exists():
        raise InputError(
            f"no such file or folder: {path} (built-in text: {', '.join('builtin:' + n for n in BUILTIN)})"
        )
    if _is_binary(path):
        raise InputError(_BINARY.format(path))
    return iter([read_file(path)])


def text_files(folder: Path) -> list[Path]:
    """Text files below ``folder``, sorted; hidden or binary ones, folders of runs and of tokens are left out.

    Raises:
        InputError: ``folder`` itself is a run's, or holds token files.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    shards = {file.parent for file in files if file.suffix == SUFFIX}
    if folder in shards:
        raise InputError(f"{folder} is a folder of token files, not of text: keep them in separate folders")
    runs = shards | {file.parent for file in files if file.name in _RUN_FILES}
    if folder in runs:
        raise InputError(
            f"{folder} is the folder of a training run, not of text: keep text and runs in separate folders"
        )
    return [
        file
        for file in files
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and runs.isdisjoint(file.parents)
        and not _is_binary(file)
    ]


def source_files(path: Path) -> list[Path]:
    """The text files of ``path``: it, or those below it.

    Raises:
        InputError: it is binary, or there is no text in it.
    """
    files = text_files(path) if path.is_dir() else [path]
    if path.is_file() and _is_binary(path):
        raise InputError(_BINARY.format(path))
    if not any(map(_has_text, files)):
        raise InputError(_NO_TEXT.format(str(path)))
    return files


def _has_text(path: Path) -> bool:
    with path.open("rb") as file:
        return any(block.strip() for block in iter(lambda: file.read(2**16), b""))


def read_file(path: Path) -> str:
    """The file's text; bytes that are not UTF-8 are ignored, line ends stay as they are."""
    return path.read_bytes().decode("utf-8", errors="ignore")


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(_SNIFF_BYTES)


# --- Hugging Face datasets --------------------------------------------------------------------------------


def _dataset_texts(spec: str) -> Iterator[str]:
    name, rows, options = open_dataset(spec, ("column",))
    column = options.get("column", "text")
    first = next(rows, None)
    if first is None:
        return iter(())
    if column not in first:
        raise InputError(f"no column {column!r} in {name!r}: it has {', '.join(first)}")
    return _column(chain([first], rows), column, name)


def open_dataset(spec: str, own: tuple[str, ...] = ()) -> tuple[str, Iterator[dict], dict[str, str]]:
    """A Hugging Face dataset, streamed: ``NAME?split=train&config=en``.

    Args:
        spec: what stands after ``hf:``.
        own: further options that the caller understands.

    Returns:
        The dataset's name, its rows, and the caller's options.

    Raises:
        InputError: an unknown option, or a dataset that cannot be opened; while reading, a row that cannot be
            read.
    """
    from datasets import load_dataset  # heavy: only for those who ask

    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query))
    split = options.pop("split", "train")
    config = options.pop("config", None)
    unknown = options.keys() - set(own)
    if unknown:
        known = ", ".join(("config", "split", *own))
        raise InputError(f"unknown option {', '.join(sorted(unknown))} in 'hf:{spec}': use {known}")
    if not name:
        raise InputError(f"no name in 'hf:{spec}': give hf:NAME, a dataset's name or a local dataset folder")
    try:
        with _quiet_datasets():
            rows = iter(load_dataset(name, config, split=split, streaming=True))
            first = next(rows, None)
    except Exception as error:  # the library's errors share no base class
        raise InputError(f"cannot open the dataset {name!r}, split {split!r}: {_one_line(error)}") from None
    return name, _dataset_rows(name, rows if first is None else chain([first], rows)), options


def _dataset_rows(name: str, rows: Iterator[dict]) -> Iterator[dict]:
    for number in count():
        try:
            row = next(rows, None)
        except Exception as error:  # as above: a lost connection, a damaged file
            raise InputError(
                f"cannot read row {number} of the dataset {name!r}: {_one_line(error)}"
            ) from None
        if row is None:
            return
        yield row


def _column(rows: Iterable[dict], column: str, name: str) -> Iterator[str]:
    """The rows' texts; a row without one is skipped."""
    for number, row in enumerate(rows):
        if column not in row:
            raise InputError(f"cannot read row {number} of the dataset {name!r}: it has no column {column!r}")
        if row[column] is not None:
            yield str(row[column])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No retry messages and progress bars: what went wrong is in the one line of the error."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()


# --- what every Python installation carries ---------------------------------------------------------------


def _language_reference() -> Iterator[str]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it apart, or leave it out
        raise InputError(
            "this Python came without pydoc_data, the text of builtin:reference: use builtin:docstrings"
        ) from None
    yield from (topics[name] for name in sorted(topics))


def stdlib_files() -> list[Path]:
    """Source of the standard library, without tests, character tables and what was installed on top."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
    files = (file for file in sorted(root.rglob("*.py")) if file.is_file())
    return [file for file in files if not skipped.intersection(file.relative_to(root).parts)]


def _stdlib_source() -> Iterator[str]:
    return (read_file(file) for file in stdlib_files())


def _stdlib_docstrings() -> Iterator[str]:
    for file in stdlib_files():
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
    snippets). What stands more than once in the library, such as a licence at the head of many files, can
    still be in both: a few held-out snippets in a hundred also stand in the training blocks.

    Args:
        n_chars: length of a snippet.
        held_out: share of each package's blocks.
        seed: decides which blocks, and the order of the examples.

    Returns:
        Training examples, held-out examples, and the class names in the order of the labels.
    """
    generator = random.Random(seed)
    train: list[list[str]] = []
    test: list[list[str]] = []
    for text, kept in _package_blocks(n_chars, held_out, seed).values():
        size = _BLOCK_SNIPPETS * n_chars
        blocks = [text[i * size : (i + 1) * size] for i in range(len(kept))]
        for group, wanted in ((train, True), (test, False)):
            snippets = _snippets([b for b, k in zip(blocks, kept, strict=True) if k is wanted], n_chars)
            generator.shuffle(snippets)
            group.append(snippets)
    return _balanced(train, generator), _balanced(test, generator), PACKAGES


def package_training_text(held_out: float = 0.1, seed: int = 0, n_chars: int = 120) -> Iterator[str]:
    """The standard library's source without what ``package_snippets`` of the same arguments holds out.

    For pre-training before fine-tuning on the snippets: the held-out ones are then new to the model.

    Args:
        held_out: as for ``package_snippets``.
        seed: as for ``package_snippets``.
        n_chars: as for ``package_snippets``.

    Yields:
        Files in order: those of the labelled packages without their held-out blocks, as one text for each
        stretch between two such blocks; all others whole.
    """
    size = _BLOCK_SNIPPETS * n_chars
    split = _package_blocks(n_chars, held_out, seed)
    position = dict.fromkeys(PACKAGES, 0)  # where the next file starts in its package's text
    for file in stdlib_files():
        package, text = _package(file), read_file(file)
        if package not in split:
            yield text
            continue
        start = position[package]
        position[package] = end = start + len(text) + len(_BETWEEN_FILES)
        blocks = range(start // size, (end - len(_BETWEEN_FILES) - 1) // size + 1)
        for kept, stretch in groupby(blocks, key=split[package][1].__getitem__):
            if kept:
                numbers = list(stretch)
                yield text[max(0, numbers[0] * size - start) : (numbers[-1] + 1) * size - start]


_BLOCK_SNIPPETS = 20  # snippets a block
_BETWEEN_FILES = "\n"


def _package(file: Path) -> str:
    return file.relative_to(sysconfig.get_paths()["stdlib"]).parts[0]


def _package_blocks(n_chars: int, held_out: float, seed: int) -> dict[str, tuple[str, list[bool]]]:
    """The text of each package, and for each of its blocks whether it is for training."""
    generator = random.Random(seed)
    all_files = stdlib_files()
    result = {}
    for package in PACKAGES:
        text = _BETWEEN_FILES.join(read_file(file) for file in all_files if _package(file) == package)
        n_blocks = -(-len(text) // (_BLOCK_SNIPPETS * n_chars))
        out = set(generator.sample(range(n_blocks), round(held_out * n_blocks)))
        result[package] = (text, [number not in out for number in range(n_blocks)])
    return result


def _snippets(blocks: list[str], n_chars: int) -> list[str]:
    pieces = (block[i : i + n_chars] for block in blocks for i in range(0, len(block), n_chars))
    return [piece for piece in pieces if len(piece) == n_chars and piece.strip()]


def _balanced(groups: list[list[str]], generator: random.Random) -> list[Labelled]:
    count = min(len(group) for group in groups)
    examples = [Labelled(text, label) for label, group in enumerate(groups) for text in group[:count]]
    generator.shuffle(examples)
    return examples


BUILTIN: dict[str, Callable[[], Iterator[str]]] = {
    "reference": _language_reference,
    "stdlib": _stdlib_source,
    "stdlib-train": package_training_text,
    "docstrings": _stdlib_docstrings,
}
