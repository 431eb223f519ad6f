"""Tools never raise, never hang, never evaluate; and they are LangChain's tools as well."""

import ast
import asyncio
import inspect
import sys
import time
import tracemalloc
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.tools import BaseTool, StructuredTool, tool

import ai_learning.toolformer.calculator as calculator_module
from ai_learning.errors import InputError
from ai_learning.toolformer import (
    Calculator,
    Calendar,
    Call,
    FactQA,
    PipelineTool,
    RetrievalQA,
    Tool,
    WikiSearch,
    from_langchain,
    parse_call,
    run_call,
)
from ai_learning.toolformer.search import passages, shorten
from ai_learning.toolformer.tools import as_tools, is_error, read_date

# --- calculator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3 * (4 + 5)", "27"),
        ("400 / 1400", "0.29"),
        ("12 − 20", "-8"),
        ("6 × 7 ÷ 4", "10.5"),
        ("1,400 + 1", "1401"),
        ("-2 ** 2", "-4"),
        ("2 ^ 3 ^ 2", "512"),
        ("2 ** -2", "0.25"),
        ("10 - 4 - 3", "3"),
        ("100 / 10 / 5", "2"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3 * 3", "1"),
        ("0.125", "0.13"),
        ("-0.125", "-0.13"),
        ("-0.001", "0"),
        (".5 + 1.", "1.5"),
        ("2 ** 64", "18446744073709551616"),
        ("  7  ", "7"),
        ("+-+3", "-3"),
    ],
)
def test_arithmetic(expression: str, value: str) -> None:
    assert Calculator()(expression) == value


HOSTILE = [
    "", " ", "\n\t", "()", ")", "(", "((", "())", "1 +", "+", "* 3", "1 // 2", "1 2", "2(3)", "(2)(3)",
    "= 7",
    "1/0", "0/0", "1/(2-2)", "0 ** -1", "1 / 0.0", "0 ^ (0 - 1)",
    "9**9**9", "9^9^9^9", "10**1000", "2**65", "(9**60)**60", "9**9**9**9**9**9", "2**0.5", "(-8)**(1/3)",
    "9" * 300, "9" * 200, "1" + "0" * 250 + "*9", "0." + "1" * 250, "9" * 10_000_000,
    "1+" * 5_000_000 + "1",
    "(" * 200, "(" * 120 + "1" + ")" * 120, "(" * 1_000_000, "-" * 250 + "1", "-(" * 100 + "1" + ")" * 100,
    "2**" * 80 + "2", "99**" * 60 + "9", "*".join(["99**60"] * 40), "*".join(["9" * 60] * 4),
    "٣ + ٤", "３＋４", "²", "½", "Ⅷ", "四", "1\u0660", "1\u200b+1", "\u202e1+1", "\0", "1\0+1",
    "\ud800", "🙂",
    "nan", "NaN", "inf", "-Infinity", "1e5", "1e999", "0x10", "0b1", "1_000", "1j", "True", "None", "1,2",
    "1.2.3",
    "5%3", "5!", "3 & 1", "1 << 9999", "~1", "1 if 1 else 2", "[1]*9", "{1}", "'a'*9", "1;2", "1\n2", "x",
    "pi",
    "__import__('os').system('id')", "eval('1')", "exec('1')", "open('/etc/passwd')", "(lambda: 1)()",
    "().__class__.__bases__[0]", "${7*7}", "{{7*7}}", "1 or 1", "1==1", "1,", ",1", ".", "..", "-", "1..2",
]  # fmt: skip


