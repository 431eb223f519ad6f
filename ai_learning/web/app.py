"""The page's server: static files, and one router for each panel, behind the guard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from .bench import SERVED, Bench
from .guard import LOOPBACK, Guard, Refused
from .jobs import Jobs
from .panels import adapters, agents, look, tokens, training, write

STATIC = Path(__file__).parent / "static"


def create_app(bench: Bench, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The app.

    Args:
        bench: the models and tokenizers that it shows.
        hosts: values of the Host header to answer, without port and brackets; see ``allowed_hosts``.
    """
    jobs = Jobs(bench.own_runs)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        jobs.close()

    # The default pages of documentation would load scripts from elsewhere.
    app = FastAPI(title="AI Learning", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, hosts=hosts)

    @app.exception_handler(Refused)
    async def refused(request: Request, refused: Refused) -> JSONResponse:
        return JSONResponse({"error": refused.message}, refused.status)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{request.url.path}: {error.detail}".lower()}, error.status_code)

    @app.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input itself: a lone surrogate or a NaN in it cannot be sent back as JSON.
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body")[:80]
        message = first["msg"].removeprefix("Value error, ")
        return JSONResponse({"error": f"{field}: {message}" if field else message}, 422)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    @app.get("/api/about")
    def about() -> dict:
        """What can be chosen in the page's head."""
        opened = bench.served
        return {
            "name": opened.name,
            "parameters": opened.model.n_params(),
            "config": dict(opened.model.config.__dict__),
            "served": SERVED,
            "models": bench.model_names(),
            "tokenizers": bench.tokenizer_names(),
        }

    for panel in (tokens, look, write):
        app.include_router(panel.router(bench))
    app.include_router(training.router(bench, jobs))
    app.include_router(adapters.router(bench, jobs))
    app.include_router(agents.router(bench))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
