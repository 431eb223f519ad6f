"""Answers by likelihood: equal to scoring each choice alone; the public formats; faults by line."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.multiple_choice import (
    Question,
    encode_pair,
    evaluate_questions,
    read_questions,
    score_choices,
)
from ai_learning.tokenizers import ByteTokenizer

torch.manual_seed(0)
MODEL = GPT(GPTConfig(vocab_size=258, block_size=48, n_layer=2, n_head=2, n_embd=32)).eval()
ROTARY = GPT(
    GPTConfig(
        vocab_size=258,
        block_size=48,
        n_layer=2,
        n_head=4,
        n_kv_head=2,
        n_embd=32,
        positions="rotary",
        bias=False,
    )
).eval()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_choices_together_equal_each_alone(data: st.DataObject) -> None:
    ids = st.integers(0, 257)
    context = data.draw(st.lists(ids, min_size=1, max_size=60))
    choices = data.draw(st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=4))
    model = data.draw(st.sampled_from([MODEL, ROTARY]))
    scores = score_choices(model, context, choices)
    longest = max(map(len, choices))
    kept = context[-(48 + 1 - longest) :]
    for choice, score in zip(choices, scores, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([kept + choice[:-1]]))[0, len(kept) - 1 :]
        log_p = logits.log_softmax(-1)
        expected = sum(log_p[i, token].item() for i, token in enumerate(choice))
        assert score.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert score.is_greedy == (logits.argmax(-1).tolist() == choice)


def test_spaces_move_to_the_continuation() -> None:
    tokenizer = ByteTokenizer()
    assert encode_pair(tokenizer, "a b ", "c") == ([97, 32, 98], [32, 99])
    assert encode_pair(tokenizer, "", "c") == ([256], [99])


def test_accuracy_picks_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of one letter: whatever begins with it is likeliest, by total and by length."""

    class Biased:
        def __call__(self, model, context, choices):
            from ai_learning.multiple_choice import ChoiceScore

            return [
                ChoiceScore(-1.0 * len(c) if c[1] == ord("x") else -1.2 * len(c), len(c), c[1] == ord("x"))
                for c in choices
            ]

    monkeypatch.setattr("ai_learning.multiple_choice.score_choices", Biased())
    tokenizer = ByteTokenizer()
    questions = [
        Question("q", (" xxxxxxxx", " y"), 0),  # in total the short one wins, by character the right one
        Question("q", (" x", " y"), 0),
    ]
    assert evaluate_questions(MODEL, tokenizer, questions) == {"acc": 0.5, "acc_norm": 1.0, "questions": 2}
    single = [Question("q", (" x",), 0), Question("q", (" yy",), 0)]
    found = evaluate_questions(MODEL, tokenizer, single)
    assert found["acc"] == 0.5 and found["perplexity"] == pytest.approx(
        torch.tensor((2.0 + 3.6) / 2).exp().item()
    )
    long = evaluate_questions(MODEL, tokenizer, [Question("q", (" x" * 50,), 0)])
    assert long["perplexity"] == pytest.approx(math.exp(100))  # more than float32 can say


HELLASWAG = {
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "endings": [
        "is using wrap [step] to wrap.",
        "is ripping  tiles.",
        "holds a cube.",
        "starts [title] pulling.",
    ],
    "label": "3",
}


def test_formats_are_the_public_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(HELLASWAG) + "\n\n")
    (question,) = read_questions("hellaswag", str(path))
    assert question.context == "Roof shingle removal: A man is sitting on a roof. He"
    assert question.choices[0] == " is using wrap to wrap." and question.choices[3] == " starts. pulling."
    assert question.label == 3
    path.write_text(json.dumps({"text": "He said his last word"}) + "\n")
    assert read_questions("lambada", str(path)) == [Question("He said his last", (" word",), 0)]
    path.write_text(json.dumps({"context": "2 + 2 =", "choices": ["4", " 5"], "label": 0}) + "\n" * 2)
    assert read_questions("multiple_choice", str(path)) == [Question("2 + 2 =", (" 4", " 5"), 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ('\n{"text": "x"}', "line 2: no row of hellaswag: KeyError"),
        (json.dumps(HELLASWAG | {"label": 9}), "line 1: label 9 of 4 choices"),
        ("[1]", "line 1: a JSON object is needed"),
        ("", "holds no questions"),
    ],
)
def test_faults_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions("hellaswag", str(path))


@pytest.mark.parametrize("text", ["word", "a word ", "", 7])
def test_a_text_without_a_last_word(text: object, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": text}))
    with pytest.raises(
        InputError, match=r"line 1: no row of lambada: text must (end in a word|be a text, got 7)"
    ):
        read_questions("lambada", str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 5}, "context must be a text, got 5"),
        ({"choices": "four"}, "choices must be a list of texts, got 'four'"),
        ({"choices": ["a", 5]}, r"choices must be a list of texts, got \['a', 5\]"),
        ({"label": True}, "label must be the number of the right one, from 0, got True"),
        ({"label": 0.5}, "got 0.5"),
    ],
)
def test_rows_of_other_types(change: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"context": "x", "choices": ["a", "b"], "label": 0} | change))
    with pytest.raises(InputError, match=f"line 1: .*{message}"):
        read_questions("multiple_choice", str(path))


def test_an_empty_choice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"context": "x", "choices": ["a", " "], "label": 0}))
    with pytest.raises(InputError, match="line 1: a choice is empty"):
        read_questions("multiple_choice", str(path))


def test_bad_calls(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x80\x02\xff")
    with pytest.raises(InputError, match=f"{tmp_path}/binary is no text in UTF-8"):
        read_questions("lambada", f"{tmp_path}/binary")
    with pytest.raises(InputError, match=f"{tmp_path} is a folder"):
        read_questions("lambada", str(tmp_path))
    with pytest.raises(InputError, match="limit=-1 must not be negative"):
        read_questions("lambada", "any", limit=-1)
    with pytest.raises(InputError, match="'helaswag' is not known"):
        read_questions("helaswag")
    with pytest.raises(InputError, match="no such file"):
        read_questions("lambada", "no/file")
    with pytest.raises(InputError, match="give a file with --data"):
        read_questions("multiple_choice")
    with pytest.raises(InputError, match="at least one token"):
        score_choices(MODEL, [1], [[]])
    with pytest.raises(InputError, match="a choice of 60 tokens exceeds block_size=48"):
        score_choices(MODEL, [1], [[1] * 60])
