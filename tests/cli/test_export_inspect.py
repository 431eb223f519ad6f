"""`export` and `inspect`: what they write opens elsewhere, and bad input is one line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from ai_learning.adapters import LoRAConfig, inject_lora, save_peft
from ai_learning.checkpoint import load_gpt, open_model, save_checkpoint, tokenizer_reference
from ai_learning.cli import main
from ai_learning.cli.inspect import look
from ai_learning.model import GPT, GPTConfig
from ai_learning.model.heads import TaskConfig, TaskModel
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


def test_a_chat_models_own_end_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its answers end in <|im_end|>, not in what ends a document: who generates stops at either."""
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = BPETokenizer.train(["the cat sat on the mat " * 20], 268, special_tokens=special)
    end = tokenizer.special_tokens["<|im_end|>"]
    sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=268, bos_token_id=None, eos_token_id=end, **sizes)
    )
    base = tmp_path / "base"
    theirs.save_pretrained(base)
    tokenizer.save(base)
    config = json.loads((base / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    changed = config | {"eos_token": "<|im_end|>", "chat_template": template}
    (base / "tokenizer_config.json").write_text(json.dumps(changed))
    assert call(capsys, "export", base, "--out", tmp_path / "out")[0] == 0
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.eos_token_id == end and len(again) == 268
    asked = [{"role": "user", "content": "cat"}]
    assert again.apply_chat_template(asked, tokenize=False) == "cat<|im_end|>"
    ends = [end, tokenizer.eos_id]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == ends
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").eos_token_id == ends


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
    for name, message in (("nobody", "give user/name"), ("me/a b", "no name on the hub"), ("/x", "no name")):
        code, _, err = call(capsys, "export", run / "best.pt", "--out", tmp_path / "3", "--push", name)
        assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "3").exists()


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


WORDS = "the cat sat on the mat and saw another dog run after some birds under those green trees "


@pytest.fixture
def bpe_run(tmp_path: Path) -> tuple[Path, BPETokenizer]:
    """A checkpoint with a trained tokenizer of 280 ids beside it."""
    tokenizer = BPETokenizer.train([WORDS], 280)
    tokenizer.save(tmp_path / "bpe" / "tokenizer")
    torch.manual_seed(2)
    model = GPT(GPTConfig(vocab_size=280, block_size=32, n_layer=1, n_head=1, n_embd=8))
    save_checkpoint(model, tmp_path / "bpe" / "best.pt", tokenizer=tokenizer_reference(tokenizer))
    return tmp_path / "bpe" / "best.pt", tokenizer


COMMANDS = {
    "generate": ("--max-new-tokens", 3, "--prompt", "the cat"),
    "evaluate": ("--max-tokens", 60),
    "inspect": ("--text", "the cat sat"),
    "export": (),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_only_the_models_own_tokenizer_is_taken(
    command: str, bpe_run: tuple[Path, BPETokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = bpe_run
    named = ("--checkpoint", checkpoint) if command in ("generate", "evaluate") else (checkpoint,)
    ask = (command, *named, *COMMANDS[command], "--out", tmp_path / "out")
    code, out, err = call(capsys, *ask, "--tokenizer", "bytes")
    assert code == 2 and err.count("\n") == 1 and out == "" and not (tmp_path / "out").exists()
    assert f"the tokenizer given is not that of {checkpoint} (fingerprint " in err
    other = BPETokenizer.train([WORDS[::-1]], 279)
    other.save(tmp_path / "other")
    assert call(capsys, *ask, "--tokenizer", tmp_path / "other")[0] == 2
    (checkpoint.parent / "tokenizer").rename(tmp_path / "moved")
    assert call(capsys, *ask)[0] == 2
    code, _, err = call(capsys, *ask, "--tokenizer", tmp_path / "moved")
    assert code == 0, err


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BPETokenizer.train([WORDS], 280).save(tmp_path / "large")
    save_checkpoint(GPT(CONFIG), tmp_path / "nameless.pt")
    code, _, err = call(
        capsys,
        "export",
        tmp_path / "nameless.pt",
        "--out",
        tmp_path / "out",
        "--tokenizer",
        tmp_path / "large",
    )
    assert code == 2 and "the tokenizer has 280 ids, " in err and "nameless.pt only 258:" in err
    assert not (tmp_path / "out").exists()
    ask = ("generate", "--checkpoint", tmp_path / "nameless.pt", "--max-new-tokens", 2)
    assert call(capsys, *ask, "--tokenizer", "bytes")[0] == 0


def test_a_folder_of_hugging_faces_has_a_tokenizer_of_its_own(
    run: Path, bpe_run: tuple[Path, BPETokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, checkpoint in (("bytes", run / "best.pt"), ("bpe", bpe_run[0])):
        assert call(capsys, "export", checkpoint, "--out", tmp_path / f"hf-{name}")[0] == 0
    ask = ("generate", "--max-new-tokens", 2, "--tokenizer", "bytes", "--checkpoint")
    assert call(capsys, *ask, tmp_path / "hf-bytes")[0] == 0  # the same ids, written as a BPE
    code, _, err = call(capsys, *ask, tmp_path / "hf-bpe")
    assert code == 2 and "is not that of" in err
    (tmp_path / "hf-bpe" / "tokenizer.json").write_text("{}")  # nothing that we could open
    assert call(capsys, *ask, tmp_path / "hf-bpe")[0] == 0


def test_a_task_models_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = BPETokenizer.train([WORDS], 280)
    gpt = GPTConfig(vocab_size=283, block_size=16, n_layer=1, n_head=1, n_embd=8)
    model = TaskModel(TaskConfig(gpt=gpt, task="classification", n_classes=2), GPT(gpt))
    save_checkpoint(model, tmp_path / "task.pt", tokenizer=tokenizer_reference(tokenizer), classes=["a", "b"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "the cat", "label": "a"}\n{"text": "the mat", "label": "b"}\n')
    ask = ("evaluate", "--checkpoint", tmp_path / "task.pt", "--data", rows, "--tokenizer")
    code, _, err = call(capsys, *ask, "bytes")
    assert code == 2 and "is not that of" in err
    tokenizer.save(tmp_path / "moved")
    code, _, err = call(capsys, *ask, tmp_path / "moved")
    assert code == 0, err


@pytest.mark.parametrize("method", ["full", "lora"])
def test_fine_tuning_with_a_tokenizer_that_was_moved(
    method: str, bpe_run: tuple[Path, BPETokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bpe_run[0].parent / "tokenizer").rename(tmp_path / "moved")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the cat", "response": "sat"}\n{"prompt": "the", "response": "mat"}\n' * 5)
    ask = ("finetune", "--method", method, "--checkpoint", bpe_run[0], "--data", rows, "--steps", 2)
    more = ("--warmup", 0, "--batch-size", 2, "--samples", 1, "--device", "cpu", "--out", tmp_path / "tuned")
    code, _, err = call(capsys, *ask, *more, "--tokenizer", "bytes")
    assert code == 2 and "is not that of" in err
    code, _, err = call(capsys, *ask, *more, "--tokenizer", tmp_path / "moved")
    assert code == 0, err
    ask = ("generate", "--checkpoint", tmp_path / "tuned" / "best.pt", "--max-new-tokens", 3)
    code, _, err = call(capsys, *ask)
    assert code == 0, err


def test_a_drafts_tokenizer_is_the_models(
    run: Path, bpe_run: tuple[Path, BPETokenizer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also past the context, and for all that is wrong before a word is shown."""
    ask = ("generate", "--prompt", "the cat", "--temperature", 0, "--checkpoint", bpe_run[0])
    plain = call(capsys, *ask)
    assert plain[0] == 0
    other = BPETokenizer.train([WORDS[::-1]], 279)
    config = GPTConfig(vocab_size=280, block_size=16, n_layer=1, n_head=1, n_embd=8)
    save_checkpoint(GPT(config), tmp_path / "other.pt", tokenizer=tokenizer_reference(other))
    code, out, err = call(capsys, *ask, "--draft", tmp_path / "other.pt")
    assert code == 2 and out == "" and f"is not that of {tmp_path / 'other.pt'}" in err
    save_checkpoint(GPT(config), tmp_path / "nameless.pt")
    drafted = call(capsys, *ask, "--draft", tmp_path / "nameless.pt")
    assert drafted[:2] == plain[:2] and "guesses kept" in drafted[2]
    save_checkpoint(GPT(replace(config, vocab_size=281)), tmp_path / "larger.pt")
    code, out, err = call(capsys, *ask, "--draft", tmp_path / "larger.pt")
    assert code == 2 and out == "" and "they have 281 and 280 ids" in err
    code, out, err = call(capsys, *ask, "--draft", tmp_path / "nameless.pt", "--repetition-penalty", 1.5)
    assert code == 2 and out == "" and "leave it at 1" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--temperature", -1), "temperature=-1.0 must be"),
        (("--repetition-penalty", 1e-40), "repetition_penalty=1e-40 must be"),
        (("--seed", 99999999999999999999999), "seed=99999999999999999999999 must be below"),
        (("--seed", -1), "seed=-1 must not be negative"),
        (("--stop", ""), "a stop string is empty"),
        (("--max-new-tokens", -1), "max_new_tokens=-1 must not be negative"),
        (("--device", "cpu:7"), "device 'cpu:7' is not available here; use cpu"),
        (("--out", "FOLDER"), "is a folder: give the name of a file"),
        (("--out", "FILE/below/it.txt"), "best.pt is no folder"),
    ],
)
def test_what_generate_refuses_before_it_begins(
    args: tuple, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"FOLDER": str(run), "FILE": str(run / "best.pt")}
    given = [re.sub("FOLDER|FILE", lambda found: places[found[0]], str(arg)) for arg in args]
    code, out, err = call(capsys, "generate", "--checkpoint", run / "best.pt", *given)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""


def test_generates_seeds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def samples(seed: int, n: int, *more: object) -> list[str]:
        ask = ("generate", "--checkpoint", run / "best.pt", "--max-new-tokens", 12, "--seed", seed)
        code, out, err = call(capsys, *ask, "--samples", n, *more)
        assert code == 0, err
        return out.removesuffix("\n").split("\n" + "-" * 40 + "\n")

    one, two = samples(1, 2), samples(2, 1)
    assert one[0] == samples(1, 1)[0] and one[1] != two[0] != one[0] and samples(1, 2) == one
    assert len(samples(2**64 - 1, 3)) == 3
    assert samples(3, 1, "--temperature", 1e-50) == samples(3, 1, "--temperature", 0)


def test_the_prompts_default_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"\(default:[\s│]+'\\n'\)", call(capsys, "generate", "--help")[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--out", "FOLDER"), "is a folder: give the name of a file"),
        (("--limit", -1), "limit=-1 must not be negative"),
        (("--stride", 0), "stride=0 must be at least 1"),
        (("--stride", 49), "stride=49 must be from 1 to block_size=48"),
        (("--task", "hellaswag", "--data", "FOLDER/best.pt"), "best.pt is no text in UTF-8"),
        (("--task", "hellaswag", "--data", "FOLDER"), "run is a folder: give a file of JSON lines"),
    ],
)
def test_what_evaluate_refuses(
    args: tuple, message: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(arg).replace("FOLDER", str(run)) for arg in args]
    code, out, err = call(capsys, "evaluate", "--checkpoint", run / "best.pt", *given)
    assert code == 2 and message in err and err.count("\n") == 1 and out == ""
