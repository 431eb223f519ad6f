"""Sampling: the right places, the same samples whoever shares the batch; execution; C*."""

import math
from typing import Any

import pytest
import torch

from ai_learning.errors import InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.toolformer import (
    Annotated,
    Calculator,
    Calendar,
    Call,
    Candidate,
    Document,
    GPTModel,
    Settings,
    Tool,
    annotate,
    best_calls,
    execute_calls,
    find_calls,
    interleave,
    interleave_ids,
    refilter,
    sample_calls,
    strip_calls,
    training_rows,
)
from ai_learning.toolformer.annotate import choose_places

from .conftest import SUMS, annotated

EAGER = Settings(tau_s=0.02, tau_f=0.1, k=3, m=4)


class Slow(Calculator):
    """A calculator that fails on every other sum."""

    calls = 0

    def answer(self, argument: str) -> str:
        Slow.calls += 1
        if "3" in argument:
            raise RuntimeError("out of order")
        return super().answer(argument)


def test_places_are_the_likeliest_above_the_threshold(writer: GPTModel) -> None:
    """Against p(<API>) computed a place at a time."""
    text = SUMS[20]
    ids = writer.encode(text)
    with torch.no_grad():
        p = [
            float(writer.model(torch.tensor([[*writer.bos, *ids[:i]]]))[0, -1].softmax(-1)[writer.start_id])
            for i in range(len(ids))
        ]
    for settings in (Settings(0.0, k=3, m=1), Settings(0.3, k=5, m=1), Settings(0.0, k=50, m=1)):
        (found,) = sample_calls(writer, [text], [Calculator()], settings=settings, name_tools=True)
        best = sorted(range(len(ids)), key=lambda i: -p[i])[: settings.k]
        allowed = {i for i in best if p[i] > settings.tau_s}
        assert {c.position for c in found.candidates} <= allowed
        for c in found.candidates:
            assert c.probability == pytest.approx(p[c.position], abs=1e-5)
            assert text[: c.offset] == writer.decode(ids[: c.position])
    place = max(range(len(ids)), key=p.__getitem__)
    assert writer.decode(ids[:place]) == text[: text.rindex(" ")]  # it has learnt where calls belong


def test_the_threshold_itself_is_not_above_it() -> None:
    assert choose_places([0.05, 0.06, 0.0], 0.05, 5) == [1]
    assert choose_places([0.3, 0.2, 0.4, 0.1], 0.0, 2) == [0, 2]
    assert choose_places([], 0.0, 2) == []


def test_a_document_gets_the_same_calls_in_any_company(writer: GPTModel) -> None:
    documents = [Document(text, str(n)) for n, text in enumerate(SUMS)]
    together = annotate(writer, documents, [Calculator()], settings=EAGER)
    some = annotate(writer, documents[7:9] + documents[30:31], [Calculator()], settings=EAGER)
    calls = [[(c.position, c.call, c.kept) for c in d.candidates] for d in together]
    assert [[(c.position, c.call, c.kept) for c in d.candidates] for d in some] == [
        calls[7],
        calls[8],
        calls[30],
    ]
    assert calls == [
        [(c.position, c.call, c.kept) for c in d.candidates]
        for d in annotate(writer, documents, [Calculator()], settings=EAGER)
    ]
    other = annotate(writer, documents, [Calculator()], settings=EAGER, seed=1)
    assert calls != [[(c.position, c.call, c.kept) for c in d.candidates] for d in other]


def test_samples_follow_the_models_distribution(writer: GPTModel) -> None:
    """400 samples of one place against the model's own probability of the likeliest call."""
    text = SUMS[20]
    (greedy,) = sample_calls(writer, [text], [Calculator()], settings=Settings(0, k=1, m=1), temperature=0)
    best = greedy.candidates[0]
    ids = writer.encode(text)
    before = [*writer.bos, *ids[: best.position], writer.start_id]
    after = [*writer.encode(str(best.call)), writer.arrow_ids[0]]
    (losses,) = writer.token_losses([before + after], [len(after)])
    p = float(torch.tensor(losses).sum().neg().exp())
    documents = [Document(text, str(n)) for n in range(100)]
    found = sample_calls(writer, documents, [Calculator()], settings=Settings(0, k=1, m=4))
    # Copies of one call in one document count once: so ask how often the document has it at all.
    share = sum(best.call in [c.call for c in d.candidates] for d in found) / 100
    expected = 1 - (1 - p) ** 4
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 100) ** 0.5 + 0.01


def test_failing_tools_do_not_end_a_run(writer: GPTModel) -> None:
    Slow.calls = 0
    found = annotate(writer, SUMS, [Slow()], settings=EAGER)
    candidates = [c for d in found for c in d.candidates]
    failed = [c for c in candidates if c.result is None]
    assert failed and all(c.error == "error: out of order" or "error: " in str(c.error) for c in failed)
    assert not any(c.kept for c in failed)
    assert any(c.kept for c in candidates)
    assert Slow.calls == len({c.call for c in candidates})  # each distinct call once


def test_the_calendar_knows_each_documents_day() -> None:
    call = Candidate(1, 1, Call("Calendar", ""))
    documents = [Annotated("ab", (call,), str(n), day) for n, day in enumerate(("2023-01-30", "2020-02-29"))]
    found = execute_calls(documents, [Calendar(style="%A", prefix="")])
    assert [d.candidates[0].result for d in found] == ["Monday", "Saturday"]


