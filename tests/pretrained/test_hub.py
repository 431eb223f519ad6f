"""`load_pretrained` by name, through huggingface_hub, from a hub on this machine."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained
from ai_learning.tokenizers import ByteTokenizer

COMMIT = "0123456789012345678901234567890123456789"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str], Path]]:
    """A hub with one model, ``someone/tiny``; the address, the requests that came, and the model's folder."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    save_pretrained(
        GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=1, n_embd=8)), folder, ByteTokenizer()
    )
    (folder / "pytorch_model.bin").write_bytes(b"pickled: must never be fetched")
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            seen.append(f"{self.command} {self.path} {self.headers.get('authorization', '')}")
            path = self.path.split("?")[0]
            content = None
            if path.startswith("/api/models/someone/tiny/tree/"):
                files = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
                    for p in sorted(folder.iterdir())
                ]
                content = json.dumps(files).encode()
            elif path.startswith("/api/models/someone/tiny"):
                revision = path.rpartition("/")[2]
                if revision in ("main", "v1", COMMIT):
                    siblings = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
                    content = json.dumps({"id": "someone/tiny", "sha": COMMIT, "siblings": siblings}).encode()
            elif path.startswith("/someone/tiny/resolve/"):
                file = folder / path.rpartition("/")[2]
                content = file.read_bytes() if file.is_file() else None
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen, folder
    server.shutdown()


def load(name: str, address: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """In a process of its own: huggingface_hub reads its settings when it is imported."""
    code = f"""
from ai_learning.pretrained import load_pretrained
from ai_learning.errors import InputError
try:
    model = load_pretrained({name!r}, revision="v1")
    print(model.wte.weight.sum().item())
except InputError as error:
    print("InputError:", error)
"""
    keep = {"PATH": "/usr/bin:/bin", "HF_ENDPOINT": address, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=keep | environment, capture_output=True, text=True, timeout=120
    )


def test_downloads_once_with_a_token_and_then_offline(
    hub: tuple[str, list[str], Path], tmp_path: Path
) -> None:
    address, seen, folder = hub
    done = load("someone/tiny", address, tmp_path, HF_TOKEN="secret")
    from ai_learning.pretrained import load_pretrained

    expected = load_pretrained(folder).wte.weight.sum().item()
    assert float(done.stdout) == pytest.approx(expected), done.stderr
    assert any("Bearer secret" in line for line in seen)
    assert not any("pytorch_model.bin" in line for line in seen), "pickles are never fetched"
    seen.clear()
    offline = load("someone/tiny", address, tmp_path, HF_HUB_OFFLINE="1")
    assert float(offline.stdout) == pytest.approx(expected), offline.stderr
    assert not seen


def test_what_is_not_there_is_one_line(hub: tuple[str, list[str], Path], tmp_path: Path) -> None:
    done = load("someone/else", hub[0], tmp_path)
    assert done.stdout.startswith(
        "InputError: 'someone/else' is no folder here, and not to be had from the hub"
    )
    assert done.stdout.count("\n") == 1
