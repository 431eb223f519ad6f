"""Asking a model, when it may be slow, busy, broken or costly: time limits, retries, budgets.

Nothing here knows what is asked. Every chat model of LangChain's fits.
"""

import contextvars
import email.utils
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage

from ..errors import InputError

PERMANENT = {400, 401, 403, 404, 405, 413, 422}
"""HTTP statuses that asking again does not change"""


class BudgetError(Exception):
    """The run has spent what it may; its tasks can be resumed with more."""


class StoppedError(Exception):
    """Somebody asked the run to stop."""


class ModelError(Exception):
    """A model that gave no answer in all its attempts."""

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts


@dataclass(frozen=True)
class Budget:
    """What all tasks together may spend; ``None`` is no limit. Reaching one stops the run, resumably."""

    max_calls: int | None = None
    """requests to models, failed ones included"""
    max_total_tokens: int | None = None
    """tokens read and written"""
    max_cost: float | None = None
    """US dollars, by the two prices"""
    max_seconds: float | None = None
    """of wall time"""
    price_in: float = 0.0
    """US dollars a million tokens read"""
    price_out: float = 0.0
    """US dollars a million tokens written"""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value >= 0:  # NaN is no limit either
                raise InputError(f"{name}={value} must not be negative")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise InputError(
                f"max_cost={self.max_cost} needs price_in and price_out (dollars a million tokens)"
            )


@dataclass(frozen=True)
class Retry:
    """How patient a call is. Waits double, with jitter, unless the server says how long (Retry-After)."""

    attempts: int = 6
    """how often to ask before giving up"""
    wait_s: float = 1.0
    """before the second attempt"""
    longest_wait_s: float = 60.0
    """no wait is longer, whatever the server says"""
    timeout_s: float | None = 120.0
    """an answer that takes longer counts as none"""

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InputError(f"attempts={self.attempts} must be at least 1")
        for name, value in (("wait_s", self.wait_s), ("longest_wait_s", self.longest_wait_s)):
            if not 0 <= value < math.inf:
                raise InputError(f"{name}={value} must be a number of seconds, at least 0")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise InputError(f"timeout_s={self.timeout_s} must be positive; leave it out for no limit")

    def wait(self, attempt: int, error: BaseException) -> float:
        """Seconds to wait after failed attempt number ``attempt`` (from 1)."""
        asked = retry_after(error)
        if asked is not None:
            return min(asked, self.longest_wait_s)
        wait = min(self.wait_s * 2 ** (attempt - 1), self.longest_wait_s)
        return wait * random.uniform(0.5, 1.0)  # many tasks that failed together do not come back together


@dataclass
class Spent:
    """What was used so far."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    def add(self, event: dict[str, Any]) -> None:
        """Count a call as a trace recorded it."""
        self.calls += event.get("attempts", 0)
        self.input_tokens += event.get("input_tokens", 0)
        self.output_tokens += event.get("output_tokens", 0)
        self.cost += event.get("cost", 0.0)


@dataclass(frozen=True)
class Answer:
    """A model's answer and what it took."""

    text: str
    input_tokens: int
    output_tokens: int
    cost: float
    seconds: float
    attempts: int
    errors: tuple[str, ...] = ()
    """why earlier attempts failed"""

    def record(self) -> dict[str, Any]:
        """For the trace."""
        return {**asdict(self), "errors": list(self.errors), "seconds": round(self.seconds, 3)}


