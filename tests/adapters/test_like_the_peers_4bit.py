"""What bitsandbytes' own tests ask of 4-bit tensors and layers and ours did not: errors, files, dtypes."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    NF4Linear,
    adapters_by_row,
    dequantize_4bit,
    eject_lora,
    inject_lora,
    merge_lora,
    prepare_qlora,
    quantize_4bit,
    unmerge_lora,
)

from .helpers import disturb, gpt, ids

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
TYPES = ["nf4", "fp4"]
# Mean error of 2²⁰ standard normal numbers, and the mean of error over magnitude, by block size.
ERRORS = {
    "nf4": {
        32: (0.0677, 0.188), 64: (0.0728, 0.203), 128: (0.0768, 0.215), 256: (0.0803, 0.226),
        512: (0.0835, 0.236), 1024: (0.0866, 0.245), 2048: (0.0896, 0.254), 4096: (0.0925, 0.262),
    },
    "fp4": {
        32: (0.0890, 0.242), 64: (0.0965, 0.260), 128: (0.1029, 0.276), 256: (0.1087, 0.290),
        512: (0.1141, 0.303), 1024: (0.1193, 0.315), 2048: (0.1245, 0.326), 4096: (0.1296, 0.337),
    },
}  # fmt: skip


@pytest.mark.parametrize("quant_type", TYPES)
@pytest.mark.parametrize("blocksize", ERRORS["nf4"])
def test_the_error_of_each_block_size(quant_type, blocksize):
    x = torch.randn(1024, 1024)
    for nested in (False, True):
        y = dequantize_4bit(*quantize_4bit(x, quant_type, blocksize=blocksize, compress_statistics=nested))
        error = (x - y).abs()
        mean, relative = error.mean().item(), (error / (x.abs() + 1e-8)).mean().item()
        print(quant_type, blocksize, nested, mean, relative)
        want, want_relative = ERRORS[quant_type][blocksize]
        assert mean == pytest.approx(want, abs=1e-3) and relative == pytest.approx(want_relative, abs=3e-3)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", TYPES)
@pytest.mark.parametrize("blocksize", [32, 512, 1024, 2048, 4096])
def test_rare_block_sizes_equal_the_peers(blocksize, quant_type, nested):
    peer = pytest.importorskip("bitsandbytes").functional
    torch.compiler.set_stance("force_eager")
    try:
        for shape in [(7, blocksize - 1), (3 * blocksize,), (2, 3, blocksize), (blocksize // 2 + 1,)]:
            for dtype in DTYPES:
                x = torch.randn(shape).to(dtype)
                packed, theirs = peer.quantize_4bit(
                    x, quant_type=quant_type, compress_statistics=nested, blocksize=blocksize
                )
                codes, ours = quantize_4bit(x, quant_type, compress_statistics=nested, blocksize=blocksize)
                assert torch.equal(packed, codes) and torch.equal(theirs.absmax, ours.absmax)
                want = peer.dequantize_4bit(packed, theirs)
                got = dequantize_4bit(codes, ours)
                assert got.shape == shape and got.dtype == dtype and torch.isfinite(got).all()
                assert torch.equal(got.view(-1), want.view(-1)), (shape, dtype)
    finally:
        torch.compiler.set_stance("default")


@pytest.mark.parametrize("fast", [False, True])
def test_strided_inputs_and_codes(fast):
    x = torch.randn(3, 4, 6, 64)[:, ::2]
    packed, state = quantize_4bit(x, fast=fast)
    again, other = quantize_4bit(x.contiguous(), fast=fast)
    assert torch.equal(packed, again) and torch.equal(state.absmax, other.absmax)
    want = dequantize_4bit(packed, state, fast=fast)
    wide = torch.zeros(len(packed), 3, dtype=torch.uint8)
    wide[:, 1:2] = packed
    assert not wide[:, 1:2].is_contiguous()
    assert torch.equal(dequantize_4bit(wide[:, 1:2], state, fast=fast), want)
    assert want.is_contiguous() and want.shape == x.shape


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_identity_is_exact(quant_type, dtype):
    """0 and 1 are codes of every type, so a product with it gives the input back, bit for bit."""
    for size in (64, 192, 77):
        linear = nn.Linear(size, size, bias=False)
        linear.weight.data = torch.eye(size).to(dtype)
        layer = NF4Linear.from_linear(linear, quant_type=quant_type, compress_statistics=False)
        x = torch.randn(1, 1, size).to(dtype) / 10
        assert torch.equal(layer.dequantize(), linear.weight) and torch.equal(layer(x), x)


# ---- layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 64), (0, 64), (64,), (2, 0, 64), (1, 64), (2, 2, 64)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("quant_type", TYPES)
def test_products_and_gradients_in_every_dtype(shape, dtype, quant_type):
    bnb = pytest.importorskip("bitsandbytes")
    layer = NF4Linear.from_linear(
        nn.Linear(64, 96).to(dtype), quant_type=quant_type, compress_statistics=False
    )
    x, x2 = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        for _ in "ab"
    )
    bias2 = layer.bias.detach().clone().requires_grad_()
    y = layer(x)
    assert y.dtype == dtype and y.shape == (*shape[:-1], 96)
    want = F.linear(x2, layer.dequantize(dtype), bias2)
    assert torch.allclose(y, want, rtol=0.01, atol=0.01)
    for result in (y, want):
        result.float().square().mean().backward()
    assert x.grad.dtype == dtype and torch.allclose(x.grad, x2.grad, rtol=0.02, atol=1e-3, equal_nan=True)
    assert torch.allclose(layer.bias.grad, bias2.grad, rtol=0.02, atol=1e-3, equal_nan=True)
    assert layer.weight.grad is None
    if len(shape) == 2 and shape[0]:
        packed, state = bnb.functional.quantize_4bit(layer.dequantize(), quant_type=quant_type)
        theirs = bnb.matmul_4bit(x2, packed, state, bias=bias2)
        assert torch.allclose(y, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("compute_dtype", [None, torch.float32])
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_16_bit_model_stays_one(dtype, use_dora, compute_dtype):
    model = gpt(n_embd=64).to(dtype)
    prepare_qlora(model, LoRAConfig(r=2, use_dora=use_dora), compute_dtype=compute_dtype)
    state = {key: value.clone() for key, value in disturb(model).state_dict().items()}
    want = model(ids())
    assert want.dtype == dtype and {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}

    def close(y):
        assert y.dtype == dtype and (y - want).abs().max() < (1e-4 if dtype == torch.float32 else 0.1)

    with torch.no_grad(), adapters_by_row(model, ["default"] * 3):
        close(model(ids()))
    close(merge_lora(model)(ids()))
    close(unmerge_lora(model)(ids()))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    close(eject_lora(model, merge=True)(ids()))
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_gradients_pass_through_to_what_lies_below():
    stack = nn.Sequential(nn.Linear(37, 83), NF4Linear(83, 10))
    plain = nn.Sequential(copy.deepcopy(stack[0]), stack[1].as_linear())
    x = torch.randn(17, 37)
    for model in (stack, plain):
        model(x).mean().backward()
    assert torch.allclose(stack[0].weight.grad, plain[0].weight.grad, atol=1e-7)
    assert torch.allclose(stack[0].bias.grad, plain[0].bias.grad, atol=1e-7)
    assert stack[1].weight.grad is None and not stack[1].weight.requires_grad


def test_half_inputs_leave_a_bias_in_fp32():
    layer = NF4Linear(32, 64)
    assert layer(torch.randn(3, 32).half()).dtype == torch.float16
    assert layer.bias.dtype == torch.float32


@pytest.mark.parametrize("nested", [False, True])
def test_casts_never_reach_codes_or_statistics(nested):
    layer = NF4Linear(96, 64, compress_statistics=nested)
    state = {key: value.clone() for key, value in layer.state_dict().items() if key != "bias"}
    for cast in ("half", "bfloat16", "double", "float"):
        getattr(layer, cast)()
        assert all(torch.equal(layer.state_dict()[key], value) for key, value in state.items())
        assert all(layer.state_dict()[key].dtype == value.dtype for key, value in state.items())
    assert state["weight.absmax"].dtype == (torch.uint8 if nested else torch.float32)


# ---- copies and files ----------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", TYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_layers_survive_pickle_and_copies(nested, quant_type, bias):
    linear = nn.Linear(300, 400, bias=bias).half()
    layer = NF4Linear.from_linear(linear, quant_type=quant_type, compress_statistics=nested)
    x = torch.randn(42, 300)
    want = layer(x)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for again in (
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(layer),
    ):
        assert torch.equal(again(x), want) and not again.weight.requires_grad
        assert again.state.dtype == torch.float16 and again.quant_type == quant_type
        assert all(torch.equal(again.state_dict()[key], value) for key, value in layer.state_dict().items())
        assert again.weight.data_ptr() != layer.weight.data_ptr()
        assert again.state.absmax.data_ptr() != layer.state.absmax.data_ptr()
    shallow = copy.copy(layer)
    assert shallow.weight is layer.weight and shallow.state is layer.state


def test_a_file_is_less_than_a_third_of_fp16(tmp_path):
    linear = nn.Linear(300, 400).half()
    torch.save(linear.state_dict(), tmp_path / "fp16")
    torch.save(NF4Linear.from_linear(linear).state_dict(), tmp_path / "nf4")
    assert (tmp_path / "nf4").stat().st_size < 0.29 * (tmp_path / "fp16").stat().st_size


def test_models_of_4_bit_layers_go_through_safetensors(tmp_path):
    model = prepare_qlora(gpt(n_embd=64, tie_weights=False), LoRAConfig(r=2))
    disturb(model)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "all")
    fresh = prepare_qlora(gpt(n_embd=64, tie_weights=False), LoRAConfig(r=2))
    assert not torch.equal(fresh(ids()), model(ids()))
    fresh.load_state_dict(load_file(tmp_path / "all"))
    assert torch.equal(fresh(ids()), model(ids()))


@pytest.mark.parametrize("storage", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_codes_stored_as_another_dtype(storage):
    """FSDP wants floats, so bitsandbytes may keep the bytes under another dtype (``quant_storage``)."""
    bnb = pytest.importorskip("bitsandbytes")
    linear = nn.Linear(64, 48)
    theirs = bnb.nn.Linear4bit(64, 48, quant_type="nf4", quant_storage=storage, compute_dtype=torch.float32)
    theirs.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", quant_storage=storage
    )
    theirs.bias = linear.bias
    theirs.to("cpu")
    assert theirs.weight.dtype == storage
    want = NF4Linear.from_linear(linear)
    taken = NF4Linear.from_bnb(theirs)
    assert torch.equal(taken.weight, want.weight) and torch.equal(taken.dequantize(), want.dequantize())


@pytest.mark.parametrize("nested", [False, True])
def test_a_layer_that_the_peer_repacked_in_eval_is_not_read_wrongly(nested):
    """On a processor with bf16 it packs its weight anew; what it unpacks again has rounded statistics, and
    without double quantization they lie transposed."""
    bnb = pytest.importorskip("bitsandbytes")
    linear = nn.Linear(128, 64)
    settings = {"quant_type": "nf4", "compress_statistics": nested}
    theirs = bnb.nn.Linear4bit(128, 64, compute_dtype=torch.bfloat16, **settings)
    theirs.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, **settings)
    theirs.bias = linear.bias
    theirs.to("cpu").eval()
    with torch.no_grad():
        theirs(torch.randn(1, 128))
    want = NF4Linear.from_linear(linear, compress_statistics=nested).dequantize()
    repacked = getattr(theirs.weight.quant_state, "packing_format_for_cpu", False)
    if repacked and not nested:
        with pytest.raises(RuntimeError, match="repacks"):
            NF4Linear.from_bnb(theirs)
    else:
        got = NF4Linear.from_bnb(theirs).dequantize()
        assert torch.allclose(got, want, rtol=0.03, atol=0) if repacked else torch.equal(got, want)


def test_keys_that_do_not_fit_are_named():
    state = NF4Linear(64, 32).state_dict()
    for layer in (NF4Linear(64, 32, bias=False), nn.Sequential(NF4Linear(64, 32, bias=False))):
        prefix = "0." if isinstance(layer, nn.Sequential) else ""
        loaded = {prefix + key: value for key, value in state.items()}
        with pytest.raises(RuntimeError, match=rf'Unexpected key.*"{prefix}bias"'):
            layer.load_state_dict(loaded)
        assert layer.load_state_dict(loaded, strict=False).unexpected_keys == [f"{prefix}bias"]
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"weight\.zeros"'):
        NF4Linear(64, 32).load_state_dict(state | {"weight.zeros": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        NF4Linear(64, 32).load_state_dict({key: value for key, value in state.items() if key != "bias"})
    for bias in (torch.zeros(1), torch.zeros(31)):  # one number would spread over all of them
        with pytest.raises(RuntimeError, match="size mismatch for bias"):
            NF4Linear(64, 32).load_state_dict(state | {"bias": bias})
    nested = {key: value for key, value in state.items() if "nested" not in key}
    with pytest.raises(RuntimeError, match="double quantization lacks"):
        NF4Linear(64, 32).load_state_dict(nested)
    with pytest.raises(RuntimeError, match="1023 bytes of codes"):
        NF4Linear(64, 32).load_state_dict(state | {"weight": state["weight"][:-1]})


def test_loading_does_not_share_memory():
    layer, fresh = NF4Linear(64, 32), NF4Linear(64, 32)
    fresh.load_state_dict(layer.state_dict())
    want = layer.dequantize()
    with torch.no_grad():
        for tensor in (fresh.weight, fresh.state.absmax, fresh.state.nested_absmax, fresh.bias):
            tensor.zero_()
    assert torch.equal(layer.dequantize(), want) and layer.bias.any()


@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int4"])
@pytest.mark.parametrize("blocksize", [32, 256])
def test_an_adapter_on_any_4_bit_type_and_block_size(quant_type, blocksize):
    layer = NF4Linear(70, 33, quant_type=quant_type, blocksize=blocksize)
    model = disturb(inject_lora(nn.Sequential(layer), LoRAConfig(r=2)))
    x = torch.randn(3, 70)
    want = F.linear(x, layer.dequantize() + model[0].delta("default"), layer.bias)
    assert torch.allclose(model(x), want, atol=1e-5)
