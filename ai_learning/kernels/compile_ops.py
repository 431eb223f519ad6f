"""Graphs that ``torch.compile`` or ``torch.export`` make: what a function may ask, and operations."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

# Operations are there as long as it is: also when this module is loaded again.
_LIBRARY = globals().get("_LIBRARY") or torch.library.Library("ai_learning", "FRAGMENT")
_WITH_GRADIENT: set[Any] = globals().get("_WITH_GRADIENT") or set()


def constant_in_graphs(function: Callable[[], Any]) -> Callable[[], Any]:
    """Decorator: what a function says when a graph is made, holds for the graph.

    As ``torch.compiler.assume_constant_result``, which imports the whole compiler: a second for whoever never
    compiles.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def is_exporting() -> bool:
    """Whether the graph is for others, who do not have this package's operations."""
    return torch.compiler.is_exporting()


def operation(
    name: str, fake: Callable[..., Any], devices: Sequence[str] = ("CPU",)
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: a function of tensors becomes an operation that graphs call without looking inside.

    It must return new tensors: ``torch.library.custom_op`` would make sure of that after each call, which
    takes longer than the rest of calling a compiled loop (25 µs). Its gradient must be defined in the same
    file: PyTorch keeps compiled graphs on disk by the names of what the forward pass calls, and would use
    an old version's, so each name ends in the file's digest.

    Args:
        name: begins that in ``torch.ops.ai_learning``.
        fake: what the function would return, without computing it: takes and gives tensors without numbers.
        devices: what its tensors lie on, by PyTorch's dispatch keys.
    """

    def register(function: Callable[..., Any]) -> Any:
        whole = f"{name}_{_digest(function.__code__.co_filename)}"
        known = getattr(torch.ops.ai_learning, whole, None)
        if known is not None:  # the module is loaded again
            return known.default
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(whole + schema, tags=torch.Tag.pt2_compliant_tag)
        for device in devices:
            _LIBRARY.impl(whole, function, device)
        torch.library.register_fake(f"ai_learning::{whole}", fake, lib=_LIBRARY)
        return getattr(torch.ops.ai_learning, whole).default

    return register


def define_gradient(
    operation: Any, backward: Callable[..., Any], setup_context: Callable[[Any, Any, Any], None]
) -> None:
    """``torch.library.register_autograd``, but once: a module that is loaded again has defined it already."""
    if operation not in _WITH_GRADIENT:
        torch.library.register_autograd(operation, backward, setup_context=setup_context)
        _WITH_GRADIENT.add(operation)


def _digest(source: str) -> str:
    try:
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8]
    except OSError:  # in an archive
        return "unknown"
