"""Generation with tools: the trigger, the insertion, one call, failures; in a batch as alone."""

import math
from collections.abc import Callable

import pytest
import torch
from langchain_core.tools import tool

from ai_learning.errors import InputError
from ai_learning.tokenizers import BPETokenizer
from ai_learning.toolformer import Calculator, Calendar, GPTModel, LanguageModel, Tool, generate_with_tools

from .conftest import MARKS, SUMS

PROMPTS = [text[: text.rindex(" ")] for text in SUMS]


class Scripted(LanguageModel):
    """Writes what a function of the text so far says; ``<API>`` always has the given rank."""

    block_size, device = 200, torch.device("cpu")

    def __init__(self, write: Callable[[str], str], rank: int = 0) -> None:
        tokenizer = BPETokenizer.train(["abc"], 261, special_tokens=MARKS)
        self.vocab_size, self.write, self.rank = tokenizer.vocab_size, write, rank
        super().__init__(tokenizer)

    def logits(self, ids, padding, keep, cache=None):  # type: ignore[no-untyped-def]
        if cache is not None:
            cache.append(ids)
            ids = torch.cat(list(cache), 1)
        out = torch.zeros(len(ids), 1, self.vocab_size)
        for row, (line, pad) in enumerate(
            zip(ids.tolist(), padding if padding is not None else [0] * len(ids), strict=True)
        ):
            said = self.write(self.decode(line[int(pad) :]).removeprefix("<|endoftext|>"))
            wanted = self.mark(said)[0] if said else self.eos_id
            out[row, 0, :50] = torch.linspace(5, 4, 50)
            out[row, 0, self.start_id] = float(out[row, 0, :50][self.rank]) + 0.001
            out[row, 0, wanted] = 9.0
        return out

    def new_cache(self, rows, length):  # type: ignore[no-untyped-def]
        return []

    def pick_rows(self, cache, rows):  # type: ignore[no-untyped-def]
        return [chunk[rows] for chunk in cache]


def follow(script: str) -> Callable[[str], str]:
    """Writes ``script`` and then the end of the document."""

    def write(text: str) -> str:
        rest = script.removeprefix(text) if script.startswith(text) else ""
        return next((mark for mark in MARKS if rest.startswith(mark)), rest[:1])

    return write


class Counting(Tool):
    """Remembers what it was asked."""

    name = "Calculator"

    def __init__(self, said: str = "7") -> None:
        self.asked: list[str] = []
        self.said = said

    def answer(self, argument: str) -> str:
        self.asked.append(argument)
        return self.said


def test_a_trained_model_calls_and_uses_the_result(writer: GPTModel) -> None:
    """The tool says something else than arithmetic: the text goes on with what it said."""
    found = generate_with_tools(writer, PROMPTS, [Calculator()], max_new_tokens=4)
    assert sum(bool(g.uses) for g in found) == len(PROMPTS)
    good = [g for g in found if g.uses[0].call and g.uses[0].result]
    assert len(good) > len(found) // 2
    for g in good:
        assert g.annotated.startswith(f"<API>{g.uses[0].call}→{g.uses[0].result}</API>")
        assert g.text in g.annotated and "<API>" not in g.text
    odd = Counting("5")
    lied = generate_with_tools(writer, PROMPTS[8], [odd], max_new_tokens=2)
    assert len(odd.asked) == 1 and lied.uses[0].result == "5"


def test_a_batch_gives_what_each_prompt_gives_alone(writer: GPTModel) -> None:
    together = generate_with_tools(writer, PROMPTS[::5], [Calculator()], max_new_tokens=6)
    for prompt, found in zip(PROMPTS[::5], together, strict=True):
        assert generate_with_tools(writer, prompt, [Calculator()], max_new_tokens=6) == found
    drawn = generate_with_tools(
        writer, PROMPTS[:3], [Calculator()], max_new_tokens=6, temperature=1.0, seed=3
    )
    assert drawn == generate_with_tools(
        writer, PROMPTS[:3], [Calculator()], max_new_tokens=6, temperature=1.0, seed=3
    )


