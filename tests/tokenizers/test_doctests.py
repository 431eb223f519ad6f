import doctest
import importlib

import pytest

MODULES = ["bpe", "alphabet", "pretokenize", "special", "streaming", "render", "bytes", "bpe_tokenizer"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"ai_learning.tokenizers.{name}"))
    assert result.attempted and not result.failed
