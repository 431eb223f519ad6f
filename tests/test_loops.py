"""Compiled loops on threads: each share once, nothing freed too soon, no crash where they cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ai_learning
from ai_learning import files
from ai_learning.kernels import host_memory as pages

numba = pytest.importorskip("numba")
import numpy as np  # noqa: E402

from ai_learning.kernels.loops import StoredLoop, ready, run, store, threads  # noqa: E402
from ai_learning.kernels.loops.compiler import array, fields, loop  # noqa: E402

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
        monkeypatch.setattr(threads, "_gomp", lambda: None)
    elif threads._gomp() is None:
        pytest.skip("PyTorch has no GNU threads here")
    for _ in range(20):
        places = torch.zeros(100_000, dtype=torch.int64)
        run(count, first, last, 2**20, (100_000,), (places,))
        want = torch.zeros_like(places)
        want[first:last] = 1
        assert torch.equal(places, want)


def test_an_interrupt_waits_for_the_threads(three_threads, monkeypatch) -> None:
    monkeypatch.setattr(threads, "_gomp", lambda: None)
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


def test_a_second_process_needs_no_numba(tmp_path: Path) -> None:
    code = NF4 + "for dtype in (torch.float32, torch.bfloat16, torch.float16):\n"
    code += "    packed, state = quantize_nf4(torch.arange(100_001.0))\n"
    code += "    print(dequantize_nf4(packed, state, dtype=dtype).double().sum().item())\n"
    code += "import sys\nprint('numba' in sys.modules)"
    printed, found = [], []
    for _ in range(2):
        done = in_a_new_process(code, NUMBA_CACHE_DIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.split())
        found.append(sorted(path.name for path in tmp_path.iterdir()))
    assert found[0] and found[0] == found[1] and all(name.endswith(".loop") for name in found[0])
    assert printed[0][-1] == "True" and printed[1] == [*printed[0][:-1], "False"]


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an own store with one loop in it."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert StoredLoop("kernels.gelu_kernels", "portable_gelu_new").address
    return tmp_path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each loop that is compiled."""
    names: list[str] = []
    real = StoredLoop._compile

    def noted(self: StoredLoop) -> tuple[str, bytes]:
        names.append(self.name)
        return real(self)

    monkeypatch.setattr(StoredLoop, "_compile", noted)
    return names


def assert_it_works(found: StoredLoop) -> None:
    y = torch.zeros(8)
    run(found, 0, 8, 8, (8,), (torch.ones(8), y))
    assert y.tolist() == pytest.approx([0.841192] * 8, abs=1e-6)


def test_what_is_stored_is_used(stored: Path, compiled: list[str]) -> None:
    compiled.clear()
    assert_it_works(StoredLoop("kernels.gelu_kernels", "portable_gelu_new"))
    assert not compiled


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty", "not ours"])
def test_damaged_code_is_never_run(stored: Path, damage: str, compiled: list[str]) -> None:
    (path,) = stored.iterdir()
    good = path.read_bytes()
    flipped = good[:-100] + bytes([good[-100] ^ 1]) + good[-99:]
    bad = {"cut off": good[:3000], "one bit": flipped, "empty": b"", "not ours": b"\xff" * 500}
    path.write_bytes(bad[damage])
    compiled.clear()
    assert_it_works(StoredLoop("kernels.gelu_kernels", "portable_gelu_new"))
    assert compiled == ["portable_gelu_new"] and store._read(
        "kernels.gelu_kernels", "portable_gelu_new"
    )  # made good


