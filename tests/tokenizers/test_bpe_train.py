"""Training, against the readable algorithm and against each rule's owner."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from random_texts import random_text

from ai_learning.errors import InputError
from ai_learning.tokenizers import BPETokenizer, bpe, fast
from ai_learning.tokenizers.alphabet import from_printable
from ai_learning.tokenizers.pretokenize import PATTERNS, splitter
from ai_learning.tokenizers.training import TIE_BREAKS, learn_merges
from ai_learning.tokenizers.word_counts import WordCounts

PATHS = [False, pytest.param(True, marks=pytest.mark.skipif(not fast.has_numba(), reason="no numba"))]


def corpus(seed, n=300):
    """Text with runs, repetitions and ties in plenty."""
    generator = random.Random(seed)
    return "".join(
        random_text(generator, 25) + " aaaa aaaaa abab " + "  " * generator.randint(0, 9) for _ in range(n)
    )


# --- the readable algorithm, with each rule ---


def readable(words, n_merges, rule, min_frequency=1):
    """``bpe.train`` with the rule of ``TIE_BREAKS[rule]``."""
    order = TIE_BREAKS[rule].byte_order
    number = {byte: i for i, byte in enumerate(order)}
    words = [([number[byte] for byte in word], times) for word, times in words]
    if rule in ("hf", "rustbpe"):
        return bpe.train(words, n_merges, min_frequency=min_frequency)
    merges = []
    token = [bytes([byte]) for byte in order]
    while len(merges) < n_merges:
        counts = bpe.count_pairs(words)  # a Counter keeps the order of first appearance
        if not counts:
            break
        if rule == "minbpe":
            pair = max(counts, key=counts.get)
        else:
            pair = max(counts, key=lambda p: (counts[p], (token[p[0]], token[p[1]])))
        words = [(bpe.merge(ids, pair, 256 + len(merges)), times) for ids, times in words]
        token.append(token[pair[0]] + token[pair[1]])
        merges.append(pair)
    return merges


@pytest.mark.parametrize("rule", TIE_BREAKS)
@pytest.mark.parametrize("compiled", PATHS)
def test_equals_the_readable_algorithm(compiled, rule):
    for seed in range(4):
        text = corpus(seed, 25)
        words = Counter(word.encode() for word in splitter(PATTERNS["gpt4"])(text))
        expected = readable(words.items(), 90, rule)
        found = learn_merges(WordCounts.from_dict(words), 90, TIE_BREAKS[rule], compiled=compiled)
        assert found == expected
        tokenizer = BPETokenizer.train(
            [text], 256 + 90, pattern="gpt4", special_tokens=(), tie_break=rule, compiled=compiled
        )
        assert [tokenizer.vocab[256 + i] for i in range(90)] == [a + b for a, b in tokenizer.merges]
        ids = {token: i for i, token in tokenizer.vocab.items()}
        assert [(ids[a], ids[b]) for a, b in tokenizer.merges] == expected


@pytest.mark.parametrize("rule", TIE_BREAKS)
@pytest.mark.skipif(not fast.has_numba(), reason="no numba")
def test_compiled_equals_plain_on_a_real_text(rule, prose):
    tokenizers = [
        BPETokenizer.train([prose], 3000, tie_break=rule, compiled=compiled) for compiled in (True, False)
    ]
    assert tokenizers[0].merges == tokenizers[1].merges and len(tokenizers[0].merges) == 2743


# --- the owners of the rules ---


def hugging_face(texts, vocab_size, pattern, **options):
    tokenizers = pytest.importorskip("tokenizers")
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    if pattern.name == "gpt2":
        theirs.pre_tokenizer = byte_level(add_prefix_space=False)
    else:
        split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern.oniguruma), "isolated")
        theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [split, byte_level(add_prefix_space=False, use_regex=False)]
        )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=byte_level.alphabet(), show_progress=False, **options
    )
    theirs.train_from_iterator(texts, trainer)
    model = json.loads(theirs.to_str())["model"]
    return [tuple(map(from_printable, merge)) for merge in model["merges"]]


@pytest.mark.parametrize("compiled", PATHS)
@pytest.mark.parametrize("name", ["gpt2", "gpt4", "gpt4-original"])
def test_same_merges_as_hugging_face(name, compiled, prose):
    for texts, size in (([prose[:300_000], corpus(9)], 1500), ([corpus(5), corpus(6)], 500)):
        ours = BPETokenizer.train(texts, size, pattern=name, special_tokens=(), compiled=compiled)
        assert ours.merges == hugging_face(texts, size, PATTERNS[name])


@pytest.mark.parametrize("compiled", PATHS)
def test_min_frequency_as_hugging_face(compiled, prose):
    text = prose[:60_000]
    with pytest.warns(UserWarning, match="no other pair occurs 7 times"):
        ours = BPETokenizer.train([text], 4000, special_tokens=(), min_frequency=7, compiled=compiled)
    expected = hugging_face([text], 4000, PATTERNS["gpt2"], min_frequency=7)
    assert ours.merges == expected and 500 < len(expected) < 3744


def test_same_tokens_as_rustbpe(prose):
    rustbpe = pytest.importorskip("rustbpe")
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator(iter([prose[:300_000]]), 1500, pattern=PATTERNS["nanochat"].regex)
    tokens = [bytes(token) for token, _ in theirs.get_mergeable_ranks()]
    ours = BPETokenizer.train(
        [prose[:300_000]], 1500, pattern="nanochat", special_tokens=(), tie_break="rustbpe"
    )
    assert [ours.vocab[i] for i in range(1500)] == tokens


def test_minbpe_and_cs336_on_examples_worked_by_hand():
    # minbpe: "ba" and "cd" occur equally often; "cd" is seen first. By ids or bytes another would win.
    first_seen = BPETokenizer.train(
        ["cd ba cd ba"], 257, pattern=r"\w+", special_tokens=(), tie_break="minbpe"
    )
    assert first_seen.merges == [(b"c", b"d")]
    # CS336's assignment: low low low low low lower lower widest widest widest newest x6: "s t", then "e st"
    text = "low low low low low\nlower lower widest widest widest\nnewest newest newest newest newest newest"
    merges = BPETokenizer.train([text], 262, pattern=r"\w+|\s", special_tokens=(), tie_break="cs336").merges
    expected = ["s t", "e st", "o w", "l ow", "w est", "n e"]
    assert merges == [tuple(part.encode() for part in pair.split()) for pair in expected]


# --- texts, files, workers ---


def test_special_tokens_are_cut_out():
    text = "ab<|endoftext|>ab<|endoftext|>ab" * 50
    tokenizer = BPETokenizer.train([text], 258)
    assert tokenizer.merges == [(b"a", b"b")] and tokenizer.special_tokens == {"<|endoftext|>": 257}
    assert not any(b"<" in left + right for left, right in tokenizer.merges)
    with_text = BPETokenizer.train([text], 262, special_tokens=())
    assert any(b"end" in left + right for left, right in with_text.merges) or len(with_text.merges) == 6


@pytest.mark.parametrize("compiled", PATHS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_files_in_chunks_give_the_merges_of_the_whole(tmp_path, compiled, workers, prose, monkeypatch):
    text = prose[:150_000] + corpus(3, 100) + "日本語、テキスト。" * 2000 + "\r\nend<|endoftext|>" * 300
    path = tmp_path / "corpus.txt"
    path.write_bytes(text.encode())
    expected = BPETokenizer.train([text], 700, num_workers=1, compiled=compiled).merges
    from ai_learning.tokenizers import training

    monkeypatch.setattr(training, "_CHUNK", 5000)
    if workers > 1 and not compiled:
        workers = 1  # processes are tested once, below
    found = BPETokenizer.train_from_files([path], 700, num_workers=workers, compiled=compiled)
    assert found.merges == expected
    assert BPETokenizer.train([text, ""], 700, num_workers=workers, compiled=compiled).merges == expected


@pytest.mark.skipif(not fast.has_numba(), reason="no numba")
def test_counters_grow_and_add_up():
    """Far more unique words than a counter starts with room for, some of them long, from two counters."""
    from ai_learning.tokenizers.fast_trainer import FastCounter

    words = [f" w{i}" + "x" * (i % 40) for i in range(120_000)]
    counters = [FastCounter(PATTERNS["none"]) for _ in range(2)]
    for i, word in enumerate(words):
        counters[i % 3 == 0].add(word.encode())
    counters[0].add((" w1x" + "y" * 3_000_000).encode())
    counters[0].add_counter(counters[1])
    counters[0].add_counter(counters[1])
    found = dict(counters[0].result().items())
    assert len(found) == 120_001
    assert all(found[word.encode()] == (2 if i % 3 == 0 else 1) for i, word in enumerate(words))


def test_plain_counting_in_processes(prose):
    text = prose[:50_000]
    one, two = (BPETokenizer.train([text, text], 400, num_workers=n, compiled=False) for n in (1, 2))
    assert one.merges == two.merges


def test_damaged_utf8_in_files_counts_as_replacement(tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"good \xff\xfe bad\xe2\x82 good" * 20)
    text = path.read_bytes().decode("utf-8", "replace")
    expected = BPETokenizer.train([text], 300, special_tokens=(), min_frequency=2)
    assert (
        BPETokenizer.train_from_files(path, 300, special_tokens=(), min_frequency=2).merges == expected.merges
    )


def test_counts_file_resumes_and_refuses_others(tmp_path, prose):
    source, counts = tmp_path / "text.txt", tmp_path / "words.counts"
    source.write_text(prose[:100_000], encoding="utf-8")
    first = BPETokenizer.train_from_files(source, 500, counts_file=counts)
    import ai_learning.tokenizers.training as training

    def broken(*_):
        raise AssertionError("counted again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_count", broken)
        again = BPETokenizer.train_from_files(source, 500, counts_file=counts)
        larger = BPETokenizer.train_from_files(source, 900, counts_file=counts)
    assert again.merges == first.merges == larger.merges[: len(first.merges)]
    with pytest.raises(InputError, match="another pattern"):
        BPETokenizer.train_from_files(source, 500, counts_file=counts, pattern="gpt4")
    counts.write_bytes(counts.read_bytes()[:100])
    with pytest.raises(InputError, match="delete it"):
        BPETokenizer.train_from_files(source, 500, counts_file=counts)


def test_long_words_and_surrogates():
    for compiled in (False, True) if fast.has_numba() else (False,):
        tokenizer = BPETokenizer.train(
            ["a" * 300_000, "x\ud800y" * 3], 270, special_tokens=(), compiled=compiled
        )
        assert tokenizer.vocab[256] == b"aa" and max(map(len, tokenizer.vocab.values())) > 2000
        assert tokenizer.decode(tokenizer.encode("a" * 10_001)) == "a" * 10_001


def test_bad_settings_are_one_line(tmp_path):
    for options, complaint in [
        ({"vocab_size": 256}, "vocab_size=256.*257"),
        ({"vocab_size": 300, "tie_break": "mine"}, "tie_break='mine'"),
        ({"vocab_size": 300, "num_workers": 0}, "num_workers=0"),
        ({"vocab_size": 300, "min_frequency": -1}, "min_frequency=-1"),
        ({"vocab_size": 300, "special_tokens": [""]}, "empty"),
    ]:
        with pytest.raises(InputError, match=complaint):
            BPETokenizer.train(["text"], **options)
    for texts, complaint in [("text", "iterable"), ([], "no text"), ([b"x"], "bytes")]:
        with pytest.raises(InputError, match=complaint):
            BPETokenizer.train(texts, 300)
    with pytest.raises(InputError, match="no file at"):
        BPETokenizer.train_from_files([tmp_path / "none"], 300)


MEMORY_SCRIPT = """
import resource, sys
from ai_learning.tokenizers import BPETokenizer
small, large, out = sys.argv[1:4]
def peak():  # ru_maxrss would begin with what the parent had
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
tokenizer = BPETokenizer.train_from_files(small, 600, compiled=True, num_workers=2)
tokenizer.encode_files(small, out, 2)
before = peak()
BPETokenizer.train_from_files(large, 600, compiled=True, num_workers=2)
trained = peak()
tokenizer.encode_files(large, out, 2)
print((trained - before) / 1024, (peak() - before) / 1024)
"""


@pytest.mark.skipif(not fast.has_numba() or not sys.platform.startswith("linux"), reason="numba on Linux")
def test_memory_does_not_grow_with_the_file(tmp_path, prose):
    """A file of 300 MB costs no more than one of 30 MB (the same words), but for a few chunks."""
    small, large = tmp_path / "small.txt", tmp_path / "large.txt"
    with small.open("w", encoding="utf-8") as file:
        file.writelines(prose + " 👍\n" for _ in range(64))
    with large.open("w", encoding="utf-8") as file:
        file.writelines(prose + " 👍\n" for _ in range(640))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEMORY_SCRIPT, str(small), str(large), str(tmp_path / "out.tokens")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    trained, encoded = map(float, result.stdout.split())
    assert trained < 120 and encoded < 150, result.stdout


def test_small_texts_start_no_processes(monkeypatch):
    """A script without ``if __name__ == "__main__"`` would start itself again and again."""
    monkeypatch.setattr("multiprocessing.get_context", None)
    assert BPETokenizer.train(["low lower lowest"], 260, num_workers=2).merges
