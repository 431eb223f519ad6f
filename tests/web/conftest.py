"""A tiny model trained in a second, the app around it, and a real server."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi")
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ai_learning.batches import TokenBatches, tokenize
from ai_learning.checkpoint import open_model, save_checkpoint, tokenizer_reference
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.text import read_texts
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.web.app import create_app
from ai_learning.web.bench import Bench, Opened

BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers that have read some of the language reference; for the docs' pictures a better one."""
    if given := os.environ.get("AI_LEARNING_CHECKPOINT"):
        return Path(given)
    torch.manual_seed(0)
    tokens = tokenize(read_texts("builtin:reference"), ByteTokenizer())[:200_000]
    model = GPT(GPTConfig(vocab_size=258, block_size=64, n_layer=2, n_head=4, n_embd=32))
    batches = TokenBatches(tokens, 64, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        optimizer.zero_grad()
        next_token_loss(model, *batches(step)).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    save_checkpoint(model, path, tokenizer=tokenizer_reference(ByteTokenizer()))
    return path


@pytest.fixture
def bench(checkpoint: Path, tmp_path: Path) -> Bench:
    model, tokenizer, _ = open_model(checkpoint)
    assert tokenizer is not None
    return Bench(Opened("tiny", model, tokenizer, str(checkpoint)), runs=tmp_path / "runs")


@pytest.fixture
def client(bench: Bench) -> Iterator[TestClient]:
    with TestClient(create_app(bench), base_url=BASE) as client:
        yield client


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """A real server (a test client waits for whole answers) on a free port."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture
def serve() -> Callable:
    return serving
