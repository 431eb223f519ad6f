from pathlib import Path

import pytest
from random_texts import MULTILINGUAL

from ai_learning.text import read_text
from ai_learning.tokenizers import BPETokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def prose():
    """Half a megabyte of English that every Python brings."""
    return read_text("builtin:reference")


@pytest.fixture(scope="session")
def gpt2(prose):
    """A vocabulary trained on the spot, split as GPT-2 splits."""
    return BPETokenizer.train([prose, MULTILINGUAL * 3], 8000, pattern="gpt2")


@pytest.fixture(scope="session")
def gpt4(prose):
    """The same, split as GPT-4 splits: other words, so other merges."""
    return BPETokenizer.train([prose, MULTILINGUAL * 3], 8000, pattern="gpt4")


@pytest.fixture(scope="session")
def data_folder():
    if not DATA.is_dir():
        pytest.skip("no ../shared/data")
    return DATA


@pytest.fixture(scope="session")
def published(data_folder):
    """GPT-2's own vocabulary."""
    return BPETokenizer.from_gpt2_files(data_folder / "gpt2_vocab.json", data_folder / "gpt2_merges.txt")


def in_tiktoken(tokenizer):
    tiktoken = pytest.importorskip("tiktoken")
    special = set(tokenizer.special_tokens.values())
    return tiktoken.Encoding(
        "ours",
        pat_str=tokenizer.pattern.regex,
        mergeable_ranks={token: i for i, token in tokenizer.vocab.items() if i not in special},
        special_tokens=tokenizer.special_tokens,
    )


@pytest.fixture(scope="session")
def tiktoken_gpt2(gpt2):
    return in_tiktoken(gpt2)


@pytest.fixture(scope="session")
def tiktoken_gpt4(gpt4):
    return in_tiktoken(gpt4)


@pytest.fixture(scope="session")
def tiktoken_published(published):
    return in_tiktoken(published)
