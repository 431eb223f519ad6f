"""What a run gives back: values, errors that teach, every shape of tests, and refusals."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.reflexion import run_python
from ai_learning.reflexion.isolation.limits import Limits
from ai_learning.reflexion.isolation.supervisor import _removal
from ai_learning.reflexion.isolation.wire import Decoder, Encoder, WireError
from ai_learning.reflexion.sandbox import Sandbox, SandboxError

ADD = "def add(a, b):\n    return a + b\n"


def test_a_program_without_tests() -> None:
    result = run_python("import sys\nprint('é', 1)\nprint('oops', file=sys.stderr)")
    assert (result.passed, result.stdout, result.stderr, result.error) == (True, "é 1\n", "oops\n", "")
    assert (result.timed_out, result.exit_code, result.truncated) == (False, 0, False)


def test_threads_and_exit_functions_belong_to_the_program() -> None:
    code = """
import atexit, threading, time
atexit.register(print, "bye")
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
print("main")
"""
    assert run_python(code).stdout == "main\nthread\nbye\n"


@pytest.mark.parametrize(
    ("code", "tests", "error"),
    [
        ("def add(a, b): return a - b", "assert add(1, 2) == 3", "assert add(1, 2) == 3: got -1, expected 3"),
        (ADD, "assert add(1, 2) == 3\nassert 4 == add(1, 2)", "assert 4 == add(1, 2): got 3, expected 4"),
        (ADD, "assert add(1, 2) > 5, 'too small'", "assert add(1, 2) > 5: left is 3, right is 5 (too small)"),
        (ADD, "x = 5\nassert not add(0, x)", "assert not add(0, x): got 5"),
        (ADD, "assert add('', '')", "assert add('', ''): got ''"),
        (ADD, "assert add(1) == 1", "in `assert add(1) == 1`: TypeError: add() missing 1 required"),
        (
            "def f(x):\n    return 1 / x",
            "assert f(1) == 1\nf(0)",
            "in `f(0)`: ZeroDivisionError: division by zero (line 2 in f: return 1 / x)",
        ),
        (ADD, "assert mul(1, 2) == 2", "NameError: name 'mul' is not defined"),
        ("def add(a, b)\n    return a", "assert add(1, 2)", "SyntaxError: expected ':' (<code>, line 1)"),
        ("x = 1\ny = x / 0", "assert x", "ZeroDivisionError: division by zero (line 2: y = x / 0)"),
        (ADD, "assert add(1, 2) ==", "the tests do not parse: invalid syntax (line 1)"),
        ("raise SystemExit", "", "the code called sys.exit(None) before its end"),
        ("import sys; sys.exit('bad input')", "", "the code called sys.exit('bad input') before its end"),
        ("import os; os._exit(7)", "", "the code ended its process (exit code 7) before its end"),
        ("import ctypes; ctypes.string_at(0)", "", "the code was killed by SIGSEGV"),
    ],
)
def test_errors_name_what_failed_and_the_values(code: str, tests: str, error: str) -> None:
    result = run_python(code, tests=tests)
    assert not result.passed and not result.timed_out
    assert error in result.error
    assert "\n" not in result.error


@pytest.mark.parametrize("error", ["EOFError", "ConnectionResetError", "BrokenPipeError", "OSError"])
def test_exceptions_that_a_channel_raises_too_are_the_code_s_own(error: str) -> None:
    tests = (
        f"try:\n    f()\nexcept {error} as error:\n    assert str(error) == 'mine'\nelse:\n    assert False"
    )
    result = run_python(f"def f():\n    raise {error}('mine')", tests=tests)
    assert result.passed, result.error


HUMANEVAL = """

METADATA = {'author': 'jt', 'dataset': 'test'}


def check(candidate):
    assert candidate([1.0, 2.0, 3.0], 0.5) == False
    assert candidate([1.0, 2.8, 3.0, 4.0, 5.0, 2.0], 0.3) == True
    assert abs(candidate([1.0], 2.0) - 0) < 1e-6

"""
CLOSE = """
from typing import List

def has_close_elements(numbers: List[float], threshold: float) -> bool:
    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])
"""


@pytest.mark.parametrize("ending", ["", "\ncheck(has_close_elements)\n"])
def test_humaneval_tests(ending: str) -> None:
    assert run_python(CLOSE, tests=HUMANEVAL + ending, entry_point="has_close_elements").passed
    wrong = run_python(CLOSE.replace("<", ">"), tests=HUMANEVAL + ending, entry_point="has_close_elements")
    assert wrong.error == (
        "assert has_close_elements([1.0, 2.0, 3.0], 0.5) == False: got True, expected False"
    )


def test_unittest_and_pytest_shapes() -> None:
    case = """
