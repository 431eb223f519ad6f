"""Objects, exceptions and values of the code, as the tests see them: as in one process, or refused."""

import pytest

from ai_learning.reflexion import run_python


def passes(code: str, tests: str) -> None:
    """Right code passes right tests."""
    result = run_python(code, tests=tests)
    assert result.passed, result.error


def fails(code: str, tests: str, error: str) -> None:
    """Wrong code does not, and is told why."""
    result = run_python(code, tests=tests)
    assert not result.passed and error in result.error, result


def test_in_asks_the_class_and_else_compares_what_it_yields() -> None:
    code = """
class Evens:
    def __contains__(self, number):
        return number % 2 == 0
class Bag:
    def __init__(self):
        self.items = [1]
    def __iter__(self):
        return iter(self.items)
    def __contains__(self, item):
        return True
class Numbers:
    def __getitem__(self, index):
        if index > 3:
            raise IndexError
        return index
class Same:
    def __eq__(self, other):
        return True
def count():
    yield from [1, 2]
def same():
    yield Same()
"""
    tests = """
assert 2 in Evens() and 3 not in Evens()
assert 2 in count() and 5 not in count()
assert 3 in Numbers() and 4 not in Numbers()
assert 1 in Bag()
"""
    passes(code, tests)
    fails(code, "assert 2 not in Bag()", "assert 2 not in Bag()")
    fails(code, "assert 2 in same()", "assert 2 in same()")


def test_objects_that_are_numbers_convert_and_calculate_with_their_own_kind() -> None:
    code = """
class N:
    def __init__(s, v):
        s.v = v
    def __int__(s):
        return int(s.v)
    def __float__(s):
        return float(s.v)
    def __index__(s):
        return int(s.v)
    def __round__(s, n=None):
        return round(s.v, n)
    def __pos__(s):
        return N(+s.v)
    def __invert__(s):
        return N(~s.v)
    def __format__(s, f):
        return format(s.v, f)
    def __bytes__(s):
        return bytes([s.v])
    def __reversed__(s):
        return iter([3, 2, 1])
    def __trunc__(s):
        return 9
    def __iadd__(s, o):
        s.v += o.v
        return s
    def __divmod__(s, o):
        return divmod(s.v, o.v)
    def __and__(s, o):
        return s.v & o.v
"""
    tests = """
import math
n = N(2)
assert int(n) == 2
assert float(n) == 2.0
assert round(n) == 2
assert round(N(2.55), 1) in (2.5, 2.6)
assert (+n).v == 2
assert (~n).v == -3
assert format(n, '03d') == '002'
assert f'{n:d}' == '2'
assert bytes(n) == b'\\x02'
assert list(reversed(n)) == [3, 2, 1]
assert [5, 6, 7][n] == 7
assert list(range(n)) == [0, 1]
assert math.trunc(n) == 9
assert math.isclose(n, 2.0)
m = n
m += N(5)
assert m is n
assert n.v == 7
assert divmod(n, N(2)) == (3, 1)
assert n & N(3) == 3
import copy
assert copy.copy(n).v == 7
assert copy.deepcopy(n) is not n
try:
    n + 1
except TypeError:
    pass
else:
    assert False
"""
    passes(code, tests)


def test_a_with_block_tells_the_exception_and_the_code_may_swallow_it() -> None:
    code = """
class Tx:
    def __init__(s):
        s.state = 'open'
        s.seen = None
    def __enter__(s):
        return s
    def __exit__(s, kind, value, tb):
        s.seen = (kind, value.args if value else None, tb)
        s.state = 'rolled back' if kind else 'committed'
        return True
class Own(ValueError):
    pass
def boom():
    raise Own('x', 3)
def is_own(kind):
    return kind is Own
import contextlib
@contextlib.contextmanager
def swallow():
    try:
        yield 5
    except ValueError:
        pass
@contextlib.contextmanager
def keep():
    yield
"""
    tests = """
with Tx() as t:
    pass
assert t.state == 'committed'
with Tx() as t:
    raise KeyError('k')
assert t.state == 'rolled back'
assert t.seen == (KeyError, ('k',), None)
with Tx() as t:
    boom()
assert t.seen[1] == ('x', 3)
assert t.seen[0] is Own
assert is_own(t.seen[0])
class Mine(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b
with Tx() as t:
    raise Mine(1, 2)
assert t.seen[1] == (1,)
assert t.seen[0] is Mine
with swallow() as five:
    raise ValueError('no')
try:
    with swallow():
        raise KeyError(1)
except KeyError as e:
    assert e.args == (1,)
else:
    assert False
try:
    with keep():
        raise ZeroDivisionError
except ZeroDivisionError:
    pass
else:
    assert False
"""
    passes(code, tests)


