"""The interface over our GPT and over transformers' models: the same numbers, the same continuations."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ai_learning.errors import InputError
from ai_learning.generate import generate
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import to_hf
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer
from ai_learning.toolformer import (
    PLAIN,
    Calculator,
    Call,
    CallFormat,
    GPTModel,
    LanguageModel,
    PipelineTool,
    Settings,
    TransformersModel,
    Translator,
    annotate,
    as_language_model,
    generate_with_tools,
)
from ai_learning.toolformer.calls import BYTES, MARKED
from ai_learning.toolformer.draws import sampler, uniforms
from ai_learning.toolformer.ends import CallEnd
from ai_learning.toolformer.models import open_language_model
from ai_learning.toolformer.prompts import PROMPTS, prompt


@pytest.fixture(scope="module")
def ours() -> GPTModel:
    tokenizer = BPETokenizer.train([" [Calculator(3 + 4) -> 7] in all)] )]"] * 3, 285)
    torch.manual_seed(1)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=48, n_layer=2, n_head=2, n_embd=32))
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return GPTModel(model, tokenizer)


def hf_tokenizer(tokenizer: BPETokenizer, folder: str) -> PreTrainedTokenizerFast:
    tokenizer.save(folder)
    return PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def theirs(ours: GPTModel, tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    """The same weights and vocabulary as transformers' GPT-2."""
    return TransformersModel(
        to_hf(ours.model), hf_tokenizer(ours.tokenizer, str(tmp_path_factory.mktemp("tokenizer")))
    )


ROWS = [[1, 2, 3, 4, 5, 6], [9, 8], [7, 7, 7, 7, 7, 7, 7, 7, 7], [30, 31, 32], [5, 6, 7]]


def test_losses_are_those_of_the_plain_forward_pass(ours: GPTModel, theirs: TransformersModel) -> None:
    counts = [5, 1, 3, 2, 0]
    found = ours.token_losses(ROWS, counts)
    for row, count, losses in zip(ROWS, counts, found, strict=True):
        with torch.no_grad():
            log_p = ours.model(torch.tensor([row]))[0].log_softmax(-1)
        expected = [-float(log_p[t - 1, row[t]]) for t in range(len(row) - count, len(row))]
        assert losses == pytest.approx(expected, abs=1e-5)
    for a, b in zip(theirs.token_losses(ROWS, counts), found, strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_probabilities_agree(ours: GPTModel, theirs: TransformersModel) -> None:
    assert ours.how == theirs.how == PLAIN and ours.start_id == theirs.start_id
    counts = [6, 2, 4, 3, 1]
    for a, b in zip(
        ours.start_probabilities(ROWS, counts), theirs.start_probabilities(ROWS, counts), strict=True
    ):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("which", ["ours", "theirs"])
def test_greedy_continuation_is_that_of_generate(
    which: str, ours: GPTModel, theirs: TransformersModel
) -> None:
    """With a cache, padding, two copies and rows that end at different times."""
    lm: LanguageModel = ours if which == "ours" else theirs
    draw = sampler(np.zeros(10, dtype=np.uint64), 0, 0.0)
    limit = {number: 3 + number for number in range(10)}
    found = lm.continue_rows(ROWS, 12, choose=draw, ends=lambda n, new: len(new) >= limit[n], copies=2)
    for number, new in enumerate(found):
        row = ROWS[number // 2]
        expected = generate(ours.model, torch.tensor([row]), min(12, 3 + number), temperature=0)[
            0, len(row) :
        ]
        assert new == expected.tolist()


def test_a_long_row_does_not_cut_short_the_others(ours: GPTModel) -> None:
    draw = sampler(np.zeros(2, dtype=np.uint64), 0, 0.0)
    found = ours.continue_rows([[1] * 46, [2, 3]], 10, choose=draw, ends=lambda n, new: False)
    assert [len(new) for new in found] == [2, 10]


def test_draws_depend_on_key_seed_and_step_only() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    u = uniforms(keys, 5, 3)
    assert 0 <= u.min() and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01 and abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(u, uniforms(keys, 5, 4))[0, 1]) < 0.03
    assert abs(np.corrcoef(u, uniforms(keys, 6, 3))[0, 1]) < 0.03
    assert (uniforms(keys[100:200], 5, 3) == u[100:200]).all()
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(20_000, 4)
    drawn = np.array(sampler(keys, 5)(logits, list(range(20_000)), 3))
    assert np.bincount(drawn) / 20_000 == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)


def test_the_marks_fit_the_tokenizer(ours: GPTModel) -> None:
    gpt = GPT(GPTConfig(vocab_size=258, block_size=16, n_layer=1, n_head=1, n_embd=8))
    assert as_language_model(gpt, ByteTokenizer()).how == BYTES
    marked = BPETokenizer.train(["x"], 261, special_tokens=("<|endoftext|>", "<API>", "→", "</API>"))
    lm = as_language_model(gpt, marked)
    assert lm.how == MARKED and lm.encode("<API>") != [lm.start_id]  # text that looks like a mark is text
    with pytest.raises(ValueError, match="'<API>', which opens a call, is 5 tokens"):
        as_language_model(gpt, ByteTokenizer(), CallFormat())
    with pytest.raises(ValueError, match="needs its tokenizer"):
        as_language_model(gpt)
    assert as_language_model(lm) is lm


