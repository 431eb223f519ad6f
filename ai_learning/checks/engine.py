"""How an exercise is checked: a ladder of properties, cheap to costly, that stops at the first that fails.

When a property fails, the answer is also run beside the exercise's known wrong answers, its *mutants*: if it
gives what one of them gives everywhere, that mistake is named; otherwise the property's own sentence stands.
Nothing here draws from the global random generators, so a verdict is the same in every run.
"""

import contextlib
import copy
import random
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Function = Callable[..., Any]
Cases = Callable[[], list[tuple[Any, ...]]]

SECONDS_A_STEP = 10


class Wrong(Exception):  # noqa: N818 - a verdict, not an error
    """A property does not hold.

    Args:
        cause: one sentence, "what: why it matters or what to do".
        seen: what was observed, in numbers.
    """

    def __init__(self, cause: str, seen: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.seen = seen


@dataclass(frozen=True)
class Mutant:
    """A wrong answer that the check must catch and name.

    Attributes:
        name: the mistake in a few words; the verdict's cause starts with it.
        why: the sentence that explains it.
        fn: the wrong answer.
    """

    name: str
    why: str
    fn: Function

    @property
    def cause(self) -> str:
        """The sentence to print."""
        return f"{self.name}: {self.why}"


@dataclass(frozen=True)
class Step:
    """One rung: ``test(fn)`` raises ``Wrong`` when ``fn`` does not have the property."""

    title: str
    test: Callable[[Function], None]


@dataclass(frozen=True)
class Exercise:
    """What is asked, how it is checked, and what must be caught.

    Attributes:
        name: "day1.attention".
        title: what to write, in a line.
        stub: source to start from; raises ``NotImplementedError``.
        solution: the library's own object that does it; its source is the solution.
        reference: the right answer with the stub's signature; often the solution itself.
        steps: the ladder.
        hints: three, each saying more than the one before.
        cases: argument tuples on which answers are compared.
        mutants: at least eight.
        alternatives: other right ways to write it, which the check must accept.
        tolerance: relative and absolute, for comparing floats.
    """

    name: str
    title: str
    stub: str
    solution: Any
    reference: Function
    steps: tuple[Step, ...]
    hints: tuple[str, str, str]
    cases: Cases
    mutants: tuple[Mutant, ...]
    alternatives: tuple[Function, ...]
    tolerance: float = 1e-6

    @property
    def function_name(self) -> str:
        """Name of the function in the stub."""
        start = self.stub.index("def ") + 4
        return self.stub[start : self.stub.index("(", start)]


@dataclass(frozen=True)
class Report:
    """A verdict: true when every step passed."""

    exercise: str
    passed_steps: tuple[str, ...]
    failed_step: str | None = None
    seen: str = ""
    cause: str = ""

    def __bool__(self) -> bool:
        return self.failed_step is None

    def __str__(self) -> str:
        lines = [self.exercise, *(f"  ✓ {title}" for title in self.passed_steps)]
        if self.failed_step is None:
            return "\n".join([*lines, "  passed"])
        lines.append(f"  ✗ {self.failed_step}")
        if self.seen:
            lines.append(f"    seen:  {self.seen}")
        lines.append(f"    cause: {self.cause}")
        return "\n".join(lines)


def run(fn: Function, exercise: Exercise) -> Report:
    """Climb the ladder with ``fn`` and report where it ends."""
    passed: list[str] = []
    for step in exercise.steps:
        try:
            with _own_randomness(), _time_limit(SECONDS_A_STEP):
                step.test(fn)
        except NotImplementedError:
            return Report(exercise.name, tuple(passed), step.title, cause="not written yet")
        except (Exception, SystemExit, _TooLong) as error:  # exit() in an answer must not end the check
            wrong = error if isinstance(error, Wrong) else _crash(error)
            # An endless loop is stopped once; the cases of recognise would wait for it again and again.
            known = None if isinstance(error, _TooLong) else recognise(fn, exercise)
            return Report(
                exercise.name, tuple(passed), step.title, wrong.seen, known.cause if known else wrong.cause
            )
        passed.append(step.title)
    return Report(exercise.name, tuple(passed))


def recognise(fn: Function, exercise: Exercise) -> Mutant | None:
    """The mutant that gives what ``fn`` gives on every case, if there is one and it is not right."""
    with _own_randomness():
        try:
            answers = _outcomes(fn, exercise.cases)
            if _all_same(answers, _outcomes(exercise.reference, exercise.cases), exercise.tolerance):
                return None  # right wherever it was asked: the mistake is of another kind
            for mutant in exercise.mutants:
                if _all_same(answers, _outcomes(mutant.fn, exercise.cases), exercise.tolerance):
                    return mutant
        except _TooLong:
            pass  # no mutant is an endless loop, and the other cases would wait as long
    return None


# --- rungs that many exercises share ------------------------------------------------------------------------


def same_form(reference: Function, cases: Cases, what: str) -> Step:
    """A result of the reference's type, shape and dtype; ``what`` says which in words."""

    def test(fn: Function) -> None:
        for case in cases():
            expected, got = reference(*copy.deepcopy(case)), fn(*copy.deepcopy(case))
            if not _fits(expected, got):
                raise Wrong(f"wrong shape or type: {what}", f"got {_form(got)}, expected {_form(expected)}")

    return Step(f"returns {what}", test)


def leaves_inputs(cases: Cases) -> Step:
    """The arguments are as they were after the call."""

    def test(fn: Function) -> None:
        for case in cases():
            before = copy.deepcopy(case)
            fn(*case)
            for i, (a, b) in enumerate(zip(before, case, strict=True)):
                if not same(a, b, 0):
                    raise Wrong(
                        "input mutated: work on a copy; the caller still needs its own",
                        f"argument {i + 1} was changed by the call",
                    )

    return Step("leaves its inputs as they were", test)


def equals(reference: Function, cases: Cases, tolerance: float = 1e-6, title: str = "") -> Step:
    """The same results as ``reference`` on every case."""

    def test(fn: Function) -> None:
        for case in cases():
            expected = reference(*copy.deepcopy(case))
            got = fn(*copy.deepcopy(case))
            if not same(expected, got, tolerance):
                raise Wrong(
                    "another result than the library's: compare the two on this input, step by step",
                    _difference(case, got, expected),
                )

    return Step(title or "equals the library on odd sizes", test)


def same_gradients(reference: Function, cases: Cases, tolerance: float = 1e-5) -> Step:
    """The same gradient for every floating-point tensor argument."""

    def gradients(fn: Function, case: tuple[Any, ...]) -> list[torch.Tensor | None]:
        case = copy.deepcopy(case)
        tensors = [a.requires_grad_() for a in case if torch.is_tensor(a) and a.is_floating_point()]
        out = fn(*case)
        out = out[0] if isinstance(out, tuple) else out
        if not out.requires_grad:
            return [None] * len(tensors)
        weights = torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view(out.shape)
        return list(torch.autograd.grad((out * weights).sum(), tensors, allow_unused=True))

    def test(fn: Function) -> None:
        for case in cases():
            for i, (a, b) in enumerate(
                zip(gradients(reference, case), gradients(fn, case), strict=True), start=1
            ):
                if a is not None and b is None:
                    raise Wrong(
                        "wrong gradient: something detaches the result from its inputs "
                        "(.detach(), .item(), torch.tensor(…) or no_grad)",
                        f"no gradient reaches tensor argument {i}",
                    )
                if a is not None and not same(a, b, tolerance):
                    raise Wrong(
                        "wrong gradient: the result is right, its derivative is not; is part of it detached?",
                        f"gradient of tensor argument {i} is {apart(b, a)}",
                    )

    return Step("has the right gradients", test)


# --- comparing and describing -------------------------------------------------------------------------------


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two results agree: equal structure and kind, floats within ``tolerance``.

    Never raises, as answers may be anything: what cannot be compared (a NumPy array) differs.
    """
    try:
        return _same(a, b, tolerance)
    except Exception:
        return False


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if torch.is_tensor(a) or torch.is_tensor(b):
        if not (torch.is_tensor(a) and torch.is_tensor(b)) or a.shape != b.shape:
            return False
        if a.is_floating_point() != b.is_floating_point():
            return False
        a, b = a.detach().double(), b.detach().double()
        return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], tolerance) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) or isinstance(b, float):
        if not all(isinstance(x, int | float) for x in (a, b)):
            return False
        return a == b or abs(a - b) <= tolerance + tolerance * abs(a)
    if isinstance(a, torch.nn.Module) and isinstance(b, torch.nn.Module):
        return same(dict(a.state_dict()), dict(b.state_dict()), tolerance)
    return bool(a == b) or (a is b) or (callable(a) and type(a) is type(b))


def describe(value: Any, digits: int = 4) -> str:
    """A short picture of a value: numbers while there are few, else the shape."""
    if torch.is_tensor(value):
        if value.numel() <= 8:
            return str([round(x, digits) for x in value.detach().double().flatten().tolist()])
        return f"tensor{tuple(value.shape)}"
    if isinstance(value, tuple):
        return "(" + ", ".join(describe(x, digits) for x in value) + ")"
    text = f"{value:.{digits + 2}g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def apart(got: Any, expected: Any) -> str:
    """ "GOT, expected EXPECTED", with as many digits as it takes to see that they differ."""
    pictures = ((describe(got, digits), describe(expected, digits)) for digits in (4, 8, 13))
    a, b = next((pair for pair in pictures if pair[0] != pair[1]), (describe(got), describe(expected)))
    return f"{a}, expected {b}"


def _difference(case: tuple[Any, ...], got: Any, expected: Any) -> str:
    """The input, and what came out beside what should have; for large tensors, how far they are apart."""
    inputs = f"on {describe(case)}: "
    pairs = (
        zip(got, expected, strict=True)
        if isinstance(got, tuple) and isinstance(expected, tuple)
        else [(got, expected)]
    )
    for number, (a, b) in enumerate(pairs, start=1):
        if torch.is_tensor(a) and torch.is_tensor(b) and a.shape == b.shape and a.numel() > 8:
            off = (a.double() - b.double()).abs().nan_to_num(torch.inf)
            if off.max() > 0:
                place = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
                return inputs + f"result {number} at {place} is {apart(a[place].item(), b[place].item())}"
    return inputs + apart(got, expected)


def _fits(expected: Any, got: Any) -> bool:
    """Whether a result is of the expected kind: a subclass is, an OrderedDict or np.float64."""
    if torch.is_tensor(expected):
        return torch.is_tensor(got) and _form(expected) == _form(got)
    if isinstance(expected, tuple):
        return (
            isinstance(got, tuple)
            and len(expected) == len(got)
            and all(_fits(a, b) for a, b in zip(expected, got, strict=True))
        )
    if isinstance(got, bool) or isinstance(expected, bool):  # bool is a subclass of int, and no count
        return type(expected) is type(got)
    return isinstance(got, type(expected))


def _form(value: Any) -> str:
    if torch.is_tensor(value):
        return f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.")
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_form, value)) + ")"
    return type(value).__name__


def _outcomes(fn: Function, cases: Cases) -> list[Any]:
    found: list[Any] = []
    for case in cases():
        try:
            with _time_limit(SECONDS_A_STEP):
                found.append(fn(*copy.deepcopy(case)))
        except (Exception, SystemExit) as error:
            found.append(_Raised(type(error)))
    return found


@dataclass(frozen=True)
class _Raised:
    kind: type[BaseException]


def _all_same(a: list[Any], b: list[Any], tolerance: float) -> bool:
    return all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))


def _crash(error: BaseException) -> Wrong:
    frames = traceback.extract_tb(error.__traceback__)
    where = f", line {frames[-1].lineno} of {frames[-1].name}" if frames else ""
    message = " ".join(str(error).split())
    if isinstance(error, _TooLong):
        return Wrong(
            "too slow: does a loop never end, or work that could be done once stand inside it?", message
        )
    if isinstance(error, SystemExit):
        return Wrong("it ended the program: return the result; exit() ends everything", f"raised{where}")
    return Wrong(f"it stopped with {type(error).__name__}: {message}", f"raised{where}")


# --- isolation ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Fixed seeds inside, the caller's generators untouched outside."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


class _TooLong(BaseException):
    """No ``Exception``: an answer's own ``except Exception`` in its loop must not swallow it."""


@contextlib.contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Stop a loop that never ends; only the main thread of a POSIX system can be stopped so."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise _TooLong(f"stopped after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
