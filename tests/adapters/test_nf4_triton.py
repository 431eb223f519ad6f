"""The GPU's kernels against the definition: on a GPU, and elsewhere through Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.adapters import NF4Linear, nf4_triton
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
    shapes = ((1, 2), (5, 6), (7, 30), (65, 66), (13, 1026), (130, 256), (3, 128), (5, 2560), (2, 64))
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


def after(ptx: str, register: int) -> list[int]:
    """Registers $0 to $7 after a line of PTX with ``register`` in $8: what a processor would do."""
    words = [int(n) & 0xFFFFFFFF for n in nf4_triton._words("nf4", torch.bfloat16, torch.device("cpu"))[:, 0]]
    known = {"$8": register, **{f"${9 + 4 * n}": word for n, word in enumerate(words)}}

    def prmt(a: int, b: int, places: int) -> int:
        data = (a | b << 32).to_bytes(8, "little")
        assert not places & 0x8888, "the fourth bit of a place would repeat a sign"
        return int.from_bytes(bytes(data[places >> 4 * n & 7] for n in range(4)), "little")

    operations = {
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "or.b32": lambda a, b: a | b,
        "shr.b32": lambda a, n: a >> n,
        "shl.b32": lambda a, n: a << n & 0xFFFFFFFF,
        "prmt.b32": lambda a, b, places: prmt(a, b, places & 0xFFFF),
        "fma.rn.bf16x2": lambda pair, factors, plus: pair & 0xFFFF0000,  # times (0, 1)
    }
    for instruction in ptx.strip("{} ").split(";"):
        name, _, operands = instruction.strip().partition(" ")
        if name and name != ".reg":
            target, *given = [part.strip() for part in operands.split(",")]
            values = [known[part] if part in known else int(part, 0) for part in given]
            known[target] = operations[name](*values)
    return [known[f"${n}"] for n in range(8)]


@given(st.binary(min_size=4, max_size=4))
def test_codes_are_looked_up_in_registers(codes: bytes) -> None:
    found = after(nf4_triton._PTX[torch.bfloat16], int.from_bytes(codes, "little"))
    values = torch.tensor(found).to(torch.int32).view(torch.float32)
    table = code_table("nf4").bfloat16().float()
    places = torch.tensor(list(codes))
    assert torch.equal(values[:4], table[places >> 4])
    assert torch.equal(values[4:], table[places & 15])
