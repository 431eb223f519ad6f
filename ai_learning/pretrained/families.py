"""The architectures of transformers in our classes: configurations, names and layouts of weights.

GPT-2 stores its projections as ``Conv1D`` (input × output); ours are ``nn.Linear`` (output × input), so those
four matrices a block are turned. Llama keeps queries, keys and values in three matrices; ours holds them in
one, row below row.
"""

import re
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import InputError
from ..hf_names import CONV1D, GPT1_EMBEDDINGS, LLAMA, LLAMA_C_ATTN, renamed
from ..model import GPTConfig, RopeScaling

# transformers' names of the same arithmetic
_ACTIVATION = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}


class Family(Protocol):
    """One architecture of transformers."""

    model_type: str
    """``config.model_type``"""

    def ours(self, config: Any) -> GPTConfig:
        """Our configuration for transformers' ``config``."""

    def theirs(self, config: GPTConfig) -> Any:
        """transformers' configuration for our ``config``."""

    def model_class(self) -> Any:
        """transformers' class of language models."""

    def has(self, config: GPTConfig) -> bool:
        """Whether this architecture can hold a model of our configuration."""

    def parts(self, name: str, config: GPTConfig) -> Sequence[tuple[str, int | None]]:
        """transformers' tensors (``model.`` or ``transformer.`` cut off) that, stacked by rows, are ``name``;
        each with its number of rows, ``None`` where there is only one."""

    def turned(self, name: str) -> bool:
        """Whether transformers stores this weight transposed, (input, output)."""


class GPT2:
    """Pre-norm, learned positions, tanh GELU (Radford et al. 2019)."""

    model_type = "gpt2"

    def ours(self, config: Any) -> GPTConfig:
        """Our configuration of a ``GPT2Config``."""
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise InputError("attention scaled otherwise than by 1/√D is not supported")
        return self._common(
            config, config.activation_function, norm_first=True, intermediate_size=config.n_inner
        )

    def theirs(self, config: GPTConfig) -> Any:
        """A ``GPT2Config``."""
        import transformers

        names = {"n_inner": config.intermediate_size, "activation_function": config.activation}
        return transformers.GPT2Config(**names, **self._sizes(config))

    def model_class(self) -> Any:
        """``GPT2LMHeadModel``."""
        import transformers

        return transformers.GPT2LMHeadModel

    def has(self, config: GPTConfig) -> bool:
        """GPT-2's parts, with a norm before each branch."""
        return self._is_gpt(config) and config.norm_first

    def parts(self, name: str, config: GPTConfig) -> Sequence[tuple[str, int | None]]:
        """The same names."""
        return [(name, None)]

    def turned(self, name: str) -> bool:
        """The four ``Conv1D`` of a block."""
        return bool(CONV1D.search(name))

    def _common(self, config: Any, activation: str, **more: Any) -> GPTConfig:
        return GPTConfig(
            vocab_size=config.vocab_size,
            block_size=config.n_positions,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_embd=config.n_embd,
            dropout=_one_dropout(config, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
            activation=_activation(activation),
            tie_weights=config.tie_word_embeddings,
            layer_norm_eps=config.layer_norm_epsilon,
            **more,
        )

    def _sizes(self, config: GPTConfig) -> dict[str, Any]:
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.block_size,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_embd": config.n_embd,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
            "layer_norm_epsilon": config.layer_norm_eps,
            "tie_word_embeddings": config.tie_weights,
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def _is_gpt(self, config: GPTConfig) -> bool:
        usual = (config.norm, config.positions, config.mlp, config.qk_norm) == (
            "layernorm",
            "learned",
            "plain",
            False,
        )
        return (
            usual
            and config.kv_heads == config.n_head
            and config.head_size * config.n_head == config.n_embd
            and config.activation in ("gelu_new", "gelu", "relu", "silu")
        )


class GPT1(GPT2):
    """Post-norm, no final norm (Radford et al. 2018). Its "gelu" is the tanh approximation."""

    model_type = "openai-gpt"
    _afn = {"gelu": "gelu_new", "relu": "relu", "silu": "silu"}  # noqa: RUF012 - a table

    def ours(self, config: Any) -> GPTConfig:
        """Our configuration of an ``OpenAIGPTConfig``."""
        return self._common(config, self._afn.get(config.afn, config.afn), norm_first=False)

    def theirs(self, config: GPTConfig) -> Any:
        """An ``OpenAIGPTConfig``."""
        import transformers

        names = {ours: theirs for theirs, ours in self._afn.items()}
        return transformers.OpenAIGPTConfig(afn=names[config.activation], **self._sizes(config))

    def model_class(self) -> Any:
        """``OpenAIGPTLMHeadModel``."""
        import transformers

        return transformers.OpenAIGPTLMHeadModel

    def has(self, config: GPTConfig) -> bool:
        """GPT-1's parts, with a norm after each sum; transformers' one has no exact GELU."""
        return (
            self._is_gpt(config)
            and not config.norm_first
            and config.activation in self._afn.values()
            and config.mlp_width == 4 * config.n_embd
        )

    def parts(self, name: str, config: GPTConfig) -> Sequence[tuple[str, int | None]]:
        """The same names but for the embeddings'."""
        return [(renamed(name, GPT1_EMBEDDINGS), None)]


class Llama:
    """RMSNorm, rotary positions, SwiGLU, shared keys and values, no biases (Touvron et al. 2023)."""

    model_type = "llama"
    qk_norm = False

    def ours(self, config: Any) -> GPTConfig:
        """Our configuration of a ``LlamaConfig`` or ``Qwen3Config``."""
        for switch in ("attention_bias", "mlp_bias", "use_sliding_window"):
            if getattr(config, switch, False):
                raise InputError(f"{switch}=True is not supported")
        if config.attention_dropout:
            given = f"attention_dropout={config.attention_dropout}"
            warnings.warn(f"{given} is not taken over: ours would drop elsewhere, too", stacklevel=2)
        rope = getattr(config, "rope_parameters", None) or {}
        return GPTConfig(
            vocab_size=config.vocab_size,
            block_size=config.max_position_embeddings,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_embd=config.hidden_size,
            dropout=0.0,
            bias=False,
            activation=_activation(config.hidden_act),
            tie_weights=config.tie_word_embeddings,
            layer_norm_eps=config.rms_norm_eps,
            norm="rmsnorm",
            positions="rotary",
            mlp="gated",
            n_kv_head=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None),
            intermediate_size=config.intermediate_size,
            qk_norm=self.qk_norm,
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            rope_scaling=self._scaling(rope),
        )

    def theirs(self, config: GPTConfig) -> Any:
        """A ``LlamaConfig`` or ``Qwen3Config``."""
        if config.dropout:
            given = f"dropout={config.dropout}"
            warnings.warn(f"{given} is not kept: {self.model_type} has it in attention only", stacklevel=2)
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
        if config.rope_scaling is not None:
            scaling = config.rope_scaling
            rope |= {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_block_size,
            }
        return self._config_class()(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.block_size,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_size,
            hidden_size=config.n_embd,
            intermediate_size=config.mlp_width,
            hidden_act=config.activation,
            rms_norm_eps=config.layer_norm_eps,
            tie_word_embeddings=config.tie_weights,
            rope_parameters=rope,
            attention_bias=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )

    def model_class(self) -> Any:
        """``LlamaForCausalLM``."""
        import transformers

        return transformers.LlamaForCausalLM

    def has(self, config: GPTConfig) -> bool:
        """All of Llama's parts."""
        return (
            config.norm,
            config.positions,
            config.mlp,
            config.bias,
            config.norm_first,
            config.qk_norm,
        ) == (
            "rmsnorm",
            "rotary",
            "gated",
            False,
            True,
            self.qk_norm,
        ) and config.activation in _ACTIVATION

    def parts(self, name: str, config: GPTConfig) -> Sequence[tuple[str, int | None]]:
        """Their names; queries, keys and values are three of theirs."""
        block = re.match(r"h\.(\d+)\.(.+)", name)
        prefix, short = (f"layers.{block[1]}.", block[2]) if block else ("", name)
        if short == "attn.c_attn.weight":
            q, kv = config.n_head * config.head_size, config.kv_heads * config.head_size
            rows = zip(LLAMA_C_ATTN, (q, kv, kv), strict=True)
            return [(f"{prefix}self_attn.{kind}.weight", n) for kind, n in rows]
        return [(prefix + renamed(short, LLAMA), None)]

    def turned(self, name: str) -> bool:
        """All are ``nn.Linear``."""
        return False

    def _config_class(self) -> Any:
        import transformers

        return transformers.LlamaConfig

    def _scaling(self, rope: dict[str, Any]) -> RopeScaling | None:
        kind = rope.get("rope_type", "default")
        if kind == "default":
            return None
        if kind != "llama3":
            raise InputError(f"rope_type={kind!r} is not supported: only default and llama3")
        return RopeScaling(
            factor=rope["factor"],
            low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"],
            original_block_size=rope["original_max_position_embeddings"],
        )


