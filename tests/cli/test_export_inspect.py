"""`export` and `inspect`: what they write opens elsewhere, and bad input is one line."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from ai_learning.adapters import LoRAConfig, inject_lora, save_peft
from ai_learning.checkpoint import load_gpt, open_model, save_checkpoint, tokenizer_reference
from ai_learning.cli import main
from ai_learning.cli.inspect import look
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import load_pretrained
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer
from ai_learning.trace import logit_lens, record, token_losses

CONFIG = GPTConfig(vocab_size=258, block_size=48, n_layer=2, n_head=2, n_embd=32)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as pretrain leaves it."""
    torch.manual_seed(1)
    folder = tmp_path / "run"
    folder.mkdir()
    save_checkpoint(GPT(CONFIG), folder / "best.pt", tokenizer=tokenizer_reference(ByteTokenizer()))
    (folder / "run.json").write_text(
        json.dumps({"data": "builtin:reference", "train": {"steps": 7, "lr": 0.1}})
    )
    (folder / "metrics.jsonl").write_text(
        '{"step": 5, "val_loss": 2.5}\n{"step": 7, "val_loss": 2.75}\n{"step"'
    )
    (folder / "loss.png").write_bytes(b"picture")
    return folder


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_exported_folder_opens_in_transformers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert call(capsys, "export", run / "best.pt", "--out", out, "--license", "mit")[0] == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "naïve 🙂 text\r\n\twith <|endoftext|> inside"
    ids = tokenizer(text)["input_ids"]
    assert ids == [*"naïve 🙂 text\r\n\twith ".encode(), 256, *b" inside"]
    assert tokenizer.decode(ids) == text and tokenizer.eos_token_id == model.config.eos_token_id == 256
    ours, _ = load_gpt(run / "best.pt")
    idx = torch.tensor([ids[:40]])
    torch.testing.assert_close(model(idx).logits, ours.eval()(idx), atol=1e-5, rtol=1e-5)
    card = (out / "README.md").read_text()
    assert "license: mit" in card and "builtin:reference" in card and "![loss](loss.png)" in card
    assert "lowest 2.5000 after step 5" in card and (out / "loss.png").read_bytes() == b"picture"
    again, opened, _ = open_model(out)
    assert opened is not None and opened.encode("né") == list("né".encode())
    torch.testing.assert_close(again(idx), ours(idx), atol=1e-6, rtol=1e-6)


def test_a_trained_tokenizer_goes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = BPETokenizer.train(["the cat sat on the mat " * 20], 280)
    tokenizer.save(tmp_path / "tokenizer")
    model = GPT(GPTConfig(vocab_size=280, block_size=16, n_layer=1, n_head=1, n_embd=8))
    save_checkpoint(model, tmp_path / "m.pt", tokenizer=tokenizer_reference(tokenizer))
    assert call(capsys, "export", tmp_path / "m.pt", "--out", tmp_path / "out", "--dtype", "bfloat16")[0] == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("the cat sat")["input_ids"] == tokenizer.encode("the cat sat")
    assert load_pretrained(tmp_path / "out").wte.weight.dtype == torch.bfloat16


