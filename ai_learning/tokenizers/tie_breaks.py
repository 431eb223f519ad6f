"""Which of several equally frequent pairs is merged: everyone has a rule of their own."""

from dataclasses import dataclass

from .alphabet import GPT2_BYTE_ORDER


@dataclass(frozen=True)
class TieBreak:
    """Which of the pairs with the greatest count is merged.

    Attributes:
        name: whose rule it is.
        code: the kernels' number for it.
        byte_order: byte of id 0, 1, 2 …: the rules that compare ids depend on it.
    """

    name: str
    code: int
    byte_order: tuple[int, ...]


_BY_VALUE = tuple(range(256))
TIE_BREAKS = {
    # Hugging Face: smaller (left id, right id), the bytes numbered in GPT-2's order
    "hf": TieBreak("hf", 0, GPT2_BYTE_ORDER),
    # rustbpe: the same, the bytes numbered by their value
    "rustbpe": TieBreak("rustbpe", 0, _BY_VALUE),
    # minbpe: the pair whose first occurrence comes first in the text
    "minbpe": TieBreak("minbpe", 1, _BY_VALUE),
    # Stanford CS336: the greater pair of byte strings
    "cs336": TieBreak("cs336", 2, _BY_VALUE),
}
