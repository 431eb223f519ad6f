"""Fine-tuning on C*: all weights, LoRA and QLoRA, on our GPT and on a model of transformers."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from ai_learning.loss import IGNORE_INDEX
from ai_learning.toolformer import GPTModel, RowBatches, TransformersModel, training_rows
from ai_learning.toolformer.finetune import finetune, mean_loss, save_model
from ai_learning.toolformer.models import open_language_model
from ai_learning.train import TrainConfig

from .conftest import SUMS, annotated

HOW = TrainConfig(steps=12, batch_size=8, lr=2e-3, warmup=2, eval_every=6, save_every=6, log_every=6)


@given(st.lists(st.lists(st.integers(1, 99), max_size=9), min_size=1, max_size=9), st.integers(1, 5))
def test_every_row_comes_once_an_epoch(rows: list[list[int]], batch_size: int) -> None:
    long_enough = [row for row in rows if len(row) > 1]
    if not long_enough:
        with pytest.raises(ValueError, match="no row has two tokens"):
            RowBatches(rows, 99, batch_size)
        return
    batches = RowBatches(rows, 99, batch_size, seed=1)
    steps = len(batches.rows)  # that many batches are batch_size epochs
    seen = []
    for step in range(steps):
        x, y = batches(step)
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            kept = [t for t in b if t != IGNORE_INDEX]
            assert a[1 : len(kept)] == kept[:-1]
            seen.append([a[0], *kept])
    assert sorted(seen) == sorted(long_enough * batch_size)
    assert all(
        torch.equal(a, b)
        for a, b in zip(batches(3), RowBatches(rows, 99, batch_size, seed=1)(3), strict=True)
    )


def test_mean_loss_counts_each_token_once(writer: GPTModel) -> None:
    rows = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    losses = writer.token_losses(rows, [len(row) - 1 for row in rows])
    expected = sum(map(sum, losses)) / sum(map(len, losses))
    assert mean_loss(writer.model, rows, 64, batch_size=2) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_our_gpt_learns_and_is_saved_whole(writer: GPTModel, method: str, tmp_path: Path) -> None:
    lm = GPTModel(copy.deepcopy(writer.model), writer.tokenizer)
    names = list(lm.model.state_dict())
    rows = training_rows(lm, [annotated(lm, text) for text in SUMS[:8]], ["1 plus 1 is two."])
    before = mean_loss(lm.model, rows, 64)
    result = finetune(lm, rows, HOW, tmp_path, method=method, held_out=rows[:4])
    after = mean_loss(lm.model, rows, 64)
    assert after < before and result.metrics["val_loss"] > 0
    assert list(lm.model.state_dict()) == names  # no adapter is left in it
    again = open_language_model(tmp_path / "model.pt")
    assert isinstance(again, GPTModel)
    assert again.encode("3 plus 4") == lm.encode("3 plus 4") and again.start_id == lm.start_id
    assert mean_loss(again.model, rows, 64) == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_of_transformers_learns_and_is_saved(method: str, writer: GPTModel, tmp_path: Path) -> None:
    writer.tokenizer.save(tmp_path / "t")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "t" / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=writer.tokenizer.vocab_size, **sizes))
    lm = TransformersModel(model, tokenizer)
    rows = training_rows(lm, [annotated(lm, text) for text in SUMS[:8]])  # type: ignore[arg-type]
    counts = [len(row) - 1 for row in rows]
    before = sum(map(sum, lm.token_losses(rows, counts)))
    finetune(lm, rows, HOW, tmp_path / "run", method=method)
    found = open_language_model(tmp_path / "run" / "model")
    assert isinstance(found, TransformersModel)
    mine, theirs = lm.token_losses(rows, counts), found.token_losses(rows, counts)
    assert sum(map(sum, mine)) == pytest.approx(sum(map(sum, theirs)), rel=1e-4)
    assert sum(map(sum, mine)) < before


def test_a_run_goes_on_where_it_stopped(writer: GPTModel, tmp_path: Path) -> None:
    """LoRA, stopped after half: the same weights as in one go."""
    rows = training_rows(writer, [annotated(writer, text) for text in SUMS[:8]])

    class StopNow(Exception):  # noqa: N818
        pass

    def stop(row: dict) -> None:
        if row.get("step") == 7:
            raise StopNow

    how = TrainConfig(**{**HOW.__dict__, "log_every": 1})
    whole = GPTModel(copy.deepcopy(writer.model), writer.tokenizer)
    finetune(whole, rows, how, tmp_path / "whole", method="lora")
    half = GPTModel(copy.deepcopy(writer.model), writer.tokenizer)
    with pytest.raises(StopNow):
        finetune(half, rows, how, tmp_path / "half", method="lora", listener=stop)
    rest = GPTModel(copy.deepcopy(writer.model), writer.tokenizer)
    finetune(rest, rows, how, tmp_path / "half", method="lora", resume=True)
    for a, b in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bad_methods_and_models(writer: GPTModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="full, lora, qlora"):
        finetune(writer, [[1, 2]], HOW, tmp_path, method="half")
    assert save_model(writer, tmp_path) == tmp_path / "model.pt"
    for missing in (tmp_path / "no.pt", tmp_path / "none", "no/such/model"):
        with pytest.raises(ValueError):
            open_language_model(missing)
