"""The playground's server: tokens, next-token probabilities and generated text of one model.

It answers only requests that name an allowed host and come from its own page, and reads no path that a
browser sends: the checkpoint is chosen where the server is started.
"""

import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import torch
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ..generate import stream_text
from ..model import GPT
from ..tokenizers import Tokenizer

STATIC = Path(__file__).parent / "static"


class Prompt(BaseModel):
    """What the page asks about."""

    text: str = Field(max_length=20_000)


class Sampling(Prompt):
    """How to go on from it."""

    max_new_tokens: int = Field(200, ge=1, le=2000)
    temperature: float = Field(0.8, ge=0, le=5)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0)


def create_app(
    model: GPT, tokenizer: Tokenizer, name: str, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
) -> FastAPI:
    """The app for one model.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        name: shown on the page.
        hosts: values of the Host header to answer.
    """
    app = FastAPI(title="AI Learning", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    busy = threading.Semaphore(2)  # texts being written at the same time

    @app.middleware("http")
    async def same_origin(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        origin = request.headers.get("origin")
        if origin and urlsplit(origin).netloc != request.headers.get("host"):
            return JSONResponse({"detail": f"requests from {origin} are not answered"}, status_code=403)
        return await call_next(request)

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

    @app.post("/api/generate")
    def generate(ask: Sampling) -> StreamingResponse:
        """The continuation, as it is written."""
        if not busy.acquire(blocking=False):
            raise HTTPException(429, "two texts are being written already: wait for one to end")

        def pieces() -> Iterator[str]:
            try:
                options = ask.model_dump(exclude={"text", "max_new_tokens"})
                yield from stream_text(model, tokenizer, ask.text, ask.max_new_tokens, **options)
            finally:
                busy.release()

        return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")

    return app


def _text(tokenizer: Tokenizer, token: int) -> str:
    """A token as a person can read it: text, bytes in hexadecimal, or its number."""
    data = tokenizer.decode_bytes([token])
    try:
        return data.decode("utf-8") or f"<{token}>"
    except UnicodeDecodeError:
        return " ".join(f"{byte:02x}" for byte in data)
