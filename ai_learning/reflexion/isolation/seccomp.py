"""A filter on system calls (seccomp-BPF): what a program for a task never needs is refused.

The filter is a list of things denied, not of things allowed: Python's library may use whatever else the
kernel has, and the other walls stand behind it. Calls that would reach other processes, the network, mounts,
keys, kernel tracing or memory that no limit counts fail with EPERM.
"""

import ctypes
import struct

from . import linux

EPERM, ENOSYS = 1, 38
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NAMESPACES = 0x7E020000  # the CLONE_NEW* flags
_AF_UNIX = 1

# name → (number on x86_64, on aarch64); None where the architecture lacks the call
_SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "sched_setparam": (142, 118),
    "sched_setaffinity": (203, 122),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # the kernel itself
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116), "sethostname": (170, 161),
    "setdomainname": (171, 162), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "ioperm": (173, None), "iopl": (172, None),
    "modify_ldt": (154, None), "uselib": (134, None), "vhangup": (153, 58), "personality": (135, 92),
    # large doors: tracing, asynchronous calls that no filter sees, page faults in user space, keys
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # memory that belongs to no process
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "semget": (64, 190),
    "semop": (65, 193), "mq_open": (240, 180),
}  # fmt: skip

# Without namespaces the program shares the machine's processes and the meta-data of its files.
_SHARED_MACHINE: dict[str, tuple[int | None, int | None]] = {
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
}  # fmt: skip

_CLONE, _CLONE3, _SOCKET, _SOCKETPAIR = (56, 220), (435, 435), (41, 198), (53, 199)
_PRLIMIT, _KILL_CALL, _TGKILL, _IOCTL = (302, 261), (62, 129), (234, 131), (16, 29)
_TIOCSTI = 0x5412  # types into a terminal


def program(machine: str, *, own_pid: int | None = None) -> bytes:
    """The filter as BPF instructions.

    Args:
        machine: ``x86_64`` or ``aarch64``.
        own_pid: given where there are no namespaces: signals to any other process are refused, and so are
            all sockets and changes to files' meta-data.
    """
    column = list(_AUDIT_ARCH).index(machine)
    denied = _SYSCALLS | (_SHARED_MACHINE if own_pid is not None else {})
    code = [_op(_LOAD, 4), _op(_EQUAL, _AUDIT_ARCH[machine], 1, 0), _op(_RETURN, _KILL), _op(_LOAD, 0)]
    if machine == "x86_64":  # the x32 numbers are other names for the same calls
        code += [_op(_AT_LEAST, 0x40000000, 0, 1), _op(_RETURN, _ERRNO | EPERM)]
    for numbers in denied.values():
        number = numbers[column]
        if number is not None:
            code += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _ERRNO | EPERM)]
    code += [_op(_EQUAL, _CLONE3[column], 0, 1), _op(_RETURN, _ERRNO | ENOSYS)]  # glibc falls back to clone
    code += _when(_CLONE[column], 0, _ANY_BIT, [_NAMESPACES], then=_ERRNO | EPERM, otherwise=_ALLOW)
    code += _when(_IOCTL[column], 1, _EQUAL, [_TIOCSTI], then=_ERRNO | EPERM, otherwise=_ALLOW)
    code += _when(_PRLIMIT[column], 0, _EQUAL, [0], then=_ALLOW, otherwise=_ERRNO | EPERM)
    code += _when(_SOCKETPAIR[column], 0, _EQUAL, [_AF_UNIX], then=_ALLOW, otherwise=_ERRNO | EPERM)
    families = [_AF_UNIX] if own_pid is None else []
    code += _when(_SOCKET[column], 0, _EQUAL, families, then=_ALLOW, otherwise=_ERRNO | EPERM)
    if own_pid is not None:
        code += _when(_KILL_CALL[column], 0, _EQUAL, [own_pid, 0], then=_ALLOW, otherwise=_ERRNO | EPERM)
        code += _when(_TGKILL[column], 0, _EQUAL, [own_pid], then=_ALLOW, otherwise=_ERRNO | EPERM)
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def install(*, own_pid: int | None = None) -> None:
    """Put the filter on this process and all it will start; it cannot be taken off. Needs no_new_privs.

    Raises:
        OSError: the kernel has no seccomp, or the architecture's numbers are not known here.
    """
    if not linux.machine():
        raise OSError(ENOSYS, "system call numbers are known for x86_64 and aarch64 only")
    instructions = program(linux.machine(), own_pid=own_pid)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    header = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(buffer))
    linux.syscall("seccomp", 1, 0, header)  # SECCOMP_SET_MODE_FILTER


def _when(
    number: int, argument: int, test: int, values: list[int], *, then: int, otherwise: int
) -> list[bytes]:
    """For one system call: decide by one argument (its lower 32 bits; both machines are little-endian)."""
    body = [_op(_LOAD, 16 + 8 * argument)]
    for value in values:
        body += [_op(test, value & 0xFFFFFFFF, 0, 1), _op(_RETURN, then)]
    body.append(_op(_RETURN, otherwise))
    return [_op(_EQUAL, number, 0, len(body)), *body]


def _op(code: int, value: int, when_true: int = 0, when_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, when_true, when_false, value)