def test_calls_disabled_never_writes_the_mark(writer: GPTModel) -> None:
    for options in ({"tools": []}, {"tools": [Calculator()], "max_calls": 0}):
        for found in generate_with_tools(writer, PROMPTS, options.pop("tools"), max_new_tokens=8, **options):
            assert not found.uses and "<API>" not in found.annotated


@pytest.mark.parametrize("others", [0, 1, 2, 8, 9])
@pytest.mark.parametrize("top_k", [1, 2, 3, 10])
def test_a_call_begins_where_the_mark_is_among_the_top_k(top_k: int, others: int) -> None:
    """The script's own token is the likeliest, then come ``others``, then <API>."""
    lm = Scripted(follow("ab"), others)
    found = generate_with_tools(lm, "a", [Counting()], top_k=top_k, max_new_tokens=5, max_call_tokens=3)
    assert len(found.uses) == (1 + others + 1 <= top_k)
    assert found.text == "b"  # the call came to nothing and was taken back


def test_one_call_unless_more_are_asked_for() -> None:
    script = "a<API>Calculator(1)→7</API>b<API>Calculator(2)→7</API>c<API>Calculator(3)→7</API>d"
    for max_calls in (1, 2, 3):
        tool = Counting()
        found = generate_with_tools(
            Scripted(follow(script), 40), "a", [tool], max_calls=max_calls, top_k=1, max_new_tokens=9
        )
        assert tool.asked == ["1", "2", "3"][:max_calls]
        assert found.text.startswith("bcd"[:max_calls])
        assert found.annotated.count("</API>") == max_calls


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("Calculator(1)→", "error: out of order"),
        ("Nothing(1)→", "error: there is no tool 'Nothing'"),
        ("no call→", "error: not a call: no call→"),
        ("Calculator(1" + "1" * 60, "error: not a call"),
    ],
)
def test_a_call_that_fails_is_taken_back(written: str, error: str) -> None:
    class Broken(Counting):
        def answer(self, argument: str) -> str:
            raise RuntimeError("out of order")

    def write(text: str) -> str:
        return follow("a<API>" + written)(text) if "<API>" in text else follow("abc")(text)

    found = generate_with_tools(Scripted(write), "a", [Broken()], max_new_tokens=9)
    assert (found.text, found.annotated) == ("bc", "bc")
    assert len(found.uses) == 1 and str(found.uses[0].error).startswith(error)


def test_a_langchain_tool_is_called() -> None:
    @tool
    def mirror(text: str) -> str:
        """Turns a text around."""
        return text[::-1]

    lm = Scripted(follow("a<API>mirror(xyz)→zyx</API>b"), 40)
    found = generate_with_tools(lm, "a", [mirror], top_k=1)
    assert (found.text, found.uses[0].result) == ("b", "zyx")


def test_the_calendar_knows_the_prompts_day() -> None:
    write = follow("a<API>Calendar()→Monday</API>b")
    found = generate_with_tools(
        Scripted(write, 40),
        ["a", "a"],
        [Calendar(style="%A", prefix="")],
        top_k=1,
        dates=["2023-01-30", "2023-01-31"],
    )
    assert [g.uses[0].result for g in found] == ["Monday", "Tuesday"]


def test_lengths_and_stops() -> None:
    lm = Scripted(follow("abcdefgh"), 40)
    assert generate_with_tools(lm, "a", [], max_new_tokens=3).text == "bcd"
    assert generate_with_tools(lm, "a", [], max_new_tokens=0).text == ""
    assert generate_with_tools(lm, "a", [], stop=lambda text: text.endswith("d")).text == "bcd"
    with pytest.raises(ValueError, match="takes 1 to 200"):
        generate_with_tools(lm, "a" * 300, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("seed", -3),
        ("seed", 2**64),
        ("top_k", 0),
        ("max_new_tokens", -1),
        ("max_calls", -1),
        ("max_call_tokens", 0),
    ],
)
def test_values_without_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}={value} must be"):
        generate_with_tools(Scripted(follow("ab")), "a", [Counting()], **{name: value})


def test_the_greatest_seed_is_one() -> None:
    lm = Scripted(follow("abcd"), 40)
    assert generate_with_tools(lm, "a", [], temperature=0.01, seed=2**64 - 1).text == "bcd"
