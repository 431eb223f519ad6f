"""``ai-learning data prepare``: a corpus into token files that know their tokenizer."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .common import console, parse


@dataclass(frozen=True)
class Prepare:
    """Text into a token file, or into a folder of shards; the tokenizer's fingerprint goes with it."""

    data: str = "builtin:reference"
    """builtin:reference, builtin:stdlib, builtin:docstrings, a file, a folder, - or hf:NAME"""
    tokenizer: str = "bytes"
    """bytes, or a tokenizer's folder"""
    shard_tokens: int | None = None
    """make shards of so many tokens each, which an interrupted run goes on with; files and folders only"""
    num_workers: int | None = None
    """threads that encode; one when left out"""
    special: bool = True
    """take special tokens in the text as such (a corpus with <|endoftext|> between documents)"""
    out: Path = Path("runs/data.tokens")
    """the token file; with --shard-tokens a folder"""

    def __post_init__(self) -> None:
        if self.shard_tokens is not None and self.out.exists() and not self.out.is_dir():
            raise ValueError(f"out={self.out} is a file: with --shard-tokens name a folder")


def main(args: list[str]) -> int | None:
    """Entry point."""
    if not args or args[0] in ("-h", "--help"):
        console.print(
            "usage: ai-learning data prepare [options]\n\n  prepare  " + (Prepare.__doc__ or ""), markup=False
        )
        console.print("\n`ai-learning data prepare --help` shows every option with its default.")
        return 0 if args else 2
    if args[0] != "prepare":
        raise InputError(f"no command {args[0]!r}: use prepare")
    options = parse(Prepare, args[1:], "data prepare")
    _prepare(options)
    return None


def _prepare(options: Prepare) -> None:
    from ..files import check_is_no_source
    from ..text import read_texts, source_files
    from ..token_file import TokenFileWriter
    from ..tokenizers import BPETokenizer
    from .common import check_out_file, tokenizer_by_name

    check_out_file(options.out if options.shard_tokens is None else None)
    tokenizer = tokenizer_by_name(options.tokenizer)
    source = Path(options.data)
    check_is_no_source(options.out, [source])
    if isinstance(tokenizer, BPETokenizer) and (source.is_file() or source.is_dir()):
        files = source_files(source)
        with _progress(sum(file.stat().st_size for file in files)) as advance:
            report = tokenizer.encode_files(
                files,
                options.out,
                options.num_workers,
                shard_tokens=options.shard_tokens,
                allowed_special="all" if options.special else (),
                on_bytes=advance,
            )
        n_tokens, n_documents, n_bytes = report.tokens, report.documents, report.n_bytes
        where = f"{options.out} ({report.shards} shards)" if options.shard_tokens else str(options.out)
    elif options.shard_tokens is not None:
        raise InputError("--shard-tokens needs files or a folder, and a BPE tokenizer")
    else:
        n_bytes = n_documents = 0
        with (
            _progress(None) as advance,
            TokenFileWriter(options.out, tokenizer.vocab_size, tokenizer.fingerprint) as writer,
        ):
            for text in read_texts(options.data):
                if isinstance(tokenizer, BPETokenizer):
                    allowed = "all" if options.special else ()
                    writer.add(
                        tokenizer.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
                    )
                else:
                    writer.add(tokenizer.encode(text))
                if tokenizer.eos_id is not None:
                    writer.add([tokenizer.eos_id])
                writer.end_document()
                size = len(text.encode("utf-8", "replace"))
                n_documents, n_bytes = n_documents + 1, n_bytes + size
                advance(size)
        n_tokens, where = writer.n_tokens, str(options.out)
    console.print(
        f"{n_documents:,} documents, {n_bytes:,} bytes, {n_tokens:,} tokens "
        f"({n_bytes / max(1, n_tokens):.2f} bytes a token) → {where} (fingerprint {tokenizer.fingerprint})",
        markup=False,
    )


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("encoding"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as view:
        task = view.add_task("encoding", total=total)
        yield lambda n: view.advance(task, n)
