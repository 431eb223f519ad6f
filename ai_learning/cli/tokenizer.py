"""``ai-learning tokenizer``: train, encode, decode, show, convert and measure tokenizers."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import InputError
from ..files import check_is_no_source, write_text
from .common import console, parse

if TYPE_CHECKING:
    from ..tokenizers import BPETokenizer

Format = Literal["folder", "tokenizer.json", "gpt2", "tiktoken", "minbpe"]


@dataclass(frozen=True)
class Train:
    """Learn a BPE vocabulary and save it as a folder that AutoTokenizer opens, too."""

    data: str = "builtin:reference"
    """learn from builtin:reference, builtin:stdlib, builtin:docstrings, a file, a folder, - or hf:NAME"""
    vocab_size: int = 8192
    """ids in all, special tokens included"""
    pattern: str = "gpt2"
    """how text is split: gpt2, gpt4, gpt4-original, nanochat, none, or a regular expression"""
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)
    """texts that are one id and never merged"""
    min_frequency: int = 1
    """no merge of a pair that is rarer"""
    tie_break: Literal["hf", "rustbpe", "minbpe", "cs336"] = "hf"
    """which pair wins among equally frequent ones: whose rule"""
    num_workers: int | None = None
    """threads that count words; two for a large text when left out"""
    counts_file: Path | None = None
    """keep the word counts here and go on from them next time"""
    out: Path = Path("runs/tokenizer")
    """folder to write"""


@dataclass(frozen=True)
class Encode:
    """Text to ids, in a line of numbers."""

    text: str | None = None
    """the text; standard input when left out"""
    tokenizer: str = "runs/tokenizer"
    """bytes, or a tokenizer's folder or file"""
    special: bool = False
    """take special tokens in the text as such; otherwise their text is text"""
    dropout: float = 0.0
    """BPE-dropout: probability of leaving a merge out"""
    seed: int | None = None
    """of the dropout"""
    out: Path | None = None
    """write the numbers to this file"""


@dataclass(frozen=True)
class Decode:
    """Ids to text."""

    ids: tuple[int, ...] = ()
    """the ids; from standard input when left out"""
    tokenizer: str = "runs/tokenizer"
    """bytes, or a tokenizer's folder or file"""
    out: Path | None = None
    """write the text to this file"""


@dataclass(frozen=True)
class Show:
    """Tokens in colour, merges step by step, tokenizers side by side, statistics."""

    text: str | None = None
    """the text; standard input when left out"""
    tokenizer: tuple[str, ...] = ("runs/tokenizer",)
    """folders or files; with two or more they are shown side by side"""
    ids: bool = False
    """write the id behind each token"""
    steps: bool = False
    """replay the merges of each word"""
    stats: bool = False
    """compression, fertility, longest and unused tokens"""
    data: str | None = None
    """show this source instead of a text (see train)"""
    max_characters: int = 2000
    """of --data that are shown; statistics take all"""
    out: Path | None = None
    """also write an HTML page"""


@dataclass(frozen=True)
class Convert:
    """A tokenizer in another tool's format."""

    source: Path
    """a folder, tokenizer.json, vocab.json (merges.txt beside it), .tiktoken or .model"""
    out: Path
    """what to write: a folder for the formats folder and gpt2, else a file"""
    to: Format = "folder"
    """folder (tokenizer.json and config), tokenizer.json, gpt2 (vocab.json, merges.txt), tiktoken, minbpe"""
    pattern: str = "gpt4"
    """of a .tiktoken source, which does not name its own"""
    special_tokens: tuple[str, ...] = ()
    """of a .tiktoken source, numbered behind it"""
    renumber: bool = False
    """minbpe: write even if ids change"""


