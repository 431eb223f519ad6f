"""Parity with transformers' random models: logits, hidden states, attention, gradients, greedy tokens."""

import warnings
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from ai_learning.errors import InputError
from ai_learning.generate import generate
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import (
    config_from_hf,
    config_to_hf,
    from_hf,
    load_pretrained,
    save_pretrained,
    to_hf,
)
from ai_learning.trace import record

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
COMMON = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def gpt2(**changes: Any) -> Any:
    sizes = {"vocab_size": 97, "n_positions": 300, "n_layer": 2, "n_head": 4, "n_embd": 32} | changes
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(bos_token_id=None, eos_token_id=None, **sizes)
    )


def gpt1(**changes: Any) -> Any:
    sizes = {"vocab_size": 97, "n_positions": 300, "n_layer": 2, "n_head": 4, "n_embd": 32} | changes
    return transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**sizes))


def llama(kind: str = "Llama", **changes: Any) -> Any:
    sizes = {
        "vocab_size": 97,
        "max_position_embeddings": 300,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 32,
        "intermediate_size": 88,
    } | changes
    config = getattr(transformers, f"{kind}Config")(**sizes, **COMMON)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


MODELS = {
    "gpt2": gpt2,
    "gpt2 narrow, wide MLP": lambda: gpt2(n_head=1, n_embd=16, n_inner=40, n_layer=1),
    "gpt2 untied, relu": lambda: gpt2(tie_word_embeddings=False, activation_function="relu"),
    "gpt1": gpt1,
    "gpt1 deeper": lambda: gpt1(n_layer=4, n_head=2),
    "llama": llama,
    "llama tied, one key head": lambda: llama(num_key_value_heads=1, tie_word_embeddings=True),
    "llama, all heads their own": lambda: llama(num_key_value_heads=4, num_hidden_layers=3),
    "llama 3 scaling": lambda: llama(rope_parameters=LLAMA3),
    "qwen3": lambda: llama("Qwen3", head_dim=16, tie_word_embeddings=True),
    "qwen3 untied": lambda: llama("Qwen3", head_dim=6, num_attention_heads=6, num_key_value_heads=3),
}


def pair(name: str, dtype: torch.dtype, attention: str = "eager") -> tuple[Any, GPT]:
    torch.manual_seed(11)
    theirs = MODELS[name]()
    for parameter in theirs.parameters():  # biases and norms begin as constants: give every weight a part
        parameter.data += 0.02 * torch.randn_like(parameter)
    theirs = theirs.to(dtype).eval()
    theirs.set_attn_implementation(attention)
    return theirs, from_hf(theirs)


IDX = torch.randint(0, 97, (2, 40), generator=torch.Generator().manual_seed(3))


def tolerance_of(name: str, attention: str) -> float:
    """In float64; transformers' eager Llama and Qwen take the softmax in float32 all the same."""
    return 1e-12 if attention == "sdpa" or name.startswith("gpt") else 1e-6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", MODELS)
