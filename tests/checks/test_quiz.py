"""Each question has one right choice, and every choice is explained."""

import pytest

from ai_learning.checks import quiz
from ai_learning.checks.questions import QUESTIONS
from ai_learning.errors import InputError


@pytest.mark.parametrize("name", QUESTIONS)
def test_one_right_choice_and_every_choice_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    question = QUESTIONS[name]
    assert sum(choice.right for choice in question.choices) == 1
    assert len({choice.why for choice in question.choices}) == len(question.choices) >= 3
    assert quiz(name) is None
    shown = capsys.readouterr().out
    assert question.text in shown and "  a) " in shown and "right" not in shown.split("\n")[0][:5]
    verdicts = [quiz(name, letter) for letter in "abc"]
    assert [bool(v) for v in verdicts] == [choice.right for choice in question.choices]


def test_bad_names_and_choices_say_what_to_do() -> None:
    with pytest.raises(InputError, match=r"no question 'day1.msk'; did you mean 'day1.mask'"):
        quiz("day1.msk")
    with pytest.raises(InputError, match="choose one of a, b, c"):
        quiz("day1.mask", "z")
