"""A script in the place of a model: it shows the whole machinery at work offline, and measures nothing.

For eight small problems the script holds first attempts with typical mistakes, what is wrong with each, and
better ones. It writes the next attempt only when it reads the reflection on the last one, so what differs
between strategies is what the strategies let it see. The unit tests and the sandbox that judge it are real.
"""

import json
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from ..errors import InputError

PROGRAMS = Path(__file__).parent / "programs" / "problems.jsonl"
SCRIPT = Path(__file__).parent / "programs" / "script.json"


NOTHING = "It looks right to me."
"""the reflection on a last attempt"""


class ScriptedModel(BaseChatModel):
    """Answers the prompts of ``prompts/programming`` for the problems in ``programs/problems.jsonl``."""

    _script: dict[str, Any] = PrivateAttr(
        default_factory=lambda: json.loads(SCRIPT.read_text(encoding="utf-8"))
    )

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        answer = self._answer(*(str(message.text) for message in messages))
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=answer))])

    def _answer(self, system: str, user: str = "") -> str:
        part = next((part for name, part in self._script.items() if f"def {name}(" in user), None)
        if part is None:
            raise InputError("the scripted model knows only its own programs: name a model with --model")
        attempts, reflections = part["attempts"], part["reflections"]
        if "unit tests" in system:
            return _block("\n".join(part["tests"]))
        if "looking back" in system:
            tried = max(i for i, attempt in enumerate(attempts) if attempt.strip() in user)
            return str(reflections[tried]) if tried < len(reflections) else NOTHING
        if NOTHING in user:
            return _block(next(attempt for attempt in reversed(attempts) if attempt.strip() in user))
        known = [i for i, reflection in enumerate(reflections) if reflection in user]
        return _block(attempts[max(known) + 1 if known else 0])


def _block(code: str) -> str:
    return f"```python\n{code.strip()}\n```"
