"""Machine code of loops, kept on disk: whoever uses one that was compiled before does not load numba.

numba takes half a second and 140 MB to load, whatever it does then. What it has compiled is an object file of
a few kilobytes, which LLVM's loader alone (llvmlite: 0.07 s, 50 MB) puts in its place. The files lie beside
the sources in ``__pycache__``, or in the user's cache folder; one is good while no source file, version or
processor is another.
"""

import ctypes
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...files import atomic_path, digest_of_sources

_PACKAGE = Path(__file__).parent.parent.parent
_HERE = Path(__file__).parent
_ON_ERRORS = (
    "numba_gil_ensure", "numba_gil_release", "numba_do_raise", "numba_unpickle",
    "numba_runtime_build_excinfo_struct", "NRT_MemInfo_call_dtor", "NRT_Free",
)  # fmt: skip
"""numba's functions that its code would call on an error, or for arrays that it made; loops have neither"""
_C_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class StoredLoop:
    """A loop of a module of this package, from the disk; compiled, and stored, where it is not there."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    @cached_property
    def address(self) -> int:
        """Where the C function stands.

        Raises:
            ImportError: numba and llvmlite are not installed.
        """
        symbol, code = _read(self.module, self.name) or self._compile()
        return _place(symbol, code)

    @cached_property
    def call(self) -> Any:
        """The C function, to be called from Python."""
        return _C_FUNCTION(self.address)

    def _compile(self) -> tuple[str, bytes]:
        if _to_be_told:
            _to_be_told.pop()()
        symbol, code = getattr(import_module(f"ai_learning.{self.module}"), self.name).code()
        _write(self.module, self.name, symbol, code)
        return symbol, code


_to_be_told: list[Callable[[], None]] = []


COMPILING = "compiling loops, once on this machine (some seconds) …"
"""what to say then"""


@contextmanager
def before_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Inside, ``tell`` is called once, before the first loop that is not stored is compiled."""
    _to_be_told.append(tell)
    try:
        yield
    finally:
        if tell in _to_be_told:
            _to_be_told.remove(tell)


def _read(module: str, name: str) -> tuple[str, bytes] | None:
    file_name = _file_name(module, name)
    for folder in _folders(module):
        with suppress(OSError, ValueError):
            digest, symbol, code = (folder / file_name).read_bytes().split(b"\n", 2)
            if hashlib.sha256(symbol + code).hexdigest() == digest.decode():
                return symbol.decode(), code
    return None


def _write(module: str, name: str, symbol: str, code: bytes) -> None:
    file_name = _file_name(module, name)
    digest = hashlib.sha256(symbol.encode() + code).hexdigest()
    for folder in _folders(module):
        try:
            with atomic_path(folder / file_name) as temporary:
                temporary.write_bytes(b"\n".join((digest.encode(), symbol.encode(), code)))
        except OSError:  # not ours to write to: the next one
            continue
        _remove_old(folder, module)
        return


def _remove_old(folder: Path, module: str) -> None:
    """What other sources, versions or processors made; in folders that may be shared, only after a month."""
    own = folder == _sources(module) / "__pycache__"
    for other in folder.glob(f"{module}.*.loop"):
        with suppress(OSError):
            is_old = own or time.time() - other.stat().st_mtime > 30 * 24 * 3600
            if is_old and f".{_key(module)[:24]}." not in other.name:
                other.unlink()


def _folders(module: str) -> Iterator[Path]:
    if own := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(own)
        return
    yield _sources(module) / "__pycache__"
    with suppress(RuntimeError):  # no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ai-learning"


def _sources(module: str) -> Path:
    return _PACKAGE.joinpath(*module.split(".")[:-1])


def _file_name(module: str, name: str) -> str:
    return f"{module}.{name}.{_key(module)[:24]}.loop"


@cache
def processor_has(*features: str) -> bool:
    """Whether this machine has instructions, by LLVM's names."""
    return all(f"+{feature}" in _features().split(",") for feature in features)


@cache
def _features() -> str:
    if "NUMBA_CPU_NAME" in os.environ:  # for another processor than this one
        return os.environ.get("NUMBA_CPU_FEATURES", "")
    try:
        return str(_llvm().get_host_cpu_features().flatten())
    except (ImportError, RuntimeError):  # no LLVM, or none that knows this processor
        return ""


@cache
def _key(module: str) -> str:
    """Changes whenever the machine code of the module's loops might."""
    made_by = (version("numba"), version("llvmlite"), sys.version, platform.platform())
    wishes = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("NUMBA_")]
    wishes = [wish for wish in wishes if not wish.startswith("NUMBA_CACHE_DIR=")]
    sources = digest_of_sources(_sources(module), *sorted(_HERE.glob("[!.]*.py")))
    parts = (sources, *made_by, _llvm().get_host_cpu_name(), _features(), *wishes)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _llvm() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


_in_place: list[Any] = []  # code is there as long as what loaded it


def _place(symbol: str, code: bytes) -> int:
    """Load an object file; the address of one of its functions."""
    llvm = _llvm()
    for name in _ON_ERRORS:
        if llvm.address_of_symbol(name) is None:
            llvm.add_symbol(name, ctypes.cast(ctypes.pythonapi.PyErr_Clear, ctypes.c_void_p).value)
    target = llvm.Target.from_triple(llvm.get_process_triple())
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target.create_target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _in_place.append((engine, code))
    return int(engine.get_function_address(symbol))
