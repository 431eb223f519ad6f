"""The method as a graph (algorithm 1 of the paper): what happens in one trial, and from trial to trial.

    START → write_tests → begin → act ⇄ observe → evaluate → END
                            ↑                        ↓
                            └────────────────── reflect

Each model call is a node of its own, and LangGraph writes a checkpoint after each node: a run that is killed
in the middle of a trial goes on behind the last answer that it received.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict
from zlib import crc32

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langgraph.graph import END, START, StateGraph
from langgraph.runtime import Runtime

from .actors import Actor, Situation
from .calls import Caller
from .evaluators import heuristic, judge_by_tests, judge_messages, read_judgement
from .memory import Memory
from .prompt_files import Prompts
from .reflector import attempt_text, read_reflection, reflection_messages
from .tasks.base import ActingTask, Attempt, ProgrammingTask, Step, Strategy, Task, TextEnvironment, Verdict


class State(TypedDict, total=False):
    """All that is known of a task, in plain values: this is what a checkpoint holds."""

    clock: int
    """nodes that have run"""
    trial: int
    """from 1"""
    tests: list[str]
    """unit tests that the model wrote"""
    steps: list[list[str]]
    """this trial's trajectory: the short-term memory"""
    success: bool
    """the environment said so"""
    over: str
    """why the trajectory ends, empty while it does not"""
    last_attempt: str
    """the last trial's trajectory and result"""
    reflections: list[str]
    """the long-term memory"""
    verdict: dict
    """on the last finished trial"""
    event: dict
    """what the last node did, for the trace: ``node`` names it"""


@dataclass(frozen=True)
class Method:
    """What a run decides on for all its tasks."""

    strategy: Strategy
    trials: int
    window: int
    actor: Actor
    acting: bool
    """whether there is a world that answers"""
    prompts: Prompts
    evaluator: Literal["truth", "unit_tests", "model", "none"]
    most_actions: int
    n_tests: int
    allow_unsafe: bool
    model: BaseChatModel
    reflector: BaseChatModel
    judge: BaseChatModel
    caller: Caller


@dataclass
class Context:
    """What the nodes work with and a checkpoint does not hold."""

    task: Task
    method: Method
    _world: TextEnvironment | None = field(default=None, repr=False)
    _played: tuple[int, int] = (0, 0)

    def world(self, trial: int, actions: Sequence[str]) -> tuple[TextEnvironment, str]:
        """The environment after ``actions`` of a trial, and its first observation if it was begun again.

        It is begun again for each trial, and when a run is resumed in the middle of one.
        """
        assert isinstance(self.task, ActingTask)
        first = ""
        if self._world is None or self._played != (trial, len(actions)):
            self._world = self.task.environment()
            first = self._world.reset()
            for action in actions:
                self._world.step(action)
            self._played = (trial, len(actions))
        return self._world, first

    def moved(self) -> None:
        """One more action was taken in the world."""
        trial, actions = self._played
        self._played = (trial, actions + 1)

    def ask(
        self, state: State, model: BaseChatModel, messages: list[BaseMessage], stop: Sequence[str] = ()
    ) -> dict:
        """One model call, as the trace records it.

        A model with a seed gets another one in each trial of each task: to try again is to draw again.
        """
        options = {}
        seed = getattr(model, "seed", None)
        if isinstance(seed, int):
            options["seed"] = crc32(f"{seed} {self.task.id} {state.get('trial', 0)}".encode()) >> 1
        answer = self.method.caller.ask(model, messages, stop, **options)
        return {"prompt": [[m.type, str(m.text)] for m in messages], **answer.record()}


def write_tests(state: State, runtime: Runtime[Context]) -> State:
    """Programs, once a task: the model writes unit tests; those that parse and fit are kept."""
    context = runtime.context
    task, method = context.task, context.method
    if method.evaluator != "unit_tests" or not isinstance(task, ProgrammingTask):
        return {**_ran("write_tests", state, {}), "trial": 0, "tests": []}
    from .unit_tests import parse_tests

    prompt = method.prompts.messages("tests", task=task.prompt, n=method.n_tests)
    event = context.ask(state, method.model, prompt)
    tests = parse_tests(event["text"], task.entry_point)[: method.n_tests]
    return {**_ran("write_tests", state, {**event, "tests": tests}), "trial": 0, "tests": tests}


def begin(state: State, runtime: Runtime[Context]) -> State:
    """A trial begins: an empty trajectory, and where there is a world its first observation."""
    trial = state["trial"] + 1
    steps, event = [], {}
    if runtime.context.method.acting:
        _, first = runtime.context.world(trial, [])
        steps, event = [["", "", first]], {"observation": first}
    return {**_ran("begin", state, event), "trial": trial, "steps": steps, "success": False, "over": ""}


