"""Programs that mean harm: no verdict is forged, nothing is read, reached, filled or left behind.

Every program runs behind namespaces and, as if the machine had none, behind Landlock and seccomp; and all
again without root's rights, in a process of another user.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai_learning.reflexion.sandbox import Sandbox

from . import hostile
from .attack import MODES, attack, forge, in_force, keep_files_apart, surroundings

ROOT = Path(__file__).parents[2]


@pytest.fixture(
    scope="module",
    params=[pytest.param(m, marks=pytest.mark.slow) if m == "bubblewrap" else m for m in MODES],
    ids=lambda name: name.replace(" ", "_"),
)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    sandbox = Sandbox(without=MODES[request.param])
    sandbox.start()
    if not in_force(sandbox, request.param):
        pytest.skip(f"this machine has no {request.param}: {sandbox.report}")
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def strongest() -> Iterator[Sandbox]:
    """What `run_python` uses here; the judge is the same in every mode."""
    sandbox = Sandbox()
    yield sandbox
    sandbox.close()


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    with surroundings(tmp_path_factory.mktemp("home")) as values:
        yield values


@pytest.mark.parametrize("name", hostile.ATTACKS)
def test_attacks_are_held(sandbox: Sandbox, name: str, around: dict[str, object]) -> None:
    if name in ("32-bit system calls", "machine code") and os.uname().machine != "x86_64":
        pytest.skip("machine code of another machine")
    result = attack(
        sandbox, name, around, timeout_s=4.0 if "memory" in name or "files" in name or "disk" in name else 0.7
    )
    if name.startswith(("endless", "stopping", "regular")):
        assert result.timed_out or "CPU" in result.error
    if name.startswith(("1 GB", "output after")):
        assert result.error == "wrote more than 16 MB of output" and result.truncated
    if name == "memory bomb by forking":
        assert "memory" in result.error
    if name == "disk filler" or (name == "100k files" and "namespaces" in sandbox.walls):
        assert "held" in result.stdout or "files" in result.error


@pytest.mark.parametrize(
    "tests",
    [
        "TESTS",
        "TOLERANT_TESTS",
        *(pytest.param(t, marks=pytest.mark.slow) for t in ("HUMANEVAL_TESTS", "UNITTEST_TESTS")),
    ],
)
@pytest.mark.parametrize("name", hostile.FORGERIES)
def test_no_verdict_is_forged(strongest: Sandbox, name: str, tests: str) -> None:
    forge(strongest, name, tests)


def test_tests_keep_what_they_assign(sandbox: Sandbox) -> None:
    forge(sandbox, "changing what the tests expect", "EXPECTED_TESTS")
    stop = "def f(x): raise StopIteration"
    assert not sandbox.run(stop, "assert all(map(lambda x: f(x) == 4, [2, 3]))").passed


def test_functions_of_the_tests_do_not_open_the_judge(sandbox: Sandbox) -> None:
    result = sandbox.run(hostile.CURIOUS, hostile.CURIOUS_TESTS)
    assert result.passed, result.error
    assert result.stdout.count("held") == 20 and "ESCAPED" not in result.stdout


def test_names_are_looked_at_once(strongest: Sandbox) -> None:
    result = strongest.run(hostile.TWO_WORDS, hostile.TWO_WORDS_TESTS)
    assert result.passed, result.error
    assert result.stdout.count("held") == 8 and "ESCAPED" not in result.stdout


def test_the_code_reads_what_the_tests_write_and_cannot_change_it(sandbox: Sandbox) -> None:
    keep_files_apart(sandbox)


def test_the_truth_passes_the_same_tests(sandbox: Sandbox) -> None:
    for tests in (hostile.TESTS, hostile.HUMANEVAL_TESTS, hostile.TOLERANT_TESTS, hostile.UNITTEST_TESTS):
        result = sandbox.run("def f(x): return x * x", tests, entry_point="f")
        assert result.passed, result.error


def test_catching_everything_does_not_hide_a_dead_worker(sandbox: Sandbox) -> None:
    tests = "try:\n    f(1)\nexcept BaseException:\n    pass\n"
    assert not sandbox.run("import os\ndef f(x): os._exit(0)", tests).passed
    assert sandbox.run("def f(x): raise ValueError", tests).passed


@pytest.mark.slow
def test_everything_as_another_user() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(tempfile.mkdtemp(prefix="other-user-"))  # pytest's own are closed to others
    try:
        for package in ("ai_learning/__init__.py", "ai_learning/errors.py", "ai_learning/reflexion"):
            source, target = ROOT / package, folder / package
            target.parent.mkdir(exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        (folder / "attacks").mkdir()
        for name in ("hostile.py", "attack.py"):
            shutil.copy(Path(__file__).parent / name, folder / "attacks" / name)
        (folder / "home").mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, 54321, 54321)
            path.chmod(0o755)
        for python in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin") or ""):
            command = [python, "-c", "from attacks.attack import main; main()", str(folder / "home")]
            try:
                done = subprocess.run(
                    command,
                    user=54321, group=54321, extra_groups=[], cwd=folder, env={"PATH": "/usr/bin:/bin"},
                    capture_output=True, text=True, timeout=400,
                )  # fmt: skip
            except PermissionError:
                continue
            assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr
            return
        pytest.skip("no Python that another user may execute")
    finally:
        shutil.rmtree(folder)
