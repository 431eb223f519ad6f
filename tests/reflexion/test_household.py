"""The household, its teacher and their text: what can be learnt there, and that nothing leaks."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.reflexion.household import teacher
from ai_learning.reflexion.household.demonstrations import (
    Trial,
    demonstrate,
    last_attempt_text,
    odd_action,
)
from ai_learning.reflexion.household.text import (
    END,
    TOKENIZER,
    UNKNOWN,
    WORDS,
    actor_prompt,
    reflector_prompt,
    step_text,
)
from ai_learning.reflexion.household.world import (
    FAMILIES,
    MAX_ACTIONS,
    PLACES,
    TARGETS,
    THINGS,
    VERBS,
    HouseholdTask,
    draw_task,
    split_pairs,
)
from ai_learning.reflexion.memory import Memory
from ai_learning.reflexion.tasks.base import Attempt, Step, Strategy, TextEnvironment
from ai_learning.tokenizers.base import Tokenizer

TASK = HouseholdTask("t", "heat", "mug", "table", "box2")
PLAN = ["go box2", "open box2", "take mug", "heat mug", "go table", "put mug"]
TRAIN, HELD_OUT = split_pairs(0)


def play(task: HouseholdTask, actions: list[str]) -> list[tuple[str, bool, bool]]:
    house = task.environment()
    house.reset()
    return [house.step(action) for action in actions]


# --- the world ----------------------------------------------------------------------------------------------


def test_longest_plan_fits_when_the_first_look_is_right() -> None:
    answers = play(TASK, PLAN)
    assert [answer for answer, _, _ in answers] == ["closed", "mug", "taken", "done", "here", "done"]
    assert [over for _, over, _ in answers] == [False] * 5 + [True] and answers[-1][2]
    assert len(PLAN) == MAX_ACTIONS  # so one wrong look is one too many


@pytest.mark.parametrize(
    ("family", "actions"),
    [
        ("put", ["go table", "put mug"]),
        ("clean", ["clean mug", "go table", "put mug"]),
        ("heat", ["heat mug", "go table", "put mug"]),
        ("cool", ["cool mug", "go table", "put mug"]),
        ("examine", ["go lamp", "use lamp"]),
    ],
)
def test_each_family_has_its_plan(family: str, actions: list[str]) -> None:
    task = replace(TASK, family=family)
    assert play(task, PLAN[:3] + actions)[-1] == ("done", True, True)
    assert teacher.plan(task.environment().reset().split()[1:], "mug") == actions
    for missing in range(len(actions)):
        some = actions[:missing] + actions[missing + 1 :]
        assert not any(success for _, _, success in play(task, PLAN[:3] + some)), some


@pytest.mark.parametrize(
    ("before", "action"),
    [
        ([], "open box2"),  # one is not there
        (["go box2"], "take mug"),  # it is closed
        (["go drawer1", "open drawer1"], "take mug"),  # it is elsewhere
        ([], "put mug"),
        ([], "heat mug"),
        ([], "go nowhere"),
        ([], "mug"),
        ([], ""),
        (PLAN[:3], "cool mug"),  # not asked for
        ([*PLAN[:3], "go table"], "put mug"),  # not hot yet
        ([*PLAN[:3], "heat mug", "go sofa"], "put mug"),  # not there
    ],
)
def test_what_cannot_be_done_changes_nothing(before: list[str], action: str) -> None:
    assert play(TASK, [*before, action])[-1] == ("nothing", False, False)
    house, other = TASK.environment(), TASK.environment()
    for one in (house, other):
        one.reset()
    for step in before:
        house.step(step), other.step(step)
    house.step(action)
    assert house == other


@given(
    st.lists(st.tuples(st.sampled_from((*VERBS, "")), st.sampled_from((*PLACES, *THINGS, *TARGETS, "lamp"))))
)
def test_no_action_breaks_it_and_every_reset_is_the_same(words: list[tuple[str, str]]) -> None:
    actions = [f"{verb} {noun}" for verb, noun in words]
    house = TASK.environment()
    first = house.reset()
    once = [house.step(action) for action in actions]
    assert house.reset() == first
    assert [house.step(action) for action in actions] == once
    assert all(answer in WORDS for answer, _, _ in once)


def test_it_is_a_text_environment_with_a_sparse_reward() -> None:
    assert isinstance(TASK.environment(), TextEnvironment)
    verdict = TASK.evaluate(Attempt(success=False))
    assert not verdict.success and verdict.feedback == ""  # nothing to learn from but the trajectory


def test_held_out_pairs_are_a_fifth_and_apart() -> None:
    for seed in range(3):
        train, held_out = split_pairs(seed)
        assert len(held_out) == len(FAMILIES) * len(THINGS) // 5 and not set(train) & set(held_out)
    assert split_pairs(0) == split_pairs(0) != split_pairs(1)


def test_places_are_drawn_evenly() -> None:
    rng = random.Random(0)
    tasks = [draw_task(HELD_OUT, rng, number) for number in range(3000)]
    counts = [sum(task.hidden == place for task in tasks) for place in PLACES]
    assert min(counts) > 140 and max(counts) < 260  # 200 each


# --- the teacher --------------------------------------------------------------------------------------------


def solved_by_teacher(strategy: Strategy, window: int, rng: random.Random) -> int | None:
    """The trial in which a task is solved, of six."""
    task, memory, last = draw_task(HELD_OUT, rng), Memory(window), ""
    for number in range(1, 7):
        trial = Trial(task, strategy, memory, last, slips=0.0)
        trial.play(rng)
        if trial.success:
            return number
        last = last_attempt_text(trial.steps)
        memory = memory.add(teacher.reflect(reflector_prompt(task, memory, trial.steps), rng))
    return None


@pytest.mark.parametrize(
    ("strategy", "window", "low", "high"),
    [
        (Strategy.NONE, 1, 0.2, 0.5),
        (Strategy.LAST_ATTEMPT, 1, 0.65, 0.9),  # it sees three places back, and no further
        (Strategy.REFLEXION, 1, 1.0, 1.0),
        (Strategy.REFLEXION, 3, 1.0, 1.0),
    ],
)
def test_only_a_long_memory_solves_everything(
    strategy: Strategy, window: int, low: float, high: float
) -> None:
    rng = random.Random(1)
    found = [solved_by_teacher(strategy, window, rng) for _ in range(150)]
    assert low <= sum(number is not None for number in found) / len(found) <= high


def test_what_it_writes_is_true_and_complete() -> None:
    rng = random.Random(2)
    for _ in range(60):
        task, memory, opened = draw_task(TRAIN, rng), Memory(3), set()
        for _ in range(4):
            trial = Trial(task, Strategy.REFLEXION, memory, "", slips=0.3)
            trial.play(rng)
            if trial.success:
                break
            opened |= {
                s.action[5:] for s in trial.steps if s.action[:5] == "open " and s.observation != "nothing"
            }
            memory = memory.add(teacher.reflect(reflector_prompt(task, memory, trial.steps), rng))
            without, where, following = teacher.read_reflection(memory.reflections[-1])
            if where:
                assert where == task.hidden and task.hidden in opened
            else:
                assert set(without) == opened and following not in opened
                assert without == [place for place in PLACES if place in without]


def test_it_acts_on_the_prompt_alone() -> None:
    prompt = "memory:\n- no mug in drawer1 box1 . next chest3 .\n\nnow:\nObservation: task: put a mug on sofa"
    assert teacher.act(teacher.Notes(prompt), random.Random(0)) == "go chest3"
    prompt += "\ngo chest3\nObservation: closed"
    assert teacher.act(teacher.Notes(prompt), random.Random(0)) == "open chest3"
    prompt += "\nopen chest3\nObservation: mug"
    assert teacher.act(teacher.Notes(prompt), random.Random(0)) == "take mug"
    known = "memory:\n- mug in box3 .\n\nnow:\nObservation: task: put a mug on sofa"
    assert teacher.act(teacher.Notes(known), random.Random(0)) == "go box3"
    looked = {
        teacher.act(
            teacher.Notes(
                f"memory:\n- no mug in {' '.join(PLACES[2:])} .\n\nnow:\nObservation: task: put a mug on sofa"
            ),
            random.Random(seed),
        )
        for seed in range(20)
    }
    assert looked == {f"go {PLACES[0]}", f"go {PLACES[1]}"}


def test_an_older_advice_does_not_hide_a_newer() -> None:
    notes = teacher.Notes(
        "memory:\n- no mug in box1 . next box2 .\n- no mug in box1 box2 . next box3 .\n\n"
        "now:\nObservation: task: put a mug on sofa"
    )
    assert notes.following == "box3" and notes.without == {"box1", "box2"}


# --- text and demonstrations --------------------------------------------------------------------------------


def test_words_round_trip() -> None:
    assert isinstance(TOKENIZER, Tokenizer) and TOKENIZER.eos_id == 0 and WORDS[0] == END
    ids = list(range(len(WORDS)))
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids
    assert TOKENIZER.decode_bytes(ids[:2]) + TOKENIZER.decode_bytes(ids[2:]) == TOKENIZER.decode_bytes(ids)
    assert TOKENIZER.decode(TOKENIZER.encode("go spaceship\nopen")) == f"go {UNKNOWN} open"


def test_prompts_are_what_the_graph_asks() -> None:
    steps = [Step("", "", "task: put a hot mug on table"), Step("go box1", "go box1", "closed")]
    memory = Memory(1).add("no mug in box2 .").add("no mug in box2 box3 . next box1 .")
    assert actor_prompt(TASK, Strategy.REFLEXION, memory, steps, "never shown") == (
        "memory:\n- no mug in box2 box3 . next box1 .\n\n"
        "now:\nObservation: task: put a hot mug on table\ngo box1\nObservation: closed"
    )
    assert actor_prompt(TASK, Strategy.LAST_ATTEMPT, memory, steps[:1], "go box3") == (
        "last:\ngo box3\n\nnow:\nObservation: task: put a hot mug on table"
    )
    assert actor_prompt(TASK, Strategy.NONE, memory, steps[:1], "x").startswith("now:")
    assert reflector_prompt(TASK, memory, steps).endswith("go box1\nObservation: closed\nreflect:")
    head = actor_prompt(TASK, Strategy.NONE, memory, steps[:1], "")
    assert head + step_text(steps[1]) == actor_prompt(TASK, Strategy.NONE, memory, steps, "")


def test_demonstrations_hold_known_words_and_no_held_out_pair() -> None:
    rng = random.Random(3)
    pairs, slips = set(), 0
    for _ in range(150):
        for one in demonstrate(TRAIN, rng):
            text = TOKENIZER.decode(one.ids)
            now = len(one.ids) - one.ids[::-1].index(WORDS.index("now:"))
            turns = [at for at in range(now, len(one.ids)) if WORDS[one.ids[at]] == "Observation:"][1:]
            slips += sum(not one.learn[at] for at in turns)
            assert len(one.ids) == len(one.learn) <= 200
            assert UNKNOWN not in text
            words = text.split()
            task = words[len(words) - words[::-1].index("task:") :]
            thing = next(word for word in task if word in THINGS)
            family = {"clean": "clean", "hot": "heat", "cool": "cool"}.get(task[2], "put")
            pairs.add(("examine" if task[0] == "examine" else family, thing))
    assert pairs <= set(TRAIN) and len(pairs) > 60
    assert slips > 20  # odd situations are there to be met


def test_what_is_learnt_is_the_teachers_and_no_slip() -> None:
    rng = random.Random(4)
    trial = Trial(TASK, Strategy.REFLEXION, Memory(3), "", slips=0.5)
    while not (True in trial.slipped and False in trial.slipped) or trial.success:
        trial = Trial(TASK, Strategy.REFLEXION, Memory(3), "", slips=0.5)
        trial.play(rng)
    one = trial.written_out(rng)
    learnt = [WORDS[i] for i, learn in zip(one.ids, one.learn, strict=True) if learn]
    words = [
        w
        for s, slip in zip(trial.steps[1:], trial.slipped, strict=True)
        if not slip
        for w in s.action.split()
    ]
    actions = [
        word for word in learnt[: learnt.index("Observation:") + 3 * len(trial.steps)] if word in VERBS
    ]
    assert [w for w in words if w in VERBS] == actions
    assert learnt[-1] == END
    odd = {odd_action(rng).split()[0] for _ in range(100)}
    assert odd == {"go", "open", "take"}


def test_last_attempts_say_why_they_ended() -> None:
    steps = [Step("", "", "task: put a mug on sofa"), *[Step("go box1", "go box1", "closed")] * 4]
    assert last_attempt_text(steps).endswith("you are in a loop.")
    steps = [steps[0], *[Step(f"go {place}", f"go {place}", "closed") for place in PLACES[:MAX_ACTIONS]]]
    assert last_attempt_text(steps).endswith(f"Result: You used up all {MAX_ACTIONS} actions.")