@pytest.mark.parametrize(
    "tests",
    [
        "with T() as x:\n    assert x == 4, 'expected 4'",
        "with T() as x:\n    assert x.value - 4 == 0",
        "import unittest\nclass C(unittest.TestCase):\n    def test(self):\n"
        "        with T() as x:\n            self.assertEqual(x, 4)",
        "import unittest\nclass C(unittest.TestCase):\n    def test(self):\n"
        "        with T() as x:\n            self.assertAlmostEqual(x.value, 4)",
    ],
)
def test_a_with_block_does_not_swallow_a_failed_test_nor_learn_its_values(tests: str) -> None:
    code = """
class T(int):
    def __new__(cls):
        return super().__new__(cls, 3)
    def __enter__(self):
        return self
    def __exit__(self, kind, error, trace):
        print("told", kind, error.args)
        return True
"""
    result = run_python(code, tests=tests)
    assert not result.passed and "4" in result.error
    assert result.stdout == "told <class 'AssertionError'> ()\n"


def test_a_callback_s_failed_assert_tells_no_values() -> None:
    code = """
def f(check):
    try:
        check(3)
    except AssertionError as error:
        return error.args
"""
    passes(code, "def check(x):\n    assert x == 4, f'expected {4}'\nassert f(check) == ()")


def test_a_subclass_of_list_is_the_list_as_it_is_now() -> None:
    code = """
class Stack(list):
    def push(self, x):
        self.append(x)
    def append(self, x):
        super().append(x * 2)
"""
    tests = """
s = Stack()
s.push(1)
assert s == [2]
assert [2] == s
assert len(s) == 1
assert s
assert isinstance(s, list)
assert isinstance(s, Stack)
s.append(4)
assert s == [2, 8]
assert s[0] == 2
assert s[-1] == 8
assert list(s) == [2, 8]
assert sorted(s) == [2, 8]
assert sum(s) == 10
assert s + [1] == [2, 8, 1]
assert [1] + s == [1, 2, 8]
assert s * 2 == [2, 8, 2, 8]
assert 2 * s == [2, 8, 2, 8]
assert 8 in s
assert 3 not in s
s[0] = 5
del s[1]
assert s == [5]
assert not s == [6]
assert s != [6]
assert s < [6]
assert repr(s) == '[5]'
assert str(s) == '[5]'
s += [7]
assert s == [5, 7]
assert list(reversed(s)) == [7, 5]
assert s[1:] == [7]
assert s.pop() == 7
assert not Stack()
t = s
t.clear()
assert s == []
assert not s
assert s is t
assert [s] == [[]]
s.extra = 3
assert s.extra == 3
for x in Stack([1, 2]):
    s.append(x)
assert s == [2, 4]
assert s == Stack([2, 4])
assert (s == 3) is False
"""
    passes(code, tests)


