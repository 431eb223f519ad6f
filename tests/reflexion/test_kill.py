"""Killed in the middle of a trial, and resumed: no answer that came is asked for again."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Trouble

from ai_learning.cli import main
from ai_learning.reflexion.trace import read_trace

ROWS = [
    {
        "_id": f"q{i}",
        "question": f"In which country is the city of Berlin, number {i}?",
        "answer": "Germany",
        "context": [["Berlin", ["Berlin is a city.", " It is in Germany."]], ["Rhine", ["A river."]]],
    }
    for i in range(2)
]


def rule(text: str) -> str:
    """Search, search, wrong answer; reflect; search, right answer."""
    if "Your attempt:" in text:
        return "Answer with the country."
    if "A river." in text:
        return "Thought: so\nAction: Finish[Europe]"
    if "It is in Germany" in text:
        return "Action: Finish[Germany]" if "Answer with the country" in text else "Action: Search[Rhine]"
    return "Thought: look\nAction: Search[Berlin]"


class Gate:
    """Lets requests through until it is shut; a request that stands before it can be waited for."""

    def __init__(self) -> None:
        self.shut_at: set[int] = set()
        self.waiting, self.open = threading.Event(), threading.Event()
        self.answered: Counter[str] = Counter()

    def script(self, messages: list[dict[str, str]], number: int) -> Any:
        text = "\n".join(message["content"] for message in messages)
        if number in self.shut_at:
            self.waiting.set()
            self.open.wait(60)
            return Trouble(500, "{}")
        self.answered[text] += 1
        return rule(text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(ROWS))
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "ai_learning.cli", "reflexion", "run", *map(str, args)]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def kill_when_waiting(gate: Gate, args: list[str], sent: signal.Signals) -> tuple[int, str]:
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert gate.waiting.wait(60), process.communicate(timeout=5)
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)
        return process.returncode, out + err
    finally:
        process.kill()
        gate.waiting.clear()
        gate.open.set()
        gate.open = threading.Event()


def test_killed_and_resumed(
    data: Path, tmp_path: Path, gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    gate.shut_at = {2}  # in the middle of the first task's first trial
    with FakeServer(gate.script) as server:
        assert kill_when_waiting(gate, start(data, out, server), signal.SIGKILL)[0] == -signal.SIGKILL
        assert [e.node for e in read_trace(out / "trace.jsonl")].count("act") == 2
        assert main(["reflexion", "run", "--resume", "--out", str(out), "--concurrency", "1"]) == 0
    assert "0.0%  100.0%" in capsys.readouterr().out
    check(gate, server, out, kills=1)


@pytest.mark.slow
def test_killed_interrupted_and_resumed(data: Path, tmp_path: Path, gate: Gate) -> None:
    out = tmp_path / "run"
    gate.shut_at = {2, 6, 9}
    with FakeServer(gate.script) as server:
        resume = command("--resume", "--out", out, "--concurrency", 1)
        assert kill_when_waiting(gate, start(data, out, server), signal.SIGKILL)[0] == -signal.SIGKILL
        code, said = kill_when_waiting(gate, resume, signal.SIGINT)
        assert (code, "Traceback" in said) == (130, False), said
        assert "to go on: ai-learning reflexion run --resume" in said
        assert kill_when_waiting(gate, resume, signal.SIGTERM)[0] == -signal.SIGTERM
        done = subprocess.run(resume, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    check(gate, server, out, kills=3)


def start(data: Path, out: Path, server: FakeServer) -> list[str]:
    where = ("--model", "fake", "--base-url", server.url, "--concurrency", 1)
    return command("--task", "hotpotqa", "--data", data, "--out", out, "--trials", 2, *where)


def check(gate: Gate, server: FakeServer, out: Path, kills: int) -> None:
    assert set(gate.answered.values()) == {1}  # every prompt was answered exactly once
    assert len(gate.answered) == 2 * 6
    assert len(server.requests) == 2 * 6 + kills  # only what was under way at a kill was sent again
    events = list(read_trace(out / "trace.jsonl"))
    for name in ("q0", "q1"):
        assert [e.clock for e in events if e.task == name] == list(range(1, 17))
