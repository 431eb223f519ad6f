"""Test code rewritten so that a failed assert tells its values, as pytest does it."""

import ast
import builtins
import reprlib
from typing import Any

FILE = "<tests>"
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 300
_repr.maxlist = _repr.maxtuple = _repr.maxdict = _repr.maxset = _repr.maxfrozenset = 30
_repr.maxlong = 120
_repr.maxlevel = 8


class TestFailedError(AssertionError):
    """An assert of the tests that does not hold."""

    def __init__(self, number: int, values: tuple[Any, ...], message: Any) -> None:
        super().__init__(message)
        self.number = number
        self.values = values
        self.message = message


class Tests:
    """Parsed tests: compiled with telling asserts, and what is needed to word their failures.

    Args:
        source: Python with asserts, ``check(candidate)``, ``unittest`` classes or ``test_…`` functions.
        entry_point: shown instead of the name ``candidate``.

    Raises:
        SyntaxError: the tests do not parse.
    """

    def __init__(self, source: str, entry_point: str | None = None) -> None:
        self.source = source
        self.tree = ast.parse(source, FILE)
        names = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name)]
        self.names = {node.id for node in names if not node.id.startswith("__")}
        """used or assigned somewhere"""
        self.assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.assigned.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.assigned |= {alias.asname or alias.name for alias in node.names}
        self.functions = {node.name: node for node in self.tree.body if isinstance(node, ast.FunctionDef)}
        self.asserts: list[ast.Assert] = []
        self.assert_lines = {
            line
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and _is_assert_method(node.func))
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        """where an error means that a test failed"""
        self.texts: list[str] = []
        self._shown = {"candidate": entry_point} if entry_point else {}
        rewritten = _Rewriter(self).visit(ast.parse(source, FILE))
        self.code = compile(ast.fix_missing_locations(rewritten), FILE, "exec")

    def add(self, node: ast.Assert) -> int:
        """Number an assert."""
        self.asserts.append(node)
        self.texts.append(_short(f"assert {self.text(node.test)}"))
        return len(self.asserts) - 1

    def text(self, node: ast.AST) -> str:
        """The expression as source, with the function's own name."""
        if self._shown:
            node = _Renamed(self._shown).visit(ast.parse(ast.unparse(node), mode="eval").body)
        return ast.unparse(node)

    def explain(self, failed: TestFailedError) -> str:
        """One or two lines: which assert, what came, what was expected."""
        test, text = self.asserts[failed.number].test, self.texts[failed.number]
        values = [show(value) for value in failed.values]
        if isinstance(test, ast.Compare) and len(values) == 2:
            if isinstance(test.ops[0], ast.Eq):
                swapped = _is_literal(test.left) and not _is_literal(test.comparators[0])
                got, expected = reversed(values) if swapped else values
                told = f"got {got}, expected {expected}"
                if got == expected:
                    told += " (they only look alike: an object of the code's own class equals no plain value)"
            else:
                told = f"left is {values[0]}, right is {values[1]}"
        else:
            told = f"got {values[0]}"
        said = "" if failed.message is None else f" ({_short(str(failed.message), 200)})"
        return f"{text}: {told}{said}"

    def line(self, number: int) -> str:
        """The source line that an error came from."""
        lines = self.source.splitlines()
        return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def show(value: Any) -> str:
    """repr, shortened; never raises."""
    try:
        return _repr.repr(value)
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


class _Rewriter(ast.NodeTransformer):
    """``assert l == r, m`` becomes

    ``__at__(n)`` and ``if not ((a := l) == (b := r)): raise __failed__(n, (a, b), m)``.
    """

    def __init__(self, tests: Tests) -> None:
        self.tests = tests

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        number = self.tests.add(node)
        names: list[str] = []

        def kept(value: ast.expr) -> ast.expr:
            names.append(f"__value_{number}_{len(names)}__")
            return ast.NamedExpr(ast.Name(names[-1], ast.Store()), value)

        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            told: ast.expr = ast.Compare(kept(test.left), test.ops, [kept(test.comparators[0])])
        elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            told = ast.UnaryOp(ast.Not(), kept(test.operand))
        else:
            told = kept(test)
        values = ast.Tuple([ast.Name(name, ast.Load()) for name in names], ast.Load())
        failed = _call("__failed__", ast.Constant(number), values, node.msg or ast.Constant(None))
        statements = [
            ast.Expr(_call("__at__", ast.Constant(number))),
            ast.If(ast.UnaryOp(ast.Not(), told), [ast.Raise(failed)], []),
        ]
        return [ast.copy_location(statement, node) for statement in statements]


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name, ast.Load()), list(arguments), [])


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _is_assert_method(function: ast.expr) -> bool:
    return isinstance(function, ast.Attribute) and function.attr.startswith("assert")


def is_builtin(name: str) -> bool:
    """Whether Python itself has something of that name."""
    return hasattr(builtins, name)


def _short(text: str, length: int = 400) -> str:
    return text if len(text) <= length else f"{text[: length - 20]} … {text[-16:]}"
