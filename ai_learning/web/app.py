"""The playground's server: tokens, next-token probabilities and generated text of one model.

It answers only requests that name an allowed host and come from its own page, and reads no path that a
browser sends: the checkpoint is chosen where the server is started.
"""

import ipaddress
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import AfterValidator, BaseModel, Field
from starlette.types import Receive, Scope, Send

from ..generate import stream_text
from ..model import GPT
from ..tokenizers import Tokenizer

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_HOST = "*"


def allowed_hosts(address: str) -> tuple[str, ...]:
    """Values of the Host header to answer when the server listens on ``address``.

    On loopback only the names of this machine, so that a web page elsewhere cannot reach the server under a
    name that it made point here. On any other address all: a server cannot know what the network calls it.
    """
    if address == "localhost":
        return LOOPBACK
    try:
        loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        loopback = False
    return (*LOOPBACK, address) if loopback else (ANY_HOST,)


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < 1e-3:  # logits divided by it would overflow
        raise ValueError("must be 0 (the most likely token) or at least 0.001")
    return temperature


class Prompt(BaseModel):
    """What the page asks about."""

    text: str = Field(max_length=20_000)


class Sampling(Prompt):
    """How to go on from it."""

    max_new_tokens: int = Field(200, ge=1, le=2000)
    temperature: Annotated[float, AfterValidator(_not_tiny)] = Field(0.8, ge=0, le=5)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**64)


class _ClosingResponse(StreamingResponse):
    """Closes the generator that it sends also when the client leaves before the end."""

    def __init__(self, pieces: Generator[str, None, None]) -> None:
        super().__init__(pieces, media_type="text/plain; charset=utf-8")
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with suppress(ValueError):  # a thread is at its next piece: it is closed when that one lets go
                self._pieces.close()


def create_app(model: GPT, tokenizer: Tokenizer, name: str, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The app for one model.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        name: shown on the page.
        hosts: values of the Host header to answer, without port and brackets; see ``allowed_hosts``.
    """
    app = FastAPI(title="AI Learning", docs_url=None, redoc_url=None, openapi_url=None)
    busy = threading.Semaphore(2)  # texts being written at the same time

    @app.middleware("http")
    async def own_page_only(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if ANY_HOST not in hosts and _hostname(host) not in hosts:
            return JSONResponse({"detail": f"requests for {host!r} are not answered"}, status_code=400)
        if origin and origin.partition("://")[2] != host:
            return JSONResponse({"detail": f"requests from {origin} are not answered"}, status_code=403)
        return await call_next(request)

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input itself: a lone surrogate or a NaN in it cannot be sent back as JSON.
        detail = [{key: part[key] for key in ("type", "loc", "msg")} for part in error.errors()]
        return JSONResponse({"detail": detail}, status_code=422)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/model")
    def about() -> dict:
        return {"name": name, "parameters": model.n_params(), "config": model.config.__dict__}

    @app.post("/api/next")
    def next_tokens(prompt: Prompt) -> dict:
        """The text's tokens, and the logits of the most likely next ones."""
        ids = tokenizer.encode(prompt.text) or [tokenizer.eos_id or 0]
        context = ids[-model.config.block_size :]
        with torch.inference_mode():
            logits = model(torch.tensor([context], device=model.wte.weight.device))[0, -1].float().cpu()
        best = logits.topk(min(100, len(logits)))
        return {
            "tokens": [{"id": i, "text": _text(tokenizer, i)} for i in ids[-2000:]],
            "log_sum": float(logits.logsumexp(0)),
            "next": [
                {"id": i, "text": _text(tokenizer, i), "logit": logit}
                for i, logit in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ],
        }

    def written(ask: Sampling) -> Generator[str, None, None]:
        if not busy.acquire(blocking=False):
            raise HTTPException(429, "two texts are being written already: wait for one to end")
        try:
            options = ask.model_dump(exclude={"text", "max_new_tokens"})
            pieces = stream_text(model, tokenizer, ask.text, ask.max_new_tokens, **options)
            first = next(pieces, "")
            yield ""
            yield first
            yield from pieces
        finally:
            busy.release()

    @app.post("/api/generate")
    def generate(ask: Sampling) -> StreamingResponse:
        """The continuation, as it is written."""
        pieces = written(ask)
        # Begun before the answer is: what cannot be sampled becomes an error instead of an empty text, and
        # only a generator that has begun runs its ``finally``, which frees the place, when it is dropped.
        try:
            next(pieces)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        return _ClosingResponse(pieces)

    return app


def _hostname(host: str) -> str | None:
    """The Host header without port and brackets; ``None`` where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person can read it: text, bytes in hexadecimal, or its number."""
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode("utf-8") or f"<{token}>"
    except UnicodeDecodeError:
        return " ".join(f"{byte:02x}" for byte in data)
