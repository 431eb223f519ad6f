"""The untrusted process: it runs the code and answers calls. Nothing here has to be believed.

It knows neither the tests nor what they expect, and it is forked before they arrive.
"""

import atexit
import contextlib
import importlib
import io
import linecache
import os
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from .peer import PRINTED, Peer
from .wire import DEPTH, ClosedError, Tree, receive

FILE = "<code>"


class Worker(Peer):
    """The code's end of the channel. It does whatever the tests ask."""

    def __init__(self, channel: socket.socket, home: str, shelf: str) -> None:
        super().__init__(channel)
        self.home, self.shelf = home, shelf
        self.wanted: list[str] = []
        self.module = types.ModuleType("__main__")
        self.give(self.run)

    def serves(self, operation: str, target: Any, arguments: list[Any]) -> bool:
        """Everything."""
        return True

    def run(self, code: str, wanted: list[str], whole: bool) -> dict[str, Any]:
        """Run the program; those of its globals that the tests use.

        Args:
            code: the program, run as ``__main__``.
            wanted: names.
            whole: there are no tests, so the program's threads and exit functions belong to it, and only
                its end says that it is right.
        """
        linecache.cache[FILE] = (len(code), None, code.splitlines(keepends=True), FILE)
        sys.modules["__main__"] = self.module
        try:
            exec(compile(code, FILE, "exec"), self.module.__dict__)
        except SystemExit as end:
            # ``sys.exit(main())`` at the end: what was defined until then is what the tests find.
            if whole or end.code:
                raise
        if whole:
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        self.wanted = wanted
        return {name: self.module.__dict__[name] for name in wanted if name in self.module.__dict__}

    def perform(self, work: Callable[[], Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Do it with the tests' input and output where they redirected them."""
        self._show_files()
        extra: dict[str, Any] = {}
        printed = io.StringIO()
        try:
            with contextlib.ExitStack() as stack:
                if options.get("print"):
                    stack.enter_context(contextlib.redirect_stdout(printed))
                if "input" in options:
                    before, sys.stdin = sys.stdin, io.StringIO(options["input"])
                    stack.callback(setattr, sys, "stdin", before)
                value = work()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
        if options.get("print"):
            extra[PRINTED] = printed.getvalue()
        known = self.module.__dict__
        for name in self.wanted:
            if _is_plain(known.get(name, self)):
                extra[name] = known[name]
        return value, extra

    def _show_files(self) -> None:
        """Link what the tests wrote into the code's folder, so that one name serves both."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.shelf) if self.shelf else ():
                with contextlib.suppress(FileExistsError):
                    os.symlink(f"{self.shelf}/{name}", f"{self.home}/{name}")

    def _reply(self, *told: Any) -> None:
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(max(before, DEPTH))
        try:
            super()._reply(*told)
        finally:
            sys.setrecursionlimit(before)

    def trace(self, error: BaseException) -> str:
        """The code's own lines on the way to the exception, the last three."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
        told = [
            f"line {f.lineno}{f' in {f.name}' if f.name != '<module>' else ''}: {f.line}" for f in frames[-3:]
        ]
        return " → ".join(told)

    def attributes(self, error: BaseException) -> tuple[dict[str, Any], str | None]:
        """The exception's own attributes, those of its class, and its text where the class words it."""
        found: dict[str, Any] = {}
        text = None
        own = [cls for cls in type(error).__mro__ if cls.__module__ not in sys.stdlib_module_names]
        with contextlib.suppress(Exception):
            found = {name: value for name, value in vars(error).items() if not name.startswith("_")}
        for name, item in [pair for cls in own for pair in vars(cls).items() if not pair[0].startswith("_")]:
            if name not in found and (isinstance(item, property) or _is_plain(item)):
                with contextlib.suppress(Exception):
                    found[name] = getattr(error, name)
        if any("__str__" in vars(cls) for cls in own):
            with contextlib.suppress(BaseException):
                text = str.__str__(str(error))
        return found, text

    def restore(self, error: BaseException, attributes: Any, text: Any) -> None:
        """An exception that comes back, or one of the tests' own: set what was told."""
        if type(attributes) is dict:
            error.__dict__.update(attributes)

    def export(self, value: Any) -> Tree:
        """Modules go by name."""
        if type(value) is types.ModuleType and value.__name__ in sys.stdlib_module_names:
            return ["module", value.__name__]
        return super().export(value)

    def resolve(self, tree: Tree) -> Any:
        """Functions of the standard library come by name."""
        if tree[0] == "function":
            return getattr(importlib.import_module(tree[1]), tree[2])
        return super().resolve(tree)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | str | list | dict | set | tuple | type(None))


def work(channel: socket.socket, home: str, shelf: str) -> None:
    """Serve until the judge is gone.

    Args:
        channel: to the judge.
        home: the code's folder.
        shelf: where tests write files, if they may.
    """
    worker = Worker(channel, home, shelf)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "replace", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "replace", write_through=True)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = ["main.py"]
    with contextlib.suppress(ClosedError, OSError):
        while True:
            worker.serve(receive(channel))
    os._exit(0)
