"""Two real processes (gloo) train as one does: curves, gradients, checkpoints for other ranks, kills."""

import errno
import io
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed_worker import HOW, MODEL, STOP_AFTER, TOKENS, run
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from ai_learning import distributed
from ai_learning.batches import TokenBatches
from ai_learning.checkpoint import load_checkpoint
from ai_learning.device import checkpointed
from ai_learning.distributed import (
    Team,
    _IndexUnpickler,
    check_shards,
    checkpoints,
    latest,
    load_shards,
    read_state,
    save_shards,
    world,
)
from ai_learning.errors import CheckpointError, InputError
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT
from ai_learning.run_folder import read_metrics
from ai_learning.train import TrainConfig, train

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}:{HERE}"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def curve(folder: Path, *names: str) -> list[float]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [row[name] for name in names or ("loss", "val_loss", "grad_norm") for row in rows if name in row]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every run of the worker, and ``one``, the same training in this process."""
    home = tmp_path_factory.mktemp("processes")
    run(home / "one")
    run(home / "one-then-ddp", stop_after=STOP_AFTER)
    shutil.copytree(home / "one-then-ddp", home / "one-then-fsdp")
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
         str(HERE / "distributed_worker.py"), str(home)],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp-recomputed", "fsdp-recomputed"])
def test_two_processes_give_the_curve_of_one(home: Path, name: str) -> None:
    assert len(curve(home / "one")) == 2 * HOW.steps + 3
    assert curve(home / name) == pytest.approx(curve(home / "one"), abs=1e-6)


@pytest.mark.parametrize("name", ["one-then-ddp", "one-then-fsdp", "fsdp-then-ddp"])
def test_a_run_goes_on_with_other_processes(home: Path, name: str) -> None:
    assert curve(home / name) == pytest.approx(curve(home / "one"), abs=1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_processes_resumes_in_one(home: Path, kind: str, tmp_path: Path) -> None:
    folder = shutil.copytree(home / f"{kind}-stopped", tmp_path / "run")
    shards = latest(folder)
    # SIGTERM reached one process, in the step after which all of them stopped
    assert (
        shards is not None and read_state(shards)["step"] == STOP_AFTER and not (folder / "last.pt").exists()
    )
    run(folder, resume=True)
    assert curve(folder) == pytest.approx(curve(home / "one"), abs=1e-6)


def test_the_file_at_the_end_holds_whole_tensors(home: Path) -> None:
    one = load_checkpoint(home / "one" / "last.pt")
    for kind in ("ddp", "fsdp"):
        two = load_checkpoint(home / kind / "last.pt")
        assert two["state_dict"].keys() == one["state_dict"].keys() and two["step"] == HOW.steps
        for name, value in one["state_dict"].items():
            torch.testing.assert_close(two["state_dict"][name], value, atol=1e-5, rtol=0)
        for number, values in one["optimizer"]["state"].items():
            for name, value in values.items():
                torch.testing.assert_close(
                    two["optimizer"]["state"][number][name], value, atol=1e-6, rtol=1e-3
                )


def test_gradients_travel_with_the_last_batch_only(home: Path) -> None:
    found = torch.load(home / "gradients.pt")
    torch.manual_seed(0)
    model = GPT(MODEL)
    for number in range(2):
        (next_token_loss(model, *TokenBatches(TOKENS, 16, 4, 0)(number)) / 2).backward()
    expected = model.h[0].attn.c_proj.weight.grad
    assert found["unsynchronised differ"]["ddp"] and found["ddp"]["same"] == [True]
    assert found["fsdp"]["before"] == [True]  # nothing was reduced into the shares yet
    for kind in ("ddp", "fsdp"):
        torch.testing.assert_close(found[kind]["after"], expected, atol=1e-7, rtol=1e-5)


def test_bfloat16_trains_on_two_processes(home: Path) -> None:
    for kind in ("ddp", "fsdp"):
        low = curve(home / f"{kind}-bfloat16", "loss")
        assert low == pytest.approx(curve(home / "one", "loss"), rel=0.02)
        assert low != pytest.approx(curve(home / "one", "loss"), abs=1e-6)  # it really was another arithmetic


# --- damage and misuse --------------------------------------------------------------------------------------


def test_a_damaged_distributed_checkpoint_is_one_line(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "ddp-stopped", tmp_path / "run")
    shards = latest(folder)
    assert shards is not None
    for older in checkpoints(folder)[1:]:
        shutil.rmtree(older)
    for file in shards.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"step-00000004/.* is damaged: its checksum does not match"):
        run(folder, resume=True)
    state = json.loads((shards / "state.json").read_text())
    (shards / "state.json").write_text(json.dumps({**state, "step": 5}))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged: its checksum does not match"):
        run(folder, resume=True)
    del state["checksums"], state["crc32"]  # as it was written before there were any
    (shards / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"cannot read .*step-00000004"):
        run(folder, resume=True)
    shutil.rmtree(shards)
    with pytest.raises(CheckpointError, match="step-00000004 is not there or not whole"):
        run(folder, resume=True)
    (folder / "checkpoints" / "latest").write_text("step-0000000t")
    with pytest.raises(CheckpointError, match="latest is damaged"):
        run(folder, resume=True)


