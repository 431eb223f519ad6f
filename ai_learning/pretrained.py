"""Hugging Face's weights in our classes: the published models, run by the code you read.

GPT-2 in transformers stores its projections as ``Conv1D`` (input × output); ours are ``nn.Linear``
(output × input), so those four matrices a block are transposed. All other names are the same.
"""

import re
from typing import Any

import torch
from torch import Tensor

from .errors import InputError
from .model import GPT, GPTConfig

_CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
# transformers' names of the same arithmetic; GPT-1's "gelu" is the tanh approximation
_ACTIVATION = {"gelu_new": "gelu_new", "gelu": "gelu", "relu": "relu", "gelu_pytorch_tanh": "gelu_new"}


def config_from_hf(config: Any) -> GPTConfig:
    """The ``GPTConfig`` of a transformers ``GPT2Config`` or ``OpenAIGPTConfig``.

    Raises:
        InputError: another architecture, or a switch that ours does not have.
    """
    if config.model_type == "gpt2":
        if config.n_inner not in (None, 4 * config.n_embd):
            raise InputError(f"n_inner={config.n_inner} is not supported: only 4 × n_embd")
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise InputError("attention scaled otherwise than by 1/√D is not supported")
        activation, dropout = _ACTIVATION.get(config.activation_function), config.resid_pdrop
    elif config.model_type == "openai-gpt":
        activation, dropout = {**_ACTIVATION, "gelu": "gelu_new"}.get(config.afn), config.resid_pdrop
    else:
        raise InputError(
            f"model type {config.model_type!r} is not supported: give a gpt2 or openai-gpt model"
        )
    if activation is None:
        raise InputError(f"an activation of {config} is not supported: only {', '.join(_ACTIVATION)}")
    return GPTConfig(
        vocab_size=config.vocab_size,
        block_size=config.n_positions,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        dropout=dropout,
        norm_first=config.model_type == "gpt2",
        activation=activation,
        tie_weights=config.tie_word_embeddings,
        layer_norm_eps=config.layer_norm_epsilon,
    )


@torch.no_grad()
def from_hf(model: Any) -> GPT:
    """A ``GPT`` with a copy of the weights of ``GPT2LMHeadModel`` or ``OpenAIGPTLMHeadModel``.

    Args:
        model: the transformers model; unchanged.

    Returns:
        In evaluation mode, in the model's dtype, on its device.

    Raises:
        InputError: another architecture; a missing, extra or mis-shaped tensor, by its name.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> theirs = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=32, n_positions=16))
        >>> from_hf(theirs).config.n_layer
        1
    """
    first = next(model.parameters())
    ours = GPT(config_from_hf(model.config)).to(device=first.device, dtype=first.dtype)
    theirs = {our_name(name): tensor for name, tensor in model.state_dict().items() if not _is_buffer(name)}
    state = ours.state_dict()
    if missing := state.keys() - theirs.keys():
        raise InputError(f"the model lacks {min(missing)}")
    if extra := theirs.keys() - state.keys():
        raise InputError(f"the model has {min(extra)}, which ours has no place for")
    for name, target in state.items():
        source: Tensor = theirs[name].T if _CONV1D.search(name) else theirs[name]
        if source.shape != target.shape:
            raise InputError(f"{name} has shape {tuple(source.shape)}, expected {tuple(target.shape)}")
        target.copy_(source)
    return ours.eval()


def our_name(name: str) -> str:
    """Our name of a transformers parameter."""
    name = name.removeprefix("transformer.")
    return name.replace("tokens_embed.", "wte.").replace("positions_embed.", "wpe.")  # GPT-1's names


def _is_buffer(name: str) -> bool:
    return name.endswith((".attn.bias", ".attn.masked_bias", "position_ids"))
