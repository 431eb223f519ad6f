"""Day 14: what Reflexion remembers, and when it gives up a trial."""

from typing import Any

from ...reflexion.evaluators import heuristic
from ...reflexion.memory import Memory
from ...reflexion.tasks.base import Step as Taken
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day14.memory_window ------------------------------------------------------------------------------------


def _remember(reflections: list[str], new: str, window: int) -> tuple[list[str], list[str]]:
    memory = Memory.of(reflections, window).add(new)
    return list(memory.reflections), list(memory.shown)


def _memory_cases() -> list[tuple[Any, ...]]:
    return [
        ([], "not in the drawer", 3),
        (["a", "b"], "c", 3),
        (["a", "b", "c"], "d", 3),
        (["a", "b", "c", "d"], "e", 1),
        (["a", "b", "c", "d", "e"], "  f \n", 2),
        (["a", "b"], " \n ", 1),
        ([], "", 2),
        (["look in the box", "look in the box"], "look in the box", 3),
        (["z", "y", "x"], "a longer one than all before", 2),
        (["a"], "look  under\nthe bed ", 3),
    ]


def _shows_the_new(fn: Any) -> None:
    _, shown = fn(["old", "older still"], "new", 1)
    if list(shown) != ["new"]:
        raise Wrong(
            "the window ends with the newest reflection: it is what the last failure taught",
            f"with a window of 1 it shows {shown}",
        )


def _forgets_nothing(fn: Any) -> None:
    everything, _ = fn(["a", "b", "c"], "d", 1)
    if list(everything) != ["a", "b", "c", "d"]:
        raise Wrong("all reflections are kept; only the window is bounded", f"it keeps {everything}")


def _new_lists(fn: Any) -> None:
    for note in ("b", " "):
        given = ["a"]
        everything, shown = fn(given, note, 3)
        if everything is given or shown is given:
            raise Wrong(
                "not a new list: what the caller does with its own would change the memory",
                f"with the reflection {note!r} the list that was passed came back",
            )
        if everything is shown:
            raise Wrong("one list twice: what is added to one would be in the other", "all is shown")


def _mutant_memory(everything: Any = None, shown: Any = None, strip: bool = True, blank: bool = False) -> Any:
    """``_remember`` with one thing done otherwise."""

    def fn(reflections: list[str], new: str, window: int) -> tuple[list[str], list[str]]:
        text = new.strip() if strip else new
        kept = [*reflections, text] if blank or new.strip() else list(reflections)
        window_of = kept[-window:] if shown is None else shown(kept, window)
        return (kept if everything is None else everything(kept, window)), list(window_of)

    return fn


def _in_place(reflections: list[str], new: str, window: int) -> tuple[list[str], list[str]]:
    if new.strip():
        reflections.append(new.strip())
    return reflections, reflections[-window:]


