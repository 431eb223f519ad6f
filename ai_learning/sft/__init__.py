"""Supervised fine-tuning: instruction data → masked, packed batches → the loss of the answers."""

from .batches import LAYOUTS, SFTBatch, SFTBatches, sft_loss, sft_metrics
from .documents import DocumentMask, document_mask
from .encode import SFTData, Template, encode_examples, encode_prompt, template_of
from .examples import BadRows, Example, Message, read_examples
from .names import name_examples, names_training_text

__all__ = [
    "LAYOUTS",
    "BadRows",
    "DocumentMask",
    "Example",
    "Message",
    "SFTBatch",
    "SFTBatches",
    "SFTData",
    "Template",
    "document_mask",
    "encode_examples",
    "encode_prompt",
    "name_examples",
    "names_training_text",
    "read_examples",
    "sft_loss",
    "sft_metrics",
    "template_of",
]
