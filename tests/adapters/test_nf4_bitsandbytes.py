"""Bit for bit what bitsandbytes computes on the CPU; its mistakes are named, and ours is the definition."""

import collections
import math

import pytest
import torch

from ai_learning.adapters import NF4Linear, dequantize_4bit, quantize_4bit
from ai_learning.adapters.codes import code_table, dynamic_code, thresholds
from ai_learning.adapters.nf4 import dequantize_blockwise, quantize_blockwise

bnb = pytest.importorskip("bitsandbytes")
peer = bnb.functional

KINDS = ["normal", "tiny", "huge", "zeros", "sparse", "subnormal", "one", "nan", "inf", "constant", "ties"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _no_compiling():
    # The peer compiles its fallback for each new shape, which would take minutes here.
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def same(a, b):
    nan = torch.isnan(a.float())
    equal_nan = torch.equal(nan, torch.isnan(b.float()))
    return a.shape == b.shape and a.dtype == b.dtype and equal_nan and torch.equal(a[~nan], b[~nan])


def make(kind, shape, dtype, generator, pick):
    x = torch.randn(shape, generator=generator)
    flat = x.view(-1)
    if kind == "tiny":
        x *= 1e-30
    elif kind == "huge":
        x *= 1e4 if dtype == torch.float16 else 1e37
    elif kind == "zeros":
        x *= 0
    elif kind == "sparse":
        x *= (torch.rand(shape, generator=generator) < 0.3) * 10.0 ** pick(-6, 5)
    elif kind == "subnormal":
        x *= 1e-40
    elif kind == "one":
        x *= 0
        flat[pick(0, len(flat))] = pick(-5, 6)
    elif kind == "nan":
        flat[pick(0, len(flat))] = math.nan
    elif kind == "inf":
        flat[pick(0, len(flat))] = (math.inf, -math.inf)[pick(0, 2)]
    elif kind == "constant":
        x.fill_(pick(-3, 4))
    elif kind == "ties":
        x = thresholds("nf4")[0][torch.randint(0, 15, shape, generator=generator)]
        x.view(-1)[0] = 1
    return x.to(dtype)


def peer_dequantize(packed, state, shape):
    if math.prod(shape) > 2:
        return peer.dequantize_4bit(packed, state)
    absmax = state.absmax  # a packed tensor of one byte is taken for a transposed one: ask the kernel itself
    if state.nested:
        absmax = peer.dequantize_blockwise(absmax, state.state2) + state.offset
    kernel = torch.ops.bitsandbytes.dequantize_4bit.default
    return kernel(packed, absmax, state.blocksize, state.quant_type, state.shape, state.dtype)


def definition(packed, state):
    """table[code] · absmax in fp32, rounded once, written out without our functions."""
    nibbles = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(-1)[: math.prod(state.shape)]
    blocks = torch.arange(len(nibbles)) // state.blocksize
    return (code_table(state.quant_type)[nibbles.long()] * state.block_absmax()[blocks]).to(state.dtype)


def exception(theirs, ours, shape, blocksize):
    """Which known mistake of the peer explains the difference; None when none does."""
    theirs, ours = theirs.reshape(-1).float(), ours.reshape(-1).float()
    differ = ~((theirs == ours) | (theirs.isnan() & ours.isnan()))
    if len(shape) > 1 and shape[-1] % 16 == 0 and shape[-1] % blocksize:
        return "a row of whole 16s that is no whole number of blocks: AVX-512 takes a wrong absmax"
    if (ours[differ].abs() < 1.2e-38).all() and (theirs[differ] == 0).all():
        return "bf16 results below 1.2e-38 are flushed to zero"
    if ours[differ].isnan().all():
        return "NaN is lost in a bf16 kernel"
    return None


def test_more_than_5000_random_tensors():
    generator = torch.Generator().manual_seed(0)

    def pick(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    compared, excused = 0, collections.Counter()
    for case in range(5600):
        kind, dtype = KINDS[case % len(KINDS)], DTYPES[pick(0, 3)]
        shapes = [
            (pick(1, 300),),
            (pick(1, 20), pick(1, 131)),
            (pick(1, 9), 64 * pick(1, 4)),
            (3, 2, pick(1, 99)),
        ]
        shape = shapes[pick(0, 4)]
        quant_type, nested = ("nf4", "fp4")[pick(0, 2)], bool(pick(0, 2))
        blocksize = 64 if pick(0, 3) else (32, 64, 128, 256)[pick(0, 4)]
        x = make(kind, shape, dtype, generator, pick)
        packed, theirs = peer.quantize_4bit(
            x, quant_type=quant_type, compress_statistics=nested, blocksize=blocksize
        )
        codes, ours = quantize_4bit(x, quant_type, compress_statistics=nested, blocksize=blocksize)
        about = (case, kind, shape, dtype, quant_type, nested, blocksize)
        assert torch.equal(packed, codes), about
        assert same(theirs.absmax, ours.absmax), about
        if nested:
            assert same(theirs.offset, ours.offset) and same(theirs.state2.absmax, ours.nested_absmax), about
        want, got = peer_dequantize(packed, theirs, shape), dequantize_4bit(codes, ours)
        assert got.shape == shape and got.dtype == dtype
        if same(want.reshape(-1), got.reshape(-1)):
            compared += 1
            continue
        why = exception(want, got, shape, blocksize)
        assert why, about
        assert same(got.reshape(-1), definition(codes, ours)), about
        excused[why] += 1
    print(compared, "tensors bit for bit; excused:", dict(excused))
    assert compared >= 5000
    assert sum(excused.values()) < 400


@pytest.mark.parametrize("width", [48, 80, 96])
def test_where_the_peer_is_wrong_ours_is_the_definition(width):
    x = torch.randn(8, width)
    codes, state = quantize_4bit(x)
    ours = dequantize_4bit(codes, state)
    assert torch.equal(ours.view(-1), definition(codes, state))
    assert (ours - x).abs().max() < 0.2 * x.abs().max()


def test_tables_equal():
    assert torch.equal(code_table("nf4"), peer.get_4bit_type("nf4", "cpu"))
    assert torch.equal(code_table("fp4"), peer.get_4bit_type("fp4", "cpu"))
    assert torch.equal(dynamic_code(), peer.create_dynamic_map())


def test_8_bit_blocks_equal():
    for case in range(300):
        x = torch.randn(1 + case * 7) * 10.0 ** (case % 9 - 4)
        if case % 10 == 0:
            x[: len(x) // 2] = 0
        theirs, state = peer.quantize_blockwise(x, blocksize=256)
        codes, absmax = quantize_blockwise(x)
        assert torch.equal(theirs, codes) and torch.equal(state.absmax, absmax)
        assert torch.equal(peer.dequantize_blockwise(theirs, state), dequantize_blockwise(codes, absmax))


def peer_linear(inputs, outputs, nested, quant_type="nf4", dtype=torch.float32):
    linear = torch.nn.Linear(inputs, outputs).to(dtype)
    theirs = bnb.nn.Linear4bit(
        inputs, outputs, compute_dtype=torch.float32, compress_statistics=nested, quant_type=quant_type
    )
    theirs.load_state_dict(linear.state_dict())
    theirs.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, compress_statistics=nested, quant_type=quant_type
    )
    return linear, theirs.to("cpu")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_state_both_ways(nested, quant_type, dtype):
    linear, theirs = peer_linear(128, 64, nested, quant_type, dtype)
    x = torch.randn(5, 128)
    want = theirs.train()(x)  # in eval() the peer would repack its weight for good
    ours = NF4Linear.from_linear(linear, compress_statistics=nested, quant_type=quant_type)
    state, their_state = ours.state_dict(), theirs.state_dict()
    assert state.keys() == their_state.keys()
    for key in state:
        if "quant_state" not in key:
            assert torch.equal(state[key], their_state[key]), key
    # theirs → ours
    loaded = NF4Linear(128, 64, quant_type=quant_type)
    loaded.load_state_dict(their_state)
    assert torch.equal(
        loaded.dequantize(), peer.dequantize_4bit(theirs.weight.data, theirs.weight.quant_state)
    )
    assert torch.allclose(loaded(x), want, atol=1e-6)
    taken = NF4Linear.from_bnb(theirs)
    assert torch.allclose(taken(x), want, atol=1e-6)
    # ours → theirs
    stats = {key.removeprefix("weight."): value for key, value in state.items() if key.startswith("weight.")}
    weight = bnb.nn.Params4bit.from_prequantized(state["weight"], stats, device="cpu")
    back = bnb.nn.Linear4bit(128, 64, compute_dtype=torch.float32, quant_type=quant_type)
    back.weight, back.bias = weight, theirs.bias
    assert torch.equal(back.train()(x), want)
