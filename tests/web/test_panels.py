"""What each panel is told is what the library computes."""

import base64
import dataclasses
import itertools
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from ai_learning.adapters import LoRAConfig, inject_lora, save_peft
from ai_learning.checkpoint import open_model
from ai_learning.generate import generate_text
from ai_learning.model import reference_attention
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer
from ai_learning.trace import logit_lens, record
from ai_learning.web.bench import Bench, token_text
from ai_learning.web.panels import look

TEXT = "The statement is, in the simplest form, an expression."


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def ids_of(bench: Bench, text: str = TEXT) -> torch.Tensor:
    return torch.tensor([bench.served.tokenizer.encode(text)[-64:]])


def test_about(client: TestClient, bench: Bench) -> None:
    about = client.get("/api/about").json()
    assert about["parameters"] == bench.served.model.n_params()
    assert about["models"] == ["served"] and about["tokenizers"][0] == "model"


# --- tokens -------------------------------------------------------------------------------------------------


def test_tokens_are_the_tokenizers(client: TestClient) -> None:
    ask = {"text": "né, né", "tokenizers": ["model", "reference-1000", "this text"], "merges": 2}
    answer = client.post("/api/tokens", json=ask).json()
    plain, trained, learned = answer["by"]
    assert answer["n_bytes"] == 8
    assert plain["ids"] == list("né, né".encode()) and plain["n_merges"] is None
    assert [plain["pieces"][str(i)]["text"] for i in plain["ids"][:3]] == ["n", "‹c3›", "‹a9›"]
    assert trained["vocab_size"] == 1000 and trained["n_tokens"] == len(trained["ids"]) <= 8
    expected = BPETokenizer.train(["né, né"], 258, special_tokens=())
    assert learned["ids"] == expected.encode("né, né") and learned["n_merges"] == 2
    assert {piece["rank"] for piece in learned["pieces"].values()} >= {1}


def test_special_tokens_are_shown_as_such(client: TestClient, bench: Bench) -> None:
    answer = client.post("/api/tokens", json={"text": "a<|endoftext|>b", "tokenizers": ["reference-1000"]})
    assert answer.json()["by"][0]["n_tokens"] == 3
    assert token_text(ByteTokenizer(), 256) == "‹end›" and token_text(ByteTokenizer(), 999) == "‹999›"


def test_merges_end_in_the_tokenizers_own_tokens(client: TestClient, bench: Bench) -> None:
    ask = {"text": "the statement", "tokenizer": "reference-1000"}
    words = client.post("/api/merges", json=ask).json()["words"]
    assert words[0][0]["tokens"] == ["t", "h", "e"] and words[0][0]["pair"] is None
    tokenizer = bench.tokenizer("reference-1000")
    last = [token for word in words for token in word[-1]["tokens"]]
    assert last == [token_text(tokenizer, i) for i in tokenizer.encode("the statement")]
    for word in words:
        for before, after in itertools.pairwise(word):
            assert len(after["tokens"]) == len(before["tokens"]) - 1
    refused = client.post("/api/merges", json={"text": "x", "tokenizer": "bytes"})
    assert refused.status_code == 422 and "merges nothing" in refused.json()["error"]


@pytest.mark.parametrize("text", ["", " ", "\n", "\0", "😀" * 50, "<|endoftext|>"])
def test_odd_texts(client: TestClient, text: str) -> None:
    for path in ("tokens", "merges", "attention", "next"):
        extra = {"tokenizers": ["model", "this text", "reference-1000"], "tokenizer": "this text"}
        answer = client.post(f"/api/{path}", json={"text": text, **extra})
        assert answer.status_code == 200, (path, answer.text)


# --- attention and the next token ---------------------------------------------------------------------------


def test_attention_is_the_models(client: TestClient, bench: Bench) -> None:
    answer = client.post("/api/attention", json={"text": TEXT}).json()
    T = len(answer["tokens"])
    weights = unpacked(answer["weights"], "<u2").reshape(2, 4, T, T) / 65535
    with record(bench.served.model) as trace, torch.no_grad():
        bench.served.model(ids_of(bench))
    expected = torch.stack([w[0] for w in trace.attention]).numpy()
    assert np.abs(weights - expected).max() < 1e-5
    assert np.triu(weights, 1).max() == 0 and np.abs(weights.sum(-1) - 1).max() < 1e-3


