"""Objects of the other process, seen from this one.

The rule that keeps verdicts honest: an object of the other side never takes part in comparing or calculating
with a plain value. ``remote == 3`` is false without asking, ``remote - 3`` is an error. Otherwise an object
that claims to equal everything would pass every test, and an operator would tell it what was expected.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .peer import Peer

_DUNDERS = {"__name__", "__qualname__", "__doc__", "__annotations__", "__defaults__", "__module__"}


class Remote:
    """A function, class or object that stays in the other process."""

    __slots__ = ("_handle", "_name", "_peer")

    def __init__(self, peer: "Peer", handle: int, name: str) -> None:
        for field, value in (("_peer", peer), ("_handle", handle), ("_name", name)):
            object.__setattr__(self, field, value)

    @staticmethod
    def handle_of(remote: "Remote") -> int:
        """Its number on the other side."""
        return object.__getattribute__(remote, "_handle")

    def _ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        return self._peer.request(operation, self, *arguments, **named)

    def _with(self, operation: str, other: Any) -> Any:
        if type(other) is not Remote:
            raise TypeError(
                f"an object of the code's own class {self._name} cannot be compared or calculated with "
                "a plain value"
            )
        return self._ask(operation, other)

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        """Call it over there."""
        return self._peer.request("call", self, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in _DUNDERS:
            raise AttributeError(f"{self._name!r} object has no attribute {name!r} here")
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __delattr__(self, name: str) -> None:
        self._ask("delattr", name)

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and self._ask("eq", other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return int(self._ask("hash"))

    def __bool__(self) -> bool:
        return self._ask("bool") is True

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __str__(self) -> str:
        return str(self._ask("str"))

    def __instancecheck__(self, value: Any) -> bool:
        return _is_remote(value) and self._ask("isinstance", value) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return _is_remote(value) and self._ask("issubclass", value) is True

    def __enter__(self) -> Any:
        return self._ask("getattr", "__enter__")()

    def __exit__(self, *error: Any) -> Any:
        return self._ask("getattr", "__exit__")(None, None, None)


def _unary(operation: str) -> Any:
    return lambda self, *arguments: self._ask(operation, *arguments)


def _binary(operation: str) -> Any:
    return lambda self, other: self._with(operation, other)


for _name in ("len", "iter", "next", "getitem", "setitem", "delitem", "dir", "abs", "neg"):
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name in ("lt", "le", "gt", "ge", "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"):
    setattr(Remote, f"__{_name}__", _binary(_name))


# How to read the plain value out of an instance of a subclass, whatever its class overrides.
_READ: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}


class like:  # noqa: N801 - a name space
    """Instances of subclasses of plain types (named tuples, IntEnum …): their plain value is what counts."""

    _classes: dict[tuple[str, str], type] = {}  # noqa: RUF012

    @staticmethod
    def plain(value: Any) -> tuple[type, Any] | None:
        """The plain type that a value's class derives from, and its value as such."""
        for base, read in _READ.items():
            if isinstance(value, base):
                return base, read(value)
        return None

    @staticmethod
    def build(base: str, plain: Any, name: str, remote: Remote) -> Any:
        """A value of a subclass made here: compared as plain data, other attributes asked for."""
        kind = type(plain)
        if kind not in _READ or kind.__name__ != base:
            raise TypeError("not a plain value")
        key = (base, str(name))
        if key not in like._classes:
            like._classes[key] = type(str(name), (kind,), {"__getattr__": _attribute, "_is_like": True})
        value = like._classes[key](plain)
        value.__dict__["_remote"] = remote
        return value

    @staticmethod
    def remote_of(value: Any) -> Remote | None:
        """What `build` was given."""
        return value.__dict__["_remote"] if type(value) in like._classes.values() else None


def _attribute(value: Any, name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return getattr(value.__dict__["_remote"], name)


def _is_remote(value: Any) -> bool:
    return type(value) is Remote or type(value) in like._classes.values()


def mirror(name: str, bases: Sequence[type[BaseException]]) -> type[BaseException]:
    """An exception class here for one of the other side, so that ``except`` can name it."""
    try:
        return type(name, tuple(bases), {})
    except TypeError:
        return type(name, (Exception,), {})