def test_logits(name: str, attention: str) -> None:
    for dtype, tolerance in ((torch.float32, 5e-6), (torch.float64, tolerance_of(name, attention))):
        theirs, ours = pair(name, dtype, attention)
        expected = theirs(IDX).logits
        off = (ours(IDX) - expected).abs().max() / expected.abs().max()
        assert off <= tolerance, f"{dtype}: {off:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_attention(name: str) -> None:
    theirs, ours = pair(name, torch.float64)
    with record(ours) as trace:
        ours(IDX)
    tolerance = tolerance_of(name, "eager")
    for layer, weights in enumerate(theirs(IDX, output_attentions=True).attentions):
        torch.testing.assert_close(trace.attention[layer], weights, atol=tolerance, rtol=tolerance)
    theirs.set_attn_implementation("sdpa")
    expected = theirs(IDX, output_hidden_states=True)
    # The last of theirs has been through the final norm, which ours records before it.
    last = len(expected.hidden_states) - (1 if ours.config.norm_first else 0)
    for layer in range(last):
        torch.testing.assert_close(
            trace.residual[layer], expected.hidden_states[layer], atol=1e-12, rtol=1e-10
        )
    torch.testing.assert_close(ours.hidden(IDX), expected.hidden_states[-1], atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients(name: str) -> None:
    theirs, ours = pair(name, torch.float64, "sdpa")
    result = theirs(IDX, labels=IDX)
    loss = next_token_loss(ours, IDX[:, :-1], IDX[:, 1:])
    assert abs(loss.item() - result.loss.item()) < 1e-6  # theirs is taken in float32
    expected = F.cross_entropy(result.logits[:, :-1].flatten(0, 1), IDX[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    loss.backward()
    expected.backward()
    # Gradients in the layout of the weights: carried over by the same copying.
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    carried = dict(from_hf(theirs).named_parameters())
    for parameter_name, parameter in ours.named_parameters():
        off = (parameter.grad - carried[parameter_name].data).abs().max().item()
        assert off < 1e-11, f"{parameter_name}: {off:.1e}"


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "llama", "llama 3 scaling", "qwen3"])
def test_greedy_256_tokens(name: str) -> None:
    theirs, ours = pair(name, torch.float64)
    expected = theirs.generate(IDX[:, :20], max_new_tokens=256, do_sample=False)
    assert torch.equal(generate(ours, IDX[:, :20], 256, temperature=0), expected)
    assert torch.equal(generate(ours, IDX[:, :20], 60, temperature=0, use_cache=False), expected[:, :80])


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name: str, tmp_path: Any) -> None:
    theirs, ours = pair(name, torch.float32)
    back = to_hf(ours)
    back.set_attn_implementation("eager")
    assert type(back) is type(theirs)
    torch.testing.assert_close(back(IDX).logits, theirs(IDX).logits, atol=0, rtol=0)
    assert config_from_hf(config_to_hf(ours.config)) == config_from_hf(theirs.config)
    save_pretrained(ours, tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(opened(IDX).logits, theirs(IDX).logits, atol=0, rtol=0)
    torch.testing.assert_close(load_pretrained(tmp_path)(IDX), ours(IDX), atol=0, rtol=0)
    assert GPTConfig(**asdict(ours.config)) == ours.config  # as a checkpoint keeps it


@pytest.mark.parametrize("name", ["gpt2", "gpt1", "llama", "qwen3"])
def test_ids_that_mean_something_are_kept(name: str, tmp_path: Any) -> None:
    theirs = MODELS[name]()
    theirs.config.bos_token_id, theirs.config.eos_token_id, theirs.config.pad_token_id = (
        3,
        [7, 8],
        97,
    )  # of 97
    ours = from_hf(theirs)
    kept = to_hf(ours)
    assert (kept.config.bos_token_id, kept.config.eos_token_id) == (3, [7, 8])
    assert kept.generation_config.eos_token_id == [7, 8]
    assert getattr(kept.config, "pad_token_id", None) is None  # none of the model's
    torch.testing.assert_close(kept(IDX).logits, to_hf(ours)(IDX).logits)
    save_pretrained(ours, tmp_path)
    assert to_hf(load_pretrained(tmp_path)).config.eos_token_id == [7, 8]
    assert getattr(to_hf(GPT(ours.config)).config, "eos_token_id", None) is None


@pytest.mark.parametrize(
    ("config", "taken", "message"),
    [
        (lambda: gpt2(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.2).config, 0.2, None),
        (
            lambda: gpt2(resid_pdrop=0.0, embd_pdrop=0.2, attn_pdrop=0.3).config,
            0.0,
            "resid_pdrop=0.0 is taken, not embd_pdrop=0.2 and attn_pdrop=0.3",
        ),
        (
            lambda: gpt1(resid_pdrop=0.2, embd_pdrop=0.2).config,
            0.2,
            "resid_pdrop=0.2 is taken, not attn_pdrop=0.1",
        ),
        (lambda: llama().config, 0.0, None),
        (lambda: llama(attention_dropout=0.1).config, 0.0, "attention_dropout=0.1 is not taken over"),
    ],
)
def test_dropout_that_is_lost_is_said(config: Any, taken: float, message: str | None) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert config_from_hf(config()).dropout == taken
    said = [str(warning.message) for warning in heard if "dropout" in str(warning.message)]
    assert len(said) == (message is not None) and (message or "") in "".join(said)


def test_a_llamas_dropout_is_in_attention_only() -> None:
    ours = replace(config_from_hf(llama().config), dropout=0.1)
    with pytest.warns(UserWarning, match="dropout=0.1 is not kept: llama has it in attention only"):
        config_to_hf(ours)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: transformers.LlamaConfig(attention_bias=True), "attention_bias=True is not supported"),
        (
            lambda: transformers.LlamaConfig(
                rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
            ),
            "rope_type='linear' is not supported",
        ),
        (lambda: transformers.GPT2Config(scale_attn_by_inverse_layer_idx=True), "scaled otherwise"),
        (lambda: transformers.GPT2Config(activation_function="tanh"), "activation 'tanh' is not supported"),
        (lambda: transformers.BertConfig(), "model type 'bert' is not supported"),
    ],
)
def test_what_ours_does_not_have_is_said(config: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        config_from_hf(config())
