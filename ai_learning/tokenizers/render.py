"""Tokens to look at: in colour, as a page, merge by merge, two tokenizers side by side; and statistics."""

import html
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .pretokenize import splitter

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from .bpe_tokenizer import BPETokenizer

COLOURS = (
    "#264653",
    "#6d3b7a",
    "#7a4a1f",
    "#1f5c3a",
    "#7a1f3d",
    "#34499a",
)  # dark: white text stays readable
_MARKS = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍", "\u00a0": "⍽"}


def visible(token: bytes) -> str:
    """A token as text with white space shown; bytes that are no whole character as hex.

    Example:
        >>> visible(" né\\n".encode()), visible("é".encode()[:1])
        ('·né⏎', '‹c3›')
    """
    try:
        text = token.decode()
    except UnicodeDecodeError:
        # whole characters stay readable, the bytes around them are shown one by one
        text = token.decode("utf-8", "backslashreplace")
        return "".join(
            f"‹{part[:2]}›{_show(part[2:])}" if i else _show(part) for i, part in enumerate(text.split("\\x"))
        )
    return _show(text)


def _show(text: str) -> str:
    return "".join(
        _MARKS.get(character) or (character if character.isprintable() else f"‹U+{ord(character):04X}›")
        for character in text
    )


def terminal(tokenizer: "BPETokenizer", ids: Iterable[int], *, show_ids: bool = False) -> "Text":
    """Coloured tokens for ``rich.print``; a line break after each newline.

    Args:
        tokenizer: whose ids they are.
        ids: any ids.
        show_ids: write each id behind its token.
    """
    from rich.style import Style
    from rich.text import Text

    text = Text()
    for number, i in enumerate(ids):
        token = tokenizer.token_bytes(i)
        style = Style(color="white", bgcolor=COLOURS[number % len(COLOURS)], bold=i in tokenizer._special_ids)
        text.append(visible(token), style)
        if show_ids:
            text.append(f"{i}", Style(color="bright_black"))
            text.append(" ")
        if token.endswith(b"\n"):
            text.append("\n")
    return text


def page(tokenizer: "BPETokenizer", ids: Iterable[int], title: str = "Tokens") -> str:
    """A self-contained HTML page: coloured tokens; hovering shows id, bytes and rank."""
    rank = {left + right: number for number, (left, right) in enumerate(tokenizer.merges)}
    spans, n_tokens, n_bytes = [], 0, 0
    for number, i in enumerate(ids):
        token = tokenizer.token_bytes(i)
        n_tokens, n_bytes = n_tokens + 1, n_bytes + len(token)
        kind = (
            "special" if i in tokenizer._special_ids else f"merge {rank[token]}" if token in rank else "byte"
        )
        label = html.escape(f"id {i} · bytes {token.hex(' ')} · {kind}", quote=True)
        spans.append(
            f'<span class="c{number % len(COLOURS)}" title="{label}">{html.escape(visible(token))}</span>'
        )
        if token.endswith(b"\n"):
            spans.append("<br>")
    colours = "".join(f".c{number}{{background:{colour}}}" for number, colour in enumerate(COLOURS))
    per_token = f"{n_bytes / n_tokens:.2f}" if n_tokens else "0"
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        "<style>body{font:16px/1.8 monospace;max-width:60em;margin:2em auto;padding:0 1em}"
        "span{color:#fff;padding:2px 0;overflow-wrap:anywhere}"
        f"{colours}</style>\n<h1>{html.escape(title)}</h1>\n"
        f"<p>{n_tokens} tokens, {n_bytes} bytes, {per_token} bytes a token. "
        "Hover a token for its id and bytes; · is a space, ⏎ a newline.</p>\n"
        f"<p>{''.join(spans)}</p>\n</html>\n"
    )


@dataclass(frozen=True)
class MergeStep:
    """One merge of a word: its rank (-1: the bytes to start from), the pair, and the tokens after it."""

    rank: int
    pair: tuple[bytes, bytes] | None
    tokens: list[bytes]


def merge_steps(tokenizer: "BPETokenizer", text: str) -> list[list[MergeStep]]:
    """How each word of ``text`` comes together: for each word the steps from bytes to its tokens.

    Example:
        >>> from ai_learning.tokenizers import BPETokenizer
        >>> tokenizer = BPETokenizer.train(["low low low"], 259, special_tokens=())
        >>> [step.tokens for step in merge_steps(tokenizer, "low")[0]]
        [[b'l', b'o', b'w'], [b'lo', b'w'], [b'low']]
    """
    rank = {pair: number for number, pair in enumerate(tokenizer.merges)}
    words = []
    for word in splitter(tokenizer.pattern)(text):
        tokens = [bytes([byte]) for byte in word.encode()]
        steps = [MergeStep(-1, None, tokens)]
        while True:
            found = [(rank[pair], i) for i, pair in enumerate(itertools.pairwise(tokens)) if pair in rank]
            if not found:
                break
            best, i = min(found)
            pair = tokens[i], tokens[i + 1]
            tokens = [*tokens[:i], pair[0] + pair[1], *tokens[i + 2 :]]
            steps.append(MergeStep(best, pair, tokens))
        words.append(steps)
    return words


