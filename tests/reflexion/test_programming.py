"""Programming tasks: both formats, what is hidden stays hidden, pass@k, tests that a model wrote."""

import gzip
import itertools
import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.reflexion.tasks.base import Attempt, ProgrammingTask
from ai_learning.reflexion.tasks.programming import (
    ProgramTask,
    evaluate_samples,
    pass_at_k,
    read_humaneval,
    read_mbpp,
)
from ai_learning.reflexion.unit_tests import parse_tests, run_tests

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "from typing import List\n\n\ndef helper(x):\n    return x + 1\n\n\n"
    'def raised(numbers: List[int]) -> List[int]:\n    """ Each number, plus one\n'
    '    >>> raised([1])\n    [2]\n    """\n',
    "entry_point": "raised",
    "canonical_solution": "    return [helper(n) for n in numbers]\n",
    "test": "\n\nMETADATA = {'author': 'x'}\n\n\ndef check(candidate):\n    assert candidate([41]) == [42]\n"
    "    assert candidate([]) == []\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a python function to remove the first and last occurrence of a given character.",
    "code": "import re\r\n\r\ndef helper(x):\r\n    return x\r\n\r\ndef remove_Occ(s, ch='l'):\r\n"
    "    i, j = s.find(ch), s.rfind(ch)\r\n    return s[:i] + s[i + 1:j] + s[j + 1:]",
    "test_list": [
        'assert remove_Occ("hello","l") == "heo"',
        'assert remove_Occ("abcda","a") == "bcd"',
        'assert remove_Occ("PHP","P") == "H"',
    ],
    "test_setup_code": "",
    "challenge_test_list": ['assert remove_Occ("hellolloll","l") == "helollol"'],
}


