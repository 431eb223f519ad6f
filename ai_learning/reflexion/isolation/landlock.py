"""Landlock: a process gives up, for good, access to all files but those it names (Linux 5.13 and later)."""

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress

from . import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15  # those that a file can have
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_DEVICES = (1 << 6) | (1 << 11)  # making device files: never granted


def abi() -> int:
    """The version of Landlock that the kernel offers; 0 for none."""
    try:
        return linux.syscall("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """Read below ``readable``, do everything but device files below ``writable``, nothing anywhere else.

    Where the kernel can, TCP is denied too, and signals and abstract sockets to processes outside.

    Raises:
        OSError: no Landlock.
    """
    version = abi()
    if version < 1:
        raise OSError(38, "the kernel has no Landlock, or it is switched off")
    every = _ALL_BY_ABI[max(known for known in _ALL_BY_ABI if known <= version)]
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("QQQ", every, network, scopes)[:size]
    ruleset = linux.syscall("landlock_create_ruleset", attributes, size, 0)
    try:
        for paths, rights in ((readable, _READ), (writable, every & ~_DEVICES)):
            for path in paths:
                with suppress(FileNotFoundError, PermissionError):
                    _allow(ruleset, path, rights & every)
        linux.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH)
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, descriptor))
        linux.syscall("landlock_add_rule", ruleset, 1, rule, 0)
    finally:
        os.close(descriptor)
