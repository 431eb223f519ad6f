"""Programming tasks in the formats of HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021), and pass@k.

    tasks = read_humaneval("HumanEval.jsonl.gz")
    tasks[0].prompt                       # signature and docstring: all that a model sees
    tasks[0].evaluate(Attempt(answer=…))  # the hidden tests, in the sandbox; what they say is not passed on

A test's text is in no prompt, no feedback and no repr.
"""

import ast
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..sandbox import RunResult, run_python
from .base import Attempt, Verdict

TIMEOUT_S = 10.0


@dataclass(frozen=True)
class ProgramTask:
    """A function to be written, with hidden tests.

    Attributes:
        id: as the data set has it.
        prompt: signature and docstring, perhaps with imports and helper functions before them.
        entry_point: the function that the tests call.
        hidden_tests: Python; never shown.
        solution: the data set's own program; never shown.
        timeout_s: for the hidden tests.
        allow_unsafe: run them even where the machine cannot isolate the program.
    """

    id: str
    prompt: str
    entry_point: str
    hidden_tests: str = field(repr=False)
    solution: str = field(default="", repr=False)
    kind: str = "programming"
    timeout_s: float = TIMEOUT_S
    allow_unsafe: bool = False

    def program(self, answer: str) -> str:
        """A program of a model's answer: the whole function, or only its body that continues the prompt.

        What stands in the prompt before the function (imports, helpers) is put before an answer that repeats
        the function without it.
        """
        if not _defines(answer, self.entry_point):
            return self.prompt + answer
        before = _before(self.prompt, self.entry_point)
        return f"{before}\n{answer}" if before.strip() else answer

    def run(self, answer: str) -> RunResult:
        """The hidden tests on an answer. For the report and for debugging: its error quotes a test."""
        return run_python(
            self.program(answer),
            tests=self.hidden_tests,
            timeout_s=self.timeout_s,
            entry_point=self.entry_point,
            allow_unsafe=self.allow_unsafe,
        )

    def evaluate(self, attempt: Attempt) -> Verdict:
        """Whether the hidden tests pass, and not a word more."""
        if not attempt.answer.strip():
            return Verdict(False, "There was no program.")
        passed = self.run(attempt.answer).passed
        return Verdict(passed, f"The program {'passes' if passed else 'does not pass'} the hidden tests.")


def read_humaneval(path: Path | str) -> list[ProgramTask]:
    """Tasks from HumanEval's JSONL (also .gz, JSON or Parquet), or any file with its columns.

    Args:
        path: rows with ``task_id``, ``prompt``, ``entry_point`` and ``test``; ``canonical_solution`` may
        lack.

    Raises:
        InputError: a file that cannot be read, or a row that is no task.
    """
    tasks = []
    for number, row in _rows(path):
        name, prompt, entry_point, test = (
            _text(row, key, path, number) for key in ("task_id", "prompt", "entry_point", "test")
        )
        _check_python(test, f"{path}, row {number}: `test`")
        if f"def {entry_point}" not in prompt:
            raise InputError(f"{path}, row {number}: `prompt` does not begin the function {entry_point!r}")
        solution = row.get("canonical_solution") or ""
        tasks.append(ProgramTask(name, prompt, entry_point, test, prompt + solution if solution else ""))
    return _unique(tasks, path)


