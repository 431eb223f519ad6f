"""Compiled loops, where they are to be had; numba is loaded when there is work for one, not before."""

import sys
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .pages import is_plain


@cache
def loops(module: str) -> Any:
    """A module of this package with compiled loops, ``None`` where numba has no build.

    Loading the first one takes some tenths of a second; each loop is compiled once on a machine, when it is
    first run.
    """
    try:
        return import_module(f".{module}", __package__)
    except ImportError:
        return None


def loaded(module: str) -> bool:
    """Whether ``loops(module)`` costs nothing any more."""
    return f"{__package__}.{module}" in sys.modules


def usable(*tensors: Tensor) -> bool:
    """Whether loops can take these: float32, plain in main memory, and computed with in the ordinary way."""
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if torch.compiler.is_compiling() or transformed:  # torch.compile, torch.func, forward-mode derivatives
        return False
    return is_plain(*tensors) and all(t.dtype == torch.float32 for t in tensors)
