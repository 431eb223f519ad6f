"""Text environments: a task around one, and adapters for the two libraries that bring them.

EnvironmentTask("pick-1", lambda: AlfworldEnvironment(env))
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ...errors import InputError
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


def load_environments(name: str) -> list[EnvironmentTask]:
    """Tasks from ``MODULE:FUNCTION``, or ``FILE.py:FUNCTION``; it returns an iterable of tasks.

    Raises:
        InputError: no such module or function, or it returns something else.

    Example:
        >>> load_environments("my_games:test_split")  # doctest: +SKIP
    """
    where, _, function = name.rpartition(":")
    if not where:
        raise InputError(f"{name!r} names no function: give MODULE:FUNCTION or FILE.py:FUNCTION")
    try:
        module = _from_file(where) if where.endswith(".py") else import_module(where)
    except ImportError as error:
        raise InputError(f"{where} cannot be imported: {error}") from None
    make = getattr(module, function, None)
    if not callable(make):
        raise InputError(f"{where} has no function {function!r}")
    tasks = list(make())
    for task in tasks:
        if not callable(getattr(task, "environment", None)):
            raise InputError(f"{name} returned a {type(task).__name__}, which is no task with an environment")
    return tasks


def _from_file(path: str) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("environments_of_the_user", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        raise ImportError(f"no file at {path}") from None
    return module
