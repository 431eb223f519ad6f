"""Compiled loops on PyTorch's own threads, where PyTorch has no kernel that is fast enough.

A loop is written in Python in a file named ``…_kernels.py`` (`compiler` has its words), and is used without
importing that file: ``run(Loops("training_kernels").adamw, …)``. numba compiles it once on a machine
(`store`), and `threads` runs it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..pages import is_plain
from .store import StoredLoop, processor_has
from .threads import can_run, run

__all__ = ["Loops", "StoredLoop", "can_run", "processor_has", "run", "usable"]


class Loops:
    """The loops of a module of this package, each an attribute; the module itself is not imported.

    Example:
        >>> x, y = torch.ones(5), torch.zeros(5)
        >>> if can_run():
        ...     run(Loops("training_kernels").gelu_new, 0, 5, 5, (5,), (x, y))
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> StoredLoop:
        if name.startswith("_"):
            raise AttributeError(name)
        found = StoredLoop(self._module, name)
        setattr(self, name, found)
        return found


def usable(*tensors: Tensor) -> bool:
    """Whether loops on float32 can be had and take these: plain in main memory, computed with as usual."""
    transformed: Any = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if torch.compiler.is_compiling() or transformed:  # torch.compile, torch.func, forward-mode derivatives
        return False
    return is_plain(*tensors) and all(t.dtype == torch.float32 for t in tensors) and can_run()
