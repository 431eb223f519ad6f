"""`finetune --method full|lora|qlora`: from data to an adapter that PEFT opens, resumed and merged."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ai_learning.adapted import AdaptedConfig, AdaptedGPT, weights_digest
from ai_learning.adapters import LoRAConfig
from ai_learning.chat_template import CHATML
from ai_learning.checkpoint import build_adapted, load_checkpoint, open_model, save_checkpoint
from ai_learning.checkpoint import tokenizer_reference as reference
from ai_learning.cli import main
from ai_learning.cli.instruct_options import Instruct
from ai_learning.cli.instruct_run import Run
from ai_learning.errors import CheckpointError, InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained
from ai_learning.sft import Message, template_of
from ai_learning.tokenizers import ByteTokenizer

CONFIG = GPTConfig(vocab_size=258, block_size=48, n_layer=2, n_head=2, n_embd=32)
QUICK = (
    "--steps", 8, "--batch-size", 4, "--eval-every", 4, "--save-every", 2, "--warmup", 0, "--samples", 1,
)  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "base" / "best.pt"
    save_checkpoint(GPT(CONFIG), path, tokenizer=reference(ByteTokenizer()))
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Letters, and the same letters as capitals: 20 of unlike lengths."""
    path = tmp_path / "rows.jsonl"
    pairs = [("abcdefghij"[: 1 + i % 9] + " ->", "ABCDEFGHIJ"[: 1 + i % 9]) for i in range(20)]
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs))
    return path


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_an_adapter_from_data_to_transformers(
    method: str, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--checkpoint", base, "--data", rows, "--out", out, *QUICK, "--lr", 0.02, "--seed", 3)
    code, text, err = call(capsys, "finetune", "--method", method, *options)
    assert code == 0, err
    results = json.loads((out / "results.json").read_text())
    assert results["after"]["val_loss"] < results["before"]["val_loss"]
    assert f"after ({method})" in text and "held-out loss fell by" in text
    assert re.search(r"memory: about [\d.]+ MB at most \(weights .*gradients .*optimizer .*activations", text)
    assert results["samples"][0]["right"].isupper()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "answers right" in page
    # Only the adapter is saved, and the base stays as it was.
    checkpoint = load_checkpoint(out / "last.pt")
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert (out / "best.pt").stat().st_size < base.stat().st_size
    # The checkpoint opens as a plain model wherever one is asked for …
    merged, tokenizer, _ = open_model(out / "best.pt")
    assert isinstance(tokenizer, ByteTokenizer) and not any("lora" in n for n, _ in merged.named_parameters())
    idx = torch.randint(0, 256, (2, 40))
    adapted = build_adapted(load_checkpoint(out / "best.pt"))
    want = adapted(idx)
    torch.testing.assert_close(merged(idx), want, atol=1e-5, rtol=0)
    assert call(capsys, "generate", "--checkpoint", out / "best.pt", "--max-new-tokens", 3)[0] == 0
    # … and exports merged: transformers computes the same.
    code, _, err = call(capsys, "export", out / "best.pt", "--out", tmp_path / "merged")
    assert code == 2 and "is an adapter: give --merge" in err
    code, _, err = call(capsys, "export", out / "best.pt", "--merge", "--out", tmp_path / "merged")
    assert code == 0, err
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(theirs(idx).logits, want, atol=1e-5, rtol=1e-5)
    if method == "lora":  # PEFT opens what lies beside, on transformers' copy of the base
        peft = pytest.importorskip("peft")
        assert call(capsys, "export", base, "--out", tmp_path / "base_hf")[0] == 0
        hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base_hf")
        opened = peft.PeftModel.from_pretrained(hf, out / "adapter").eval()
        torch.testing.assert_close(opened(idx).logits, want, atol=1e-5, rtol=1e-5)
    code, _, err = call(capsys, "export", base, "--merge", "--out", tmp_path / "none")
    assert code == 2 and "--merge needs --adapter" in err and not (tmp_path / "none").exists()


def test_all_weights_and_the_share_of_their_gain(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--checkpoint", base, "--data", rows, "--out", out, *QUICK, "--compare", "--lora-plus", 4)
    code, text, err = call(capsys, "finetune", "--method", "lora", *options)
    assert code == 0, err
    results = json.loads((out / "results.json").read_text())
    gains = [results["before"]["val_loss"] - results[k]["val_loss"] for k in ("after", "full")]
    assert results["share_of_full_gain"] == pytest.approx(gains[0] / gains[1])
    assert re.search(r"\d+% of what training all weights gains", text)
    full = load_checkpoint(out / "full" / "best.pt")["state_dict"]
    assert full.keys() == GPT(CONFIG).state_dict().keys()
    groups = load_checkpoint(out / "last.pt")["optimizer"]["param_groups"]
    assert sorted(group["lr"] for group in groups)[1] == pytest.approx(4 * groups[0]["lr"])


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "full"),
        ("--method", "lora", "--lora-dropout", 0.2, "--lora-plus", 4, "--grad-accum", 2),
        ("--method", "qlora", "--optimizer", "adamw8bit", "--checkpoint-activations"),
    ],
    ids=lambda options: options[1],
)
def test_resumed_bit_for_bit(
    options: tuple, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "adamw8bit" in options:
        pytest.importorskip("bitsandbytes")
    common = ("finetune", *options, "--checkpoint", base, "--data", rows, *QUICK)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    code, _, err = call(capsys, *common, "--out", whole)
    assert code == 0, err
    _stop_after(4, [*common, "--out", parts], capsys)
    assert load_checkpoint(parts / "last.pt")["step"] == 4
    code, _, err = call(capsys, "finetune", "--resume", "--out", parts)  # nothing but the folder
    assert code == 0, err
    one, two = (load_checkpoint(folder / "last.pt") for folder in (whole, parts))
    assert one["step"] == two["step"] == 8
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, parts)]
    assert results[0]["before"] == results[1]["before"] and results[0]["after"] == results[1]["after"]
    rows.write_text(rows.read_text().replace("->", "=>"))
    code, _, err = call(capsys, "finetune", "--resume", "--out", parts)
    assert code == 2 and "was started with data_digest=" in err


