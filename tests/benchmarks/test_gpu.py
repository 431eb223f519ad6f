"""The GPU script runs through on the CPU, where its own checks (same loss, same tokens) bite."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from ai_learning.generate import generate
from ai_learning.model import GPT
from benchmarks import gpu


def test_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smoke"]) == 0
    out = capsys.readouterr().out
    assert "smoke test, no figures" in out and "nanoGPT was not measured" in out
    assert out.count("| transformers |") == 2 and out.count("8 of 8") == 3
    assert "NF4, 128 × 128" in out and "| one token's product, ai_learning |" in out


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


def test_the_static_decoder_gives_the_same_tokens_again_and_again(tiny_gpt: GPT) -> None:
    decoder = gpu.StaticDecoder(tiny_gpt, capacity=32, graph=False)
    for length in (1, 9):
        prompt = torch.randint(0, 64, (1, length))
        assert torch.equal(decoder(prompt, 12), generate(tiny_gpt, prompt, 12, temperature=0))
