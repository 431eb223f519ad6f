"""What the public suites ask of a tokenizer: Stanford CS336's, minbpe's and tiktoken's own, in our names.

Each section starts with the adapter that whoever runs the suite itself would write.
"""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_texts import MULTILINGUAL

from ai_learning.tokenizers import BPETokenizer, fast
from ai_learning.tokenizers.alphabet import to_printable

DOCUMENTS = (
    "Once upon a time there was a llama.\n\nIt hummed. <|endoftext|>\nHéllò hôw are ü? 🙃<|endoftext|>\n\n"
    "\n<|endoftext|>The end.\n"
)
END = "<|endoftext|>"


# --- Stanford CS336, assignment 1 ---------------------------------------------------------------------------


def run_train_bpe(input_path, vocab_size, special_tokens):
    tokenizer = BPETokenizer.train_from_files(
        input_path, vocab_size, special_tokens=special_tokens, tie_break="cs336"
    )
    return tokenizer.vocab, tokenizer.merges


def get_tokenizer(vocab, merges, special_tokens=None):
    """The assignment's tokenizer uses its special tokens without being asked."""

    class Tokenizer(BPETokenizer):
        def encode(self, text, **options):
            return super().encode(text, **{"allowed_special": "all"} | options)

    return Tokenizer(vocab, merges, special_tokens)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, prose):
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text((prose[:150_000] + END + MULTILINGUAL) * 2, encoding="utf-8")
    return path


def test_cs336_training(corpus):
    vocab, merges = run_train_bpe(corpus, 500, [END])
    assert set(vocab) == set(range(500)) and len(merges) == 500 - 256 - 1
    assert set(vocab.values()) == {bytes([i]) for i in range(256)} | {a + b for a, b in merges} | {
        END.encode()
    }
    assert not any(b"<|" in token for token in vocab.values() if token != END.encode())
    assert all(type(part) is bytes for pair in merges for part in pair)


def test_cs336_takes_the_greater_pair_of_equally_frequent_ones(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(
        "low low low low low lower lower widest widest widest newest newest newest newest newest newest"
    )
    _, merges = run_train_bpe(path, 256 + 6, [])
    # the assignment's worked example splits at spaces; here each word but the first starts with its space
    assert merges[:2] == [(b"s", b"t"), (b"e", b"st")]
    ties = tmp_path / "ties.txt"
    ties.write_text("A B,AB C,B ZZ,BA A")
    assert run_train_bpe(ties, 257, [])[1] == [max(pairs_of_count_two(ties.read_text()))]


def pairs_of_count_two(text):
    from collections import Counter
    from itertools import pairwise

    from ai_learning.tokenizers.pretokenize import PATTERNS, splitter

    words = [word.encode() for word in splitter(PATTERNS["gpt2"])(text)]
    counts = Counter(pair for word in words for pair in pairwise(bytes([byte]) for byte in word))
    best = max(counts.values())
    return [pair for pair, times in counts.items() if times == best]


def test_cs336_encoding(corpus):
    vocab, merges = run_train_bpe(corpus, 600, [])
    for special in (None, [END]):
        tokenizer = get_tokenizer(vocab, merges, special)
        for text in ("", "s", "🙃", "Hello, how are you?", "Héllò hôw are ü? 🙃", DOCUMENTS):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert list(tokenizer.encode_iterable(DOCUMENTS.splitlines(keepends=True))) == tokenizer.encode(
            DOCUMENTS
        )
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(DOCUMENTS)]
    assert pieces.count(END) == 3


def test_cs336_overlapping_special_tokens(corpus):
    vocab, merges = run_train_bpe(corpus, 400, [])
    vocab |= {len(vocab): END.encode(), len(vocab) + 1: (END * 2).encode()}  # as the suite adds them
    tokenizer = get_tokenizer(vocab, merges, [END, END * 2])
    text = f"Hello, how {END}{END} are you?{END}"
    pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
    assert pieces.count(END) == 1 and pieces.count(END * 2) == 1
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_cs336_from_files(gpt2, tmp_path):
    """The suite reads GPT-2's files itself and hands over bytes; ours reads the same files."""
    gpt2.to_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == [f"{to_printable(left)} {to_printable(right)}" for left, right in gpt2.merges]
    again = BPETokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert again.fingerprint == gpt2.fingerprint


LIMITED = """
import pickle, resource, sys
tokenizer = pickle.load(open(sys.argv[1], "rb"))
megabytes, prepared = float(sys.argv[3]), sys.argv[4] == "compiled"
if prepared:
    assert tokenizer.prepare()
list(tokenizer.encode_iterable(["warm up, " * 20_000]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(megabytes * 2**20), -1))
with open(sys.argv[2], encoding="utf-8", newline="") as file:
    print(sum(1 for _ in tokenizer.encode_iterable(file)), tokenizer._fast is not None)
"""


