"""`ai-learning lessons start | check`: from stubs to verdicts."""

import json
from pathlib import Path

import pytest

from ai_learning.checks import exercise_names, workfile
from ai_learning.cli import main


@pytest.fixture(autouse=True)
def _own_progress(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main(["lessons", *map(str, args)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_stubs_are_not_written_yet_and_a_right_answer_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = workfile.write("day1", tmp_path / "mine.py")
    code, out, _ = call(capsys, "check", work)
    assert code == 1 and out.count("not written yet") == 3 and "0 of 3 passed" in out
    source = work.read_text()
    answer = "    return torch.ones(block_size, block_size).tril()"
    at = source.index("def causal_mask")
    work.write_text(source[:at] + source[at:].replace("    raise NotImplementedError", answer, 1))
    code, out, _ = call(capsys, "check", work, "--out", tmp_path / "verdicts.json")
    assert code == 1 and "1 of 3 passed" in out
    verdicts = {v["exercise"]: v for v in json.loads((tmp_path / "verdicts.json").read_text())}
    assert verdicts["day1.causal_mask"]["passed"] and not verdicts["day1.attention"]["passed"]
    assert workfile.passed() == {"day1.causal_mask"}
    _, out, _ = call(capsys)
    assert "1/3" in out


def test_every_day_has_a_work_file_that_runs(tmp_path: Path) -> None:
    for day in dict.fromkeys(name.split(".")[0] for name in exercise_names()):
        work = workfile.write(day, tmp_path / f"{day}.py")
        reports = list(workfile.check_file(work))
        assert [r.exercise for r in reports] == exercise_names(day)
        assert all(r.cause == "not written yet" for r in reports)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", "line 1: invalid syntax"),
        ("# exercise day1.attention\nimport nothing_of_the_kind\n", "line 2: ModuleNotFoundError"),
        ("x = 1\n", "has no line '# exercise NAME'"),
        ("# exercise day1.atention: x\n", "did you mean 'day1.attention'"),
    ],
)
def test_bad_files_are_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(("" if "exercise" in text or "x =" in text else "# exercise day1.attention\n") + text)
    code, _, err = call(capsys, "check", path)
    assert code == 2 and message.replace("line 1: invalid", "line 2: invalid") in err
    assert err.count("\n") == 1


def test_a_missing_function_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    path.write_text("# exercise day1.attention\n")
    code, out, _ = call(capsys, "check", path)
    assert code == 1 and "no function attention in mine.py" in out


def test_start_never_overwrites_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "start", "day1", "--out", tmp_path)[0] == 0
    work = tmp_path / "day1_exercises.py"
    work.write_text("# exercise day1.attention\nmine = 1\n")
    (tmp_path / "day1_attention_tinytransformer.py").unlink()
    code, _, err = call(capsys, "start", "day1", "--out", tmp_path)
    assert code == 2 and "may hold your work" in err
    assert "mine = 1" in work.read_text()


def test_hint_and_solution(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hint 3 of 3" in call(capsys, "hint", "day16.merge", 3)[1]
    assert "def merge(" in call(capsys, "solution", "day16.merge")[1]
    code, _, err = call(capsys, "hint", "day16.merg")
    assert code == 2 and "did you mean 'day16.merge'" in err