def test_the_usual_lru_cache_is_judged_right() -> None:
    code = """
from collections import OrderedDict
class LRUCache(OrderedDict):
    def __init__(self, n):
        super().__init__()
        self.n = n
    def get(self, key):
        if key not in self:
            return -1
        self.move_to_end(key)
        return self[key]
    def put(self, key, value):
        if key in self:
            self.move_to_end(key)
        self[key] = value
        if len(self) > self.n:
            self.popitem(last=False)
"""
    tests = """
c = LRUCache(2)
c.put(1, 1)
c.put(2, 2)
assert c.get(1) == 1
c.put(3, 3)
assert c.get(2) == -1
assert c.get(3) == 3
assert c == {1: 1, 3: 3}
assert list(c) == [1, 3]
assert dict(c) == {1: 1, 3: 3}
assert {**c} == {1: 1, 3: 3}
assert len(c) == 2
from collections import OrderedDict
assert OrderedDict([(1, 1), (3, 3)]) == c
assert OrderedDict([(3, 3), (1, 1)]) != c
assert c != OrderedDict([(3, 3), (1, 1)])
assert list(c.keys()) == [1, 3]
assert c.keys() == {1, 3}
assert list(c.items()) == [(1, 1), (3, 3)]
assert 1 in c
assert 2 not in c
assert isinstance(c, dict)
assert isinstance(c, OrderedDict)
assert c.n == 2
"""
    passes(code, tests)


def test_what_subclasses_of_plain_types_override_is_asked_for() -> None:
    code = """
class M(dict):
    def __missing__(self, k):
        return k * 2
class G(dict):
    def __getitem__(self, k):
        return 42
class Vec(list):
    def __add__(self, o):
        return Vec((a + b for a, b in zip(self, o)))
class V(tuple):
    def __add__(self, o):
        return V((a + b for a, b in zip(self, o)))
    def __neg__(self):
        return V((-a for a in self))
class S(set):
    def __contains__(self, x):
        return super().__contains__(x.lower())
class C(str):
    def shout(self):
        return self.upper() + '!'
    def upper(self):
        return 'UP'
from collections import defaultdict, Counter, deque
class D(defaultdict):
    pass
class Dq(deque):
    def push(self, x):
        self.append(x)
class K(Counter):
    def top(self):
        return self.most_common(1)[0][0]
def dd():
    d = defaultdict(list)
    d['a'].append(1)
    return d
def de():
    n = iter(range(9))
    return defaultdict(lambda: next(n))
def views():
    d = {'a': 1}
    return (d.keys(), d.values(), d.items())
"""
    tests = """
assert M()[2] == 4
assert G(a=1)['zz'] == 42
assert M(a=1) == {'a': 1}
assert Vec([1, 2]) + Vec([3, 4]) == [4, 6]
assert V((1, 2)) + V((3, 4)) == (4, 6)
assert -V((1,)) == (-1,)
for bad in (lambda: Vec([1]) + [1], lambda: V((1,)) + (1,)):
    try:
        bad()
    except TypeError as e:
        assert 'own class' in str(e)
    else:
        assert False
s = S({'a'})
assert 'A' in s
assert s == {'a'}
assert {'b'} | s == {'a', 'b'}
assert s | {'b'} == {'a', 'b'}
assert set(s) == {'a'}
s.add('c')
assert {'a', 'c'} == s
assert set(s) == {'a', 'c'}
assert C('x').shout() == 'UP!'
assert C('x').upper() == 'UP'
assert C('x') == 'x'
assert C('Ab').lower() == 'ab'
assert C('a') + 'b' == 'ab'
assert dd()['zz'] == []
assert dd() == {'a': [1]}
assert de()[1] == 0
d = Dq([1])
d.push(2)
from collections import deque, Counter
assert d == deque([1, 2])
assert deque([1, 2]) == d
assert list(d) == [1, 2]
k = K('aab')
assert k.top() == 'a'
assert k == Counter('aab')
assert Counter('aab') == k
assert k['zz'] == 0
a, b, c = views()
assert a == {'a'}
assert list(b) == [1]
assert ('a', 1) in c
assert c == {('a', 1)}
"""
    passes(code, tests)


