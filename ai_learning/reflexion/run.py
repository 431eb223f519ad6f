"""Running the graph over many tasks: at once, within a budget, through failures, again after a kill.

A run with a folder leaves there

    run.json            what was asked for
    checkpoints.sqlite  LangGraph's: every task after every node
    trace.jsonl         every step, with its prompt and its answer; trace.html, the same to be read
    results.jsonl       a line a finished task
"""

import json
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel

from ..chat_model import open_chat_model
from ..errors import InputError
from ..files import write_text
from ..run_folder import RunFolder, read_options
from .actors import ACTORS, Situation
from .calls import Budget, BudgetError, Caller, Retry, StoppedError, describe
from .evaluators import EVALUATORS, MOST_ACTIONS, judge_messages
from .graph import Context, Method, build_graph
from .memory import Memory
from .prompt_files import Prompts
from .reflector import reflection_messages
from .results import RunResult
from .store import event_of, forget_past, open_database, repair, thread_of
from .tasks.base import ActingTask, Attempt, ProgrammingTask, Step, Strategy, Task
from .trace import Event, TraceFile, read_trace, write_page

MAY_DIFFER = {"base_url", "device"}
"""where a model runs may be another place when a run is resumed"""


class Reflexion:
    """An agent that tries, fails, reflects, and tries again.

    Args:
        model: the actor: any LangChain chat model, or a name that ``open_chat_model`` knows
            (``"openai:gpt-5-mini"``, ``"ours:runs/mine/best.pt"``, ``"hf:FOLDER"``).
        strategy: what a trial knows of those before it; see ``Strategy``.
        trials: at most so many a task.
        window: Ω, the reflections shown; 3, for programs 1.
        actor: ``"cot"``, ``"react"`` or ``"code"``; by the task when ``None``.
        evaluator: ``"truth"`` (exact match, the environment), ``"unit_tests"`` (written by the model),
            ``"model"`` (a judge), ``"none"``; by the task and the strategy when ``None``.
        reflector: another model for reflections; the actor's when ``None``.
        judge: another model for ``evaluator="model"``; the actor's when ``None``.
        most_actions: in a trial; 30, for questions 6.
        n_tests: unit tests that the model may write for a program.
        allow_unsafe: run programs even where the machine cannot isolate them (their hidden tests go by the
            task's own ``allow_unsafe``).
        budget: of the whole run.
        retry: of each model call.
        concurrency: tasks at a time.
        prompts: a folder of your own prompts, in front of ours.
        out: the run's folder; ``None`` keeps everything in memory.
        resume: go on with the run in ``out``.

    Raises:
        InputError: a value that does not fit.

    Example:
        >>> result = Reflexion("openai:gpt-5-mini", trials=4).run(tasks)  # doctest: +SKIP
        >>> result.success_by_trial()  # doctest: +SKIP
        [0.41, 0.62, 0.7, 0.74]
    """

    def __init__(
        self,
        model: BaseChatModel | str,
        *,
        strategy: Strategy | str = Strategy.REFLEXION,
        trials: int = 4,
        window: int | None = None,
        actor: str | None = None,
        evaluator: str | None = None,
        reflector: BaseChatModel | str | None = None,
        judge: BaseChatModel | str | None = None,
        most_actions: int | None = None,
        n_tests: int = 6,
        allow_unsafe: bool = False,
        budget: Budget | None = None,
        retry: Retry | None = None,
        concurrency: int = 1,
        prompts: Path | str | None = None,
        out: Path | str | None = None,
        resume: bool = False,
    ) -> None:
        self.strategy = _one_of("strategy", Strategy, strategy)
        for name, value in (
            ("trials", trials),
            ("most_actions", 1 if most_actions is None else most_actions),
            ("n_tests", n_tests),
            ("concurrency", concurrency),
            ("window", 1 if window is None else window),
        ):
            if value < 1:
                raise InputError(f"{name}={value} must be at least 1")
        if actor is not None and actor not in ACTORS:
            raise InputError(f"actor={actor!r} must be one of {', '.join(ACTORS)}")
        if evaluator is not None and evaluator not in EVALUATORS:
            raise InputError(f"evaluator={evaluator!r} must be one of {', '.join(EVALUATORS)}")
        if resume and out is None:
            raise InputError("resume=True needs the folder of the run: out=…")
        self.model = _opened(model)
        self.reflector = self.model if reflector is None else _opened(reflector)
        self.judge = self.model if judge is None else _opened(judge)
        self.trials, self.window, self.actor, self.evaluator = trials, window, actor, evaluator
        self.most_actions, self.n_tests, self.concurrency = most_actions, n_tests, concurrency
        self.allow_unsafe = allow_unsafe
        self.budget, self.retry = budget or Budget(), retry or Retry()
        self.prompts = prompts
        self.out, self.resume = None if out is None else Path(out), resume
        self.names = {
            name: value if isinstance(value, str) else _name_of(value)
            for name, value in (("model", model), ("reflector", reflector), ("judge", judge))
            if value is not None
        }

    def run(
        self,
        tasks: Iterable[Task],
        listener: Callable[[Event], None] = lambda event: None,
        about: dict[str, Any] | None = None,
    ) -> RunResult:
        """Run all tasks.

        Args:
            tasks: with unique ids, all of one kind.
            listener: called with every event, in this thread.
            about: further words for ``run.json`` (the data's path); a resumed run must agree with them.

        Raises:
            InputError: no task, two with one id, kinds mixed, or an actor or evaluator that does not fit; a
                folder that holds another run.
        """
        result = RunResult(self.trials)
        for event in self.stream(tasks, result, about):
            listener(event)
        return result

    def stream(
        self, tasks: Iterable[Task], result: RunResult | None = None, about: dict[str, Any] | None = None
    ) -> Iterator[Event]:
        """``run``, one event at a time; leaving the loop stops the run, resumably. ``result`` is filled."""
        tasks = list(tasks)
        _check_tasks(tasks)
        result = result if result is not None else RunResult(self.trials)
        result.expect([task.id for task in tasks])
        method = self._method(tasks[0])
        with ExitStack() as opened:
            folder = self._open_folder(tasks, about or {}, opened)
            database = open_database(folder / "checkpoints.sqlite" if folder else None)
            graph = build_graph(opened.enter_context(database))
            trace = TraceFile(folder / "trace.jsonl") if folder else None
            if trace and self.resume:
                repair(trace, graph, tasks)
                for event in read_trace(trace.path):
                    result.take(event)
                method.caller.spent = replace(result.spent)
            try:
                work = _worker(graph, method, trace)
                for event in _at_once(tasks, self.concurrency, work, method.caller):
                    result.take(event)
                    yield event
            finally:
                result.stopped = method.caller.why
                if folder:
                    write_text(folder / "results.jsonl", result.to_jsonl())
                    write_page(
                        read_trace(folder / "trace.jsonl"), folder / "trace.html", f"Trace of {folder.name}"
                    )

    def _method(self, task: Task) -> Method:
        programs = isinstance(task, ProgrammingTask)
        if not self.strategy.tests and not programs:
            raise InputError(
                f"strategy {self.strategy.value} is for programs; use none, last_attempt or reflexion"
            )
        actor = self.actor or ("code" if programs else "react" if isinstance(task, ActingTask) else "cot")
        if (actor == "code") != programs or (actor == "react" and not isinstance(task, ActingTask)):
            raise InputError(f"actor {actor!r} does not fit tasks of kind {task.kind!r}")
        evaluator = self.evaluator or ("unit_tests" if programs else "truth")
        if not self.strategy.tests:
            evaluator = "none"
        if evaluator == "unit_tests" and not programs:
            raise InputError("evaluator 'unit_tests' is for programs")
        if evaluator == "truth" and programs:
            raise InputError(
                "evaluator 'truth' would show hidden tests' verdict to the agent; use unit_tests or model"
            )
        prompts = Prompts(task.kind, self.prompts)
        method = Method(
            strategy=self.strategy,
            trials=self.trials,
            window=self.window or (1 if programs else 3),
            actor=ACTORS[actor](prompts),
            acting=actor == "react",
            prompts=prompts,
            evaluator=evaluator,  # type: ignore[arg-type]
            most_actions=self.most_actions or MOST_ACTIONS.get(task.kind, MOST_ACTIONS["environment"]),
            n_tests=self.n_tests,
            allow_unsafe=self.allow_unsafe,
            model=self.model,
            reflector=self.reflector,
            judge=self.judge,
            caller=Caller(self.budget, self.retry),
        )
        _check_prompts(method, task)
        if programs:
            _check_sandbox(self.allow_unsafe)
        return method

    def _open_folder(self, tasks: list[Task], about: dict[str, Any], opened: ExitStack) -> Path | None:
        """Lock the folder, and see that what is in it is this run or nothing."""
        if self.out is None:
            return None
        wanted = {
            **self.names,
            "strategy": self.strategy.value,
            "trials": self.trials,
            "window": self.window,
            "actor": self.actor,
            "evaluator": self.evaluator,
            "most_actions": self.most_actions,
            "n_tests": self.n_tests,
            "tasks": [task.id for task in tasks],
            **about,
        }
        wanted = json.loads(json.dumps(wanted, default=str))
        folder = opened.enter_context(RunFolder(self.out))
        there = (self.out / "run.json").exists()
        if there and not self.resume:
            raise InputError(f"{self.out} holds a run already: resume it, or choose another folder")
        if self.resume:
            found = read_options(self.out, "reflexion")
            for key in wanted.keys() - MAY_DIFFER:
                if found.get(key) != wanted.get(key):
                    raise InputError(
                        f"the run in {self.out} was made with other {key}: {_brief(found.get(key))}, "
                        f"not {_brief(wanted.get(key))}"
                    )
        else:
            folder.save_options({"command": "reflexion", **wanted})
        return self.out


