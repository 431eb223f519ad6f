"""Writing files so that a crash at any moment leaves the old content or the new, never half of one."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError

_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)(\.[0-9a-f]+)?\.tmp")
_being_written: set[Path] = set()  # by this process


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success fsync it and rename it into place.

    An exception (a full disk, Ctrl-C) removes the temporary file and leaves ``path`` as it was.

    Example:
        >>> with atomic_path("notes.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("all or nothing")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process tells remove_stale whose it is; the random part keeps threads of one process apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    _being_written.add(temporary.absolute())
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        _being_written.discard(temporary.absolute())


def check_is_no_source(out: Path | str, sources: Iterable[Path | str]) -> None:
    """Refuse to write over what is read.

    Raises:
        InputError: ``out`` is one of the sources.
    """
    out = Path(out)
    for source in map(Path, sources):
        if out.exists() and source.exists() and out.samefile(source):
            raise InputError(f"{out} is what is to be read: write to another file")


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_stale(folder: Path | str) -> list[Path]:
    """Delete what writers that were killed left in ``folder``; what is being written now stays.

    The caller holds the folder's lock, so that no writer on another machine is at work in it.

    Args:
        folder: looked through without its subfolders; need not exist.

    Returns:
        The temporary files that were deleted.
    """
    folder = Path(folder)
    removed = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _TEMPORARY.fullmatch(file.name)
        if match is None or file.is_dir() or _has_writer(file, int(match["pid"])):
            continue
        with suppress(FileNotFoundError):
            file.unlink()
            removed.append(file)
    return removed


def _has_writer(temporary: Path, pid: int) -> bool:
    if pid == os.getpid():  # a dead writer may have had our number: in a container every run has the same
        return temporary.absolute() in _being_written
    try:
        os.kill(pid, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is another user's
        pass
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot fsync a folder: the rename itself is still atomic
            raise
    finally:
        os.close(descriptor)


def digest_of_sources(folder: Path, *others: Path) -> str:
    """A SHA-256 that changes when a Python file of the folder does, or one of the others."""
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("[!.]*.py")), *others]:
        digest.update(path.read_bytes())
    return digest.hexdigest()