def write(path: Path, rows: list[dict]) -> Path:
    text = "\n".join(map(json.dumps, rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(json.dumps(rows) if path.suffix == ".json" else text)
    return path


@pytest.mark.parametrize("name", ["HumanEval.jsonl", "HumanEval.jsonl.gz", "humaneval.json"])
def test_humaneval(tmp_path: Path, name: str) -> None:
    (task,) = read_humaneval(write(tmp_path / name, [HUMANEVAL]))
    assert isinstance(task, ProgrammingTask)
    assert (task.id, task.entry_point, task.prompt) == ("HumanEval/0", "raised", HUMANEVAL["prompt"])
    right = [
        "    return [helper(n) for n in numbers]\n",  # a continuation, as base models write it
        "def raised(numbers: List[int]) -> List[int]:\n    return [helper(n) for n in numbers]",
        "from typing import List\ndef raised(numbers):\n    return [n + 1 for n in numbers]",
        task.solution,
    ]
    for answer in right:
        verdict = task.evaluate(Attempt(answer=answer))
        assert verdict.success and verdict.truth, task.run(answer).error
    for answer in ("", "    return numbers\n", "def raised(n): return", "def raised(n) return n", "nonsense"):
        verdict = task.evaluate(Attempt(answer=answer))
        assert not verdict.success
        assert "41" not in verdict.feedback and "42" not in verdict.feedback


def test_mbpp(tmp_path: Path) -> None:
    (task,) = read_mbpp(write(tmp_path / "mbpp.jsonl", [MBPP]))
    assert (task.id, task.entry_point) == ("MBPP/11", "remove_Occ")
    assert task.prompt == f'def remove_Occ(s, ch=\'l\'):\n    """{MBPP["text"]}\n    """\n'
    assert task.evaluate(Attempt(answer=task.solution)).success
    assert not task.evaluate(Attempt(answer="def remove_Occ(s, ch): return s")).success
    only_visible = "def remove_Occ(s, ch):\n    return {'hello': 'heo', 'abcda': 'bcd', 'PHP': 'H'}[s]"
    assert not task.evaluate(Attempt(answer=only_visible)).success  # the challenge tests count
    (shown,) = read_mbpp(write(tmp_path / "mbpp.json", [MBPP]), shown_tests=1)
    assert MBPP["test_list"][0] in shown.prompt and MBPP["test_list"][0] not in shown.hidden_tests
    assert MBPP["test_list"][1] not in shown.prompt and MBPP["test_list"][1] in shown.hidden_tests
    sanitized = {k: v for k, v in MBPP.items() if k not in ("text", "test_setup_code", "challenge_test_list")}
    sanitized |= {"prompt": MBPP["text"], "test_imports": ["import math"]}
    (task,) = read_mbpp(write(tmp_path / "sanitized.json", [sanitized]))
    assert task.evaluate(Attempt(answer=task.solution)).success


def test_hidden_tests_are_in_nothing_that_is_shown(tmp_path: Path) -> None:
    for task in (
        *read_humaneval(write(tmp_path / "a.jsonl", [HUMANEVAL])),
        *read_mbpp(write(tmp_path / "b.jsonl", [MBPP])),
    ):
        verdict = task.evaluate(Attempt(answer="def nothing(): pass"))
        shown = f"{task.prompt}{task!r}{verdict}"
        assert "assert" not in shown and "heo" not in shown and "candidate" not in shown
        assert task.solution not in shown


def test_an_answer_cannot_read_the_hidden_tests(tmp_path: Path) -> None:
    (task,) = read_humaneval(write(tmp_path / "a.jsonl", [HUMANEVAL]))
    thief = """
import gc
def raised(numbers):
    for thing in gc.get_objects():
        if isinstance(thing, dict):
            print([v for v in list(thing.values()) if isinstance(v, str) and "METADATA =" in v])
    return []
"""
    result = task.run(thief)
    assert not result.passed and "author" not in result.stdout and "42" not in result.stdout


@pytest.mark.parametrize(
    ("reader", "change", "message"),
    [
        (read_humaneval, {"prompt": None}, "row 2: it needs the text `prompt`"),
        (read_humaneval, {"test": "def check(:"}, "row 2: `test` is not Python"),
        (read_humaneval, {"entry_point": "other"}, "row 2: `prompt` does not begin the function 'other'"),
        (read_humaneval, {}, "2 tasks are called 'HumanEval/0'"),
        (read_mbpp, {"test_list": []}, "row 2: it needs `text`"),
        (read_mbpp, {"code": "def f(:"}, "row 2: `code` is not Python"),
        (read_mbpp, {"code": "x = 1"}, "row 2: its tests call none of the functions in `code`"),
        (read_mbpp, {}, "2 tasks are called 'MBPP/11'"),
    ],
)
def test_bad_rows(tmp_path: Path, reader: object, change: dict, message: str) -> None:
    row = HUMANEVAL if reader is read_humaneval else MBPP
    path = write(tmp_path / "rows.jsonl", [row, {**row, **change}])
    with pytest.raises(InputError, match=message):
        reader(path)  # type: ignore[operator]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file at"):
        read_humaneval(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="holds no task"):
        read_humaneval(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(InputError, match="leaves none of its 3 tests hidden"):
        read_mbpp(write(tmp_path / "m.jsonl", [MBPP]), shown_tests=3)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_is_unbiased_where_the_plain_estimate_is_not() -> None:
    generator, p, k, n = random.Random(0), 0.1, 5, 10
    counts = [sum(generator.random() < p for _ in range(n)) for _ in range(20000)]
    truth = 1 - (1 - p) ** k
    assert math.fsum(pass_at_k(n, c, k) for c in counts) / len(counts) == pytest.approx(truth, abs=0.01)
    plain = math.fsum(1 - (1 - c / n) ** k for c in counts) / len(counts)
    assert abs(plain - truth) > 0.02
    assert pass_at_k(10, 3, 1) == 0.3 and pass_at_k(5, 0, 5) == 0 and pass_at_k(200, 1, 200) == 1
    for bad in ((3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)):
        with pytest.raises(InputError):
            pass_at_k(*bad)


def test_samples_are_evaluated_as_humaneval_does_it() -> None:
    tasks = [
        ProgramTask(
            f"t/{n}", f"def f{n}(x):\n", f"f{n}", f"def check(candidate):\n    assert candidate(2) == {n}\n"
        )
        for n in (1, 2)
    ]
    samples = [
        {"task_id": f"t/{n}", "completion": f"    return {value}\n"} for n in (1, 2) for value in (1, 3)
    ]
    assert evaluate_samples(tasks, samples, ks=(1, 2, 10)) == {"pass@1": 0.25, "pass@2": 0.5}
    with pytest.raises(InputError, match="task 't/2' has no sample"):
        evaluate_samples(tasks, samples[:2])
    with pytest.raises(InputError, match="which is not among the 1 tasks"):
        evaluate_samples(tasks[:1], samples)


ANSWER = """
Here are some tests:

```python
import os
assert add(1, 2) == 3
assert add(1, 2) == 3, "again"
assert add( 1,2 )==3
assert add(1, 2) == 4
assert add(0, 0) == add(0, 0)
assert sub(1) == 1
assert (add(1, 1) == 2, "a tuple is true")
assert 1 + 1 == 2
assert os.system("x") == add(1, 1)
assert add.__globals__ is None
assert eval("add(1, 1)") == add(1, 1)
assert -3 == add(-5, 2)
assert abs(add(0.1, 0.2) - 0.3) < 1e-9
assert all(add(x, 0) == x for x in range(3))
assert math.isclose(add(0.5, 0.5), 1)

def check(candidate):
    assert candidate("a", "b") == "ab"

class TestAdd(unittest.TestCase):
    def test_lists(self):
        self.assertEqual(add([1], [2]), [1, 2])
        self.assertTrue(add(1, 1))
        self.assertRaises(TypeError, add)
```
"""


def test_tests_of_a_model_are_filtered() -> None:
    tests = parse_tests(ANSWER, "add")
    assert tests == [
        "assert add(1, 2) == 3",
        "assert -3 == add(-5, 2)",
        "assert abs(add(0.1, 0.2) - 0.3) < 1e-09",
        "assert all((add(x, 0) == x for x in range(3)))",
        "assert math.isclose(add(0.5, 0.5), 1)",
        "assert add('a', 'b') == 'ab'",
        "assert add([1], [2]) == [1, 2]",
        "assert add(1, 1)",
    ]
    assert parse_tests(ANSWER, "add", 2) == tests[:2]
    assert run_tests("def add(a, b): return a + b", tests).passed


def test_lines_count_where_the_answer_does_not_parse() -> None:
    answer = """Sure! The tests are
1. assert f(1) == 2
2. assert f((1, 2)) == [
    1,
    2,
]
- `assert f(0) == 0`
assert f(1, == 2
    assert f(5) == 6
assert f("cut off"
"""
    assert parse_tests(answer, "f") == [
        "assert f(1) == 2",
        "assert f((1, 2)) == [1, 2]",
        "assert f(0) == 0",
        "assert f(5) == 6",
    ]


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text(alphabet="assert f(1)=\n`'\"[]:,x ").map(lambda t: "assert f(" + t))
def test_any_answer_gives_valid_tests(answer: str) -> None:
    tests = parse_tests(answer, "f", 5)
    assert len(set(tests)) == len(tests) <= 5
    for test in tests:
        compile(test, "test", "exec")


def test_feedback_names_what_passed_and_what_failed_with_values() -> None:
    tests = ["assert f(2) == 4", "assert f(3) == 9", "assert f(0) == 1", "assert f('a') == 1"]
    outcome = run_tests("def f(x):\n    return x * 2", tests)
    assert not outcome.passed
    assert outcome.errors[0] == "" and all(outcome.errors[1:])
    assert outcome.feedback == (
        "Tests passed:\nassert f(2) == 4\n\nTests failed:\nassert f(3) == 9: got 6, expected 9\n"
        "assert f(0) == 1: got 0, expected 1\nassert f('a') == 1: got 'aa', expected 1"
    )
    loop = run_tests("def f(x):\n    while x == 3: pass\n    return x * x", tests[:2], timeout_s=0.5)
    assert loop.errors[0] == "" and "timed out after 0.5 s" in loop.errors[1]
    broken = run_tests("def f(x) return x", tests[:1])
    assert "SyntaxError" in broken.feedback
    assert not run_tests("def f(x): return x", []).passed
