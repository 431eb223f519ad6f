"""The playground's server: what it answers, and what it does not."""

import math

import pytest
import torch

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from ai_learning.generate import generate_text
from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.web.app import STATIC, create_app

MODEL = GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=2, n_embd=16)).eval()


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(MODEL, ByteTokenizer(), "tiny"), base_url="http://127.0.0.1:8000")


def test_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "Playground" in page.text
    assert "http://" not in page.text and "https://" not in page.text and "src=" not in page.text
    assert client.get("/api/model").json()["parameters"] == MODEL.n_params()


def test_next_token_is_the_models(client: TestClient) -> None:
    answer = client.post("/api/next", json={"text": "né"}).json()
    assert [(t["id"], t["text"]) for t in answer["tokens"]] == [(110, "n"), (195, "c3"), (169, "a9")]
    logits = MODEL(torch.tensor([[110, 195, 169]]))[0, -1]
    best = answer["next"][0]
    assert best["id"] == logits.argmax().item()
    probability = math.exp(best["logit"] - answer["log_sum"])
    assert probability == pytest.approx(logits.softmax(0).max().item(), rel=1e-5)
    assert client.post("/api/next", json={"text": "x" * 5000}).status_code == 200  # longer than the context


def test_generated_text_is_the_librarys(client: TestClient) -> None:
    ask = {"text": "ab", "max_new_tokens": 20, "seed": 3, "temperature": 0.9}
    text = client.post("/api/generate", json=ask).text
    assert text == generate_text(MODEL, ByteTokenizer(), "ab", 20, seed=3, temperature=0.9)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": 5},
        {"text": "x" * 20_001},
        {"text": "x", "max_new_tokens": 10**9},
        {"text": "x", "temperature": -1},
    ],
)
def test_bad_requests(client: TestClient, body: dict) -> None:
    assert client.post("/api/generate", json=body).status_code == 422


def test_foreign_hosts_and_origins_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    foreign = client.post("/api/next", json={"text": "x"}, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    own = client.post("/api/next", json={"text": "x"}, headers={"origin": "http://127.0.0.1:8000"})
    assert own.status_code == 200
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.get("/docs").status_code == 404 and client.get("/openapi.json").status_code == 404


def test_a_third_text_at_once_is_refused(client: TestClient) -> None:
    app = create_app(MODEL, ByteTokenizer(), "tiny")
    route = next(r for r in app.routes if getattr(r, "path", "") == "/api/generate")
    from ai_learning.web.app import Sampling

    for _ in range(2):
        route.endpoint(Sampling(text="x"))  # type: ignore[attr-defined]  # begun, not read to its end
    with TestClient(app, base_url="http://localhost") as two:
        assert two.post("/api/generate", json={"text": "x"}).status_code == 429


def test_static_folder_holds_one_page() -> None:
    assert [p.name for p in STATIC.iterdir()] == ["index.html"]
