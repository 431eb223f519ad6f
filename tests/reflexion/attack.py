"""Running the hostile programs and asserting what must hold of all; without pytest, so any Python can."""

import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from ai_learning.reflexion.isolation.limits import Limits
from ai_learning.reflexion.sandbox import RunResult, Sandbox

from . import hostile

MARKER = 86_399_123  # seconds that survivors would sleep: found in the process list if one lives
MODES: dict[str, tuple[str, ...]] = {
    "namespaces": (),
    "bubblewrap": ("namespaces",),
    "landlock and seccomp": ("namespaces", "bubblewrap"),
}


def in_force(sandbox: Sandbox, mode: str) -> bool:
    """Whether the machine has what the mode is named after."""
    return not sandbox.weakness and (mode == "landlock and seccomp" or mode in sandbox.walls)


class surroundings:  # noqa: N801 - a context manager
    """A secret file and variable, a server on loopback and one on an abstract address, a file to destroy."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __enter__(self) -> dict[str, object]:
        self.home.chmod(0o755)
        (self.home / "secret.txt").write_text("TOP SECRET")
        (self.home / "victim.txt").write_text("whole")
        os.environ["A_TOKEN"] = "TOP SECRET"
        self.server = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0sandbox-test-{os.getpid()}")
        self.abstract.listen()
        return {
            "home": self.home,
            "secret": self.home / "secret.txt",
            "victim": self.home / "victim.txt",
            "port": self.server.getsockname()[1],
            "abstract": f"sandbox-test-{os.getpid()}",
            "parent": os.getpid(),
            "repository": Path(__file__).parent,
            "marker": MARKER,
        }

    def __exit__(self, *error: object) -> None:
        del os.environ["A_TOKEN"]
        self.server.close()
        self.abstract.close()


def attack(sandbox: Sandbox, name: str, around: dict[str, object], timeout_s: float = 1.0) -> RunResult:
    """Run one program and assert what must hold of all."""
    code = hostile.ATTACKS[name]
    if "%(" in code:
        code = code % {**around, "namespaces": "namespaces" in sandbox.walls}
    started = time.monotonic()
    result = sandbox.run(code, limits=Limits(timeout_s=timeout_s, memory_mb=128))
    seen = result.stdout + result.stderr + result.error
    assert "ESCAPED" not in seen, (name, seen[:2000])
    assert "TOP SECRET" not in seen, (name, seen[:2000])
    assert len(result.stdout) <= 256 * 1024 and len(result.stderr) <= 256 * 1024
    assert time.monotonic() - started < 25, name
    assert lasting(survivors) == set(), name
    assert lasting(folders) == set(), name
    assert Path(str(around["victim"])).read_text() == "whole"
    assert Path(str(around["home"])).stat().st_mode & 0o777 == 0o755
    return result


def lasting(look: Callable[[], Iterable[str]]) -> set[str]:
    """What is still there after a while; runs of somebody else on this machine come and go."""
    found = set(look())
    for _ in range(100):
        if not found:
            break
        time.sleep(0.1)
        found &= set(look())
    return found


def folders() -> list[str]:
    """Work folders of runs without namespaces."""
    return [str(folder) for folder in Path(tempfile.gettempdir()).glob("sandbox-????????")]


def survivors() -> list[str]:
    """Command lines of processes that a program left; a forked one shows the fork server's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parent = int(state[1])
        if str(MARKER).encode() in line or (b"isolation.server" in line and parent == 1 and state[0] != "Z"):
            found.append(f"{folder.name} {line!r}")
    return found


def forge(sandbox: Sandbox, name: str, tests: str) -> None:
    """Run one forgery against one kind of tests; it must not pass."""
    result = sandbox.run(
        hostile.FORGERIES[name], getattr(hostile, tests), Limits(timeout_s=5.0), entry_point="f"
    )
    assert not result.passed and result.error, (name, result)
    assert "ESCAPED" not in result.stdout, (name, result)


def keep_files_apart(sandbox: Sandbox) -> None:
    """The code reads what the tests write, and neither changes or reads the other's beyond that."""
    result = sandbox.run(hostile.FILES, hostile.FILES_TESTS)
    assert result.passed, result.error
    assert "ESCAPED" not in result.stdout and result.stdout.count("held") == 6, result.stdout


def main() -> None:
    """Everything in every mode; failures on stdout, exit status 1 if there are any."""
    failed = False
    for mode, without in MODES.items():
        sandbox = Sandbox(without=without)
        sandbox.start()
        if not in_force(sandbox, mode):
            print(f"skipped {mode}: {sandbox.report}")
            continue
        with surroundings(Path(sys.argv[1])) as around:
            steps = [(attack, (sandbox, name, around)) for name in hostile.ATTACKS]
            steps += [(forge, (sandbox, name, "TESTS")) for name in hostile.FORGERIES]  # type: ignore[list-item]
            steps.append((keep_files_apart, (sandbox,)))  # type: ignore[arg-type]
            for step, arguments in steps:
                try:
                    step(*arguments)
                except Exception:
                    failed = True
                    print(mode, traceback.format_exc()[-1500:])
        sandbox.close()
    print("done")
    sys.exit(failed)
