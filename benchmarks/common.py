"""Measuring side by side: A B A B, in one process or in one each, medians, ratios to the peer."""

import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date

import torch


def interleaved(steps: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, float]:
    """Median seconds of each function; every round runs each of them once, in turn."""
    clock = process_clock()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + warmup):
        for name, step in steps.items():
            started = clock()
            step()
            if number >= warmup:
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def interleaved_processes(
    commands: Mapping[str, Sequence[str]], starts: int, rounds: int, steps: int
) -> dict[str, float]:
    """As `interleaved`, but each function in a process of its own, as in real use, and ``steps`` in a turn.

    In one process the neighbours of a step change it: what they free decides whether the C library gives
    memory back to the system, and their weights take its place in the caches. And the same step may take 5 %
    more in one process than in the next, as its memory happens to lie, so each is started several times.

    Args:
        commands: each starts a program that calls `serve`.
        starts: how often all are started anew.
        rounds: how often each has its turn, each time.
        steps: that are measured in a turn, after one that is not.

    Raises:
        ChildProcessError: a program that ended before its time.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(starts):
        with contextlib.ExitStack() as stack:
            programs = {
                name: stack.enter_context(subprocess.Popen(command, **pipes))
                for name, command in commands.items()
            }
            for name, program in programs.items():  # none begins while others are still being made
                _answer(name, program, 0)
            for _ in range(rounds):
                for name, program in programs.items():
                    times[name] += _answer(name, program, steps)
    return {name: statistics.median(values) for name, values in times.items()}


def _answer(name: str, program: subprocess.Popen, steps: int) -> list[float]:
    """Have it take ``steps``, and one before; the seconds of each."""
    try:
        print(steps, file=program.stdin)
    except BrokenPipeError:  # what could not be written must not be tried again
        with contextlib.suppress(BrokenPipeError):
            program.stdin.close()
    if not (answer := program.stdout.readline()):
        raise ChildProcessError(f"{name} ended before it was done")
    seconds: list[float] = json.loads(answer)
    return seconds


def serve(make: Callable[[], Callable[[], None]]) -> None:
    """Make a function and call it for `interleaved_processes` until that has enough."""
    clock, answers = process_clock(), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever else is printed
        step = make()
        for line in sys.stdin:
            times = []
            for number in range(int(line) + 1):
                started = clock()
                step()
                if number:
                    times.append(clock() - started)
            print(json.dumps(times), file=answers, flush=True)


def process_clock() -> Callable[[], float]:
    """CPU seconds on one thread, which other programs hardly change; wall time on several."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def hardware() -> str:
    """One line: date, processor, threads, versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return f"{date.today()}, {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return model