def act(state: State, runtime: Runtime[Context]) -> State:
    """The actor answers once."""
    context = runtime.context
    method = context.method
    now = Situation(
        context.task, method.strategy, _memory(state, method), _steps(state), state.get("last_attempt", "")
    )
    event = context.ask(state, method.model, method.actor.messages(now), method.actor.stop)
    step = method.actor.read(event["text"])
    steps = [*state["steps"], [step.text, step.action, ""]]
    return {**_ran("act", state, {**event, "action": step.action}), "steps": steps}


def observe(state: State, runtime: Runtime[Context]) -> State:
    """The world answers the last action."""
    *before, (text, action, _) = state["steps"]
    success, over = False, ""
    if action:
        world, _ = runtime.context.world(state["trial"], [step[1] for step in before if step[1]])
        observation, done, success = world.step(action)
        runtime.context.moved()
        over = "The task is done." if success else "It ended without success." if done else ""
    else:
        observation = 'Nothing happened: there was no line "Action: …".'
    steps = [*before, [text, action, observation]]
    over = over or heuristic(_as_steps(steps)[1:], runtime.context.method.most_actions)
    event = {"observation": observation}
    return {**_ran("observe", state, event), "steps": steps, "success": success, "over": over}


def evaluate(state: State, runtime: Runtime[Context]) -> State:
    """The evaluator judges the trial, and the truth is noted beside it for the report."""
    context = runtime.context
    task, method = context.task, context.method
    steps = _steps(state)
    attempt = Attempt(steps, steps[-1].action if steps else "", state["success"])
    truth = task.evaluate(attempt)
    event: dict[str, Any] = {}
    if method.evaluator == "truth":
        verdict = truth
    elif method.evaluator == "model":
        event = context.ask(state, method.judge, judge_messages(method.prompts, task, attempt))
        verdict = read_judgement(event["text"])
    elif method.evaluator == "unit_tests":
        assert isinstance(task, ProgrammingTask)
        verdict = judge_by_tests(task, attempt, state["tests"], method.allow_unsafe)
    else:
        verdict = Verdict(False, "It was not tested.")
    feedback = verdict.feedback if verdict.success else f"{state['over']} {verdict.feedback}".strip()
    verdict = Verdict(verdict.success, feedback, truth.truth)
    actions = len(steps) - method.acting
    last = f"{attempt_text(attempt)}\nResult: {feedback}" if not verdict.success else ""
    return {
        **_ran("evaluate", state, {**event, **asdict(verdict), "answer": attempt.answer, "actions": actions}),
        "verdict": asdict(verdict),
        "last_attempt": last,
    }


def reflect(state: State, runtime: Runtime[Context]) -> State:
    """The failure is put into words and remembered."""
    context = runtime.context
    method = context.method
    steps = _steps(state)
    attempt = Attempt(steps, steps[-1].action, state["success"])
    memory = _memory(state, method)
    feedback = state["verdict"]["feedback"]
    prompt = reflection_messages(method.prompts, context.task, attempt, feedback, memory)
    event = context.ask(state, method.reflector, prompt)
    reflection = read_reflection(event["text"])
    event["reflection"] = reflection
    return {**_ran("reflect", state, event), "reflections": list(memory.add(reflection).reflections)}


def after_act(state: State, runtime: Runtime[Context]) -> str:
    """Where there is a world, it answers; everything else is over after one answer."""
    return "observe" if runtime.context.method.acting else "evaluate"


def after_observe(state: State) -> str:
    """On until the trajectory ends."""
    return "evaluate" if state["over"] else "act"


def after_evaluate(state: State, runtime: Runtime[Context]) -> str:
    """Success or the last trial ends it; what would be written after the last trial nobody would read."""
    method = runtime.context.method
    if state["verdict"]["success"] or state["trial"] >= method.trials:
        return END
    return "reflect" if method.strategy.reflects else "begin"


def build_graph(checkpointer: Any = None) -> Any:
    """The compiled graph; a task is a thread of it, with a ``Context``."""
    graph = StateGraph(State, context_schema=Context)
    for node in (write_tests, begin, act, observe, evaluate, reflect):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "write_tests")
    graph.add_edge("write_tests", "begin")
    graph.add_edge("begin", "act")
    graph.add_conditional_edges("act", after_act, ["observe", "evaluate"])
    graph.add_conditional_edges("observe", after_observe, ["act", "evaluate"])
    graph.add_conditional_edges("evaluate", after_evaluate, ["reflect", "begin", END])
    graph.add_edge("reflect", "begin")
    return graph.compile(checkpointer=checkpointer)


def _ran(node: str, state: State, event: dict) -> State:
    return {"clock": state["clock"] + 1, "event": {"node": node, **event}}


def _as_steps(rows: list[list[str]]) -> tuple[Step, ...]:
    return tuple(Step(*row) for row in rows)


def _steps(state: State) -> tuple[Step, ...]:
    return _as_steps(state["steps"])


def _memory(state: State, method: Method) -> Memory:
    return Memory.of(state.get("reflections", []), method.window)
