"""What the panels share: the models and tokenizers that can be asked for by name, and how many may ask.

A browser names things (``"demo"``, ``"run-2"``); only what the server itself was given or made has a name, so
that no path from a browser reaches the file system.
"""

import copy
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from ..checkpoint import open_model
from ..errors import InputError
from ..model import GPT
from ..text import read_texts
from ..tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from ..tokenizers.render import visible
from .guard import Refused

MAX_TEXT = 20_000  # characters
SERVED = "served"  # the model that the server was started with
_RUN = re.compile(r"run-[0-9]{1,4}")


Name = Annotated[str, Field(max_length=200)]


class Prompt(BaseModel):
    """A text, and the model that is asked about it."""

    text: str = Field(max_length=MAX_TEXT)
    model: Name = SERVED


@dataclass
class Opened:
    """A model that can be asked."""

    name: str
    model: GPT
    tokenizer: Tokenizer
    source: str | None = None
    """as ``open_model`` takes it, for another process"""
    looking: threading.Lock = field(default_factory=threading.Lock)
    """held while ``twin`` is recorded"""

    def __post_init__(self) -> None:
        # Recording exchanges functions inside the model. Texts are written by the model itself meanwhile, so
        # it is a twin that is recorded: modules of its own around the very same weights.
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self.twin: GPT = copy.deepcopy(self.model, {id(tensor): tensor for tensor in tensors})


class Bench:
    """Models, tokenizers and places by name.

    Args:
        served: the model that the server was started with.
        tokenizers: to compare with, by the name to show.
        runs: the folder of runs; the page's own trainings go into ``runs/web``.
        adapters: folders in PEFT's format, by the name to show.
        agents: files of Toolformer's candidates and Reflexion's traces, or folders that hold some.
        device: where models of later runs go.
    """

    def __init__(
        self,
        served: Opened,
        *,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        runs: Path = Path("runs"),
        adapters: Mapping[str, Path] | None = None,
        agents: Sequence[Path] = (),
        device: str = "cpu",
    ) -> None:
        self.served, self.device = served, device
        self.runs, self.own_runs = runs, runs / "web"
        self.adapters, self.agents = dict(adapters or {}), tuple(agents)
        self._tokenizers: dict[str, Tokenizer] = {"bytes": ByteTokenizer(), **(tokenizers or {})}
        self._lock = threading.Lock()
        self._trained: tuple[tuple[str, int], Opened] | None = None  # the run opened last, and its age
        self._writing = threading.BoundedSemaphore(2)
        self._looking = threading.BoundedSemaphore(4)

    # --- models ---------------------------------------------------------------------------------------------

    def model_names(self) -> list[str]:
        """The served model, and the page's own trainings that have weights."""
        found = [p.parent.name for p in self.own_runs.glob("run-*/best.pt") if _RUN.fullmatch(p.parent.name)]
        return [SERVED, *sorted(found, key=lambda name: int(name.removeprefix("run-")), reverse=True)]

    def opened(self, name: str) -> Opened:
        """The model called ``name``.

        Raises:
            Refused: no such model, or one that cannot be opened.
        """
        if name == SERVED:
            return self.served
        path = self.own_runs / name / "best.pt"
        if not _RUN.fullmatch(name) or not path.is_file():
            raise Refused(
                404, f"there is no model {name[:40]!r}: choose one of {', '.join(self.model_names())}"
            )
        key = (name, path.stat().st_mtime_ns)
        with self._lock:
            if self._trained is None or self._trained[0] != key:
                try:
                    model, tokenizer, _ = open_model(path, self.device)
                except InputError as error:
                    raise Refused(409, f"{name} cannot be opened: {error}") from None
                assert tokenizer is not None  # every run of the page has one
                self._trained = (key, Opened(name, model, tokenizer, str(path)))
            return self._trained[1]

    # --- tokenizers -----------------------------------------------------------------------------------------

    def tokenizer_names(self) -> list[str]:
        """The model's own first."""
        return list(dict.fromkeys(["model", *self._tokenizers, "reference-1000"]))

    def tokenizer(self, name: str, model: str = SERVED) -> Tokenizer:
        """The tokenizer called ``name``; ``model`` is the one that ``model`` was trained with.

        Raises:
            Refused: no such tokenizer.
        """
        if name == "model":
            return self.opened(model).tokenizer
        with self._lock:
            if name == "reference-1000" and name not in self._tokenizers:
                texts = read_texts("builtin:reference")
                return self._tokenizers.setdefault(name, BPETokenizer.train(texts, 1000))
            if name in self._tokenizers:
                return self._tokenizers[name]
        raise Refused(
            404, f"there is no tokenizer {name[:40]!r}: choose from {', '.join(self.tokenizer_names())}"
        )

    # --- places ---------------------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A place for a text being written; at most two at a time."""
        if not self._writing.acquire(blocking=False):
            raise Refused(429, "two texts are being written already: wait for one to end")
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """A place for a question to a model; more than four wait, and not for ever."""
        if not self._looking.acquire(timeout=20):
            raise Refused(429, "the models are busy with other questions: try again in a moment")
        try:
            yield
        finally:
            self._looking.release()


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person can read it: white space shown, bytes that are no character in hexadecimal."""
    try:
        data = tokenizer.decode_bytes([token])
    except (KeyError, ValueError, IndexError):  # models have more rows than their tokenizer has ids
        data = b""
    if data:
        return visible(data)
    return "‹end›" if token == tokenizer.eos_id else f"‹{token}›"
