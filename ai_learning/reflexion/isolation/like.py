"""Instances of subclasses of plain types from the other side: named tuples, IntEnum, ``class Stack(list)``.

What counts in a comparison or calculation with a plain value is the plain value that they hold, whatever
their class overrides. For the rest their class is asked: its methods, ``len()``, ``in``, ``str()`` and so on.
Those that cannot change (of ``int``, ``str``, ``tuple``) are copied once. The others (of ``list``, ``dict``)
stay where they are, and each read fetches the value: a copy would be out of date after the first call.
"""

import collections
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .remote import ARITHMETIC, FOREIGN, UNARY, Remote, is_foreign, refuse_plain

# How to read the plain value out of an instance of a subclass, whatever its class overrides.
_READ: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    tuple: lambda value: tuple(tuple.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    collections.deque: lambda value: collections.deque(collections.deque.__iter__(value)),
    collections.OrderedDict: lambda value: collections.OrderedDict(collections.OrderedDict.items(value)),
    collections.Counter: lambda value: collections.Counter(dict(dict.items(value))),
    dict: lambda value: dict(dict.items(value)),
}
_BASES = {kind.__name__: kind for kind in _READ}
_SCALARS = {int, float, str, bytes}
_FIXED = {*_SCALARS, tuple, frozenset}
_READS = {"len", "iter", "getitem", "contains", "reversed", "bool", "str", "repr", "format"}
_DONE = {"call", "next", "enter", "exit"}
_COMPARISONS = ("lt", "le", "gt", "ge")
_HOOKS = {f"__{name}__" for name in (*_READS, *_DONE, *UNARY, *_COMPARISONS, "eq", "ne", "hash")}
_HOOKS |= {f"__{prefix}{name}__" for name in ARITHMETIC for prefix in ("", "r", "i")}
_STATIC = 1 << 9  # Py_TPFLAGS_HEAPTYPE: absent from the types that are written in C


@dataclass(frozen=True)
class _Sort:
    kind: type
    defined: frozenset[str]
    """names that the code's class has of its own"""

    def defines(self, name: str) -> bool:
        return f"__{name}__" in self.defined


_sorts: dict[type, _Sort] = {}
_classes: dict[tuple[type, str, frozenset[str]], type] = {}


def base_of(value: Any) -> type | None:
    """The plain type that a value's class derives from."""
    kind = type(value)  # never isinstance: __class__ may lie
    return next((base for base in _READ if issubclass(kind, base)), None)


def read(value: Any) -> Any:
    """The plain value that an instance of a subclass holds.

    Raises:
        TypeError: it is none.
    """
    base = base_of(value)
    if base is None:
        raise TypeError("not a plain value")
    return _READ[base](value)


def changes(base: type) -> bool:
    """Whether instances stay where they are."""
    return base not in _FIXED


def defined(value: Any, base: type) -> list[str]:
    """The names that a value's class has of its own, or instead of the plain type's."""
    names: set[str] = set()
    first = True
    for cls in type(value).__mro__:
        first = first and cls is not base
        if cls not in base.__mro__ and cls.__flags__ & _STATIC:
            names |= {
                name
                for name, item in vars(cls).items()
                if item is not None
                and (name in _HOOKS or not name.startswith("__"))
                and (first or not hasattr(base, name))
            }
    return sorted(names)


def build(base: str, plain: Any, name: str, own: Iterable[Any], remote: Remote) -> Any:
    """Such a value of the other side, for this one.

    Args:
        base: the plain type's name.
        plain: its value, of a type that cannot change.
        name: of its class.
        own: from `defined` over there. It says what is asked there, never what is done here.
        remote: itself.

    Raises:
        TypeError: the value is not of the plain type.
    """
    kind = _BASES.get(base)
    if kind is None or (kind in _FIXED and type(plain) is not kind):
        raise TypeError("not a plain value")
    names = frozenset(item for item in own if type(item) is str)
    key = (kind, str(name), names)
    if key not in _classes:
        sort = _Sort(kind, names)
        bases: tuple[type, ...] = (kind,) if kind in _FIXED else ()
        made = type(str(name), bases, _body(sort))
        _classes[key] = made
        _sorts[made] = sort
        FOREIGN.add(made)
    made = _classes[key]
    value = kind.__new__(made, plain) if kind in _FIXED else object.__new__(made)
    object.__getattribute__(value, "__dict__")["_remote"] = remote
    return value


def remote_of(value: Any) -> Remote | None:
    """What `build` was given."""
    return _remote(value) if type(value) in _sorts else None


def plain_of(value: Any) -> Any:
    """What counts of a value: the plain value that it holds now, or itself."""
    sort = _sorts.get(type(value))
    if sort is None:
        return value
    if sort.kind in _FIXED:
        return _READ[sort.kind](value)
    plain = _ask(value, "plain")
    if type(plain) is not sort.kind:
        raise TypeError("not a plain value")
    return plain


def _remote(value: Any) -> Remote:
    return object.__getattribute__(value, "__dict__")["_remote"]


