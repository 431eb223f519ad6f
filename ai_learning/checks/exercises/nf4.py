"""Day 10: four bits for a weight: the codes, the blocks, the packing, and quantizing the constants too."""

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ...adapters.codes import code_table, dynamic_code, nf4_code
from ...adapters.nf4 import dequantize_4bit, dequantize_blockwise, quantize_4bit, quantize_blockwise
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day10.nf4_code -----------------------------------------------------------------------------------------

OUTER = 0.9677083


def _code_from(
    positive: int = 8,
    negative: int = 7,
    zero: bool = True,
    outer: float = OUTER,
    scale: bool = True,
    ordered: bool = True,
) -> Any:
    def code() -> Tensor:
        q = NormalDist().inv_cdf
        up = [q(p) for p in torch.linspace(outer, 0.5, positive + 1).tolist()[:-1]]
        down = [-q(p) for p in torch.linspace(outer, 0.5, negative + 1).tolist()[:-1]]
        values = [*down, *([0.0] if zero else []), *up]
        table = torch.tensor(sorted(values) if ordered else values)
        return table / table.abs().max() if scale else table

    return code


def _code_cases() -> list[tuple[Any, ...]]:
    return [()]


def _code_properties(fn: Any) -> None:
    code = fn()
    if code.numel() != 16:
        raise Wrong("four bits are 16 values: 8 above zero, zero, 7 below", f"got {code.numel()}")
    if not (code.diff() > 0).all():
        raise Wrong("the values stand in ascending order, without doubles", f"{code.tolist()}")
    if (code == 0).sum() != 1:
        raise Wrong(
            "zero must be exact: padding and pruned weights stay zero",
            f"nearest to 0: {code.abs().min():.4f}",
        )
    if abs(code[0] + 1) > 1e-6 or abs(code[-1] - 1) > 1e-6:
        raise Wrong(
            "the table runs from −1 to 1: a block is divided by its own largest magnitude",
            f"from {code[0]:.4f} to {code[-1]:.4f}",
        )


NF4_CODE = Exercise(
    name="day10.nf4_code",
    title="the 16 values of NormalFloat4",
    stub='''
def nf4_code():
    """The 16 values of NF4 (16,) fp32, ascending, from −1 to 1 (Dettmers et al. 2023, section 3).

    Above zero: the normal quantiles (statistics.NormalDist().inv_cdf) of the first 8 of
    torch.linspace(0.9677083, 0.5, 9); below: the negated ones of the first 7 of linspace(0.9677083, 0.5, 8);
    and 0. Divided by the largest.
    """
    raise NotImplementedError
''',
    solution=nf4_code,
    reference=nf4_code,
    steps=(
        same_form(nf4_code, _code_cases, "a float32 tensor (16,)"),
        Step("holds 16 values from −1 over 0 to 1", _code_properties),
        equals(nf4_code, _code_cases, 1e-7, "has every value right"),
    ),
    hints=(
        "Why is the last point of each linspace left out? What is the quantile of 0.5?",
        "positive = [inv_cdf(p) for p in torch.linspace(0.9677083, 0.5, 9).tolist()[:-1]], and the negative ones with 8 points and a minus.",
        "values = torch.tensor(sorted([*negative, 0.0, *positive])); values / values.max()",
    ),
    cases=_code_cases,
    tolerance=1e-7,
    mutants=(
        Mutant(
            "evenly spaced",
            "that is Int4; weights are normal, so the values are normal quantiles",
            lambda: torch.linspace(-1, 1, 16),
        ),
        Mutant("no zero", "zero has a value of its own", _code_from(negative=8, zero=False)),
        Mutant("8 below, 7 above", "the extra value is above zero", _code_from(positive=7, negative=8)),
        Mutant("not scaled", "divide by the largest: the outermost is 1", _code_from(scale=False)),
        Mutant("not sorted", "ascending, as the code counts thresholds below", _code_from(ordered=False)),
        Mutant(
            "outermost quantile 0.99",
            "0.9677083, halfway between 1 − 1/30 and 1 − 1/32",
            _code_from(outer=0.99),
        ),
        Mutant(
            "outermost quantile 15/16",
            "0.9677083, halfway between 1 − 1/30 and 1 − 1/32",
            _code_from(outer=0.9375),
        ),
        Mutant("FP4", "that is the 4-bit float", lambda: code_table("fp4").sort().values),
        Mutant("15 values", "8 above zero, 7 below and zero", _code_from(positive=7)),
        Mutant(
            "quantiles of a uniform distribution",
            "inv_cdf turns probabilities into values",
            lambda: (
                torch.tensor(
                    sorted(
                        [
                            *(0.5 - p for p in torch.linspace(OUTER, 0.5, 8).tolist()[:-1]),
                            0.0,
                            *(p - 0.5 for p in torch.linspace(OUTER, 0.5, 9).tolist()[:-1]),
                        ]
                    )
                )
                / (OUTER - 0.5)
            ),
        ),
    ),
    alternatives=(
        _code_from(),
        lambda: (
            (lambda half: torch.cat([-half(7), torch.zeros(1), half(8).flip(0)]))(
                lambda n: torch.special.ndtri(torch.linspace(OUTER, 0.5, n + 1)[:-1].double()).float()
            )
            / NormalDist().inv_cdf(OUTER)
        ),
    ),
)

