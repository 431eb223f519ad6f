"""Every Triton kernel compiles, down to a GPU's instructions, where there is no GPU (`pip install triton`).

The interpreter (`test_triton_interpreter.py`) shows that they compute what they should, but it takes Python
that the compiler does not, and never sees PTX.
"""

import importlib
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from ai_learning.adapters import nf4_ptx  # noqa: E402

WEIGHTS = ("*bf16", "*fp16", "*fp32")
WIDE = {"place", "token", "target"}  # int64
FLOAT32 = {
    "x", "qkv", "part", "log_sum", "a", "best", "fixed", "out", "share", "loss", "table", "dynamic",
    "nested_absmax", "offset",
}  # fmt: skip


def compiled(module: str, name: str, capability: int, types: dict[str, str], **constants: Any) -> None:
    """Compile a kernel, its arguments of the usual types but for those given."""
    kernel = getattr(importlib.import_module(f"ai_learning.{module}"), name)
    options = {"num_warps": constants.pop("num_warps", 4)}
    if constants.get("EARLY"):
        options["launch_pdl"] = True
    usual = {**dict.fromkeys(FLOAT32, "*fp32"), **dict.fromkeys(WIDE, "*i64"), "eps": "fp32", "scale": "fp32"}
    signature = {
        argument: "constexpr" if argument in constants else {**usual, **types}.get(argument, "i32")
        for argument in kernel.arg_names
    }
    place = kernel.arg_names.index
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(place(argument),): value for argument, value in constants.items()},
        attrs={(place(n),): [["tt.divisibility", 16]] for n, kind in signature.items() if kind[0] == "*"},
    )
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


@pytest.mark.parametrize(("capability", "EARLY"), [(80, False), (90, True)])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_decoders(weight: str, capability: int, EARLY: bool) -> None:
    def check(name: str, types: dict[str, str], **constants: Any) -> None:
        compiled("kernels.decode_triton_kernels", name, capability, types, EARLY=EARLY, **constants)

    weights = {"weight": weight, "bias": weight, "gain": weight}
    tile = {"WARPS": 4, "SHARES": 1, "ROWS": 4}
    check("embed", {"wte": weight, "wpe": weight}, BLOCK=1024)
    for N, gelu, best in ((768, "", True), (768, "tanh", False), (1600, "none", False)):
        check("norm_linear", weights, **tile, N=N, GELU=gelu, BEST=best)
    check("attend", {"k_cache": weight, "v_cache": weight}, D=64, CHUNK=128, WARPS=8, num_warps=8)
    check("project", weights, **tile, N=768, D=64, CHUNK=128, MOST=4, BIAS=True)
    check("add_linear", weights, **{**tile, "WARPS": 1, "SHARES": 4}, N=3072, BIAS=True)
    check("choose", {"token": "*i64"}, BLOCK=8192, num_warps=8)


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("logits", WEIGHTS)
def test_the_losss(logits: str, gradient: bool) -> None:
    constants = {"GRADIENT": gradient, "BLOCK": 4096, "num_warps": 32}
    compiled("kernels.loss_triton_kernels", "softmax_gradient", 80, {"logits": logits}, **constants)


def of_four_bits(dtype: torch.dtype, nested: bool) -> dict[str, str]:
    kind = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]
    return {"packed": "*u8", "absmax": "*u8" if nested else "*fp32", "x": kind, "bias": kind, "out": kind}


@pytest.mark.parametrize("NESTED", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_those_of_four_bits(dtype: torch.dtype, NESTED: bool) -> None:
    def check(name: str, **constants: Any) -> None:
        types = of_four_bits(dtype, NESTED)
        compiled("adapters.nf4_triton_kernels", name, 80, types, NESTED=NESTED, **constants)

    check("dequantize", BLOCKS=16, BYTES=32)
    check("multiply_blocks", BIAS=True, BLOCKSIZE=64, GROUPS=64, num_warps=2)
    check("multiply_any", BIAS=True, ROWS=4, COLUMNS=512)


@pytest.mark.parametrize(("capability", "EARLY"), [(80, False), (90, True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("NESTED", "BLOCKSIZE", "WHOLE"), [(True, 64, True), (True, 128, False), (False, 64, False)]
)
def test_the_one_that_multiplies_four_bits_on_tensor_cores(
    dtype: torch.dtype, capability: int, EARLY: bool, NESTED: bool, BLOCKSIZE: int, WHOLE: bool
) -> None:
    compiled(
        "adapters.nf4_triton_kernels", "multiply", capability,
        {**of_four_bits(dtype, NESTED), "byte_values": "*i32"}, NESTED=NESTED, BLOCKSIZE=BLOCKSIZE,
        WHOLE=WHOLE, AS_ONE=WHOLE, EARLY=EARLY, BIAS=not WHOLE, WARPS=8, num_warps=8,
        TABLES=nf4_ptx.TABLES[NESTED], SUMS=nf4_ptx.SUMS[dtype], SCALE=nf4_ptx.SCALE,
    )  # fmt: skip


def test_the_one_that_is_tried_first() -> None:
    compiled("kernels.triton_use_kernels", "add_one", 80, {"out": "*fp32"})