class Qwen3(Llama):
    """Llama with a norm on every query and key, and heads of a size of their own (Yang et al. 2025)."""

    model_type = "qwen3"
    qk_norm = True

    def model_class(self) -> Any:
        """``Qwen3ForCausalLM``."""
        import transformers

        return transformers.Qwen3ForCausalLM

    def _config_class(self) -> Any:
        import transformers

        return transformers.Qwen3Config


FAMILIES: tuple[Family, ...] = (GPT2(), GPT1(), Llama(), Qwen3())


def family_of_hf(config: Any) -> Family:
    """The family of a transformers configuration.

    Raises:
        InputError: none of ours.
    """
    for family in FAMILIES:
        if family.model_type == config.model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise InputError(f"model type {config.model_type!r} is not supported: give one of {known}")


def family_of(config: GPTConfig) -> Family:
    """The family that can hold a model of our configuration.

    Raises:
        InputError: none can.
    """
    for family in FAMILIES:
        if family.has(config):
            return family
    raise InputError(
        f"no architecture of transformers has norm={config.norm!r}, positions={config.positions!r}, "
        f"mlp={config.mlp!r}, activation={config.activation!r}, norm_first={config.norm_first}, "
        f"bias={config.bias}, qk_norm={config.qk_norm} together: save it with save_checkpoint instead"
    )


def config_from_hf(config: Any) -> GPTConfig:
    """The ``GPTConfig`` of a transformers configuration.

    Raises:
        InputError: another architecture, or a switch that ours does not have.
    """
    return family_of_hf(config).ours(config)


def config_to_hf(config: GPTConfig) -> Any:
    """The transformers configuration of the same architecture.

    Raises:
        InputError: a combination that none has.
    """
    return family_of(config).theirs(config)


def _one_dropout(config: Any, first: str, *others: str) -> float:
    """The dropout of ours, which is one for all places: that of the first where theirs differ."""
    taken: float = getattr(config, first)
    lost = [f"{name}={getattr(config, name)}" for name in others if getattr(config, name) != taken]
    if lost:
        message = f"ours has one dropout for all places: {first}={taken} is taken, not {' and '.join(lost)}"
        warnings.warn(message, stacklevel=2)
    return taken


def _activation(name: str) -> str:
    if name not in _ACTIVATION:
        raise InputError(f"activation {name!r} is not supported: only {', '.join(_ACTIVATION)}")
    return _ACTIVATION[name]
