"""An OpenAI-compatible server on loopback that answers by a script, and misbehaves on demand."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Script = Callable[[list[dict[str, str]], int], Any]
"""(messages, number of the request from 0) → the answer's text, or a ``Trouble``"""


class Trouble:
    """What a server does instead of answering.

    Args:
        status: HTTP status; 200 sends ``body`` as if it were an answer.
        body: of the response.
        headers: of the response.
        stall_s: seconds of silence before anything is sent.
        trickle_s: a byte of white space every tenth of a second, for so long: never quite silent.
        promised: bytes more than are sent before the connection breaks; all of them with a ``body`` of "".
    """

    def __init__(
        self,
        status: int = 200,
        body: str = "",
        headers: dict[str, str] | None = None,
        stall_s: float = 0.0,
        trickle_s: float = 0.0,
        promised: int = 0,
    ) -> None:
        self.status, self.body, self.headers = status, body, headers or {}
        self.stall_s, self.trickle_s, self.promised = stall_s, trickle_s, promised


class FakeServer:
    """Serves ``script`` while open; keeps every request and notes which were answered."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def prompts(self) -> list[str]:
        return ["\n".join(m["content"] for m in request["messages"]) for request in self.requests]

    def __enter__(self) -> "FakeServer":
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with fake._lock:
                    number = len(fake.requests)
                    fake.requests.append(request)
                    fake.at_once += 1
                    fake.most_at_once = max(fake.most_at_once, fake.at_once)
                try:
                    self.answer(fake.script(request["messages"], number))
                except OSError:  # the client went away
                    self.close_connection = True
                finally:
                    with fake._lock:
                        fake.at_once -= 1

            def answer(self, found: Any) -> None:
                if isinstance(found, Trouble):
                    time.sleep(found.stall_s)
                    self.send(found.status, found.body, found.headers, found.trickle_s, found.promised)
                    return
                message = {"role": "assistant", "content": found}
                body = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": "fake",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }  # fmt: skip
                self.send(200, json.dumps(body), {})

            def send(
                self, status: int, body: str, headers: dict[str, str], trickle_s: float = 0, promised: int = 0
            ) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                for name, value in headers.items():
                    self.send_header(name, value)
                content = body.encode()
                trickled = int(trickle_s * 10)
                self.send_header("content-length", str(len(content) + trickled + promised))
                self.end_headers()
                for _ in range(trickled):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)
                self.wfile.write(content)
                self.close_connection = bool(promised)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
