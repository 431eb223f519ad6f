"""Tools by what is written on a command line.

- ``Calculator``: arithmetic
- ``Calendar``: today; ``Calendar=2023-01-30`` for another today
- ``WikiSearch=SOURCE``: search in a folder, a file, ``builtin:reference`` or ``hf:NAME``
- ``QA=FILE``: facts, a JSON object question → answer, or lines of question, tab, answer
- ``QA=search:SOURCE``: the best passage of a search
- ``QA=model:NAME``: a text-generation pipeline of transformers
- ``MT=NAME``: translation into English; ``MT`` alone is NLLB-200 distilled, 600 million parameters
- ``MODULE:NAME``: a tool of yours, LangChain's or ours, in an installed module or a file (``mine.py:tool``)
"""

import importlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..text import read_file
from .neural import PipelineTool, RetrievalQA, Translator
from .search import WikiSearch
from .tools import Calculator, Calendar, FactQA, Tool, as_tools


def open_tools(specs: Sequence[str]) -> list[Tool]:
    """The tools that the module's table describes.

    Raises:
        InputError: an unknown tool, or one that cannot be opened.

    Example:
        >>> [tool.name for tool in open_tools(["Calculator", "Calendar=2023-01-30"])]
        ['Calculator', 'Calendar']
    """
    try:
        return list(as_tools([_open(spec) for spec in specs]).values())
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from None


def _open(spec: str) -> Any:
    name, _, source = spec.partition("=")
    if name == "Calculator" and not source:
        return Calculator()
    if name == "Calendar":
        return Calendar(source or None)
    if name == "WikiSearch":
        return WikiSearch(source or "builtin:reference")
    if name == "QA" and source.startswith("search:"):
        return RetrievalQA(WikiSearch(source.removeprefix("search:")))
    if name == "QA" and source.startswith("model:"):
        template = "Question: {text}\nAnswer:"
        name = source.removeprefix("model:")
        return PipelineTool.load(name, template=template, max_new_tokens=32, do_sample=False)
    if name == "QA" and source:
        return FactQA(read_facts(source))
    if name == "MT":
        return Translator.load(source) if source else Translator.load()
    if ":" in spec:
        return _imported(spec)
    raise InputError(
        f"no tool {spec!r}: use Calculator, Calendar, WikiSearch=SOURCE, QA=FILE, MT or MODULE:NAME"
    )


def read_facts(path: str | Path) -> dict[str, str]:
    """Question → answer, from a JSON object or from lines of question, tab, answer.

    Raises:
        InputError: no such file, or nothing of the kind in it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file of facts at {path}")
    text = read_file(path)
    if path.suffix == ".json":
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(facts, dict):
            raise InputError(f"{path} must hold an object question → answer")
        return {str(question): str(answer) for question, answer in facts.items()}
    pairs = [line.strip("\r").split("\t") for line in text.split("\n") if line.strip()]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise InputError(f"{path}, fact {number}: {len(pair)} columns; expected question, tab, answer")
    return {question: answer for question, answer in pairs}


def _imported(spec: str) -> Any:
    place, _, name = spec.rpartition(":")
    try:
        if place.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert found and found.loader
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, name)
    except (Exception, SystemExit) as error:  # the file's own code runs here, and may end in anything
        kind = type(error).__name__
        raise InputError(f"no tool {spec!r}: {kind}: {' '.join(str(error).split())[:300]}") from error
