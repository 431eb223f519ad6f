"""Objects of the other process, seen from this one.

The rule that keeps verdicts honest: an object of the other side never takes part in comparing or calculating
with a plain value. ``remote == 3`` is false without asking, ``remote - 3`` is an error. Otherwise an object
that claims to equal everything would pass every test, and an operator would tell it what was expected.
"""

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from .peer import Peer

_DUNDERS = {
    "__name__",
    "__qualname__",
    "__doc__",
    "__annotations__",
    "__defaults__",
    "__module__",
    "__wrapped__",
}

UNARY: tuple[str, ...] = ("abs", "neg", "pos", "invert", "int", "float", "complex", "index", "bytes")
UNARY += ("round", "trunc", "floor", "ceil")
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    **{
        name: getattr(operator, name)
        for name in ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift")
    },
    "divmod": divmod,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}
FOREIGN: set[type] = set()
"""`Remote`, and the classes that ``like.py`` makes"""


def is_foreign(value: Any) -> bool:
    """Whether a value belongs to the other side."""
    return type(value) in FOREIGN  # never isinstance: it asks __class__


def refuse_plain(name: str) -> NoReturn:
    """Say why an operator does not work."""
    raise TypeError(
        f"an object of the code's own class {name} cannot be compared or calculated with a plain value"
    )


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

    @staticmethod
    def peer_of(remote: "Remote") -> "Peer":
        """The channel to where it is."""
        return object.__getattribute__(remote, "_peer")

    def _ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        return self._peer.request(operation, self, *arguments, **named)

    def _with(self, operation: str, other: Any) -> Any:
        if not is_foreign(other):
            refuse_plain(self._name)
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
        return is_foreign(other) and self._ask("eq", other) is True

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
        return is_foreign(value) and self._ask("isinstance", value) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return is_foreign(value) and self._ask("issubclass", value) is True

    def __contains__(self, item: Any) -> bool:
        answer = self._ask("contains", item)
        if answer is NotImplemented:  # its class has no word on it: compare here what it yields
            return any(own is item or own == item for own in self._ask("iter"))
        return answer is True

    def __format__(self, form: str) -> str:
        return str(self._ask("format", form))

    def __copy__(self) -> Any:
        return self._ask("copy")

    def __deepcopy__(self, memo: Any) -> Any:
        return self._ask("deepcopy")

    def __enter__(self) -> Any:
        return self._ask("enter")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        return self._peer.leave(self, error)


def _unary(operation: str) -> Any:
    return lambda self, *arguments: self._ask(operation, *arguments)


def _asked_for(name: str) -> Any:
    return lambda self: self._ask("getattr", name)


def _binary(operation: str) -> Any:
    return lambda self, other: self._with(operation, other)


for _name in ("len", "iter", "next", "getitem", "setitem", "delitem", "dir", "reversed", *UNARY):
    setattr(Remote, f"__{_name}__", _unary(_name))
for _name in ("lt", "le", "gt", "ge", *ARITHMETIC, *(f"i{name}" for name in ARITHMETIC if name != "divmod")):
    setattr(Remote, f"__{_name}__", _binary(_name))
for _name in ("__doc__", "__module__"):  # this class has them itself, so __getattr__ would not be asked
    setattr(Remote, _name, property(_asked_for(_name)))
FOREIGN.add(Remote)


def mirror(name: str, bases: Sequence[type[BaseException]]) -> type[BaseException]:
    """An exception class here for one of the other side, so that ``except`` can name it.

    What the other side told of an exception (see `tell`) is found when somebody here asks for it by name.
    """

    str_of_base = bases[0].__str__ if bases else Exception.__str__

    def text(error: BaseException) -> str:
        told = error.__dict__.get("_text")
        return told if type(told) is str else str_of_base(error)

    body = {"__getattr__": _told, "__str__": text}
    try:
        made = type(name, tuple(bases), body)
    except TypeError:
        made = type(name, (Exception,), body)
    return made


def tell(error: BaseException, attributes: Any, text: Any) -> None:
    """Note the attributes and the text of an exception of the other side.

    They are not set: the other side may not choose the names of attributes of an object of ours.
    """
    error.__dict__["_told"] = attributes if type(attributes) is dict else {}
    error.__dict__["_text"] = text


def told_of(error: BaseException) -> dict[str, Any]:
    """What `tell` noted."""
    return error.__dict__.get("_told", {})


def _told(error: BaseException, name: str) -> Any:
    told = told_of(error)
    if name.startswith("__") or name not in told:
        raise AttributeError(f"{type(error).__name__!r} object has no attribute {name!r}")
    return told[name]