def test_a_long_text_is_looked_at_from_its_end(
    client: TestClient, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client.post("/api/attention", json={"text": "x" * 1000}).json()
    assert len(answer["tokens"]) == 64 and answer["dropped"] == 936
    monkeypatch.setattr(look, "WEIGHTS", 8 * 10**2)
    assert len(client.post("/api/attention", json={"text": "x" * 1000}).json()["tokens"]) == 10


def test_recording_leaves_the_model_that_writes_alone(client: TestClient, bench: Bench) -> None:
    served = bench.served
    kept = [block.attn.attention for block in served.model.h]
    weights = {p.data_ptr() for p in served.model.parameters()}
    assert {p.data_ptr() for p in served.twin.parameters()} == weights  # nothing is held twice
    with look.traced(served, "abc", 64):
        assert [block.attn.attention for block in served.model.h] == kept
        assert served.twin.h[0].attn.attention is not kept[0]
    assert served.twin.h[0].attn.attention is kept[0] is not reference_attention


def test_next_token_is_the_models(client: TestClient, bench: Bench) -> None:
    answer = client.post("/api/next", json={"text": TEXT}).json()
    with torch.no_grad():
        logits = bench.served.model(ids_of(bench))[0, -1]
    assert np.allclose(unpacked(answer["logits"], "<f4"), logits.sort(descending=True).values, atol=1e-5)
    assert answer["names"][0]["id"] == logits.argmax().item() and len(answer["names"]) == 200


def test_the_lens_is_the_librarys_at_any_token(client: TestClient, bench: Bench) -> None:
    model = bench.served.model
    with record(model) as trace, torch.no_grad():
        model(ids_of(bench))
    for at in (0, 7, None):
        answer = client.post("/api/next", json={"text": TEXT, "at": at}).json()
        place = len(TEXT) - 1 if at is None else at
        assert answer["at"] == place and len(answer["lens"]) == 3
        expected = logit_lens(model, trace.residual)[:, 0, place].softmax(-1)
        for row, p in zip(answer["lens"], expected, strict=True):
            assert row["top"][0]["p"] == pytest.approx(p.max().item(), rel=1e-4)
        assert answer["lens"][-1]["rank_best"] == 1
    assert client.post("/api/next", json={"text": TEXT, "at": 10**6}).json()["at"] == len(TEXT) - 1


def test_generated_text_is_the_librarys(client: TestClient, bench: Bench) -> None:
    ask = {"text": "ab", "max_new_tokens": 20, "seed": 3, "temperature": 0.9}
    text = client.post("/api/generate", json=ask).text
    expected = generate_text(bench.served.model, ByteTokenizer(), "ab", 20, seed=3, temperature=0.9)
    assert text == expected


# --- adapters -----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(checkpoint: Path, bench: Bench, tmp_path: Path) -> Path:
    """An adapter that does something."""
    model, _, _ = open_model(checkpoint)
    inject_lora(model, LoRAConfig(r=4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    save_peft(model, tmp_path / "adapter")
    bench.adapters["mine"] = tmp_path / "adapter"
    return tmp_path / "adapter"


def test_variants_side_by_side(client: TestClient, bench: Bench, adapter: Path) -> None:
    assert client.get("/api/adapters").json()["adapters"] == ["mine"]
    ask = {"text": TEXT, "adapter": "mine", "seed": 1, "max_new_tokens": 30}
    by = {
        v: client.post("/api/adapters/write", json={**ask, "variant": v}).json()
        for v in ("base", "lora", "merged", "nf4", "qlora")
    }
    base = bench.served.model
    assert by["base"]["text"] == generate_text(base, ByteTokenizer(), TEXT, 30, seed=1, temperature=0.8)
    assert by["base"]["kl"] == by["base"]["difference"] == 0.0
    assert by["base"]["bytes"] == by["merged"]["bytes"] == 4 * base.n_params() < by["lora"]["bytes"]
    assert by["lora"]["text"] == by["merged"]["text"] and by["lora"]["kl"] > 1e-5
    assert by["merged"]["kl"] == pytest.approx(by["lora"]["kl"], rel=1e-3)
    linear = sum(p.numel() for n, p in base.named_parameters() if n.startswith("h.") and p.dim() == 2)
    saved = by["base"]["bytes"] - by["nf4"]["bytes"]
    assert saved == pytest.approx(linear * (32 - 4.127) / 8, rel=0.02)
    assert 0 < by["nf4"]["kl"] < by["qlora"]["kl"]
    assert not any("lora" in name for name, _ in base.named_parameters())  # the served one was never touched


def test_a_variant_without_its_adapter(client: TestClient) -> None:
    answer = client.post("/api/adapters/write", json={"text": "x", "variant": "lora", "adapter": "no"})
    assert answer.status_code == 404 and "train one" in answer.json()["error"]


# --- agents -------------------------------------------------------------------------------------------------


def test_agents_say_what_is_there(client: TestClient) -> None:
    assert client.get("/api/agents").json() == {"files": []}


def test_a_toolformer_text_with_its_calls(client: TestClient, bench: Bench) -> None:
    from .agent_files import write_annotated

    write_annotated(bench.runs / "annotated")
    files = client.get("/api/agents").json()["files"]
    assert [f["kind"] for f in files] == ["toolformer"]
    answer = client.post("/api/agents/open", json={"file": files[0]["name"]}).json()
    first, failed = answer["candidates"][0], answer["candidates"][-1]
    assert first["gain"] == pytest.approx(2.9 - 0.6) and first["kept"]
    assert failed["gain"] is None and "division" in failed["error"]


def test_a_reflexion_run_trial_by_trial(client: TestClient, bench: Bench) -> None:
    from .agent_files import write_trace

    write_trace(bench.runs / "reflexion")
    files = client.get("/api/agents").json()["files"]
    answer = client.post("/api/agents/open", json={"file": files[0]["name"]}).json()
    assert [(t["trial"], t["solved"]) for t in answer["trials"]] == [(1, False), (2, True)]
    assert "even number" in answer["trials"][0]["steps"][-1]["texts"]["text"]


def test_a_damaged_file_is_one_line(client: TestClient, bench: Bench) -> None:
    folder = bench.runs / "annotated"
    folder.mkdir(parents=True)
    (folder / "part-00000-of-00001-000000.parquet").write_bytes(b"PAR1 no")
    (folder / "part-00000-of-00001-000000.jsonl").write_text('{"text": 5}\n')
    answer = client.post("/api/agents/open", json={"file": str(folder)})
    assert answer.status_code == 409 and "cannot be read" in answer.json()["error"]


# --- places -------------------------------------------------------------------------------------------------


def test_questions_wait_for_a_place_and_not_for_ever(client: TestClient, bench: Bench) -> None:
    class Full:
        def acquire(self, timeout: float) -> bool:
            return False

    bench._looking = Full()  # type: ignore[assignment]
    answer = client.post("/api/next", json={"text": "x"})
    assert answer.status_code == 429 and "busy" in answer.json()["error"]


def test_a_question_is_answered_while_texts_are_written(client: TestClient, bench: Bench) -> None:
    with bench.writing(), bench.writing():
        assert client.post("/api/generate", json={"text": "x"}).status_code == 429
        started = time.monotonic()
        assert client.post("/api/next", json={"text": "x"}).status_code == 200
        assert time.monotonic() - started < 10


def test_a_model_with_more_rows_than_its_tokenizer(client: TestClient, bench: Bench) -> None:
    config = dataclasses.replace(bench.served.model.config, vocab_size=300)
    model = type(bench.served.model)(config).eval()
    bench.served = dataclasses.replace(bench.served, model=model)
    names = client.post("/api/next", json={"text": "x"}).json()["names"]
    assert len(names) == 200 and all(name["text"] for name in names)
    assert math.isfinite(client.post("/api/next", json={"text": "x"}).json()["lens"][0]["p_best"])
