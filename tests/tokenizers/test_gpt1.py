"""GPT-1's tokenizer beside transformers'."""

import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.text import read_text
from ai_learning.tokenizers import GPT1Tokenizer, load
from ai_learning.tokenizers.gpt1 import normalize, split

MIXED = """The QUICK brown fox, naïve café; Ünïcödé! "don't" — 東京タワー and 北京 … Привет, мир?
Ελληνικά ΣΊΣΥΦΟΣ, العربية, עברית, हिन्दी, ไทย, 한국어 🙂 a\tb\r\nc\x0bd\x85e\u3000f
İstanbul straße ﬁ ½ <unk> </w> x</w>y"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, GPT1Tokenizer]:
    """A vocabulary of GPT-1's kind learned on the spot, in transformers and in ours."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=900, end_of_word_suffix="</w>", special_tokens=["<unk>"], show_progress=False
    )
    trained.train_from_iterator([read_text("builtin:reference")[:100_000], MIXED], trainer)
    model = json.loads(trained.to_str())["model"]
    folder = tmp_path_factory.mktemp("gpt1")
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges + "\n", encoding="utf-8")
    theirs = transformers.OpenAIGPTTokenizer(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]])
    return theirs, GPT1Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")


def test_mixed_languages(pair: tuple[Any, GPT1Tokenizer]) -> None:
    theirs, ours = pair
    text = MIXED.replace("<unk>", "")  # transformers takes it for the special token
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.vocab["<unk>"] in ours.encode("a ☃ b")
    assert ours.decode(ids) == theirs.backend_tokenizer.decode(ids, skip_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn"]), max_size=40))
def test_random_texts(pair: tuple[Any, GPT1Tokenizer], text: str) -> None:
    theirs, ours = pair
    # transformers' category tables are older than Python's: only what both know can agree.
    known = (c for c in text if unicodedata.ucd_3_2_0.category(c) != "Cn" and ord(c) not in CHANGED)
    text = "".join(known).replace("<unk>", "")
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_every_code_point_that_both_know() -> None:
    from tokenizers import normalizers, pre_tokenizers

    theirs, words = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    wrong = []
    for code in range(sys.maxunicode + 1):
        c = chr(code)
        if unicodedata.ucd_3_2_0.category(c) in ("Cn", "Cs") or 0x3040 < code < 0x3400 or code in CHANGED:
            continue
        expected = theirs.normalize_str(f"a{c}B")
        if normalize(f"a{c}B") != expected or split(expected) != [
            w for w, _ in words.pre_tokenize_str(expected)
        ]:
            wrong.append(hex(code))
    assert not wrong


CHANGED = {0x166D, 0x1734, 0x180E, 0x1885, 0x1886}  # changed category between the two versions of Unicode


def test_save_and_load(pair: tuple[Any, GPT1Tokenizer], tmp_path: Path) -> None:
    _, ours = pair
    ours.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again, GPT1Tokenizer) and again.fingerprint == ours.fingerprint
    assert again.encode(MIXED) == ours.encode(MIXED)
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("the statement, again", add_special_tokens=False) == ours.encode(
        "the statement, again"
    )


def test_faults_are_named(tmp_path: Path) -> None:
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocab.write_text('{"<unk>": 0, "a": 1, "b</w>": 2}')
    merges.write_text("a b</w>\n")
    with pytest.raises(InputError, match="lacks 'ab</w>'"):
        GPT1Tokenizer.from_files(vocab, merges)
    merges.write_text("#version: 0.2\na\n")
    with pytest.raises(InputError, match="line 2: a merge is two tokens, got 'a'"):
        GPT1Tokenizer.from_files(vocab, merges)
    with pytest.raises(InputError, match="no <unk>"):
        GPT1Tokenizer({"a": 0}, [])
    vocab.write_text("[]")
    with pytest.raises(InputError, match="must be a JSON object"):
        GPT1Tokenizer.from_files(vocab, merges)
    with pytest.raises(InputError, match="cannot read"):
        GPT1Tokenizer.from_files(tmp_path / "no.json", merges)
