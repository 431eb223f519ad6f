"""A tokenizer with the marks of calls, and a tiny model trained for seconds to write them."""

import pytest
import torch

from ai_learning.model import GPT, GPTConfig
from ai_learning.tokenizers import BPETokenizer
from ai_learning.toolformer import (
    Annotated,
    Call,
    Candidate,
    GPTModel,
    RowBatches,
    training_rows,
)
from ai_learning.toolformer.finetune import row_loss

SUMS = [f"{a} plus {b} equals {a + b}." for a in range(6) for b in range(6)]
MARKS = ("<|endoftext|>", "<API>", "→", "</API>")


def annotated(lm: GPTModel, text: str) -> Annotated:
    """One right call, before the answer."""
    a, _, b, _, total = text[:-1].split()
    offset = text.rindex(" " + total)
    call = Call("Calculator", f"{a}+{b}")
    place = len(lm.encode(text[:offset]))
    return Annotated(
        text, (Candidate(place, offset, call, total, loss_result=0, loss_nothing=1, loss_call=1, kept=True),)
    )


@pytest.fixture(scope="session")
def writer() -> GPTModel:
    """A model that has learnt to write sums with calls (and nothing else)."""
    tokenizer = BPETokenizer.train(SUMS + ["Calculator(1+2)"] * 9, 290, special_tokens=MARKS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPTConfig(
            tokenizer.vocab_size, block_size=64, n_layer=2, n_head=2, n_embd=64, positions="rotary"
        )
        lm = GPTModel(GPT(config), tokenizer)
        batches = RowBatches(training_rows(lm, [annotated(lm, text) for text in SUMS]), 64, 32)
        optimizer = torch.optim.AdamW(lm.model.parameters(), lr=3e-3)
        for step in range(160):
            optimizer.zero_grad()
            row_loss(lm.model, batches(step)).backward()
            optimizer.step()
    lm.model.eval()
    return lm
