"""Trainings that the page starts: one at a time, in processes of their own, stopped and resumed."""

import os
import signal
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ai_learning.run_folder import read_metrics
from ai_learning.web.app import create_app
from ai_learning.web.bench import Bench
from ai_learning.web.jobs import Jobs

from .conftest import BASE

TEXT = "the cat sat on the mat, and the dog sat on the log. " * 60
START = {"source": "own", "text": TEXT, "size": "small", "steps": 20_000, "batch_size": 2}


def wait_for(client: TestClient, name: str, *states: str, rows: int = 0) -> dict:
    deadline = time.monotonic() + 120
    while True:
        report = client.get(f"/api/training/{name}").json()
        if report["state"] in states and report["n_rows"] >= rows:
            return report
        assert report["state"] in ("starting", "running", "stopping"), report
        assert time.monotonic() < deadline, report
        time.sleep(0.1)


def test_start_stop_resume_and_look_into_it(client: TestClient, bench: Bench) -> None:
    assert client.post("/api/training/start", json=START).json() == {"name": "run-1"}
    second = client.post("/api/training/start", json=START)
    assert second.status_code == 409 and "run-1 is being trained" in second.json()["error"]
    lora = client.post("/api/adapters/train", json={"source": "builtin:reference"})
    assert lora.status_code == 409  # of whatever kind

    report = wait_for(client, "run-1", "running", rows=3)
    assert report["command"].startswith("ai-learning pretrain ") and report["after"] == 0
    assert client.get(f"/api/training/run-1?after={report['n_rows']}").json()["after"] == report["n_rows"]
    for _ in range(3):  # a second tab, a double click
        assert client.post("/api/training/stop", json={}).status_code == 200
    stopped = wait_for(client, "run-1", "stopped")
    reached = stopped["rows"][-1]["step"]
    assert 0 < reached < 20_000
    assert client.post("/api/training/stop", json={}).status_code == 409

    # What was trained so far is a model of the page.
    assert client.get("/api/about").json()["models"] == ["served", "run-1"]
    assert client.post("/api/next", json={"text": "the ", "model": "run-1"}).status_code == 200

    assert client.post("/api/training/resume", json={"name": "run-1"}).json() == {"name": "run-1"}
    resumed = wait_for(client, "run-1", "running", rows=1)
    assert resumed["starts"] == stopped["starts"] + 1
    again = wait_for(client, "run-1", "running", rows=stopped["n_rows"] + 1)
    assert again["rows"][-1]["step"] > reached

    # Its process dies: the server stays, and the run can go on from what was saved.
    pid = int((bench.own_runs / "run-1" / ".lock").read_text())
    os.kill(pid, signal.SIGKILL)
    died = wait_for(client, "run-1", "failed")
    assert died["message"] and client.get("/api/about").status_code == 200


@pytest.mark.slow
def test_a_run_ends_with_samples_and_a_new_server_finds_it(client: TestClient, bench: Bench) -> None:
    ask = {**START, "steps": 20, "tokens": "bpe", "vocab_size": 300}
    client.post("/api/training/start", json=ask)
    done = wait_for(client, "run-1", "done")
    samples = [row["sample"] for row in done["rows"] if "sample" in row]
    assert len(samples) == 10 and all(text.startswith("the") for text in samples)
    assert done["rows"] == read_metrics(bench.own_runs / "run-1" / "metrics.jsonl")
    assert client.post("/api/training/resume", json={"name": "run-1"}).status_code == 409
    with TestClient(create_app(bench), base_url=BASE) as other:
        assert other.get("/api/training").json()["runs"] == ["run-1"]
        assert other.get("/api/training/run-1").json()["state"] == "done"


@pytest.mark.slow
def test_an_adapter_is_trained_and_used(client: TestClient, bench: Bench) -> None:
    ask = {"source": "builtin:reference", "rank": 2, "steps": 10, "batch_size": 2}
    assert client.post("/api/adapters/train", json=ask).json() == {"name": "lora-1"}
    done = wait_for(client, "lora-1", "done")
    assert done["rank"] == 2 and any("val_loss" in row for row in done["rows"])
    assert client.get("/api/adapters").json()["adapters"] == ["lora-1"]
    write = {"text": "the ", "variant": "lora", "adapter": "lora-1", "max_new_tokens": 5}
    assert client.post("/api/adapters/write", json=write).json()["kl"] > 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"source": "own", "text": "short"}, "5 characters are too few"),
        ({"source": "/etc/passwd"}, "source"),
        ({"source": "builtin:reference", "steps": 10**9}, "steps"),
        ({"source": "builtin:reference", "lr": -1}, "lr"),
        ({"source": "own", "text": "x" * 1_000_001}, "text"),
    ],
)
def test_bad_wishes(client: TestClient, body: dict, said: str) -> None:
    answer = client.post("/api/training/start", json=body)
    assert answer.status_code == 422 and said in answer.json()["error"]
    assert client.get("/api/training").json()["runs"] == []


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path)
    wanted = ["pretrain", "--data", "nowhere", "--out", str(tmp_path / "run-1")]
    name = jobs.start("run", "ai_learning.cli", lambda out: wanted, steps=10)
    deadline = time.monotonic() + 60
    while jobs.running() and time.monotonic() < deadline:
        time.sleep(0.1)
    report = jobs.report(name)
    assert report["state"] == "failed" and "no such file or folder: nowhere" in report["message"]


@pytest.mark.slow
def test_the_server_ends_its_training(bench: Bench) -> None:
    with TestClient(create_app(bench), base_url=BASE) as client:
        client.post("/api/training/start", json=START)
        wait_for(client, "run-1", "running", rows=3)
        pid = int((bench.own_runs / "run-1" / ".lock").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert Jobs(bench.own_runs).report("run-1")["state"] == "stopped"
