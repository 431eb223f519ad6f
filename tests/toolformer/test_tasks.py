"""The paper's task files, scoring and pre-filters; pictures."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.toolformer import Annotated, Calculator, Call, Candidate, Document, GPTModel
from ai_learning.toolformer.picture import save_html, to_html, to_terminal
from ai_learning.toolformer.prefilter import date_of_url, has_date, may_calculate, may_translate
from ai_learning.toolformer.tasks import (
    Example,
    evaluate,
    first_number,
    in_first_words,
    is_right,
    read_examples,
)

from .conftest import SUMS

ASDIV = """<Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="nluds-0001" Grade="1"><Body>Seven red apples and two green apples are in the basket.</Body>
<Question>How many apples are in the basket?</Question><Solution-Type>Addition</Solution-Type>
<Answer>9 (apples)</Answer><Formula>7+2=9</Formula></Problem>
<Problem ID="nluds-0002"><Body>Ellen has six more balls than Marin. Marin has nine balls.</Body>
<Question>Is that more?</Question><Answer>Yes</Answer></Problem>
</ProblemSet></Machine-Reading-Corpus-File>"""


def test_arithmetic_files(tmp_path: Path) -> None:
    (tmp_path / "ASDiv.xml").write_text(ASDIV)
    (found,) = read_examples(tmp_path / "ASDiv.xml", "math")
    assert found.prompt == (
        "Seven red apples and two green apples are in the basket. "
        "How many apples are in the basket? The answer is"
    )
    assert found.answers == ("9 (apples)",)
    svamp = [
        {"ID": "chal-1", "Body": "Each pack costs 76 dollars", "Question": "What do 2 cost?", "Answer": 152.0}
    ]
    (tmp_path / "SVAMP.json").write_text(json.dumps(svamp))
    (found,) = read_examples(tmp_path / "SVAMP.json", "math")
    assert found == Example("Each pack costs 76 dollars. What do 2 cost? The answer is", ("152.0",))
    mawps = [
        {"sQuestion": "Joan has 9 and 3. How many?", "lSolutions": [12.0]},
        {"original_text": "2?", "ans": "2"},
    ]
    (tmp_path / "mawps.jsonl").write_text("\n".join(map(json.dumps, mawps)))
    assert [e.answers for e in read_examples(tmp_path / "mawps.jsonl", "math")] == [("12.0",), ("2",)]


def test_cloze_date_and_question_files(tmp_path: Path) -> None:
    lama = [
        {"masked_sentences": ["The capital of France is [MASK]."], "obj_label": "Paris"},
        {"masked_sentences": ["[MASK] was born there."], "obj_label": "She"},  # not the last word: left out
    ]
    (tmp_path / "lama.jsonl").write_text("\n".join(map(json.dumps, lama)))
    (found,) = read_examples(tmp_path / "lama.jsonl", "cloze")
    assert found.prompt.endswith(": The capital of France is") and found.answers == ("Paris",)
    dates: list[dict[str, object]] = [
        {
            "query": "Cristiano plays for _X_.",
            "answer": [{"name": "Juventus"}, {"name": "Al Nassr"}],
            "date": "2019",
        },
        {"question": "How many days ago was Monday?", "answer": "3", "current_date": "2023-02-02"},
    ]
    (tmp_path / "dates.jsonl").write_text("\n".join(map(json.dumps, dates)))
    first, second = read_examples(tmp_path / "dates.jsonl", "dates")
    assert first.answers == ("Juventus", "Al Nassr") and first.date == "2019-01-01"
    assert second.date == "2023-02-02" and second.prompt.endswith("Monday? Answer:")
    (tmp_path / "qa.jsonl").write_text(json.dumps({"question": "who?", "answers": ["A", "B"]}))
    assert read_examples(tmp_path / "qa.jsonl", "qa")[0].answers == ("A", "B")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.json", "{", "math"),
        ("a.json", "[3]", "math"),
        ("a.jsonl", '{"Question": "x"}', "math"),
        ("a.jsonl", '{"Answer": 3}', "math"),
        ("a.xml", "<a", "math"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "math"),
        ("a.jsonl", '{"masked_sentences": ["no gap"], "obj_label": "x"}', "cloze"),
        ("a.jsonl", '{"masked_sentences": []}', "cloze"),
        ("a.jsonl", '{"query": "x _X_"}', "dates"),
        ("a.jsonl", "", "qa"),
        ("a.jsonl", "{}", "poetry"),
        ("missing.jsonl", None, "math"),
    ],
)
def test_bad_files_are_one_line(name: str, content: str | None, kind: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        read_examples(tmp_path / name, kind)
    assert "\n" not in str(caught.value) and (name in str(caught.value) or "poetry" in str(caught.value))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" 8.", 8),
        ("the answer: $1,234.50, no 7", Fraction("1234.5")),
        ("5 + 3 = 8", 8),
        ("so 5+3=8 and 9", 8),
        ("x = 4, 7", 4),
        ("minus −3 degrees", -3),
        ("none", None),
        ("", None),
        ("٣", None),
    ],
)
def test_first_number(text: str, number: int | Fraction | None) -> None:
    assert first_number(text) == number


def test_scoring() -> None:
    assert is_right("math", " about 9 apples", ["9 (apples)"]) and is_right("math", " 152", ["152.0"])
    assert not is_right("math", " 15 or 152", ["152.0"]) and not is_right("math", "", ["1"])
    assert is_right("cloze", " the city of Paris, which", ["paris"])
    assert not is_right("cloze", " one of the cities that is Paris", ["Paris"])
    assert not in_first_words(" Parisian", ["Paris"]) and not in_first_words("x", [""])
    assert is_right("qa", "word " * 18 + "Rome", ["Rome"]) and not is_right(
        "qa", "word " * 20 + "Rome", ["Rome"]
    )


@given(st.text(max_size=40), st.lists(st.text(max_size=8), max_size=3))
def test_scoring_never_raises(text: str, answers: list[str]) -> None:
    for kind in ("math", "cloze", "dates", "qa"):
        assert is_right(kind, text, answers) in (True, False)


def test_evaluation_with_tools_and_without(writer: GPTModel) -> None:
    examples = [Example(text[: text.rindex(" ")], (text[:-1].split()[-1],)) for text in SUMS]
    seen: list[tuple[int, int]] = []
    with_tools = evaluate(
        writer,
        examples,
        "math",
        [Calculator()],
        max_new_tokens=4,
        at_once=10,
        on_progress=lambda *x: seen.append(x),
    )
    without = evaluate(writer, examples, "math", [], max_new_tokens=4)
    assert with_tools.call_rate > 0.9 and without.call_rate == 0
    assert with_tools.n == 36 and [done for done, _ in seen] == [10, 20, 30, 36]
    assert with_tools.accuracy == sum(r.right for r in with_tools.results) / 36
    assert all(
        r.right == is_right("math", r.written.split("</API>")[-1], r.answers) for r in with_tools.results
    )
    json.dumps(with_tools.to_json())


def test_nothing_is_not_measured(writer: GPTModel) -> None:
    with pytest.raises(InputError, match="no examples"):
        evaluate(writer, [], "math")
    with pytest.raises(InputError, match="at_once=0 must be at least 1"):
        evaluate(writer, [Example("3", ("3",))], "math", at_once=0)


# --- pre-filters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("There were 12 boys and 30 girls, 42 in all.", True),
        ("Of 1,400 people 400 came, so 1,000 stayed away.", True),
        ("8 boxes of 7 are 56.", True),
        ("It sums to a total of 17 euros.", True),
        ("x = 5", True),
        ("They are equal to 9.", True),
        ("Nothing to count.", False),
        ("12 and 30.", False),
        ("In 1871 it had 25 and 300 rooms.", False),
    ],
)
def test_what_a_calculator_may_help_with(text: str, worth: bool) -> None:
    assert may_calculate(Document(text), share=0.0) is worth


def test_the_numbers_must_stand_near_each_other() -> None:
    assert not may_calculate(Document("12 " + "word " * 200 + "30 and 42"), share=0.0)


def test_a_share_of_what_only_has_three_numbers_is_taken() -> None:
    documents = [Document(f"In {n} it had 25 and 3000 rooms.") for n in range(5000, 9000)]
    assert 15 <= sum(map(may_calculate, documents)) <= 75  # one in a hundred of 4000
    assert all(may_calculate(d, share=1.0) for d in documents)


def test_dates_and_languages() -> None:
    assert has_date(Document("x", date="2023-01-30")) and not has_date(Document("x"))
    assert date_of_url("a.org/20210305-x") == "2021-03-05" and date_of_url("a.org/2021/13/05") is None
    english = "This is a sentence that is written in plain English, "
    foreign = "das Wetter bleibt heute überall sehr schön und warm, sagt "
    assert may_translate(Document(english + foreign + english))
    assert not may_translate(Document(english * 3))
    assert not may_translate(Document(foreign + english))
    assert not may_translate(Document(english + "12345 " * 10 + english))
    odd = Document(english + "of the " * 5 + english)
    assert not may_translate(odd)
    for sure, expected in ((0.9, True), (0.7, False)):
        assert may_translate(odd, detect=lambda s, p=sure: ("de" if s[:2] == "of" else "en", p)) is expected


# --- pictures -----------------------------------------------------------------------------------------------

GOOD = Candidate(5, 5, Call("Calculator", "3<4"), "7", None, 0.4, 0.5, 3.0, 2.9, True)
BAD = Candidate(5, 5, Call("QA", "x"), "y", None, 0.1, 2.0, 1.0, 1.5, False)
FAILED = Candidate(8, 8, Call("QA", "z"), None, "error: none")
DOCUMENT = Annotated("1 & 2<is> 3", (BAD, FAILED, GOOD), "0")


def test_the_page_is_safe_and_says_all(tmp_path: Path) -> None:
    page = to_html([DOCUMENT], title="<b>")
    assert "<title>&lt;b&gt;</title>" in page and "1 &amp; 2" in page and "3&lt;4" in page
    assert page.index("Calculator(") < page.index("QA(x)")  # the best first
    assert page.count('class="kept"') == 1 and page.count('class="dropped"') == 2
    assert "L⁻ − L⁺ = +2.40" in page and "no result" in page and "http" not in page
    save_html([DOCUMENT], tmp_path / "a.html", only_kept=True)
    assert 'class="dropped"' not in (tmp_path / "a.html").read_text()


def test_colours_follow_the_gain() -> None:
    from ai_learning.toolformer.picture import _colour

    (r, g, b), (r2, g2, b2) = _colour(GOOD), _colour(BAD)
    assert g > r and g > b and r2 > g2 and r2 > b2 and len(set(_colour(FAILED))) == 1
    strong = Candidate(0, 0, GOOD.call, "7", None, 0.4, 0.0, 9.0, 9.0, True)
    assert sum(_colour(strong)) < sum(_colour(GOOD))


def test_the_terminal_shows_text_and_calls() -> None:
    shown = to_terminal(DOCUMENT).plain
    assert shown == "1 & 2[Calculator(3<4) → 7]+2.40[QA(x) → y]−1.00<is[QA(z) → error: none]> 3"
    assert to_terminal(DOCUMENT, only_kept=True).plain == "1 & 2[Calculator(3<4) → 7]+2.40<is> 3"
