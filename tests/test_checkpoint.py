"""Checkpoints: round trips, damage, malice, a full disk."""

import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ai_learning.checkpoint import (
    build_model,
    load_checkpoint,
    load_gpt,
    open_model,
    previous_path,
    save_checkpoint,
)
from ai_learning.cli.common import open_language_model
from ai_learning.errors import CheckpointError
from ai_learning.model import GPT, GPTConfig
from ai_learning.model.heads import TaskConfig, TaskModel
from ai_learning.tokenizers import ByteTokenizer


def test_round_trip(tiny_gpt: GPT, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.pt"
    save_checkpoint(tiny_gpt, path, step=7, note="hello")
    checkpoint = load_checkpoint(path)
    assert checkpoint["step"] == 7 and checkpoint["config"]["n_layer"] == 2
    loaded, _ = load_gpt(path)
    idx = torch.randint(0, 64, (1, 8))
    assert torch.equal(loaded(idx), tiny_gpt(idx))
    assert loaded.lm_head.weight is loaded.wte.weight
    assert torch.load(path, weights_only=True).keys() >= {"config", "state_dict"}


def test_a_compiled_model_is_saved_as_what_it_is(tiny_gpt: GPT, tmp_path: Path) -> None:
    compiled = torch.compile(tiny_gpt, backend="eager")
    save_checkpoint(compiled, tmp_path / "a.pt")  # type: ignore[arg-type]
    opened, _ = load_gpt(tmp_path / "a.pt")
    assert all(torch.equal(value, tiny_gpt.state_dict()[name]) for name, value in opened.state_dict().items())


def test_task_models_too(tmp_path: Path) -> None:
    gpt = GPTConfig(vocab_size=20, block_size=8, n_layer=1, n_head=1, n_embd=8)
    model = TaskModel(TaskConfig(gpt, "similarity", 4))
    save_checkpoint(model, tmp_path / "m.pt")
    loaded = build_model(load_checkpoint(tmp_path / "m.pt"))
    assert isinstance(loaded, TaskModel) and loaded.config == model.config
    assert isinstance(load_gpt(tmp_path / "m.pt")[0], GPT)


def two_versions(model: GPT, path: Path) -> None:
    save_checkpoint(model, path, step=1)
    save_checkpoint(model, path, step=2)


def test_the_previous_one_is_kept(tiny_gpt: GPT, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    two_versions(tiny_gpt, path)
    assert load_checkpoint(path)["step"] == 2
    assert load_checkpoint(previous_path(path))["step"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"last.pt", "last.prev.pt"}  # nothing else is left


@pytest.mark.parametrize("size", [0, 1, 100, 5000, -1])
def test_truncation_falls_back(tiny_gpt: GPT, tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.pt"
    two_versions(tiny_gpt, path)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:size])
    with pytest.warns(UserWarning, match="truncated, corrupt or no checkpoint.*using the previous one"):
        assert load_checkpoint(path)["step"] == 1
    previous_path(path).unlink()
    with pytest.raises(CheckpointError, match="no previous one to fall back to") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits_never_give_wrong_weights(tiny_gpt: GPT, tmp_path: Path, seed: int) -> None:
    """Either the flip is noticed and the previous file is used, or it hit padding and changed nothing."""
    path = tmp_path / "last.pt"
    two_versions(tiny_gpt, path)
    data = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(seed)
    place = int(torch.randint(0, len(data), (1,), generator=generator))
    data[place] ^= 1 << int(torch.randint(0, 8, (1,), generator=generator))
    path.unlink()
    path.write_bytes(data)
    import warnings

    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        checkpoint = load_checkpoint(path)
    assert checkpoint["step"] in (1, 2)
    for name, tensor in tiny_gpt.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][name], tensor), name


def test_flips_in_the_archives_directory(tmp_path: Path) -> None:
    """Its own fields have no checksum: a flip there must not give other weights, or a traceback."""
    path = tmp_path / "last.pt"
    model = GPT(GPTConfig(vocab_size=3, block_size=2, n_layer=1, n_head=1, n_embd=2))
    save_checkpoint(model, path, step=1)
    data = path.read_bytes()
    start = data.index(b"PK\x01\x02")
    generator = random.Random(0)
    flips = [(place, bit) for place in range(start, len(data)) for bit in range(8)]
    for place, bit in generator.sample(flips, 1500):
        flipped = bytearray(data)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            checkpoint = load_checkpoint(path)
        except CheckpointError:
            continue
        for name, tensor in model.state_dict().items():
            assert torch.equal(checkpoint["state_dict"][name], tensor), (place, bit, name)