# --- one task, and many at once -----------------------------------------------------------------------------


def _worker(graph: Any, method: Method, trace: TraceFile | None) -> Callable[[Task], Iterator[Event]]:
    """What is done with one task: its thread of the graph, from where it stands."""

    def note(event: Event) -> Event:
        if trace:  # before the next node begins: the graph waits in its `yield`
            trace.append(event)
        return event

    def work(task: Task) -> Iterator[Event]:
        config = {**thread_of(task), "recursion_limit": 1_000_000_000}
        before = graph.get_state(config)
        if before.values and not before.tasks:  # not `next`, which leaves out a node whose writes are there
            return  # done in an earlier run
        trial = before.values.get("trial", 0)
        clock = before.values.get("clock", 0)
        try:
            for values in graph.stream(
                None if before.values else {"clock": 0},
                config,
                context=Context(task, method),
                stream_mode="values",
                durability="sync",  # what comes out here is in the database already
            ):
                if values.get("clock", 0) > clock:
                    trial, clock = values["trial"], values["clock"]
                    yield note(event_of(task, values))
                    if values["event"]["node"] == "begin":
                        forget_past(graph, task)
            forget_past(graph, task)
        except (BudgetError, StoppedError) as stop:
            method.caller.stop(str(stop))
        except Exception as error:  # this task's alone
            data = {"error": describe(error), "attempts": getattr(error, "attempts", 0)}
            yield note(Event(task.id, clock, "error", trial, data))

    return work


