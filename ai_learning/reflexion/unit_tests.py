"""Unit tests that a model writes for its own programs: read, filtered, run (section 4.3 of the paper).

The model's answer may be anything. What is kept are single asserts that parse, that call the function under
test, and that need nothing but Python's own names: each can be run alone, and none twice.
"""

import ast
import builtins
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .sandbox import run_python

_ALLOWED_MODULES = {"math"}
_FORBIDDEN = {"open", "exec", "eval", "compile", "input", "print", "breakpoint", "exit", "quit", "__import__",
              "globals", "locals", "vars", "getattr", "setattr", "delattr", "help", "memoryview"}  # fmt: skip
_COMPARISONS: dict[str, type[ast.cmpop]] = {
    "assertEqual": ast.Eq, "assertEquals": ast.Eq, "assertListEqual": ast.Eq, "assertDictEqual": ast.Eq,
    "assertTupleEqual": ast.Eq, "assertSetEqual": ast.Eq, "assertNotEqual": ast.NotEq, "assertIs": ast.Is,
    "assertIn": ast.In, "assertNotIn": ast.NotIn, "assertGreater": ast.Gt, "assertLess": ast.Lt,
    "assertGreaterEqual": ast.GtE, "assertLessEqual": ast.LtE,
}  # fmt: skip
_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class TestOutcome:
    """What a program made of a list of tests."""

    __test__ = False  # for pytest: this is no test

    passed: bool
    """all of them hold, and there is at least one"""
    feedback: str
    """which hold and which do not, with the values: for the reflector and the next attempt"""
    errors: tuple[str, ...]
    """one for each test; empty where it holds"""


def parse_tests(answer: str, entry_point: str, n: int | None = None) -> list[str]:
    """The usable tests in a model's answer, in their order.

    Asserts are found wherever they stand: in the open, in fenced blocks, in ``check(candidate)`` or
    ``test_…`` functions, as ``self.assertEqual(…)``. Of an answer that does not parse as a whole, the lines
    that do count.

    Args:
        answer: the model's text.
        entry_point: the function that a test must call.
        n: keep at most so many.

    Returns:
        Asserts in one normal form: valid, self-contained, and each call of the function only once (of two
        tests that expect different values of one call, the first is kept).
    """
    kept: dict[str, str] = {}
    for node in _asserts(answer):
        test = _Rename("candidate", entry_point).visit(node.test)
        if _is_usable(test, entry_point):
            kept.setdefault(ast.unparse(_subject(test)), f"assert {ast.unparse(test)}")
    return list(kept.values())[:n]


def run_tests(
    program: str,
    tests: Sequence[str],
    *,
    timeout_s: float = 5.0,
    memory_mb: int = 256,
    workers: int = 2,
    allow_unsafe: bool = False,
) -> TestOutcome:
    """Run a program against asserts in the sandbox: all in one go, and one by one where that fails.

    Args:
        program: what the model wrote.
        tests: from `parse_tests`.
        timeout_s: for each run.
        memory_mb: for each run.
        workers: tests run at the same time.
        allow_unsafe: run even where the machine cannot isolate the program.

    Raises:
        SandboxError: the machine cannot hold untrusted code.
    """
    if not tests:
        return TestOutcome(False, "There are no tests.", ())

    def error_of(tests: str) -> str:
        tests = "".join(f"import {m}\n" for m in _ALLOWED_MODULES if f"{m}." in tests) + tests
        result = run_python(
            program, tests=tests, timeout_s=timeout_s, memory_mb=memory_mb, allow_unsafe=allow_unsafe
        )
        return "" if result.passed else result.error or "failed"

    if not error_of("\n".join(tests)):
        errors = [""] * len(tests)
    else:
        with ThreadPoolExecutor(workers) as pool:
            errors = list(pool.map(error_of, tests))
    return TestOutcome(not any(errors), _feedback(tests, errors), tuple(errors))


