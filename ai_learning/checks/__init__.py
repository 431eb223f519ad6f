"""For lessons: the library's own source, shown where it is used."""

from .show import show

__all__ = ["show"]
