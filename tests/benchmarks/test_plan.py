"""The plan's memory formula against real runs: what autograd keeps, to the byte, and the process's peak."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from ai_learning import loss  # noqa: E402
from ai_learning.loss import next_token_loss  # noqa: E402
from ai_learning.memory import _warm_up  # noqa: E402
from ai_learning.model import GPT, GPTConfig, mlp  # noqa: E402
from ai_learning.presets import preset  # noqa: E402
from benchmarks.plan import _LOGITS, activation_bytes, main, n_params, state_bytes, tokens_per_second  # noqa: E402

SHAPES = [(2, 64, 2, 64, 4), (3, 128, 4, 32, 2)]  # layers, width, heads, block, batch


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_autograd_keeps(shape: tuple[int, ...], low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_FEW_LOGITS", 0)  # as with the many of a real model
    monkeypatch.setattr(mlp, "can_mlp", lambda *args: False)  # as on a GPU
    L, C, H, T, B = shape
    config = GPTConfig(vocab_size=300, block_size=T, n_layer=L, n_head=H, n_embd=C)
    model = GPT(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    idx = torch.randint(0, 300, (B, T))
    autocast = torch.autocast("cpu", torch.bfloat16) if low else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        assert next_token_loss(model, idx, idx).requires_grad
    assert sum(kept.values()) == pytest.approx(activation_bytes(config, B, low=low) - _LOGITS, rel=0.02)


PEAK = """
import sys
import torch
from ai_learning.kernels.loops import ready
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig, mlp
from ai_learning.optim import adamw
from ai_learning.device import checkpointed
from contextlib import nullcontext

mlp.can_mlp = lambda *args: False  # as on a GPU

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def steps(config, batch, n, recompute):
    model = GPT(config)
    optimizer = adamw(model, 1e-3)
    idx = torch.randint(0, config.vocab_size, (batch, config.block_size))
    with checkpointed(model) if recompute else nullcontext():
        for _ in range(n):
            for _ in range(2):  # gradients stay while the second batch's activations are made
                next_token_loss(model, idx, idx).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

steps(GPTConfig(vocab_size=300, block_size=8, n_layer=1, n_head=2, n_embd=16), 1, 1, False)  # PyTorch's own
ready()  # LLVM's loader of compiled loops
before = peak()
config = GPTConfig(vocab_size=1000, block_size=256, n_layer=6, n_head=4, n_embd=256)
steps(config, 4, 2, sys.argv[1] == "True")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("recompute", [False, True])
def test_the_peak_of_a_run(recompute: bool) -> None:
    config = GPTConfig(vocab_size=1000, block_size=256, n_layer=6, n_head=4, n_embd=256)
    _warm_up(torch.device("cpu"))  # has the loops compiled: numba's memory is not to be measured
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(recompute)],
        # freed memory goes back at once: what is measured is what is held
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    small_chunk = (
        1000 * 256 * 4 * 4 * 3
    )  # the logits of all 1024 positions, in three copies, are below a chunk
    planned = state_bytes(config) + activation_bytes(config, 4, recompute=recompute) - _LOGITS + small_chunk
    assert int(done.stdout) == pytest.approx(planned, rel=0.15)


def test_published_sizes_and_sharing() -> None:
    assert [round(n_params(preset(name)) / 1e6) for name in ("gpt2", "gpt2-xl")] == [124, 1558]
    config = preset("gpt2-xl")
    assert state_bytes(config, 8, sharded=True) == state_bytes(config) / 8
    # 124M at MFU 0.5 of 989 TFLOP/s: 494.5e12 / (6·123.65M + 12·12·768·1024)
    assert tokens_per_second(preset("gpt2"), 1, 0.5, 989e12) == pytest.approx(578_300, rel=1e-3)


def test_the_table_needs_a_measured_mfu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--price", "3"])
    assert main(["--mfu", "1.5", "--price", "3"]) == 2
    assert "--mfu 1.5 must be above 0 and at most 1" in capsys.readouterr().err
    assert main(["--mfu", "0.4", "--price", "3", "--memory-gb", "24"]) == 0
    out = capsys.readouterr().out
    assert "MFU 40% (given, not measured here)" in out and out.count("| gpt2-xl |") == 7
    assert "(too large)" in next(line for line in out.splitlines() if line.startswith("| gpt2-xl"))
