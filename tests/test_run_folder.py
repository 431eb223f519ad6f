"""The run folder's lock is the system's: it goes with the process, however that ends."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ai_learning.cli.common import to_resume, to_save
from ai_learning.cli.pretrain import Pretrain, pretrain
from ai_learning.cli.toolformer_annotate import Annotate
from ai_learning.errors import InputError
from ai_learning.run_folder import RunFolder, read_options, with_absolute_paths
from ai_learning.train import TrainConfig

HOLD = """
import time
from ai_learning.run_folder import RunFolder, with_absolute_paths
with RunFolder({!r}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(str(tmp_path))], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=rf"in use by another run \(process {process.pid}\)"),
        RunFolder(tmp_path),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    leftover = tmp_path / f".last.pt.{process.pid}.tmp"  # as a kill in the middle of a save leaves it
    leftover.write_text("half a checkpoint")
    with RunFolder(tmp_path):
        assert not leftover.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot write to"), RunFolder(tmp_path / "file" / "run"):
        pass


def test_options(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run in"):
        read_options(tmp_path, "pretrain")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match=r"a\.txt: it is a file, not a run's folder"):
        read_options(tmp_path / "a.txt", "pretrain")
    for damage in ("{", "[1]"):
        (tmp_path / "run.json").write_text(damage)
        with pytest.raises(InputError, match="is damaged"):
            read_options(tmp_path, "pretrain")
    (tmp_path / "run.json").write_text('{"command": "finetune", "steps": 3}')
    with pytest.raises(InputError, match="was made by `finetune`, not `pretrain`"):
        read_options(tmp_path, "pretrain")
    assert read_options(tmp_path, "finetune") == {"steps": 3}


def test_paths_are_absolute_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("data.txt", "bytes", "hf:x"):  # the last two are names, also where a file is called so
        Path(name).touch()
    names = {"a": "data.txt", "b": "bytes", "c": "hf:x", "d": "builtin:stdlib", "e": "org/model", "f": None}
    found = with_absolute_paths(names, *names)
    assert found == {**names, "a": str(tmp_path / "data.txt")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zzz": 1}, r"run\.json has options of another version: zzz"),
        ({"train": 5}, r"run\.json is damaged, or of another version: "),
        ({"train": {"zzz": 1}}, "another version: .*has an unexpected keyword argument 'zzz'"),
        ({"train": {"steps": "x"}}, "steps='x' must be a whole number"),
    ],
)
def test_options_of_another_version_are_one_line(change: dict, message: str, tmp_path: Path) -> None:
    options = Pretrain(out=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(to_save(options, "pretrain") | change))
    with pytest.raises(ValueError, match=message):
        to_resume(Pretrain, ["--resume", "--out", str(tmp_path)], "pretrain")


def test_a_folder_with_a_run_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "last.pt").touch()
    with pytest.raises(InputError, match="already holds a run: --resume it"):
        pretrain(Pretrain(data="/no/such/file", out=tmp_path))
    with pytest.raises(InputError, match="/no/such/file"):
        pretrain(Pretrain(data="/no/such/file", out=tmp_path, resume=True))


def test_options_come_back(tmp_path: Path) -> None:
    options = Pretrain(out=tmp_path, held_out=0.2, train=TrainConfig(steps=7))
    (tmp_path / "run.json").write_text(json.dumps(to_save(options, "pretrain", "data")))
    assert to_resume(Pretrain, ["--resume", f"--out={tmp_path}"], "pretrain") == options
    assert to_resume(Pretrain, ["--out", str(tmp_path)], "pretrain") is None
    annotate = Annotate(out=tmp_path, tools=("Calculator", "Calendar"), tau_f=0.5)
    (tmp_path / "run.json").write_text(json.dumps(to_save(annotate, "toolformer annotate")))
    assert to_resume(Annotate, ["--resume", "--out", str(tmp_path)], "toolformer annotate") == annotate
