"""Tokens: a text as several tokenizers see it, and how its words come together merge by merge."""

import warnings
from collections.abc import Iterable
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from ...tokenizers import BPETokenizer, Tokenizer, encode_own
from ...tokenizers.render import merge_steps, visible
from ..bench import Bench, Name, Prompt, token_text
from ..guard import Refused

SHOWN = 4000  # tokens
LEARNED = "this text"


class Tokenize(Prompt):
    """Which tokenizers are asked."""

    tokenizers: list[Name] = Field(["model"], min_length=1, max_length=6)
    merges: int = Field(50, ge=0, le=1000)
    """how many the tokenizer named ``this text`` learns from the text itself"""


class Merges(Prompt):
    """Whose merges are replayed, on a short text."""

    text: str = Field(max_length=400)
    tokenizer: Name = "model"
    corpus: Annotated[str, Field(max_length=20_000)] = ""
    """what the tokenizer named ``this text`` learns from; the text itself when empty"""
    merges: int = Field(50, ge=0, le=1000)


def router(bench: Bench) -> APIRouter:
    """The panel's questions."""
    api = APIRouter(prefix="/api")

    def find(name: str, model: str, corpus: str, merges: int) -> Tokenizer:
        return (
            learn([corpus or " "], 256 + merges, special_tokens=())
            if name == LEARNED
            else bench.tokenizer(name, model)
        )

    @api.post("/tokens")
    def tokens(ask: Tokenize) -> dict[str, Any]:
        """The text's tokens by each tokenizer."""
        with bench.looking():
            n_bytes = len(ask.text.encode())
            found = [(name, find(name, ask.model, ask.text, ask.merges)) for name in ask.tokenizers]
            return {"n_bytes": n_bytes, "by": [describe(name, tok, ask.text) for name, tok in found]}

    @api.post("/merges")
    def merges(ask: Merges) -> dict[str, Any]:
        """Each word's steps from bytes to tokens, the earliest learned merge first."""
        with bench.looking():
            tokenizer = find(ask.tokenizer, ask.model, ask.corpus or ask.text, ask.merges)
            if not isinstance(tokenizer, BPETokenizer):
                raise Refused(422, "this tokenizer merges nothing that can be replayed: choose a BPE one")
            return {
                "words": [
                    [
                        {
                            "rank": step.rank,
                            "pair": None if step.pair is None else [visible(part) for part in step.pair],
                            "tokens": [visible(token) for token in step.tokens],
                        }
                        for step in steps
                    ]
                    for steps in merge_steps(tokenizer, ask.text)
                ]
            }

    return api


def learn(texts: Iterable[str], vocab_size: int, **options: Any) -> BPETokenizer:
    """A tokenizer of at most ``vocab_size`` ids: a short text has fewer pairs, and that is no matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BPETokenizer.train(texts, vocab_size, **options)


def describe(name: str, tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """What the page draws of one tokenizer."""
    ids = encode_own(tokenizer, text)
    rank: dict[bytes, int] = {}
    if isinstance(tokenizer, BPETokenizer):
        rank = {left + right: number for number, (left, right) in enumerate(tokenizer.merges)}
    shown = ids[:SHOWN]
    pieces = {i: tokenizer.decode_bytes([i]) for i in set(shown)}
    return {
        "name": name,
        "kind": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "n_merges": len(rank) or None,
        "n_tokens": len(ids),
        "ids": shown,
        "pieces": {
            i: {
                "text": token_text(tokenizer, i),
                "hex": data.hex(" "),
                "rank": rank.get(data),
                "line": data.endswith(b"\n"),
            }
            for i, data in pieces.items()
        },
    }