def read_mbpp(path: Path | str, *, shown_tests: int = 0) -> list[ProgramTask]:
    """Tasks from MBPP's JSONL or from the sanitized JSON (also .gz or Parquet).

    MBPP describes a function without naming it, so the prompt is made: the reference's signature, and the
    description as docstring.

    Args:
        path: rows with ``task_id``, ``text`` or ``prompt``, ``code`` and ``test_list``.
        shown_tests: how many of the tests become examples in the docstring. They are then no longer hidden
            tests: only the others are. Papers on MBPP usually show all three and test with the same three;
            this reader does not.

    Raises:
        InputError: a file that cannot be read, or a row that is no task.
    """
    if shown_tests < 0:
        raise InputError(f"shown_tests={shown_tests} must not be negative")
    tasks = []
    for number, row in _rows(path):
        where = f"{path}, row {number}"
        text = row.get("text") or row.get("prompt")
        code, tests = row.get("code"), row.get("test_list")
        if not (isinstance(text, str) and isinstance(code, str) and isinstance(tests, list) and tests):
            raise InputError(f"{where}: it needs `text` (or `prompt`), `code` and a list `test_list`")
        if shown_tests >= len(tests):
            raise InputError(
                f"{where}: shown_tests={shown_tests} leaves none of its {len(tests)} tests hidden"
            )
        shown, hidden = tests[:shown_tests], [*tests[shown_tests:], *(row.get("challenge_test_list") or [])]
        setup = "\n".join([*(row.get("test_imports") or []), row.get("test_setup_code") or ""])
        hidden_tests = "\n".join([setup, *map(str, hidden)]).strip()
        signature = _signature(code, hidden_tests, where)
        examples = "".join(f"\n    {test}" for test in shown)
        prompt = f'{signature.source}\n    """{text.strip()}{examples}\n    """\n'
        name = f"MBPP/{row.get('task_id', number)}"
        tasks.append(ProgramTask(name, prompt, signature.name, hidden_tests, code))
    return _unique(tasks, path)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k: ``1 − C(n − c, k) / C(n, k)`` (Chen et al. 2021, equation 1).

    Args:
        n: samples of one task.
        c: how many of them are correct.
        k: how many one may try.

    Raises:
        InputError: fewer samples than ``k``, or counts that cannot be.

    Example:
        >>> pass_at_k(10, 3, 1)
        0.3
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise InputError(f"pass@{k} of {c} correct among {n} samples: it needs 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    return (math.comb(n, k) - math.comb(n - c, k)) / math.comb(n, k)


def evaluate_samples(
    tasks: Sequence[ProgramTask],
    samples: Iterable[Mapping[str, Any]],
    ks: Sequence[int] = (1, 10, 100),
    workers: int = 2,
) -> dict[str, float]:
    """pass@k of samples in HumanEval's format, as its own evaluation computes it.

    Args:
        tasks: each must have at least one sample.
        samples: mappings with ``task_id`` and ``completion``.
        ks: those for which every task has enough samples are reported.
        workers: sandboxes at the same time.

    Returns:
        ``{"pass@1": …}``, means over tasks.

    Raises:
        InputError: a sample of an unknown task, a task without samples.
    """
    by_id = {task.id: task for task in tasks}
    listed = [(str(sample["task_id"]), str(sample["completion"])) for sample in samples]
    unknown = next((name for name, _ in listed if name not in by_id), None)
    if unknown is not None:
        raise InputError(f"a sample is of task {unknown!r}, which is not among the {len(by_id)} tasks")
    total = Counter(name for name, _ in listed)
    missing = next((name for name in by_id if not total[name]), None)
    if missing is not None:
        raise InputError(f"task {missing!r} has no sample")
    right: defaultdict[str, int] = defaultdict(int)
    with ThreadPoolExecutor(workers) as pool:
        passed = pool.map(lambda sample: by_id[sample[0]].run(sample[1]).passed, listed)
        for (name, _), good in zip(listed, passed, strict=True):
            right[name] += good
    return {
        f"pass@{k}": sum(pass_at_k(total[name], right[name], k) for name in by_id) / len(by_id)
        for k in ks
        if min(total.values()) >= k
    }


@dataclass(frozen=True)
class _Signature:
    name: str
    source: str


def _signature(code: str, tests: str, where: str) -> _Signature:
    """The first function of the reference that the tests call, as ``def name(…):``."""
    _check_python(code, f"{where}: `code`")
    _check_python(tests, f"{where}: `test_list`")
    functions = {n.name: n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)}
    for node in ast.walk(ast.parse(tests)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            function = functions[node.func.id]
            returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
            return _Signature(function.name, f"def {function.name}({ast.unparse(function.args)}){returns}:")
    raise InputError(f"{where}: its tests call none of the functions in `code`")


def _defines(answer: str, name: str) -> bool:
    try:
        return any(getattr(node, "name", "") == name for node in ast.parse(answer).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return answer.lstrip().startswith((f"def {name}", "import ", "from ", "class ", "@"))


def _before(prompt: str, entry_point: str) -> str:
    """The prompt's lines before the function."""
    lines = prompt.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(f"def {entry_point}")), 0)
    return "\n".join(lines[:start])


def _rows(path: Path | str) -> Iterable[tuple[int, dict[str, Any]]]:
    from .questions import read_rows  # brings langchain with it

    found = list(enumerate(read_rows(path), 1))
    if not found:
        raise InputError(f"{path} holds no task")
    return found


def _text(row: dict[str, Any], key: str, path: Path | str, number: int) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{path}, row {number}: it needs the text `{key}`")
    return value


def _check_python(source: str, where: str) -> None:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{where} is not Python: {' '.join(str(error).split())}") from None


def _unique(tasks: list[ProgramTask], path: Path | str) -> list[ProgramTask]:
    name, count = Counter(task.id for task in tasks).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: {count} tasks are called {name!r}")
    return tasks