needs_numba = pytest.mark.skipif(not fast.has_numba(), reason="no numba")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS as on Linux")
@pytest.mark.parametrize(
    ("path", "megabytes"), [("plain", 4), pytest.param("compiled", 1, marks=needs_numba)]
)
def test_cs336_stream_in_limited_memory(gpt2, prose, tmp_path, path, megabytes):
    """6 MB of text with 1 MB of address space to spare (plain Python: 4, for the words it remembers)."""
    (tmp_path / "tokenizer.pickle").write_bytes(pickle.dumps(gpt2))
    text = prose * 13
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    command = [
        sys.executable, "-c", LIMITED, tmp_path / "tokenizer.pickle", tmp_path / "text.txt", megabytes, path,
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(len(gpt2.encode_ordinary(text))), str(path == "compiled")]


# --- minbpe -------------------------------------------------------------------------------------------------


SPECIAL = {
    "<|endoftext|>": 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
KINDS = {"BasicTokenizer": None, "RegexTokenizer": "gpt4-original"}


def minbpe_train(kind, text, vocab_size):
    return BPETokenizer.train([text], vocab_size, pattern=KINDS[kind], special_tokens=(), tie_break="minbpe")


@pytest.mark.parametrize("kind", KINDS)
def test_minbpe_identity_and_wikipedia(kind):
    untrained = BPETokenizer({i: bytes([i]) for i in range(256)}, [], pattern=KINDS[kind])
    for text in ("", "?", "hello world!!!? (안녕하세요!) lol123 😉", DOCUMENTS):
        assert untrained.decode(untrained.encode(text, disallowed_special=())) == text
    tokenizer = minbpe_train(kind, "aaabdaaabac", 256 + 3)
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]
    assert tokenizer.decode(tokenizer.encode("aaabdaaabac")) == "aaabdaaabac"


@pytest.mark.parametrize("special", [{}, SPECIAL])
def test_minbpe_save_and_load(special, tmp_path, prose):
    text = f"<|endoftext|>{prose[:3000]}\n<|fim_prefix|>In the end<|fim_suffix|> llamas hum.<|endofprompt|>"
    tokenizer = minbpe_train("RegexTokenizer", text, 256 + 64).with_special_tokens(special)
    ids = tokenizer.encode(text, allowed_special="all")
    assert tokenizer.decode(ids) == text and set(special.values()) <= set(ids) | {0}
    tokenizer.to_minbpe_file(tmp_path / "saved.model")
    loaded = BPETokenizer.from_minbpe_file(tmp_path / "saved.model")
    assert loaded.special_tokens == special
    assert loaded.decode(ids) == text and loaded.encode(text, allowed_special="all") == ids


def test_with_special_tokens_replaces_them(gpt2):
    other = gpt2.with_special_tokens(["<|a|>", "<|b|>"])
    assert other.special_tokens == {"<|a|>": gpt2.eos_id, "<|b|>": gpt2.eos_id + 1}
    assert other.encode(END) == gpt2.encode_ordinary(END) and other.merges == gpt2.merges


# --- tiktoken -----------------------------------------------------------------------------------------------


def test_tiktoken_published_ids(published):
    assert published.encode("hello world") == [31373, 995]
    assert published.encode("hello <|endoftext|>", allowed_special="all") == [31373, 220, 50256]
    zeros = [15, 405, 830, 2388, 20483, 10535, 24598, 8269]
    for n, i in enumerate(zeros, 1):
        assert published.encode("0" * n) == [i]
    assert published.encode("0" * 17) == [8269, 10535, 830]
    assert published.eot_token == published.encode_single_token(END) == published.max_token_value == 50256


@pytest.mark.parametrize("which", ["gpt2", "gpt4"])
@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.lists(
            st.sampled_from([b" ", b"\n", b"a", b"the", "é".encode(), b"\x80", b"\xf0\x9f"]), max_size=12
        ).map(b"".join),
    )
)
def test_tiktoken_any_bytes(which, data, request):
    tokenizer, theirs = request.getfixturevalue(which), request.getfixturevalue(f"tiktoken_{which}")
    ids = tokenizer.encode_bytes(data)
    assert ids == theirs._encode_bytes(data) and tokenizer.decode_bytes(ids) == data


@pytest.mark.parametrize("which", ["gpt2", "gpt4"])
@given(batch=st.lists(st.text(max_size=30), max_size=5))
def test_tiktoken_round_trips(which, batch, request):
    tokenizer, theirs = request.getfixturevalue(which), request.getfixturevalue(f"tiktoken_{which}")
    ids = tokenizer.encode_batch(batch, allowed_special="all")
    assert ids == theirs.encode_batch(batch, allowed_special="all")
    assert tokenizer.decode_batch(ids) == batch
    assert tokenizer.encode_ordinary_batch(batch) == [
        tokenizer.encode(t, disallowed_special=()) for t in batch
    ]


@pytest.mark.parametrize("which", ["gpt2", "gpt4"])
def test_tiktoken_single_tokens_and_repetition(which, request):
    tokenizer = request.getfixturevalue(which)
    for i in range(tokenizer.n_vocab):
        assert tokenizer.encode_single_token(tokenizer.decode_single_token_bytes(i)) == i
    for piece in ("^", "0", "a", "'s", " ", "\n"):
        for text in (piece * 10_000, " " + piece * 10_000, " " + piece * 10_000 + "\n"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
