"""Other tools' files, both ways, opened by the other tool."""

import base64
import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai_learning.errors import InputError
from ai_learning.token_file import TokenFile
from ai_learning.tokenizers import BPETokenizer, load

TEXT = "Hello, wörld! It's 12345 o'clock —\r\n\tnew  line 日本語 👍🏽 'tis \u00a0x  \n "


@pytest.fixture(scope="module", params=["gpt2", "gpt4", "gpt4-original", "nanochat", None, r"\p{L}+|\P{L}+"])
def trained(request):
    texts = [
        TEXT * 5,
        "the quick brown fox jumps over the lazy dog's back; it isn't 1234567 times quicker. " * 9,
    ]
    return BPETokenizer.train(texts, 330, pattern=request.param, special_tokens=["<|endoftext|>", "<|pad|>"])


def same(a, b):
    assert a.vocab == b.vocab and a.merges == b.merges and a.special_tokens == b.special_tokens
    assert a.fingerprint == b.fingerprint
    assert a.encode(TEXT + "<|pad|>", allowed_special="all") == b.encode(
        TEXT + "<|pad|>", allowed_special="all"
    )


def test_save_and_load(trained, tmp_path):
    trained.save(tmp_path)
    same(load(tmp_path), trained)


def test_tokenizer_json_opens_in_tokenizers(trained, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    trained.to_tokenizer_json(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [TEXT, " \n", "a \n ", "x<|pad|>y<|endoftext|>", "1234567", "'S ſ 'ſ IT'S"]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ids == trained.encode(text, allowed_special="all"), text
        assert theirs.decode(ids, skip_special_tokens=False) == text
    same(BPETokenizer.from_tokenizer_json(tmp_path / "tokenizer.json"), trained)


@pytest.fixture
def thinking(trained):
    """With tokens that anyone may write, as Qwen 3 has, and runs of white space, as GPT-NeoX has."""
    plain = ["<think>", "</think>", "\t\t", "\t\t\t\t"]
    names = [*trained.special_tokens, *plain]
    vocab = {i: token for i, token in trained.vocab.items() if i not in trained.special_tokens.values()}
    return BPETokenizer(vocab, trained.merges, names, trained.pattern, plain_tokens=plain)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.sampled_from(["<think>", "</think>", "<|pad|>", " ", "\t", "\t\t", "a", "\n", "é1", "<thi"])
    )
)
def test_tokens_that_are_not_special_are_theirs_in_any_text(thinking, tmp_path, pieces):
    tokenizers = pytest.importorskip("tokenizers")
    thinking.to_tokenizer_json(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    same(BPETokenizer.from_tokenizer_json(tmp_path / "tokenizer.json"), thinking)
    text = "".join(pieces)
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert thinking.encode(text, allowed_special="all") == ids
    text = text.replace("<|pad|>", "")
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert theirs.decode(ids, skip_special_tokens=True) == text == thinking.decode(ids)
    for found in (
        thinking.encode(text),
        thinking.encode(text, disallowed_special=()),
        thinking.encode(text, dropout=1e-9, seed=0) if thinking.pattern.regex else ids,
        thinking.encode_ordinary(text),
        thinking.encode_to_numpy(text).tolist(),
        thinking.encode_batch([text])[0],
        thinking.encode_ordinary_batch([text])[0],
        list(thinking.encode_iterable(iter(text))),
        thinking.encode_with_offsets(text)[0],
        pickle.loads(pickle.dumps(thinking)).encode(text),
        thinking.with_special_tokens(thinking.special_tokens).encode(text),
    ):
        assert found == ids


def test_only_special_tokens_are_refused(thinking, trained, tmp_path):
    assert thinking.special_tokens_set == {"<|endoftext|>", "<|pad|>"}
    with pytest.raises(InputError, match=r"special token '<\|pad\|>'"):
        thinking.encode("<think> <|pad|>")
    all_special = BPETokenizer(thinking.vocab, thinking.merges, thinking.special_tokens, thinking.pattern)
    assert all_special.fingerprint != thinking.fingerprint
    with pytest.raises(InputError, match="special token '<think>'"):
        all_special.encode("a<think>")
    with pytest.raises(InputError, match=r"plain_tokens=\['<no>'\] are not among the special_tokens"):
        BPETokenizer(trained.vocab, trained.merges, trained.special_tokens, plain_tokens=["<no>"])
    (tmp_path / "a.txt").write_text("a<think>b\t\t<|pad|>", encoding="utf-8")
    thinking.encode_files(tmp_path / "a.txt", tmp_path / "a.tokens", allowed_special=(), append_eos=False)
    tokens = TokenFile(tmp_path / "a.tokens").tokens.tolist()
    assert tokens == thinking.encode("a<think>b\t\t<|pad|>", disallowed_special=())


def test_folder_opens_in_transformers(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(TEXT, add_special_tokens=False) == trained.encode(TEXT)
    assert theirs.eos_token_id == trained.eos_id and len(theirs) == trained.vocab_size


def test_reads_what_tokenizers_wrote(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator([TEXT * 20], trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load(tmp_path)
    assert ours.eos_id == 0  # theirs numbers special tokens first
    assert ours.encode(TEXT) == theirs.encode(TEXT).ids
    assert ours.decode(ours.encode(TEXT)) == TEXT
    ours.to_tokenizer_json(tmp_path / "again.json")
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "again.json"))
    assert again.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("version_line", [True, False])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_gpt2_files(trained, tmp_path, version_line, newline):
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    trained.to_gpt2_files(vocab, merges, version_line=version_line)
    assert merges.read_text(encoding="utf-8").startswith("#version") == version_line
    merges.write_bytes(merges.read_bytes().replace(b"\n", newline.encode()))
    again = BPETokenizer.from_gpt2_files(
        vocab, merges, special_tokens=["<|endoftext|>", "<|pad|>"], pattern=trained.pattern
    )
    same(again, trained)
    transformers = pytest.importorskip("transformers")
    if trained.pattern.name == "gpt2" and newline == "\n":
        theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
        assert theirs.encode(TEXT) == trained.encode(TEXT)


def test_openai_gpt2_files(published, data_folder, tmp_path):
    assert published.vocab_size == 50257 and published.eos_id == 50256
    assert published.encode("Hello world") == [15496, 995]
    published.to_gpt2_files(tmp_path / "v.json", tmp_path / "m.txt", version_line=False)
    assert json.loads((tmp_path / "v.json").read_text()) == json.loads(
        (data_folder / "gpt2_vocab.json").read_text(encoding="utf-8")
    )
    assert (tmp_path / "m.txt").read_bytes() == (data_folder / "gpt2_merges.txt").read_bytes()


def test_tiktoken_files(trained, tmp_path):
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    path = tmp_path / "ranks.tiktoken"
    trained.to_tiktoken_file(path)
    same(
        BPETokenizer.from_tiktoken_file(path, trained.pattern, special_tokens=trained.special_tokens), trained
    )
    if trained.pattern.name in ("gpt2", "gpt4", "nanochat"):
        theirs = tiktoken.Encoding(
            "ours",
            pat_str=trained.pattern.regex,
            mergeable_ranks=load_tiktoken_bpe(str(path)),
            special_tokens=trained.special_tokens,
        )
        text = TEXT + "<|pad|>"
        assert theirs.encode(text, allowed_special="all") == trained.encode(text, allowed_special="all")


def test_tiktoken_tokens_that_merges_cannot_reach(tmp_path):
    """tiktoken gives a word that is a token its id, even if no merges lead there."""
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {bytes([i]): i for i in range(256)} | {b"ab": 256, b"xyz": 257, b"abc": 258}
    path = tmp_path / "odd.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for token, i in ranks.items()))
    ours = BPETokenizer.from_tiktoken_file(path, "gpt2")
    theirs = tiktoken.Encoding("odd", pat_str=ours.pattern.regex, mergeable_ranks=ranks, special_tokens={})
    for text in ["xyz", "axyz", "abc xyz", "xyz" * 300, ("xyz " * 300)]:
        assert ours.encode(text) == theirs.encode(text)
    ours.save(tmp_path)
    same(load(tmp_path), ours)


def minbpe_load(path):
    """How minbpe's ``Tokenizer.load`` reads a model."""
    with open(path, encoding="utf-8") as file:
        assert file.readline().strip() == "minbpe v1"
        pattern = file.readline().strip()
        special = {}
        for _ in range(int(file.readline().strip())):
            token, number = file.readline().strip().split()
            special[token] = int(number)
        merges, index = {}, 256
        for line in file:
            merges[tuple(map(int, line.split()))] = index
            index += 1
    vocab = {i: bytes([i]) for i in range(256)}
    for (left, right), i in merges.items():
        vocab[i] = vocab[left] + vocab[right]
    return pattern, special, vocab


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4-original", None])
def test_minbpe_files(tmp_path, pattern):
    tokenizer = BPETokenizer.train([TEXT * 9], 300, pattern=pattern, tie_break="minbpe")
    path = tmp_path / "a.model"
    tokenizer.to_minbpe_file(path)
    same_pattern, special, vocab = minbpe_load(path)
    assert special == tokenizer.special_tokens and same_pattern == tokenizer.pattern.regex
    assert {**vocab, 299: b"<|endoftext|>"} == tokenizer.vocab
    same(BPETokenizer.from_minbpe_file(path), tokenizer)


def test_minbpe_renumbers_only_when_told(tmp_path):
    tokenizer = BPETokenizer.train([TEXT * 9], 300)
    with pytest.raises(InputError, match=r"renumber=True"):
        tokenizer.to_minbpe_file(tmp_path / "a.model")
    tokenizer.to_minbpe_file(tmp_path / "a.model", renumber=True)
    again = BPETokenizer.from_minbpe_file(tmp_path / "a.model")
    assert again.merges == tokenizer.merges
    assert [again.vocab[i] for i in again.encode(TEXT)] == [
        tokenizer.vocab[i] for i in tokenizer.encode(TEXT)
    ]


def test_wrong_and_damaged_files_name_the_place(tmp_path):
    good = BPETokenizer.train([TEXT * 9], 300)
    good.save(tmp_path)
    good.to_gpt2_files(tmp_path / "v.json", tmp_path / "m.txt")
    good.to_tiktoken_file(tmp_path / "r.tiktoken")
    good.to_minbpe_file(tmp_path / "b.model", renumber=True)

    def damage(name, old, new):
        path = tmp_path / f"damaged-{name}"
        data = (tmp_path / name).read_bytes()
        assert old in data
        path.write_bytes(data.replace(old, new, 1))
        return path

    def read_json(change):
        data = json.loads((tmp_path / "tokenizer.json").read_text())
        change(data)
        path = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}.json"
        path.write_text(json.dumps(data))
        return lambda: BPETokenizer.from_tokenizer_json(path)

    merges = (tmp_path / "m.txt").read_bytes().split(b"\n")
    ranks = (tmp_path / "r.tiktoken").read_bytes().split(b"\n")
    pairs = (tmp_path / "b.model").read_bytes().split(b"\n")
    cases = [
        (lambda: BPETokenizer.from_tokenizer_json(tmp_path / "none.json"), "no file at"),
        (lambda: BPETokenizer.from_tokenizer_json(tmp_path), "is a folder"),
        (lambda: BPETokenizer.from_tokenizer_json(damage("tokenizer.json", b'"model"', b'"model')), "line .* column"),  # noqa: E501
        (read_json(lambda d: d["model"].update(type="WordPiece")), "WordPiece"),
        (read_json(lambda d: d.update(normalizer={"type": "NFC"})), "NFC"),
        (read_json(lambda d: d["pre_tokenizer"].update(add_prefix_space=True)), "add_prefix_space"),
        (read_json(lambda d: d.update(pre_tokenizer={"type": "Whitespace"})), "Whitespace"),
        (read_json(lambda d: d["model"]["merges"].__setitem__(3, ["a"])), "merge 3"),
        (read_json(lambda d: d["model"]["merges"].__setitem__(3, ["€", "b"])), "merge 3.*'€'"),
        (read_json(lambda d: d["model"]["vocab"].update(a="b")), "the id of 'a' is 'b'"),
        (read_json(lambda d: d["model"]["vocab"].pop("a")), "single bytes"),
        (read_json(lambda d: d["model"].update(vocab=[])), "model.vocab"),
        (read_json(lambda d: d["added_tokens"].append({"id": "x"})), "added_tokens"),
        (lambda: BPETokenizer.from_gpt2_files(damage("v.json", b'"!": 0', b'"!": 1'), tmp_path / "m.txt"), "id 1"),  # noqa: E501
        (lambda: BPETokenizer.from_gpt2_files(tmp_path / "v.json", damage("m.txt", merges[5], b"one")), "line 6"),  # noqa: E501
        (lambda: BPETokenizer.from_gpt2_files(tmp_path / "v.json", damage("m.txt", merges[5], b"Z Z")), "merge 4.*b'ZZ'"),  # noqa: E501
        (lambda: BPETokenizer.from_gpt2_files(tmp_path / "v.json", damage("m.txt", merges[5], b"\xff \xff")), "not UTF-8"),  # noqa: E501
        (lambda: BPETokenizer.from_tiktoken_file(damage("r.tiktoken", ranks[7], b"????")), "line 8"),
        (lambda: BPETokenizer.from_tiktoken_file(damage("r.tiktoken", ranks[7], ranks[6])), "line 8.*already"),  # noqa: E501
        (lambda: BPETokenizer.from_tiktoken_file(damage("r.tiktoken", ranks[7] + b"\n", b"")), "0x28"),
        (lambda: BPETokenizer.from_minbpe_file(damage("b.model", b"minbpe v1", b"minbpe v9")), "line 1"),
        (lambda: BPETokenizer.from_minbpe_file(damage("b.model", pairs[-3], b"99999 1")), f"line {len(pairs) - 2}"),  # noqa: E501
        (lambda: load(tmp_path / "nowhere"), "no tokenizer in"),
    ]  # fmt: skip
    for read, complaint in cases:
        with pytest.raises(InputError, match=complaint) as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_change_the_text_around_them(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    BPETokenizer.train(["low lower lowest"], 260).to_tokenizer_json(path)
    data = json.loads(path.read_text())
    data["added_tokens"][0][name] = True
    path.write_text(json.dumps(data))
    with pytest.warns(UserWarning, match=rf"the token '<\|endoftext\|>' has {name}, which is not followed"):
        BPETokenizer.from_tokenizer_json(path)


def test_ids_that_are_too_large_and_json_that_is_too_deep(tmp_path):
    ranks = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(255)]
    path = tmp_path / "a.tiktoken"
    path.write_text("\n".join([*ranks, f"{base64.b64encode(bytes([255])).decode()} {10**11}"]))
    with pytest.raises(InputError, match=r"id 100000000000 is too large for 25\d tokens"):
        BPETokenizer.from_tiktoken_file(path)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        BPETokenizer.from_tokenizer_json(path)
