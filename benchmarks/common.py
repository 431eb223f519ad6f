"""Measuring side by side: A B A B in one process, medians, ratios to the peer."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date

import torch


def interleaved(steps: Mapping[str, Callable[[], None]], rounds: int, warmup: int = 2) -> dict[str, float]:
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
