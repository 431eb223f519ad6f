"""What the sandbox can put in force on this machine, wall by wall, and whether it holds when tried."""

import json
import os
import sys
from dataclasses import dataclass

from .sandbox import Sandbox, SandboxError

_AS_ROOT = "started as root: each run becomes two users that nobody else is"


@dataclass(frozen=True)
class Wall:
    """One mechanism: a row of the doctor's table."""

    name: str
    in_force: bool
    why: str
    """what it does, or why it is not there and what would help"""


@dataclass(frozen=True)
class Diagnosis:
    """The doctor's report."""

    safe: bool
    """untrusted code may run here"""
    summary: str
    """one line"""
    walls: tuple[Wall, ...]
    tried: tuple[Wall, ...]
    """what a program inside tried; ``in_force``: it was held"""

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """(mechanism, in force or not, why), as text for a table: the walls, then what was tried."""
        rows = [(wall.name, "in force" if wall.in_force else "not in force", wall.why) for wall in self.walls]
        return rows + [
            (f"try to {wall.name}", "held" if wall.in_force else "NOT HELD", wall.why) for wall in self.tried
        ]

    def __str__(self) -> str:
        wide = max((len(name) for name, _, _ in self.rows), default=0)
        lines = [f"{name:<{wide}}  {state:<12}  {why}" for name, state, why in self.rows]
        return "\n".join([*lines, self.summary])


# What a program inside tries: it prints a JSON list of [name, held, what it saw].
_PROBE = """
import json, os, socket
seen = []
def attempt(name, step):
    try:
        result = step()
        seen.append([name, False, str(result)[:80]])
    except (OSError, KeyError) as error:
        seen.append([name, True, f"{type(error).__name__}: {error}"[:80]])
attempt("read the caller's home folder", lambda: os.listdir(%(home)r))
attempt("read /etc/passwd", lambda: open("/etc/passwd").readline())
attempt("read the caller's environment", lambda: open("/proc/%(pid)d/environ").read())
attempt("connect to this machine", lambda: socket.create_connection(("127.0.0.1", 9), 1))
attempt("make a network socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt("signal the caller", lambda: os.kill(%(pid)d, 0))
attempt("write outside its folder", lambda: open(os.path.dirname(os.__file__) + "/x", "w"))
attempt("become root", lambda: os.setuid(0) if os.getuid() else os.chroot("."))
print(json.dumps(seen))
"""


def doctor(sandbox: Sandbox | None = None) -> Diagnosis:
    """Start the sandbox, report each mechanism, and let a program inside try what it must not.

    Args:
        sandbox: to look at; the one that `run_python` would use by default.

    Returns:
        A report; a machine that cannot isolate at all is reported, too.
    """
    own = sandbox is None
    sandbox = sandbox or Sandbox()
    try:
        sandbox.start()
    except SandboxError as error:
        return Diagnosis(False, f"untrusted code is refused: {error}", (), ())
    try:
        tried = _try(sandbox)
    finally:
        if own:
            sandbox.close()
    walls = tuple(_walls(sandbox))
    broken = [wall.name for wall in tried if not wall.in_force]
    if sandbox.weakness:
        summary = f"untrusted code is refused: {sandbox.weakness}"
    elif broken:
        summary = f"untrusted code is NOT held: a program inside could {', '.join(broken)}"
    else:
        summary = f"untrusted code is held, behind {', '.join((*sandbox.walls, 'limits'))}"
    return Diagnosis(not sandbox.weakness and not broken, summary, walls, tried)


def _walls(sandbox: Sandbox) -> list[Wall]:
    report, held = sandbox.report, set(sandbox.walls)
    root = bool(report.get("root"))
    spaces, bubble = "namespaces" in held, "bubblewrap" in held

    def wall(name: str, in_force: bool, does: str, lacks: str) -> Wall:
        return Wall(name, in_force, does if in_force else lacks)

    missing = report.get("namespaces") or "unknown"
    hint = f"{missing}; sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone may allow it"

    def space(name: str, does: str) -> Wall:
        return wall(name, spaces or bubble, f"{does}{', through bubblewrap' if bubble else ''}", hint)

    return [
        Wall("separate processes", True, "code and tests in two processes, each in a session of its own"),
        Wall("user", True, _AS_ROOT if root else "stays this user, without any privilege"),
        space("mount namespace", "sees Python's library and an empty folder"),
        space("process namespace", "sees and signals no other process; all die with it"),
        space("network namespace", "a network without any interface"),
        space("IPC and UTS namespaces", "no shared memory or host name of others"),
        wall(
            "bubblewrap",
            bubble,
            "makes the namespaces, which this user may not make itself",
            "not needed: namespaces are made without it"
            if spaces
            else report.get("bubblewrap") or "no bwrap found: installing bubblewrap may give namespaces",
        ),
        wall(
            "seccomp",
            "seccomp" in held,
            "refuses tracing, sockets, mounts, keys, io_uring, foreign memory",
            report.get("seccomp") or "unknown",
        ),
        wall(
            "Landlock",
            "landlock" in held,
            f"version {report.get('landlock_abi')}: files by name, and what the kernel adds (TCP, signals)",
            report.get("landlock") or "unknown",
        ),
        Wall("no_new_privs", True, "set-user-id programs give nothing; all capabilities are dropped"),
        Wall("limits of the kernel", True, "CPU, memory, processes, open files, file size, no core files"),
        Wall("limits that are watched", True, "wall time, output, memory of all its processes together"),
        wall(
            "bounded folder",
            spaces,
            "a file system in memory with a size and a number of files",
            "the folder is on disk; its size is watched, and the run ends beyond it",
        ),
        Wall("cgroups", False, "not used: memory of all processes together is watched instead"),
    ]


def _try(sandbox: Sandbox) -> tuple[Wall, ...]:
    values = {"home": os.path.expanduser("~"), "pid": os.getpid()}
    result = sandbox.run(_PROBE % values, allow_unsafe=True)
    try:
        seen = json.loads(result.stdout)
    except ValueError:
        return (Wall("run a program", False, result.error or "it printed nothing"),)
    return tuple(Wall(name, held, what) for name, held, what in seen)


def main() -> int:
    """Print the report as plain text (``ai-learning reflexion doctor`` shows a table)."""
    diagnosis = doctor()
    print(diagnosis)
    return 0 if diagnosis.safe else 1


if __name__ == "__main__":
    sys.exit(main())