def steps_table(tokenizer: "BPETokenizer", text: str) -> "Table":
    """``merge_steps`` as a table."""
    from rich.table import Table

    table = Table("rank", "merge", "tokens", title="merges, the earliest learned first")
    for steps in merge_steps(tokenizer, text):
        for step in steps:
            pair = "" if step.pair is None else " + ".join(visible(part) for part in step.pair)
            table.add_row(
                str(step.rank) if step.pair else "", pair, " ".join(visible(t) for t in step.tokens)
            )
        table.add_section()
    return table


def side_by_side(tokenizers: Mapping[str, "BPETokenizer"], text: str, *, show_ids: bool = False) -> "Table":
    """The same text by several tokenizers, with counts; special tokens written out in it are those tokens."""
    from rich.table import Table

    table = Table("tokenizer", "tokens", "bytes/token", "text", title="side by side", show_lines=True)
    n_bytes = len(text.encode("utf-8", "replace"))
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.encode(text, allowed_special="all")
        per_token = f"{n_bytes / max(1, len(ids)):.2f}"
        table.add_row(name, f"{len(ids):,}", per_token, terminal(tokenizer, ids, show_ids=show_ids))
    return table


@dataclass
class Statistics:
    """How a tokenizer does on some texts.

    Attributes:
        n_bytes: of all texts.
        n_tokens: of all texts.
        bytes_per_token: compression.
        fertility: tokens a word, for each text by its name (language): 1 means a token a word. Words are what
            white space separates; where there is none (Chinese, say), look at ``bytes_per_token_of``.
        bytes_per_token_of: compression for each text by its name.
        longest: the longest tokens of the vocabulary.
        most_used: tokens and how often they occur.
        unused: ids of ordinary tokens that do not occur.
    """

    n_bytes: int = 0
    n_tokens: int = 0
    bytes_per_token: float = 0.0
    fertility: dict[str, float] = field(default_factory=dict)
    bytes_per_token_of: dict[str, float] = field(default_factory=dict)
    longest: list[tuple[int, bytes]] = field(default_factory=list)
    most_used: list[tuple[int, bytes, int]] = field(default_factory=list)
    unused: list[int] = field(default_factory=list)


def statistics(tokenizer: "BPETokenizer", texts: Mapping[str, str], top: int = 20) -> Statistics:
    """Statistics of ``tokenizer`` on texts by name; special tokens written out in them are those tokens."""
    used: Counter[int] = Counter()
    result = Statistics()
    for name, text in texts.items():
        ids = tokenizer.encode(text, allowed_special="all")
        used.update(ids)
        n_bytes = len(text.encode("utf-8", "replace"))
        result.n_bytes += n_bytes
        result.n_tokens += len(ids)
        result.fertility[name] = len(ids) / max(1, len(text.split()))
        result.bytes_per_token_of[name] = n_bytes / max(1, len(ids))
    result.bytes_per_token = result.n_bytes / max(1, result.n_tokens)
    ordinary = {i: token for i, token in tokenizer.vocab.items() if i not in tokenizer._special_ids}
    result.longest = sorted(ordinary.items(), key=lambda item: (-len(item[1]), item[0]))[:top]
    result.most_used = [(i, tokenizer.vocab[i], count) for i, count in used.most_common(top)]
    result.unused = sorted(ordinary.keys() - used.keys())
    return result


def statistics_table(result: Statistics) -> "Table":
    """``Statistics`` as a table."""
    from rich.table import Table

    table = Table("figure", "value", title="statistics")
    table.add_row("tokens", f"{result.n_tokens:,}")
    table.add_row("bytes", f"{result.n_bytes:,}")
    table.add_row("bytes/token", f"{result.bytes_per_token:.3f}")
    for name, value in result.fertility.items():
        table.add_row(
            f"{name}: tokens/word, bytes/token", f"{value:.2f}, {result.bytes_per_token_of[name]:.2f}"
        )
    table.add_row("unused tokens", f"{len(result.unused):,}")
    table.add_row("most used", " ".join(f"{visible(token)}×{count}" for _, token, count in result.most_used))
    table.add_row(
        "longest",
        " ".join(visible(token[:40]) + ("…" if len(token) > 40 else "") for _, token in result.longest),
    )
    return table
