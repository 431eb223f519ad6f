"""What several commands need: tokenizers by name, data by source, progress of a training run."""

import io
import warnings
from contextlib import redirect_stderr
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import TracebackType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

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
from ..run_folder import read_options, with_absolute_paths
from ..text import read_texts
from ..token_file import SUFFIX, Shards, holds_tokens, is_token_file
from ..tokenizers import ByteTokenizer, Tokenizer, load

if TYPE_CHECKING:
    import torch

    from ..model import GPT, GPTConfig
    from ..train import TrainConfig

DEMO_MODEL = "runs/demo/gpt1_tiny_pretrain.pt"
"""what ``ai-learning demo`` leaves: most commands' default"""
console = Console(highlight=False)
Options = TypeVar("Options")
"""the dataclass of a command's options"""


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
    """Value of ``--name`` before all is parsed: some defaults depend on others (a preset's sizes).

    Of several the last counts, as in what is parsed later.
    """
    value = default
    for arg, following in zip(args, [*args[1:], None], strict=True):
        if arg == name and following is not None:
            value = following
        elif arg.startswith(name + "="):
            value = arg.split("=", 1)[1]
    return value


def to_save(options: Any, command: str, *paths: str) -> dict[str, Any]:
    """A command's options for ``run.json``; those named by ``paths`` hold from any folder."""
    record = {**asdict(options), "command": command, "resume": False}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in record.items()}
    return with_absolute_paths(plain, *paths)


def to_resume(kind: type[Options], args: list[str], command: str) -> Options | None:
    """With ``--resume``, what `to_save` kept in the folder ``--out``.

    Raises:
        InputError: no such run, or one whose options are not this version's.
    """
    if "--resume" not in args:
        return None
    out, hints = flag(args, "--out", str(vars(kind)["out"])), get_type_hints(kind)
    saved = read_options(out, command)
    unknown = saved.keys() - {one.name for one in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise InputError(f"{out}/run.json has options of another version: {', '.join(sorted(unknown))}")
    try:
        return kind(**{name: _as(hints[name], value) for name, value in saved.items()} | {"out": Path(out)})
    except TypeError as error:
        reason = str(error).replace("__init__() got", "has")
        raise InputError(f"{out}/run.json is damaged, or of another version: {reason}") from None


def _as(hint: Any, value: Any) -> Any:
    """A value from JSON, as its type hint has it."""
    if get_origin(hint) in (Union, UnionType) and value is not None:
        hint = next(one for one in get_args(hint) if one is not type(None))
    if value is None:
        return None
    if is_dataclass(hint):
        return hint(**value)  # type: ignore[operator]
    kind = get_origin(hint) or hint
    return kind(value) if kind in (Path, tuple) else value


def tokenizer_by_name(name: str) -> Tokenizer:
    """``bytes``, or a folder that a tokenizer was saved in."""
    return ByteTokenizer() if name == "bytes" else load(name)


def open_language_model(
    checkpoint: str, tokenizer: str | None = None, device: "torch.device | str" = "cpu"
) -> "tuple[GPT, Tokenizer, dict[str, Any]]":
    """``open_model``, with the tokenizer of that name where its own is not beside it.

    Raises:
        InputError: no tokenizer, neither its own nor another, or another than its own.
    """
    from ..checkpoint import open_model  # brings torch, which not every command needs

    given = None if tokenizer is None else tokenizer_by_name(tokenizer)
    model, found, beside = open_model(checkpoint, device, tokenizer=given)
    if found is None:
        raise InputError(f"{checkpoint} names no tokenizer: give one with --tokenizer")
    return model, found, beside


def check_out_file(path: Path | None) -> None:
    """Refuse, before any work is done, a path that no file can be written to.

    Raises:
        InputError: it is a folder, or stands below a file.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"--out {path} is a folder: give the name of a file")
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise InputError(f"--out {path} cannot be written: {above} is no folder")


def read_tokens(source: str, tokenizer: Tokenizer) -> np.ndarray | Shards:
    """Ids of a source of text, or of a token file or a folder of them (through memory maps)."""
    from ..batches import open_tokens, tokenize

    path = Path(source)
    if source.endswith(SUFFIX) or (path.is_file() and is_token_file(path)) or holds_tokens(path):
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


def warn_of_warmup(how: "TrainConfig") -> None:
    """Say where the learning rate does not get to what was asked for."""
    from ..distributed import world

    if how.warmup > how.steps and world().is_main:
        warnings.warn(
            f"warmup={how.warmup} is more than steps={how.steps}: the learning rate ends at "
            f"{how.lr * how.steps / how.warmup:.2g} and never reaches lr={how.lr}",
            stacklevel=2,
        )


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
        if "note" in row:
            self.say(row["note"])
            return
        self.figures |= row
        self.progress.update(self.task, completed=row["step"], figures=self._text())
        if not self.live and (row["step"] - self.last_line) >= max(1, self.total // 10):
            self._line()

    def say(self, text: str) -> None:
        """One line between the others."""
        if self.live:
            self.progress.print(text, markup=False)
        else:
            print(text, flush=True)

    def _line(self) -> None:
        if not self.figures:  # a run that was finished already
            return
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
