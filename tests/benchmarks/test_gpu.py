"""The GPU script runs through on the CPU, where its own checks (same loss, same tokens) bite."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import gpu


def test_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smoke"]) == 0
    out = capsys.readouterr().out
    assert "smoke test, no figures" in out and "nanoGPT was not measured" in out
    assert out.count("| transformers |") == 2 and out.count("8 of 8") == 2
    assert (
        "128 × 128, float32 (no Triton kernels here)" in out and "| one token's product, ai_learning |" in out
    )


def test_other_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "next_token_loss", lambda model, x, y: model(x).mean())
    with pytest.raises(SystemExit, match="not the same work"):
        gpu.main(["--smoke"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smoke", "--nanogpt", str(tmp_path)]) == 2
    assert f"no model.py in {tmp_path}" in capsys.readouterr().err


def test_one_part_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smoke", "--only", "nf4"]) == 0
    assert capsys.readouterr().out.count("##") == 1
