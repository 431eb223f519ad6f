"""Sandboxed executions a second: HumanEval's 164 problems' worth of programs with their tests.

    python -m benchmarks.sandbox

The programs are made here, of the size of HumanEval's solutions (7 lines and 7 asserts on average). Beside it
stands the least that isolates nothing: a new Python process for each execution.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from ai_learning.reflexion.isolation.limits import Limits
from ai_learning.reflexion.sandbox import Sandbox

PROGRAMS = 164

_TEMPLATES = [
    (
        """
from typing import List


def {name}(numbers: List[float], threshold: float) -> bool:
    for i, first in enumerate(numbers):
        for j, second in enumerate(numbers):
            if i != j and abs(first - second) < threshold:
                return True
    return False
""",
        "([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], {r}.3)",
    ),
    (
        """
def {name}(text: str) -> list:
    groups, depth, current = [], 0, []
    for character in text:
        if character == "(":
            depth += 1
            current.append(character)
        elif character == ")":
            depth -= 1
            current.append(character)
            if depth == 0:
                groups.append("".join(current))
                current.clear()
    return groups
""",
        "('( ) (( )) (( )( ))' * {r})",
    ),
    (
        """
def {name}(limit: int) -> list:
    primes = []
    for number in range(2, limit):
        for prime in primes:
            if number % prime == 0:
                break
        else:
            primes.append(number)
    return primes
""",
        "({r} * 40)",
    ),
    (
        """
from collections import Counter


def {name}(words: list) -> dict:
    counts = Counter(words)
    if not counts:
        return {{}}
    most = max(counts.values())
    return {{word: count for word, count in counts.items() if count == most}}
""",
        "(['b', 'a', 'b', 'c', 'a'] * {r})",
    ),
    (
        """
import math


def {name}(coefficients: list) -> float:
    def value(x):
        return sum(c * math.pow(x, i) for i, c in enumerate(coefficients))
    low, high = -1.0, 1.0
    while value(low) * value(high) > 0:
        low, high = low * 2, high * 2
    while high - low > 1e-10:
        middle = (low + high) / 2
        low, high = (low, middle) if value(middle) * value(low) <= 0 else (middle, high)
    return round(low, 6)
""",
        "([{r}, 2])",
    ),
]


def problems(count: int) -> list[tuple[str, str, str]]:
    """(program, HumanEval-like tests, entry point); expected values come from running the program here."""
    made = []
    for number in range(count):
        template, arguments = _TEMPLATES[number % len(_TEMPLATES)]
        name = f"problem_{number}"
        code = template.format(name=name)
        namespace: dict = {}
        exec(code, namespace)
        lines = []
        for r in range(1, 8):
            call = arguments.format(r=r)
            lines.append(f"    assert candidate{call} == {eval(name + call, namespace)!r}")
        tests = "METADATA = {}\n\n\ndef check(candidate):\n" + "\n".join(lines) + f"\n\ncheck({name})\n"
        made.append((code, tests, name))
    return made


def _in_sandbox(sandbox: Sandbox, problem: tuple[str, str, str]) -> None:
    code, tests, name = problem
    result = sandbox.run(code, tests, Limits(timeout_s=30), name)
    assert result.passed, result.error


def _in_a_new_process(problem: tuple[str, str, str]) -> None:
    code, tests, _ = problem
    subprocess.run([sys.executable, "-I", "-S", "-c", code + tests], check=True, cwd=tempfile.gettempdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="at the same time")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    work = problems(PROGRAMS)
    sandboxes = {
        "namespaces": Sandbox(),
        "landlock and seccomp only": Sandbox(without=("namespaces", "bubblewrap")),
    }
    ways = {f"sandbox, {name}": lambda p, s=s: _in_sandbox(s, p) for name, s in sandboxes.items()}
    ways["a new Python, no isolation"] = _in_a_new_process
    for sandbox in sandboxes.values():
        sandbox.start()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, run in ways.items():
            started = time.perf_counter()
            with ThreadPoolExecutor(options.workers) as pool:
                list(pool.map(run, work))
            rates[name].append(len(work) / (time.perf_counter() - started))
    for sandbox in sandboxes.values():
        sandbox.close()
    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, {'root' if os.geteuid() == 0 else 'not root'}; "
        f"{PROGRAMS} programs with 7 asserts each, {options.workers} at a time, median of {options.rounds}"
    )
    for name, values in rates.items():
        spread = f"from {min(values):.1f} to {max(values):.1f}"
        print(f"{name:34} {statistics.median(values):6.1f} executions a second ({spread})")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the caller {peak:.0f} MB")


if __name__ == "__main__":
    main()
