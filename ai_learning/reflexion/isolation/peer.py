"""Using functions and objects that live in the other process: requests, replies, handles.

Both sides use this file. Plain data is copied (``wire.py``); anything else stays where it is, and the other
side gets a `Remote` that asks for everything it does. Lists, dicts and sets given as arguments hold
afterwards what the other side left in them, as if it had been one process.
"""

import builtins
import copy
import math
import operator
import socket
from collections.abc import Callable
from typing import Any

from . import like
from .exceptions import FIELDS, LIBRARY
from .remote import ARITHMETIC, Remote, mirror, tell
from .wire import Decoder, Encoder, Tree, WireError, receive, send

_FRESH = 1 << 40  # containers that a reply makes are numbered from here
_NESTED = -1 << 40  # and those of a message within the message
PRINTED = ""
"""where a reply tells what was printed, beside the code's globals by name"""


def _contains(target: Any, item: Any) -> Any:
    return item in target if hasattr(type(target), "__contains__") else NotImplemented


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *arguments, **named: function(*arguments, **named),
    "isinstance": lambda kind, value: isinstance(value, kind),
    "issubclass": lambda kind, value: issubclass(value, kind),
    "contains": _contains,
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, kind, error: type(manager).__exit__(manager, kind, error, None),
    "plain": like.read,
    **{f.__name__: f for f in (getattr, setattr, delattr, len, iter, next, bool, repr, str, hash, dir)},
    **{f.__name__: f for f in (abs, int, float, complex, bytes, round, reversed, format)},
    **{f.__name__: f for f in (math.trunc, math.floor, math.ceil, copy.copy, copy.deepcopy)},
    **{
        name: getattr(operator, name)
        for name in ("getitem", "setitem", "delitem", "neg", "pos", "invert", "index")
    },
    **{name: getattr(operator, name) for name in ("eq", "lt", "le", "gt", "ge")},
    **ARITHMETIC,
    **{f"i{name}": getattr(operator, f"i{name}") for name in ARITHMETIC if name != "divmod"},
}


