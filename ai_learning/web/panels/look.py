"""Attention and the next token: what one forward pass shows."""

import base64
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastapi import APIRouter
from pydantic import Field

from ...shapes import Tokens
from ...tokenizers import encode_own
from ...trace import Trace, logit_lens, record
from ..bench import Bench, Opened, Prompt, token_text

WEIGHTS = 2**21  # attention weights in one answer: 4 MiB
NAMED = 200  # of the most likely tokens
LENS_TOP = 5


class At(Prompt):
    """Where in the text the next token is asked for."""

    at: int | None = Field(None, ge=0, le=10**6)
    """number of the token whose successor is predicted, among those in ``tokens``; the last by default"""


def router(bench: Bench) -> APIRouter:
    """The panels' questions."""
    api = APIRouter(prefix="/api")

    @api.post("/attention")
    def attention(ask: Prompt) -> dict[str, Any]:
        """All weights of all heads over the end of the text, as 16-bit numbers: weight · 65535."""
        opened = bench.opened(ask.model)
        config = opened.model.config
        longest = math.isqrt(WEIGHTS // (config.n_layer * config.n_head))
        with bench.looking(), traced(opened, ask.text, longest) as (ids, dropped, trace):
            weights = torch.stack([w[0] for w in trace.attention]).float().cpu()  # (L, H, T, T)
        return {
            "tokens": named(opened, ids),
            "dropped": dropped,
            "n_layer": weights.size(0),
            "n_head": weights.size(1),
            "weights": packed((weights * 65535).round().to(torch.uint16)),
        }

    @api.post("/next")
    def next_token(ask: At) -> dict[str, Any]:
        """Every logit of the next token, the largest first, and what each layer would have said."""
        opened = bench.opened(ask.model)
        with (
            bench.looking(),
            traced(opened, ask.text, opened.model.config.block_size) as (ids, dropped, trace),
        ):
            at = len(ids) - 1 if ask.at is None else min(ask.at, len(ids) - 1)
            lens = logit_lens(opened.twin, [r[:, at : at + 1] for r in trace.residual])[:, 0, 0].float().cpu()
            assert trace.logits is not None
            logits = trace.logits[0, at].float().cpu()  # (V,)
        ordered, order = logits.sort(descending=True, stable=True)
        best = int(order[0])
        return {
            "tokens": named(opened, ids),
            "dropped": dropped,
            "at": at,
            "logits": packed(ordered),
            "names": named(opened, order[:NAMED].tolist()),
            "lens": [
                {
                    "top": [
                        {"text": token_text(opened.tokenizer, i), "p": p}
                        for p, i in zip(*(x.tolist() for x in row.softmax(-1).topk(LENS_TOP)), strict=True)
                    ],
                    "p_best": float(row.softmax(-1)[best]),
                    "rank_best": int((row > row[best]).sum()) + 1,
                }
                for row in lens
            ],
        }

    return api


@contextmanager
def traced(opened: Opened, text: str, longest: int) -> Iterator[tuple[list[int], int, Trace]]:
    """The ids at the end of ``text`` that are looked at, how many before them are not, and the trace."""
    ids = encode_own(opened.tokenizer, text) or [opened.tokenizer.eos_id or 0]
    window = ids[-min(longest, opened.model.config.block_size) :]
    idx: Tokens = torch.tensor([window], device=opened.model.wte.weight.device)
    with opened.looking, torch.inference_mode(), record(opened.twin) as trace:
        opened.twin(idx)
        yield window, len(ids) - len(window), trace


def named(opened: Opened, ids: list[int]) -> list[dict[str, Any]]:
    """Ids with their texts."""
    return [{"id": i, "text": token_text(opened.tokenizer, i)} for i in ids]


def packed(values: torch.Tensor) -> str:
    """Numbers in the machine's order (little-endian on all that PyTorch runs on), in base64."""
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
