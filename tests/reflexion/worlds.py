"""Small tasks and models that answer by a rule."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from ai_learning.reflexion.tasks.environments import EnvironmentTask
from ai_learning.reflexion.tasks.questions import Articles, QuestionTask, SearchTask

LIBRARY = Articles(
    [
        ("Berlin", ("Berlin is a city.", "It is in Germany.", "It has a river.")),
        ("Paris", ("Paris is a city.", "It is in France.")),
    ]
)


class RuleModel(BaseChatModel):
    """Answers ``rule(system text, user text)``; an exception as an answer is raised."""

    rule: Callable[[str, str], Any]
    calls: list[tuple[str, str]] = Field(default_factory=list)

    @property
    def _llm_type(self) -> str:
        return "rule"

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        system = "\n".join(str(m.text) for m in messages if m.type == "system")
        user = "\n".join(str(m.text) for m in messages if m.type == "human")
        self.calls.append((system, user))
        answer = self.rule(system, user)
        if isinstance(answer, Exception):
            raise answer
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=answer))])


def is_reflection(system: str) -> bool:
    return "You improve by looking back" in system


@dataclass
class Doors:
    """Behind one of the doors is a cat; one look a trial."""

    cat: str = "red"
    seen: list[str] = field(default_factory=list)
    resets: int = 0

    def reset(self) -> str:
        self.resets += 1
        return "There are three doors: green, blue, red. Find the cat."

    def step(self, action: str) -> tuple[str, bool, bool]:
        self.seen.append(action)
        if action == "look around":
            return "Three doors.", False, False
        if action.startswith("open "):
            found = action == f"open {self.cat}"
            return ("The cat!" if found else "Nothing."), True, found
        return "That does nothing.", False, False


def cat(cat: str = "red", name: str = "cat") -> EnvironmentTask:
    return EnvironmentTask(name, lambda: Doors(cat))


def berlin(name: str = "berlin") -> QuestionTask:
    return SearchTask(name, "In which country is Berlin?", "Germany", library=LIBRARY)


def opens_in_order(system: str, user: str) -> str:
    """Opens the first door that no reflection and no last attempt names."""
    if is_reflection(system):
        return "Not " + user.split("Action: open ")[1].split()[0]
    known = user.split("Observation: There are three doors")[0]
    door = next((d for d in ("green", "blue", "red") if d not in known), "green")
    return f"Thought: try one\nAction: open {door}"
