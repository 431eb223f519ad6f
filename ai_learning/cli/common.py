"""What several commands need: tokenizers by name, data by source, progress of a training run."""

import io
from contextlib import redirect_stderr
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..errors import InputError
from ..text import read_texts
from ..tokenizers import ByteTokenizer, Tokenizer, load

if TYPE_CHECKING:
    import torch

    from ..model import GPT, GPTConfig

DEMO_MODEL = "runs/demo/gpt1_tiny_pretrain.pt"
"""what ``ai-learning demo`` leaves: most commands' default"""
console = Console(highlight=False)


def parse(kind: Any, args: list[str], command: str, default: Any = None) -> Any:
    """Options of ``ai-learning command``; the flags of nested configs need no prefix.

    Raises:
        InputError: what tyro shows in a box, as one line.
    """
    import tyro

    heard = io.StringIO()
    try:
        with redirect_stderr(heard):
            config = (tyro.conf.OmitArgPrefixes,)
            given = {} if default is None else {"default": default}
            return tyro.cli(kind, args=args, prog=f"ai-learning {command}", config=config, **given)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise InputError(_one_line(heard.getvalue(), command)) from None


def _one_line(box: str, command: str) -> str:
    """tyro's framed message without its frame: the complaint, and the options it suggests."""
    lines = [line.strip().strip("│|").strip() for line in box.splitlines()[1:]]  # the first holds the title
    lines = ["" if set(line) <= set("─╰╯+-") else line for line in lines]  # rules part the paragraphs
    parts = _split(lines)
    message = " ".join(parts[0]) if parts else box.strip()
    message = message.removeprefix("Error parsing ").removeprefix("model: ").removeprefix("train: ")
    guesses = [line.split()[0] for part in parts[1:] for line in part if line.startswith("--")]
    if guesses and message.startswith("Unrecognized"):
        message += f"; did you mean {' or '.join(dict.fromkeys(guesses))}?"
    return f"{message} (ai-learning {command} --help shows every option)"


def _split(lines: list[str]) -> list[list[str]]:
    """Paragraphs: the frame's rules became empty lines."""
    parts: list[list[str]] = [[]]
    for line in lines:
        if line:
            parts[-1].append(line)
        else:
            parts.append([])
    return [part for part in parts if part]


def flag(args: list[str], name: str, default: str) -> str:
    """Value of ``--name`` before all is parsed: some defaults depend on others (a preset's sizes)."""
    for number, arg in enumerate(args):
        if arg == name and number + 1 < len(args):
            return args[number + 1]
        if arg.startswith(name + "="):
            return arg.split("=", 1)[1]
    return default


def tokenizer_by_name(name: str) -> Tokenizer:
    """``bytes``, or a folder that a tokenizer was saved in."""
    return ByteTokenizer() if name == "bytes" else load(name)


def open_language_model(
    checkpoint: str, tokenizer: str | None = None, device: "torch.device | str" = "cpu"
) -> "tuple[GPT, Tokenizer, dict[str, Any]]":
    """``open_model``, with the tokenizer of that name in place of its own.

    Raises:
        InputError: no tokenizer, neither its own nor another.
    """
    from ..checkpoint import open_model  # brings torch, which not every command needs

    model, found, beside = open_model(checkpoint, device, with_tokenizer=tokenizer is None)
    if tokenizer is not None:
        found = tokenizer_by_name(tokenizer)
    if found is None:
        raise InputError(f"{checkpoint} names no tokenizer: give one with --tokenizer")
    return model, found, beside


def read_tokens(source: str, tokenizer: Tokenizer) -> np.ndarray:
    """Ids of a source of text, or of a token file (``*.tokens``, through a memory map)."""
    from ..batches import open_tokens, tokenize

    if source.endswith(".tokens"):
        return open_tokens(source, tokenizer.vocab_size, tokenizer.fingerprint).tokens
    return tokenize(read_texts(source), tokenizer)


def fit_vocabulary(config: "GPTConfig", tokenizer: Tokenizer) -> "GPTConfig":
    """The config with room for every id of the tokenizer.

    Raises:
        ValueError: a vocabulary asked for that is too small.
    """
    if config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"vocab_size={config.vocab_size} is too small: the tokenizer has {tokenizer.vocab_size} ids"
        )
    return config


class TrainingProgress:
    """A listener for ``train``: a bar with loss, speed and time left; plain lines where there is no terminal.

    Args:
        total: steps.
        title: shown before the bar.
    """

    def __init__(self, total: int, title: str = "training") -> None:
        self.total, self.title = total, title
        self.live = console.is_terminal
        self.figures: dict[str, Any] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.last_line = -1
        self.last_text = ""

    def __enter__(self) -> "TrainingProgress":
        self.progress.start()
        self.task = self.progress.add_task(self.title, total=self.total, figures="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        if not self.live and kind is None:
            self._line()

    def __call__(self, row: dict[str, Any]) -> None:
        """Take one row of metrics."""
        if "sample" in row:
            self.progress.print(f"--- step {row['step']} ---\n{row['sample']}\n---", markup=False)
            return
        self.figures |= row
        self.progress.update(self.task, completed=row["step"], figures=self._text())
        if not self.live and (row["step"] - self.last_line) >= max(1, self.total // 10):
            self._line()

    def _line(self) -> None:
        self.last_line = self.figures.get("step", 0)
        text = f"{self.title}: step {self.last_line}/{self.total}, {self._text()}"
        if text != self.last_text:
            print(text, flush=True)
        self.last_text = text

    def _text(self) -> str:
        names = {
            "loss": "loss {:.3f}",
            "val_loss": "held out {:.3f}",
            "val_accuracy": "accuracy {:.1%}",
            "tokens_per_s": "{:,.0f} tokens/s",
            "mfu": "MFU {:.1%}",
            "compile_s": "compiled in {:.0f} s",
        }
        return ", ".join(
            text.format(self.figures[name]) for name, text in names.items() if name in self.figures
        )