import unittest

class TestAdd(unittest.TestCase):
    def setUp(self):
        self.one = 1
    def test_numbers(self):
        self.assertEqual(add(self.one, 2), 3)
    def test_types(self):
        with self.assertRaises(TypeError):
            add(1, "2")

def test_function():
    assert add("a", "b") == "ab"

if __name__ == "__main__":
    unittest.main()
"""
    assert run_python(ADD, tests=case).passed
    wrong = run_python(ADD.replace("a + b", "a * b"), tests=case)
    assert not wrong.passed and "test_function" not in wrong.error and "'ab'" not in wrong.error
    assert "can't multiply" in wrong.error
    wrong = run_python(ADD.replace("a + b", "str(a) + str(b)"), tests=case)
    assert "TestAdd.test_numbers" in wrong.error and "'12' != 3" in wrong.error
    assert not run_python(ADD, tests=case + "\nunittest.main()\nassert add(1, 1) == 3").passed


def test_code_with_classes_generators_callbacks_and_mutation() -> None:
    code = """
from collections import namedtuple, Counter
from dataclasses import dataclass
from enum import Enum, IntEnum
from fractions import Fraction

Point = namedtuple("Point", "x y")
class Colour(Enum):
    RED = 1
class Size(IntEnum):
    BIG = 3
class OwnError(ValueError):
    pass
class Worse(OwnError):
    pass
@dataclass
class Vector:
    x: int
    y: int = 0
    def __add__(self, other):
        return Vector(self.x + other.x, self.y + other.y)
class Stack:
    def __init__(self):
        self.items = []
    def push(self, item):
        self.items.append(item)
    def pop(self):
        if not self.items:
            raise Worse("empty", 3)
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.items.clear()
def count(n):
    yield from range(n)
def apply(function, *values, **named):
    return [function(value, **named) for value in values]
def sort(values):
    values.sort()
def total(values):
    return sum(values)
def echo(value):
    return value
def point():
    return Point(1, 2)
def nested():
    def adder(n):
        return lambda x: x + n
    return adder
calls = 0
def counted():
    global calls
    calls += 1
def half():
    return Fraction(1, 2)
def letters(text):
    return Counter(text)
def tree(node):
    node.left.value = node.value + 1
    return node.left
"""
    tests = """
import functools, math, operator
from fractions import Fraction
s = Stack()
s.push([1, 2])
assert len(s) == 1 and s.pop() == [1, 2] and not s
try:
    s.pop()
except OwnError as error:
    assert error.args == ("empty", 3)
else:
    assert False, "no exception"
with s as same:
    same.push(3)
assert s is same and s.items == []
assert isinstance(s, Stack) and not isinstance(3, Stack) and not isinstance(point(), Stack)
assert list(count(4)) == [0, 1, 2, 3] and next(count(1)) == 0 and 2 in count(5)
assert apply(lambda x, k=1: x + k, 1, 2, k=5) == [6, 7]
assert apply(len, "ab") == [2] and apply(str, 1) == ["1"] and apply(math.sqrt, 4.0) == [2.0]
assert apply(functools.partial(operator.add, 1), 1) == [2]
values = [3, 1, 2]
assert sort(values) is None and values == [1, 2, 3]
assert echo(values) is values
loop = [1]; loop.append(loop)
assert echo(loop)[1][1][0] == 1
assert total(x * x for x in range(4)) == 14
assert point() == (1, 2) and point().y == 2 and point() == Point(1, 2)
assert point()._asdict() == {"x": 1, "y": 2}
assert Colour.RED is Colour.RED and Colour(1) == Colour.RED and Colour.RED.value == 1 and Size.BIG == 3
assert Vector(1) + Vector(2, 3) == Vector(3, 3) and repr(Vector(1)) == "Vector(x=1, y=0)"
assert nested()(2)(3) == 5
counted(); counted()
assert calls == 2
assert half() == Fraction(1, 2) == 0.5 and letters("aab")["a"] == 2
odd = [1 << 5000, -0.0, float("inf"), 1j, b"\\xff", {(1, 2): {3}}, frozenset({1})]
odd += [range(3), None, ..., "\\ud800"]
for value in odd:
    assert echo(value) == value and type(echo(value)) is type(value)
assert math.isnan(echo(float("nan"))) and math.copysign(1, echo(-0.0)) == -1
class Node:
    def __init__(self, value, left=None):
        self.value, self.left = value, left
