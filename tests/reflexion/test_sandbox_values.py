"""Objects, exceptions and values of the code, as the tests see them: as in one process, or refused."""

from ai_learning.reflexion import run_python


def passes(code: str, tests: str) -> None:
    """Right code passes right tests."""
    result = run_python(code, tests=tests)
    assert result.passed, result.error


def fails(code: str, tests: str, error: str) -> None:
    """Wrong code does not, and is told why."""
    result = run_python(code, tests=tests)
    assert not result.passed and error in result.error, result


def test_times_with_zones_paths_views_and_uuids_are_copied() -> None:
    code = """
from datetime import datetime, timezone, timedelta, time
from pathlib import Path, PurePosixPath
import uuid
def d():
    named = timezone(timedelta(hours=2), 'X')
    dates = [datetime(2024, 1, 2, tzinfo=zone) for zone in (timezone.utc, named)]
    return (*dates, time(1, tzinfo=timezone.utc))
def p():
    return (Path('a/b'), PurePosixPath('/x'))
def k():
    return {'a': 1}.keys()
def u():
    return uuid.UUID(int=5)
def echo(x):
    return x
class Z:
    def __repr__(self):
        return '3'
"""
    tests = """
from datetime import datetime, timezone, timedelta, time
from pathlib import Path, PurePosixPath
import uuid
a, b, c = d()
assert a == datetime(2024, 1, 2, tzinfo=timezone.utc)
assert a.tzinfo is timezone.utc
assert b.tzname() == 'X'
assert b.utcoffset() == timedelta(hours=2)
assert c == time(1, tzinfo=timezone.utc)
assert p() == (Path('a/b'), PurePosixPath('/x'))
assert k() == {'a'}
assert u() == uuid.UUID(int=5)
assert echo({1: 2}.items()) == {(1, 2)}
"""
    passes(code, tests)


def test_an_object_that_only_looks_like_the_value_is_named_so() -> None:
    fails(
        "class Z:\n    def __repr__(self):\n        return '3'\ndef f():\n    return Z()",
        "assert f() == 3",
        "got 3, expected 3 (they only look alike: an object of the code's own class equals no plain value)",
    )
