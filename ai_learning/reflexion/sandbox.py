"""Running Python that nobody has read, and learning honestly whether it passes its tests.

    result = run_python("def add(a, b): return a - b", tests="assert add(1, 2) == 3")
    result.passed   # False
    result.error    # 'assert add(1, 2) == 3: got -1, expected 3 …'

The code runs in a process of its own that sees an empty folder, Python's library and nothing else: no
network, no other process, no file or environment variable of its caller. The tests run in a second process,
which calls the first: the code never meets its tests, so it cannot tamper with them (``isolation/judge.py``).
When `run_python` returns, everything that it started is dead. ``docs/sandbox.md`` says what holds and what
does not.
"""

import atexit
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .isolation.jail import readable_paths
from .isolation.limits import Limits
from .isolation.wire import MAX_FRAME, ClosedError, WireError, receive, send

if TYPE_CHECKING:
    from .doctor import Diagnosis

_GRACE_S = 30.0  # for starting and ending a run on a busy machine, beyond its own time
_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from isolation.server import main; sys.path.pop(0); "
    "sys.orig_argv.clear(); main()"
)
_BUBBLE = [
    "--unshare-all",
    "--unshare-user",
    "--uid",
    "65534",
    "--gid",
    "65534",
    "--cap-drop",
    "ALL",
    "--die-with-parent",
    "--new-session",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
]


@dataclass(frozen=True)
class RunResult:
    """What came of one run."""

    passed: bool
    """the code ran to its end, and all tests hold"""
    stdout: str
    """its beginning, if it is long"""
    stderr: str
    error: str
    """empty, or why it did not pass: the first failing assert and its values, an exception, a limit"""
    timed_out: bool
    exit_code: int | None
    """of the code: 0, 1 after an exception, what it gave to ``sys.exit``, minus the signal that ended it;
    None when it was stopped"""
    truncated: bool
    """output was left out of `stdout` or `stderr`"""
    duration_s: float
    """wall time, with the sandbox's own"""
    isolation: tuple[str, ...]
    """the walls in force: namespaces, bubblewrap, landlock, seccomp, limits"""


class SandboxError(InputError):
    """The machine cannot hold untrusted code, and running it unsafely was not asked for."""


class Sandbox:
    """A fork server and its walls. Threads may share one; `run_python` uses a common one.

    Args:
        without: walls to leave out, as if the machine lacked them: ``namespaces``, ``bubblewrap``,
            ``landlock``, ``seccomp``.
    """

    def __init__(self, without: Iterable[str] = ()) -> None:
        self.without = tuple(without)
        self.report: dict[str, str] = {}
        """for each wall why it is not in force, or nothing"""
        self.walls: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def weakness(self) -> str:
        """Why untrusted code must not run here; empty where it may."""
        if "namespaces" in self.walls or {"landlock", "seccomp"} <= set(self.walls):
            return ""
        return "; ".join(
            f"no {name}: {self.report.get(name) or 'unknown'}"
            for name in ("namespaces", "landlock", "seccomp")
            if name not in self.walls
        )

    def run(
        self,
        code: str,
        tests: str = "",
        limits: Limits | None = None,
        entry_point: str | None = None,
        allow_unsafe: bool = False,
    ) -> RunResult:
        """See `run_python`."""
        limits = limits or Limits()
        started = time.monotonic()
        job = self._open_job(limits, allow_unsafe)
        with job:
            job.settimeout(limits.timeout_s + _GRACE_S)
            try:
                send(job, {"code": code, "tests": tests, "entry_point": entry_point})
                answer: dict[str, Any] = receive(job)
            except TimeoutError:
                answer = {
                    "error": f"no answer from the sandbox in {limits.timeout_s + _GRACE_S:g} s",
                    "timed_out": True,
                }
            except (ClosedError, OSError) as error:
                answer = {"error": f"the sandbox broke off: {type(error).__name__} {error}".rstrip()}
            except WireError as error:
                raise InputError(f"code and tests must be under {MAX_FRAME >> 20} MB: {error}") from None
        if answer.get("refused") and not allow_unsafe:
            raise SandboxError(answer["error"])
        return RunResult(
            passed=answer.get("passed") is True and not answer.get("error"),
            stdout=answer.get("stdout", ""),
            stderr=answer.get("stderr", ""),
            error=answer.get("error", ""),
            timed_out=bool(answer.get("timed_out")),
            exit_code=answer.get("exit_code"),
            truncated=bool(answer.get("truncated")),
            duration_s=time.monotonic() - started,
            isolation=(*self.walls, "limits"),
        )

    def start(self) -> None:
        """Start the fork server if it is not running."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the fork server; runs in progress end with their callers."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=5)
            self._control = self._process = None

    def _open_job(self, limits: Limits, allow_unsafe: bool) -> socket.socket:
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            for attempt in (1, 2):
                self._start()
                if self.weakness and not allow_unsafe:
                    ours.close()
                    raise SandboxError(
                        f"this machine cannot hold untrusted code ({self.weakness}); see `ai-learning "
                        "reflexion doctor`, or pass allow_unsafe=True for code that you trust"
                    )
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [json.dumps(asdict(limits)).encode()], [theirs.fileno()])
                    return ours
                except OSError:  # somebody killed the fork server: start another, once
                    self._control.close()
                    self._control = None
                    if attempt == 2:
                        raise
        raise AssertionError("unreachable")

    def _start(self) -> None:
        if self._control is not None:
            return
        if not sys.platform.startswith("linux"):
            raise SandboxError(
                f"the sandbox needs Linux, not {sys.platform}: use a container or a virtual machine"
            )
        self._launch([])
        bwrap = shutil.which("bwrap", path="/usr/bin:/bin:/usr/local/bin")
        if "namespaces" in self.walls or "bubblewrap" in self.without or bwrap is None:
            return
        # Where only bubblewrap may make namespaces (Ubuntu's AppArmor), the fork server lives inside one.
        plain = (self._control, self._process, self.walls, self.report)
        try:
            self._launch(
                [bwrap, *_BUBBLE, *(word for path in readable_paths() for word in ("--ro-bind", path, path))]
            )
        except SandboxError as error:
            self._control, self._process, self.walls, self.report = plain
            self.report["bubblewrap"] = str(error)
            return
        self.walls = ("bubblewrap", *self.walls)
        assert plain[0] is not None
        plain[0].close()

    def _launch(self, wrapper: list[str]) -> None:
        """Start a fork server and read its report."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = self._popen(theirs, wrapper)
        ours.settimeout(60)
        try:
            hello = json.loads(ours.recv(65536))
        except (OSError, ValueError) as error:
            ours.close()
            process.kill()
            process.wait()
            raise SandboxError(f"the sandbox's fork server did not start: {error}") from None
        ours.settimeout(None)
        self._control, self._process, self.report = ours, process, hello["report"]
        self.walls = tuple(name for name, holds in hello["walls"].items() if holds)

    def _popen(self, control: socket.socket, wrapper: list[str]) -> "subprocess.Popen[bytes]":
        """Run the server with this interpreter, or with one of the same version that we may execute."""
        room = str(Path(__file__).parent)
        if wrapper:
            wrapper = [*wrapper, "--ro-bind", room, room]
        error: OSError | None = None
        for interpreter in _interpreters():
            try:
                return subprocess.Popen(
                    [
                        *(*wrapper, interpreter, "-s", "-S", "-P", "-X", "utf8", "-c", _START, room),
                        *(str(control.fileno()), *self.without),
                    ],
                    env=_clean_environment(),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[control.fileno()],
                    start_new_session=True,
                )
            except OSError as problem:
                error = error or problem
        raise SandboxError(f"the sandbox's interpreter cannot be started: {error}")


