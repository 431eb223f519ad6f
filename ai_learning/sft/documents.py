"""Documents one after another in one row, none of which sees another.

``DocumentMask`` is a mask that knows its structure: where a tensor would spell out every pair of positions,
it holds the documents' lengths. Handed to a model as its ``mask``, it arrives at
``scaled_dot_product_attention``, which PyTorch lets it answer (as PyTorch's own ``CausalBias`` does): each
document attends to itself alone, by the fused causal kernel. No pair of documents is computed, and the model
knows nothing of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..shapes import Heads, Mask, Tokens


def document_mask(documents: Tokens) -> Mask:
    """(B, 1, T, T) bool: ``True`` where both positions belong to the same document.

    The model adds that no position sees a later one.

    Args:
        documents: (B, T) number of the document that each position belongs to.

    Example:
        >>> document_mask(torch.tensor([[0, 0, 1]]))[0, 0].int().tolist()
        [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """
    return (documents[:, :, None] == documents[:, None, :]).unsqueeze(1)


class DocumentMask:
    """The mask of a stream of documents, folded into rows: a document may go on in the next row.

    Args:
        lengths: of the documents, in their order; they fill all rows.

    Example:
        >>> q = torch.randn(2, 1, 3, 4)  # two rows of three positions: documents of 4 and of 2
        >>> F.scaled_dot_product_attention(q, q, q, DocumentMask([4, 2])).shape
        torch.Size([2, 1, 3, 4])
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = list(lengths)

    @classmethod
    def of(cls, documents: Tokens) -> "DocumentMask":
        """From the (B, T) numbers of ``document_mask``: a new number begins a new document."""
        lengths: Tensor = torch.unique_consecutive(documents.flatten(), return_counts=True)[1]
        return cls(lengths.tolist())

    def bool(self) -> "DocumentMask":
        """What attention asks of every mask."""
        return self

    def __eq__(self, other: object) -> Any:
        """What the written-out attention asks of a mask: a stream has no square of weights to hide."""
        if isinstance(other, int):
            raise ValueError("a stream of documents needs attention='fast'; use layout='pack' with others")
        return self is other

    __hash__ = object.__hash__

    def dense(self) -> Mask:
        """(N, N) bool over the whole stream, with the future hidden too: the definition, to test against."""
        documents = torch.arange(len(self.lengths)).repeat_interleave(torch.tensor(self.lengths))
        return (documents[:, None] == documents[None, :]).tril()

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.__and__:  # the model adds the triangle, which the documents imply
            return next(argument for argument in args if isinstance(argument, cls))
        if function is F.scaled_dot_product_attention:
            return cls._attend(*args, **(kwargs or {}))
        return NotImplemented

    @staticmethod
    def _attend(
        q: Heads,
        k: Heads,
        v: Heads,
        attn_mask: "DocumentMask",
        dropout_p: float = 0.0,
        is_causal: Any = False,
        **options: Any,
    ) -> Heads:
        rows, heads, T, D = q.shape
        lengths = attn_mask.lengths
        if sum(lengths) != rows * T:
            raise ValueError(f"documents of {sum(lengths)} positions in all do not fill {rows} rows of {T}")
        # (B, H, T, D) → (B, T, H, D) → one stream (B·T, H, D) → documents of (L, H, D)
        streams = [x.transpose(1, 2).reshape(rows * T, heads, D).split(lengths) for x in (q, k, v)]
        outputs = []
        for document in zip(*streams, strict=True):
            Q, K, V = (x.transpose(0, 1).unsqueeze(0) for x in document)  # 3 × (1, H, L, D)
            out = F.scaled_dot_product_attention(Q, K, V, None, dropout_p, is_causal=True, **options)
            outputs.append(out.squeeze(0).transpose(0, 1))  # (L, H, D)
        return torch.cat(outputs).view(rows, T, heads, D).transpose(1, 2)  # (B, H, T, D)