@pytest.mark.parametrize("method", ["lora", "full"])
def test_resumed_from_another_folder(
    method: str,
    base: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ByteTokenizer().save("tok")
    given = (
        "--checkpoint",
        "base/best.pt",
        "--data",
        rows.name,
        "--tokenizer",
        "tok",
        "--eval-data",
        rows.name,
    )
    _stop_after(4, ["finetune", "--method", method, *given, *QUICK, "--out", "run"], capsys)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = call(capsys, "finetune", "--resume", "--out", tmp_path / "run")
    assert code == 0, err
    saved = json.loads((tmp_path / "run" / "run.json").read_text())
    paths = [saved[name] for name in ("checkpoint", "data", "tokenizer", "eval_data")]
    assert paths == [str(path) for path in (base, rows, tmp_path / "tok", rows)]


def _stop_after(step: int, args: list, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a command and have the system's signal arrive while ``step`` is being made."""
    from ai_learning import train as module

    original = module.Trainer._log

    def log(self: Any, row: dict) -> None:
        original(self, row)
        if row["step"] == step - 1 and "loss" in row:
            signal.raise_signal(signal.SIGINT)

    module.Trainer._log = log  # type: ignore[method-assign]
    try:
        code, _, err = call(capsys, *args, "--log-every", 1)
    finally:
        module.Trainer._log = original  # type: ignore[method-assign]
    assert code == 130 and "stopped by SIGINT" in err


def test_ctrl_c_in_a_process_of_its_own(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "ai_learning.cli", "finetune", "--method", "lora", "--checkpoint", str(base),
         "--out", str(out), "--steps", "5000", "--save-every", "1", "--on-bad-row", "skip"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    started = time.monotonic()
    while process.poll() is None and not (out / "last.pt").exists() and time.monotonic() - started < 200:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text, err = process.communicate(timeout=200)
    assert process.returncode == 130 and "stopped by SIGINT" in err and "Traceback" not in err
    assert re.search(r"warning: skipped [\d,]+ of [\d,]+ rows: .*are too long for block_size=48", text)


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--checkpoint", "no.pt"), "no checkpoint at no.pt"),
        (("--data", "no.jsonl"), "no such file: no.jsonl"),
        (("--data", "builtin:other"), "no built-in data 'builtin:other': use builtin:function-names"),
        (("--data", "{broken}"), "line 21: it is not JSON"),
        (("--lora-r", "0"), "r=0 is no rank"),
        (("--lora-targets", "c_atn"), "'c_atn' matches no layer; the candidates are"),
        (("--optimizer", "sgd"), "optimizer='sgd' is not known; use adamw"),
        (("--optimizer", "paged_adamw8bit"), "pages memory between GPU and host: it needs a GPU"),
        (("--compute-dtype", "int8"), "compute_dtype='int8' is not known"),
        (("--chat-template", "x.jinja"), "chat_template='x.jinja' is no file"),
        (("--prompt-column", "q"), "--prompt-column and --response-column go together"),
        (("--prompt-column", "q", "--response-column", "a"), "line 1: field 'q' is missing"),
        (("--max-length", "4"), "are too long for block_size=4"),
        (("--method", "full", "--compare"), "use it with lora or qlora"),
        (("--layout", "stream", "--compile"), "cannot be compiled"),
        (("--epochs", "nan"), "epochs=nan must be a number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(
    options: tuple, message: str, base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text(rows.read_text() + "{oops\n")
    given = [str(broken) if o == "{broken}" else o for o in options]
    out = tmp_path / "run"
    code, _, err = call(
        capsys, "finetune", "--method", "lora", "--checkpoint", base, "--data", rows, "--out", out, *given
    )
    assert code == 2 and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert not (out / "last.pt").exists()


def test_the_layout_fits_the_attention(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stream needs the fast attention: it is not chosen for a base with another."""
    options = (
        "finetune",
        "--method",
        "full",
        "--checkpoint",
        base,
        "--data",
        rows,
        *QUICK,
        "--device",
        "cpu",
    )
    code, text, err = call(capsys, *options, "--out", tmp_path / "fast")
    assert code == 0 and "parameters trained (100.0%); stream" in text, err
    config = replace(CONFIG, attention="reference")
    save_checkpoint(GPT(config), base, tokenizer=reference(ByteTokenizer()))
    code, text, err = call(capsys, *options, "--out", tmp_path / "reference")
    assert code == 0 and "parameters trained (100.0%); pack" in text, err
    code, _, err = call(capsys, *options, "--out", tmp_path / "asked", "--layout", "stream")
    assert code == 2 and "use layout='pack'" in err


def test_a_file_is_no_folder_for_a_run(base: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method", "lora", "--checkpoint", base, "--data", rows, "--out", rows)
    code, _, err = call(capsys, "finetune", *options)
    assert code == 2 and f"error: {rows} is a file, not a folder" in err and err.count("\n") == 1


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_base_in_16_bits_computes_in_them(
    method: str, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without being asked for by --dtype: on a CPU a stream would compile anew for each length of a document.

    All weights are trained in 32.
    """
    folder = tmp_path / "base16"
    save_pretrained(GPT(CONFIG).to(torch.bfloat16), folder, ByteTokenizer())
    options = ("--method", method, "--checkpoint", folder, "--data", rows, "--out", tmp_path / "run")
    code, text, err = call(capsys, "finetune", *options, *QUICK, "--device", "cpu")
    assert code == 0 and ("; stream" if method == "full" else "; pack") in text, err


def test_bad_rows_are_skipped_when_asked(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.write_text(rows.read_text() + "{oops\n" + '{"prompt": "a"}\n')
    out = tmp_path / "run"
    options = ("--checkpoint", base, "--data", rows, "--out", out, *QUICK, "--on-bad-row", "skip")
    code, text, err = call(capsys, "finetune", "--method", "full", *options, "--epochs", 1)
    assert code == 0, err
    assert f"warning: skipped 2 of 22 rows: {rows}, line 21: it is not JSON" in text
    assert load_checkpoint(out / "last.pt")["step"] == 4  # 18 to train on, 4 a step


def test_help_names_the_methods_and_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = call(capsys, "finetune", "--help")
    assert code == 0 and "--method" in text and "--lm-coef" in text
    code, text, _ = call(capsys, "finetune", "--method", "qlora", "--help")
    assert code == 0 and "--lora-r" in text and "nf4" in text and "0.004" in text
    code, text, _ = call(capsys, "finetune", "--method", "full", "--help")
    assert code == 0 and "0.001" in text
    code, _, err = call(capsys, "finetune", "--method", "lara")
    assert code == 2 and "head" in err and "qlora" in err


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (b"caf\xe9", "{path} is not UTF-8 ("),
        (b"{% for m in messages %}", "{path}: Unexpected end of template."),
        (CHATML.encode() + b"{{ today() }}", "{path}: 'today' is undefined"),
        (b"hello", "{path}: it does not write what the user says"),
    ],
)
def test_a_template_is_blamed_itself(
    template: bytes, message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a row: none is read, for the data is not even there."""
    path = tmp_path / "mine.jinja"
    path.write_bytes(template)
    options = ("--method", "lora", "--checkpoint", base, "--data", tmp_path / "none.jsonl")
    code, _, err = call(capsys, "finetune", *options, "--chat-template", path)
    assert code == 2 and f"chat template {message.format(path=path)}" in err and err.count("\n") == 1
    save_checkpoint(GPT(CONFIG), base, tokenizer=reference(ByteTokenizer()), chat_template="hello")
    code, _, err = call(capsys, "finetune", *options)  # the model's own
    assert code == 2 and "chat template of the model: it does not" in err and "with --chat-template" in err
    code, _, err = call(capsys, "finetune", *options, "--chat-template", "none")
    assert code == 2 and "no such file" in err


def test_a_template_from_a_file_knows_the_models_special_tokens(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    template = template_of(str(path), {"chat_template": CHATML, "special_tokens": {"eos_token": "</s>"}})
    assert template.prompt([Message("user", "a")]) == "a</s>"
    with pytest.raises(InputError, match=r"mine\.jinja: 'eos_token' is undefined"):
        template_of(str(path), {})


# --- the adapted model ------------------------------------------------------------------------------------


def test_another_base_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    run = Run(Instruct(checkpoint=str(base), data=str(rows), out=tmp_path / "run"))
    config = run.model.config
    assert isinstance(config, AdaptedConfig) and config.base == str(base.resolve())
    torch.manual_seed(2)
    with pytest.raises(InputError, match="was trained on another model"):
        AdaptedGPT(config, GPT(CONFIG))
    save_checkpoint(run.model, tmp_path / "adapter.pt")
    base.unlink()
    with pytest.raises(CheckpointError, match="the adapter's base cannot be opened"):
        open_model(tmp_path / "adapter.pt")


def test_a_digest_sees_one_changed_weight() -> None:
    model = GPT(CONFIG)
    before = weights_digest(model)
    assert before == weights_digest(model)
    with torch.no_grad():
        model.h[1].mlp.c_proj.weight[-1, -1] += 1
    assert weights_digest(model) != before


def test_a_tied_head_is_merged_right(tmp_path: Path) -> None:
    """An adapter on the output head, whose weight is the embedding's too: the embedding must not move."""
    torch.manual_seed(4)
    base = GPT(CONFIG)
    adapted = AdaptedGPT(AdaptedConfig(CONFIG, lora=LoRAConfig(r=2, target_modules=["lm_head"])), base).eval()
    with torch.no_grad():
        for p in adapted.parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    idx = torch.randint(0, 256, (2, 20))
    want = adapted(idx)
    merged = adapted.merged()
    torch.testing.assert_close(merged(idx), want, atol=1e-5, rtol=0)
    assert not merged.config.tie_weights
    save_checkpoint(merged, tmp_path / "merged.pt")
    torch.testing.assert_close(open_model(tmp_path / "merged.pt")[0](idx), want, atol=1e-5, rtol=0)


# ---- conversations ---------------------------------------------------------------------------------

BRACKETS = (
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}~\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)


def test_generate_writes_a_conversation_as_the_model_knows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    path = tmp_path / "chat.pt"
    model = GPT(CONFIG)
    save_checkpoint(model, path, tokenizer=reference(ByteTokenizer()), chat_template=BRACKETS)
    greedy = ("--checkpoint", path, "--temperature", 0, "--max-new-tokens", 12)
    code, answer, err = call(capsys, "generate", *greedy, "--chat", "--system", "be", "--prompt", "ab")
    assert code == 0, err
    asked = "[s]be~\n[u]ab~\n[a]"
    code, whole, _ = call(capsys, "generate", *greedy, "--prompt", asked)
    assert code == 0 and whole == asked + answer
    # What ends an answer in the template ends it here.
    ends = BRACKETS.replace("~", answer[2])
    (tmp_path / "ends.jinja").write_text(ends)
    code, cut, _ = call(
        capsys, "generate", *greedy, "--chat", "--system", "be", "--prompt", "ab",
        "--chat-template", tmp_path / "ends.jinja",
    )  # fmt: skip
    assert code == 0 and cut.count(answer[2]) == 0


def test_conversations_say_how_they_were_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, data, out = tmp_path / "base.pt", tmp_path / "chat.jsonl", tmp_path / "run"
    save_checkpoint(GPT(replace(CONFIG, block_size=96)), base, tokenizer=reference(ByteTokenizer()))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    data.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns}) + "\n")
    code, _, err = call(
        capsys, "finetune", "--method", "lora", "--checkpoint", base, "--data", data, "--out", out, *QUICK
    )
    assert code == 0, err
    assert load_checkpoint(out / "best.pt")["chat_template"] == CHATML
    # It is the training rows that count, not those held out.
    bare, plain = tmp_path / "bare.jsonl", tmp_path / "plain"
    bare.write_text(json.dumps({"prompt": "a", "response": "b"}) + "\n")
    options = ("--checkpoint", base, "--data", bare, "--eval-data", data, "--out", plain, *QUICK)
    assert call(capsys, "finetune", "--method", "lora", *options)[0] == 0
    assert "chat_template" not in load_checkpoint(plain / "best.pt")
    assert call(capsys, "generate", "--checkpoint", out / "best.pt", "--chat", "--max-new-tokens", 3)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--chat"], "brings no chat template: name one, as --chat-template chatml"),
        (["--chat", "--chat-template", "no.jinja"], "chat_template='no.jinja' is no file"),
        (["--system", "be brief"], "add --chat"),
        (["--stop", ""], "a stop string is empty"),
        (["--chat", "--chat-template", "strict.jinja"], "chat template: only a system may speak"),
    ],
)
def test_conversations_that_cannot_be_written(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("strict.jinja").write_text("{{ raise_exception('only a system may speak') }}")
    path = tmp_path / "plain.pt"
    save_checkpoint(GPT(CONFIG), path, tokenizer=reference(ByteTokenizer()))
    code, _, err = call(capsys, "generate", "--checkpoint", path, *options)
    assert code == 2 and message in err and err.count("\n") == 1
