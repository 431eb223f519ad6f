"""HotPotQA's files, its exact match, and the small encyclopaedia that a ReAct actor searches."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from worlds import LIBRARY

from ai_learning.errors import InputError
from ai_learning.reflexion.tasks.base import ActingTask, Attempt, TextEnvironment
from ai_learning.reflexion.tasks.questions import (
    Articles,
    QuestionEnvironment,
    QuestionTask,
    SearchTask,
    exact_match,
    f1,
    normalized,
    read_questions,
)

ROW = {
    "_id": "5a8b",
    "question": "Were Scott Derrickson and Ed Wood of the same nationality?",
    "answer": "yes",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": [["Scott Derrickson", 0], ["Ed Wood", 0]],
    "context": [
        ["Scott Derrickson", ["Scott Derrickson is an American director.", " He lives in Los Angeles."]],
        ["Ed Wood", ["Edward Wood was an American filmmaker."]],
    ],
}
HUB_ROW = {
    **{key: ROW[key] for key in ("question", "answer")},
    "id": "5a8b",
    "context": {"title": [t for t, _ in ROW["context"]], "sentences": [s for _, s in ROW["context"]]},
}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, content)).encode()))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, content)) + "\n\n")
    else:
        path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_end_at_newlines_only_and_a_byte_order_mark_is_skipped(
    name: str, mark: str, tmp_path: Path
) -> None:
    rows = [{**ROW, "question": "One\u2028two\x85three?"}, {**ROW, "_id": "b"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = mark + (f"[{', '.join(lines)}]" if name == "a.json" else "\r\n".join(lines) + "\r\n")
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    first, _ = read_questions(tmp_path / name)
    assert first.prompt == "Question: One\u2028two\x85three?"


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.json", [ROW]),
        ("a.jsonl", [ROW]),
        ("a.jsonl.gz", [HUB_ROW]),
        ("a.jsonl", [HUB_ROW]),
        ("a.parquet", [HUB_ROW]),
    ],
)
def test_every_form_of_the_data_gives_the_same_tasks(name: str, rows: list, tmp_path: Path) -> None:
    (task,) = read_questions(write(tmp_path / name, rows))
    assert (task.id, task.answer) == ("5a8b", "yes")
    assert isinstance(task, SearchTask) and isinstance(task, ActingTask)
    assert isinstance(task.environment(), TextEnvironment)
    assert task.prompt == f"Question: {ROW['question']}" and "yes" not in task.prompt.split()
    assert task.library.find("ed wood")[0] == ("Ed Wood", ("Edward Wood was an American filmmaker.",))


def test_without_articles_it_is_one_for_chain_of_thought(tmp_path: Path) -> None:
    (task,) = read_questions(write(tmp_path / "a.jsonl", [{"question": "Why?", "answer": "because"}]))
    assert task.id == "1" and not isinstance(task, ActingTask)


def test_articles_may_come_from_everywhere(tmp_path: Path) -> None:
    other = {**ROW, "_id": "2", "context": [["Berlin", ["Berlin is a city."]]]}
    data = write(tmp_path / "a.json", [ROW, other])
    own = read_questions(data)
    assert own[0].library.find("Berlin")[0] is None  # type: ignore[attr-defined]
    shared = read_questions(data, shared=True)
    assert shared[0].library.find("Berlin")[0] is not None  # type: ignore[attr-defined]
    folder = tmp_path / "wiki"
    folder.mkdir()
    (folder / "New_York.txt").write_text("New York is large. It has a harbour! Who knew?")
    found, _ = read_questions(data, articles=folder)[0].library.find("new york")  # type: ignore[attr-defined]
    assert found == ("New York", ("New York is large.", "It has a harbour!", "Who knew?"))
    passages = read_questions(data, articles="builtin:reference")[0].library  # type: ignore[attr-defined]
    article, _ = passages.find("how a generator yields values")
    assert "generator" in " ".join(article[1]) and len(article[1]) > 1
    assert passages.find("xyzzy") == (None, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no question"),
        ("[]", "holds no question"),
        ("{nonsense", "cannot be read"),
        ("[1]", "row 1: an object was expected, not int"),
        ('[{"question": "Why?"}]', "row 1: it needs the texts `question` and `answer`"),
        ('[{"question": " ", "answer": "x"}]', "row 1: it needs the texts"),
        ('[{"question": "Why?", "answer": "x", "context": [1]}]', "row 1: `context` is not a list"),
        ('[{"question": "Why?", "answer": "x", "context": {"title": ["a"]}}]', "row 1: `context`"),
    ],
)
def test_bad_data_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_questions(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file at"):
        read_questions(tmp_path / "none.json")
    data = write(tmp_path / "a.json", [ROW])
    with pytest.raises(InputError, match="no folder of articles"):
        read_questions(data, articles=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt"):
        read_questions(data, articles=tmp_path / "empty")


# --- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "right", "same", "overlap"),
    [
        ("The Beatles", "Beatles", True, 1.0),
        ("an  Apple.", "apple", True, 1.0),
        ("U.S.", "us", True, 1.0),
        ("yes", "no", False, 0.0),
        ("yes it is", "yes", False, 0.0),
        ("New York City", "New York", False, 0.8),
        ("", "Berlin", False, 0.0),
    ],
)
def test_matching(given: str, right: str, same: bool, overlap: float) -> None:
    assert exact_match(given, right) is same
    assert f1(given, right) == pytest.approx(overlap)


def test_normalisation() -> None:
    assert normalized("The  Man, An Island: A-B!") == "man island ab"


@pytest.mark.parametrize(
    ("answer", "success", "said"),
    [
        ("Finish[Germany]", True, "correct"),
        ("germany.", True, "correct"),
        ("Finish[France]", False, "'France' is incorrect"),
        ("Search[Germany]", False, "No answer"),
        ("Lookup[Germany", False, "No answer"),
        ("", False, "No answer"),
    ],
)
def test_only_an_answer_counts(answer: str, success: bool, said: str) -> None:
    verdict = QuestionTask("q", "Where?", "Germany").evaluate(Attempt(answer=answer))
    assert verdict.success is success and said in verdict.feedback
    if not success:
        assert "Germany" not in verdict.feedback


# --- the world -------------------------------------------------------------------------------------


@pytest.fixture
def world() -> QuestionEnvironment:
    world = QuestionEnvironment(LIBRARY, "Germany")
    world.reset()
    return world


def test_searching(world: QuestionEnvironment) -> None:
    assert world.step("Search[Berlin]")[0] == "Berlin is a city. It is in Germany. It has a river."
    assert world.step("search [ BERLIN ]")[0].startswith("Berlin is")
    text, done, success = world.step("Search[a city in France]")
    assert text.startswith("There is no article 'a city in France'. Similar: Paris")
    assert (done, success) == (False, False)
    assert world.step("Search[xyzzy]")[0] == "There is no article 'xyzzy'."
    assert world.step("Search[]")[0] == "There is no article ''."


def test_looking_up_goes_through_the_hits(world: QuestionEnvironment) -> None:
    assert "search first" in world.step("Lookup[it]")[0]
    world.step("Search[Berlin]")
    assert world.step("Lookup[It ]")[0] == "(Result 1 / 3) Berlin is a city."
    assert world.step("Lookup[it]")[0] == "(Result 2 / 3) It is in Germany."
    assert world.step("Lookup[river]")[0] == "(Result 1 / 1) It has a river."
    assert world.step("Lookup[river]")[0] == "No more results for 'river'."
    world.step("Search[Paris]")
    assert world.step("Lookup[river]")[0] == "No more results for 'river'."
    world.reset()
    assert "search first" in world.step("Lookup[it]")[0]


def test_finishing_and_nonsense(world: QuestionEnvironment) -> None:
    assert world.step("Finish[the Germany]") == ("", True, True)
    assert world.step("Finish[France]") == ("", True, False)
    for action in ("dance", "Search", "Search Berlin", "", "Finish"):
        text, done, success = world.step(action)
        assert "That is no action" in text and not done and not success


def test_an_empty_library_answers_too() -> None:
    world = QuestionEnvironment(Articles([]), "x")
    world.reset()
    assert world.step("Search[anything]")[0] == "There is no article 'anything'."