# --- day10.quantize_blocks ----------------------------------------------------------------------------------


def _codes(x: Tensor, blocksize: int, table: Tensor) -> tuple[Tensor, Tensor]:
    blocks = torch.nn.functional.pad(x, (0, -len(x) % blocksize)).view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=1e-38)[:, None]
    nearest = (scaled[..., None] - table).abs().argmin(-1)
    return nearest.view(-1)[: len(x)], absmax


def _block_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(5)

    def randn(n: int, scale: float) -> Tensor:
        return scale * torch.randn(n, generator=generator, dtype=torch.float64)

    table = nf4_code().double()
    uneven = torch.cat([randn(8, 0.01), randn(8, 100.0), randn(3, 1.0)])
    return [
        (uneven, 8, table),
        (randn(64, 1.0), 64, table),
        (randn(1, 1.0), 4, table),
        (torch.zeros(6, dtype=torch.float64), 4, table),
        (randn(10, 3.0), 5, table),
    ]


def _block_apart(fn: Any) -> None:
    x, size, table = _block_cases()[0]
    codes, absmax = fn(x, size, table)
    if len(absmax) != 3:
        raise Wrong(
            "one absmax a block, the last block may be short", f"{len(absmax)} for 19 elements in blocks of 8"
        )
    if not torch.allclose(absmax, torch.stack([b.abs().max() for b in x.split(size)])):
        raise Wrong("absmax is the block's largest magnitude", f"got {absmax.tolist()}")
    back = table[codes] * absmax.repeat_interleave(size)[: len(x)]
    if (back - x).abs()[:8].max() > 0.01:
        raise Wrong(
            "blocks mixed: small blocks keep small errors",
            f"error {(back - x).abs()[:8].max():.4f} in a block of size 0.01",
        )


def _block_zero(fn: Any) -> None:
    codes, absmax = fn(*_block_cases()[3])
    if not torch.isfinite(absmax).all() or (absmax != 0).any() or (nf4_code()[codes] != 0).any():
        raise Wrong(
            "a block of zeros: 0 / 0; keep its absmax 0 and its codes that of 0",
            f"codes {codes.tolist()}, absmax {absmax.tolist()}",
        )


def _blocks_with(size: Any = lambda x: x.abs().amax(1), pick: Any = None, order: Any = lambda b: b) -> Any:
    def quantize(x: Tensor, blocksize: int, table: Tensor) -> tuple[Tensor, Tensor]:
        blocks = torch.nn.functional.pad(x, (0, -len(x) % blocksize)).view(-1, blocksize)
        absmax = size(blocks)
        scaled = order(blocks) / torch.where(absmax == 0, 1, absmax)[:, None]
        nearest = pick(scaled, table) if pick else (scaled[..., None] - table).abs().argmin(-1)
        return nearest.reshape(-1)[: len(x)], absmax

    return quantize