MEMORY_WINDOW = Exercise(
    name="day14.memory_window",
    title="a long memory, of which the actor sees the end",
    stub='''
def remember(reflections, new, window):
    """Add a reflection to the long-term memory (Shinn et al. 2023, section 3).

    reflections is a list of strings, oldest first; new is what the reflector wrote, window is Ω ≥ 1. Spaces
    and line ends around the new one go; one without any words is not added. Returns (all, shown), two new
    lists: everything, and the last Ω of it, both oldest first.
    """
    raise NotImplementedError
''',
    solution=Memory,
    reference=_remember,
    steps=(
        same_form(_remember, _memory_cases, "a tuple of two lists"),
        leaves_inputs(_memory_cases),
        Step("shows the newest", _shows_the_new),
        Step("forgets nothing", _forgets_nothing),
        Step("gives two new lists", _new_lists),
        equals(_remember, _memory_cases, title="equals the library on odd memories"),
    ),
    hints=(
        "Two lists: one grows for ever, the other is its end.",
        "A negative slice gives the end of a list, and all of it where there is less.",
        "kept = [*reflections, new.strip()] if new.strip() else list(reflections); then kept[-window:]",
    ),
    cases=_memory_cases,
    mutants=(
        Mutant(
            "the oldest are shown",
            "the window slides: kept[-window:]",
            _mutant_memory(shown=lambda k, w: k[:w]),
        ),
        Mutant(
            "newest first",
            "oldest first: the newest stands nearest to what the actor writes",
            _mutant_memory(shown=lambda k, w: k[-w:][::-1]),
        ),
        Mutant("one too many", "Ω of them, not Ω + 1", _mutant_memory(shown=lambda k, w: k[-w - 1 :])),
        Mutant(
            "one too few",
            "Ω of them, not Ω − 1",
            _mutant_memory(shown=lambda k, w: k[len(k) - w + 1 :] if len(k) >= w else k),
        ),
        Mutant(
            "everything is shown",
            "the context is bounded: only Ω of them",
            _mutant_memory(shown=lambda k, w: k),
        ),
        Mutant(
            "only the newest is shown", "the last Ω, not the last", _mutant_memory(shown=lambda k, w: k[-1:])
        ),
        Mutant(
            "the new one is not shown yet",
            "add first, then cut the window",
            lambda r, n, w: (_remember(r, n, w)[0], list(r[-w:])),
        ),
        Mutant(
            "older ones are forgotten",
            "keep all: a later run may have a wider window",
            _mutant_memory(everything=lambda k, w: k[-w:]),
        ),
        Mutant(
            "blank ones are kept",
            "a reflection without words pushes a good one out",
            _mutant_memory(blank=True),
        ),
        Mutant(
            "white space inside",
            "only what is around the reflection goes: its lines are the reflector's own",
            lambda r, n, w: _remember(r, " ".join(n.split()), w),
        ),
        Mutant(
            "not a new list",
            "a copy, list(reflections), where nothing is added too",
            lambda r, n, w: _remember(r, n, w) if n.strip() else (r, r[-w:]),
        ),
        Mutant(
            "one list twice",
            "a slice is a new list, also where it holds everything",
            lambda r, n, w: (lambda kept: (kept, kept if len(kept) <= w else kept[-w:]))(
                _remember(r, n, w)[0]
            ),
        ),
        Mutant("not stripped", "white space around it goes", _mutant_memory(strip=False)),
        Mutant(
            "twice is once",
            "a repeated reflection is kept: its place in the window is the newest",
            lambda r, n, w: _remember(list(dict.fromkeys(r)), "" if n.strip() in r else n, w),
        ),
        Mutant(
            "put in front",
            "the newest goes to the end",
            lambda r, n, w: (lambda kept: (kept, kept[-w:]))([t for t in [n.strip()] if t] + list(r)),
        ),
        Mutant("input mutated", "build a new list", _in_place),
    ),
    alternatives=(
        _mutant_memory(),
        lambda r, n, w: (lambda kept: (kept, [x for i, x in enumerate(kept) if i >= len(kept) - w]))(
            list(r) + [t for t in [n.strip()] if t]
        ),
    ),
)

# --- day14.heuristic ----------------------------------------------------------------------------------------

Turn = tuple[str, str]


def _gives_up(turns: list[Turn], most_actions: int) -> str:
    why = heuristic([Taken(action, action, answer) for action, answer in turns], most_actions)
    return "loop" if "loop" in why else "too many actions" if why else ""


def _turns(text: str) -> list[Turn]:
    """``"a1 a1 b2"`` → [("a", "1"), ("a", "1"), ("b", "2")]."""
    return [(word[0], word[1:]) for word in text.split()]


def _heuristic_cases() -> list[tuple[Any, ...]]:
    return [
        ([], 7),
        (_turns("a1"), 7),
        (_turns("a1 a1 a1"), 7),
        (_turns("a1 a1 a1 a1"), 7),
        (_turns("b1 a1 a1 a1 a1"), 7),
        (_turns("a1 a1 a1 b1 a1"), 7),
        (_turns("a1 b1 a1 b1 a1 b1 a1 b1"), 20),
        (_turns("a1 a2 a3 a4 a5"), 7),
        (_turns("a1 b1 c1 d1 e1"), 7),
        (_turns("a1 a1 a1 a1 b2"), 7),
        (_turns("a1 b2 c3 d4 e5 f6"), 7),
        (_turns("a1 b2 c3 d4 e5 f6 g7"), 7),
        (_turns("a1 b2 c3 d4 e5 f6 g7 h8"), 7),
        (_turns("a1 b2 c3 d4 d4 d4 d4"), 7),
        (_turns("a1"), 1),
        (_turns("a1 a1 a1 a1 a1 a1"), 20),
        (_turns("a1 b2 a1 b2 a1 b2 a1"), 7),
        (_turns("a1 a2 a3 b1 b2 b3 b4"), 7),
    ]


def _needs_the_answer(fn: Any) -> None:
    if fn(_turns("a1 a2 a3 a4 a5"), 30):
        raise Wrong(
            "the same action with other answers is no loop: the world moved",
            "five times the same action, five different answers",
        )


def _needs_the_action(fn: Any) -> None:
    if fn(_turns("a1 b1 c1 d1 e1"), 30):
        raise Wrong(
            "the same answer to other actions is no loop: searching looks like this",
            "five different actions, five times the same answer",
        )


def _more_than_three(fn: Any) -> None:
    if fn(_turns("a1 a1 a1"), 30) or fn(_turns("a1 a1 a1 a1"), 30) != "loop":
        raise Wrong(
            "more than 3 times: the fourth equal turn in a row is the loop",
            f"three: {fn(_turns('a1 a1 a1'), 30)!r}, four: {fn(_turns('a1 a1 a1 a1'), 30)!r}",
        )