def test_what_was_made_otherwise_is_replaced(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(store, "_PACKAGE", tmp_path)
    for key in "01":
        monkeypatch.setattr(store, "_key", lambda module, key=key: key * 64)
        assert_it_works(StoredLoop("kernels.gelu_kernels", "portable_gelu_new"))
    assert compiled == ["portable_gelu_new", "portable_gelu_new"]
    (left,) = (tmp_path / "kernels" / "__pycache__").iterdir()
    assert left.name == f"kernels.gelu_kernels.portable_gelu_new.{'1' * 24}.loop"


def test_the_key_changes_with_what_the_code_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = store._key.__wrapped__
    plain = key("kernels.training_kernels")
    assert key("kernels.training_kernels") == plain != key("adapters.nf4_kernels")
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert key("kernels.training_kernels") != plain
    monkeypatch.delenv("NUMBA_CPU_NAME")
    monkeypatch.setenv("NUMBA_OPT", "0")
    assert key("kernels.training_kernels") != plain
    monkeypatch.delenv("NUMBA_OPT")
    monkeypatch.setattr(store, "_features", lambda: "+sse2")
    assert key("kernels.training_kernels") != plain


def test_no_folder_to_write_to_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "folder"))
    assert_it_works(StoredLoop("kernels.gelu_kernels", "portable_gelu_new"))


def test_the_users_cache_serves_where_the_sources_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_PACKAGE", tmp_path / "file")
    monkeypatch.setattr(store, "_key", lambda module: "0" * 64)
    assert_it_works(StoredLoop("kernels.gelu_kernels", "portable_gelu_new"))
    assert [path.suffix for path in (tmp_path / "cache" / "ai-learning").iterdir()] == [".loop"]


def test_a_shared_folder_keeps_what_others_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    young, old = (tmp_path / f"kernels.gelu_kernels.{name}.other.loop" for name in ("gelu", "gone"))
    young.write_bytes(b"")
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    assert StoredLoop("kernels.gelu_kernels", "portable_gelu_new").address
    assert young.exists() and not old.exists()


def test_a_loop_that_cannot_be_had_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))

    def broken(self: StoredLoop) -> tuple[str, bytes]:
        raise OSError("libLLVM is not what it was")

    monkeypatch.setattr(StoredLoop, "_compile", broken)
    with pytest.warns(UserWarning, match="no compiled loops .*training_kernels.adamw.*libLLVM is not"):
        assert not ready(StoredLoop("kernels.training_kernels", "adamw"))


def test_a_dangling_link_beside_the_sources_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("1")
    plain = files.digest_of_sources(tmp_path)
    (tmp_path / ".#one.py").symlink_to("nowhere")  # an editor's lock
    assert files.digest_of_sources(tmp_path) == plain


def test_without_numba_everything_is_pytorchs() -> None:
    code = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing either fails
import torch
from ai_learning import loss
from ai_learning.kernels import gelu
from ai_learning.kernels.loops import ready
from ai_learning.model.attention import fast_attention
from ai_learning.adapters import dequantize_nf4, quantize_nf4
from ai_learning.optim import adamw
assert not ready()
gelu._WORTH_IT = loss._WORTH_COMPILED = 1
x = torch.randn(1, 4, 256, 64, requires_grad=True)
causal = torch.ones(256, 256, dtype=torch.bool).tril()
fast_attention(x, x, x, causal, is_causal=True)[0].sum().backward()
x = torch.randn(300, 300, requires_grad=True)
loss.linear_cross_entropy(gelu.gelu_new(x), x.detach(), torch.arange(300)).backward()
assert type(adamw(torch.nn.Linear(300, 300), 0.1)) is torch.optim.AdamW
packed, state = quantize_nf4(x.detach())
assert dequantize_nf4(packed, state).shape == x.shape
"""
    done = in_a_new_process(code)
    assert done.returncode == 0, done.stderr


def test_who_waits_for_a_loop_to_be_compiled_is_told_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    told: list[int] = []
    loops = [
        StoredLoop("kernels.triton_use_kernels", "none"),
        StoredLoop("kernels.loss_triton_kernels", "none"),
    ]
    monkeypatch.setattr(store, "import_module", lambda name: told.append(0))
    with store.before_compiling(lambda: told.append(1)):
        for loop in loops:
            with pytest.raises(AttributeError):  # there is no such loop; it was asked for all the same
                loop._compile()
    assert told == [1, 0, 0] and not store._to_be_told
    monkeypatch.setattr(store, "_read", lambda module, name: ("symbol", b""))
    monkeypatch.setattr(store, "_place", lambda symbol, code: 7)
    with store.before_compiling(lambda: told.append(1)):
        assert StoredLoop("kernels.any", "stored").address == 7
    assert told == [1, 0, 0] and not store._to_be_told
