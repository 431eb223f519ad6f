"""What measures side by side: each program in its turn, and none before all are there."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.common import interleaved_processes  # noqa: E402

PROGRAM = """
import sys, time
sys.path.insert(0, {root!r})
from benchmarks.common import serve
def make():
    print("made")  # to nobody's harm
    time.sleep({start})
    open({log!r}, "a").write("{name} is there\\n")
    def step():
        open({log!r}, "a").write("{name}\\n")
        end = time.perf_counter() + {step}
        while time.perf_counter() < end:
            pass
    return step
serve(make)
"""


def program(name: str, log: Path, start: float = 0.0, step: float = 0.0) -> list[str]:
    code = PROGRAM.format(root=str(ROOT), name=name, log=str(log), start=start, step=step)
    return [sys.executable, "-c", code]


def test_turns_begin_when_all_are_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {"a": program("a", log, step=0.02), "b": program("b", log, start=1.0, step=0.06)}
    seconds = interleaved_processes(commands, starts=2, rounds=2, steps=3)
    assert 0.02 <= seconds["a"] < 0.05 < seconds["b"] < 0.2
    lines = log.read_text().split("\n")[:-1]
    one_start = ["a is there", "a", "b is there", "b", *(["a"] * 4 + ["b"] * 4) * 2]
    assert lines == one_start * 2


def test_a_program_that_ends_early_is_named(tmp_path: Path) -> None:
    commands = {"a": program("a", tmp_path / "log"), "broken": [sys.executable, "-c", "raise SystemExit(1)"]}
    with pytest.raises(ChildProcessError, match="broken ended before it was done"):
        interleaved_processes(commands, starts=1, rounds=1, steps=1)