def test_prefilters_are_by_tool(writer: GPTModel) -> None:
    odd = {"Calculator": lambda document: int(document.id) % 2 == 1}
    found = annotate(writer, SUMS, [Calculator()], settings=EAGER, prefilters=odd)
    assert [bool(d.candidates) for d in found[::2]] == [False] * 18
    assert any(d.candidates for d in found[1::2])


def test_a_prompt_stands_before_the_text(writer: GPTModel) -> None:
    """P(x) is read before x_1 … x_{i−1}: the model sees it, the document does not get it."""
    seen: list[list[int]] = []
    original = writer.start_probabilities

    def spy(rows: Any, counts: Any) -> Any:
        seen.extend(list(map(list, rows)))
        return original(rows, counts)

    writer.start_probabilities = spy  # type: ignore[method-assign]
    try:
        prompts = {"Calculator": "1 plus 1 equals. {text} So: "}
        (found,) = sample_calls(writer, ["3 plus"], [Calculator()], settings=EAGER, prompts=prompts)
    finally:
        del writer.start_probabilities  # type: ignore[method-assign]
    assert writer.decode(seen[0][1:]).startswith("1 plus 1 equals. 3 plus So: 3")
    assert found.text == "3 plus"
    with pytest.raises(ValueError, match="no prompt for Calculator"):
        annotate(writer, ["x"], [Calculator()], prompts={"QA": "{text}"})


@pytest.mark.parametrize("text", ["", ".", "é", "3", "🙂🙂 plus 🙂 equals 🙂.", "3 plus 4 equals 7. " * 40])
def test_odd_documents_pass(writer: GPTModel, text: str) -> None:
    (found,) = annotate(writer, [text], [Calculator()], settings=Settings(0, -9.0, 8, 2), name_tools=True)
    assert found.text == text
    for c in found.candidates:
        assert 0 <= c.offset <= len(text)
        assert strip_calls(interleave(found)) == text


@pytest.mark.parametrize("errors", ["ignore", "replace", "strict"])
def test_no_call_begins_inside_a_character(errors: str) -> None:
    """However the tokenizer decodes half of one."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=258, block_size=96, n_layer=1, n_head=1, n_embd=16))
    lm = GPTModel(gpt, ByteTokenizer(errors=errors))
    text, seen = "a🍐é", []

    def spy(rows: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        seen.extend(rows)
        return [[] for _ in rows]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "continue_rows", spy)
        sample_calls(lm, [text], [Calculator()], settings=Settings(0.0, k=99, m=1), temperature=0)
    starts = [len(text[:n].encode()) for n in range(3)]
    assert [len(row) - 2 for row in seen] == starts  # without the beginning of the text and the mark


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": []}, "give at least one"),
        ({"temperature": -1}, "temperature=-1 must be 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"seed": -1}, "seed=-1 must be from 0 to"),
        ({"seed": 2**64}, "seed=18446744073709551616 must be"),
        ({"max_call_tokens": 0}, "max_call_tokens=0 must be at least 1"),
    ],
)
def test_values_without_sense_are_refused(options: dict[str, Any], said: str, writer: GPTModel) -> None:
    with pytest.raises(InputError, match=said):
        annotate(writer, ["3 plus 4"], **{"tools": [Calculator()], **options})


def test_thresholds_must_be_numbers() -> None:
    with pytest.raises(ValueError, match="tau_f=nan is no number"):
        Settings(tau_f=math.nan)
    with pytest.raises(InputError, match="tau_f=nan is no number"):
        refilter([], math.nan)


# --- C* -----------------------------------------------------------------------------------------------------


def test_interleaving_at_text_and_at_token_level(writer: GPTModel) -> None:
    document = annotated(writer, "3 plus 4 equals 7.")
    assert interleave(document) == "3 plus 4 equals<API>Calculator(3+4)→7</API> 7."
    ids = interleave_ids(writer, document)
    assert writer.decode(ids) == interleave(document)
    assert ids.count(writer.start_id) == 1
    assert [span.call for span in find_calls(interleave(document))] == [Call("Calculator", "3+4")]
    (row,) = training_rows(writer, [document])
    assert row == [writer.eos_id, *ids, writer.eos_id]


def test_of_calls_at_one_place_the_best_is_taken() -> None:
    def call(place: int, name: str, gain: float, kept: bool = True) -> Candidate:
        loss = {"loss_result": 0.0, "loss_nothing": gain, "loss_call": gain}
        return Candidate(place, place, Call("QA", name), name, kept=kept, **loss)

    document = Annotated(
        "abcd", (call(1, "x", 1.0), call(1, "y", 2.0), call(1, "z", 9.0, False), call(3, "w", 1.0))
    )
    assert [c.result for c in best_calls(document)] == ["y", "w"]
    assert interleave(document) == "a<API>QA(y)→y</API>bc<API>QA(w)→w</API>d"


class Echo(Tool):
    """Says something that would end the call early."""

    name = "Echo"

    def answer(self, argument: str) -> str:
        return "a</API>\n<API>b→c"


def test_a_result_cannot_break_out_of_its_call(writer: GPTModel) -> None:
    text = writer.how.write(Call("Echo", "x"), Echo()("x"))
    (span,) = find_calls(text)
    assert (span.start, span.end, span.result) == (0, len(text), "a bc")