root = Node(1, Node(5))
assert tree(root) is root.left and root.left.value == 2
"""
    result = run_python(code, tests=tests)
    assert result.passed, result.error


def test_values_nested_deeply_and_functions_that_recurse() -> None:
    code = """
def nest(n):
    value = []
    for _ in range(n): value = [value]
    return value
def depth(n):
    return depth(n + 1)
"""
    tests = """
value, n = nest(900), 0
while value:
    value, n = value[0], n + 1
assert n == 900
try:
    depth(0)
except RecursionError:
    pass
else:
    assert False, "it ended"
"""
    result = run_python(code, tests=tests)
    assert result.passed, result.error


def test_tests_may_redirect_input_and_output() -> None:
    code = "def main():\n    n = int(input('n? '))\n    print(n * 2)"
    tests = """
import io, contextlib, sys
sys.stdin = io.StringIO("21\\n")
with contextlib.redirect_stdout(io.StringIO()) as out:
    main()
assert out.getvalue() == "n? 42\\n"
"""
    result = run_python(code, tests=tests)
    assert result.passed, result.error
    assert "42" not in result.stdout


def test_names_of_python_stay_python_s_unless_they_are_under_test() -> None:
    assert run_python("def sum(a, b): return a + b", tests="assert sum(1, 2) == 3").passed
    code = "def abs(x): return 0\ndef f(x): return 99"
    assert not run_python(code, tests="assert abs(f(1) - 0.5) < 1e-6").passed
    assert run_python("import math\ndef f(): return math.pi", tests="assert f() == math.pi").passed
    fake = "class math:\n    fabs = staticmethod(lambda x: 0)\ndef f(): return 99"
    assert not run_python(fake, tests="assert math.fabs(f() - 0.5) < 1e-6").passed


def test_each_run_is_fresh() -> None:
    leave = "import builtins, os\nbuiltins.left = 1\nopen('left', 'w').write('x')\nprint(os.listdir('.'))"
    assert run_python(leave).stdout == "['left']\n"
    assert run_python("import os, builtins\nprint(os.listdir('.'), hasattr(builtins, 'left'))").stdout == (
        "[] False\n"
    )


def test_timeouts_name_the_test_and_come_in_time() -> None:
    started = time.monotonic()
    result = run_python(
        "def f(n):\n    print('before', n)\n    while n: pass", tests="f(0)\nassert f(1) == 2", timeout_s=0.5
    )
    assert result.timed_out and not result.passed
    assert result.error == "timed out after 0.5 s, in: assert f(1) == 2"
    assert result.stdout == "before 0\nbefore 1\n"
    assert time.monotonic() - started < 5


def test_concurrent_runs_from_threads_do_not_mix() -> None:
    def one(number: int) -> str:
        return run_python(f"import time; time.sleep(0.05); print({number})", timeout_s=30).stdout

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(24))) == [f"{n}\n" for n in range(24)]


def test_a_run_beside_torch_threads_and_after_a_fork() -> None:
    import torch

    torch.set_num_threads(2)
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            torch.randn(200, 200) @ torch.randn(200, 200)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        assert run_python(ADD, tests="assert add(1, 2) == 3", timeout_s=30).passed
    finally:
        stop.set()
        thread.join()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_in_a_child, [1, 2]) == ["1\n", "2\n"]
    assert run_python("print(3)").stdout == "3\n"


def _in_a_child(number: int) -> str:
    return run_python(f"print({number})", timeout_s=30).stdout


@pytest.mark.parametrize(
    "end", ["sys.exit(main())", "sys.exit(0)", "unittest.main()", "raise SystemExit(False)"]
)
def test_a_program_that_ends_in_an_exit_is_judged_by_its_tests(end: str) -> None:
    case = "class T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 1), 2)\n"
    code = f"import sys, unittest\n{ADD}{case}def main(): pass\nif __name__ == '__main__':\n    {end}\n"
    assert run_python(code, tests="assert add(1, 2) == 3").passed
    wrong = run_python(code, tests="assert add(1, 2) == 4")
    assert wrong.error == "assert add(1, 2) == 4: got 3, expected 4"
    alone = run_python(code)
    assert not alone.passed and alone.exit_code == 0 and type(alone.exit_code) is int
    assert not run_python("import sys\nsys.exit(0)\n" + ADD, tests="assert add(1, 2) == 3").passed
    failed = run_python(code.replace(end, "sys.exit(3)"), tests="assert add(1, 2) == 3")
    assert not failed.passed and failed.exit_code == 3


def test_a_large_folder_is_deleted_step_by_step_and_goes_on_after_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for _ in range(50):
        os.mkdir("d")
        Path("file").write_text("")
        os.chdir("d")
    monkeypatch.undo()
    removal = _removal(str(folder))
    for _ in range(30):
        next(removal)
    assert folder.exists()
    for _ in removal:
        pass
    assert not folder.exists() and list(tmp_path.iterdir()) == []


def test_the_fork_server_is_started_again_when_somebody_kills_it() -> None:
    sandbox = Sandbox()
    assert sandbox.run("print(1)").stdout == "1\n"
    assert sandbox._process is not None
    sandbox._process.kill()
    sandbox._process.wait()
    assert sandbox.run("print(2)").stdout == "2\n"
    sandbox.close()


def test_nothing_is_left_when_the_caller_is_killed(tmp_path: Path) -> None:
    script = """