def _whole_tensor(x: Tensor, blocksize: int, table: Tensor) -> tuple[Tensor, Tensor]:
    codes, absmax = _codes(x, len(x), table)
    return codes, absmax.expand(-(-len(x) // blocksize)).clone()


QUANTIZE = Exercise(
    name="day10.quantize_blocks",
    title="the nearest code, block by block",
    stub='''
def quantize_blocks(x, blocksize, table):
    """x is (n,); table is (16,) ascending. Returns (codes (n,) int64, absmax (blocks,)).

    Each block of ``blocksize`` elements (the last may be short) is divided by its largest magnitude; each
    element gets the index of the nearest value of the table. A block of zeros has absmax 0 and the code of 0.
    """
    raise NotImplementedError
''',
    solution=quantize_4bit,
    reference=_codes,
    steps=(
        same_form(_codes, _block_cases, "(codes int64, absmax)"),
        leaves_inputs(_block_cases),
        Step("gives each block its own absmax", _block_apart),
        Step("keeps zeros zero", _block_zero),
        equals(_codes, _block_cases),
    ),
    hints=(
        "Pad to whole blocks and view as (blocks, blocksize); or go through x.split(blocksize).",
        "absmax = blocks.abs().amax(1). Dividing a block of zeros by 0 gives NaN: divide by 1 there.",
        "(scaled[..., None] - table).abs().argmin(-1) is the nearest; cut the padding off again.",
    ),
    cases=_block_cases,
    mutants=(
        Mutant(
            "one scale for the whole tensor",
            "a block's absmax is its own: an outlier must spoil its block only",
            _whole_tensor,
        ),
        Mutant(
            "maximum without abs",
            "a block's largest value may be negative",
            _blocks_with(size=lambda b: b.amax(1).clamp(min=1e-9)),
        ),
        Mutant(
            "mean magnitude",
            "the largest, so that everything lies within −1 and 1",
            _blocks_with(size=lambda b: b.abs().mean(1)),
        ),
        Mutant(
            "rounded down",
            "the nearest value, not the next below",
            _blocks_with(pick=lambda s, t: (torch.searchsorted(t, s, right=True) - 1).clamp(min=0)),
        ),
        Mutant(
            "rounded up",
            "the nearest value, not the next above",
            _blocks_with(pick=lambda s, t: torch.searchsorted(t, s).clamp(max=15)),
        ),
        Mutant(
            "evenly spaced codes",
            "look the nearest value of the table up",
            _blocks_with(pick=lambda s, t: ((s + 1) / 2 * 15).round().long()),
        ),
        Mutant("magnitude only", "the sign belongs to the value", _blocks_with(order=lambda b: b.abs())),
        Mutant(
            "a block of zeros gives NaN",
            "do not divide by 0",
            lambda x, n, t: (
                lambda b: (
                    (b / b.abs().amax(1, keepdim=True))[..., None].sub(t).abs().argmin(-1).view(-1)[: len(x)],
                    b.abs().amax(1),
                )
            )(torch.nn.functional.pad(x, (0, -len(x) % n)).view(-1, n)),
        ),
        Mutant(
            "the rest is dropped",
            "a last, short block counts too",
            lambda x, n, t: _codes(x[: len(x) // n * n], n, t),
        ),
        Mutant(
            "blocks across",
            "a block is a run of neighbours",
            lambda x, n, t: (
                lambda b: _codes(b.T.reshape(-1)[: len(x)] if b.numel() == len(x) else x.flip(0), n, t)
            )(torch.nn.functional.pad(x, (0, -len(x) % n)).view(-1, n)),
        ),
    ),
    alternatives=(
        _blocks_with(),
        lambda x, n, t: (
            torch.cat(
                [
                    torch.bucketize(b / (b.abs().max() if b.abs().max() > 0 else 1), (t[1:] + t[:-1]) / 2)
                    for b in x.split(n)
                ]
            ),
            torch.stack([b.abs().max() for b in x.split(n)]),
        ),
    ),
)

# --- day10.pack_nibbles -------------------------------------------------------------------------------------


def _pack(codes: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(codes, (0, len(codes) % 2))
    return (padded[::2] << 4 | padded[1::2]).to(torch.uint8)


def _pack_cases() -> list[tuple[Any, ...]]:
    return [
        (torch.tensor([1, 2, 15, 0]),),
        (torch.tensor([7, 8, 9]),),
        (torch.arange(16),),
        (torch.tensor([3]),),
        (torch.tensor([15, 15]),),
    ]


PACK = Exercise(
    name="day10.pack_nibbles",
    title="two codes in a byte",
    stub='''
def pack_nibbles(codes):
    """(n,) integers 0 to 15 → (⌈n / 2⌉,) uint8: the first of each two in the high half; an odd end with 0."""
    raise NotImplementedError
''',
    solution=quantize_4bit,
    reference=_pack,
    steps=(
        same_form(_pack, _pack_cases, "uint8 (⌈n / 2⌉,)"),
        leaves_inputs(_pack_cases),
        equals(_pack, _pack_cases, 0),
    ),
    hints=(
        "A byte is two halves of four bits: high · 16 + low.",
        "codes[::2] are the first ones, codes[1::2] the second; pad an odd end first.",
        "(padded[::2] << 4 | padded[1::2]).to(torch.uint8)",
    ),
    cases=_pack_cases,
    mutants=(
        Mutant(
            "halves swapped",
            "the first code is in the high half",
            lambda c: (lambda p: (p[1::2] << 4 | p[::2]).to(torch.uint8))(
                torch.nn.functional.pad(c, (0, len(c) % 2))
            ),
        ),
        Mutant("the odd end is dropped", "⌈n / 2⌉ bytes", lambda c: _pack(c[: len(c) // 2 * 2])),
        Mutant(
            "first half with second half",
            "neighbours share a byte",
            lambda c: (lambda p: (p[: len(p) // 2] << 4 | p[len(p) // 2 :]).to(torch.uint8))(
                torch.nn.functional.pad(c, (0, len(c) % 2))
            ),
        ),
        Mutant(
            "shifted by 3",
            "four bits: << 4",
            lambda c: (lambda p: (p[::2] << 3 | p[1::2]).to(torch.uint8))(
                torch.nn.functional.pad(c, (0, len(c) % 2))
            ),
        ),
        Mutant(
            "added without a shift",
            "16 · first + second",
            lambda c: (lambda p: (p[::2] + p[1::2]).to(torch.uint8))(
                torch.nn.functional.pad(c, (0, len(c) % 2))
            ),
        ),
        Mutant(
            "times 10",
            "16, not 10",
            lambda c: (lambda p: (p[::2] * 10 + p[1::2]).to(torch.uint8))(
                torch.nn.functional.pad(c, (0, len(c) % 2))
            ),
        ),
        Mutant("not packed", "two codes a byte: that is the point", lambda c: c.to(torch.uint8)),
        Mutant(
            "padded with 15",
            "an odd end is padded with 0",
            lambda c: (lambda p: (p[::2] << 4 | p[1::2]).to(torch.uint8))(
                torch.nn.functional.pad(c, (0, len(c) % 2), value=15)
            ),
        ),
        Mutant(
            "padded in front",
            "the padding comes last",
            lambda c: (lambda p: (p[::2] << 4 | p[1::2]).to(torch.uint8))(
                torch.nn.functional.pad(c, (len(c) % 2, 0))
            ),
        ),
        Mutant(
            "wrong shape or type", "uint8: a code must not take eight bytes again", lambda c: _pack(c).long()
        ),
    ),
    alternatives=(
        lambda c: torch.tensor(
            [int(a) * 16 + int(b) for a, b in zip(c[::2], [*c[1::2], *([0] * (len(c) % 2))], strict=True)],
            dtype=torch.uint8,
        ),
        lambda c: (torch.cat([c, c.new_zeros(len(c) % 2)]).view(-1, 2) @ torch.tensor([16, 1])).byte(),
    ),
)

# --- day10.dequantize ---------------------------------------------------------------------------------------


def _dequantize(packed: Tensor, absmax: Tensor, table: Tensor, blocksize: int, n: int) -> Tensor:
    codes = torch.stack([packed >> 4, packed & 15], 1).view(-1)[:n].long()
    return table[codes] * absmax.repeat_interleave(blocksize)[:n]


def _dequantize_cases() -> list[tuple[Any, ...]]:
    cases = []
    for x, size, table in _block_cases():
        codes, absmax = _codes(x, size, table)
        cases.append((_pack(codes), absmax, table, size, len(x)))
    return cases


DEQUANTIZE = Exercise(
    name="day10.dequantize",
    title="from codes back to numbers",
    stub='''
def dequantize(packed, absmax, table, blocksize, n):
    """packed (⌈n / 2⌉,) uint8 (first code in the high half), absmax (blocks,), table (16,) → (n,)."""
    raise NotImplementedError
''',
    solution=dequantize_4bit,
    reference=_dequantize,
    steps=(
        same_form(_dequantize, _dequantize_cases, "(n,)"),
        leaves_inputs(_dequantize_cases),
        equals(_dequantize, _dequantize_cases),
    ),
    hints=(
        "Unpack first: packed >> 4 and packed & 15, in turn.",
        "torch.stack([high, low], 1).view(-1)[:n] puts them in order; index the table with them (as long).",
        "table[codes] * absmax.repeat_interleave(blocksize)[:n]",
    ),
    cases=_dequantize_cases,
    mutants=(
        Mutant(
            "halves swapped",
            "the first code is in the high half",
            lambda p, a, t, b, n: (
                t[torch.stack([p & 15, p >> 4], 1).view(-1)[:n].long()] * a.repeat_interleave(b)[:n]
            ),
        ),
        Mutant(
            "high halves first",
            "codes alternate: stack, do not concatenate",
            lambda p, a, t, b, n: t[torch.cat([p >> 4, p & 15])[:n].long()] * a.repeat_interleave(b)[:n],
        ),
        Mutant(
            "absmax tiled",
            "repeat_interleave: each absmax for its own run of elements",
            lambda p, a, t, b, n: t[torch.stack([p >> 4, p & 15], 1).view(-1)[:n].long()] * a.repeat(b)[:n],
        ),
        Mutant(
            "no absmax",
            "the table runs from −1 to 1: scale it back",
            lambda p, a, t, b, n: t[torch.stack([p >> 4, p & 15], 1).view(-1)[:n].long()],
        ),
        Mutant(
            "divided by absmax",
            "multiply",
            lambda p, a, t, b, n: (
                t[torch.stack([p >> 4, p & 15], 1).view(-1)[:n].long()]
                / a.clamp(min=1e-9).repeat_interleave(b)[:n]
            ),
        ),
        Mutant(
            "codes as numbers",
            "look them up in the table",
            lambda p, a, t, b, n: (
                torch.stack([p >> 4, p & 15], 1).view(-1)[:n].double() * a.repeat_interleave(b)[:n]
            ),
        ),
        Mutant(
            "the largest absmax for all",
            "each block has its own",
            lambda p, a, t, b, n: t[torch.stack([p >> 4, p & 15], 1).view(-1)[:n].long()] * a.max(),
        ),
        Mutant(
            "padding kept",
            "n elements, though the last byte may hold one more",
            lambda p, a, t, b, n: (lambda c: t[c] * torch.cat([a.repeat_interleave(b), a[-1:]])[: len(c)])(
                torch.stack([p >> 4, p & 15], 1).view(-1).long()
            ),
        ),
        Mutant(
            "low half masked with 7",
            "four bits: & 15",
            lambda p, a, t, b, n: (
                t[torch.stack([p >> 4, p & 7], 1).view(-1)[:n].long()] * a.repeat_interleave(b)[:n]
            ),
        ),
    ),
    alternatives=(
        _dequantize,
        lambda p, a, t, b, n: torch.stack(
            [t[(int(p[i // 2]) >> (4 if i % 2 == 0 else 0)) & 15] * a[i // b] for i in range(n)]
        ),
    ),
)

# --- day10.double_quantization ------------------------------------------------------------------------------


def _double(absmax: Tensor, blocksize: int) -> tuple[Tensor, Tensor, Tensor]:
    offset = absmax.mean()
    codes, nested = quantize_blockwise(absmax - offset, blocksize=blocksize, rounding="exact")
    return dequantize_blockwise(codes, nested, blocksize=blocksize) + offset, nested, offset


def _double_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(9)
    return [
        (torch.rand(n, generator=generator) * s + 0.5, b)
        for n, b, s in ((20, 8, 1.0), (256, 256, 0.1), (5, 4, 10.0), (9, 3, 2.0))
    ]


def _double_by_hand(
    absmax: Tensor,
    blocksize: int,
    offset: Any = None,
    size: Any = None,
    table: Any = dynamic_code,
    back: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    mean = absmax.mean() if offset is None else offset(absmax)
    values, nested = [], []
    for block in (absmax - mean).split(blocksize):
        top = block.abs().max() if size is None else size(block)
        codes = (block[:, None] / top - table()).abs().argmin(1)
        values.append(table()[codes] * top)
        nested.append(top)
    return torch.cat(values) + (mean if back else 0), torch.stack(nested), mean


DOUBLE = Exercise(
    name="day10.double_quantization",
    title="the constants in eight bits, too",
    stub='''
def double_quantization(absmax, blocksize):
    """What remains of the absmax values (n,) after 8 bits each (Dettmers et al. 2023, section 3).

    Take their mean away (one fp32 offset), then block by block: divide by the block's largest magnitude, take
    the nearest value of ai_learning.adapters.codes.dynamic_code() (256 values), multiply back; add the offset.
    Returns (restored (n,), magnitudes (blocks,), offset ()).
    """
    raise NotImplementedError
''',
    solution=quantize_blockwise,
    reference=_double,
    steps=(
        same_form(_double, _double_cases, "(restored, magnitudes, offset)"),
        leaves_inputs(_double_cases),
        equals(_double, _double_cases, 1e-6),
    ),
    hints=(
        "absmax values are all positive; the 8-bit type is symmetric. What does taking the mean away gain?",
        "For each block of absmax − offset: top = block.abs().max(); the nearest of dynamic_code() to block / top.",
        "code[nearest] * top for each block, concatenated, + offset.",
    ),
    cases=_double_cases,
    mutants=(
        Mutant(
            "no offset",
            "without it half of the signed codes lie idle",
            lambda a, b: _double_by_hand(a, b, offset=lambda x: torch.zeros(())),
        ),
        Mutant(
            "offset not added back",
            "restored values are those before",
            lambda a, b: _double_by_hand(a, b, back=False),
        ),
        Mutant("one block", "each block has its own magnitude", lambda a, b: _double_by_hand(a, len(a))),
        Mutant("median", "the mean", lambda a, b: _double_by_hand(a, b, offset=lambda x: x.median())),
        Mutant(
            "minimum",
            "the mean, so that the values lie around zero",
            lambda a, b: _double_by_hand(a, b, offset=lambda x: x.min()),
        ),
        Mutant(
            "evenly spaced",
            "the dynamic type has more values near zero",
            lambda a, b: _double_by_hand(a, b, table=lambda: torch.linspace(-1, 1, 256)),
        ),
        Mutant("four bits", "eight: 256 values", lambda a, b: _double_by_hand(a, b, table=nf4_code)),
        Mutant(
            "maximum without abs",
            "after the offset values are negative, too",
            lambda a, b: _double_by_hand(a, b, size=lambda x: x.max()),
        ),
        Mutant(
            "nothing quantized",
            "each value becomes one of 256",
            lambda a, b: (a.clone(), torch.stack([(x - a.mean()).abs().max() for x in a.split(b)]), a.mean()),
        ),
        Mutant(
            "offset of each block",
            "one for all",
            lambda a, b: (
                torch.cat([_double(x, b)[0] for x in a.split(b)]),
                torch.cat([_double(x, b)[1] for x in a.split(b)]),
                a.mean(),
            ),
        ),
    ),
    alternatives=(
        _double_by_hand,
        lambda a, b: (
            lambda m, t: (
                torch.cat(
                    [
                        t[torch.bucketize(x / x.abs().max(), (t[1:] + t[:-1]) / 2)] * x.abs().max()
                        for x in (a - m).split(b)
                    ]
                )
                + m,
                torch.stack([x.abs().max() for x in (a - m).split(b)]),
                m,
            )
        )(a.mean(), dynamic_code()),
    ),
)

EXERCISES = (NF4_CODE, QUANTIZE, PACK, DEQUANTIZE, DOUBLE)
