"""Writing on: the continuation of a text, as it is written."""

from collections.abc import Generator
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, Field
from starlette.types import Receive, Scope, Send

from ...generate import stream_text
from ..bench import Bench, Prompt
from ..guard import Refused


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < 1e-3:  # logits divided by it would overflow
        raise ValueError("must be 0 (the most likely token) or at least 0.001")
    return temperature


class Sampling(Prompt):
    """How to go on from a text."""

    max_new_tokens: int = Field(200, ge=1, le=2000)
    temperature: Annotated[float, AfterValidator(_not_tiny)] = Field(0.8, ge=0, le=5)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)

    def options(self) -> dict:
        """As ``stream_text`` takes them."""
        return self.model_dump(include={"temperature", "top_k", "top_p", "min_p", "seed"})


class ClosingResponse(StreamingResponse):
    """Closes the generator that it sends also when the client leaves before the end."""

    def __init__(self, pieces: Generator[str, None, None]) -> None:
        super().__init__(pieces, media_type="text/plain; charset=utf-8")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send, then close."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with suppress(ValueError):  # a thread is at its next piece: it is closed when that one lets go
                self._pieces.close()


def router(bench: Bench) -> APIRouter:
    """The question."""
    api = APIRouter(prefix="/api")

    def written(ask: Sampling) -> Generator[str, None, None]:
        opened = bench.opened(ask.model)
        with bench.writing():
            pieces = stream_text(
                opened.model, opened.tokenizer, ask.text, ask.max_new_tokens, **ask.options()
            )
            first = next(pieces, "")
            yield ""
            yield first
            yield from pieces

    @api.post("/generate")
    def generate(ask: Sampling) -> StreamingResponse:
        """The continuation, as it is written."""
        pieces = written(ask)
        # Begun before the answer is: what cannot be sampled becomes an error instead of an empty text, and
        # only a generator that has begun runs its ``finally``, which frees the place, when it is dropped.
        try:
            next(pieces)
        except ValueError as error:
            raise Refused(422, str(error)) from None
        return ClosingResponse(pieces)

    return api
