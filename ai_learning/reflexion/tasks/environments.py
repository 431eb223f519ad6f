"""Text environments: a task around one, and adapters for the two libraries that bring them.

EnvironmentTask("pick-1", lambda: AlfworldEnvironment(env))
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .base import Attempt, TextEnvironment, Verdict


@dataclass(frozen=True)
class EnvironmentTask:
    """A task that an environment poses and judges.

    Attributes:
        id: unique in its data set.
        make: a new environment for each trial, always of the same world.
        prompt: said to the actor before the first observation; often nothing.
        kind: the folder of prompts.
    """

    id: str
    make: Callable[[], TextEnvironment]
    prompt: str = ""
    kind: str = "environment"

    def environment(self) -> TextEnvironment:
        """A new one."""
        return self.make()

    def evaluate(self, attempt: Attempt) -> Verdict:
        """What the environment said."""
        return Verdict(attempt.success, "The task is done." if attempt.success else "The task was not done.")


class TextWorldEnvironment:
    """A TextWorld game: ``textworld.gym.make(register_game(path, request_infos=EnvInfos(won=True)))``.

    Args:
        env: Gym's interface: ``reset() → (text, infos)``, ``step(command) → (text, score, done, infos)``.
    """

    def __init__(self, env: Any) -> None:
        self.env = env

    def reset(self) -> str:
        """Begin the game again."""
        text, _ = self.env.reset()
        return str(text).strip()

    def step(self, action: str) -> tuple[str, bool, bool]:
        """One command."""
        text, _, done, infos = self.env.step(action)
        return str(text).strip(), bool(done), bool(infos.get("won", False))


class AlfworldEnvironment:
    """An ALFWorld game: ``get_environment("AlfredTWEnv")(config).init_env(batch_size=1)``.

    ALFWorld moves on to its next game at every ``reset``; ``env`` must be one that holds this game only
    (``env.seed``, or a ``game_files`` list of one).

    Args:
        env: its batched interface, of which the first row is used.
    """

    def __init__(self, env: Any) -> None:
        self.env = env

    def reset(self) -> str:
        """Begin the game again; the banner before the room's description is left out."""
        text = self.env.reset()[0][0]
        return str(text).partition("\n\n")[2].strip() or str(text).strip()

    def step(self, action: str) -> tuple[str, bool, bool]:
        """One command."""
        text, _, done, infos = self.env.step([action])
        return str(text[0]).strip(), bool(done[0]), bool(infos["won"][0])
