"""System calls that Python 3.11 has no function for, through ctypes."""

import contextlib
import ctypes
import os
import platform

# PyDLL keeps the interpreter's lock: a clone() in the middle of a released lock would hang the child.
_libc = ctypes.PyDLL(None, use_errno=True)

_NUMBERS = {
    "x86_64": {"clone": 56, "pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"clone": 220, "pivot_root": 41, "capset": 91, "seccomp": 277},
}
_SAME_EVERYWHERE = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
CAP_DAC_READ_SEARCH = 1 << 2
_SIGCHLD = 17
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000


def machine() -> str:
    """``x86_64`` or ``aarch64`` where the numbers are known, otherwise empty."""
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return name if name in _NUMBERS and ctypes.sizeof(ctypes.c_void_p) == 8 else ""


def syscall(name: str, *arguments: object) -> int:
    """Call the kernel by name.

    Raises:
        OSError: with the kernel's errno, or ENOSYS on an architecture whose numbers are not known here.
    """
    number = _SAME_EVERYWHERE.get(name) or _NUMBERS.get(machine(), {}).get(name)
    if number is None:
        raise OSError(38, f"{name} is not known on {platform.machine()}")
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *words), name)


def prctl(option: int, *arguments: int) -> int:
    """prctl(2)."""
    words = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    return _checked(_libc.prctl(ctypes.c_int(option), *words), "prctl")


def fork_into(flags: int) -> int:
    """fork, with the child as the first process of new namespaces. Call it from a single thread only."""
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid = -1
    try:
        pid = syscall("clone", flags | _SIGCHLD, 0, 0, 0, 0)
    finally:
        (api.PyOS_AfterFork_Child if pid == 0 else api.PyOS_AfterFork_Parent)()
    return pid


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    words = [text.encode() or None for text in (source, target, kind)]
    _checked(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def unmount(target: str) -> None:
    """umount2(2), lazily."""
    _checked(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def make_read_only(target: str) -> None:
    """Make a bind mount and all mounted below it read-only, without set-user-id programs and devices."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    try:
        syscall(
            "mount_setattr", _AT_FDCWD, target.encode(), _AT_RECURSIVE, attributes, ctypes.sizeof(attributes)
        )
    except OSError:  # before Linux 5.12: what is mounted below keeps its own flags
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)


def bound_capabilities() -> None:
    """Empty the bounding set: no program that is executed later gains a capability."""
    for capability in range(64):
        with contextlib.suppress(OSError):  # beyond the kernel's last, or no right to
            prctl(PR_CAPBSET_DROP, capability)


def keep_capabilities(kept: int) -> None:
    """Give up every capability that is held, but those of a set of bits."""
    with contextlib.suppress(OSError):
        prctl(PR_CAP_AMBIENT, 4)  # PR_CAP_AMBIENT_CLEAR_ALL
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall("capset", header, (ctypes.c_uint32 * 6)(kept, kept))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return int(result)
