"""When Triton's kernels may be used: on tensors that lie on a GPU, and are computed with as usual."""

import importlib.util
from functools import cache

import torch
from torch import Tensor, nn


def usable(*tensors: Tensor) -> bool:
    """Whether all lie plainly on a GPU that Triton can write for, and nobody is tracing."""
    if not all(t.is_cuda and type(t) in (Tensor, nn.Parameter) for t in tensors):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return not torch._C._are_functorch_transforms_active() and is_installed()


@cache
def is_installed() -> bool:
    """Whether there is Triton; it comes with PyTorch for CUDA."""
    return importlib.util.find_spec("triton") is not None
