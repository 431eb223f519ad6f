"""The harness's own Hugging Face model beside ours, on the same weights and tokenizer."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ai_learning.errors import InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained
from ai_learning.tokenizers import ByteTokenizer

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    model = GPT(GPTConfig(vocab_size=258, block_size=64, n_layer=2, n_head=2, n_embd=32))
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_pretrained(model, path, ByteTokenizer())
    return path


def request(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_log_likelihoods_equal_the_harness_own(folder: Path) -> None:
    import transformers
    from lm_eval.models.huggingface import HFLM

    from ai_learning.lm_harness import HarnessModel

    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        max_length=64,
        batch_size=1,
    )
    ours = HarnessModel.open(folder)
    pairs = [
        ("The sky is", " blue"),
        ("The sky is", " a very long answer"),
        ("ends in space ", "x"),
        ("", "alone"),
    ]
    expected = theirs.loglikelihood([SimpleNamespace(args=p) for p in pairs], disable_tqdm=True)
    found = ours.loglikelihood([request(*p) for p in pairs])
    for (a, greedy_a), (b, greedy_b) in zip(expected, found, strict=True):
        assert b == pytest.approx(float(a), abs=1e-3) and greedy_a == greedy_b
    texts = [request(text) for text in ("short", "x" * 64, "longer than one window " * 6)]
    rolling = theirs.loglikelihood_rolling(texts, disable_tqdm=True)
    for a, b in zip(rolling, ours.loglikelihood_rolling(texts), strict=True):
        assert b == pytest.approx(float(a), abs=1e-3)


def test_generates_until_a_stop_string(folder: Path) -> None:
    from ai_learning.lm_harness import HarnessModel

    ours = HarnessModel.open(folder)
    whole = ours.generate_until([request("abc", {"until": [], "max_gen_toks": 12})])[0]
    stop = whole[5:7]
    cut = ours.generate_until([request("abc", {"until": [stop], "max_gen_toks": 12})])[0]
    assert cut == whole[: whole.index(stop)]


def test_opened_by_the_harness_own_name(folder: Path) -> None:
    from lm_eval.api.registry import get_model

    import ai_learning.lm_harness  # noqa: F401 - registers the name

    opened = get_model("ai-learning").create_from_arg_string(f"checkpoint={folder}")
    assert opened.tokenizer.vocab_size == 258
    with pytest.raises(InputError, match="names no checkpoint"):
        get_model("ai-learning").create_from_arg_string("")
