"""The backends of ``LanguageModel``: our GPT, and any ``AutoModelForCausalLM`` of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..generate import left_padded
from ..model import GPT, KVCache
from ..shapes import Logits, Tokens
from .calls import CallFormat
from .hub import quiet_hub
from .language_model import LanguageModel

__all__ = ["GPTModel", "LanguageModel", "TransformersModel", "as_language_model", "open_language_model"]


class GPTModel(LanguageModel):
    """Our own ``GPT``."""

    def __init__(self, model: GPT, tokenizer: Any, how: CallFormat | None = None) -> None:
        self.model = model.eval()
        self.block_size, self.vocab_size = model.config.block_size, model.config.vocab_size
        super().__init__(tokenizer, how)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the weights are."""
        return self.model.wte.weight.device

    def decode(self, ids: Sequence[int]) -> str:
        """See ``LanguageModel``; ids beyond the tokenizer's, which pad the vocabulary, have no text."""
        known = getattr(self.tokenizer, "vocab_size", self.vocab_size)
        return super().decode([i for i in ids if i < known])

    def logits(self, ids: Tokens, padding: Tensor | None, keep: int, cache: Any = None) -> Logits:
        """See ``LanguageModel``."""
        positions = mask = None
        if padding is not None:
            start = 0 if cache is None else cache.length
            positions, mask = left_padded(padding, start, ids.size(1))
        hidden = self.model.hidden(ids, cache=cache, positions=positions, mask=mask)
        # Contiguous: else PyTorch multiplies row by row and reads the head's weight for each.
        return self.model.lm_head(hidden[:, -keep:].contiguous())

    def new_cache(self, rows: int, length: int) -> KVCache:
        """See ``LanguageModel``."""
        return KVCache(self.model.config, rows, length, self.model.wte.weight.dtype, self.device)

    def pick_rows(self, cache: KVCache, rows: Tensor) -> KVCache:
        """See ``LanguageModel``."""
        for layer in cache:
            layer.k, layer.v = layer.k[rows], layer.v[rows]
        return cache


class TransformersModel(LanguageModel):
    """Any ``AutoModelForCausalLM``."""

    def __init__(self, model: Any, tokenizer: Any, how: CallFormat | None = None) -> None:
        import inspect

        self.model = model.eval()
        text = model.config.get_text_config()
        self.vocab_size = int(text.vocab_size)
        self.block_size = int(getattr(text, "max_position_embeddings", None) or 2**20)
        taken = inspect.signature(model.forward).parameters
        self._keeps = "logits_to_keep" in taken
        self._counts = "position_ids" in taken
        super().__init__(tokenizer, how)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the weights are."""
        return next(self.model.parameters()).device

    def encode(self, text: str) -> list[int]:
        """See ``LanguageModel``."""
        how = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return list(self.tokenizer.encode(text, **how))

    def decode(self, ids: Sequence[int]) -> str:
        """See ``LanguageModel``."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def special_tokens(self) -> dict[str, int]:
        """See ``LanguageModel``."""
        return dict(self.tokenizer.added_tokens_encoder)

    def logits(self, ids: Tokens, padding: Tensor | None, keep: int, cache: Any = None) -> Logits:
        """See ``LanguageModel``."""
        start = 0 if cache is None else cache.get_seq_length()
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None}
        if padding is not None:
            columns = torch.arange(start + ids.size(1), device=ids.device)  # (S,)
            options["attention_mask"] = (columns >= padding[:, None]).long()
            if self._counts:
                options["position_ids"] = (columns[start:] - padding[:, None]).clamp(min=0)
        if self._keeps:
            options["logits_to_keep"] = keep
        return self.model(input_ids=ids, **options).logits[:, -keep:]

    def new_cache(self, rows: int, length: int) -> Any:
        """See ``LanguageModel``."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def pick_rows(self, cache: Any, rows: Tensor) -> Any:
        """See ``LanguageModel``."""
        cache.batch_select_indices(rows)
        return cache


def as_language_model(model: Any, tokenizer: Any = None, how: CallFormat | None = None) -> LanguageModel:
    """Wrap our GPT or a transformers model as a ``LanguageModel``; one that is one is returned as it is.

    Example:
        >>> from ai_learning.model import GPTConfig
        >>> from ai_learning.tokenizers import ByteTokenizer
        >>> gpt = GPT(GPTConfig(vocab_size=258, block_size=8, n_layer=1, n_head=1, n_embd=8))
        >>> as_language_model(gpt, ByteTokenizer()).how.start
        '['
    """
    if isinstance(model, LanguageModel):
        return model
    if tokenizer is None:
        raise InputError(f"a {type(model).__name__} needs its tokenizer: as_language_model(model, tokenizer)")
    return (GPTModel if isinstance(model, GPT) else TransformersModel)(model, tokenizer, how)


def open_language_model(
    source: str | Path, device: str = "cpu", how: CallFormat | None = None, dtype: str = "auto"
) -> LanguageModel:
    """Open a checkpoint of ours (.pt), a folder in transformers' format, or a model on the hub.

    Args:
        source: its path or name; weights of transformers are read from safetensors only.
        device: where to put it.
        how: marks of calls; chosen to fit when ``None``.
        dtype: of the weights of transformers' models; ``auto`` as they are stored.

    Raises:
        InputError: nothing there that can be opened, or no such device here.
    """
    from ..device import pick_device

    place = pick_device(device)  # first: a wrong device would look like a damaged file
    path = Path(source)
    if path.suffix == ".pt" or path.is_file():
        from ..checkpoint import open_with_tokenizer

        gpt, tokenizer, _ = open_with_tokenizer(path, place)
        return GPTModel(gpt, tokenizer, how)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..pretrained.folders import no_progress_bar

    if path.is_absolute() and not path.is_dir():
        raise InputError(f"no model at {source}")
    try:
        with no_progress_bar(), quiet_hub():
            theirs = AutoModelForCausalLM.from_pretrained(str(source), dtype=dtype, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"no model at {source!r}, here or on the hub: {reason}") from None
    return TransformersModel(theirs.to(place), tokenizer, how)
