"""Values between two processes that do not trust each other: plain data in JSON, and nothing that executes.

None, bool, str, ordinary int and float stand for themselves; everything else is a list that begins with its
kind. Lists, dicts, sets and bytearrays carry a number, so that sharing, cycles and changes in place survive:
decoding into known objects updates them. What is not plain data stays where it is and travels as a handle.
"""

import base64
import collections
import datetime
import decimal
import fractions
import json
import pathlib
import socket
import struct
import uuid
from collections.abc import Callable
from typing import Any

MAX_FRAME = 64 * 1024 * 1024
DEPTH = 6000
"""Python's recursion limit while values are written and read: they may be nested a thousand times"""
_BIG = 1 << 63  # beyond it decimal digits would be slow to read, and CPython limits them

Tree = Any
"""what json reads and writes"""

SCALARS: tuple[type, ...] = (int, float, str, bytes, complex, tuple, frozenset)
CONTAINERS: tuple[type, ...] = (list, dict, set, bytearray)
BUILTIN_TYPES = {t.__name__: t for t in (object, type, bool, range, slice, *SCALARS, *CONTAINERS)}

# Values of the standard library, by the arguments that make them again.
_LIBRARY: dict[str, tuple[type, Callable[[Any], tuple[Any, ...]]]] = {
    "Fraction": (fractions.Fraction, lambda v: (v.numerator, v.denominator)),
    "Decimal": (decimal.Decimal, lambda v: (str(v),)),
    "date": (datetime.date, lambda v: (v.year, v.month, v.day)),
    "time": (datetime.time, lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo)),
    "datetime": (
        datetime.datetime,
        lambda v: (v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    ),
    "timezone": (datetime.timezone, lambda v: v.__getinitargs__()),
    "timedelta": (datetime.timedelta, lambda v: (v.days, v.seconds, v.microseconds)),
    "deque": (collections.deque, lambda v: (list(v), v.maxlen)),
    "Counter": (collections.Counter, lambda v: (dict(v),)),
    "OrderedDict": (collections.OrderedDict, lambda v: ([(key, v[key]) for key in v],)),
    "defaultdict": (collections.defaultdict, lambda v: (v.default_factory, dict(v))),
    "PurePosixPath": (pathlib.PurePosixPath, lambda v: (str(v),)),
    "PosixPath": (pathlib.PosixPath, lambda v: (str(v),)),
    "PureWindowsPath": (pathlib.PureWindowsPath, lambda v: (str(v),)),
    "UUID": (uuid.UUID, lambda v: (str(v),)),
}
# A dict's keys, values and items are copied too: they compare as what they are, but do not change any more.
_VIEWS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    type({}.keys()): ("keys", lambda content: dict.fromkeys(content).keys()),
    type({}.values()): ("values", lambda content: dict(enumerate(content)).values()),
    type({}.items()): ("items", lambda content: dict(content).items()),
    type(collections.OrderedDict().keys()): ("keys", lambda content: dict.fromkeys(content).keys()),
    type(collections.OrderedDict().values()): ("values", lambda content: dict(enumerate(content)).values()),
    type(collections.OrderedDict().items()): ("items", lambda content: dict(content).items()),
}
_MAKE_VIEW = dict(_VIEWS.values())
_LIBRARY_NAMES = {kind: name for name, (kind, _) in _LIBRARY.items()}


class ClosedError(Exception):
    """The other side is gone. A class of its own: code may raise EOFError and ConnectionError as it likes."""


class WireError(Exception):
    """The other process sent something that is no message."""


