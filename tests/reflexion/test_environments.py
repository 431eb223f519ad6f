"""Adapters for the libraries' environments, on fakes with their interfaces; tasks from a user's module."""

from pathlib import Path
from typing import Any

import pytest
from worlds import RuleModel

from ai_learning.errors import InputError
from ai_learning.reflexion import Reflexion
from ai_learning.reflexion.tasks.base import TextEnvironment
from ai_learning.reflexion.tasks.environments import (
    AlfworldEnvironment,
    EnvironmentTask,
    TextWorldEnvironment,
    load_environments,
)


class FakeTextWorld:
    """textworld.gym: texts and plain values."""

    def reset(self) -> tuple[str, dict[str, Any]]:
        return "  A room.\n", {"won": False}

    def step(self, command: str) -> tuple[str, int, bool, dict[str, Any]]:
        won = command == "take key"
        return f"  You {command}.\n", int(won), won or command == "die", {"won": won}


class FakeAlfworld:
    """ALFWorld: everything in batches of one, a banner before the room."""

    def reset(self) -> tuple[tuple[str], dict[str, Any]]:
        return (
            "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in a room.\n\nYour task is to: cool a pan.",
        ), {}

    def step(self, commands: list[str]) -> tuple[Any, Any, Any, Any]:
        won = commands == ["cool pan"]
        return (f"You {commands[0]}.",), (float(won),), (won,), {"won": (won,)}


def test_textworld() -> None:
    world = TextWorldEnvironment(FakeTextWorld())
    assert isinstance(world, TextEnvironment)
    assert world.reset() == "A room."
    assert world.step("look") == ("You look.", False, False)
    assert world.step("die") == ("You die.", True, False)
    assert world.step("take key") == ("You take key.", True, True)


def test_alfworld() -> None:
    world = AlfworldEnvironment(FakeAlfworld())
    assert isinstance(world, TextEnvironment)
    assert world.reset() == "You are in a room.\n\nYour task is to: cool a pan."
    assert world.step("look") == ("You look.", False, False)
    assert world.step("cool pan") == ("You cool pan.", True, True)


def test_an_adapted_world_is_played() -> None:
    model = RuleModel(rule=lambda s, u: "Action: cool pan")
    result = Reflexion(model).run([EnvironmentTask("pan", lambda: AlfworldEnvironment(FakeAlfworld()))])
    assert result.tasks[0].solved
    assert "Your task is to: cool a pan." in model.calls[0][1]


def test_tasks_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_games.py").write_text(
        "from ai_learning.reflexion.tasks.environments import EnvironmentTask\n"
        "def games():\n    return [EnvironmentTask('one', object), EnvironmentTask('two', object)]\n"
        "def wrong():\n    return [1]\n"
    )
    path = tmp_path / "my_games.py"
    assert [task.id for task in load_environments(f"{path}:games")] == ["one", "two"]
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [task.id for task in load_environments("my_games:games")] == ["one", "two"]
    for name, message in (
        ("games", "names no function"),
        ("nowhere_at_all:games", "cannot be imported"),
        (f"{tmp_path}/none.py:games", "no file at"),
        (f"{path}:none", "no function 'none'"),
        (f"{path}:wrong", "returned a int"),
    ):
        with pytest.raises(InputError, match=message):
            load_environments(name)
