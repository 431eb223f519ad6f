"""The tiny world and what is measured in it."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from datetime import date as Date
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.cli import main
from ai_learning.cli.toolformer_demo import pretrained
from ai_learning.errors import InputError
from ai_learning.model import GPT
from ai_learning.toolformer import Annotated, Call, Candidate, GPTModel, interleave_ids
from ai_learning.toolformer.tiny import Tiny, TinyConfig, tokenizer, world
from ai_learning.toolformer.tiny.examples import examples
from ai_learning.toolformer.tiny.experiment import balanced, introduced, without_second_term
from ai_learning.toolformer.tiny.fit import fit, length_batches
from ai_learning.toolformer.tiny.measure import agreement, begins_with, is_right, perplexity
from ai_learning.toolformer.tiny.words import WordTokenizer
from ai_learning.toolformer.tiny.world import KINDS
from ai_learning.toolformer.tools import as_tools, run_call

SMALL = TinyConfig(
    n_layer=1, n_embd=16, n_head=2, pretrain_documents=200, bootstrap_epochs=1, documents=20, test_items=4
)


@pytest.fixture(scope="module")
def lm() -> GPTModel:
    torch.manual_seed(0)
    return GPTModel(GPT(SMALL.model()), tokenizer())


# --- the tokenizer ------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.sampled_from([*KINDS, "plain"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_text_call_and_answer_is_in_the_vocabulary(seed: int, kind: str, held_out: bool) -> None:
    item = world().item(kind, random.Random(seed), held_out)
    ids = tokenizer().encode(item.text)
    assert 0 not in ids and tokenizer().decode(ids) == item.text
    if item.call is not None:
        answer = run_call(item.call, as_tools(world().tools()), Date.fromisoformat(item.date or ""))
        asked = tokenizer().encode(str(item.call))
        assert tokenizer().decode(asked) == str(item.call)
        assert 0 not in asked and 0 not in tokenizer().encode(answer)


@given(st.integers(0, 9999))
def test_numbers_are_one_or_two_tokens(n: int) -> None:
    own = WordTokenizer(["a"])
    ids = own.encode(str(n))
    assert len(ids) == (1 if n < 1000 else 2) and own.decode(ids) == str(n)


def test_a_number_is_the_same_token_in_text_and_in_a_call() -> None:
    own = tokenizer()
    (in_text,) = own.encode("37")
    assert in_text in own.encode("Anna had 37 pears") and in_text in own.encode("Calculator(37 + 24)")


def test_marks_in_plain_text_are_unknown_words() -> None:
    own = tokenizer()
    assert not set(own.special_tokens.values()) & set(own.encode("<API>Calculator(3 + 4)→7</API>"))


def test_words_must_not_be_numbers() -> None:
    with pytest.raises(InputError, match="numbers or marks"):
        WordTokenizer(["12"])


# --- the world ----------------------------------------------------------------------------------------------


def test_the_answer_is_what_the_tool_says() -> None:
    own, tools = world(), as_tools(world().tools())
    for kind in KINDS:
        for seed in range(60):
            item = own.item(kind, random.Random(seed))
            assert item.call is not None and item.date is not None and item.call.tool == kind
            assert item.text[item.start :].startswith(" " + item.answer)
            answer = run_call(item.call, tools, Date.fromisoformat(item.date))
            assert item.answer in answer
            assert item.answer not in item.prompt.split(": ")[-1].split() or kind == "Calculator"


def test_held_out_problems_are_in_no_other_document() -> None:
    own = world()
    tested = {str(own.item(k, random.Random(s), True).call) for k in KINDS for s in range(200)} - {
        "Calendar()"
    }
    read = Counter(str(item.call) for item in own.items(4000, "read", plain=0.0))
    assert not tested & read.keys()
    exercises = " ".join(item.text for item in own.items(3000, "read", plain=1.0))
    assert not any(f"({call.split('(', 1)[1]}" in exercises for call in tested)


def test_shares_of_kinds() -> None:
    kinds = Counter(item.kind for item in world().items(4000, "shares", plain=0.4))
    assert abs(kinds["plain"] / 4000 - 0.4) < 0.03
    assert all(abs(kinds[kind] / 4000 - 0.2) < 0.03 for kind in KINDS)


def test_the_same_seed_gives_the_same_documents() -> None:
    first, again, other = (list(world().items(50, seed, 0.5)) for seed in ("a", "a", "b"))
    assert first == again != other


def test_there_are_1200_facts_of_which_a_fifth_is_held_out() -> None:
    assert len(world().facts) == 1200 and len(world().held_out_facts) == 240
    answers = Counter(world().facts.values())
    assert max(answers.values()) < 15  # no answer is a good guess


def test_plain_documents_need_no_tool() -> None:
    for item in world().items(200, "plain", plain=1.0):
        assert item.call is None and item.answer == "" and item.prompt == ""


# --- the hand-written examples ------------------------------------------------------------------------------


def test_what_the_person_wrote_is_what_the_tools_say(lm: GPTModel) -> None:
    found = examples(lm, world().tools())
    assert len(found) == 50
    for document in found:
        (call,) = document.kept
        assert call.result is not None
        after = document.text[call.offset :].split(".")[0].split(" ", 1)[1]
        answer = after if after.startswith(call.result) else after.split(" ")[0].strip(",.")
        assert answer.split()[0].strip(",.") in call.result.replace(",", " ").replace(".", " ").split()
        assert lm.decode(lm.encode(document.text)[: call.position]) == document.text[: call.offset]
        assert 0 not in interleave_ids(lm, document)


def test_no_held_out_fact_is_given_away(lm: GPTModel) -> None:
    asked = {d.kept[0].call.argument for d in examples(lm, world().tools()) if d.kept[0].call.tool == "QA"}
    assert len(asked) == 10 and not asked & world().held_out_facts


# --- training and measuring ---------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 9), min_size=1, max_size=60), st.integers(1, 40))
def test_each_row_stands_in_one_batch(lengths: list[int], tokens: int) -> None:
    rows = [[number] * length for number, length in enumerate(lengths)]
    batches = length_batches(rows, tokens, seed=0)
    seen = sorted(int(row[0]) for batch in batches for row in batch)
    assert seen == list(range(len(rows)))
    assert all(batch.numel() <= max(tokens, batch.size(1)) for batch in batches)


def test_fit_learns_and_repeats() -> None:
    rows = [[5, 6, 7, 8, 9]] * 40
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model, losses = GPT(SMALL.model()), []
        fit(
            model,
            length_batches(rows, 10, 0),
            lr=0.01,
            embedding_lr=0.01,
            muon_lr=0.02,
            listener=lambda step, loss, losses=losses: losses.append(loss),
        )
        assert losses[-1] < 0.7 * losses[0]
        weights.append(model.wte.weight.clone())
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        (" 12 pears", "12", True),
        ("120", "12", False),
        ("Onhava.", "Onhava", True),
        ("", "12", False),
        ("1", "12", False),
    ],
)
def test_begins_with(text: str, answer: str, right: bool) -> None:
    assert begins_with(text, answer) == right


def test_perplexity_is_that_of_the_logits_without_api(lm: GPTModel) -> None:
    texts = [item.text for item in world().items(5, "perplexity", 0.5)]
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([[lm.eos_id, *lm.encode(text), lm.eos_id]])
        logits = lm.model(ids[:, :-1]).index_fill(-1, torch.tensor([lm.start_id]), -math.inf)
        total += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        count += ids.size(1) - 1
    assert perplexity(lm, texts) == pytest.approx(math.exp(total / count), rel=1e-4)


def test_right_is_the_call_at_the_answer() -> None:
    item = world().item("Calculator", random.Random(3))
    assert item.call is not None
    candidate = Candidate(9, item.start, item.call, item.answer, kept=True)
    a, sign, b = item.call.argument.split()
    turned = Call("Calculator", f"{b} {sign} {a}")
    assert is_right(item, candidate)
    assert is_right(item, replace(candidate, call=turned)) == (sign != "-")
    assert not is_right(item, replace(candidate, offset=item.start - 1))
    assert not is_right(item, replace(candidate, call=Call("Calculator", f"{a} {sign} {int(b) + 1}")))
    assert not is_right(item, replace(candidate, call=Call("QA", item.call.argument)))
    wrong = replace(candidate, call=Call("Calculator", "1 + 1"))
    missed = replace(candidate, kept=False)
    found = agreement(
        [item, item], [Annotated(item.text, (candidate, wrong)), Annotated(item.text, (missed,))]
    )
    assert found["Calculator"].precision == 0.5 and found["Calculator"].recall == 0.5
    assert math.isnan(found["QA"].precision) and found["QA"].sampled == 0


def test_without_the_second_term_a_leaked_answer_is_kept() -> None:
    leaked = Candidate(
        1, 1, Call("Calculator", "61"), "61", loss_result=0.2, loss_nothing=3.0, loss_call=0.3, kept=False
    )
    (judged,) = without_second_term([Annotated("x", (leaked,))], SMALL.settings())
    assert judged.candidates[0].kept and leaked.gain < 1.0


def kept(tool: str, number: int) -> Annotated:
    return Annotated(f"{number}", (Candidate(1, 1, Call(tool, ""), "x", kept=True),))


@pytest.mark.parametrize(
    ("rounds", "most", "enough", "made"),
    [(1, 6, 8, 4), (1, 6, 2, 1), (3, 6, 2, 3), (2, 3, 99, 3), (4, 2, 99, 4)],
)
def test_rounds_go_on_until_the_rarest_tool_has_enough(
    rounds: int, most: int, enough: int, made: int
) -> None:
    """Each round keeps two calls of one tool, and nine of the others."""
    config = replace(SMALL, rounds=rounds, most_rounds=most, enough=enough)
    trained: list[str] = []

    class Fake(Tiny):
        def annotate(self, annotator: GPT, number: int):  # type: ignore[no-untyped-def]
            found = [kept(kind, n) for kind in KINDS for n in range(2 if kind == "QA" else 9)]
            return list(self.world.items(len(found), f"{number}", 0.5)), found

        def tuned(self, m: GPT, documents, stage: str) -> GPT:  # type: ignore[no-untyped-def]
            trained.append(stage)
            return m

        def compare(self, m: GPT, corpus):  # type: ignore[no-untyped-def]
            self.corpus = corpus
            return {}, m

    fake = Fake(config)
    fake.bootstrap = lambda m: m  # type: ignore[method-assign]
    results = fake.run(GPT(SMALL.model()))
    assert len(results.agreement) == made
    assert trained == [f"annotator {number}" for number in range(2, made + 1)]
    assert Counter(d.kept[0].call.tool for d in fake.corpus) == {
        "QA": 2 * made, "Calculator": 4 * made, "Calendar": 4 * made
    }  # fmt: skip


def test_no_tool_has_more_than_twice_the_documents_of_the_rarest() -> None:
    documents = [kept("Calendar", n) for n in range(9)] + [
        kept("QA", 1),
        kept("QA", 2),
        kept("Calculator", 3),
    ]
    counts = Counter(d.kept[0].call.tool for d in balanced(documents))
    assert counts == {"Calendar": 2, "QA": 2, "Calculator": 1}
    assert balanced(documents)[0] is documents[0]


def test_marks_begin_like_the_words_they_resemble(lm: GPTModel) -> None:
    model, own = GPT(SMALL.model()), tokenizer()
    before = model.wte.weight.detach().clone()
    after = introduced(model, own).wte.weight.detach()
    changed = {own.token(int(i)) for i in (before != after).any(1).nonzero()}
    assert changed == {"<API>", "→", "</API>", *KINDS}
    assert (after[own.ids["QA"]] - before[own.ids["see"]]).abs().max() < 0.1
    assert (after[own.ids["→"]] - before[own.ids["["]]).abs().max() < 0.1


# --- end to end ---------------------------------------------------------------------------------------------


def test_a_model_that_learned_nothing_says_so() -> None:
    with pytest.raises(InputError, match="no call was kept in round 1"):
        Tiny(SMALL).run()


def test_an_interrupted_demo_does_not_pretrain_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, pretrain_documents=40)
    first = pretrained(Tiny(config), tmp_path / "m.pt")
    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "pretrain", lambda self: pytest.fail("pre-trained again"))
        again = pretrained(Tiny(config), tmp_path / "m.pt")
    assert torch.equal(first.wte.weight, again.wte.weight)
    other = pretrained(Tiny(replace(config, seed=1)), tmp_path / "m.pt")
    assert not torch.equal(first.wte.weight, other.wte.weight)


def test_the_command_refuses_a_folder_that_is_not_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert main(["toolformer", "demo", "--out", str(tmp_path)]) == 2
    assert "holds something other than a demo" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_tool_has_its_threshold() -> None:
    with pytest.raises(InputError, match="a threshold for each of Calculator, Calendar, QA"):
        replace(SMALL, tau_f={"QA": 1.0})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--k 0", "k=0 must be at least 1"),
        ("--m -1", "m=-1 must be at least 1"),
        ("--test-items 0", "test_items=0 must be at least 1"),
        ("--pretrain-documents 0", "pretrain_documents=0 must be at least 1"),
        ("--documents 0", "documents=0 must be at least 1"),
        ("--batch-tokens 0", "batch_tokens=0 must be at least 1"),
        ("--rounds 0", "rounds=0 must be at least 1"),
        ("--enough -1", "enough=-1 must be at least 0"),
        ("--seed -1", "seed=-1 must be from 0"),
        ("--seed 99999999999999999999", "seed=99999999999999999999 must be from 0"),
        ("--lr nan", "lr=nan must be a positive number"),
        ("--pretrain-plain 1.5", "pretrain_plain=1.5 is a share"),
        ("--tau-s 2", "tau_s=2.0 is a probability"),
        ("--n-head 3", "n_head=3 must divide n_embd=128"),
    ],
)
def test_the_command_refuses_values_without_sense_at_the_start(
    args: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tiny, "pretrain", lambda self: pytest.fail("pre-training began"))
    assert main(["toolformer", "demo", "--out", str(tmp_path / "out"), *args.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["toolformer", "demo", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--pretrain-documents" in shown and "--seed" in shown and "--out" in shown


@pytest.mark.slow
def test_the_demo_reaches_its_bars_with_a_seed_named_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paper's comparison at full size; about four CPU minutes."""
    seed = "20261"
    assert main(["toolformer", "demo", "--seed", seed, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    means = {name: sum(s["accuracy"].values()) / 3 for name, s in found["scores"].items()}
    assert means["Toolformer"] >= 0.75 and min(found["scores"]["Toolformer"]["accuracy"].values()) >= 0.6
    assert means["M"] <= 0.1 and means["M + C"] <= 0.1 and means["Toolformer (disabled)"] <= 0.1
    for kind in ("perplexity", "perplexity_no_tool"):
        assert found["scores"]["Toolformer"][kind] <= 1.05 * found["scores"]["M + C"][kind]
    assert sum(found["CPU seconds"].values()) < 600
    assert "Toolformer" in capsys.readouterr().out and (tmp_path / "report.html").stat().st_size > 2000