def test_merged_adapter(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapted, _ = load_gpt(run / "best.pt")
    inject_lora(adapted.eval(), LoRAConfig(r=2, target_modules=["c_attn", "c_fc"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_peft(adapted, tmp_path / "adapter")
    args = ("export", run / "best.pt", "--out", tmp_path / "out", "--adapter", tmp_path / "adapter")
    code, _, err = call(capsys, *args)
    assert code == 2 and "--adapter needs --merge" in err
    assert call(capsys, *args, "--merge")[0] == 0
    idx = torch.randint(0, 256, (2, 20))
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged(idx).logits, adapted(idx), atol=1e-4, rtol=1e-4)
    base, _ = load_gpt(run / "best.pt")
    assert not torch.allclose(base.eval()(idx), adapted(idx), atol=1e-2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export", "no.pt"], "no checkpoint at no.pt"),
        (["export", "/no/such/folder"], "no checkpoint at /no/such/folder"),
        (["export", "CHECKPOINT", "--out", "FULL"], "is not an empty folder"),
        (["export", "CHECKPOINT", "--dtype", "int4"], "dtype='int4' is not known"),
        (["export", "CHECKPOINT", "--merge"], "--merge needs --adapter"),
        (["inspect", "CHECKPOINT", "--text", "x"], "the text has 1 tokens: give 2 to 48"),
        (["inspect", "CHECKPOINT", "--format", "gif"], "format='gif' is not known; use png or svg"),
        (["evaluate", "--checkpoint", "CHECKPOINT", "--task", "piqa"], "task='piqa' is not known"),
    ],
)
def test_bad_input(
    args: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CHECKPOINT": str(run / "best.pt"), "FULL": str(run)}
    code, _, err = call(capsys, *(places.get(arg, arg) for arg in args))
    assert code == 2 and message in err and err.count("\n") == 1


def test_push_says_what_the_hub_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Api:
        endpoint = "https://hub.invalid"

        def create_repo(self, name: str, **options: object) -> None:
            calls.append(("create", name, options))
            if "denied" in name:
                raise RuntimeError("401 Client Error.\n\nInvalid token")

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> None:
            calls.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    out = tmp_path / "out"
    code, text, _ = call(capsys, "export", run / "best.pt", "--out", out, "--push", "me/mine", "--private")
    assert code == 0 and "https://hub.invalid/me/mine" in text
    assert calls[0] == ("create", "me/mine", {"private": True, "exist_ok": True})
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(calls[1][2])
    code, _, err = call(capsys, "export", run / "best.pt", "--out", tmp_path / "2", "--push", "me/denied")
    assert code == 2 and "401 Client Error. Invalid token" in err and err.count("\n") == 1
    code, _, err = call(capsys, "export", run / "best.pt", "--out", tmp_path / "3", "--push", "nobody")
    assert code == 2 and "give user/name" in err


def test_inspect_numbers_are_the_models(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(capsys, "inspect", run / "best.pt", "--text", "def f(x):", "--out", tmp_path / "i")[0] == 0
    found = json.loads((tmp_path / "i" / "inspect.json").read_text())
    assert "".join(found["tokens"]) == "def f(x):"
    model, _ = load_gpt(run / "best.pt")
    model.eval()
    idx = torch.tensor([list(b"def f(x):")])
    with torch.no_grad(), record(model) as trace:
        logits = model(idx)
    log_p = logits.log_softmax(-1)[0]
    assert found["losses"] == pytest.approx([-log_p[t, idx[0, t + 1]].item() for t in range(8)], abs=1e-5)
    assert found["residual_rms"][0] == pytest.approx(
        trace.residual[0].square().mean().sqrt().item(), rel=1e-5
    )
    torch.testing.assert_close(logit_lens(model, trace.residual)[-1], logits)
    assert token_losses(logits, idx).shape == (1, 8)
    assert len(found["attention_entropy"]) == 2 and found["attention_entropy"][0][0] > 0
    pictures = list((tmp_path / "i").glob("*.png"))
    assert len(pictures) == 6 and all(p.stat().st_size > 3000 for p in pictures)
    look(model, ByteTokenizer(), idx[0].tolist(), tmp_path / "svg", "svg")
    assert (tmp_path / "svg" / "lens.svg").read_text().startswith("<?xml")


def test_evaluate_folders_and_tasks(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "exported"
    assert call(capsys, "export", run / "best.pt", "--out", out)[0] == 0
    for checkpoint, name in ((run / "best.pt", "a"), (out, "b")):
        args = ("--max-tokens", 500, "--out", tmp_path / f"{name}.json")
        assert call(capsys, "evaluate", "--checkpoint", checkpoint, *args)[0] == 0
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-5) and a["n_bytes"] == b["n_bytes"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"context": "1 + 1 =", "choices": ["2", "3"], "label": 0}\n' * 3)
    args = ("--task", "multiple_choice", "--data", rows, "--limit", 2, "--out", tmp_path / "c.json")
    assert call(capsys, "evaluate", "--checkpoint", out, *args)[0] == 0
    assert json.loads((tmp_path / "c.json").read_text())["questions"] == 2