@pytest.mark.parametrize("expression", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_input_is_an_error_string_at_once_and_in_little_memory(expression: str) -> None:
    calculator = Calculator()
    calculator("1")
    started = time.process_time()
    answer = calculator(expression)
    assert time.process_time() - started < 0.05
    assert is_error(answer) and len(answer) < 300 and "\n" not in answer
    tracemalloc.start()
    try:
        calculator(expression)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("thing", [None, 3, 2.5, b"1+1", ["1"], object()])
def test_what_is_no_text_is_an_error_too(thing: object) -> None:
    assert is_error(Calculator()(thing))  # type: ignore[arg-type]


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_short_string(text: str) -> None:
    assert len(Calculator()(text)) < 300


@given(st.text(alphabet="0123456789.+-*/^() ,", max_size=256))
@settings(max_examples=500, deadline=None)
def test_near_expressions_are_quick(text: str) -> None:
    started = time.process_time()
    Calculator()(text)
    assert time.process_time() - started < 0.05


numbers = st.integers(0, 9999).map(str) | st.decimals(0, 999, places=2).map(str)
expressions = st.recursive(
    numbers,
    lambda e: st.tuples(e, st.sampled_from("+-*/"), e).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=6,
)


@given(expressions)
@settings(max_examples=300, deadline=None)
def test_values_are_those_of_exact_fractions(expression: str) -> None:
    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(str(ast.get_source_segment(expression, node)))
        assert isinstance(node, ast.BinOp)
        a, b = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
        return a / b

    import re

    plain = re.sub(r"\b0+(?=\d)", "", expression)
    answer = Calculator()(plain)
    expression = plain
    try:
        exact = value(ast.parse(plain, mode="eval").body)
    except ZeroDivisionError:
        assert answer == "error: division by zero"
        return
    if not is_error(answer):  # a number with too many digits
        assert abs(Fraction(Decimal(answer)) - exact) <= Fraction(1, 200)


def test_nothing_is_evaluated() -> None:
    names = {
        node.id
        for node in ast.walk(ast.parse(inspect.getsource(calculator_module)))
        if isinstance(node, ast.Name)
    }
    assert not names & {"eval", "exec", "compile", "__import__", "getattr", "globals"}


# --- calendar, facts, search --------------------------------------------------------------------------------


def test_calendar() -> None:
    calendar = Calendar("2023-01-30")
    assert calendar("") == "Today is Monday, January 30, 2023."
    assert calendar("December 25, 2021") == calendar("2021-12-25") == "Saturday, December 25, 2021"
    assert calendar.on(date(2020, 2, 29))("  ") == "Today is Saturday, February 29, 2020."
    assert Calendar(date(2023, 1, 30), style="%A", prefix="")("") == "Monday"
    assert str(date.today().year) in Calendar()("")
    for wrong in ("2021-02-30", "yesterday", "٢٠٢١-١٢-٢٥", "1" * 1000, "2021-12-25; rm"):
        assert is_error(calendar(wrong))


def test_dates_of_many_forms() -> None:
    for text in (
        "2021-12-05",
        "2021/12/05",
        "December 5, 2021",
        "Dec 5, 2021",
        "5 December 2021",
        "05.12.2021",
    ):
        assert read_date(text) == date(2021, 12, 5)


def test_facts() -> None:
    qa = FactQA(
        {"Who wrote Emma?": "Jane Austen", "Who wrote Ulysses?": "James Joyce", "capital of France": "Paris"}
    )
    assert qa("who wrote Emma") == "Jane Austen"
    assert qa("What is the capital of France?") == "Paris"
    assert is_error(qa("colour of grass")) and is_error(qa("")) and is_error(FactQA({})("x"))


def test_search_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Otters swim in rivers.\n\nThey eat fish, crabs and frogs.")
    (tmp_path / "b.md").write_text("Bees make honey from nectar.")
    search = WikiSearch(tmp_path, passage_words=8)
    assert search("honey of bees") == "Bees make honey from nectar."
    assert search("which animals eat frogs") == "They eat fish, crabs and frogs."
    assert is_error(search("zebra")) and is_error(search("")) and is_error(search("the of and"))
    both = WikiSearch(tmp_path, passage_words=8, k=5, max_characters=30)("otters bees")
    assert len(both) <= 30 and not both.endswith(" ")
    with pytest.raises(ValueError, match="at least 1"):
        WikiSearch(["a"], k=0)
    with pytest.raises(ValueError, match="at least one text"):
        WikiSearch([])
    with pytest.raises(InputError, match="no word to find in 'the a an'"):
        WikiSearch(["the a an", "§ . x"])


def test_search_over_a_data_set(tmp_path: Path) -> None:
    import json

    rows = [{"text": "Owls hunt at night."}, {"text": "Larks sing at dawn."}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert WikiSearch(f"hf:{tmp_path}?split=train")("who sings at dawn, larks?") == "Larks sing at dawn."


@given(
    st.lists(st.lists(st.sampled_from(["a", "bb", "c"]), max_size=9).map(" ".join), max_size=6),
    st.integers(1, 7),
)
def test_passages_lose_no_word(paragraphs: list[str], most: int) -> None:
    found = list(passages("\n\n".join(paragraphs), most))
    assert " ".join(found).split() == " ".join(paragraphs).split()
    assert all(0 < len(passage.split()) <= most for passage in found)


def test_shorten() -> None:
    assert [shorten("one two  three", n) for n in (50, 8, 7, 6, 2)] == [
        "one two three",
        "one two",
        "one two",
        "one",
        "on",
    ]


def test_pipelines() -> None:
    assert PipelineTool(lambda text: [{"generated_text": text + " is \n it"}])("what") == "is it"
    assert PipelineTool(lambda text: {"answer": "Paris", "score": 0.9})("where") == "Paris"
    assert PipelineTool(lambda text: text.upper(), template="<{text}>")("a{b") == "<A{B>"
    assert is_error(PipelineTool(lambda text: {"score": 1})("x"))

    def reader(question: str, context: str) -> dict[str, object]:
        return {"answer": context.split()[0], "score": len(question)}

    search = WikiSearch(["Oslo is in Norway.", "Bern is in Switzerland."])
    assert RetrievalQA(search, reader)("Which city is in Norway?") == "Oslo"


# --- failures and LangChain ---------------------------------------------------------------------------------


class Fails(Tool):
    name, description = "Fails", "raises"

    def answer(self, argument: str) -> str:
        raise RuntimeError("no\nluck")


class Sleeps(Tool):
    name, description, timeout = "Sleeps", "sleeps", 0.05

    def answer(self, argument: str) -> str:
        time.sleep(1)
        return "late"


class Exits(Tool):
    name, description = "Exits", "ends the process"

    def answer(self, argument: str) -> str:
        sys.exit(3)


def test_failures_are_strings() -> None:
    tools = as_tools([Fails(), Sleeps(), Exits()])
    assert run_call(Call("Fails", ""), tools) == "error: no luck"
    started = time.perf_counter()
    assert run_call(Call("Sleeps", ""), tools) == "error: no answer within 0.05 s"
    assert time.perf_counter() - started < 0.8
    assert run_call(Call("Exits", ""), tools) == "error: SystemExit"
    assert is_error(run_call(Call("Nothing", ""), tools))


def test_ours_are_langchain_tools() -> None:
    for ours, argument in (
        (Calculator(), "2+3"),
        (Calendar("2023-01-30"), ""),
        (WikiSearch(["a cat"]), "cat"),
    ):
        theirs = ours.to_langchain()
        assert isinstance(theirs, BaseTool)
        assert theirs.name == ours.name and theirs.description == ours.description
        assert theirs.invoke(argument) == ours(argument)
    call = {"name": "Calculator", "args": {"__arg1": "2+3"}, "id": "1", "type": "tool_call"}
    assert Calculator().to_langchain().invoke(call).content == "5"


def test_langchain_tools_are_ours() -> None:
    @tool
    def reverse(text: str) -> str:
        """Turns a text around."""
        return text[::-1]

    @tool
    def broken(text: str) -> str:
        """Raises."""
        raise ValueError("it broke")

    class Louder(BaseTool):
        name: str = "louder please"
        description: str = "Says it louder."

        def _run(self, text: str) -> str:
            return text.upper()

    structured = StructuredTool.from_function(lambda query: f"<{query}>", name="wrap", description="wraps")
    tools = as_tools(
        [
            reverse,
            broken,
            Louder(),
            structured,
            Calculator(),
            Calculator().to_langchain().model_copy(update={"name": "C2"}),
        ]
    )
    assert list(tools) == ["reverse", "broken", "louder_please", "wrap", "Calculator", "C2"]
    assert run_call(Call("reverse", "abc"), tools) == "cba"
    assert run_call(Call("broken", "abc"), tools) == "error: it broke"
    assert run_call(Call("louder_please", "abc"), tools) == "ABC"
    assert run_call(Call("wrap", '{"a": 1}'), tools) == '<{"a": 1}>'
    assert run_call(Call("C2", "1+1"), tools) == "2"
    assert from_langchain(reverse, name="Back").name == "Back"


def test_langchain_tools_of_other_forms() -> None:
    """A second argument with a default, none at all, and one that only has a coroutine."""

    @tool
    def repeat(text: str, times: int = 2) -> str:
        """Says it again."""
        return text * times

    @tool
    def clock() -> str:
        """Tells the time."""
        return "noon"

    @tool
    async def slow(text: str) -> str:
        """Comes later."""
        return f"later {text}"

    @tool
    def number(text: str) -> int:
        """Counts."""
        return len(text)

    odd = number.model_copy(update={"name": "3 times"})
    assert parse_call(f"{from_langchain(odd).name}(x)") == Call("_3_times", "x")
    assert [from_langchain(t)("ab") for t in (repeat, clock, slow, number)] == [
        "abab",
        "noon",
        "later ab",
        "2",
    ]


def test_a_tool_with_only_a_coroutine_works_where_a_loop_runs() -> None:
    """As in Jupyter, whose loop is not to be run again."""

    @tool
    async def slow(text: str) -> str:
        """Comes later."""
        await asyncio.sleep(0)
        return f"later {text}"

    async def cell() -> str:
        return from_langchain(slow)("x")

    assert asyncio.run(cell()) == from_langchain(slow)("x") == "later x"


@pytest.mark.parametrize("name", ["bad name(", "a(", " a", "", "3a", "a\n", 7])
def test_a_name_that_no_call_can_be_written_with_is_refused(name: Any) -> None:
    named = Calculator()
    named.name = name
    with pytest.raises(ValueError, match="no call to a tool named"):
        as_tools([named])
    with pytest.raises(ValueError, match="a Tool has no name"):
        as_tools([Tool()])


def test_what_is_no_tool_is_refused() -> None:
    with pytest.raises(ValueError, match="two tools"):
        as_tools([Calculator(), Calculator()])
    with pytest.raises(ValueError, match="neither"):
        as_tools(["Calculator"])