def test_ids_that_round_the_vocabulary_up_are_no_text(ours: GPTModel) -> None:
    padded = GPT(GPTConfig(vocab_size=320, block_size=48, n_layer=1, n_head=1, n_embd=8))
    lm = GPTModel(padded, ours.tokenizer)
    assert lm.decode([lm.start_id, 319]) == " ["
    assert (
        generate_with_tools(lm, "3 +", [Calculator()], max_new_tokens=20, top_k=320, temperature=3.0)
        is not None
    )
    annotate(lm, ["3 + 4 in all"], [Calculator()], settings=Settings(0.0, 0.0, 3, 3))


def test_a_mark_inside_a_longer_token_ends_the_call(ours: GPTModel) -> None:
    """As ``)]`` in GPT-2's vocabulary."""
    end = CallEnd(ours)
    ids = ours.encode("Calculator(3 + 4)]")
    assert "]" not in [ours.decode([i]) for i in ids]  # merged with the parenthesis before it
    assert [end(ids[:n]) for n in range(1, len(ids) + 1)] == [False] * (len(ids) - 1) + [True]
    assert end.cut(ids) == ("Calculator(3 + 4)", "]")
    assert end.cut(ours.encode("Calculator(3) -> 7]")) == ("Calculator(3)", " ->")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_any_causal_model_is_annotated_and_writes(kind: str, ours: GPTModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Random weights and a tokenizer of transformers, from a folder, with the paper's prompts and marks."""
    V = ours.tokenizer.vocab_size
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=1024, n_embd=32, n_layer=2, n_head=2))
    else:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=V, num_key_value_heads=1, max_position_embeddings=1024, **sizes)
        )
    model.save_pretrained(tmp_path)
    hf_tokenizer(ours.tokenizer, str(tmp_path / "t")).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path) is not None
    lm = open_language_model(tmp_path)
    assert isinstance(lm, TransformersModel) and lm.how == PLAIN
    settings = Settings(tau_s=0.0, tau_f=-100.0, k=3, m=2)
    options = {"settings": settings, "prompts": PROMPTS, "max_call_tokens": 6}
    together = annotate(lm, ["3 + 4 = 7 in all", "in all 7"], [Calculator()], name_tools=True, **options)
    alone = annotate(lm, ["3 + 4 = 7 in all"], [Calculator()], name_tools=True, **options)
    assert [c.call for c in together[0].candidates] == [c.call for c in alone[0].candidates]
    found = generate_with_tools(lm, ["3 + 4 =", "7"], [Calculator()], max_new_tokens=5, top_k=V)
    assert len(found) == 2 and all(len(g.uses) <= 1 for g in found)


@pytest.mark.parametrize("device", ["foo", "cpu:9", "cuda:99", "mps:7"])
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_device_that_is_not_here_is_told_before_anything_is_read(
    device: str, kind: str, tmp_path: Path
) -> None:
    """Else a whole checkpoint is read for nothing, and is called damaged."""
    (tmp_path / "model.pt").write_bytes(b"not read")
    with pytest.raises(InputError, match=f"device {device!r} is not available here"):
        open_language_model(tmp_path / "model.pt" if kind == "ours" else tmp_path, device)


def test_a_model_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub tells of each try that fails."""
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("huggingface_hub")
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))

    def fails(*_: Any, **__: Any) -> None:
        logging.getLogger("huggingface_hub.utils").warning("Retrying in 1s")
        raise OSError("no\nconnection")

    for loader in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "pipeline"):
        target = f"transformers.{loader}" + ("" if loader == "pipeline" else ".from_pretrained")
        monkeypatch.setattr(target, fails)
    logger.addHandler(handler)
    try:
        for load in (open_language_model, Translator.load, PipelineTool.load):
            with pytest.raises(InputError, match="no connection"):
                load("WRONGNAME")
        assert not said
        logging.getLogger("huggingface_hub.utils").warning("heard")
        assert said == ["heard"]  # afterwards as before
    finally:
        logger.removeHandler(handler)


def test_text_of_transformers_special_tokens_is_text(theirs: TransformersModel) -> None:
    ids = theirs.encode("a<|endoftext|> ,")
    assert theirs.eos_id not in ids and theirs.decode(ids) == "a<|endoftext|> ,"
    assert theirs.mark("<|endoftext|>") == [theirs.eos_id]


def test_prompts_have_the_papers_structure() -> None:
    for tool, text in PROMPTS.items():
        assert text.endswith("Input:\n{text}\nOutput:\n") and text.count("{text}") == 1
        assert text.count(f"[{tool}(") >= 4 and text.count("Input:") >= 4
        for pair in text.split("\n\n")[1:-1]:  # the output is the input with calls
            before, after = pair.removeprefix("Input:\n").split("\nOutput:\n")
            import re

            assert re.sub(rf" \[{tool}\(.*?\)\]", "", after) == before
    assert "<API>Calculator(24 * 18)</API> 432" in prompt("Calculator", MARKED)
    with pytest.raises(ValueError, match="no prompt for 'X'"):
        prompt("X")
    assert Call("Calculator", "24 * 18") is not None
