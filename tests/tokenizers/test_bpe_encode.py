"""Encoding and decoding, against tiktoken, against the readable algorithm, and on what breaks tokenizers."""

import pickle
import random
import time

import numpy as np
import pytest
from random_texts import MULTILINGUAL, random_text

from ai_learning.errors import InputError
from ai_learning.tokenizers import BPETokenizer, Tokenizer, UnknownTokenError, bpe, fast
from ai_learning.tokenizers.fast_encoder import FastEncoder
from ai_learning.tokenizers.kernels import state
from ai_learning.tokenizers.pretokenize import splitter
from ai_learning.tokenizers.streaming import safe_byte_chunks, safe_chunks, safe_cut, safe_cut_bytes

needs_numba = pytest.mark.skipif(not fast.has_numba(), reason="no numba")


def plain(tokenizer):
    """The same tokenizer, kept from the compiled path."""
    copy = pickle.loads(pickle.dumps(tokenizer))
    copy._fast_refused = True
    return copy


def compiled(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.prepare()
    return copy


@pytest.fixture(scope="module")
def small():
    text = (
        "the cat sat on the mat. the bat's hat isn't that fat, 'tis 1234 times flatter! " * 3 + MULTILINGUAL
    )
    return BPETokenizer.train([text], 400)


def test_is_a_tokenizer(small):
    assert isinstance(small, Tokenizer)
    assert small.vocab_size == 400 and small.eos_id == 399
    assert small.vocab[399] == b"<|endoftext|>" and len(small.merges) == 143


@pytest.mark.parametrize("make", [plain, pytest.param(compiled, marks=needs_numba)])
def test_equals_the_readable_algorithm(small, make):
    """``bpe.encode`` on raw bytes, its ids put in this vocabulary's numbering."""
    number = {token: i for i, token in small.vocab.items()}
    raw = {bytes([i]): i for i in range(256)}
    merges = []
    for left, right in small.merges:
        merges.append((raw[left], raw[right]))
        raw[left + right] = 256 + len(merges) - 1
    back = {i: token for token, i in raw.items()}
    tokenizer, split = make(small), splitter(small.pattern)
    generator = random.Random(0)
    for text in [MULTILINGUAL, *(random_text(generator, 40) + "the that's flat" for _ in range(60))]:
        words = [bpe.encode(word.encode(), merges) for word in split(text)]
        expected = [number[back[i]] for ids in words for i in ids]
        assert tokenizer.encode(text, disallowed_special=()) == expected
        assert tokenizer.encode_to_numpy(text, disallowed_special=()).tolist() == expected
        if make is compiled:
            assert tokenizer._fast.encode(text).tolist() == expected  # short texts, too


@pytest.mark.parametrize("which", ["gpt2", "gpt4", "published"])
def test_equals_tiktoken(which, request, prose):
    tokenizer = request.getfixturevalue(which)
    theirs = request.getfixturevalue(f"tiktoken_{which}")
    slow = plain(tokenizer)
    for text in [MULTILINGUAL, prose[:200_000], "", " ", "\n", "a"]:
        expected = theirs.encode_ordinary(text)
        assert slow.encode_ordinary(text) == expected
        assert tokenizer.encode_ordinary(text) == expected
        assert slow.decode(expected) == tokenizer.decode(expected) == text


@needs_numba
@pytest.mark.parametrize("which", ["gpt2", "gpt4", "published"])
def test_equals_tiktoken_on_random_texts(which, request):
    tokenizer = compiled(request.getfixturevalue(which))
    theirs = request.getfixturevalue(f"tiktoken_{which}")
    slow = plain(tokenizer)
    generator = random.Random(which)
    for _ in range(4000):
        text = random_text(generator, generator.choice([1, 5, 20, 64, 100, 200]))
        expected = theirs.encode_ordinary(text)
        assert tokenizer._fast.encode(text).tolist() == expected, text
        assert slow.encode_ordinary(text) == expected, text
        assert tokenizer._fast.decode(expected) == text.encode()


@pytest.mark.parametrize("make", [plain, pytest.param(compiled, marks=needs_numba)])
@pytest.mark.parametrize("which", ["gpt2", "gpt4"])
def test_long_runs_take_no_quadratic_time(which, make, request):
    tokenizer = make(request.getfixturevalue(which))
    theirs = request.getfixturevalue(f"tiktoken_{which}")
    generator = random.Random(1)
    letters = "".join(generator.choices("etaoinshrdlu", k=200_000))
    for text in [
        "a" * 100_000,
        " " * 100_000,
        "\n" * 100_000,
        "'s" * 50_000,
        "^" * 100_000,
        "0" * 100_000,
        "é" * 50_000,
        letters,
    ]:
        for part in (text, text + "x", "x" + text + "\n"):
            started = time.process_time()
            ids = tokenizer.encode_ordinary(part)
            assert time.process_time() - started < 4
            assert tokenizer.decode(ids) == part
        if len(set(text)) > 2 or text[0] in "a^":
            expected = theirs.encode_ordinary(text)
            assert tokenizer.encode_ordinary(text) == expected


@needs_numba
def test_a_megabyte_without_a_space(gpt2):
    text = "".join(random.Random(2).choices("abcdefgh", k=1_000_000))
    started = time.process_time()
    ids = compiled(gpt2).encode_ordinary(text)
    assert time.process_time() - started < 5
    assert ids == plain(gpt2).encode_ordinary(text)


@needs_numba
def test_bounded_cache_forgets_and_stays_exact(gpt2):
    encoder = FastEncoder(gpt2, cache_bits=8, seeded=False)
    generator = random.Random(3)
    words = ["".join(generator.choices("abcdefgxyz", k=generator.randint(1, 40))) for _ in range(4000)]
    text = " ".join(words)
    assert encoder.encode(text).tolist() == plain(gpt2).encode_ordinary(text)
    worker = encoder._workers[0]
    assert worker.state[state.CACHE_USED] <= 256 * 5 // 8


def test_plain_cache_is_bounded(gpt2):
    from ai_learning.tokenizers.word_encoder import WordEncoder

    encoder = WordEncoder(gpt2._table, splitter(gpt2.pattern), cache_words=100)
    text = " ".join(str(i) + "q" for i in range(5000))
    assert encoder.encode(text) == gpt2.encode_ordinary(text)
    assert len(encoder._cache) <= 100


def test_special_tokens_by_tiktokens_rules(gpt2, tiktoken_gpt2):
    text = "hello <|endoftext|> world<|endoftext|>"
    for tokenizer in (gpt2, tiktoken_gpt2):
        with pytest.raises(ValueError):
            tokenizer.encode(text)
        with pytest.raises(ValueError):
            tokenizer.encode(text, disallowed_special={"<|endoftext|>"}, allowed_special=set())
    for options in (
        {"allowed_special": "all"},
        {"allowed_special": {"<|endoftext|>"}},
        {"disallowed_special": ()},
        {"allowed_special": {"<|fim|>"}, "disallowed_special": ()},
    ):
        assert gpt2.encode(text, **options) == tiktoken_gpt2.encode(text, **options)
        assert gpt2.encode_to_numpy(text, **options).tolist() == gpt2.encode(text, **options)
    with pytest.raises(InputError, match=r"<\|endoftext\|>.*character 6.*allowed_special"):
        gpt2.encode(text)
    with pytest.raises(ValueError):
        gpt2.encode("a word", disallowed_special={"word"})


def test_longest_of_overlapping_special_tokens_wins():
    base = BPETokenizer.train(["ab ab"], 257, special_tokens=())
    tokenizer = BPETokenizer(base.vocab, base.merges, ["<|e|>", "<|e|><|e|>"])
    assert tokenizer.encode("<|e|><|e|><|e|>", allowed_special="all") == [258, 257]


def test_surrogates(gpt2, tiktoken_gpt2):
    assert gpt2.encode("\ud83d\udc4d") == gpt2.encode("👍") == tiktoken_gpt2.encode("\ud83d\udc4d")
    assert gpt2.encode("\ud83d") == gpt2.encode("\ufffd") == tiktoken_gpt2.encode("\ud83d")
    long = "text \ud83d " * 1000
    assert compiled(gpt2).encode(long) == tiktoken_gpt2.encode(long)


def test_decoding(gpt2, tiktoken_gpt2):
    ids = np.random.default_rng(0).integers(0, gpt2.vocab_size, 3000)
    for kind in (
        ids.tolist(),
        tuple(ids.tolist()),
        ids,
        ids.astype(np.uint16),
        ids.astype(np.uint32),
        iter(ids.tolist()),
    ):
        assert compiled(gpt2).decode_bytes(kind) == tiktoken_gpt2.decode_bytes(ids.tolist())
    assert gpt2.decode(ids[:20]) == tiktoken_gpt2.decode(ids[:20].tolist())
    assert gpt2.decode([]) == "" and gpt2.decode([gpt2.eos_id]) == "<|endoftext|>"
    with pytest.raises(UnicodeDecodeError):
        gpt2.decode(gpt2.encode("👍")[:1], errors="strict")
    beyond = gpt2.vocab_size
    for bad in ([beyond], [-1], [5] * 1000 + [beyond], [5] * 1000 + [-1], [5] * 1000 + [2**70]):
        with pytest.raises(UnknownTokenError, match=f"id {bad[-1]} is not in"):
            gpt2.decode(bad)
    assert issubclass(UnknownTokenError, KeyError) and issubclass(UnknownTokenError, InputError)


def test_single_tokens(gpt2):
    for i in range(0, gpt2.vocab_size, 7):
        assert gpt2.encode_single_token(gpt2.decode_single_token_bytes(i)) == i
    with pytest.raises(KeyError):
        gpt2.encode_single_token("no such single token")


def test_offsets(gpt2, tiktoken_gpt2):
    for text in ["hello world", "né 👍🏽 日本語", MULTILINGUAL]:
        ids, spans = gpt2.encode_with_offsets(text)
        assert ids == gpt2.encode(text) and spans[0][0] == 0 and spans[-1][1] == len(text)
        _, byte_spans = gpt2.encode_with_offsets(text, unit="byte")
        data = text.encode()
        for i, (a, b), (c, d) in zip(ids, byte_spans, spans, strict=True):
            assert data[a:b] == gpt2.vocab[i]
            covered = text[c:d].encode()
            assert gpt2.vocab[i] in covered and len(covered) <= len(gpt2.vocab[i]) + 6
        decoded, starts = gpt2.decode_with_offsets(ids)
        assert (decoded, starts) == tiktoken_gpt2.decode_with_offsets(ids)
        assert starts == [start for start, _ in spans]
    assert gpt2.encode_with_offsets("") == ([], [])


def test_batches(gpt2, prose):
    texts = [prose[i : i + 3000] for i in range(0, 120_000, 3000)]
    expected = [gpt2.encode(text) for text in texts]
    assert gpt2.encode_batch(texts) == gpt2.encode_batch(texts, num_workers=3) == expected
    with pytest.raises(InputError, match="special token"):
        gpt2.encode_batch(["fine", "not <|endoftext|>"])
    assert gpt2.encode_batch(["x<|endoftext|>"], allowed_special="all")[0][-1] == gpt2.eos_id
    with pytest.raises(InputError, match="num_workers=0"):
        gpt2.encode_batch(texts, num_workers=0)


@pytest.mark.parametrize("which", ["gpt2", "gpt4"])
def test_streams_give_the_ids_of_the_whole(which, request, prose):
    tokenizer = request.getfixturevalue(which)
    text = (MULTILINGUAL + prose[:3000] + "<|endoftext|>") * 40
    expected = tokenizer.encode(text, allowed_special="all")
    for size in (1, 7, 1000, 10**6):
        pieces = (text[i : i + size] for i in range(0, len(text), size))
        assert list(tokenizer.encode_iterable(pieces)) == expected
    with pytest.raises(InputError):
        list(tokenizer.encode_iterable(["<|endoftext|>"], allowed_special=()))


def test_any_safe_cut_is_safe(gpt2, gpt4):
    """Cut anywhere the cutter would, whatever stands around: the ids are those of the whole."""
    generator = random.Random(4)
    for tokenizer in (gpt2, gpt4, BPETokenizer(gpt2.vocab, gpt2.merges, (), "gpt4-original")):
        cuts = 0
        for _ in range(3000):
            text = random_text(generator, 30)
            for cut in {safe_cut(text), safe_cut_bytes(text.encode())}:
                data = text.encode()
                whole = tokenizer.encode_ordinary(text)
                if cut:
                    head, tail = (
                        (text[:cut], text[cut:])
                        if cut == safe_cut(text)
                        else (data[:cut].decode(), data[cut:].decode())
                    )
                    assert tokenizer.encode_ordinary(head) + tokenizer.encode_ordinary(tail) == whole, (
                        head,
                        tail,
                    )
                    cuts += 1
        assert cuts > 1000


def test_chunks_never_cut_a_special_token(tmp_path):
    text = ("word <|endoftext|>" * 50 + "日本語、" * 20) * 30
    pattern = BPETokenizer.train([text], 300).pattern
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    for size in (40, 64, 100, 1000):
        chunks = list(safe_chunks([text], pattern, ["<|endoftext|>"], size))
        assert "".join(chunks) == text and sum(c.count("<|endoftext|>") for c in chunks) == 1500
        byte_chunks = list(safe_byte_chunks(path, pattern, ["<|endoftext|>"], size))
        assert b"".join(byte_chunks) == text.encode()
        assert sum(c.count(b"<|endoftext|>") for c in byte_chunks) == 1500
        assert len(chunks) > 10 and len(byte_chunks) > 10


def test_incremental_decoding_never_shows_half_a_character(gpt2):
    text = "né 👍🏽 日本語 ok"
    decoder = gpt2.stream_decoder()
    shown = [decoder.add(i) for i in gpt2.encode(text)]
    assert "".join(shown) + decoder.finish() == text
    assert "" in shown and not any("\ufffd" in part for part in shown)
    decoder = gpt2.stream_decoder()
    assert decoder.add(gpt2.encode("👍")[0]) == "" and decoder.finish() == "\ufffd"


def test_dropout(gpt2):
    text = "unbelievable tokenization of regularised words, again and again"
    assert gpt2.encode(text, dropout=1.0) == [gpt2.token_id(bytes([byte])) for byte in text.encode()]
    some = gpt2.encode(text, dropout=0.3, seed=1)
    assert some == gpt2.encode(text, dropout=0.3, seed=1) != gpt2.encode(text, dropout=0.3, seed=2)
    assert gpt2.decode(some) == text and len(some) > len(gpt2.encode(text))
    generator = random.Random(0)
    assert gpt2.encode(text, dropout=0.3, seed=generator) != gpt2.encode(text, dropout=0.3, seed=generator)
    assert gpt2.encode(text, dropout=1e-12, seed=0) == gpt2.encode(text)
    with pytest.raises(InputError, match=r"dropout=1\.5"):
        gpt2.encode(text, dropout=1.5)


def test_no_pattern_and_own_pattern():
    text = "to be or not to be, to be or not"
    tokenizer = BPETokenizer.train([text], 280, pattern=None, special_tokens=())
    assert any(b" " in token[1:-1] for token in tokenizer.vocab.values())  # merges across words
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == compiled(tokenizer).encode(text) == plain(tokenizer).encode(text)
    own = BPETokenizer.train([text], 270, pattern=r"\w+|\W+", special_tokens=())
    assert own.decode(own.encode(text)) == text and not own.prepare()


def test_constructor_from_vocab_and_merges(gpt2):
    """The way Stanford CS336's tests make one: vocab, merges, and special tokens that may be new."""
    tokenizer = BPETokenizer(gpt2.vocab, gpt2.merges, ["<|endoftext|>", "<|new|>"])
    assert tokenizer.special_tokens == {"<|endoftext|>": gpt2.eos_id, "<|new|>": gpt2.eos_id + 1}
    assert BPETokenizer(gpt2.vocab, gpt2.merges, None).encode("<|endoftext|>") == gpt2.encode_ordinary(
        "<|endoftext|>"
    )
    small = {i: bytes([i]) for i in range(256)}
    for vocab, merges, special, complaint in [
        ({0: b"a"}, [], (), "255 of the 256 single bytes"),
        (small, [(b"a", b"b")], (), "needs the token b'ab'"),
        ({**small, 300: b"a"}, [], (), "both b'a'"),
        ({**small, 256: b"ab"}, [(b"a", b"b"), (b"a", b"b")], (), "twice"),
        (small, [], {"<x>": 5}, "wants id 5"),
        (small, [], {"<x>": 300, "<y>": 300}, "share an id"),
        (small, [], [""], "empty"),
    ]:
        with pytest.raises(InputError, match=complaint):
            BPETokenizer(vocab, merges, special)


def test_fingerprint_changes_with_what_changes_ids(gpt2, gpt4):
    others = [
        gpt4,
        BPETokenizer(gpt2.vocab, gpt2.merges[:-1], gpt2.special_tokens),
        BPETokenizer(gpt2.vocab, gpt2.merges, {"<|endoftext|>": gpt2.eos_id, "<|x|>": gpt2.eos_id + 1}),
    ]
    assert len({tokenizer.fingerprint for tokenizer in [gpt2, *others]}) == 4
    assert pickle.loads(pickle.dumps(gpt2)).fingerprint == gpt2.fingerprint


def test_not_a_string(gpt2):
    with pytest.raises(InputError, match="bytes"):
        gpt2.encode(b"bytes")


def test_works_without_numba(gpt2, monkeypatch, prose):
    monkeypatch.setattr(fast, "has_numba", lambda: False)
    tokenizer = pickle.loads(pickle.dumps(gpt2))
    assert not tokenizer.prepare()
    text = prose[:600_000]
    assert tokenizer.decode(tokenizer.encode(text)) == text and tokenizer._fast is None
    assert len(BPETokenizer.train([text], 300).merges) == 43