def _ask(value: Any, operation: str, *arguments: Any, **named: Any) -> Any:
    remote = _remote(value)
    return Remote.peer_of(remote).request(operation, remote, *arguments, **named)


def _either_defines(self: Any, other: Any, *names: str) -> bool:
    return type(other) is Remote or any(_sorts[type(v)].defines(n) for v in (self, other) for n in names)


def _body(sort: _Sort) -> dict[str, Any]:
    """The class's methods here, all of them ours."""
    kind, fixed = sort.kind, sort.kind in _FIXED
    body: dict[str, Any] = {
        "__getattribute__": _getattribute,
        "__setattr__": lambda self, name, value: _ask(self, "setattr", name, value),
        "__delattr__": lambda self, name: _ask(self, "delattr", name),
        "__copy__": lambda self: _ask(self, "copy"),
        "__deepcopy__": lambda self, memo: _ask(self, "deepcopy"),
        "__eq__": _equal,
        "__ne__": _unequal,
        "__hash__": (lambda self: hash(plain_of(self))) if fixed else None,
    }
    body |= {f"__{name}__": _comparison(name) for name in _COMPARISONS}
    for name in ARITHMETIC:
        body |= {f"__{name}__": _arithmetic(name), f"__r{name}__": _reflected(name)}
    if not fixed:
        body |= {
            "__class__": property(lambda self: kind),  # isinstance(stack, list)
            "__iter__": lambda self: iter(plain_of(self)),
            "__reversed__": lambda self: reversed(plain_of(self)),
            "__contains__": lambda self, item: item in plain_of(self),
            "__len__": _asked("len"),
            "__bool__": lambda self: _ask(self, "bool") is True,
            "__str__": lambda self: str(_ask(self, "str")),
            "__repr__": lambda self: str(_ask(self, "repr")),
            "__format__": lambda self, form: str(_ask(self, "format", form)),
            **{f"__{name}__": _asked(name) for name in ("getitem", "setitem", "delitem")},
            **{f"__i{name}__": _in_place(name) for name in ARITHMETIC if hasattr(kind, f"__i{name}__")},
        }
        if sort.defines("hash"):
            body["__hash__"] = lambda self: int(_ask(self, "hash"))
    own = {*_READS, *_DONE} if kind in _SCALARS else {*_READS, *_DONE, *UNARY}
    for name in own:
        if sort.defines(name):
            body[f"__{name}__"] = getattr(_Asking, f"__{name}__")
    return body


class _Asking:
    """What a `Remote` does, for what the code's class defines."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return _remote(self)(*arguments, **named)


def _asked(name: str) -> Any:
    return lambda self, *arguments: _ask(self, name, *arguments)


def _as_remote(name: str) -> Any:
    method = getattr(Remote, f"__{name}__")
    return lambda self, *arguments: method(_remote(self), *arguments)


for _name in {*_READS, *_DONE, *UNARY} - {"call"}:
    setattr(_Asking, f"__{_name}__", _as_remote(_name))


def _getattribute(self: Any, name: str) -> Any:
    if not name.startswith("__"):
        sort = _sorts[type(self)]
        if sort.kind not in _FIXED or name in sort.defined or not hasattr(sort.kind, name):
            return _ask(self, "getattr", name)
    return object.__getattribute__(self, name)


def _equal(self: Any, other: Any) -> bool:
    if is_foreign(other):
        if _either_defines(self, other, "eq"):
            return _ask(self, "eq", other) is True
        other = plain_of(other)
    return bool(plain_of(self) == other)


def _unequal(self: Any, other: Any) -> bool:
    return not _equal(self, other)


def _comparison(name: str) -> Any:
    compare = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        if is_foreign(other) and _either_defines(self, other, *_COMPARISONS):
            return _ask(self, name, other)
        return compare(plain_of(self), plain_of(other))

    return method


def _arithmetic(name: str) -> Any:
    calculate = ARITHMETIC[name]

    def method(self: Any, other: Any, *modulus: Any) -> Any:
        sort = _sorts[type(self)]
        if is_foreign(other):
            if sort.kind not in _SCALARS or _either_defines(self, other, name, f"r{name}"):
                return _ask(self, name, other)
        elif sort.kind not in _SCALARS and sort.defines(name):
            refuse_plain(type(self).__name__)
        return pow(plain_of(self), other, *modulus) if modulus else calculate(plain_of(self), plain_of(other))

    return method


def _reflected(name: str) -> Any:
    calculate = ARITHMETIC[name]

    def method(self: Any, other: Any) -> Any:
        sort = _sorts[type(self)]
        if sort.kind not in _SCALARS and sort.defines(f"r{name}"):
            refuse_plain(type(self).__name__)
        return calculate(other, plain_of(self))

    return method


def _in_place(name: str) -> Any:
    def method(self: Any, other: Any) -> Any:
        if not is_foreign(other) and _sorts[type(self)].defines(f"i{name}"):
            refuse_plain(type(self).__name__)
        return _ask(self, f"i{name}", other)

    return method
