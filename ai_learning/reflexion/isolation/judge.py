"""The trusted process: it runs the tests, and calls the code, which lives in another process.

Tests and expected values are never in the memory of the process that runs the code. It answers calls with
plain data, and the comparison happens here. So there is nothing in there to patch, overwrite, find or
imitate: to pass, the code must return the right values. The verdict leaves on a channel that only this
process has.
"""

import importlib
import io
import os
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import types
import unittest
from mmap import mmap
from typing import Any

from . import like
from .asserts import FILE, TestFailedError, Tests, is_builtin, show
from .peer import PRINTED, Peer
from .remote import Remote, told_of
from .wire import DEPTH, ClosedError, Encoder, Tree, WireError, receive, send

PROGRAM = 0
"""the worker's handle for the function that runs the code"""
_TESTS = "tests"
_ITERATION = {"iter", "next"}
_OF_INSTANCES = {
    *(
        "getattr",
        "setattr",
        "len",
        "getitem",
        "setitem",
        "delitem",
        "contains",
        "bool",
        "repr",
        "str",
        "format",
    ),
    *(
        "hash",
        "eq",
        "iter",
        "next",
        "reversed",
        "enter",
        "exit",
        "int",
        "float",
        "index",
        "round",
        "abs",
        "neg",
    ),
}
_OF_FUNCTIONS = {"__name__", "__qualname__", "__doc__", "__module__"}


class WorkerGone(BaseException):
    """The code's process ended, or wrote what no worker writes."""


class Judge(Peer):
    """The tests' end of the channel. It serves only what tests handed over: calls and iteration."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__(channel)
        self.broken = ""
        self.watched: dict[str, Any] = {}
        self.namespace: dict[str, Any] = {}
        self.assert_lines: set[int] = set()

    def request(self, operation: str, target: Any, /, *arguments: Any, **named: Any) -> Any:
        """As `Peer.request`; a worker that is gone stays gone, whatever the tests catch."""
        if self.broken:
            raise WorkerGone(self.broken)
        try:
            return super().request(operation, target, *arguments, **named)
        except StopIteration as error:
            if operation == "next":
                raise
            # Tests like all(map(…)) would take it for the end of their cases.
            raise RuntimeError("the code raised StopIteration") from error
        except ClosedError:
            self.broken = "the code ended its own process"
        except WireError as error:
            if "too large to compare" in str(error):
                raise
            self.broken = str(error)
        raise WorkerGone(self.broken)

    def serves(self, operation: str, target: Any, arguments: list[Any]) -> bool:
        """Calls of functions that tests passed on, iterators, and instances of the tests' own classes.

        Of functions and classes their names and what they say of themselves (``functools.wraps`` asks), and
        nothing else: ``function.__globals__`` would hold the expected values.
        """
        if self._given.get(self._handles.get(id(target), -1)) is not target:
            return False
        if operation == "call":
            return callable(target)
        if operation in _ITERATION and hasattr(target, "__next__"):
            return True
        if operation == "plain":  # what was passed on is what it holds
            return like.base_of(target) is not None
        if operation == "getattr" and isinstance(target, types.FunctionType | types.MethodType | type):
            return type(arguments[0]) is str and arguments[0] in _OF_FUNCTIONS
        if type(target).__module__ != _TESTS or operation not in _OF_INSTANCES:
            return False
        if operation not in ("getattr", "setattr"):
            return True
        # Exactly a str: the code's own kind of text would be asked for its words a second time.
        return type(arguments[0]) is str and not arguments[0].startswith("_")

    def attributes(self, error: BaseException) -> tuple[dict[str, Any], str | None]:
        """Of the tests' own exceptions, and what the code told of its own; a failed assert holds values."""
        if type(error).__module__ == _TESTS:
            return {name: value for name, value in vars(error).items() if not name.startswith("_")}, None
        return told_of(error), None

    def leave(self, manager: Remote, error: BaseException | None) -> bool:
        """As `Peer.leave`, but the code can neither swallow a failure of the tests nor read the values."""
        if error is None or not (_is_failure(error) or self._within_an_assert(error)):
            return super().leave(manager, error)
        super().leave(manager, AssertionError())
        return False

    def _within_an_assert(self, error: BaseException) -> bool:
        """Whether an error came up while an assert of the tests was worked out (``abs(odd_object - 4)``)."""
        return any(
            frame.f_code.co_filename == FILE and line in self.assert_lines
            for frame, line in traceback.walk_tb(error.__traceback__)
        )

    def _describe(self, error: BaseException, encode: Encoder) -> Tree:
        return super()._describe(AssertionError() if _is_failure(error) else error, encode)

    def options(self) -> dict[str, Any]:
        """Tests that redirect their output or input mean the code's."""
        options: dict[str, Any] = {}
        if sys.stdout is not sys.__stdout__:
            options["print"] = True
        if isinstance(sys.stdin, io.StringIO):
            options["input"] = sys.stdin.read()
        return options

    def told(self, extra: dict[str, Any]) -> None:
        """What was printed during the call, and the plain globals of the code that the tests use."""
        if type(extra.get(PRINTED)) is str:
            sys.stdout.write(extra.pop(PRINTED))
        for name, value in extra.items():
            if name in self.watched and type(self.watched[name]) is not Remote:
                if self.namespace.get(name) is self.watched[name]:
                    self.namespace[name] = value
                self.watched[name] = value

    def export(self, value: Any) -> Tree:
        """Functions of the standard library go by name."""
        if isinstance(value, types.BuiltinFunctionType) and value.__self__ is sys.modules.get(
            value.__module__ or ""
        ):
            return ["function", value.__module__, value.__name__]
        return super().export(value)

    def resolve(self, tree: Tree) -> Any:
        """A module that the code imported is imported here: the tests use the true one."""
        if tree[0] == "module" and tree[1] in sys.stdlib_module_names:
            return importlib.import_module(tree[1])
        return super().resolve(tree)


