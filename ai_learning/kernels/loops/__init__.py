"""Compiled loops on PyTorch's own threads, where PyTorch has no kernel that is fast enough.

A loop is written in Python in a file named ``…_kernels.py`` (`compiler` has its words), and is used without
importing that file: ``run(Loops("kernels.training_kernels").adamw, …)``. numba compiles it once on a machine
(`store`), and `threads` runs it.
"""

import warnings
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..host_memory import is_plain
from . import threads
from .store import COMPILING, StoredLoop, before_compiling, processor_has
from .threads import run

__all__ = [
    "COMPILING",
    "Loops",
    "StoredLoop",
    "as_usual",
    "before_compiling",
    "processor_has",
    "ready",
    "run",
    "usable",
]


class Loops:
    """The loops of a module of this package, each an attribute; the module itself is not imported.

    Example:
        >>> x, y = torch.ones(5), torch.zeros(5)
        >>> gelu = Loops("kernels.gelu_kernels").portable_gelu_new
        >>> if ready(gelu):
        ...     run(gelu, 0, 5, 5, (5,), (x, y))
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> StoredLoop:
        if name.startswith("_"):
            raise AttributeError(name)
        found = StoredLoop(self._module, name)
        setattr(self, name, found)
        return found


@cache
def ready(*loops: StoredLoop) -> bool:
    """Whether these loops can be run; the first call loads them, or has them compiled.

    What goes wrong is a warning, not an error: each loop is a faster way to what PyTorch does as well.
    """
    try:
        return all(loop.address for loop in (threads.work, *loops))
    except Exception as error:
        if not isinstance(error, ImportError):  # without numba there is nothing to say
            names = ", ".join(f"{loop.module}.{loop.name}" for loop in loops)
            warnings.warn(f"no compiled loops ({names}), PyTorch's instead: {error}", stacklevel=2)
        return False


def usable(*tensors: Tensor, contiguous: bool = True) -> bool:
    """Whether loops on float32 take these: plain in main memory, and computed with as usual."""
    if not as_usual():
        return False
    return is_plain(*tensors, contiguous=contiguous) and all(t.dtype == torch.float32 for t in tensors)


def as_usual() -> bool:
    """Whether tensors are computed with, not traced or transformed."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    traced = traced or torch._C._len_torch_dispatch_stack() > 0  # make_fx, fake tensors, counters of FLOPs
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return not (traced or transformed)