def run_python(
    code: str,
    *,
    tests: str = "",
    timeout_s: float = 5.0,
    memory_mb: int = 256,
    entry_point: str | None = None,
    allow_unsafe: bool = False,
    limits: Limits | None = None,
) -> RunResult:
    """Run a program that may be wrong or hostile, then tests on what it defined.

    Args:
        code: the program.
        tests: asserts on the program's functions, HumanEval's ``def check(candidate)``, ``unittest`` classes
            or ``test_…`` functions. They run in another process, on plain values that the code returns.
            Without tests the program passes when it runs to its end (``sys.exit`` is not the end). They may
            write files, which the code can read.
        timeout_s: wall seconds for code and tests together.
        memory_mb: megabytes for the code, on top of the interpreter's own.
        entry_point: the function under test: what ``check`` is called with where tests do not call it, and
            the name that errors show for ``candidate``.
        allow_unsafe: run even where the machine cannot isolate the code.
        limits: all limits; ``timeout_s`` and ``memory_mb`` replace its own.

    Returns:
        The result. A program that fails, loops or is killed is a result, not an exception.

    Raises:
        SandboxError: the machine offers too little isolation (the reason is told).
        InputError: bad limits, or a program of more than 64 MB.

    Example:
        >>> run_python("def add(a, b):\\n    return a + b", tests="assert add(2, 2) == 4").passed
        True
    """
    for name, value in (("code", code), ("tests", tests)):
        if not isinstance(value, str):
            raise InputError(f"{name} must be text, not {type(value).__name__}")
    if not 0 < timeout_s <= 86400:
        raise InputError(f"timeout_s={timeout_s} must be above 0, at most 86400")
    if memory_mb < 16:
        raise InputError(f"memory_mb={memory_mb} is too little for Python: give at least 16")
    limits = replace(limits or Limits(), timeout_s=float(timeout_s), memory_mb=int(memory_mb))
    return _common().run(code, tests, limits, entry_point, allow_unsafe)


def _interpreters() -> list[str]:
    """Who left root's rights may have lost those to the interpreter that runs us."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = (
        getattr(sys, "_base_executable", ""),
        sys.executable,
        shutil.which(version) or "",
        f"/usr/bin/{version}",
    )
    return [path for path in dict.fromkeys(candidates) if path]


def _clean_environment() -> dict[str, str]:
    """Nothing of the caller's. Hashes are the same in every run; threads share one memory arena."""
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}


_shared: dict[int, Sandbox] = {}
_shared_lock = threading.Lock()


def _common() -> Sandbox:
    """This process's own fork server: a child that was forked from us starts another."""
    with _shared_lock:
        if os.getpid() not in _shared:
            _shared.clear()
            _shared[os.getpid()] = Sandbox()
        return _shared[os.getpid()]


@atexit.register
def _close_shared() -> None:
    sandbox = _shared.get(os.getpid())
    if sandbox is not None:
        sandbox.close()


def doctor() -> "Diagnosis":
    """Which walls are in force on this machine, and why others are not; see ``doctor.py``."""
    from .doctor import doctor as examine

    return examine()
