"""Recording: the weights are the model's own, and the model is left as it was."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ai_learning.model import GPT, TinyTransformer, fast_attention
from ai_learning.model.heads import TaskConfig, TaskModel
from ai_learning.trace import record


def test_records_what_the_reference_computes(tiny_gpt: GPT) -> None:
    idx = torch.randint(0, 64, (2, 9))
    with record(tiny_gpt) as trace:
        logits = tiny_gpt(idx)
    torch.testing.assert_close(logits, tiny_gpt(idx), atol=1e-5, rtol=1e-5)
    assert [w.shape for w in trace.attention] == [(2, 2, 9, 9)] * 2
    assert all(torch.allclose(w.sum(-1), torch.ones(2, 2, 9)) for w in trace.attention)
    assert [r.shape for r in trace.residual] == [(2, 9, 32)] * 3
    assert torch.equal(trace.logits, logits)
    # the stream after the last block, normed and read by the head, is the logits
    torch.testing.assert_close(tiny_gpt.lm_head(tiny_gpt.ln_f(trace.residual[-1])), logits)
    torch.testing.assert_close(trace.residual[0], tiny_gpt.wte(idx) + tiny_gpt.wpe.weight[:9])


def test_equals_transformers(tiny_gpt: GPT) -> None:
    transformers = pytest.importorskip("transformers")
    from ai_learning.pretrained import from_hf

    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    idx = torch.randint(0, 50, (1, 12))
    reference = theirs(idx, output_attentions=True, output_hidden_states=True)
    ours = from_hf(theirs)
    with record(ours) as trace:
        ours(idx)
    for one, other in zip(trace.attention, reference.attentions, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    for one, other in zip(trace.residual[:-1], reference.hidden_states[:-1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_task_models_blocks_are_found(tiny_gpt: GPT) -> None:
    model = TaskModel(TaskConfig(gpt=tiny_gpt.config, n_classes=3), tiny_gpt).eval()
    idx = torch.randint(0, 64, (2, 1, 9))
    with record(model) as trace:
        scores, hidden = model(idx, torch.full((2, 1), 8))
    assert [r.shape for r in trace.residual] == [(2, 9, 32)] * 3
    torch.testing.assert_close(tiny_gpt.ln_f(trace.residual[-1]), hidden)
    assert torch.equal(trace.logits, scores) and scores.shape == (2, 3)


def test_the_model_is_put_back_also_after_an_error(tiny_gpt: GPT) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), record(tiny_gpt):
        raise RuntimeError("on purpose")
    assert all(block.attn.attention is fast_attention for block in tiny_gpt.h)
    assert not tiny_gpt._forward_hooks and not tiny_gpt.h[0]._forward_hooks


def test_tiny_transformer_and_nothing_to_record(tiny_gpt: GPT) -> None:
    model = TinyTransformer(replace(tiny_gpt.config, n_layer=1))
    with record(model) as trace:
        model(torch.zeros(1, 4, dtype=torch.long))
    assert trace.attention[0].shape == (1, 2, 4, 4)
    with pytest.raises(ValueError, match="Linear holds no CausalSelfAttention"), record(nn.Linear(1, 1)):
        pass


def test_recording_twice_at_once(tiny_gpt: GPT) -> None:
    idx = torch.zeros(1, 5, dtype=torch.long)
    with record(tiny_gpt) as outer, record(tiny_gpt) as inner:
        with pytest.raises(ValueError, match="nothing is recorded yet"):
            inner.entropy()
        tiny_gpt(idx)
    assert torch.equal(torch.stack(outer.attention), torch.stack(inner.attention))
    assert torch.equal(outer.entropy(), inner.entropy())
