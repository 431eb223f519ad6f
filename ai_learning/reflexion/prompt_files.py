"""Prompts: text files, one per kind of task and role, with ``$names`` to fill in.

A file has a ``[system]`` and a ``[user]`` part; without these lines it is all the user's. A folder of your
own stands in front of ours, file by file.
"""

import re
from pathlib import Path
from string import Template

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from ..errors import InputError

OURS = Path(__file__).parent / "prompts"


class Prompts:
    """The prompts of one kind of task.

    Args:
        kind: ``questions``, ``programming``, ``environment`` …: a folder's name.
        folder: yours, laid out as ours (``KIND/ROLE.txt``); what it lacks is taken from ours.

    Raises:
        InputError: ``folder`` is not there.
    """

    def __init__(self, kind: str, folder: Path | str | None = None) -> None:
        self.kind = kind
        self.folders = [OURS] if folder is None else [Path(folder), OURS]
        if not self.folders[0].is_dir():
            raise InputError(f"no folder of prompts at {folder}")

    def messages(self, role: str, **values: object) -> list[BaseMessage]:
        """The prompt of ``role`` with ``values`` in place of its names; an empty value leaves no gap.

        Raises:
            InputError: no such file, or a name in it that has no value.
        """
        text = self._read(f"{self.kind}/{role}.txt")
        head, found, tail = text.partition("[user]\n")
        parts = [(SystemMessage, head.removeprefix("[system]\n")), (HumanMessage, tail)]
        if not found:
            parts = [(HumanMessage, text)]
        filled = [(kind, fill(part, f"{self.kind}/{role}.txt", values)) for kind, part in parts]
        return [kind(content=part) for kind, part in filled if part]

    def section(self, name: str, **values: str) -> str:
        """A part that several prompts share: ``memory`` or ``last_attempt``; empty when its values are."""
        if not any(values.values()):
            return ""
        return fill(self._read(f"{name}.txt"), f"{name}.txt", values)

    def _read(self, name: str) -> str:
        for folder in self.folders:
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
        raise InputError(f"no prompt {name} in {self.folders[0]}")


def fill(text: str, name: str, values: dict) -> str:
    """``$names`` replaced; what a value holds is not read again, and an empty one leaves no empty lines."""
    for key, value in values.items():
        if not str(value):
            text = re.sub(rf"^\${key}\n+", "", text, flags=re.MULTILINE)
    try:
        return Template(text).substitute(values).strip()
    except (KeyError, ValueError) as error:
        known = ", ".join(f"${key}" for key in sorted(values))
        raise InputError(f"prompt {name}: {error} has no value; there are {known}; write $$ for $") from None
