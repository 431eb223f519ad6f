"""``ai-learning web``: what it opens, and what it says when it cannot."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ai_learning.cli import main
from ai_learning.cli.web import Web, make_bench
from ai_learning.errors import InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer


def test_without_a_demo_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run `ai-learning demo`"):
        make_bench(Web())


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    save_pretrained(GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=2, n_embd=16)), folder)
    with pytest.raises(InputError, match="give one with --tokenizer"):
        make_bench(Web(checkpoint=str(folder), runs=tmp_path))
    ByteTokenizer().save(tmp_path / "bytes")
    bench = make_bench(Web(checkpoint=str(folder), tokenizer=str(tmp_path / "bytes"), runs=tmp_path))
    assert bench.served.model.config.n_layer == 1 and bench.served.source == str(folder)


def test_tokenizers_are_found_and_given_each_once(checkpoint: Path, tmp_path: Path) -> None:
    one, two = (BPETokenizer.train(["low lower lowest"], n) for n in (260, 262))
    one.save(tmp_path / "runs" / "bpe")
    one.save(tmp_path / "runs" / "mine" / "tokenizer")  # the same again
    two.save(tmp_path / "elsewhere")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "tokenizer.json").write_text("{")
    options = Web(checkpoint=str(checkpoint), runs=tmp_path / "runs", tokenizers=(tmp_path / "elsewhere",))
    names = make_bench(options).tokenizer_names()
    assert names == [
        "model",
        "bytes",
        str(tmp_path / "elsewhere"),
        str(tmp_path / "runs" / "bpe"),
        "reference-1000",
    ]


def test_a_folder_that_is_no_adapter(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no adapter_config"):
        make_bench(Web(checkpoint=str(checkpoint), adapters=(tmp_path,)))


def test_adapters_are_found_and_given_each_once(checkpoint: Path, tmp_path: Path) -> None:
    for folder in ("runs/lora/adapter", "elsewhere", "runs/web/lora-1/adapter"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "adapter_config.json").write_text("{}")
    given = (tmp_path / "elsewhere", tmp_path / "runs" / "lora" / "adapter")
    bench = make_bench(Web(checkpoint=str(checkpoint), runs=tmp_path / "runs", adapters=given))
    assert list(bench.adapters) == [str(folder) for folder in given]
    bench = make_bench(Web(checkpoint=str(checkpoint), runs=tmp_path / "runs"))
    assert list(bench.adapters) == [str(given[1])]


@pytest.mark.slow
def test_the_command_serves_until_ctrl_c(checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "ai_learning.cli", "web", "--checkpoint", str(checkpoint)]
    process = subprocess.Popen(
        [*command, "--port", str(port)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/about", timeout=5) as answer:
                assert answer.status == 200
                break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.3)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}" in out.decode()
    assert process.returncode == 130 and err.decode() == "ai-learning web: interrupted\n"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.1", "Address already in use"),
        ("192.0.2.1", "Cannot assign"),
        ("no..host", ""),
        ("x.invalid", ""),
    ],
)
def test_an_address_that_cannot_be_had(host: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["web", "--host", host, "--port", str(port), "--checkpoint", "no.pt"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1  # before "open …", and before the model is looked for
    assert err.startswith(f"ai-learning web: error: cannot listen on {host}, port {port}: {reason}")
