"""The source that runs, with its file and line; and a plot, where one can be seen."""

import inspect
from pathlib import Path
from typing import Any


def show(obj: Any) -> None:
    """Print the source of a function, class or module of the library.

    Args:
        obj: what to show; for a config dataclass or a method, that.

    Raises:
        ValueError: something that has no Python source.

    Example:
        >>> from ai_learning.model import causal_mask
        >>> show(causal_mask)  # doctest: +ELLIPSIS
        # ai_learning/model/attention.py, line ...
        def causal_mask(block_size: int) -> Mask:
        ...
    """
    try:
        lines, first = inspect.getsourcelines(obj)
        file = Path(inspect.getsourcefile(obj) or "")
    except (OSError, TypeError):
        raise ValueError(f"{obj!r} has no Python source to show") from None
    parts = file.parts
    start = parts.index("ai_learning") if "ai_learning" in parts else len(parts) - 1
    print(f"# {'/'.join(parts[start:])}, line {max(first, 1)}")
    print("".join(lines).rstrip())


def picture(path: Path | str) -> None:
    """Show a saved picture in a notebook; in a terminal, say where it is.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no picture at {path}")
    try:
        from IPython import get_ipython
        from IPython.display import Image, display
    except ImportError:
        get_ipython = None
    if get_ipython is not None and get_ipython() is not None:
        display(Image(filename=str(path)))
    else:
        print(f"picture: {path}")
