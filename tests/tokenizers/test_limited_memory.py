"""Files larger than the memory that the process may have."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ai_learning.token_file import TokenFile
from ai_learning.tokenizers import BPETokenizer, fast, load

LIMITED = """
import resource, sys
limit = int(float(sys.argv[1]) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from ai_learning.tokenizers import BPETokenizer, fast
text, folder = sys.argv[2:]
def peak():
    status = open("/proc/self/status").read()  # ru_maxrss would begin with what the parent had
    return int(status.split("VmHWM:")[1].split()[0]) // 1024
tokenizer = BPETokenizer.train_from_files(text, 8192)
print("train_from_files: peak RSS", peak(), "MB")
tokenizer.save(folder)
report = tokenizer.encode_files(text, folder + "/out.tokens", 2)
print("encode_files: peak RSS", peak(), "MB;", report.n_bytes, "bytes,", report.tokens, "tokens")
print(fast.is_loaded(), peak(), report.tokens)
"""


def write_text(path: Path, piece: str, size: int) -> None:
    """``size`` bytes: the piece again and again, between words that come only once."""
    generator = random.Random(0)
    written = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        for i in itertools.count():
            part = f"{piece}\n<|endoftext|>{i} {generator.getrandbits(64):x} né 👍\n"
            file.write(part)
            written += len(part.encode())
            if written >= size:
                return


def run_limited(megabytes: float, text: Path, folder: Path) -> list[str]:
    command = [sys.executable, "-c", LIMITED, str(megabytes), str(text), str(folder)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    return result.stdout.splitlines()[-1].split()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS as on Linux")


@linux
def test_plain_python_where_the_compiled_path_has_no_room(prose, tmp_path):
    """Loading LLVM without room for it would end the process."""
    write_text(tmp_path / "text.txt", prose[:200_000], 3_000_000)
    compiled, *_ = run_limited(400, tmp_path / "text.txt", tmp_path / "tokenizer")
    assert compiled == "False"
    tokenizer = load(tmp_path / "tokenizer")
    assert tokenizer.merges == BPETokenizer.train_from_files(tmp_path / "text.txt", 8192).merges


@linux
@pytest.mark.slow
@pytest.mark.skipif(not fast.has_numba(), reason="no numba")
def test_a_file_larger_than_the_memory_it_takes(prose, tmp_path):
    """600 MB of text in 1 GB of address space, of which loading numba and LLVM takes half."""
    BPETokenizer.train([prose[:1000]], 300, compiled=True).prepare()  # compiling takes more than loading
    text = tmp_path / "text.txt"
    write_text(text, prose[:20_000], 600_000_000)
    compiled, peak, tokens = run_limited(1000, text, tmp_path / "tokenizer")
    assert compiled == "True" and int(peak) < 350
    found = TokenFile(tmp_path / "tokenizer" / "out.tokens")
    assert len(found.tokens) == int(tokens)
    head = load(tmp_path / "tokenizer").decode(found.tokens[:100_000])
    assert text.open(encoding="utf-8", newline="").read(len(head)) == head
