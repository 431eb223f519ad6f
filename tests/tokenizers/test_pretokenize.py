"""The splitters, against the patterns they stand for, on every code point."""

import itertools
import random
import sys

import pytest
from random_texts import random_text

from ai_learning.errors import InputError
from ai_learning.tokenizers import fast, fast_encoder, make_unicode_table, unicode_table
from ai_learning.tokenizers.pretokenize import PATTERNS, parse_ranges, split_pattern, splitter

NAMED = ["gpt2", "gpt4", "gpt4-original", "nanochat"]
SURROGATES = range(0xD800, 0xE000)
needs_numba = pytest.mark.skipif(not fast.has_numba(), reason="no numba")


def compiled_split(text, name):
    data = text.encode()
    starts = [*fast_encoder.word_starts(text, PATTERNS[name]).tolist(), len(data)]
    return [data[a:b].decode() for a, b in itertools.pairwise(starts)]


def reference_split(name):
    """The published pattern itself, on ``regex``, with tiktoken's classes in place of regex's."""
    regex = pytest.importorskip("regex")
    letters, numbers, spaces = (
        "".join(rf"\U{a:08x}-\U{b:08x}" for a, b in parse_ranges(ranges))
        for ranges in (unicode_table.LETTER, unicode_table.NUMBER, unicode_table.SPACE)
    )
    pattern = PATTERNS[name].regex
    pattern = pattern.replace(r"[^\s\p{L}\p{N}]", f"[^{spaces}{letters}{numbers}]")
    pattern = pattern.replace(r"[^\r\n\p{L}\p{N}]", rf"[^\r\n{letters}{numbers}]")
    pattern = pattern.replace(r"\p{L}", f"[{letters}]").replace(r"\p{N}", f"[{numbers}]")
    pattern = pattern.replace(r"\s", f"[{spaces}]").replace(r"\S", f"[^{spaces}]").replace("$", r"\Z")
    assert r"\p" not in pattern
    return regex.compile(pattern).findall


def every_code_point():
    return [chr(i) for i in range(sys.maxunicode + 1) if i not in SURROGATES]


def test_the_class_table_is_tiktokens_on_every_code_point():
    pytest.importorskip("tiktoken")
    for name, pattern in make_unicode_table.CLASSES.items():
        expected = set(make_unicode_table.members(pattern))
        ours = {i for a, b in parse_ranges(getattr(unicode_table, name)) for i in range(a, b + 1)}
        assert ours == expected, name


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in NAMED[2:]]


@needs_numba
@pytest.mark.parametrize("name", [*NAMED[:2], *SLOW])
def test_compiled_and_plain_splitter_agree_on_every_code_point(name):
    split = splitter(PATTERNS[name])
    points = every_code_point()
    for start in range(0, len(points), 100_000):
        text = "".join(f"a{c}'s {c}1{c}{c}\n" for c in points[start : start + 100_000])
        assert compiled_split(text, name) == split(text)


@pytest.mark.parametrize("name", NAMED)
def test_plain_splitter_is_the_published_pattern(name):
    split, reference = splitter(PATTERNS[name]), reference_split(name)
    text = "".join(f"a{c}b {c}1{c}'s!{c} \n{c}x" for c in every_code_point()[:0x3100])
    assert split(text) == reference(text)
    generator = random.Random(name)
    for i in range(4000):
        text = random_text(generator, generator.randint(0, 30))
        assert split(text) == reference(text), (i, text)


@needs_numba
@pytest.mark.parametrize("name", NAMED)
def test_compiled_splitter_on_random_texts(name):
    split = splitter(PATTERNS[name])
    generator = random.Random(name)
    for _ in range(12_000):
        text = random_text(generator, generator.choice([3, 10, 60, 64, 70, 130, 300]))
        assert compiled_split(text, name) == split(text), text


@needs_numba
@pytest.mark.parametrize("name", NAMED)
def test_every_place_of_a_block_boundary(name):
    """Contractions, wide spaces and digits at each distance from the compiled one's 64-byte blocks."""
    split = splitter(PATTERNS[name])
    endings = [
        "'ll x",
        "'s",
        "'",
        "\u3000\u3000a",
        "  \n \u2003 b",
        "12345678",
        "—a",
        "!\n\n\n  c",
        "\u00a0'S",
        "½½½½a",
    ]
    for ending in endings:
        for shift in range(50, 80):
            for fill in "a", " ", "1", "!", "\n", "é":
                for text in (fill * shift + ending, fill * shift + ending + "z" * 70):
                    assert compiled_split(text, name) == split(text), text


def test_whole_tail_is_what_tells_gpt4_from_its_original():
    assert splitter(PATTERNS["gpt4"])("a \n ") == ["a", " \n "]
    assert splitter(PATTERNS["gpt4-original"])("a \n ") == ["a", " \n", " "]


def test_known_spellings_of_a_pattern_become_the_named_one():
    tiktoken = pytest.importorskip("tiktoken_ext.openai_public")
    assert split_pattern(tiktoken.r50k_pat_str).name == "gpt2"
    original = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    assert split_pattern(original).name == "gpt2"
    assert split_pattern(None).name == "none" and split_pattern("").name == "none"


def test_own_pattern_keeps_what_it_does_not_match():
    assert splitter(split_pattern(r"(\d)+"))("a12 b3") == ["a", "12", " b", "3"]


def test_unknown_pattern_is_one_line():
    with pytest.raises(InputError, match=r"gpt5.*gpt2"):
        split_pattern("gpt5")
    with pytest.raises(InputError, match="regular expression"):
        split_pattern("(unclosed")