def send(channel: socket.socket, message: Tree) -> None:
    """Write one message.

    Raises:
        ClosedError: the other side is gone.
        WireError: the message is too large.
    """
    body = json.dumps(message, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME:
        raise WireError(f"a value of {len(body) / 1e6:.0f} MB is too large to compare")
    try:
        channel.sendall(struct.pack(">I", len(body)) + body)
    except ConnectionError as error:
        raise ClosedError from error


def receive(channel: socket.socket) -> Tree:
    """Read one message.

    Raises:
        ClosedError: the other side is gone.
        WireError: what came is no message.
    """
    (length,) = struct.unpack(">I", _exactly(channel, 4))
    if length > MAX_FRAME:
        raise WireError(f"a message of {length / 1e6:.0f} MB is too large")
    try:
        return json.loads(_exactly(channel, length))
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a message: {error}") from None


class Encoder:
    """Writes values of one message; ``export`` turns what is not plain data into a tree."""

    def __init__(self, export: Callable[[Any], Tree], first: int = 0) -> None:
        self.export = export
        self.numbers: dict[int, int] = {}
        """the address of a container → its number"""
        self.containers: dict[int, Any] = {}
        """its number → the container, kept alive"""
        self.next = first

    def __call__(self, value: Any) -> Tree:
        """The tree of a value."""
        kind: type = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if -_BIG < value < _BIG else ["int", hex(value)]
        if kind is float:
            return value if value - value == 0 else ["float", repr(value)]
        if kind in CONTAINERS:
            return self._container(kind, value)
        if kind in (tuple, frozenset):
            return [kind.__name__, [self(item) for item in value]]
        if kind is bytes:
            return ["bytes", base64.b64encode(value).decode()]
        if kind is complex:
            return ["complex", self(value.real), self(value.imag)]
        if kind is range:
            return ["range", self(value.start), self(value.stop), self(value.step)]
        if kind is slice:
            return ["slice", self(value.start), self(value.stop), self(value.step)]
        if kind in _VIEWS:
            return ["view", _VIEWS[kind][0], [self(item) for item in value]]
        if kind in _LIBRARY_NAMES and type(getattr(value, "tzinfo", None)) in (type(None), datetime.timezone):
            name = _LIBRARY_NAMES[kind]
            return ["library", name, [self(a) for a in _LIBRARY[name][1](value)]]
        if kind is type and value in BUILTIN_TYPES.values():
            return ["type", value.__name__]
        if value is Ellipsis or value is NotImplemented:
            return ["constant", repr(value)]
        return self.export(value)

    def _container(self, kind: type, value: Any) -> Tree:
        number = self.numbers.get(id(value))
        if number is not None:
            return ["same", number]
        number = self.numbers[id(value)] = self.next
        self.containers[number] = value
        self.next += 1
        return [kind.__name__, number, self.content(value)]

    def content(self, value: Any) -> Tree:
        """What is in a container."""
        if isinstance(value, dict):
            return [[self(key), self(item)] for key, item in value.items()]
        if isinstance(value, bytearray):
            return base64.b64encode(value).decode()
        return [self(item) for item in value]


class Decoder:
    """Reads values of one message; containers in ``known`` are updated in place, others are made."""

    def __init__(self, resolve: Callable[[Tree], Any], known: dict[int, Any] | None = None) -> None:
        self.resolve = resolve
        self.containers: dict[int, Any] = dict(known or {})

    def __call__(self, tree: Tree) -> Any:
        """The value of a tree; `WireError` for what is none."""
        if not isinstance(tree, list):
            if isinstance(tree, dict):
                raise WireError("not a value")
            return tree
        try:
            return self._read(*tree)
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise WireError(f"not a value: {error}") from None

    def _read(self, kind: str, *rest: Any) -> Any:
        if kind in ("list", "dict", "set", "bytearray"):
            return self._container(BUILTIN_TYPES[kind], *rest)
        if kind == "same":
            return self.containers[rest[0]]
        if kind in ("tuple", "frozenset"):
            return BUILTIN_TYPES[kind](self(item) for item in rest[0])
        if kind == "int":
            return int(rest[0], 16)
        if kind == "float":
            return float(rest[0])
        if kind == "bytes":
            return base64.b64decode(rest[0])
        if kind == "complex":
            return complex(*map(self, rest))
        if kind in ("range", "slice"):
            return BUILTIN_TYPES[kind](*map(self, rest))
        if kind == "library":
            return self._library(rest[0], [self(a) for a in rest[1]])
        if kind == "view":
            return _MAKE_VIEW[rest[0]]([self(item) for item in rest[1]])
        if kind == "type":
            return BUILTIN_TYPES[rest[0]]
        if kind == "constant":
            return {"Ellipsis": ..., "NotImplemented": NotImplemented}[rest[0]]
        return self.resolve([kind, *rest])

    def _container(self, kind: type, number: int, content: Tree) -> Any:
        value: Any = self.containers.get(number)
        if type(value) is not kind:
            value = self.containers[number] = kind()
        # Read before emptying: an item may be the container itself.
        if kind is bytearray:
            value[:] = base64.b64decode(content)
        elif kind is dict:
            items = [(self(key), self(item)) for key, item in content]
            value.clear()
            value.update(items)
        else:
            new = [self(item) for item in content]
            value.clear()
            value.extend(new) if kind is list else value.update(new)
        return value

    def _library(self, name: str, arguments: list[Any]) -> Any:
        return _LIBRARY[name][0](*arguments)


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = channel.recv(min(count, 1 << 20))
        except ConnectionError as error:
            raise ClosedError from error
        if not part:
            raise ClosedError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
