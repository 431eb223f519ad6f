"""The fork server: one small, single-threaded process that makes a fresh, walled-in pair for each run.

It is started once with a clean environment, finds out which walls the machine offers, goes behind them, and
then forks: no interpreter start, and no fork of a caller that may have threads and a GPU.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict

from . import jail, landlock, limits, linux, seccomp
from .limits import Limits
from .supervisor import Walls, supervise

# What programs for tasks import most: loaded once, here.
_PRELOAD = [
    "abc",
    "bisect",
    "collections",
    "copy",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "functools",
    "hashlib",
    "heapq",
    "io",
    "itertools",
    "json",
    "math",
    "operator",
    "queue",
    "random",
    "re",
    "statistics",
    "string",
    "threading",
    "time",
    "traceback",
    "typing",
    "unittest",
]


def serve(control: socket.socket, without: set[str]) -> None:
    """Report what is in force, then fork for each request until the caller is gone.

    Args:
        control: a sequence of packets; with each comes the socket of one run.
        without: walls to leave out, as if the machine did not have them.
    """
    for name in _PRELOAD:
        importlib.import_module(name)
    os.umask(0o022)
    limits.measure()
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    walls, report = find_walls(without)
    if walls.namespaces:
        jail.enter()
    os.umask(0o077)
    linux.bound_capabilities()
    control.send(json.dumps({"walls": asdict(walls), "report": report}).encode())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # runs are not waited for
    gc.collect()
    gc.freeze()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, 65536, 1)
        if not packet:
            return
        job = socket.socket(fileno=descriptors[0])
        if os.fork() == 0:
            control.close()
            with contextlib.suppress(BaseException):
                supervise(job, Limits(**json.loads(packet)), walls, proc)
            os._exit(0)
        job.close()


def find_walls(without: set[str]) -> tuple[Walls, dict[str, str]]:
    """Try each wall in a child: which hold, and for those that do not, why."""
    report = {
        "namespaces": "left out on request" if "namespaces" in without else _try(_namespaces),
        "landlock": "left out on request"
        if "landlock" in without
        else _try(lambda: landlock.restrict(["/"], [])),
        "seccomp": "left out on request" if "seccomp" in without else _try(seccomp.install),
    }
    walls = Walls(**{name: not reason for name, reason in report.items()})
    report["root"] = "yes" if os.geteuid() == 0 else ""
    report["landlock_abi"] = str(landlock.abi())
    return walls, report


def _namespaces() -> None:
    jail.enter()
    pid = linux.fork_into(jail.RUN)
    if pid == 0:
        jail.mount_workplace(Limits(), limits.choose_users())
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        raise OSError("the first process of new namespaces could not mount its folder")


def _try(step: Callable[[], None]) -> str:
    """Do it in a child; what went wrong there, or nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if step is not _namespaces:
                linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            step()
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode()[:500])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        reason = file.read().decode()
    os.waitpid(pid, 0)
    return reason


def main() -> None:
    """``server.py FD [WALL …]``: serve on an inherited socket."""
    serve(socket.socket(fileno=int(sys.argv[1])), set(sys.argv[2:]))
