"""The byte tokenizer: round trips over anything, and decoding that never raises."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.tokenizers import ByteTokenizer, Tokenizer, load

valid_text = st.text(st.characters(exclude_categories=("Cs",)))


def test_ids() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.eos_id, tokenizer.cls_id, tokenizer.vocab_size) == (256, 257, 258)
    assert tokenizer.encode("Aé€😀") == [65, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80]
    assert isinstance(tokenizer, Tokenizer)


@given(valid_text)
def test_text_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary())
def test_bytes_round_trip(data: bytes) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode_bytes(tokenizer.encode(data)) == data
    assert tokenizer.decode(list(data)) == data.decode("utf-8", errors="ignore")


@given(st.text(st.characters()))
def test_lone_surrogates_are_dropped(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text.encode("utf-8", "ignore").decode()


@given(st.lists(st.integers()), st.sampled_from(["ignore", "replace", "strict"]))
def test_decoding_never_raises(ids: list[int], errors: str) -> None:
    assert isinstance(ByteTokenizer(errors=errors).decode(ids), str)


@pytest.mark.parametrize("ids", [[], [256], [257, 256], [300], [-1], [0xC3], [0xFF, 0xFE], None, 5, ["a"]])
def test_nothing_to_decode_is_empty(ids: object) -> None:
    assert ByteTokenizer().decode(ids) == ""  # type: ignore[arg-type]


def test_special_ids_are_skipped() -> None:
    assert ByteTokenizer().decode([257, 72, 105, 256]) == "Hi"


def test_errors() -> None:
    assert ByteTokenizer(errors="replace").decode([65, 0xFF]) == "A\ufffd"
    assert ByteTokenizer(errors="strict").decode([65, 0xFF]) == ""
    with pytest.raises(ValueError, match="errors='what' is not known"):
        ByteTokenizer(errors="what")


def test_save_and_load(tmp_path: Path) -> None:
    ByteTokenizer(errors="replace").save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, ByteTokenizer)
    assert loaded.errors == "replace"
    assert loaded.fingerprint == ByteTokenizer().fingerprint


def test_load_names_the_problem(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer in"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{broken")
    with pytest.raises(InputError, match="not valid JSON"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"must hold a JSON object, not \[1\]"):
        load(tmp_path)


def test_what_is_written_for_bpe_runs_with_bytes_too():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("né", allowed_special="all", disallowed_special=())
    assert ids == tokenizer.encode_ordinary("né") == list(tokenizer.encode_iterable(["n", "é"]))
    assert tokenizer.encode_batch(["né", "x"], num_workers=2) == [ids, [120]]
    assert tokenizer.decode([195], errors="replace") == "\ufffd" and tokenizer.decode([195]) == ""
    assert tokenizer.decode([195], errors="no such word") == ""
