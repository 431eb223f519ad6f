"""The 4-bit definition by itself: tables, shapes, rounding, special values, plain against fast."""

import math
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ai_learning.adapters import (
    bits_per_parameter,
    dequantize_4bit,
    dequantize_nf4,
    nf4_fast,
    quantize_4bit,
    quantize_nf4,
)
from ai_learning.adapters.codes import code_table, dynamic_code, nf4_code, thresholds
from ai_learning.adapters.nf4 import _rounding_table, dequantize_blockwise, quantize_blockwise
from ai_learning.errors import InputError
from ai_learning.kernels import host_memory as pages
from ai_learning.kernels.loops import threads

# Dettmers et al. 2023, appendix E.
PAPER = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
TYPES = ["nf4", "fp4", "int4"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def same(a, b):
    """Bit-equal, any NaN being as good as another."""
    nan = torch.isnan(a)
    return a.dtype == b.dtype and torch.equal(nan, torch.isnan(b)) and torch.equal(a[~nan], b[~nan])


def test_nf4_table_is_the_papers_to_the_last_bit():
    assert nf4_code().tolist() == PAPER


def test_tables_are_normalised_and_sorted():
    for name in TYPES:
        table = code_table(name)
        assert table.shape == (16,) and table.abs().max() == 1
    assert dynamic_code().shape == (256,) and dynamic_code().unique().numel() == 256
    assert dynamic_code().min() > -1 and dynamic_code().max() == 1


@pytest.mark.parametrize("quant_type", TYPES)
def test_codes_are_the_nearest_and_ties_go_down(quant_type):
    midpoints, codes = thresholds(quant_type)
    table = code_table(quant_type)
    x = torch.cat([torch.ones(1), torch.linspace(-1, 1, 63)])
    packed, state = quantize_4bit(x, quant_type)
    error = (dequantize_4bit(packed, state) - x).abs()
    assert torch.allclose(error, (x[:, None] - table).abs().amin(1), atol=1e-7)
    x = torch.cat([torch.ones(1), midpoints, torch.zeros(48)])  # exactly between two values
    got = dequantize_4bit(*quantize_4bit(x, quant_type))[1:16]
    assert torch.equal(got, table[codes.int()][:15])


@pytest.mark.parametrize("fast", [False, True])
def test_every_shape_from_1_to_130(fast):
    for n in range(1, 131):
        for shape in [(n,), (n, 3), (7, n)]:
            x = torch.randn(shape)
            packed, state = quantize_nf4(x, fast=fast)
            y = dequantize_nf4(packed, state, fast=fast)
            assert packed.shape == ((x.numel() + 1) // 2, 1) and y.shape == x.shape
            # By the definition, one element at a time: within half of the widest gap of the block's absmax.
            flat, back = x.flatten(), y.flatten()
            absmax = torch.stack([block.abs().max() for block in flat.split(64)]).repeat_interleave(64)
            assert ((flat - back).abs() <= absmax[: flat.numel()] * 0.1520 + 1e-7).all()
            values = back / absmax[: flat.numel()]
            assert (values[:, None] - nf4_code()).abs().amin(1).max() < 1e-6


@pytest.mark.parametrize("quant_type", TYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fast_equals_plain(quant_type, dtype):
    assert nf4_fast.usable(torch.zeros(1)), "numba is a dependency: the fast path must be there"
    generator = torch.Generator().manual_seed(1)
    for case in range(300):
        n = int(torch.randint(1, 700, (1,), generator=generator))
        x = torch.randn(n, generator=generator) * 10.0 ** (case % 80 - 45)
        if case % 7 == 0:
            x[::3] = 0
        if case % 11 == 0:
            x[n // 2] = (math.nan, math.inf, -math.inf)[case % 3]
        x = x.to(dtype)
        blocksize = (2, 10, 32, 64, 128)[case % 5]
        slow = quantize_4bit(x, quant_type, blocksize=blocksize, fast=False)
        fast = quantize_4bit(x, quant_type, blocksize=blocksize, fast=True)
        assert torch.equal(slow[0], fast[0]) and same(slow[1].absmax, fast[1].absmax)
        want = dequantize_4bit(*slow, fast=False)
        assert same(want, dequantize_4bit(*slow, fast=True))
        flat, absmax, table = slow[0].view(-1), slow[1].absmax, slow[1].code
        assert same(want, nf4_fast.dequantize(flat, absmax, table, blocksize, (n,), dtype, portable=True))


@pytest.mark.parametrize("kind", ["PyTorch's threads", "Python's threads"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_the_result(dtype, kind, monkeypatch):
    x = torch.randn(1000, 1001).to(dtype)
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_WORTH_A_PYTHON_THREAD", 2**16)
    if kind == "Python's threads":
        monkeypatch.setattr(threads, "_gomp", lambda: None)
    elif threads._gomp() is None:
        pytest.skip("PyTorch has no GNU threads here")

    def everything():
        packed, state = quantize_nf4(x)
        arguments = (packed.view(-1), state.absmax, state.code, 64, x.shape, dtype)
        return (
            packed,
            state.absmax,
            dequantize_nf4(packed, state),
            nf4_fast.dequantize(*arguments, portable=True),
        )

    try:
        torch.set_num_threads(1)
        want = everything()
        torch.set_num_threads(3)
        for _ in range(20):  # threads race for shares: not every order shows a mistake
            for one, other in zip(want, everything(), strict=True):
                assert torch.equal(one, other)
    finally:
        torch.set_num_threads(before)


def test_no_default_device_and_no_strange_tensor_leads_astray():
    x = torch.randn(1000)
    want = quantize_nf4(x, fast=False)[0]
    with torch.device("meta"):
        packed, state = quantize_nf4(x)
        back = dequantize_nf4(packed, state)
    assert torch.equal(packed, want) and back.device.type == "cpu"
    negative = torch._neg_view(x)
    assert torch.equal(quantize_nf4(negative)[0], quantize_nf4(-x)[0])
    for part in (packed, packed.repeat(1, 2)[:, :1]):  # the second is not in one piece
        assert torch.equal(dequantize_nf4(part, state), back)


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float64])
def test_tables_that_are_kept_are_float32_whatever_the_default_dtype(other):
    """Transformers sets it to a model's while it loads one: what is made then is used ever after."""
    for table in (nf4_fast._pairs, code_table, thresholds, _rounding_table):
        table.cache_clear()
    x = torch.randn(1001)  # the last block is not a whole one
    try:
        torch.set_default_dtype(other)
        with torch.device("meta"):
            packed, state = quantize_nf4(x, compress_statistics=True)
            back = dequantize_nf4(packed, state)
    finally:
        torch.set_default_dtype(torch.float32)
        for table in (code_table, thresholds, _rounding_table):
            table.cache_clear()
    want, want_state = quantize_nf4(x, compress_statistics=True, fast=False)
    assert torch.equal(packed, want) and torch.equal(state.absmax, want_state.absmax)
    assert torch.equal(back, dequantize_nf4(want, want_state, fast=False))


def test_a_state_with_an_odd_block_size_is_refused():
    packed, state = quantize_nf4(torch.randn(630))
    with pytest.raises(InputError, match="blocksize=63"):
        dequantize_nf4(packed, replace(state, blocksize=63))
    large = quantize_nf4(torch.randn(1000), blocksize=2**40)  # more than there is
    assert torch.equal(dequantize_nf4(*large), dequantize_nf4(*large, fast=False))


def test_a_large_tensor_takes_large_pages():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("no large pages here")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    out = pages.empty((2**26,), torch.uint8)  # more than the allocator keeps: fresh from the system
    out.zero_()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 2**26 // 4096 // 2


def test_a_tensor_in_large_pages_holds_the_same(monkeypatch):
    packed, state = quantize_nf4(torch.randn(2**21))
    large = dequantize_nf4(packed, state)  # 8 MiB
    assert large.nbytes >= pages.WORTH_ASKING
    monkeypatch.setattr(pages, "WORTH_ASKING", 2**60)
    assert torch.equal(large, dequantize_nf4(packed, state))


@pytest.mark.parametrize("fast", [False, True])
def test_zero_nan_and_infinite_blocks(fast):
    x = torch.randn(4, 64)
    x[0] = 0
    x[1, 5] = math.nan
    x[2, 5], x[2, 9] = math.inf, -math.inf
    packed, state = quantize_nf4(x, fast=fast)
    y = dequantize_nf4(packed, state, fast=fast)
    assert (y[0] == 0).all() and (packed.view(4, 32)[0] == 0x77).all()
    assert y[1].isnan().all()
    assert y[2, 5] == math.inf and y[2, 9] == math.inf and y[2, :5].isnan().all()
    assert torch.isfinite(y[3]).all() and (y[3] - x[3]).abs().max() < 0.5


def test_double_quantization_costs_4_127_bits():
    x = torch.randn(1024, 1024)
    _, plain = quantize_nf4(x)
    packed, nested = quantize_nf4(x, compress_statistics=True)
    assert bits_per_parameter(plain) == 4.5
    assert bits_per_parameter(nested) == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)
    assert nested.absmax.dtype == torch.uint8
    error = (nested.block_absmax() - plain.absmax).abs() / plain.absmax
    assert 0 < error.mean() < 0.01
    assert not torch.equal(dequantize_nf4(packed, nested), dequantize_nf4(packed, plain))


def test_exact_rounding_is_nearest_and_the_table_nearly():
    x = torch.randn(256 * 40)
    codes, absmax = quantize_blockwise(x, rounding="exact")
    table = dynamic_code()
    nearest = (x.view(-1, 256)[:, :, None] / absmax[:, None, None] - table).abs().amin(-1).view(-1)
    got = (dequantize_blockwise(codes, absmax) - x).abs() / absmax.repeat_interleave(256)
    assert torch.allclose(got, nearest, atol=1e-6)
    other, _ = quantize_blockwise(x)
    assert 0 < (codes != other).float().mean() < 0.005
    assert (codes.int() - other.int()).abs().max() <= 1
    zero = quantize_blockwise(torch.zeros(300))
    assert (dequantize_blockwise(*zero) == 0).all()


def test_loss_order_of_the_types_on_normal_weights():
    x = torch.randn(256, 256)
    error = {name: (dequantize_4bit(*quantize_4bit(x, name)) - x).square().mean().item() for name in TYPES}
    assert error["nf4"] < error["fp4"] and error["nf4"] < error["int4"]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="int64"):
        quantize_nf4(torch.arange(4))
    with pytest.raises(InputError, match="empty"):
        quantize_nf4(torch.empty(0))
    with pytest.raises(InputError, match="blocksize=63"):
        quantize_nf4(torch.randn(4), blocksize=63)
    with pytest.raises(InputError, match="nf5"):
        quantize_4bit(torch.randn(4), "nf5")
    with pytest.raises(InputError, match="sideways"):
        quantize_nf4(torch.randn(4), compress_statistics=True, rounding="sideways")
    packed, state = quantize_4bit(torch.randn(64), "fp4")
    with pytest.raises(InputError, match="fp4"):
        dequantize_nf4(packed, state)
    with pytest.raises(InputError, match="takes uint8 with 32"):
        dequantize_4bit(packed[:-1], state)


def test_input_is_not_changed_and_may_be_a_view():
    x = torch.randn(96, 64)
    keep = x.clone()
    a, b = quantize_nf4(x.t()), quantize_nf4(x.t().contiguous())
    assert torch.equal(x, keep) and torch.equal(a[0], b[0]) and torch.equal(a[1].absmax, b[1].absmax)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_results_are_the_same_bits(dtype: torch.dtype) -> None:
    """More shares than threads; the odd end is another loop's."""
    packed, state = quantize_4bit(torch.randn(3, 2**18 + 21))
    fast = dequantize_4bit(packed, state, dtype=dtype)
    assert torch.equal(fast, dequantize_4bit(packed, state, dtype=dtype, fast=False))
