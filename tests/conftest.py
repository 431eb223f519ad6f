"""Shared by all tests: a tiny GPT, quiet threads, and no network."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Tiny models gain nothing from threads, and lose much where the tests share the cores with something else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

# A shell's `&` starts commands deaf to Ctrl-C, and they hand that on to the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
from hypothesis import settings

from ai_learning.model import GPT, GPTConfig

settings.register_profile("default", deadline=None, max_examples=100)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # another number adds in another order: resumed runs would differ by a bit


@pytest.fixture
def tiny_config() -> GPTConfig:
    return GPTConfig(vocab_size=64, block_size=32, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def tiny_gpt(tiny_config: GPTConfig) -> GPT:
    return GPT(tiny_config).eval()


@pytest.fixture
def in_triton_interpreter(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Calls of the test's own file, such as ``check()``, in a process of their own.

    Triton reads TRITON_INTERPRET when it is imported.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")

    def run(call: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", f"import {request.path.stem} as tests; tests.{call}"],
            cwd=request.path.parent,
            env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=False,
        )
        if "only 0-dimensional arrays can be converted" in done.stderr:
            pytest.skip("this Triton's interpreter cannot count loops with this numpy: take Triton 3.9")
        assert done.returncode == 0, done.stderr

    return run