def _is_failure(error: BaseException) -> bool:
    """Whether an exception says that a test failed; the code's own asserts come with a trace."""
    return isinstance(error, WorkerGone) or (
        isinstance(error, AssertionError) and not hasattr(error, "sandbox_trace")
    )


class _OpenFiles:
    """``os`` as ``tempfile`` sees it: what tests make there the code is to read, and it is another user."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return os.open(path, flags, 0o644)

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        os.mkdir(path, 0o755)


def judge(control: socket.socket, channel: socket.socket, worker: int, progress: mmap) -> None:
    """Receive a program and its tests, judge it, and send the verdict."""
    sys.setrecursionlimit(DEPTH)
    setattr(tempfile, "_os", _OpenFiles())  # noqa: B010 - tests use tempfile
    request = receive(control)
    peer = Judge(channel)
    verdict = {"passed": False, "error": "", "exit_code": 0}
    sys.stdout.flush()
    try:
        tests = Tests(request["tests"], request["entry_point"]) if request["tests"].strip() else None
        if tests is not None:
            peer.assert_lines = tests.assert_lines
            send(control, {"asserts": tests.texts})
        verdict["error"] = _run_code(peer, request, tests, verdict)
        if not verdict["error"] and tests is not None:
            verdict["error"] = _run_tests(peer, request, tests, progress)
    except WorkerGone:
        pass
    except SyntaxError as error:
        verdict["error"] = f"the tests do not parse: {error.msg} (line {error.lineno})"
    except BaseException as error:
        verdict["error"] = f"the tests could not be run: {type(error).__name__}: {error}"
    if peer.broken:
        verdict |= _ended(worker, peer.broken)
    verdict["passed"] = not verdict["error"]
    sys.stdout.flush()
    send(control, verdict)


def _run_code(peer: Judge, request: dict[str, Any], tests: Tests | None, verdict: dict[str, Any]) -> str:
    """Run the code; what went wrong, or nothing."""
    wanted = sorted(tests.names | ({request["entry_point"]} - {None})) if tests else []
    program = Remote(peer, PROGRAM, "program")
    try:
        found = program(request["code"], wanted, tests is None)
    except SystemExit as error:
        verdict["exit_code"] = int(error.code if isinstance(error.code, int) else error.code is not None)
        return f"the code called sys.exit({show(error.code)}) before its end"
    except WorkerGone:
        raise
    except BaseException as error:
        verdict["exit_code"] = 1
        return _describe(error)
    # Other names: __builtins__, for instance. Other kinds of text: the code's own subclasses of str.
    if type(found) is not dict or not all(type(name) is str and name in wanted for name in found):
        peer.broken = "the code's process wrote something that is no message"
        raise WorkerGone(peer.broken)
    peer.namespace = _chosen(found, request["entry_point"])
    # What tests assign is theirs, though it may be the same object (True, 4, "") as the code's.
    assigned = tests.assigned if tests else set()
    peer.watched = {name: value for name, value in peer.namespace.items() if name not in assigned}
    return ""


def _chosen(found: dict[str, Any], entry_point: str | None) -> dict[str, Any]:
    """The code's names that tests see: its ``abs`` or ``math`` do not hide the true ones.

    Unless that is the very function under test: named so, or the only thing that the tests take from the
    code.
    """

    def is_python_s(name: str) -> bool:
        return is_builtin(name) or (
            name in sys.stdlib_module_names and not isinstance(found[name], types.ModuleType)
        )

    own = {name for name in found if not is_python_s(name)}
    chosen = {name: found[name] for name in own}
    for name in found.keys() - own:
        if name == entry_point or (entry_point is None and not own and len(found) == 1):
            chosen[name] = found[name]
        elif name in sys.stdlib_module_names and not is_builtin(name):
            chosen[name] = importlib.import_module(name)
    return chosen


def _run_tests(peer: Judge, request: dict[str, Any], tests: Tests, progress: mmap) -> str:
    """Run the tests; the first failure in words, or nothing."""

    def at(number: int) -> None:
        progress[:8] = struct.pack("q", number)

    module = types.ModuleType(_TESTS)
    sys.modules[_TESTS] = module
    namespace = module.__dict__
    namespace |= {**peer.namespace, "__at__": at, "__failed__": TestFailedError}
    peer.namespace = namespace
    setattr(unittest, "main", lambda *_, **__: None)  # noqa: B010 - classes are found below
    try:
        exec(tests.code, namespace)
        for name, function in tests.functions.items():
            if name == "check" and name not in tests.names and function.args.args:
                namespace[name](_candidate(peer, request["entry_point"], tests))
            elif name.startswith("test") and name not in tests.names and not function.args.args:
                namespace[name]()
        for value in list(namespace.values()):
            if (
                isinstance(value, type)
                and issubclass(value, unittest.TestCase)
                and value.__module__ == _TESTS
            ):
                error = _run_case(value, tests)
                if error:
                    return error
    except WorkerGone:
        raise
    except BaseException as error:
        return _explain(error, tests)
    return ""


def _candidate(peer: Judge, entry_point: str | None, tests: Tests) -> Any:
    if entry_point is None:
        raise NameError("check(candidate) is never called, and no entry_point says with what")
    if entry_point not in peer.namespace:
        raise NameError(f"name {entry_point!r} is not defined")
    return peer.namespace[entry_point]


def _run_case(case: type[unittest.TestCase], tests: Tests) -> str:
    errors: list[str] = []

    class Result(unittest.TestResult):
        def addError(self, test: Any, err: Any) -> None:  # noqa: N802
            errors.append(f"{test.id().removeprefix('tests.')}: {_explain(err[1], tests)}")
            self.stop()

        def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
            self.addError(test, err)

        def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
            if err is not None:
                self.addError(subtest, err)

        def addUnexpectedSuccess(self, test: Any) -> None:  # noqa: N802
            errors.append(f"{test.id()}: it was expected to fail")

    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(Result())
    return errors[0] if errors else ""


def _explain(error: BaseException, tests: Tests) -> str:
    if isinstance(error, TestFailedError):
        return tests.explain(error)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == FILE]
    where = tests.line(lines[-1]) if lines and lines[-1] else ""
    return f"in `{where}`: {_describe(error)}" if where else _describe(error)


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({show(error.code)}) was called"
    name = type(error).__name__
    try:
        text = str(error)
    except Exception:
        text = ""
    where = str(getattr(error, "sandbox_trace", ""))
    return (f"{name}: {text}" if text else name)[:2000] + (f" ({where[:500]})" if where else "")


def _ended(worker: int, reason: str) -> dict[str, Any]:
    """How the worker ended, once it has."""
    for _ in range(50):
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            if code >= 0:
                return {
                    "error": f"the code ended its process (exit code {code}) before its end",
                    "exit_code": code,
                }
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            if name == "SIGXCPU":
                return {"error": "the code used up its CPU time", "exit_code": code}
            return {"error": f"the code was killed by {name}", "exit_code": code}
        time.sleep(0.01)
    return {
        "error": reason if "message" in reason else "the code closed the channel to its tests",
        "exit_code": -1,
    }
