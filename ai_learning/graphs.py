"""What a function may ask while ``torch.compile`` or ``torch.export`` makes a graph of it."""

from collections.abc import Callable
from typing import Any

import torch


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