def _mutant_heuristic(
    cycles: int = 3,
    key: Any = lambda turn: turn,
    many: Any = lambda n, most: n >= most,
    loops: Any = None,
    many_first: bool = False,
) -> Any:
    def fn(turns: list[Turn], most_actions: int) -> str:
        last = [key(turn) for turn in turns[-(cycles + 1) :]]
        loop = len(last) > cycles and len(set(last)) == 1 if loops is None else loops(turns)
        too_many = many(len(turns), most_actions)
        if many_first and too_many:
            return "too many actions"
        return "loop" if loop else "too many actions" if too_many else ""

    return fn


def _runs(turns: list[Turn]) -> list[int]:
    """Lengths of runs of equal turns."""
    lengths: list[int] = []
    for number, turn in enumerate(turns):
        if number and turn == turns[number - 1]:
            lengths[-1] += 1
        else:
            lengths.append(1)
    return lengths


HEURISTIC = Exercise(
    name="day14.heuristic",
    title="when a trial is hopeless",
    stub='''
def gives_up(turns, most_actions):
    """The evaluator's rules of thumb for decision making (Shinn et al. 2023, section 4.1).

    turns is a list of (action, answer) pairs, in order. Asked after every turn. Returns "loop" where the last
    turns are the same action with the same answer more than 3 times in a row; else "too many actions" where
    there are most_actions of them; else "".
    """
    raise NotImplementedError
''',
    solution=heuristic,
    reference=_gives_up,
    steps=(
        same_form(_gives_up, _heuristic_cases, "a string"),
        leaves_inputs(_heuristic_cases),
        Step("the fourth time is a loop, the third is not", _more_than_three),
        Step("looks at the answer too", _needs_the_answer),
        Step("looks at the action too", _needs_the_action),
        equals(_gives_up, _heuristic_cases, title="equals the library on odd trajectories"),
    ),
    hints=(
        "Only the end of the list matters for a loop: how many turns of it?",
        "Four equal turns: turns[-4:] has four, and set(…) of them has one.",
        'if len(turns) >= 4 and len(set(turns[-4:])) == 1: "loop"; then len(turns) >= most_actions',
    ),
    cases=_heuristic_cases,
    mutants=(
        Mutant("three are enough", "more than 3: the fourth", _mutant_heuristic(cycles=2)),
        Mutant("five are needed", "more than 3: the fourth", _mutant_heuristic(cycles=4)),
        Mutant(
            "the answer is ignored", "another answer: the world moved", _mutant_heuristic(key=lambda t: t[0])
        ),
        Mutant(
            "the action is ignored",
            "searching gives the same answer too",
            _mutant_heuristic(key=lambda t: t[1]),
        ),
        Mutant(
            "not in a row",
            "coming back to an action is no loop: the turns must follow each other",
            _mutant_heuristic(loops=lambda turns: any(turns.count(turn) > 3 for turn in turns)),
        ),
        Mutant(
            "an old loop",
            "the agent got out of it: look at the last turns",
            _mutant_heuristic(loops=lambda turns: max(_runs(turns), default=0) > 3),
        ),
        Mutant(
            "one action too many",
            "at most_actions it ends, not after",
            _mutant_heuristic(many=lambda n, m: n > m),
        ),
        Mutant(
            "one action too few",
            "it may use all most_actions",
            _mutant_heuristic(many=lambda n, m: n >= m - 1),
        ),
        Mutant(
            "different actions are counted",
            "an action that comes back is one more action",
            lambda turns, most: (
                _mutant_heuristic(many=lambda n, m: False)(turns, most)
                or ("too many actions" if len({action for action, _ in turns}) >= most else "")
            ),
        ),
        Mutant(
            "different turns are counted",
            "an action that comes back is one more action",
            lambda turns, most: (
                _mutant_heuristic(many=lambda n, m: False)(turns, most)
                or ("too many actions" if len(set(turns)) >= most else "")
            ),
        ),
        Mutant("exactly at the limit", "also beyond it", _mutant_heuristic(many=lambda n, m: n == m)),
        Mutant(
            "the limit comes first",
            "a loop says more about what went wrong",
            _mutant_heuristic(many_first=True),
        ),
        Mutant(
            "no loops",
            "the same turn more than 3 times ends it",
            _mutant_heuristic(loops=lambda turns: False),
        ),
        Mutant("no limit", "planning without end is inefficient", _mutant_heuristic(many=lambda n, m: False)),
    ),
    alternatives=(
        _mutant_heuristic(),
        lambda turns, most: (
            "loop"
            if len(turns) > 3 and turns[-1] == turns[-2] == turns[-3] == turns[-4]
            else ["", "too many actions"][len(turns) >= most]
        ),
    ),
)

EXERCISES = (MEMORY_WINDOW, HEURISTIC)
