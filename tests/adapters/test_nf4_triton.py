"""The GPU's kernels against the definition: on a GPU, and elsewhere through Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch

from ai_learning.adapters import NF4Linear, nf4_linear, nf4_triton
from ai_learning.adapters.codes import code_table
from ai_learning.adapters.nf4 import QuantState, dequantize_4bit, quantize_4bit
from ai_learning.kernels import triton_use

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (3, 5), (1, 64), (7, 30), (65, 66), (48, 80), (33, 1026), (130, 256))


def reference(packed: torch.Tensor, state: QuantState, dtype: torch.dtype, device: str) -> torch.Tensor:
    """By the definition; Triton's interpreter cuts bfloat16 off where processors round."""
    if device == "cpu" and dtype == torch.bfloat16:
        wide = dequantize_4bit(packed, state, dtype=torch.float32, fast=False)
        return (wide.view(torch.int32) >> 16 << 16).view(torch.float32).to(dtype)
    return dequantize_4bit(packed, state, dtype=dtype, fast=False)


def check_dequantize(device: str) -> None:
    """Bit for bit, on odd ends, with and without double quantization, for every type of result."""
    torch.manual_seed(0)
    for number, shape in enumerate(SHAPES):
        for nested in (False, True):
            dtype = DTYPES[number % 3]
            kind, blocksize = ("nf4", "fp4", "int4")[number % 3], (64, 128)[number % 2]
            packed, state = quantize_4bit(
                torch.randn(shape), kind, blocksize=blocksize, compress_statistics=nested
            )
            want = reference(packed, state, dtype, device)
            got = nf4_triton.dequantize(packed.to(device).view(-1), state.to(device), dtype).cpu()
            assert torch.equal(got.view(shape), want), (shape, nested, dtype)


def check_multiply(device: str) -> None:
    """One token's product equals that with the de-quantised weight."""
    torch.manual_seed(0)
    shapes = (
        (1, 2), (5, 6), (7, 30), (65, 66), (13, 1026), (130, 256), (3, 128), (5, 2560), (2, 64), (1, 128),
        (40, 192), (17, 4096), (33, 4224),
    )  # fmt: skip
    for number, (rows, columns) in enumerate(shapes):
        for nested in (False, True):
            kind, blocksize = ("nf4", "fp4", "int4")[number % 3], (64, 128, 32)[number // 3 % 3]
            for dtype in DTYPES:
                weight, x = torch.randn(rows, columns), torch.randn(columns).to(dtype)
                bias = torch.randn(rows).to(dtype) if nested else None
                packed, state = quantize_4bit(weight, kind, blocksize=blocksize, compress_statistics=nested)
                W = reference(packed, state, dtype, device)
                want = W.double() @ x.double() + (0 if bias is None else bias.double())
                got = nf4_triton.multiply(
                    packed.to(device).view(-1), state.to(device), x.to(device),
                    None if bias is None else bias.to(device),
                ).cpu()  # fmt: skip
                rough = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
                torch.testing.assert_close(got.double(), want, rtol=rough, atol=rough * columns**0.5)


@pytest.mark.parametrize("check", ["check_dequantize", "check_multiply"])
def test_in_the_interpreter(in_triton_interpreter: Callable[[str], None], check: str) -> None:
    in_triton_interpreter(f"{check}('cpu')")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu() -> None:
    check_dequantize("cuda")
    check_multiply("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_layer_takes_the_fused_product_for_one_token() -> None:
    layer = NF4Linear(256, 130).cuda()
    x = torch.randn(1, 1, 256, device="cuda")
    with torch.no_grad():
        one = layer(x)
        two = layer(x.expand(2, 1, 256))
    torch.testing.assert_close(one, two[:1], rtol=1e-4, atol=1e-4)


def test_a_cpu_tensor_is_left_to_the_other_versions() -> None:
    packed, state = quantize_4bit(torch.randn(8, 64))
    assert not nf4_triton.usable(packed, state)


@pytest.mark.parametrize(("blocksize", "fits"), [(64, True), (4096, True), (96, False), (8192, False)])
def test_other_blocks_are_left_to_the_other_versions(
    monkeypatch: pytest.MonkeyPatch, blocksize: int, fits: bool
) -> None:
    monkeypatch.setattr(triton_use, "usable", lambda *tensors: True)
    packed, state = quantize_4bit(torch.randn(8, 3000), blocksize=blocksize)
    assert nf4_triton.usable(packed, state) == fits


@pytest.mark.parametrize("why", ["tensor cores gave another result", "no such instruction"])
def test_where_tensor_cores_fail_the_other_kernel_multiplies(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    def wrong(packed: object, state: object, x: object, bias: object, out: torch.Tensor) -> None:
        out.fill_(3)
        if why.startswith("no"):
            raise RuntimeError(why)

    nf4_triton._are_right.cache_clear()
    monkeypatch.setattr(nf4_triton, "_on_tensor_cores", wrong)
    monkeypatch.setattr(nf4_triton, "_anyhow", lambda packed, state, x, bias, out: out.fill_(5))
    packed, state = quantize_4bit(torch.randn(8, 64))
    with pytest.warns(UserWarning, match=why):
        assert bool((nf4_triton.multiply(packed, state, torch.ones(64).bfloat16()) == 5).all())
    nf4_triton._are_right.cache_clear()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_byte_of_codes_stands_for_two_values(kind: str, dtype: torch.dtype) -> None:
    values = nf4_triton._byte_values(kind, dtype, torch.device("cpu")).view(dtype).view(256, 2)
    table = code_table(kind).to(dtype)
    for byte in (0, 1, 16, 0x7F, 0xA3, 255):
        assert values[byte].tolist() == [table[byte >> 4], table[byte & 15]]
    nf4_triton._byte_values.cache_clear()
    with torch.device("meta"):  # as where a GPU is the default
        again = nf4_triton._byte_values(kind, dtype, torch.device("cpu"))
    assert torch.equal(again.view(dtype).view(256, 2), values)


def test_as_many_elements_as_a_row_are_not_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_linear, "_multiplies_at_once", lambda packed, state: True)
    monkeypatch.setattr(nf4_triton, "multiply", lambda *given: pytest.fail("it was multiplied"))
    with pytest.raises(RuntimeError, match="shape"), torch.no_grad():
        NF4Linear(64, 3, bias=False)(torch.randn(64, 1))
