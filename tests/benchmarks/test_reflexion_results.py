"""The benchmark runs each seed once, and its page holds what was measured."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from ai_learning.reflexion.household.experiment import CONDITIONS, Outcome, Result
from benchmarks import reflexion


def test_a_seed_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def experiment(config: object, seed: int, tasks: int, on_outcome: object) -> tuple[None, Result]:
        asked.append(seed)
        reached = {name: Outcome([0.1, (number + seed) / 16], 8, 6) for number, name in enumerate(CONDITIONS)}
        return None, Result(seed, tasks, 1234, reached, {"training": 10.0, "evaluation": 2.0 + 2 * seed})

    monkeypatch.setattr(reflexion, "experiment", experiment)
    args = ["--seeds", "4", "6", "--tasks", "5", "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["reflexion.py", *args])
    reflexion.main()
    page = capsys.readouterr().out
    assert asked == [4, 6]
    assert "1,234 parameters" in page and "mean of 2 seeds" in page and "22 CPU seconds a seed" in page
    assert "| last attempt | 10.0% | 37.5% | 75.0% |" in page  # (1 + 4) / 16 and (1 + 6) / 16
    assert "| 4 | 25.0% | 31.2% |" in page and "10 + 14 |" in page
    reflexion.main()
    assert capsys.readouterr().out == page and asked == [4, 6]
