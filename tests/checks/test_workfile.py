"""`ai-learning lessons start | check`: from stubs to verdicts."""

import json
import sys
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
        ("# exercise day1.attention\nexit()\n", "line 2: it ends the program here"),
        ("# exercise day1.attention\nimport sys\nsys.exit(0)\n", "line 3: it ends the program here"),
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


def test_a_line_is_named_for_a_file_given_by_a_relative_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("# exercise day1.attention\n1 / 0\n")
    code, _, err = call(capsys, "check", "mine.py")
    assert code == 2 and "mine.py, line 2: ZeroDivisionError" in err


TWO = """
# exercise day12.loss_weights: one
def loss_weights(n):
    {}

# exercise day1.causal_mask: two
def causal_mask(block_size):
    import torch
    return torch.ones(block_size, block_size).tril()
"""


@pytest.mark.parametrize("body", ["import numpy; return numpy.ones(n)", "exit()", "import sys; sys.exit(0)"])
def test_an_answer_cannot_end_the_check_of_the_others(
    body: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "mine.py", tmp_path / "verdicts.json"
    path.write_text(TWO.format(body))
    code, shown, _ = call(capsys, "check", path, "--out", out)
    assert code == 1 and "1 of 2 passed" in shown
    assert [v["passed"] for v in json.loads(out.read_text())] == [False, True]


def test_an_exercise_marked_twice_counts_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.py"
    right = TWO.format("return [max(0.0, 1 - 0.2 * t) / 3 for t in range(n)]")
    path.write_text(right + "\n# exercise day1.causal_mask: again\n")
    code, shown, _ = call(capsys, "check", path)
    assert code == 0 and "3 of 3 passed" in shown


@pytest.mark.parametrize("name", ["torch", "numpy", "json"])
def test_a_file_may_have_the_name_of_a_module(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sys.modules[name]
    path = tmp_path / f"{name}.py"
    path.write_text(TWO.format("return [max(0.0, 1 - 0.2 * t) / 3 for t in range(n)]"))
    code, shown, _ = call(capsys, "check", path)
    assert code == 0 and "2 of 2 passed" in shown
    assert sys.modules[name] is before


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"passed": 3}', set()),
        ('{"passed": {"day1.attention": 1}}', set()),
        ('{"passed": ["day1.attention", 3, ["x"], null]}', {"day1.attention"}),
        ("[1]", set()),
        ("{", set()),
    ],
)
def test_a_progress_file_of_another_shape_counts_as_none(
    text: str, names: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = workfile.progress_path()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert workfile.passed() == names
    assert call(capsys, "list")[0] == 0
    workfile.remember({"day1.causal_mask"})
    assert workfile.passed() == names | {"day1.causal_mask"}


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
