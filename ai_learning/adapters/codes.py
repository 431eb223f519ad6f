"""The code tables: which real numbers the 16 (or 256) codes of a block-wise type stand for.

All tables are fp32 and scaled to a largest magnitude of 1, because a block is divided by its own absmax.
"""

from functools import cache, partial
from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import InputError

QUANT_TYPES = ("nf4", "fp4", "int4")


def nf4_code() -> Tensor:
    """The 16 values of NormalFloat4 (16,), ascending (Dettmers et al. 2023, section 3 and appendix E).

    Weights are close to normal, so the codes are quantiles of the normal distribution: each is used about
    equally often. 8 quantiles above zero, 7 below and an exact zero; the outermost probability, 0.9677083, is
    halfway between 1 − 1/30 and 1 − 1/32, the choices for 15 and 16 values (the quantile of 1 would be
    infinite).
    """
    quantile = NormalDist().inv_cdf
    # The probabilities are fp32, as in the authors' code: float64 ones would move some values by up to 6 ulp.
    linspace = partial(torch.linspace, 0.9677083, 0.5, dtype=torch.float32)
    positive = [quantile(p) for p in linspace(9).tolist()[:-1]]
    negative = [-quantile(p) for p in linspace(8).tolist()[:-1]]
    values = torch.tensor(sorted([*negative, 0.0, *positive]), dtype=torch.float32)
    return values / values.max()


def fp4_code() -> Tensor:
    """The 16 values of the 4-bit float (16,) in the order of their bits: sign, two of exponent, one of
    mantissa.

    The exponent bits 00, 01, 10, 11 mean 2⁻⁴ (no leading 1), 8, 4 and 2: bitsandbytes' numbering.
    """
    positive = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
    return torch.tensor([*positive, *(-value for value in positive)], dtype=torch.float32) / 12


def int4_code() -> Tensor:
    """Evenly spaced values (16,): 7 down to −7, with a second zero, over 7."""
    return torch.tensor([*range(7, -1, -1), *range(0, -8, -1)], dtype=torch.float32) / 7


@cache
def dynamic_code() -> Tensor:
    """The 256 values of the signed dynamic 8-bit type (256,), ascending (Dettmers 2015; 8-bit optimizers,
    section 2).

    Decade i of 7 holds 2ⁱ evenly spaced values, with both signs; 0 and 1.0 fill the last two places (there
    is no −1.0).
    """
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32, device="cpu")
        means = (edges[:-1] + edges[1:]) / 2 * 10 ** (decade - 6)
        values += [*means.tolist(), *(-means).tolist()]
    return torch.tensor(sorted(values), dtype=torch.float32, device="cpu")


@cache
def code_table(quant_type: str) -> Tensor:
    """The table of a 4-bit type by name (16,): treat as read-only.

    Raises:
        InputError: an unknown type.
    """
    tables = {"nf4": nf4_code, "fp4": fp4_code, "int4": int4_code}
    if quant_type not in tables:
        raise InputError(f"quant_type={quant_type!r} is unknown: use one of {', '.join(QUANT_TYPES)}")
    with torch.device("cpu"):  # kept: another default device must not stay in it
        return tables[quant_type]()


@cache
def thresholds(quant_type: str) -> tuple[Tensor, Tensor]:
    """What a quantizer of the type needs: (midpoints (15,) ascending, codes (16,) uint8 in ascending order
    of value).

    The code of x is ``codes[number of midpoints below x]``: a tie goes to the smaller value.
    """
    table = code_table(quant_type)
    order = torch.argsort(table, stable=True)  # fp4 and int4 have two zeros: the lower code stands first
    values = table[order]
    return (values[:-1] + values[1:]) / 2, order.to(torch.uint8)
