"""``ai-learning reflexion``: run, resume, report; what is wrong is one line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "reflexion"))

from fake_server import FakeServer, Trouble

from ai_learning.cli import main

QUESTIONS = [
    {
        "_id": "a",
        "question": "Where is Berlin?",
        "answer": "Germany",
        "context": [["Berlin", ["In Germany."]]],
    },
    {"_id": "b", "question": "Where is Paris?", "answer": "France", "context": [["Paris", ["In France."]]]},
    {"_id": "c", "question": "Where is Oz?", "answer": "nowhere", "context": [["Oz", ["A tale."]]]},
]


def script(messages: list[dict[str, str]], number: int) -> str | Trouble:
    text = "\n".join(message["content"] for message in messages)
    if "Your attempt:" in text:
        return "Look first."
    if "Oz" in text:
        return Trouble(400, '{"error": {"message": "I do not do tales"}}')
    if "Berlin?" in text:
        return "Action: Finish[Germany]" if "Look first" in text else "Action: Finish[Prussia]"
    return "Action: Finish[France]"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(script) as server:
        yield server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(QUESTIONS))
    return path


def run(*args: object) -> int:
    return main(["reflexion", *map(str, args)])


def test_run_resume_report(
    server: FakeServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    where = ("--model", "fake", "--base-url", server.url)
    asked = ("--task", "hotpotqa", "--data", data, "--out", out, "--trials", 2, "--price-in", 1, *where)
    assert run("run", *asked, "--max-calls", 2, "--concurrency", 1) == 0
    said = capsys.readouterr().out
    assert "stopped: max_calls=2 is used up" in said and f"--resume --out {out}" in said

    assert run("run", "--resume", "--out", out) == 0
    said = capsys.readouterr().out
    assert "solved after trial 1 to 2: 33.3%  66.7%" in said
    assert "2 of 3 tasks solved; 5 calls, 40 tokens read" in said
    assert "c could not go on" in said and "I do not do tales" in said
    assert len(server.requests) == 5

    assert run("report", out) == 0
    said = capsys.readouterr().out
    assert "33.3%  66.7%" in said
    page = (out / "report.html").read_text()
    assert "Prussia" in page or "66.7%" in page
    assert "data:image/png;base64," in page and (out / "success_by_trial.png").stat().st_size > 1000
    assert "I do not do tales" in page

    assert run("report", out, out, "--out", tmp_path / "both.html") == 0
    assert (tmp_path / "both.html").exists()


def test_verbose_shows_every_step(
    server: FakeServer, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--model", "fake", "--base-url", server.url, "--limit", 1, "--verbose")
    assert run("run", "--task", "hotpotqa", "--data", data, "--out", tmp_path / "run", *where) == 0
    said = capsys.readouterr().out
    for words in ("[a · trial 1 · act]", "Finish[Prussia]", "[a · trial 1 · reflect]", "Look first."):
        assert words in said


def test_when_nothing_works_the_exit_code_says_so(data: Path, tmp_path: Path) -> None:
    with FakeServer(lambda m, n: Trouble(401, '{"error": {"message": "bad key"}}')) as server:
        where = ("--model", "fake", "--base-url", server.url, "--out", tmp_path / "run")
        assert run("run", "--task", "hotpotqa", "--data", data, *where) == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dance"], "no command 'dance': use run, report, doctor, demo"),
        (["run", "--task", "hotpotqa"], "task hotpotqa needs --data"),
        (["run", "--task", "env", "--model", "openai:x"], "task env needs --data: MODULE:FUNCTION"),
        (["run", "--task", "hotpotqa", "--data", "none.json"], "no file at none.json"),
        (["run", "--strategy", "luck"], "invalid choice 'luck'|luck"),
        (["run", "--limit", "0"], "limit=0"),
        (["run", "--resume", "--out", "nowhere"], "no run in nowhere"),
        (["run", "--max-cost", "1"], "needs price_in"),
        (["report"], "name the folder of a run|required"),
        (["report", "nowhere"], "no run in nowhere"),
        (["doctor", "--fix"], "takes no options"),
    ],
)
def test_bad_input_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert main(["reflexion", *args]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_the_script_knows_only_its_programs(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "--task", "hotpotqa", "--data", data) == 2
    assert "model 'scripted' only knows the task programs" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "report" in capsys.readouterr().out
    for command in ("run", "report", "doctor"):
        assert run(command, "--help") == 0
        assert capsys.readouterr().out


def test_the_commands_start_without_torch() -> None:
    code = (
        "import ai_learning.cli.reflexion, ai_learning.reflexion.run, sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