def test_no_flipped_bit_of_a_checkpoint_is_trained_on(home: Path, tmp_path: Path) -> None:
    shards = latest(shutil.copytree(home / "fsdp-stopped", tmp_path / "run"))
    assert shards is not None
    generator, names = random.Random(0), sorted(path.name for path in shards.iterdir())
    assert names == [".metadata", "__0_0.distcp", "__1_0.distcp", "state.json"]
    with Team("auto", torch.device("cpu")) as team:
        check_shards(team, shards)
        for name in names * 3:
            good = (shards / name).read_bytes()
            bad, place = bytearray(good), generator.randrange(len(good))
            bad[place] ^= 1 << generator.randrange(8)
            (shards / name).write_bytes(bad)
            with pytest.raises(CheckpointError, match=rf"{name} is damaged|cannot read .*distcp"):
                check_shards(team, shards)
            (shards / name).write_bytes(good)
        check_shards(team, shards)


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(home: Path, tmp_path: Path) -> None:
    """As `last.pt` to `last.prev.pt`: with a warning that names both, and to the same curve in the end."""
    folder = shutil.copytree(home / "ddp-stopped", tmp_path / "run")
    newest = latest(folder)
    assert newest is not None
    older = newest.with_name(f"step-{HOW.save_every:08d}")
    assert older.is_dir()
    shard = newest / "__1_0.distcp"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    left_by_a_crash = shutil.copytree(older, newest.with_name("step-00000005"))  # `latest` was not written
    with pytest.warns(UserWarning, match=rf"{shard.name} is damaged.*; using the previous one, {older}"):
        run(folder, resume=True)
    assert curve(folder) == pytest.approx(curve(home / "one"), abs=1e-6)
    assert left_by_a_crash.is_dir()
    for file in folder.glob("last*.pt"):
        file.unlink()
    shard = next(older.glob("*.distcp"))
    shard.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{older.name}.* is damaged"), pytest.warns(UserWarning):
        run(folder, resume=True)


def test_a_checkpoint_that_cannot_be_written_is_one_line_and_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"x": torch.arange(10.0)}

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Team("auto", torch.device("cpu")) as team:
        first = save_shards(team, tmp_path, 1, tensors, {"step": 1})
        for place in (dcp.FileSystemWriter, "write_data"), (distributed, "write_text"):
            with monkeypatch.context() as patch:
                patch.setattr(*place, full)
                line = r"cannot write .*step-00000002: No space left on device; the previous .* untouched$"
                with pytest.raises(CheckpointError, match=line) as caught:
                    save_shards(team, tmp_path, 2, tensors, {"step": 2}, first)
            assert "\n" not in str(caught.value) and latest(tmp_path) == first
            assert [path.name for path in first.parent.glob("step-*")] == [first.name]
        check_shards(team, first)


class _Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, ("executed",)


