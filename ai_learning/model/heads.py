"""GPT-1's second half: one linear layer on the pre-trained model, and every task turned into sequences.

Radford et al. 2018, section 3.2 and 3.3, figure 1:

    classification    start text extract
    entailment        start premise delimiter hypothesis extract
    similarity        start a delimiter b extract  +  start b delimiter a extract   (hidden states added)
    multiple choice   start context delimiter answer extract, one sequence an answer, softmax over them

The three tokens are new ids after the vocabulary's own; ``with_extra_tokens`` makes room for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..shapes import Hidden
from .gpt import GPT, GPTConfig

TASKS = ("classification", "entailment", "similarity", "multiple_choice")


@dataclass(frozen=True)
class TaskConfig:
    """A GPT and what its head must tell apart.

    Raises:
        ValueError: an unknown task, or fewer than two classes where there are classes.
    """

    gpt: GPTConfig
    """of the model *with* its three extra tokens"""
    task: str = "classification"
    """classification, entailment, similarity or multiple_choice"""
    n_classes: int = 2
    """number of classes; multiple choice has one score an answer instead"""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is not known; use {', '.join(TASKS)}")
        if self.task != "multiple_choice" and self.n_classes < 2:
            raise ValueError(f"n_classes={self.n_classes} must be at least 2")


class TaskModel(nn.Module):
    """A GPT with a linear head on the hidden state of the extract token (section 3.2, equation 3).

    Args:
        config: sizes and task.
        gpt: pre-trained and already extended; one with random weights when ``None``.
    """

    def __init__(self, config: TaskConfig, gpt: GPT | None = None) -> None:
        super().__init__()
        self.config = config
        self.gpt = GPT(config.gpt) if gpt is None else gpt
        outputs = 1 if config.task == "multiple_choice" else config.n_classes
        self.score = nn.Linear(config.gpt.n_embd, outputs)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(self, idx: Tensor, extract_at: Tensor) -> tuple[Tensor, Hidden]:
        """Scores of the classes (or of the answers).

        Args:
            idx: (B, K, T) ids, padded at the right; K sequences an example (1; similarity 2; one an answer).
            extract_at: (B, K) position of each sequence's extract token.

        Returns:
            (B, n_classes) scores, (B, K) for multiple choice; and the (B·K, T, C) hidden states.

        Raises:
            ValueError: shapes that do not belong together.
        """
        if idx.dim() != 3 or extract_at.shape != idx.shape[:2]:
            got = f"{tuple(idx.shape)} and {tuple(extract_at.shape)}"
            raise ValueError(f"expected idx (B, K, T) and extract_at (B, K), got {got}")
        B, K, T = idx.shape
        # Padding stands to the right of the extract token, which cannot see it: no mask is needed.
        hidden = self.gpt.hidden(idx.reshape(B * K, T))  # (B·K, T, C)
        rows = torch.arange(B * K, device=idx.device)
        extracted = hidden[rows, extract_at.reshape(-1)].view(B, K, -1)  # (B, K, C)
        if self.config.task == "multiple_choice":
            return self.score(extracted).squeeze(-1), hidden  # (B, K)
        return self.score(extracted.sum(dim=1)), hidden  # (B, n_classes)


@dataclass(frozen=True)
class TaskTokens:
    """Ids of the three tokens that a task model adds to a vocabulary."""

    start: int
    delimiter: int
    extract: int

    @classmethod
    def after(cls, vocab_size: int) -> "TaskTokens":
        """The three ids after a vocabulary of ``vocab_size``."""
        return cls(vocab_size, vocab_size + 1, vocab_size + 2)


def task_sequences(
    task: str, parts: Sequence[Sequence[int]], tokens: TaskTokens, block_size: int
) -> list[list[int]]:
    """Input transformations of section 3.3: the K sequences of one example.

    Parts too long for ``block_size`` are cut at their ends, the longest first.

    Args:
        task: one of ``TASKS``.
        parts: ids of the text; of premise and hypothesis; of the two texts; of the context and each answer.
        tokens: start, delimiter, extract.
        block_size: longest sequence.

    Raises:
        ValueError: a number of parts that the task does not have, or no room for the tokens.

    Example:
        >>> task_sequences("similarity", [[1, 2], [3]], TaskTokens(7, 8, 9), block_size=8)
        [[7, 1, 2, 8, 3, 9], [7, 3, 8, 1, 2, 9]]
    """
    expected = {"classification": "1", "entailment": "2", "similarity": "2", "multiple_choice": "3 or more"}
    if task not in expected:
        raise ValueError(f"task={task!r} is not known; use {', '.join(TASKS)}")
    if len(parts) < 3 if task == "multiple_choice" else len(parts) != int(expected[task]):
        raise ValueError(f"{task} takes {expected[task]} parts, got {len(parts)}")
    if task == "classification":
        pairs: list[tuple[Sequence[int], ...]] = [(parts[0],)]
    elif task == "entailment":
        pairs = [(parts[0], parts[1])]
    elif task == "similarity":
        pairs = [(parts[0], parts[1]), (parts[1], parts[0])]
    else:
        pairs = [(parts[0], answer) for answer in parts[1:]]
    return [_join(pair, tokens, block_size) for pair in pairs]


def _join(parts: Sequence[Sequence[int]], tokens: TaskTokens, block_size: int) -> list[int]:
    room = block_size - 1 - len(parts)  # start, extract, a delimiter between parts
    if room < len(parts):
        raise ValueError(f"block_size={block_size} leaves no room for the text of {len(parts)} parts")
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        longest = lengths.index(max(lengths))
        others = [length for i, length in enumerate(lengths) if i != longest]
        lengths[longest] = max(room - sum(others), max(others, default=0) - 1, 1)
    ids = [tokens.start]
    for number, (part, length) in enumerate(zip(parts, lengths, strict=True)):
        ids += [tokens.delimiter] if number else []
        ids += part[:length]
    return [*ids, tokens.extract]


@torch.no_grad()
def with_extra_tokens(model: GPT, n: int = 3) -> GPT:
    """A copy of ``model`` with ``n`` more ids, newly initialised; all others give the same logits.

    The copy has the model's dtype, device and mode (training or evaluation).
    """
    config = replace(model.config, vocab_size=model.config.vocab_size + n)
    larger = GPT(config).to(model.wte.weight).train(model.training)  # its device and dtype
    state = larger.state_dict()
    for name, tensor in model.state_dict().items():
        if name in ("wte.weight", "lm_head.weight"):
            state[name][: tensor.size(0)] = tensor
        else:
            state[name].copy_(tensor)
    return larger