class Caller:
    """Asks models for all tasks of a run, from any thread.

    Args:
        budget: of all calls together.
        retry: of each call.
        spent: what earlier parts of a resumed run used.
    """

    def __init__(self, budget: Budget, retry: Retry, spent: Spent | None = None) -> None:
        self.budget, self.retry, self.spent = budget, retry, spent or Spent()
        self.stopped = threading.Event()
        self.why = ""
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._refuses_stop: set[int] = set()

    def ask(
        self,
        model: BaseChatModel,
        messages: Sequence[BaseMessage],
        stop: Sequence[str] = (),
        **options: Any,
    ) -> Answer:
        """The model's answer, cut before the first stop string; ``options`` go to the model's ``invoke``.

        An empty answer is asked for once more, then taken as it is: what it means is the actor's matter.

        Raises:
            BudgetError: something is used up, before the call.
            ModelError: no answer in all attempts, or an error that asking again does not change.
            StoppedError: ``stopped`` was set.
        """
        began = time.monotonic()
        errors: list[str] = []
        for attempt in range(1, self.retry.attempts + 1):
            self._reserve()
            words = () if id(model) in self._refuses_stop else stop
            try:
                message = self._within_time(
                    partial(model.invoke, list(messages), stop=list(words) or None, **options)
                )
                text = cut(text_of(message), stop)
                if not text.strip() and not any("empty" in error for error in errors):
                    raise ValueError("an empty answer")
            except (BudgetError, StoppedError, InputError):
                raise
            except Exception as error:
                errors.append(describe(error))
                if words and status(error) == 400 and "stop" in str(error):
                    self._refuses_stop.add(id(model))  # some reasoning models do; the text is cut here anyway
                    continue
                if is_permanent(error):
                    raise ModelError(errors[-1], attempt) from error
                if attempt == self.retry.attempts:
                    break
                if self.stopped.wait(self.retry.wait(attempt, error)):
                    raise StoppedError from None
            else:
                return self._count(message, messages, text, time.monotonic() - began, errors)
        attempts = self.retry.attempts
        raise ModelError(f"no answer in {attempts} attempts; the last: {errors[-1]}", attempts)

    def stop(self, why: str) -> None:
        """End the run: calls that wait give up. The first reason is kept."""
        with self._lock:
            self.why = self.why or why
        self.stopped.set()

    def check(self) -> None:
        """Raise what a call would raise for the budget."""
        seconds = time.monotonic() - self._began
        for name, used in (
            ("max_calls", self.spent.calls),
            ("max_total_tokens", self.spent.input_tokens + self.spent.output_tokens),
            ("max_cost", self.spent.cost),
            ("max_seconds", seconds),
        ):
            limit = getattr(self.budget, name)
            if limit is not None and used >= limit:
                raise BudgetError(f"{name}={limit} is used up")

    def _reserve(self) -> None:
        if self.stopped.is_set():
            raise StoppedError
        with self._lock:
            self.check()
            self.spent.calls += 1

    def _within_time(self, call: Callable[[], Any]) -> Any:
        """The call's result, from a thread of its own that is given up when it takes too long.

        A client's own time limit counts from byte to byte: a server that sends one now and then never ends.
        """
        done = threading.Event()
        result: list[Any] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(call())
            except BaseException as error:
                failure.append(error)
            done.set()

        context = contextvars.copy_context()  # LangChain's callbacks travel in it
        threading.Thread(target=context.run, args=(run,), daemon=True).start()
        limit = None if self.retry.timeout_s is None else time.monotonic() + self.retry.timeout_s
        while not done.wait(0.05 if limit is None else max(0.0, min(0.05, limit - time.monotonic()))):
            if self.stopped.is_set():
                raise StoppedError
            if limit is not None and time.monotonic() >= limit:
                raise TimeoutError(f"no answer in {self.retry.timeout_s:g} s")
        if failure:
            raise failure[0]
        return result[0]

    def _count(
        self, message: Any, messages: Sequence[BaseMessage], text: str, seconds: float, errors: list[str]
    ) -> Answer:
        usage = getattr(message, "usage_metadata", None) or {}
        # Four characters a token where the server does not count.
        read = usage.get("input_tokens") or sum(len(text_of(one)) for one in messages) // 4
        written = usage.get("output_tokens") or len(text) // 4
        cost = (read * self.budget.price_in + written * self.budget.price_out) / 1e6
        with self._lock:
            self.spent.input_tokens += read
            self.spent.output_tokens += written
            self.spent.cost += cost
        return Answer(text, read, written, cost, seconds, len(errors) + 1, tuple(errors))


def text_of(message: Any) -> str:
    """The text of a message, whatever blocks it came in.

    Raises:
        TypeError: it is no message.
    """
    if not isinstance(message, BaseMessage):
        raise TypeError(f"not a message but {type(message).__name__}")
    return str(message.text)


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first stop string."""
    ends = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(ends)] if ends else text


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error, where there is one."""
    found = getattr(error, "status_code", None)
    return found if isinstance(found, int) else getattr(getattr(error, "response", None), "status_code", None)


def is_permanent(error: BaseException) -> bool:
    """Whether asking again is of no use."""
    return status(error) in PERMANENT or "insufficient_quota" in str(error)


def retry_after(error: BaseException) -> float | None:
    """Seconds that the server asked to wait: a number or a date in ``Retry-After``."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def describe(error: BaseException) -> str:
    """One line, not too long."""
    text = " ".join(str(error).split())
    if isinstance(error, ModelError | InputError):  # worded for people already
        return text[:300]
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