def test_a_corrupt_file_never_replaces_the_good_previous_one(tiny_gpt: GPT, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    two_versions(tiny_gpt, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.warns(UserWarning, match="using the previous one"):
        assert load_checkpoint(path)["step"] == 1
    save_checkpoint(tiny_gpt, path, step=3)
    assert load_checkpoint(previous_path(path))["step"] == 1


def test_equal_states_give_equal_files(tiny_gpt: GPT, tmp_path: Path) -> None:
    save_checkpoint(tiny_gpt, tmp_path / "a.pt", step=1)
    save_checkpoint(tiny_gpt, tmp_path / "b.pt", step=1)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_flipped_weight_is_noticed(tiny_gpt: GPT, tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    save_checkpoint(tiny_gpt, path)
    data = bytearray(path.read_bytes())
    raw = tiny_gpt.h[0].attn.c_attn.weight.detach().numpy().tobytes()
    data[data.index(raw) + 40] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt"):
        load_checkpoint(path)


class Malice:
    def __reduce__(self) -> tuple:
        return os.system, ("touch owned",)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_file_does_not_run(
    tiny_gpt: GPT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    if how == "torch":
        torch.save({"config": {}, "state_dict": {}, "x": Malice()}, path)
    else:
        path.write_bytes(pickle.dumps(Malice()))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()
    assert "\n" not in str(caught.value)
    if how == "torch":
        assert "asks to run code (posix.system)" in str(caught.value)


def test_malice_is_not_smoothed_over_by_the_previous_file(tiny_gpt: GPT, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    two_versions(tiny_gpt, path)
    torch.save({"config": {}, "state_dict": {}, "x": Malice()}, path)
    with pytest.raises(CheckpointError, match="asks to run code"):
        load_checkpoint(path)


def test_missing_and_foreign_files(tiny_gpt: GPT, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match="lacks config and state_dict"):
        load_checkpoint(tmp_path / "foreign.pt")
    torch.save({"config": {"n_layers": 2}, "state_dict": {}}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"does not describe a model.*n_layers"):
        build_model(load_checkpoint(tmp_path / "odd.pt"))


def test_a_full_disk_leaves_the_old_file(tiny_gpt: GPT, tmp_path: Path) -> None:
    """A limit on the file size stands in for the full disk: the write fails half way, as there."""
    path = tmp_path / "last.pt"
    save_checkpoint(tiny_gpt, path, step=1)
    code = f"""
import resource, signal, sys, torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from ai_learning.checkpoint import save_checkpoint
from ai_learning.model import GPT, GPTConfig
model = GPT(GPTConfig(**{tiny_gpt.config.__dict__!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(model, {str(path)!r}, step=2)
except Exception as error:
    print(type(error).__name__, str(error).count(chr(10)), error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("CheckpointError 0 cannot write"), done.stdout + done.stderr
    assert load_checkpoint(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


@pytest.mark.skipif(
    not shutil.which("mount") or os.geteuid() != 0, reason="needs root to mount a small tmpfs"
)
def test_a_really_full_disk(tiny_gpt: GPT, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        save_checkpoint(tiny_gpt, disk / "last.pt", step=1)
        with pytest.raises(CheckpointError, match=r"cannot write.*the previous checkpoint is untouched"):
            save_checkpoint(tiny_gpt, disk / "last.pt", step=2, ballast=torch.zeros(100_000))
        assert load_checkpoint(disk / "last.pt")["step"] == 1
        assert [p.name for p in disk.iterdir()] == ["last.pt"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("entry", [{"folder": "tokenizer"}, {"class": "BPE"}, "bytes"])
def test_an_incomplete_tokenizers_entry_is_one_line(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "m.pt"
    model = GPT(GPTConfig(vocab_size=258, block_size=8, n_layer=1, n_head=1, n_embd=8))
    save_checkpoint(model, path, tokenizer=entry)
    lacks = r"the entry 'tokenizer' of .*m\.pt lacks (class|fingerprint).*: give one with --tokenizer"
    with pytest.raises(CheckpointError, match=lacks):
        open_model(path)
    tokenizer = open_language_model(str(path), "bytes")[1]  # its own is not even looked at
    assert isinstance(tokenizer, ByteTokenizer)


def test_what_is_saved_can_be_loaded(tiny_gpt: GPT, tmp_path: Path) -> None:
    """NumPy's numbers are pickled as code: a file with them would be refused when it is read."""
    path = tmp_path / "a.pt"
    extra = {"loss": np.float64(1.5), "deep": [{"n": (np.int64(3), None)}], "array": np.arange(3), "on": True}
    save_checkpoint(tiny_gpt, path, **extra)
    loaded = load_checkpoint(path)
    assert type(loaded["loss"]) is float and loaded["deep"] == [{"n": (3, None)}] and loaded["on"] is True
    assert loaded["array"].tolist() == [0, 1, 2]
    before = path.read_bytes()
    for value in (Path("x"), object(), {"a": [lambda: 0]}, np.array(["a"])):
        with pytest.raises(ValueError, match=r"what.* is of \w+, which a checkpoint cannot hold"):
            save_checkpoint(tiny_gpt, path, what=value)
    with pytest.raises(ValueError, match="config=… is the model's own"):
        save_checkpoint(tiny_gpt, path, config={})
    assert path.read_bytes() == before
