"""Who is answered, and how much is read: the layer around the whole app.

A page on the web can make a browser send requests to this machine (cross-site request forgery), also under a
name that it made point here (DNS rebinding). So the Host header must be one that was allowed, the Origin must
be our own page, and what changes anything must be JSON, which no foreign form can send. Everything that is
refused is refused with one line of JSON: ``{"error": "what is wrong, and what to do"}``.
"""

import asyncio
import ipaddress
import json
import logging
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_HOST = "*"
MAX_BODY = 8 * 2**20  # bytes; a training text of a million characters fits, escaped or not
BODY_SECONDS = 30.0
MAX_REQUESTS = 64  # at the same time

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


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


class Refused(Exception):  # noqa: N818 - an answer, not an error
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Guard:
    """Middleware around ``app``.

    Args:
        app: what to protect.
        hosts: values of the Host header to answer, without port and brackets.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self.app, self.hosts = app, hosts
        self.open_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no WebSockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        self.open_requests += 1
        try:
            if self.open_requests > MAX_REQUESTS:
                raise Refused(503, f"{MAX_REQUESTS} requests are being answered already: try again")
            body = await self._checked_body(scope, receive)
            await self.app(scope, _Replay(body, receive), send_with_headers)
        except Refused as refused:
            await _answer(send_with_headers, refused.status, refused.message)
        except Exception as error:
            logging.getLogger("uvicorn.error").exception("a request failed")
            if begun:  # the connection is cut, so that half an answer is not taken for a whole one
                raise
            await _answer(send_with_headers, 500, f"the server failed at this: {type(error).__name__}")
        finally:
            self.open_requests -= 1

    async def _checked_body(self, scope: Scope, receive: Receive) -> bytes:
        headers = {name.decode("latin-1").lower(): v.decode("latin-1") for name, v in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if ANY_HOST not in self.hosts and _hostname(host) not in self.hosts:
            raise Refused(400, f"requests for the host {host!r} are not answered")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, f"requests from {origin} are not answered: open the page itself")
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return b""
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "the body must be JSON, with Content-Type: application/json")
        try:
            return await asyncio.wait_for(_read(receive), BODY_SECONDS)
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the client left")
        part = message.get("body", b"")
        size += len(part)
        ended = not message.get("more_body")
        if size <= MAX_BODY:
            parts.append(part)
            if ended:
                return b"".join(parts)
            continue
        # What is somewhat too large is read to its end and dropped: a client that is still sending when the
        # connection is closed never sees the answer.
        parts.clear()
        if ended or size > 4 * MAX_BODY:
            raise Refused(413, f"the body is larger than {MAX_BODY:,} bytes")


class _Replay:
    """``receive`` for the app: the body that was read, then whatever comes (the client leaving)."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self.body: bytes | None = body
        self.receive = receive

    async def __call__(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self.receive()


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _hostname(host: str) -> str | None:
    """The Host header without port and brackets; ``None`` where it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