import os, sys
from ai_learning.reflexion import run_python
print(os.getpid(), flush=True)
run_python("import time\\nopen('here', 'w')\\nprint('started')\\ntime.sleep(%d)" % 54321, timeout_s=600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(200):
        below = _below(process.pid)
        if len(below) >= 4:  # fork server, supervisor, judge, worker
            break
        time.sleep(0.05)
    assert len(below) >= 4
    process.kill()
    process.wait()
    for _ in range(200):
        if not any(os.path.exists(f"/proc/{pid}") for pid in below):
            break
        time.sleep(0.05)
    assert [pid for pid in below if os.path.exists(f"/proc/{pid}")] == []


def _below(pid: int) -> list[int]:
    try:
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [below for child in children for below in _below(child)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"code": b"x"}, "code must be text, not bytes"),
        ({"code": "", "tests": None}, "tests must be text, not NoneType"),
        ({"code": "", "timeout_s": 0}, "timeout_s=0 must be above 0"),
        ({"code": "", "timeout_s": float("nan")}, "timeout_s=nan must be above 0"),
        ({"code": "", "memory_mb": 1}, "memory_mb=1 is too little for Python: give at least 16"),
        ({"code": "#" * (65 << 20)}, "code and tests must be under 64 MB"),
    ],
)
def test_bad_input(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match="^" + message):
        run_python(**arguments)


@pytest.mark.parametrize(
    "code", ["", "\0", "x = '\ud800'", "\ufeffx = 1", "# -*- coding: latin-1 -*-\nx = 1"]
)
def test_odd_code_is_a_result(code: str) -> None:
    result = run_python(code)
    assert result.passed == (not result.error)


def test_code_is_refused_where_the_machine_cannot_hold_it() -> None:
    weak = Sandbox(without=("namespaces", "bubblewrap", "landlock"))
    with pytest.raises(
        SandboxError, match="no namespaces: left out on request; no landlock: left out on request"
    ):
        weak.run("print(1)")
    result = weak.run("print(1)", allow_unsafe=True)
    assert (result.stdout, result.isolation) == ("1\n", ("seccomp", "limits"))
    weak.close()


def test_limits_can_be_chosen() -> None:
    small = Limits(stdout_kb=1, output_mb=1)
    result = run_python("print('x' * 5000)", limits=small)
    assert result.passed and result.truncated and len(result.stdout) == 1024
    assert run_python("print('x' * 5_000_000)", limits=small).error == "wrote more than 1 MB of output"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.integers(1 << 63, 1 << 90) | st.complex_numbers(allow_nan=False) | st.fractions() | st.datetimes(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)
    | st.frozensets(st.integers()) | st.sets(st.text()) | st.binary().map(bytearray),
    max_leaves=10,
)  # fmt: skip


def types(value: object) -> object:
    """The types all the way down."""
    if isinstance(value, dict):
        return dict, {key: types(item) for key, item in value.items()}
    return type(value), [types(item) for item in value] if isinstance(value, list | tuple) else None


def refuse(tree: object) -> None:
    raise WireError(f"not plain: {tree}")


@settings(deadline=None, max_examples=60)
@given(PLAIN)
def test_plain_values_survive_the_wire(value: object) -> None:
    import json

    back = Decoder(refuse)(json.loads(json.dumps(Encoder(refuse)(value))))
    assert back == value and types(back) == types(value)


TREES = st.recursive(
    st.none() | st.integers() | st.text(max_size=6)
    | st.sampled_from(["list", "dict", "set", "same", "int", "library", "Fraction", "range", "bytes"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(TREES)
def test_nonsense_on_the_wire_is_refused_or_plain(tree: object) -> None:
    with contextlib.suppress(WireError):
        Decoder(refuse)(tree)
