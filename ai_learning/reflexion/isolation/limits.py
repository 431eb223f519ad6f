"""What one run may use, and giving up the rights of whoever started it."""

import contextlib
import os
import resource
import secrets
from dataclasses import dataclass

from . import linux

MIB = 1024 * 1024
NOBODY = 65534


@dataclass(frozen=True)
class Limits:
    """Of one run. Memory and CPU hold for each process and, watched by the supervisor, for all together."""

    timeout_s: float = 5.0
    memory_mb: int = 256
    processes: int = 32
    """threads count as processes do"""
    open_files: int = 64
    file_mb: int = 16
    """one file"""
    disk_mb: int = 64
    """all files; also at most `files` of them"""
    files: int = 8192
    stdout_kb: int = 256
    """kept of each of stdout and stderr, from the beginning"""
    output_mb: int = 16
    """a program that writes more is stopped"""


@dataclass(frozen=True)
class Users:
    """Whom the two processes become; ``None``: they stay who they are (not started as root)."""

    worker: int | None = None
    judge: int | None = None


def choose_users() -> Users:
    """Two user ids for one run.

    Root picks two that nobody else has, so that runs cannot signal each other and each has its own count of
    processes; where such ids are not mapped (a container's root), nobody and its neighbour.
    """
    if os.geteuid() != 0:
        return Users()
    first = 1_000_000_000 + 2 * secrets.randbelow(500_000_000)
    if _mapped(first + 1):
        return Users(first, first + 1)
    return Users(NOBODY, NOBODY - 1) if _mapped(NOBODY) and _mapped(NOBODY - 1) else Users()


def become(user: int | None, may_read: bool = False) -> None:
    """Leave root's identity, every capability, and the way back to both.

    Args:
        user: whom to become, for root.
        may_read: keep the right to read what belongs to others; Landlock then says which files these are.
    """
    if user is not None:
        linux.prctl(linux.PR_SET_KEEPCAPS, int(may_read))
        with contextlib.suppress(PermissionError):  # denied in a user namespace that maps one user
            os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    linux.keep_capabilities(linux.CAP_DAC_READ_SEARCH if may_read and user is not None else 0)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)  # /proc/<pid> belongs to root, no core files, no ptrace


def restrain(limits: Limits, memory_mb: int, others: int = 0) -> None:
    """Set this process's resource limits; nothing started from it can raise them.

    Args:
        limits: of the run.
        memory_mb: for each process.
        others: processes that the kernel counts with the run's own.
    """
    cpu = int(limits.timeout_s) + 2
    for kind, value in (
        (resource.RLIMIT_AS, _bare_interpreter + memory_mb * MIB),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_NPROC, limits.processes + others),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_mb * MIB),
        (resource.RLIMIT_STACK, 8 * MIB),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (getattr(resource, "RLIMIT_MSGQUEUE", None), 0),
        (getattr(resource, "RLIMIT_RTPRIO", None), 0),
    ):
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (value, value))


def keep_only(descriptors: set[int]) -> None:
    """Close every file descriptor but these."""
    top = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    start = 0
    for descriptor in sorted(descriptors):
        if start < descriptor:  # closerange(0, 0) would close them all
            os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, min(top, 1 << 20))


def measure() -> None:
    """Note what only /proc tells, before it is out of sight."""
    global _bare_interpreter, _mapped_users
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        _bare_interpreter = int(file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(OSError), open("/proc/self/uid_map") as file:
        lines = [tuple(map(int, line.split())) for line in file]
        _mapped_users = [range(first, first + count) for first, _, count in lines]


_bare_interpreter = 64 * MIB  # bytes of address space: a run's memory comes on top of it
_mapped_users: list[range] = []


def count_tasks(user: int) -> int:
    """Threads of a user on the machine: without namespaces the kernel counts them with a run's own."""
    count = 0
    for process in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if process.isdigit() and os.stat(f"/proc/{process}").st_uid == user:
                count += len(os.listdir(f"/proc/{process}/task"))
    return count


def library_is_private() -> bool:
    """Whether other users may not read Python's library (an interpreter in root's home)."""
    parts = os.__file__.split("/")
    folders = ["/".join(parts[:end]) for end in range(2, len(parts))]
    return not all(os.stat(folder).st_mode & 1 for folder in folders)


def _mapped(user: int) -> bool:
    return any(user in users for users in _mapped_users)