def test_the_code_uses_objects_of_the_tests() -> None:
    code = """
def use(manager, box, stack):
    with manager as m:
        inside = m
    stack.append(5)
    stack[0] = 7
    of_stack = (len(stack), list(stack), stack == [7, 5], isinstance(stack, list))
    return (inside, 3 in box, 4 in box, f'{box:x}', *of_stack)
def bad(manager):
    with manager:
        raise KeyError('k')
def sub(s):
    return (s.upper(), s + '!', s.twice())
def hi(v):
    return (hasattr(v, 'nope'), hasattr(v, '_secret'))
"""
    tests = """
class M:
    def __enter__(self):
        return 4
    def __exit__(self, k, v, t):
        self.seen = (k, v.args if v else None)
        return k is KeyError
class Box:
    def __contains__(self, x):
        return x == 3
    def __format__(self, f):
        return f + '!'
class L(list):
    pass
l = L([1])
assert use(M(), Box(), l) == (4, True, False, 'x!', 2, [7, 5], True, True)
assert l == [7, 5]
m = M()
bad(m)
assert m.seen == (KeyError, ('k',))
class S(str):
    def twice(self):
        return self * 2
assert sub(S('a')) == ('A', 'a!', 'aa')
assert hi(Box()) == (False, False)
"""
    passes(code, tests)


def test_classes_as_programs_for_tasks_have_them() -> None:
    code = """
class Matrix:
    def __init__(s, r):
        s.r = r
    def __matmul__(s, o):
        return Matrix([[sum((a * b for a, b in zip(x, y))) for y in zip(*o.r)] for x in s.r])
    def __eq__(s, o):
        return isinstance(o, Matrix) and s.r == o.r
    def __getitem__(s, i):
        return s.r[i]
    def __imul__(s, o):
        s.r = [[5]]
        return s
class Trie(dict):
    def insert(self, w):
        n = self
        for c in w:
            n = n.setdefault(c, Trie())
        n['end'] = True
    def has(self, w):
        n = self
        for c in w:
            if c not in n:
                return False
            n = n[c]
        return n.get('end', False)
class Hist(dict):
    def __init__(self):
        super().__init__()
        self.log = []
    def __setitem__(self, k, v):
        self.log.append(k)
        super().__setitem__(k, v)
class Low(dict):
    def __getitem__(self, k):
        return super().__getitem__(k.lower())
    def __contains__(self, k):
        return super().__contains__(k.lower())
class Obs(list):
    def __init__(self, *a):
        super().__init__(*a)
        self.n = 0
    def append(self, x):
        self.n += 1
        super().append(x)
    def __iter__(self):
        return reversed(list(super().__iter__()))
class Tree(list):
    pass
def cyc():
    t = Tree()
    t.append(t)
    return t
class E(Exception):
    def __init__(s, a, b):
        super().__init__(f'{a}-{b}')
        s.a = a
        s.b = b
def f():
    raise E(1, 2)
history = Obs()
def rec(x):
    history.append(x)
"""
    tests = """
assert Matrix([[1, 2]]) @ Matrix([[3], [4]]) == Matrix([[11]])
assert Matrix([[1]])[0] == [1]
t = Trie()
t.insert('ab')
assert t.has('ab')
assert not t.has('a')
assert 'a' in t
assert t == {'a': {'b': {'end': True}}}
h = Hist()
h['x'] = 1
assert h.log == ['x']
assert h == {'x': 1}
assert h['x'] == 1
assert h.get('y') is None
assert list(h.items()) == [('x', 1)]
l = Low(a=1)
assert l['A'] == 1
assert 'A' in l
assert 'b' not in l
o = Obs([1, 2])
o.append(3)
assert o.n == 1
assert o == [1, 2, 3]
assert list(o) == [3, 2, 1]
c = cyc()
assert c[0] is c
assert len(c) == 1
try:
    f()
except E as e:
    assert (e.a, e.b, str(e), e.args) == (1, 2, '1-2', ('1-2',))
rec(1)
rec(2)
assert history == [1, 2]
assert history.n == 2
import json
assert json.dumps(list(Obs([1]))) == '[1]'
assert sorted([Obs([2]), Obs([1])]) == [[1], [2]]
import unittest
class T(unittest.TestCase):
    def test(self):
        self.assertEqual(Obs([1]), [1])
        self.assertListEqual(list(Trie()), [])
        self.assertIn(1, Obs([1]))
        self.assertIsInstance(Obs(), list)
        self.assertDictEqual(Trie(), {})
        self.assertCountEqual(Obs([1, 2]), [2, 1])
        self.assertTrue(Obs([1]))
        self.assertFalse(Obs())
        with self.assertRaises(E) as c:
            f()
        self.assertEqual(c.exception.a, 1)
        with self.assertRaisesRegex(E, '1-2'):
            f()
"""
    passes(code, tests)