def test_an_index_that_asks_to_run_code_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(home / "ddp-stopped", tmp_path / "run")
    shards = latest(folder)
    assert shards is not None
    (shards / ".metadata").write_bytes(pickle.dumps(_Evil()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="it asks to run code"):
        load_shards(shards, {"model.wte.weight": torch.zeros(32, 32)})
    assert not (tmp_path / "executed").exists()


class _Attribute:
    """Pickled as what `getattr` gives."""

    def __init__(self, *of: object) -> None:
        self.of = of

    def __reduce__(self) -> tuple:
        return getattr, self.of


def test_an_index_may_name_a_memory_format_and_nothing_else_by_getattr() -> None:
    """As Python 3.11.2, Debian 12's, writes members of an enumeration."""
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    written = pickle.dumps(_Attribute(_MEM_FORMAT_ENCODING, member.name))
    assert _IndexUnpickler(io.BytesIO(written)).load() is member
    for of in ((Path, "unlink"), (torch.Size, "__class__"), (_MEM_FORMAT_ENCODING, "__class__")):
        with pytest.raises((pickle.UnpicklingError, KeyError)):
            _IndexUnpickler(io.BytesIO(pickle.dumps(_Attribute(*of)))).load()


def test_a_run_in_shards_is_not_overwritten(home: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(home / "ddp-stopped", tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run: --resume it"):
        run(folder)


def test_parallel_needs_torchrun(tmp_path: Path) -> None:
    assert world().size == 1
    with pytest.raises(InputError, match="parallel='fsdp' needs several processes: start with `torchrun"):
        run(tmp_path, replace(HOW, parallel="fsdp"))
    run(tmp_path, replace(HOW, parallel="fsdp", steps=1), resume=True)  # a run that had several goes on
    with pytest.raises(ValueError, match="parallel='dpp' is not known; use auto, ddp, fsdp"):
        TrainConfig(parallel="dpp")


def test_batches_of_other_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="runs in one process, not in 1"):
        train(
            GPT(MODEL),
            lambda model, batch: next_token_loss(model, *batch),
            TokenBatches(TOKENS, 16, 4, rank=0, world_size=2),
            HOW,
            tmp_path,
        )


def test_alone_a_team_answers_at_once() -> None:
    with Team("auto", torch.device("cpu")) as team:
        assert team.highest(15) == 15 and team.from_main("x") == "x" and not team.distributed
        assert math.isnan(float(team.mean(torch.tensor(math.nan))))
        with pytest.raises(InputError, match="mine"), team.agreed():
            raise InputError("mine")


def test_recomputed_activations_give_the_same_gradients_with_less_kept() -> None:
    shape = replace(MODEL, dropout=0.1)
    x, y = TokenBatches(TOKENS, 16, 4)(0)
    kept, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model, saved = GPT(shape), 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            if recompute:
                with checkpointed(model):
                    next_token_loss(model, x, y).backward()
                assert all("forward" not in vars(block) for block in model.h)
            else:
                next_token_loss(model, x, y).backward()
        kept.append(saved)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, atol=0, rtol=0)
    # the hooks see what is kept for the backward pass; what is made again inside it is not counted there
    assert kept[1] < kept[0] / 3


LAST_EXCHANGE = """
import sys
import torch, torch.distributed as dist
from ai_learning.distributed import leave
sys.setswitchinterval(1000)  # no other thread gets the GIL unless this one gives it
dist.init_process_group("gloo")
held = dist.group.WORLD
def exchange():
    dist.all_gather([torch.zeros(4), torch.zeros(4)], torch.zeros(4))
exchange()
leave()
"""


@pytest.mark.slow
def test_a_process_may_end_right_after_its_last_exchange() -> None:
    """Without the pause in ``leave`` about one end in four aborts: gloo's thread gets the GIL too late."""
    for _ in range(6):
        port = str(free_port())
        jobs = [
            subprocess.Popen(
                [sys.executable, "-c", LAST_EXCHANGE],
                env=ENVIRONMENT
                | {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        errors = [job.communicate(timeout=60)[1] for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], errors


# --- the command, killed -----------------------------------------------------------------------------------

OPTIONS = (
    "--data {data} --n-layer 1 --n-embd 16 --n-head 2 --block-size 16 --batch-size 4 --warmup 2 "
    "--eval-every 50 --save-every 20 --log-every 1 --eval-batches 2 --device cpu"
)


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return OPTIONS.format(data=tmp_path / "text.txt").split()


def start(out: Path, options: list[str], *launcher: str, **environment: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, *launcher, "-m", "ai_learning.cli", "pretrain", "--out", str(out), *options]
    job = subprocess.Popen(
        command, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _jobs.append(job)
    return job


_jobs: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _no_job_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    while _jobs:
        if (job := _jobs.pop()).poll() is None:
            job.kill()
            for _, number in workers(tmp_path / "run"):  # torchrun gives them sessions of their own
                os.kill(number, signal.SIGKILL)


def workers(out: Path) -> Iterator[tuple[int, int]]:
    """(rank, process id) of the processes that train into ``out``."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode().split("\0")
            variables = dict(
                line.split("=", 1)
                for line in (folder / "environ").read_bytes().decode().split("\0")
                if "=" in line
            )
        except (OSError, UnicodeDecodeError, ValueError):
            continue
        if str(out) in command and "RANK" in variables and "torch.distributed.run" not in command:
            yield int(variables["RANK"]), int(folder.name)


def wait_for_step(out: Path, step: int, *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while max((row["step"] for row in read_metrics(out / "metrics.jsonl")), default=0) < step:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), "it never got there"
        time.sleep(0.02)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds processes through /proc"
)


@needs_proc
def test_a_killed_process_ends_the_job_and_loses_nothing(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "run"
    job = start(out, [*options, "--steps", "5000"], "--nproc-per-node=2", "--standalone")
    wait_for_step(out, 45, job)
    os.kill(dict(workers(out))[1], signal.SIGKILL)
    _, errors = job.communicate(timeout=60)
    assert job.returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("ai-learning pretrain:")]
    assert len(lines) == 1, errors
    shards = latest(out)
    assert shards is not None and read_state(shards)["step"] >= 40
    assert lines[0] == (
        "ai-learning pretrain: a process of this job is gone; "
        f"the last checkpoint is {shards}: run the same command with --resume"
    )
    model = {"model.wte.weight": torch.full((258, 16), math.nan)}
    load_shards(shards, model)
    assert model["model.wte.weight"].isfinite().all()


def test_the_line_is_said_though_torchrun_ends_all_meanwhile() -> None:
    """Its agent may see the killed process first; SIGTERM then comes while this one asks who speaks."""
    code = """if True:
        import os, signal
        from ai_learning import cli, distributed
        def ask(message):
            os.kill(os.getpid(), signal.SIGTERM)
            return True
        distributed.first_to_say = ask
        raise SystemExit(cli._fail("pretrain", "a process of this job is gone", 1))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**ENVIRONMENT, "TORCHELASTIC_RUN_ID": "job"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "ai-learning pretrain: a process of this job is gone\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def limited(size: int) -> None:
    """No file of this process and those it starts gets longer: as a full disk does, at one's will."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_line_on_two_processes(tmp_path: Path, options: list[str]) -> None:
    command = [
        *TORCHRUN, "--nproc-per-node=2", "--standalone", "-m", "ai_learning.cli", "pretrain", "--out",
        str(tmp_path / "run"), *options, "--n-embd", "64", "--steps", "40",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: limited(300_000),
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("ai-learning pretrain:")]
    assert len(lines) == 1 and re.search(
        r"cannot write .*checkpoints/step-00000020: .*untouched", lines[0]
    ), lines
    assert done.stderr.count("Traceback") == 1  # torchrun's own, of its report


@pytest.mark.slow  # torchrun needs most of half a minute to meet again
@needs_proc
def test_two_machines_go_on_after_a_kill(tmp_path: Path, options: list[str]) -> None:
    """The launch that docs/scale.md gives, both agents on loopback; the second one's process is killed."""
    out, options = tmp_path / "run", [*options, "--steps", "120"]
    launcher = [
        "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-id=job", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--local-addr=127.0.0.1",
    ]  # fmt: skip
    fresh = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    agents = [start(out, options, *launcher, **fresh) for _ in range(2)]
    wait_for_step(out, 45, *agents)
    os.kill(dict(workers(out))[1], signal.SIGKILL)
    outputs = [agent.communicate(timeout=60) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert sum("done: step 120" in output for output, _ in outputs) == 1
    whole = start(tmp_path / "whole", options, "--nproc-per-node=1", "--standalone")
    assert whole.wait(timeout=60) == 0
    assert curve(out) == pytest.approx(curve(tmp_path / "whole"), abs=1e-5)
    assert len(curve(out, "loss")) == 120
