"""Small models and adapters for the tests."""

import copy

import torch
from torch import nn

from ai_learning.adapters import LoRAConfig, inject_lora
from ai_learning.model import GPT, GPTConfig

VOCAB = 97


def gpt(**overrides) -> GPT:
    settings = {"vocab_size": VOCAB, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return GPT(GPTConfig(**(settings | overrides))).eval()


def ids(rows=3, length=16):
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(5))


def disturb(model: nn.Module, seed=1, scale=0.1):
    """Give every trainable parameter a value that matters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def adapted(config: LoRAConfig, model: nn.Module | None = None, **kwargs):
    """(model with a disturbed adapter, untouched copy of the model before)."""
    model = gpt() if model is None else model
    before = copy.deepcopy(model)
    return disturb(inject_lora(model, config, **kwargs)), before


def same_state(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def hf_pair(**overrides):
    """(our GPT, transformers' GPT-2) with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = gpt(**overrides)
    c = model.config
    hf = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.block_size,
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_embd=c.n_embd,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        transposed = name.startswith("h.") and tensor.dim() == 2
        state[name if name == "lm_head.weight" else f"transformer.{name}"] = (
            tensor.t() if transposed else tensor
        )
    missing, unexpected = hf.load_state_dict(state, strict=False)
    assert not unexpected and not missing
    return model, hf
