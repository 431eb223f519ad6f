"""The loss criterion against sums written out by hand, on a model small enough to do so."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer
from ai_learning.toolformer import (
    Annotated,
    Call,
    Candidate,
    GPTModel,
    LanguageModel,
    as_language_model,
    filter_calls,
    loss_weights,
    refilter,
    weighted_loss,
)

TEXT = "One crate has 12 pears, two crates have 24 pears in all."


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    marks = ("<|endoftext|>", "<API>", "→", "</API>")
    return with_random_weights(BPETokenizer.train([TEXT] * 2, 268, special_tokens=marks))


def with_random_weights(tokenizer: Tokenizer) -> LanguageModel:
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=128, n_layer=2, n_head=2, n_embd=32)
    model = GPT(config)
    for parameter in model.parameters():  # far from uniform, so that a wrong position or context shows
        parameter.data.mul_(4)
    return as_language_model(model, tokenizer)


def by_hand(lm: LanguageModel, z: list[int], ids: list[int], i: int, position: str) -> float:
    """L_i(z), term by term, one forward pass for each."""
    assert isinstance(lm, GPTModel)
    total, weights = 0.0, [max(0.0, 1 - 0.2 * t) for t in range(1000)]
    for j in range(i, len(ids)):
        before = z + ids[:j] if position == "prefix" else ids[:i] + z + ids[i:j]
        row = torch.tensor([lm.bos + before])
        with torch.no_grad():
            log_p = lm.model(row)[0, -1].double().log_softmax(-1)
        total -= weights[j - i] / sum(weights) * float(log_p[ids[j]])
    return total


@pytest.mark.parametrize("position", ["prefix", "inline"])
def test_losses_are_the_papers_sums(lm: LanguageModel, position: str) -> None:
    ids = lm.encode(TEXT)
    places = [0, 1, 7, len(ids) - 3, len(ids) - 1]
    calls = [Call("Calculator", "12 * 2"), Call("Calculator", "24")]
    candidates = tuple(
        Candidate(i, len(lm.decode(ids[:i])), call, result)
        for i in places
        for call in calls
        for result in ("24", "7")
    )
    (found,) = filter_calls(lm, [Annotated(TEXT, candidates)], 0.0, position=position)
    for c in found.candidates:
        assert c.result is not None
        expected = [
            by_hand(lm, z, ids, c.position, position)
            for z in (lm.encode_call(c.call, c.result), [], lm.encode_call(c.call))
        ]
        assert [c.loss_result, c.loss_nothing, c.loss_call] == pytest.approx(expected, abs=2e-5)
        assert c.gain == pytest.approx(min(expected[1:]) - expected[0], abs=4e-5)
        assert c.kept == (c.gain >= 0)


@pytest.mark.parametrize("position", ["prefix", "inline"])
def test_another_tokenizer_judges_at_the_same_characters(lm: LanguageModel, position: str) -> None:
    """The annotator's tokens are of several bytes, the judge's are bytes: i is another number to each."""
    text = "Zoë has 12 pears 🍐 and 24 in all."
    ids, judge = lm.encode(text), with_random_weights(ByteTokenizer())
    before = [lm.decode(ids[:i]) for i in range(len(ids))]
    candidates = tuple(
        Candidate(i, len(start), Call("Calculator", "12 * 2"), "24")
        for i, start in enumerate(before)
        if text.startswith(start)
    )
    (found,) = filter_calls(judge, [Annotated(text, candidates)], 0.0, position=position)
    different = 0
    for c in found.candidates:
        i = len(text[: c.offset].encode())  # a byte is a token
        different += i != c.position
        z: tuple[list[int], ...] = (judge.encode_call(c.call, "24"), [], judge.encode_call(c.call))
        expected = [by_hand(judge, given, judge.encode(text), i, position) for given in z]
        assert [c.loss_result, c.loss_nothing, c.loss_call] == pytest.approx(expected, abs=2e-5)
    assert different > 5


def test_inside_a_token_of_the_judge_that_token_is_the_first(lm: LanguageModel) -> None:
    judge = with_random_weights(BPETokenizer.train([TEXT] * 9, 286))
    ids = judge.encode(TEXT)
    ends = [0]
    for i in ids:
        ends.append(ends[-1] + len(judge.decode([i])))
    for offset in range(len(TEXT)):
        one = Candidate(len(lm.encode(TEXT[:offset])), offset, Call("Calculator", "12 * 2"), "24")
        (found,) = filter_calls(judge, [Annotated(TEXT, (one,))])
        place = max(i for i, end in enumerate(ends) if end <= offset)
        expected = by_hand(judge, [], ids, place, "prefix")
        assert found.candidates[0].loss_nothing == pytest.approx(expected, abs=2e-5)
    assert len(ids) < len(TEXT) / 2  # many of the places were inside a token


def test_a_judge_that_does_not_give_the_text_back_says_so() -> None:
    class Lowered(ByteTokenizer):
        def encode(self, text: str | bytes) -> list[int]:
            return super().encode(text.lower())

    judge = with_random_weights(Lowered())
    early, late = (Candidate(n, n, Call("QA", "x"), "y") for n in (3, 12))
    with pytest.warns(UserWarning, match="does not give some text back"):
        (found,) = filter_calls(judge, [Annotated("we saw Berlin and Rome", (early, late))], -100.0)
    assert [c.kept for c in found.candidates] == [True, False] and math.isnan(found.candidates[1].gain)


def test_a_batch_changes_nothing(lm: LanguageModel) -> None:
    """Rows of many lengths together give what each gives alone."""
    texts = [TEXT[:n] for n in range(12, len(TEXT), 5)]
    documents = [
        Annotated(
            text,
            tuple(
                Candidate(i, len(lm.decode(lm.encode(text)[:i])), call, "2")
                for i, call in ((2, Call("Calculator", "1+1")), (3, Call("QA", text[:5])))
            ),
        )
        for text in texts
    ]
    together = filter_calls(lm, documents)
    for document, found in zip(documents, together, strict=True):
        (alone,) = filter_calls(lm, [document])
        for a, b in zip(alone.candidates, found.candidates, strict=True):
            assert (a.loss_plus, a.loss_minus) == pytest.approx((b.loss_plus, b.loss_minus), abs=1e-5)


def test_weights_fall_to_zero_after_five() -> None:
    assert loss_weights(6) == pytest.approx([5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15, 0])
    assert weighted_loss([3.0]) == 1.0  # what is missing at the end of a text counts nothing


@given(st.lists(st.floats(0, 50), max_size=12))
def test_weighted_loss_is_monotone_and_bounded(losses: list[float]) -> None:
    value = weighted_loss(losses)
    assert 0 <= value <= max(losses, default=0) + 1e-9
    assert weighted_loss([loss + 1 for loss in losses]) >= value


def losses(result: float, nothing: float, call: float) -> Annotated:
    one = Candidate(1, 1, Call("QA", "x"), "y", loss_result=result, loss_nothing=nothing, loss_call=call)
    return Annotated("text", (one,))


def test_a_call_that_gives_the_answer_away_is_dropped() -> None:
    """Its argument alone helps as much as its result: the second term of L⁻ is what sees that."""
    leaked = losses(result=0.2, nothing=3.0, call=0.2)
    honest = losses(result=0.2, nothing=3.0, call=2.9)
    assert [d.candidates[0].kept for d in refilter([leaked, honest], 1.0)] == [False, True]


def test_a_model_that_copies_is_not_fooled_by_a_leaked_answer() -> None:
    """The same with real losses: this model repeats whatever number stands in a call before the text."""

    class Copies(LanguageModel):
        """Likes every id that stood in the row before, marks of calls aside."""

        block_size, vocab_size, device = 200, 300, torch.device("cpu")

        def logits(self, ids, padding, keep, cache=None):  # type: ignore[no-untyped-def]
            seen = torch.nn.functional.one_hot(ids, self.vocab_size).cumsum(1).clamp(max=1) * 4.0
            return seen[:, -keep:]

    marks = ("<|endoftext|>", "<API>", "→", "</API>")
    lm = Copies(BPETokenizer.train(["abc"], 261, special_tokens=marks))
    text = "It is QXZ."
    place = len(lm.encode("It is "))
    honest = Candidate(place, 6, Call("QA", "what is it"), "QXZ")
    leaky = Candidate(place, 6, Call("QA", "is it QXZ"), "QXZ")
    (found,) = filter_calls(lm, [Annotated(text, (honest, leaky))], 0.5)
    assert [c.kept for c in found.candidates] == [True, False]
    without_the_term = [c.loss_nothing - c.loss_plus >= 0.5 for c in found.candidates]
    assert without_the_term == [True, True]


def test_nothing_without_a_result_is_kept(lm: LanguageModel) -> None:
    failed = Candidate(3, 5, Call("Calculator", "1/0"), None, "error: division by zero")
    late = Candidate(3, 5, Call("Calculator", "1" * 400), "1" * 400)  # longer than the context
    (found,) = filter_calls(lm, [Annotated(TEXT, (failed, late))], -100.0)
    assert [(math.isnan(c.gain), c.kept) for c in found.candidates] == [(True, False)] * 2


def test_thresholds_can_be_changed_afterwards(lm: LanguageModel) -> None:
    ids = lm.encode(TEXT)
    candidates = tuple(
        Candidate(i, len(lm.decode(ids[:i])), Call("Calculator", str(i)), str(2 * i)) for i in range(len(ids))
    )
    (scored,) = filter_calls(lm, [Annotated(TEXT, candidates)], 100.0)
    assert not scored.kept
    gains = sorted(c.gain for c in scored.candidates)
    middle = gains[len(gains) // 2]
    (again,) = refilter([scored], middle)
    assert [c.gain for c in again.kept] == [c.gain for c in scored.candidates if c.gain >= middle]
    assert [replace(c, kept=False) for c in again.candidates] == list(scored.candidates)


def test_unknown_position_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match="prefix"):
        filter_calls(lm, [], position="before")