def _feedback(tests: Sequence[str], errors: Sequence[str]) -> str:
    """The paper's form: tests passed, tests failed with what came out."""
    failed = [
        error if error.startswith(test) else f"{test}: {error}"
        for test, error in zip(tests, errors, strict=True)
        if error
    ]
    passed = [test for test, error in zip(tests, errors, strict=True) if not error]
    parts = []
    if passed:
        parts.append("Tests passed:\n" + "\n".join(passed))
    if failed:
        parts.append("Tests failed:\n" + "\n".join(failed))
    return "\n\n".join(parts)


def _asserts(answer: str) -> Iterator[ast.Assert]:
    """Every assert in an answer, ``unittest``'s methods among them."""
    for source in _FENCE.findall(answer) or [answer]:
        for tree in _parsed(source):
            for node in ast.walk(tree):
                if isinstance(node, ast.Assert):
                    yield node
                elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                    test = _from_unittest(node.value)
                    if test is not None:
                        yield ast.Assert(test)


def _parsed(source: str) -> Iterator[ast.Module]:
    """The source, or the longest runs of its lines from an ``assert`` on that parse."""
    try:
        yield ast.parse(source)
        return
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    lines = source.splitlines()
    for start, line in enumerate(lines):
        if not re.match(r"[\s>\-*\d.`]*(assert |self\.assert)", line):
            continue
        first = re.sub(r"^[\s>\-*\d.`]*", "", line).rstrip("` ")
        for end in range(start + 1, min(start + 20, len(lines)) + 1):
            try:
                yield ast.parse("\n".join([first, *lines[start + 1 : end]]))
                break
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                if end > start + 1 and "assert" in lines[end - 1]:
                    break  # the next test begins: this one was cut off


def _from_unittest(call: ast.Call) -> ast.expr | None:
    """``self.assertEqual(a, b)`` → ``a == b``."""
    if not isinstance(call.func, ast.Attribute) or call.keywords:
        return None
    name, arguments = call.func.attr, call.args
    if name in _COMPARISONS and len(arguments) in (2, 3):
        return ast.Compare(arguments[0], [_COMPARISONS[name]()], [arguments[1]])
    if name == "assertTrue" and arguments:
        return arguments[0]
    if name == "assertFalse" and arguments:
        return ast.UnaryOp(ast.Not(), arguments[0])
    if name == "assertIsNone" and arguments:
        return ast.Compare(arguments[0], [ast.Is()], [ast.Constant(None)])
    if name == "assertAlmostEqual" and len(arguments) == 2:
        difference = ast.Call(
            ast.Name("abs", ast.Load()), [ast.BinOp(arguments[0], ast.Sub(), arguments[1])], []
        )
        return ast.Compare(difference, [ast.Lt()], [ast.Constant(1e-7)])
    return None


def _is_usable(test: ast.expr, entry_point: str) -> bool:
    """It calls the function, uses nothing that is not Python's, and is not true of every function."""
    bound = {n.id for n in ast.walk(test) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in ast.walk(test) if isinstance(n, ast.arg)}
    known = ({name for name in dir(builtins)} - _FORBIDDEN) | _ALLOWED_MODULES | bound | {entry_point}
    for node in ast.walk(test):
        if isinstance(node, ast.Name) and node.id not in known:
            return False
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            return False
        if isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom):
            return False
    calls = any(
        isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == entry_point
        for n in ast.walk(test)
    )
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        calls = calls and ast.dump(test.left) != ast.dump(test.comparators[0])
    return calls and not isinstance(test, ast.Tuple)  # a tuple is always true


def _subject(test: ast.expr) -> ast.expr:
    """What the test is about: of ``f(1) == 2`` it is ``f(1)``, so that ``f(1) == 3`` is recognised."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        sides = [test.left, test.comparators[0]]
        return next((side for side in sides if isinstance(side, ast.Call)), test)
    return test


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node
