"""One run: start judge and worker behind the walls, watch clock, memory and output, kill all, report."""

import contextlib
import errno
import math
import os
import selectors
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

from . import jail, landlock, limits, linux, seccomp
from .judge import judge
from .limits import MIB, Limits, Users
from .wire import ClosedError, receive, send
from .worker import work

_TICK = 0.05
_JUDGE_MB = 512
_CLEAN_UP_S = 1.0
"""the caller waits no longer for the folder to be deleted"""


@dataclass(frozen=True)
class Walls:
    """What this machine puts in force, as the fork server found it."""

    namespaces: bool = False
    landlock: bool = False
    seccomp: bool = False


@dataclass
class _Output:
    """One stream: its beginning is kept, the rest is counted."""

    kept: bytearray = field(default_factory=bytearray)
    total: int = 0

    def add(self, data: bytes, limit: int) -> None:
        self.total += len(data)
        self.kept += data[: max(0, limit - len(self.kept))]

    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")


def supervise(job: socket.socket, settings: Limits, walls: Walls, proc: int) -> None:
    """Serve one request and send its result; nothing that was started lives when this returns.

    Args:
        job: to the caller; first its request comes, in the end the result goes.
        settings: the run's limits.
        walls: which isolation to use.
        proc: a descriptor of /proc, from before it was out of sight; it is not passed on.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if not walls.namespaces:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    users = limits.choose_users()
    folder = "" if walls.namespaces else _make_folder(users)
    streams = [os.pipe(), os.pipe()]
    control, inner = socket.socketpair()
    progress = mmap(-1, 8)
    progress[:8] = struct.pack("q", -1)
    own_users = walls.namespaces and users.worker is None
    flags = jail.RUN | (linux.CLONE_NEWUSER if own_users else 0)
    pid = linux.fork_into(flags) if walls.namespaces else os.fork()
    if pid == 0:
        try:
            if own_users:
                jail.map_user(limits.NOBODY, limits.NOBODY, proc)
            _inside(inner, [w for _, w in streams], progress, settings, walls, users, folder)
        except BaseException as error:
            with contextlib.suppress(BaseException):
                send(inner, {"setup": f"{type(error).__name__}: {error}"})
        os._exit(0)
    inner.close()
    for _, writer in streams:
        os.close(writer)
    # A mounted workplace has its own bounds: the watch needs no folder.
    watch = _Watch(job, control, [r for r, _ in streams], settings, pid, proc, folder)
    removal = _removal(folder) if folder else iter(())
    enough = math.inf
    try:
        verdict = watch.run()
        enough = time.monotonic() + _CLEAN_UP_S
    finally:
        _kill(pid, walls, proc)
        for _ in removal:
            if time.monotonic() > enough:
                break
    watch.drain()
    stdout, stderr = watch.outputs
    result: dict[str, Any] = {
        "passed": False,
        "error": "",
        "exit_code": None,
        "timed_out": False,
        "stdout": stdout.text(),
        "stderr": stderr.text(),
        "truncated": any(o.total > len(o.kept) for o in watch.outputs),
    } | verdict
    if result["timed_out"]:
        (number,) = struct.unpack("q", progress[:8])
        if 0 <= number < len(watch.asserts):
            result["error"] += f", in: {watch.asserts[number]}"
    linux.prctl(linux.PR_SET_PDEATHSIG, 0)  # the rest is cleared away also if the caller ends now
    with contextlib.suppress(OSError):
        send(job, result)
    for _ in removal:  # what many folders on a slow disk left to do; nobody waits for it
        pass


class _Watch:
    """Waits for the verdict, or for a limit to be reached."""

    def __init__(
        self,
        job: socket.socket,
        control: socket.socket,
        streams: list[int],
        settings: Limits,
        pid: int,
        proc: int,
        folder: str,
    ) -> None:
        self.job, self.control, self.streams, self.settings = job, control, streams, settings
        self.pid, self.proc, self.folder = pid, proc, folder
        self.outputs = [_Output(), _Output()]
        self.asserts: list[str] = []
        self.next_look = time.monotonic() + _TICK
        self.bare = _anonymous_memory(proc, os.getpid())

    def run(self) -> dict[str, Any]:
        """The verdict, or the limit that was reached."""
        request = receive(self.job)
        try:
            send(self.control, request)
        except OSError:
            return self._from_judge() or _unexpected()
        started = time.monotonic()
        with selectors.DefaultSelector() as selector:
            sources: list[Any] = [self.job, self.control, *self.streams]
            for source in sources:
                selector.register(source, selectors.EVENT_READ)
            while True:
                left = self.settings.timeout_s - (time.monotonic() - started)
                if left <= 0:
                    return {"error": f"timed out after {self.settings.timeout_s:g} s", "timed_out": True}
                ready = [key.fileobj for key, _ in selector.select(min(left, _TICK))]
                for number, stream in enumerate(self.streams):
                    if stream in ready and not self._read(number):
                        selector.unregister(stream)
                if sum(output.total for output in self.outputs) > self.settings.output_mb * MIB:
                    return {"error": f"wrote more than {self.settings.output_mb} MB of output"}
                if self.control in ready:
                    verdict = self._from_judge()
                    if verdict is not None:
                        return verdict
                if self.job in ready:
                    raise SystemExit(0)  # the caller is gone
                limit = self._reached()
                if limit:
                    return {"error": limit}

    def drain(self) -> None:
        """Read what is left in the pipes; nobody holds their other ends any more."""
        for number, stream in enumerate(self.streams):
            while self._read(number):
                pass
            os.close(stream)

    def _from_judge(self) -> dict[str, Any] | None:
        try:
            message = receive(self.control)
        except (ClosedError, OSError):
            return _unexpected()
        if "asserts" in message:
            self.asserts = message["asserts"]
            return None
        if "setup" in message:
            return {"error": f"the sandbox could not be set up: {message['setup']}", "refused": True}
        return dict(message)

    def _read(self, number: int) -> bool:
        data = os.read(self.streams[number], 1 << 18)
        self.outputs[number].add(data, self.settings.stdout_kb * 1024)
        return bool(data)

    def _reached(self) -> str:
        """The limit that the worker and all it started reached together, if any."""
        if time.monotonic() < self.next_look:
            return ""
        started = time.monotonic()
        below = descendants(self.proc, self.pid)
        used = sum(max(0, _anonymous_memory(self.proc, pid) - self.bare) for pid in below)
        if used > (self.settings.memory_mb + 16) * MIB:  # beyond a bare interpreter each
            return f"used more than {self.settings.memory_mb} MB of memory"
        if len(below) > 2 * self.settings.processes:  # the kernel does not count root's
            return f"started more than {self.settings.processes} processes"
        if self.folder:
            size, count = _disk_use(self.folder)
            if size > self.settings.disk_mb * MIB or count > self.settings.files:
                return f"wrote more than {self.settings.disk_mb} MB or {self.settings.files} files"
        now = time.monotonic()
        self.next_look = now + max(_TICK, 4 * (now - started))
        return ""


def _unexpected() -> dict[str, Any]:
    return {"error": "the tests' own process ended before a verdict (out of memory, or it was told to exit)"}


def _inside(
    control: socket.socket,
    outputs: list[int],
    progress: mmap,
    settings: Limits,
    walls: Walls,
    users: Users,
    folder: str,
) -> None:
    """The first process of a run: build the walls, fork the worker, become the judge."""
    home, shelf = (jail.WORKPLACE, jail.SHELF) if walls.namespaces else (f"{folder}/work", f"{folder}/files")
    if users.judge is None and not walls.landlock:
        shelf = ""  # nothing would keep the worker from writing to what the tests wrote
    os.setsid()
    os.dup2(outputs[0], 1)
    os.dup2(outputs[1], 2)
    limits.keep_only({0, 1, 2, control.fileno()})
    if walls.namespaces:
        jail.mount_workplace(settings, users)
    os.chdir(home)
    os.environ.update(HOME=home, TMPDIR=home)
    tempfile.tempdir = None
    ours, theirs = socket.socketpair()
    worker = os.fork()
    if worker == 0:
        control.close()
        ours.close()
        progress.close()
        os.setsid()
        readable = ["/"] if walls.namespaces else [*jail.readable_paths(), shelf]
        _wall_in(settings, settings.memory_mb, walls, users.worker, readable, [home])
        work(theirs, home, shelf)
    theirs.close()
    os.chdir(shelf or "/")
    os.environ.update(HOME=shelf, TMPDIR=shelf)
    os.umask(0o022)  # the worker is another user, and is to read
    # It never reads what the code wrote: a test that unpickles a file would run the code's program here.
    readable, memory_mb = jail.readable_paths(), max(_JUDGE_MB, settings.memory_mb)
    _wall_in(settings, memory_mb, walls, users.judge, readable, [shelf])
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # should the supervisor itself be killed
    judge(control, ours, worker, progress)
    signal.pause()  # the supervisor ends it, and everything with it


def _wall_in(
    settings: Limits,
    memory_mb: int,
    walls: Walls,
    user: int | None,
    readable: Sequence[str],
    writable: Sequence[str],
) -> None:
    shared = not walls.namespaces and user is None and os.path.isdir("/proc/self")
    limits.restrain(settings, memory_mb, limits.count_tasks(os.getuid()) if shared else 0)
    limits.become(user, walls.landlock and not walls.namespaces and limits.library_is_private())
    if walls.landlock:
        devices = [f"/dev/{name}" for name in jail.DEVICES]
        landlock.restrict(
            [path for path in readable if path], [*(path for path in writable if path), *devices]
        )
    if walls.seccomp:
        seccomp.install(own_pid=None if walls.namespaces else os.getpid())


def _kill(pid: int, walls: Walls, proc: int) -> None:
    """End the run. The first process of a process namespace takes all others with it.

    Without one, orphans come to this process (it is their subreaper): kill until there are none.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if walls.namespaces:
        os.waitpid(pid, 0)
        return
    while True:
        for child in descendants(proc, os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
        except ChildProcessError:
            return


def descendants(proc: int, pid: int) -> list[int]:
    """All processes below one; empty where the kernel does not list children."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError):
            folder = os.open(f"{parent}/task", os.O_RDONLY, dir_fd=proc)
            try:
                for thread in os.listdir(folder):
                    children = [int(word) for word in _read_file(f"{thread}/children", folder).split()]
                    found += children
                    waiting += children
            finally:
                os.close(folder)
    return found


def _anonymous_memory(proc: int, pid: int) -> int:
    try:
        _, resident, shared, *_ = _read_file(f"{pid}/statm", proc).split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * 4096


def _read_file(path: str, folder: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(descriptor, 65536)
    finally:
        os.close(descriptor)


def _disk_use(folder: str) -> tuple[float, float]:
    """(bytes, files) below a folder, while its owner may be exchanging folders for links: only by handles."""
    size = count = 0.0
    waiting = [os.open(folder, os.O_PATH | os.O_DIRECTORY)]
    while waiting:
        handle = waiting.pop()
        try:
            if os.geteuid() != 0 and os.stat(handle).st_mode & 0o700 != 0o700:
                os.chmod(f"/proc/self/fd/{handle}", 0o700)  # a folder that cannot be listed hides its size
            listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
            try:
                for entry in os.scandir(listing):
                    count += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
                        waiting.append(os.open(entry.name, flags, dir_fd=listing))
            finally:
                os.close(listing)
        except OSError as error:
            if error.errno == errno.EMFILE:  # more folders side by side than a program can want
                size = count = float("inf")
        finally:
            os.close(handle)
    return size, count


def _removal(folder: str) -> Iterator[None]:
    """Delete a folder step by step, however deep and whatever its modes; nobody works in it any more."""
    waiting, moved = [folder], 0
    with contextlib.suppress(OSError):
        while waiting:
            current = waiting.pop()
            with os.scandir(current) as listing:
                entries = list(listing)
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):  # to the top, so that no path grows too long
                    os.chmod(entry.path, 0o700)
                    moved += 1
                    waiting.append(f"{folder}/{moved}.to-delete")
                    os.rename(entry.path, waiting[-1])
                else:
                    os.unlink(entry.path)
                yield
            if current != folder:
                os.rmdir(current)
        os.rmdir(folder)


def _make_folder(users: Users) -> str:
    """A folder with one for the worker and one for the tests, who cannot write to each other's."""
    folder = tempfile.mkdtemp(prefix="sandbox-")
    os.chmod(folder, 0o711)
    for name, owner, mode in (("work", users.worker, 0o700), ("files", users.judge, 0o750)):
        os.mkdir(f"{folder}/{name}")
        if owner is not None and users.worker is not None:
            os.chown(f"{folder}/{name}", owner, users.worker)
        os.chmod(f"{folder}/{name}", mode)
    return folder
