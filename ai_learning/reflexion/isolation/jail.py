"""Namespaces: a file system that holds Python and nothing else, no network, no other processes.

The fork server enters the jail once (`enter`); each run is then born into namespaces of its own (`RUN`) and
gets fresh, small file systems in memory to work in (`mount_workplace`).
"""

import os
import sys
from contextlib import suppress

from . import linux
from .limits import NOBODY, Limits, Users

WORKPLACE = "/tmp"
SHELF = "/files"
"""the tests write here, the code only reads"""
RUN = linux.CLONE_NEWPID | linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET
DEVICES = ("null", "zero", "full", "random", "urandom")


def readable_paths() -> list[str]:
    """What a Python program needs to read: the interpreter, its library, the C libraries, local time."""
    prefixes = dict.fromkeys([sys.base_prefix, sys.base_exec_prefix, "/usr"])
    paths = [f"{prefix}/{name}" for prefix in prefixes for name in ("bin", "lib", "lib64")]
    paths += ["/usr/share/zoneinfo", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime"]
    if sys.base_prefix.startswith("/nix/"):
        paths.append("/nix/store")
    return [path for path in dict.fromkeys(paths) if os.path.exists(path)]


def enter() -> None:
    """Leave the machine's file system for one that holds `readable_paths`, read-only, and an empty folder.

    Raises:
        OSError: the kernel refuses; the process may be half-way in, so try it in a child first.
    """
    if os.geteuid() == 0:
        linux.unshare(linux.CLONE_NEWNS)
    else:
        _enter_user_namespace()
    linux.mount("", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    sources = [(path, os.open(path, os.O_PATH)) for path in readable_paths() if not os.path.islink(path)]
    links = [(path, os.readlink(path)) for path in readable_paths() if os.path.islink(path)]
    devices = [(f"/dev/{name}", os.open(f"/dev/{name}", os.O_PATH)) for name in DEVICES]

    root = "/tmp"
    linux.mount("jail", root, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=0755")
    for path, descriptor in sources + devices:
        _bind(descriptor, root + path)
        if path not in dict(devices):
            linux.make_read_only(root + path)
        os.close(descriptor)
    for path, target in links:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with suppress(FileExistsError):
            os.symlink(target, root + path)
    os.symlink(WORKPLACE, root + "/dev/shm")
    for path, _ in sources:
        for end in range(1, len(path)):
            if path[end] == "/":
                os.chmod(root + path[:end], 0o111)  # the way to a folder does not tell whose home it is in
    os.mkdir(root + WORKPLACE)
    os.mkdir(root + SHELF)

    os.chdir(root)
    linux.syscall("pivot_root", b".", b".")
    linux.unmount(".")
    os.chdir("/")
    linux.mount(
        "", "/", flags=linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    )


def mount_workplace(limits: Limits, users: Users) -> None:
    """An empty folder in memory, bounded in bytes and files, that goes away with the run; and the shelf."""
    worker = NOBODY if users.worker is None else users.worker
    judge = NOBODY if users.judge is None else users.judge
    for folder, owner, mode in ((WORKPLACE, worker, "0700"), (SHELF, judge, "0750")):
        linux.mount(
            "workplace",
            folder,
            "tmpfs",
            linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC,
            f"size={limits.disk_mb}m,nr_inodes={limits.files},mode={mode},uid={owner},gid={worker}",
        )
    with suppress(OSError):
        import socket

        socket.sethostname("sandbox")


def map_user(user: int, group: int, proc: int) -> None:
    """In a new user namespace: the one user of it is nobody inside, ``user`` outside.

    Each run has one of its own, because the kernel counts a user's processes by user namespace.
    """
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _enter_user_namespace() -> None:
    """Become nobody with all capabilities, in a user namespace where only oneself exists."""
    user, group = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    proc = os.open("/proc", os.O_PATH)
    map_user(user, group, proc)
    os.close(proc)


def _bind(descriptor: int, target: str) -> None:
    source = f"/proc/self/fd/{descriptor}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_RDONLY, 0o444))
    linux.mount(source, target, flags=linux.MS_BIND | linux.MS_REC)
