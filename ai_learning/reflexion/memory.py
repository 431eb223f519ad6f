"""Long-term memory: the reflections on earlier trials, of which the actor sees the last few.

The short-term memory is the trajectory of the trial itself; it lives in the graph's state.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Memory:
    """Reflections on one task, oldest first, behind a sliding window.

    Section 3 of the paper bounds the memory by Ω, usually 1 to 3, so that it fits the model's context:
    3 for decisions and reasoning, 1 for programming.

    Attributes:
        window: Ω, how many of the newest reflections the actor is shown.
        reflections: all of them; none is forgotten here, older ones are only not shown.

    Raises:
        InputError: a window below 1.

    Example:
        >>> Memory(window=2).add("a").add("b").add("c").shown
        ('b', 'c')
    """

    window: int = 3
    reflections: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.window < 1:
            raise InputError(
                f"window={self.window} must be at least 1 (the paper uses 1 to 3); "
                "for no reflections at all use strategy none or last_attempt"
            )

    @classmethod
    def of(cls, reflections: Iterable[str], window: int = 3) -> "Memory":
        """A memory of given reflections, oldest first."""
        return cls(window, tuple(reflections))

    def add(self, reflection: str) -> "Memory":
        """The memory with one more reflection; one without any words leaves it as it is."""
        reflection = reflection.strip()
        return Memory(self.window, (*self.reflections, reflection)) if reflection else self

    @property
    def shown(self) -> tuple[str, ...]:
        """The last Ω reflections, oldest first."""
        return self.reflections[-self.window :]

    def text(self) -> str:
        """The shown reflections as a list, a line each; empty when there are none."""
        return "\n".join(f"- {' '.join(reflection.split())}" for reflection in self.shown)