class Peer:
    """One end of the channel between the judge and the worker."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._given: dict[int, Any] = {}
        self._handles: dict[int, int] = {}
        self._received: dict[int, Any] = {}
        self._mirrors: dict[type, int] = {}

    # -- for the two sides to fill in ----------------------------------------------------------

    def serves(self, operation: str, target: Any, arguments: list[Any]) -> bool:
        """Whether the other side may do this to an object of ours."""
        raise NotImplementedError

    def perform(self, work: Callable[[], Any], options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Do what was requested: the result, and what else to tell."""
        return work(), {}

    def options(self) -> dict[str, Any]:
        """What to tell with each request."""
        return {}

    def told(self, extra: dict[str, Any]) -> None:
        """Take in what came with a reply."""

    def trace(self, error: BaseException) -> str:
        """Where in the code an exception came from."""
        return ""

    def attributes(self, error: BaseException) -> tuple[dict[str, Any], str | None]:
        """What to tell of an exception besides its arguments: attributes, and a text of its own."""
        return {}, None

    def restore(self, error: BaseException, attributes: Any, text: Any) -> None:
        """Take in what was told of one."""
        tell(error, attributes, text)

    def leave(self, manager: Remote, error: BaseException | None) -> bool:
        """End a ``with`` block over an object of the other side; whether it swallows the exception."""
        return bool(self.request("exit", manager, None if error is None else type(error), error))

    # -- requests ------------------------------------------------------------------------------

    def request(self, operation: str, target: Any, /, *arguments: Any, **named: Any) -> Any:
        """Have the other side do something with an object of its own; serve what it asks meanwhile.

        Raises:
            ClosedError: the other side is gone.
            WireError: it sent something that is no message.
            BaseException: what was raised there.
        """
        encode = Encoder(self.export)
        send(self.channel, ["do", operation, *map(encode, (target, list(arguments), named)), self.options()])
        while True:
            message = receive(self.channel)
            if isinstance(message, list) and len(message) == 6 and message[0] == "do":
                self.serve(message)
            elif isinstance(message, list) and len(message) == 5 and message[0] == "done":
                return self._take(message, encode.containers)
            else:
                raise WireError("the code's process wrote something that is no message")

    def serve(self, message: Tree) -> None:
        """Do what a request asks for, and reply with the value or with what it raised."""
        _, operation, *sent, options = message
        read = Decoder(self.resolve)
        values: list[Any] = []
        value: Any = None
        raised: BaseException | None = None
        extra: dict[str, Any] = {}
        try:
            values = [read(tree) for tree in sent]
            target, arguments, named = values
            if not self.serves(operation, target, arguments):
                if operation == "getattr":  # as of any object that lacks it: hasattr() and wraps() go on
                    raise AttributeError(f"{arguments[0]!r:.100} is not for the other side")
                raise PermissionError(f"{operation} is not for the other side")
            work = OPERATIONS[operation]
            value, extra = self.perform(lambda: work(target, *arguments, **named), options)
        except WireError as error:
            raised = ValueError(str(error))  # never a class of ours: what is given may be called
        except BaseException as error:
            raised = error
        self._reply(read, sent, values, value, raised, extra)

    def _reply(
        self,
        read: Decoder,
        sent: Tree,
        values: list[Any],
        value: Any,
        raised: BaseException | None,
        extra: dict[str, Any],
    ) -> None:
        encode = Encoder(self.export, _FRESH)
        encode.numbers = {id(known): number for number, known in read.containers.items()}
        try:
            trouble = None if raised is None else self._describe(raised, encode)
            result = encode(value)
            again = Encoder(self.export)
            changes: Tree = []
            if [again(v) for v in values] != sent:
                changes = [[number, encode.content(known)] for number, known in read.containers.items()]
            send(self.channel, ["done", result, changes, trouble, {k: encode(v) for k, v in extra.items()}])
        except (WireError, RecursionError, MemoryError) as error:
            problem = ValueError(f"the value cannot be passed on: {type(error).__name__} {error}")
            send(self.channel, ["done", None, [], self._describe(problem, Encoder(self.export)), {}])

    def _take(self, message: Tree, containers: dict[int, Any]) -> Any:
        _, result, changes, trouble, extra = message
        read = Decoder(self.resolve, containers)
        try:
            error = None if trouble is None else self._exception(trouble, read)
            value = read(result)
            for number, content in changes:
                if number in containers:
                    read([type(containers[number]).__name__, number, content])
            self.told({str(key): read(item) for key, item in extra.items()})
        except (TypeError, ValueError, AttributeError, RecursionError) as problem:
            raise WireError(f"the code's process wrote something that is no message: {problem}") from None
        if error is not None:
            raise error
        return value

    # -- what is not plain data ----------------------------------------------------------------

    def give(self, value: Any) -> int:
        """A handle for an object of ours, always the same for the same object."""
        handle = self._handles.get(id(value))
        if handle is None:
            handle = self._handles[id(value)] = len(self._given)
            self._given[handle] = value
        return handle

    def export(self, value: Any) -> Tree:
        """A tree for what is not plain data: an object of ours, or one that came from the other side."""
        kind: type = type(value)
        if kind is Remote:
            return ["yours", Remote.handle_of(value)]
        if issubclass(kind, type) and issubclass(value, BaseException):
            name = str(value.__name__)
            if value in self._mirrors:
                return ["yours", self._mirrors[value]]
            if vars(builtins).get(name) is value:
                return ["exception", name]
            if value in FIELDS:
                return ["exception", f"{value.__module__}.{value.__qualname__}"]
            bases = [self.export(base) for base in value.__bases__ if issubclass(base, BaseException)]
            return ["mine", self.give(value), name, "exception", bases]
        known = like.remote_of(value)
        if known is not None:
            return ["yours", Remote.handle_of(known)]
        if issubclass(kind, BaseException):
            return ["error", *self._describe(value, Encoder(self.export, _NESTED))]
        base = like.base_of(value)
        if base is not None:
            plain = None if like.changes(base) else Encoder(self.export, _NESTED)(like.read(value))
            own = like.defined(value, base)
            return ["like", base.__name__, plain, self.give(value), kind.__name__, own]
        return ["mine", self.give(value), (value if issubclass(kind, type) else kind).__name__, "object"]

    def resolve(self, tree: Tree) -> Any:
        """The object that a tree stands for."""
        kind, *rest = tree
        if kind == "yours":
            return self._given[rest[0]]
        if kind == "exception":
            return LIBRARY.get(rest[0]) or _exception_class(getattr(builtins, rest[0]))
        if kind == "error":
            return self._exception(rest, Decoder(self.resolve))
        if kind not in ("mine", "like"):
            raise WireError(f"no value is called {kind!r}")
        if kind == "like":
            base, plain, handle, name, own = rest
            if handle not in self._received:
                remote = Remote(self, handle, str(name))
                held = Decoder(self.resolve)(plain)
                self._received[handle] = like.build(base, held, name, own, remote)
            return self._received[handle]
        handle, name, sort, *more = rest
        if handle not in self._received:
            if sort == "exception":
                bases = [_exception_class(self.resolve(base)) for base in more[0]]
                self._received[handle] = mirror(str(name), bases)
                self._mirrors[self._received[handle]] = handle
            else:
                self._received[handle] = Remote(self, handle, str(name))
        return self._received[handle]

    def _describe(self, error: BaseException, encode: Encoder) -> Tree:
        try:
            arguments = [encode(argument) for argument in error.args]
        except (WireError, RecursionError):
            arguments = [str(error)]
        attributes, text = self.attributes(error)
        try:
            told = Encoder(self.export, _NESTED)(attributes)
        except (WireError, RecursionError):
            told = None
        return [self.export(type(error)), arguments, self.trace(error), told, text]

    def _exception(self, trouble: Tree, read: Decoder) -> BaseException:
        kind, arguments, trace, told, text = trouble
        arguments = [read(argument) for argument in arguments]
        kind = _exception_class(read(kind))
        try:
            if kind in FIELDS:
                raise TypeError("they are made of other arguments than they keep")
            error: BaseException = kind(*arguments)
        except Exception:
            error = kind.__new__(kind)
            error.args = tuple(arguments)
        told = Decoder(self.resolve)(told)
        for name in FIELDS.get(kind, ()):
            if type(told) is dict and name in told:
                setattr(error, name, told[name])
        self.restore(error, told, text)
        error.sandbox_trace = str(trace)  # type: ignore[attr-defined]
        return error


def _exception_class(value: Any) -> type[BaseException]:
    if not (isinstance(value, type) and issubclass(value, BaseException)):
        raise WireError("not an exception class")
    return value
