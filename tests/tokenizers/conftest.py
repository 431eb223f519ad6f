from pathlib import Path

import pytest

from ai_learning.tokenizers import BPETokenizer

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_folder():
    if not DATA.is_dir():
        pytest.skip("no ../shared/data")
    return DATA


@pytest.fixture(scope="session")
def shakespeare(data_folder):
    return (data_folder / "tinyshakespeare.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def gpt2(data_folder):
    return BPETokenizer.from_gpt2_files(data_folder / "gpt2_vocab.json", data_folder / "gpt2_merges.txt")


@pytest.fixture(scope="session")
def tiktoken_gpt2(gpt2):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: i for i, token in gpt2.vocab.items() if i != gpt2.eos_id}
    from ai_learning.tokenizers.pretokenize import PATTERNS

    return tiktoken.Encoding(
        "gpt2", pat_str=PATTERNS["gpt2"].regex, mergeable_ranks=ranks, special_tokens=gpt2.special_tokens
    )


@pytest.fixture(scope="session")
def gpt4(gpt2):
    """GPT-2's vocabulary with GPT-4's way to split (the nearest to cl100k_base that needs no download)."""
    return BPETokenizer(gpt2.vocab, gpt2.merges, gpt2.special_tokens, "gpt4")


@pytest.fixture(scope="session")
def tiktoken_gpt4(gpt2):
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: i for i, token in gpt2.vocab.items() if i != gpt2.eos_id}
    from ai_learning.tokenizers.pretokenize import PATTERNS

    return tiktoken.Encoding(
        "gpt4", pat_str=PATTERNS["gpt4"].regex, mergeable_ranks=ranks, special_tokens=gpt2.special_tokens
    )
