"""Compiled loops on threads: each share once, nothing freed too soon, no crash where they cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ai_learning

numba = pytest.importorskip("numba")
import numpy as np  # noqa: E402

from ai_learning import pages, threads  # noqa: E402
from ai_learning.threads import array, fields, loop, run  # noqa: E402

ROOT = Path(ai_learning.__file__).parents[1]


@loop()
def count(job, first, last):  # type: ignore[no-untyped-def]
    """Add 1 to each of the places first … last−1."""
    job = fields(job)
    places = array(job, 1, job[0], np.int64)
    for i in range(first, last):
        places[i] += 1


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["PyTorch's threads", "Python's threads"])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (0, 2), (3, 10), (0, 1000), (17, 99_999)])
def test_each_place_is_visited_once(kind, first, last, three_threads, monkeypatch) -> None:
    monkeypatch.setattr(threads, "_WORTH_A_PYTHON_THREAD", 1)
    if kind == "Python's threads":
        monkeypatch.setattr(threads, "_gomp_parallel", lambda: None)
    elif threads._gomp_parallel() is None:
        pytest.skip("PyTorch has no GNU threads here")
    for _ in range(20):
        places = torch.zeros(100_000, dtype=torch.int64)
        run(count, first, last, 2**20, (100_000,), (places,))
        want = torch.zeros_like(places)
        want[first:last] = 1
        assert torch.equal(places, want)


def test_an_interrupt_waits_for_the_threads(three_threads, monkeypatch) -> None:
    monkeypatch.setattr(threads, "_gomp_parallel", lambda: None)
    monkeypatch.setattr(threads, "_WORTH_A_PYTHON_THREAD", 1)
    real, calls = threads.wait, []

    def interrupted(futures):
        calls.append(futures)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(futures)

    monkeypatch.setattr(threads, "wait", interrupted)
    places = torch.zeros(1_000_000, dtype=torch.int64)
    with pytest.raises(KeyboardInterrupt):
        run(count, 0, 1_000_000, 1_000_000, (1_000_000,), (places,))
    assert len(calls) == 2 and all(future.done() for future in calls[1]) and bool((places == 1).all())


def test_what_has_no_address_is_refused() -> None:
    x = torch.zeros(4, 4)
    strange = [x.T[1:], torch._neg_view(x), torch.zeros(4, device="meta"), torch.zeros(4).to_sparse()]
    assert pages.is_plain(x, torch.nn.Parameter(x))
    for tensor in strange:
        assert not pages.is_plain(x, tensor)
        with pytest.raises(TypeError, match="main memory"):
            run(count, 0, 1, 1, (1,), (tensor,))


def in_a_new_process(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"} | env,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


NF4 = """
import torch
from ai_learning.adapters import dequantize_nf4, quantize_nf4
numbers = torch.arange(100_000.0)
def both():
    packed, state = quantize_nf4(numbers)
    return dequantize_nf4(packed, state)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_works_alone() -> None:
    done = in_a_new_process(
        NF4 + "import os\nwant = both().numpy().tobytes()\npid = os.fork()\n"
        "if pid == 0:\n    os._exit(0 if both().numpy().tobytes() == want else 1)\n"
        "print(os.waitpid(pid, 0)[1])"
    )
    assert done.stdout.strip() == "0", done.stderr


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = NF4 + "for dtype in (torch.float32, torch.bfloat16, torch.float16):\n"
    code += "    dequantize_nf4(*quantize_nf4(torch.ones(100_000)), dtype=dtype)"
    found = []
    for _ in range(2):
        done = in_a_new_process(code, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        found.append(sorted(path.name for path in tmp_path.rglob("*.nbc")))
    assert found[0] and found[0] == found[1]


def test_no_folder_to_write_to_is_no_hindrance(monkeypatch) -> None:
    def no_locator(self) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(threads.CFunc, "enable_caching", no_locator)
    places = torch.zeros(5, dtype=torch.int64)
    run(threads.Loop(count.function), 0, 5, 5, (5,), (places,))
    assert places.tolist() == [1] * 5