@dataclass(frozen=True)
class Bench:
    """How fast a tokenizer is here, in CPU time on one thread, beside tiktoken if that is installed."""

    tokenizer: str = "runs/tokenizer"
    """folder or file"""
    data: str = "builtin:reference"
    """text to measure with (see train)"""
    repeat: int = 5
    """the best of so many runs counts"""
    max_bytes: int = 5_000_000
    """of the data"""
    out: Path | None = None
    """also write the figures to this JSON file"""

    def __post_init__(self) -> None:
        for name in ("repeat", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


def main(args: list[str]) -> int | None:
    """Entry point."""
    commands: dict[str, tuple[type, Callable]] = {
        "train": (Train, _train),
        "encode": (Encode, _encode),
        "decode": (Decode, _decode),
        "show": (Show, _show),
        "convert": (Convert, _convert),
        "bench": (Bench, _bench),
    }
    if not args or args[0] in ("-h", "--help"):
        console.print("usage: ai-learning tokenizer COMMAND [options]\n", markup=False)
        for name, (kind, _) in commands.items():
            console.print(f"  {name:<8} {(kind.__doc__ or '').splitlines()[0]}", markup=False)
        console.print("\n`ai-learning tokenizer COMMAND --help` shows every option with its default.")
        return 0 if args else 2
    name, *rest = args
    if name not in commands:
        raise InputError(f"no command {name!r}: use {', '.join(commands)}")
    kind, run = commands[name]
    return run(parse(kind, rest, f"tokenizer {name}"))


def open_bpe(
    place: str | Path, pattern: str = "gpt4", special_tokens: tuple[str, ...] = ()
) -> "BPETokenizer":
    """A BPE tokenizer from a folder or from a file of any known format; ``bytes`` is one without merges.

    Raises:
        InputError: nothing there, or no BPE tokenizer.
    """
    from ..tokenizers import BPETokenizer, ByteTokenizer, load

    if place == "bytes":
        return ByteTokenizer().as_bpe()
    path = Path(place)
    if path.is_dir():
        tokenizer = load(path)
        if not isinstance(tokenizer, BPETokenizer):
            raise InputError(f"{path} holds a {type(tokenizer).__name__}, not a BPE tokenizer")
        return tokenizer
    if not path.is_file():
        raise InputError(f"no tokenizer at {path}: train one with `ai-learning tokenizer train --out {path}`")
    if path.suffix == ".tiktoken":
        return BPETokenizer.from_tiktoken_file(path, pattern, special_tokens=special_tokens)
    if path.suffix == ".model":
        return BPETokenizer.from_minbpe_file(path)
    if path.suffix == ".json" and path.with_name("merges.txt").is_file() and path.name != "tokenizer.json":
        return BPETokenizer.from_gpt2_files(path, path.with_name("merges.txt"))
    return BPETokenizer.from_tokenizer_json(path)


def _train(options: Train) -> None:
    from ..text import read_texts, source_files
    from ..tokenizers import BPETokenizer

    started = time.perf_counter()
    train: Callable[..., BPETokenizer] = BPETokenizer.train
    data: object
    source = Path(options.data)
    if source.is_file() or source.is_dir():  # without holding whole files in memory
        train, data = BPETokenizer.train_from_files, source_files(source)
    else:
        data = read_texts(options.data)
    tokenizer = train(
        data,
        options.vocab_size,
        pattern=None if options.pattern == "none" else options.pattern,
        special_tokens=options.special_tokens,
        num_workers=options.num_workers,
        min_frequency=options.min_frequency,
        tie_break=options.tie_break,
        counts_file=options.counts_file,
        progress=sys.stderr.isatty(),
    )
    tokenizer.save(options.out)
    seconds = time.perf_counter() - started
    console.print(
        f"{tokenizer.vocab_size:,} ids, {len(tokenizer.merges):,} merges in {seconds:.1f} s "
        f"→ {options.out} (fingerprint {tokenizer.fingerprint})",
        markup=False,
    )


def _input(text: str | None) -> str:
    return sys.stdin.buffer.read().decode("utf-8", "replace") if text is None else text


def _output(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_text(out, text)


def _encode(options: Encode) -> None:
    text = _input(options.text)
    if options.tokenizer == "bytes":
        from ..tokenizers import ByteTokenizer

        if options.dropout:
            raise InputError("--dropout leaves out merges, and bytes have none")
        ids = ByteTokenizer().encode(text)
    else:
        ids = open_bpe(options.tokenizer).encode(
            text,
            allowed_special="all" if options.special else (),
            disallowed_special=(),
            dropout=options.dropout,
            seed=options.seed,
        )
    _output(" ".join(map(str, ids)) + "\n", options.out)


def _decode(options: Decode) -> None:
    from ..tokenizers import ByteTokenizer

    ids = list(options.ids)
    if not ids:
        words = _input(None).replace(",", " ").split()
        bad = next((word for word in words if not word.isdigit()), None)
        if bad is not None:
            raise InputError(f"{bad!r} is not an id: standard input must hold numbers")
        ids = [int(word) for word in words]
    tokenizer = ByteTokenizer() if options.tokenizer == "bytes" else open_bpe(options.tokenizer)
    _output(tokenizer.decode(ids), options.out)


def _show(options: Show) -> None:
    from ..text import read_text
    from ..tokenizers import render

    if not options.tokenizer:
        raise InputError("--tokenizer names none: give a folder, or several")
    if options.data is not None and options.text is not None:
        raise InputError("--text and --data are two texts: give one of them")
    if options.max_characters < 1:
        raise InputError(f"max_characters={options.max_characters} must be at least 1")
    if options.out is not None:
        check_is_no_source(options.out, [options.data] if options.data else [])
    tokenizers = {place: open_bpe(place) for place in options.tokenizer}
    whole = read_text(options.data) if options.data else _input(options.text)
    text = whole[: options.max_characters] if options.data else whole
    first = next(iter(tokenizers.values()))
    ids = first.encode(text, allowed_special="all")
    if len(tokenizers) > 1:
        console.print(render.side_by_side(tokenizers, text, show_ids=options.ids))
    else:
        console.print(render.terminal(first, ids, show_ids=options.ids))
        console.print(f"{len(ids):,} tokens, {len(text.encode('utf-8', 'replace')):,} bytes")
    if options.steps:
        console.print(render.steps_table(first, text))
    if options.stats:
        for place, tokenizer in tokenizers.items():
            name = options.data or "text"
            console.print(place, markup=False)
            console.print(render.statistics_table(render.statistics(tokenizer, {name: whole})))
    if options.out:
        write_text(options.out, render.page(first, ids, title=f"Tokens of {options.tokenizer[0]}"))


def _convert(options: Convert) -> None:
    tokenizer = open_bpe(options.source, options.pattern, options.special_tokens)
    out = options.out
    if options.to == "folder":
        tokenizer.save(out)
    elif options.to == "tokenizer.json":
        tokenizer.to_tokenizer_json(out)
    elif options.to == "gpt2":
        tokenizer.to_gpt2_files(out / "vocab.json", out / "merges.txt")
    elif options.to == "tiktoken":
        tokenizer.to_tiktoken_file(out)
    else:
        tokenizer.to_minbpe_file(out, renumber=options.renumber)
    console.print(f"{tokenizer.vocab_size:,} ids → {out} ({options.to})", markup=False)


def _bench(options: Bench) -> None:
    import json

    from rich.table import Table

    from ..text import read_text
    from ..tokenizers.fast_encoder import FastEncoder

    tokenizer = open_bpe(options.tokenizer)
    text = read_text(options.data).encode("utf-8", "replace")[: options.max_bytes].decode("utf-8", "ignore")
    size = len(text.encode())
    compiled = tokenizer.prepare()
    ids = tokenizer.encode_to_numpy(text, disallowed_special=())
    as_list = ids.tolist()

    def best(run: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> float:
        times = []
        for _ in range(options.repeat):
            prepare()
            started = time.process_time()
            run()
            times.append(time.process_time() - started)
        return size / min(times) / 1e6

    jobs: dict[str, Callable[[], object]] = {
        "encode to an array": lambda: tokenizer.encode_to_numpy(text, disallowed_special=()),
        "encode to a list": lambda: tokenizer.encode_ordinary(text),
        "decode a list": lambda: tokenizer.decode(as_list),
        "decode an array": lambda: tokenizer.decode(ids),
        "plain Python, warm": lambda: tokenizer._words.encode(text),
    }
    figures = {name: best(run) for name, run in jobs.items()}
    if compiled:
        fresh: list[FastEncoder] = []
        figures["encode, cold cache"] = best(
            lambda: fresh[-1].encode(text), lambda: fresh.append(FastEncoder(tokenizer))
        )
    try:
        import tiktoken
    except ImportError:
        pass
    else:
        special = set(tokenizer.special_tokens.values())
        ranks = {token: i for i, token in tokenizer.vocab.items() if i not in special}
        peer = tiktoken.Encoding(
            "peer",
            pat_str=tokenizer.pattern.regex,
            mergeable_ranks=ranks,
            special_tokens=tokenizer.special_tokens,
        )
        figures["tiktoken encode"] = best(lambda: peer.encode_ordinary(text))
        figures["tiktoken decode"] = best(lambda: peer.decode(as_list))
        if peer.encode_ordinary(text) != as_list:
            console.print("ids differ from tiktoken's: this vocabulary or pattern is not one it can express")
    table = Table(
        "what", "MB/s", title=f"{size:,} bytes, {len(ids):,} tokens, CPU time, best of {options.repeat}"
    )
    for name, value in figures.items():
        table.add_row(name, f"{value:,.1f}")
    console.print(table)
    if options.out:
        write_text(
            options.out, json.dumps({"bytes": size, "tokens": len(ids), "MB/s": figures}, indent=2) + "\n"
        )