def test_decorators_keep_the_names_of_the_tests_functions() -> None:
    code = """
import functools
def deco(fn):
    @functools.wraps(fn)
    def inner(*a):
        return fn(*a) + 1
    return inner
def peek(fn):
    refused = [hasattr(fn, name) for name in ('__globals__', '__code__', '__closure__')]
    return (*refused, fn.__name__)
"""
    tests = """
@deco
def g(x):
    'says'
    return x
assert g(1) == 2
assert g.__name__ == 'g'
assert g.__doc__ == 'says'
assert g.__module__ == 'tests'
assert g.__qualname__ == 'g'
assert peek(lambda: 1) == (False, False, False, '<lambda>')
class Sig:
    'doc'
    def m(self):
        'method'
assert deco(Sig).__name__ == 'Sig'
assert deco(Sig().m).__doc__ == 'method'
import functools
@functools.wraps(peek)
def w():
    pass
assert w.__name__ == 'peek'
"""
    passes(code, tests)


def test_exceptions_keep_their_attributes_and_words() -> None:
    code = """
class E(Exception):
    kind = 'basic'
    def __init__(self, code, items=()):
        self.code = code
        self.items = list(items)
        self._secret = 1
    @property
    def double(self):
        return self.code * 2
    def __str__(self):
        return f'code {self.code}'
class F(E):
    pass
class G(Exception):
    pass
def f():
    raise E(7, [1])
def g():
    raise F(8)
def h():
    raise G('a', 1)
def back(e):
    return (e.code, type(e) is E, str(e))
def args(e):
    return (e.args, type(e) is ValueError)
def made():
    return (E(3), ValueError('x'))
"""
    tests = """
try:
    f()
except E as e:
    assert e.code == 7
    assert e.items == [1]
    assert str(e) == 'code 7'
    assert e.kind == 'basic'
    assert e.double == 14
    assert not hasattr(e, '_secret')
    assert not hasattr(e, 'zz')
    saved = e
else:
    assert False
assert back(saved) == (7, True, 'code 7')
assert args(ValueError(1)) == ((1,), True)
try:
    g()
except E as e:
    assert e.code == 8
    assert str(e) == 'code 8'
    assert type(e) is F
try:
    h()
except G as e:
    assert str(e) == "('a', 1)"
    assert e.args == ('a', 1)
a, b = made()
assert isinstance(a, E)
assert a.code == 3
assert isinstance(b, ValueError)
assert b.args == ('x',)
"""
    passes(code, tests)


def test_exceptions_of_the_standard_library_are_the_tests_own() -> None:
    code = """
import json, queue, statistics
from dataclasses import dataclass
from decimal import Decimal
@dataclass(frozen=True)
class Point:
    x: int = 1
def parse(text):
    return json.loads(text)
def take():
    queue.Queue().get_nowait()
def mean():
    return statistics.mean([])
def divide(a):
    return Decimal(a) / 0
"""
    tests = """
import decimal, json, queue, statistics, unittest
from dataclasses import FrozenInstanceError
class Errors(unittest.TestCase):
    def test(self):
        with self.assertRaises(json.JSONDecodeError) as caught:
            parse("[1,")
        self.assertEqual((caught.exception.pos, caught.exception.doc), (3, "[1,"))
        self.assertIn("line 1 column 4", str(caught.exception))
        with self.assertRaises(FrozenInstanceError):
            Point().x = 2
        with self.assertRaises(queue.Empty):
            take()
        with self.assertRaises(statistics.StatisticsError):
            mean()
        with self.assertRaises(decimal.DivisionByZero):
            divide(1)
"""
    passes(code, tests)


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