def _at_once(
    tasks: Sequence[Task], concurrency: int, work: Callable[[Task], Iterator[Event]], caller: Caller
) -> Iterator[Event]:
    """Events of all tasks as they come, ``concurrency`` tasks at a time."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

    def worker() -> None:
        try:
            while not caller.stopped.is_set():
                for event in work(waiting.get_nowait()):
                    events.put(event)
        except queue.Empty:
            pass
        except BaseException as error:  # the run's own: a full disk
            events.put(error)
        events.put(None)

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(min(concurrency, len(tasks)))]
    for thread in threads:
        thread.start()
    working = len(threads)
    try:
        while working:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            if event is None:
                working -= 1
            else:
                yield event
    finally:
        if working:
            caller.stop("interrupted")
        for thread in threads:
            thread.join()


def _check_tasks(tasks: Sequence[Task]) -> None:
    if not tasks:
        raise InputError("there is no task to run")
    ids = [task.id for task in tasks]
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise InputError(f"two tasks have the id {twice!r}")
    if len({task.kind for task in tasks}) > 1:
        raise InputError(f"tasks of several kinds in one run: {', '.join(sorted({t.kind for t in tasks}))}")


def _check_sandbox(allow_unsafe: bool) -> None:
    """Where programs cannot be held, nothing is to be asked first."""
    from .sandbox import run_python

    run_python("", allow_unsafe=allow_unsafe)


def _check_prompts(method: Method, task: Task) -> None:
    """Fill in every prompt once: a mistake in one of them is not to be found out in the middle of a run."""
    memory, attempt = Memory(1, ("…",)), Attempt((Step("…"),), "…")
    method.actor.messages(Situation(task, method.strategy, memory, attempt.steps, "…"))
    if method.strategy.reflects:
        reflection_messages(method.prompts, task, attempt, "…", memory)
    if method.evaluator == "model":
        judge_messages(method.prompts, task, attempt)
    if method.evaluator == "unit_tests":
        method.prompts.messages("tests", task=task.prompt, n=1)


def _one_of(name: str, kind: Any, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{name}={value!r} must be one of {', '.join(kind)}") from None


def _opened(model: BaseChatModel | str) -> BaseChatModel:
    return open_chat_model(model) if isinstance(model, str) else model


def _name_of(model: BaseChatModel) -> str:
    name = getattr(model, "model_name", None) or getattr(model, "model", None)
    return f"{type(model).__name__}({name})" if isinstance(name, str) else type(model).__name__


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
