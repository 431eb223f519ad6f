"""Fine-tuning on C*: all weights, LoRA or QLoRA, on our GPT and on models of transformers, by ``train``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters import LoRAConfig, eject_lora, inject_lora, prepare_qlora
from ..checkpoint import save_checkpoint, tokenizer_reference
from ..errors import InputError
from ..loss import IGNORE_INDEX, next_token_loss
from ..pretrained.folders import no_progress_bar
from ..train import TrainConfig, TrainResult, train
from .corpus import RowBatches
from .models import GPTModel, LanguageModel, TransformersModel

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class ForeignConfig:
    """What ``train`` asks of a model's config, for one of transformers."""

    source: str
    vocab_size: int
    n_layer: int
    n_embd: int
    block_size: int
    tie_weights: bool


class Foreign(nn.Module):
    """A model of transformers in the form that ``train`` takes."""

    def __init__(self, lm: TransformersModel) -> None:
        super().__init__()
        self.model = lm.model
        text = lm.model.config.get_text_config()
        self.config = ForeignConfig(
            str(lm.model.config.name_or_path or type(lm.model).__name__),
            lm.vocab_size,
            int(getattr(text, "num_hidden_layers", 0)),
            int(getattr(text, "hidden_size", 0)),
            lm.block_size,
            bool(getattr(text, "tie_word_embeddings", False)),
        )

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the targets that count."""
        logits = self.model(input_ids=idx, use_cache=False).logits  # (B, T, V)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX)


def row_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The loss of a padded batch, of either kind of model."""
    x, y = batch
    return model.loss(x, y) if isinstance(model, Foreign) else next_token_loss(model, x, y)


@torch.no_grad()
def mean_loss(
    model: nn.Module, rows: Sequence[Sequence[int]], block_size: int, batch_size: int = 16
) -> float:
    """Nats a token over all rows, each token counting once."""
    batches = RowBatches(rows, block_size, batch_size)
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for start in range(0, len(batches.rows), batch_size):
        x, y = batches.padded(range(start, min(start + batch_size, len(batches.rows))))
        n = int((y != IGNORE_INDEX).sum())
        total += float(row_loss(model, (x.to(device), y.to(device)))) * n
        count += n
    return total / count


def finetune(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    config: TrainConfig,
    out: Path | str,
    *,
    method: str = "full",
    lora: LoRAConfig | None = None,
    held_out: Sequence[Sequence[int]] = (),
    listener: Callable[[dict[str, Any]], None] = lambda row: None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a model on rows of ids and write it to ``out``: ``model.pt``, or the folder ``model`` for
    transformers'.

    Args:
        lm: the model; changed in place.
        rows: what to train on, as ``training_rows`` gives it.
        config: how to train; the paper's is a learning rate of 1e-5, 2000 steps of 128 rows (appendix B).
        out: the run's folder.
        method: ``full``, ``lora``, or ``qlora`` (frozen weights in 4 bits). The adapters are merged at the
            end.
        lora: ranks and targets; all linear layers when ``None``.
        held_out: rows whose loss is measured on the way.
        listener: see ``train``.
        resume: go on with the run in ``out``.
        options: what to write into ``run.json``.
        identity: what else decides the weights.

    Raises:
        InputError: an unknown method, or a tokenizer that cannot be saved.
    """
    if method not in METHODS:
        raise InputError(f"method={method!r} is not known: use {', '.join(METHODS)}")
    model = _trainable(lm)
    lora = lora or LoRAConfig(target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of the adapters' first weights
        if method == "lora":
            inject_lora(model, lora)
        elif method == "qlora":
            prepare_qlora(model, lora)
    out = Path(out)
    result = train(
        model,
        row_loss,
        RowBatches(rows, lm.block_size, config.batch_size, config.seed),
        config,
        out,
        evaluate=(lambda m: {"val_loss": mean_loss(m, held_out, lm.block_size)}) if held_out else None,
        listener=listener,
        resume=resume,
        options=options,
        identity={"method": method, "lora": {} if method == "full" else asdict(lora), **(identity or {})},
    )
    if method != "full":
        eject_lora(model, merge=True)
    model.eval()
    save_model(lm, out)
    return result


def save_model(lm: LanguageModel, out: Path) -> Path:
    """Write the model and its tokenizer so that ``open_language_model`` finds them; the path to give it."""
    if isinstance(lm, TransformersModel):
        with no_progress_bar():
            lm.model.save_pretrained(out / "model")
        lm.tokenizer.save_pretrained(out / "model")
        return out / "model"
    assert isinstance(lm, GPTModel)
    lm.tokenizer.save(out / "tokenizer")
    save_checkpoint(lm.model, out / "model.pt", tokenizer=tokenizer_reference(lm.tokenizer))
    return out / "model.pt"


def _trainable(lm: LanguageModel) -> nn.Module:
    if isinstance(lm, GPTModel):
        return lm.model
    if isinstance(lm, TransformersModel):
        return Foreign(lm)
    raise InputError(f"a {type(lm).__name__} cannot be trained here: give our GPT or a model of transformers")
