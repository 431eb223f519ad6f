"""A household made of text: find a thing behind one of fifteen doors, and do something with it.

    Observation: task: put a hot mug on table
    go drawer2
    Observation: closed
    open drawer2
    Observation: empty
    …

The thing is in the same place in every trial, and that is all there is to learn. A look costs two actions and
the longest plan four besides the look, so that a trial of six actions sees three places, and succeeds only if
the first of them was right.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..tasks.base import Attempt, Verdict

MAX_ACTIONS = 6
"""of a trial; the evaluator's heuristic ends it there: inefficient planning"""
PLACES = tuple(
    f"{kind}{number}" for kind in ("drawer", "cabinet", "box", "basket", "chest") for number in (1, 2, 3)
)
TARGETS = ("table", "counter", "sofa", "desk")
LAMP = "lamp"
THINGS = (
    "mug", "plate", "fork", "knife", "spoon", "bowl", "cup", "pan", "pot", "apple", "egg", "potato",
    "tomato", "bread", "lettuce", "book", "pen", "phone", "watch", "vase", "candle", "soap", "cloth", "key",
)  # fmt: skip
VERBS = ("go", "open", "take", "put", "clean", "heat", "cool", "use")
ANSWERS = ("closed", "empty", "here", "taken", "done", "nothing")
"""what the world says besides the names of things"""


FAMILIES = {
    "put": ("put a {thing} on {target}", ""),
    "clean": ("put a clean {thing} on {target}", "clean"),
    "heat": ("put a hot {thing} on {target}", "heat"),
    "cool": ("put a cool {thing} on {target}", "cool"),
    "examine": ("examine a {thing} under lamp", "use"),
}
"""after ALFWorld's (Shridhar et al. 2021): the task in words, and the verb it needs besides go and put"""


@dataclass(frozen=True)
class HouseholdTask:
    """One instance: an ``ActingTask``."""

    id: str
    family: str
    thing: str
    """what to find"""
    target: str
    """where to bring it"""
    hidden: str
    """the place that holds it; all others are empty"""
    kind: str = "environment"
    prompt: str = ""
    """empty: the first observation says what is to be done"""

    def environment(self) -> "Household":
        """A new house for each trial, always the same one."""
        return Household(self)

    def evaluate(self, attempt: Attempt) -> Verdict:
        """What the environment said, and no more: the reward is sparse."""
        return Verdict(attempt.success)


@dataclass
class Household:
    """A house: a ``TextEnvironment``. Each action is a verb and a noun, each answer one word."""

    task: HouseholdTask
    at: str = ""
    opened: set[str] = field(default_factory=set)
    held: str = ""
    treated: bool = False

    def reset(self) -> str:
        """Everything is where it was at first; says what is to be done."""
        self.at, self.opened, self.held, self.treated = "", set(), "", False
        task = self.task
        return f"task: {FAMILIES[task.family][0].format(thing=task.thing, target=task.target)}"

    def step(self, action: str) -> tuple[str, bool, bool]:
        """Act; (answer, whether it is over, whether it succeeded). What cannot be done changes nothing."""
        verb, _, noun = action.strip().partition(" ")
        answer = self._answer(verb, noun)
        success = answer == "done" and (verb, noun) in (("put", self.task.thing), ("use", LAMP))
        return answer, success, success

    def _answer(self, verb: str, noun: str) -> str:
        treatment = FAMILIES[self.task.family][1]
        if verb == "go" and noun in PLACES:
            self.at = noun
            return self._inside() if noun in self.opened else "closed"
        if verb == "go" and noun in (*TARGETS, LAMP):
            self.at = noun
            return "here"
        if verb == "open" and noun == self.at and noun in PLACES:
            self.opened.add(noun)
            return self._inside()
        if verb == "take" and self.at in self.opened and self._inside() == noun:
            self.held = noun
            return "taken"
        if self.held != self.task.thing or noun not in (self.held, LAMP):
            return "nothing"
        if verb == treatment == "use" and noun == self.at == LAMP:
            return "done"
        if verb == treatment and noun == self.held:
            self.treated = True
            return "done"
        if verb == "put" and noun == self.held and self.at == self.task.target and treatment != "use":
            return "done" if self.treated or not treatment else "nothing"
        return "nothing"

    def _inside(self) -> str:
        """What is in the place where one is."""
        return self.task.thing if self.at == self.task.hidden and not self.held else "empty"


Pair = tuple[str, str]
"""of a family and a thing"""


def split_pairs(seed: int, held_out: float = 0.2) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, and those that are only asked about."""
    pairs = [(family, thing) for family in FAMILIES for thing in THINGS]
    random.Random(f"pairs {seed}").shuffle(pairs)
    n = round(len(pairs) * held_out)
    return pairs[n:], pairs[:n]


def draw_task(pairs: Sequence[Pair], rng: random.Random, number: int = 0) -> HouseholdTask:
    """An instance of one of the pairs: where the thing is, and where it goes."""
    family, thing = rng.choice(pairs)
    return HouseholdTask(f"house-{number}", family, thing, rng.choice(TARGETS), rng.choice(PLACES))
