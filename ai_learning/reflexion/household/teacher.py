"""A scripted teacher. It writes the demonstrations and nothing else: in a measured run it has no part.

It sees what the model sees, the prompt, and not the house.
"""

import random
from collections.abc import Sequence

from .world import LAMP, PLACES, THINGS

TREATMENTS = {"clean": "clean", "hot": "heat", "cool": "cool"}


class Notes:
    """What stands in a prompt: an actor's, which goes on step by step, or a reflector's."""

    def __init__(self, prompt: str = "") -> None:
        self.task: list[str] = []
        self.thing = ""
        self.without: set[str] = set()  # places that do not hold it
        self.where = ""  # the place that does
        self.following = ""  # where the newest reflection says to look next
        self.at = ""  # where one stands
        self.done: set[str] = set()  # actions of this trial that had an effect
        self._read(prompt)

    def _read(self, prompt: str) -> None:
        action, advice = "", []
        for line in prompt.splitlines():
            if line.startswith("- "):
                advice.append(read_reflection(line))
            elif line.startswith("Observation: task: "):
                self.begin(line[len("Observation: task: ") :])
            elif line.startswith("Observation: "):
                self.see(action, line[len("Observation: ") :])
            else:
                action = line
        for without, where, following in advice:  # the newest comes last
            self.without.update(without)
            self.where, self.following = self.where or where, following

    def begin(self, task: str) -> None:
        """A trial begins."""
        self.task = task.split()
        self.thing = next((word for word in self.task if word in THINGS), "")
        self.at, self.done = "", set()

    def see(self, action: str, answer: str) -> None:
        """A step of a trial."""
        if answer == "nothing":
            return
        verb, _, noun = action.partition(" ")
        self.done.add(action)
        if verb == "go":
            self.at = noun
        elif verb == "open" and answer == self.thing:
            self.where = noun
        elif verb == "open":
            self.without.add(noun)

    @property
    def left(self) -> list[str]:
        """Places that may still hold it."""
        return [place for place in PLACES if place not in self.without]


def read_reflection(text: str) -> tuple[list[str], str, str]:
    """(places that it says are without the thing, the place that has it, where to look next)."""
    without: list[str] = []
    where = following = ""
    for sentence in text.split("."):
        words = sentence.split()
        places = [word for word in words if word in PLACES]
        if "no" in words:
            without += places
        elif "next" in words and places:
            following = places[0]
        elif places:
            where = places[0]
    return without, where, following


def act(notes: Notes, rng: random.Random) -> str:
    """The next action: fetch the thing if it is known where it is, else look where nobody looked."""
    thing, done = notes.thing, notes.done
    if f"take {thing}" in done:
        return next((action for action in plan(notes.task, thing) if action not in done), f"put {thing}")
    if notes.where:
        if notes.at != notes.where:
            return f"go {notes.where}"
        return f"take {thing}" if f"open {notes.where}" in done else f"open {notes.where}"
    if notes.at in PLACES and notes.at not in notes.without:
        return f"open {notes.at}"
    if notes.following and notes.following not in notes.without:
        return f"go {notes.following}"
    return f"go {rng.choice(notes.left or PLACES)}"


def plan(task: Sequence[str], thing: str) -> list[str]:
    """What is to be done once the thing is held."""
    if task[0] == "examine":
        return [f"go {LAMP}", f"use {LAMP}"]
    treatment = TREATMENTS.get(task[2])
    return [*([f"{treatment} {thing}"] if treatment else []), f"go {task[-1]}", f"put {thing}"]


def reflect(prompt: str, rng: random.Random) -> str:
    """What a failed trial and the memory taught: where the thing is, or is not, and where to look next.

    What the memory rules out is said again with what this trial adds, always in the same order.
    """
    notes = Notes(prompt)
    if notes.where:
        return f"{notes.thing} in {notes.where} ."
    without = [place for place in PLACES if place in notes.without]
    said = " ".join(["no", notes.thing, "in", *without, "."])
    if not notes.left:
        return said
    return f"{said} next {notes.at if notes.at in notes.left else rng.choice(notes.left)} ."
