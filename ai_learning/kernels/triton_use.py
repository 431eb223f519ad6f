"""Triton's kernels: on which tensors they may be used, and how they are called."""

import importlib.util
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .loops import as_usual

Grid = tuple[int, ...]


def usable(*tensors: Tensor) -> bool:
    """Whether all lie plainly on one GPU that the kernels are written for, and are computed with as usual."""
    device = tensors[0].device
    if not all(t.is_cuda and t.device == device and type(t) in (Tensor, nn.Parameter) for t in tensors):
        return False
    return as_usual() and works_on(device)


@cache
def works_on(device: torch.device) -> bool:
    """Whether it is NVIDIA's, Ampere or later, and Triton can compile for it; if not, a warning says why.

    What is computed without Triton is the same, more slowly.
    """
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    from . import triton_use_kernels

    try:
        out = torch.zeros(1, device=device)
        launch(triton_use_kernels.add_one, (1,), out)
        return bool(out == 1)
    except Exception as error:
        warnings.warn(f"no Triton kernels, PyTorch's instead: {error}", stacklevel=2)
        return False


def starts_early(device: torch.device) -> bool:
    """Whether a kernel can start before the one before it ends (programmatic dependent launch)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """In this context the tensors' GPU is the current one: Triton launches on that, whatever it is given."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def launch(kernel: Any, grid: Grid, *given: Any, **how: Any) -> Any:
    """Run a kernel on the GPU of its first tensor."""
    with current(next(t.device for t in given if isinstance(t, Tensor))):
        return kernel[grid](*given, **how)


_READY: dict[Any, tuple[Any, tuple[Any, ...]]] = {}


def launch_again(
    alike: Any,
    kernel: Any,
    how: Callable[[], tuple[Grid, dict[str, Any]]],
    tensors: tuple[Tensor, ...],
    numbers: tuple[int, ...],
) -> None:
    """`launch`, for small kernels that are called often: Triton's own look at each argument takes 20 µs.

    Args:
        alike: equal for calls that differ in nothing but where the tensors lie.
        kernel: its arguments are the tensors, the numbers, then constants.
        how: gives grid and constants; called the first time.
        tensors: all on one device.
        numbers: told by ``alike`` too.
    """
    device, places = tensors[0].get_device(), 0
    for tensor in tensors:
        places |= tensor.data_ptr()
    # For tensors that begin elsewhere Triton compiles another kernel.
    plain = device >= 0 and device == torch.cuda.current_device() and places % 16 == 0
    ready = _READY.get((kernel, device, alike)) if plain else None
    if ready is not None:
        run, constants = ready
        run(*tensors, *numbers, *constants)
        return
    grid, named = how()
    compiled = launch(kernel, grid, *tensors, *numbers, **named)
    if plain:
        constants = tuple(named[name] for name in kernel.arg_names[len(tensors) + len(numbers) :])
        _READY[kernel, device, alike] = (compiled[(*grid, 1, 1)[:3]], constants)
