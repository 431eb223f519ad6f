"""Reflexion (Shinn et al. 2023): an agent that learns from its failures by writing itself advice.

    trial → evaluation → reflection, in words → memory → next trial …

    from ai_learning.reflexion import Reflexion
    Reflexion("openai:gpt-5-mini", strategy="reflexion", trials=4).run(tasks)

Read ``memory.py``, then ``graph.py``: the method is those two files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .memory import Memory as Memory
    from .run import Reflexion as Reflexion
    from .sandbox import run_python as run_python
    from .tasks.base import Strategy as Strategy

# Looked up when first used: the sandbox needs no langgraph, and the memory needs neither.
_HOMES = {"Reflexion": "run", "Memory": "memory", "run_python": "sandbox", "Strategy": "tasks.base"}

__all__ = ["Memory", "Reflexion", "Strategy", "run_python"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
