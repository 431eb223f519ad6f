"""The compiled path's own rules: its cache on disk, seams in long words, lists read where they lie."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_texts import MULTILINGUAL

from ai_learning.tokenizers import BPETokenizer, bpe, fast

pytestmark = pytest.mark.skipif(not fast.has_numba(), reason="no numba")


def test_a_change_in_one_file_of_kernels_compiles_the_others_anew(tmp_path):
    """numba alone would go on with the old helper, compiled into the function of another file."""
    from ai_learning.tokenizers.kernels import machine

    package = tmp_path / "package"
    package.mkdir()
    source = Path(machine.__file__).read_text(encoding="utf-8")
    (package / "machine.py").write_text(
        source.replace("from ...files", "from ai_learning.files"), encoding="utf-8"
    )
    (package / "__init__.py").write_text("")
    helper = "from .machine import kernel\n@kernel\ndef answer(x):\n    return x + {}\n"
    (package / "helper.py").write_text(helper.format(1))
    (package / "caller.py").write_text(
        "from .machine import kernel\nfrom .helper import answer\n"
        "@kernel\ndef ask(x):\n    return 10 * answer(x)\n"
    )

    def ask():
        code = "from package.caller import ask; print(ask(1), sum(ask.stats.cache_hits.values()))"
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.split()

    assert ask() == ["20", "0"]
    assert ask() == ["20", "1"]  # from disk
    (package / "helper.py").write_text(helper.format(2))
    assert ask() == ["30", "0"]
    assert ask() == ["30", "1"]


def test_the_package_keeps_its_kernels_on_disk():
    from ai_learning.tokenizers.kernels import encode, machine

    assert encode.encode_text._cache._cache_file._source_stamp == machine._SOURCES


def test_seams_change_no_ids():
    """Long words are cut where no token reaches across; the readable algorithm cuts nothing."""
    words = ["中文没有空格的句子", "日本語のテキスト", "безпробелов", "abcabcabd", "한국어텍스트"]
    tokenizer = BPETokenizer.train([" ".join(words) + MULTILINGUAL], 330, special_tokens=())
    assert tokenizer.prepare()
    number = {token: i for i, token in tokenizer.vocab.items()}
    generator = np.random.default_rng(0)
    raw = {bytes([i]): i for i in range(256)}
    merges = []
    for left, right in tokenizer.merges:
        merges.append((raw[left], raw[right]))
        raw[left + right] = 255 + len(merges)
    back = {i: number[token] for token, i in raw.items()}
    for _ in range(60):
        word = "".join(generator.choice(words, generator.integers(3, 9)))
        assert len(word.encode()) > 32
        expected = [back[i] for i in bpe.encode(word.encode(), merges)]
        assert tokenizer._fast.encode(word).tolist() == expected


def test_lists_are_read_where_they_lie_or_not_at_all(gpt2, monkeypatch):
    ids = [*range(gpt2.vocab_size), 0, True] * 2  # True is no int to the kernel, but is one to Python
    plain_ids = [int(i) for i in ids]
    expected = b"".join(gpt2.vocab[i] for i in ids)
    gpt2.prepare()
    assert fast.list_layout() is not None  # CPython as the tests run it
    assert gpt2._fast.decode(ids) is None and bytes(gpt2._fast.decode(plain_ids)) == expected
    assert gpt2.decode_bytes(ids) == gpt2.decode_bytes(plain_ids) == expected
    for bad in (-1, 2**40, gpt2.vocab_size, 1.5, None):
        assert gpt2._fast.decode([*plain_ids, bad]) is None
    monkeypatch.setattr("ai_learning.tokenizers.fast_encoder.list_layout", lambda: None)
    assert bytes(gpt2._fast.decode(plain_ids)) == expected
