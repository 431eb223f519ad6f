"""Compiled loops on the CPU, ours beside PyTorch's own kernels, in turn.

Attention, GELU, AdamW; where the CPU has tile registers (Intel AMX) layers, MLPs, products of matrices, and
generation's choice of the likeliest token.

python -m benchmarks.compiled_loops
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai_learning.kernels.cpu_attention import causal_attention, has_loops
from ai_learning.kernels.cpu_mlp import can_mlp, mlp
from ai_learning.kernels.gelu import gelu, gelu_new
from ai_learning.kernels.linear import Linear, linear
from ai_learning.kernels.products import has_tiles, mm
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw, clip_and_step, parameter_groups
from ai_learning.shortlist import Shortlist

from .common import hardware

# B, T, H, D: of the training benchmark, of the adapters' benchmark, and GPT-2's own context
SIZES = ((12, 64, 4, 32), (12, 256, 6, 64), (4, 256, 6, 64), (2, 512, 12, 64), (1, 1024, 12, 64))
SHAPES = ((768, 512), (3072, 1536))  # of the training benchmark's GELU
SMALL = ((768, 128, 384), (768, 128, 128), (768, 256, 256), (3072, 128, 384))
MLPS = ((768, 128), (768, 64), (3072, 128), (3072, 384))  # rows, width
LAYERS = ((3072, 384, 1536), (3072, 1536, 384), (1024, 768, 3072), (160, 384, 50257))  # rows, inputs, outputs


def row(name: str, theirs: Callable[[], object], ours: Callable[[], object]) -> None:
    """Both in turn: medians in µs, and the median ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(31):
        for side, function in zip(times, (theirs, ours), strict=True):
            start = time.perf_counter()
            function()
            if turn:  # the first of each warms up
                side.append(time.perf_counter() - start)
    one, other = (statistics.median(side) * 1e6 for side in times)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    print(f"| {name} | {one:,.0f} | {other:,.0f} | {ratio:.2f} × |", flush=True)


def both_passes(
    theirs: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    grad: Tensor,
    tolerance: float = 1e-5,
) -> list[Callable[[], object]]:
    """Forward and backward pass of each; they must agree."""
    sides = [
        lambda function=function: (out := function(*tensors), *torch.autograd.grad(out, tensors, grad))
        for function in (theirs, ours)
    ]
    torch.testing.assert_close(sides[0](), sides[1](), rtol=1e-4, atol=tolerance)
    return sides


def attention() -> None:
    """Causal, q, k and v as a model has them: views of one tensor."""
    for B, T, H, D in SIZES:
        packed = torch.randn(B, T, 3 * H * D, generator=torch.Generator().manual_seed(0))
        parts = (part.view(B, T, H, D).transpose(1, 2) for part in packed.split(H * D, dim=-1))
        heads = [part.detach().requires_grad_() for part in parts]
        grad = torch.randn(B, T, H, D).transpose(1, 2)
        sides = both_passes(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            causal_attention,
            heads,
            grad,
        )
        row(f"attention; B, T, H, D = {B}, {T}, {H}, {D}", *sides)


def activations() -> None:
    """Both forms of GELU."""
    for shape in SHAPES:
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        for name, approximate, ours in (("exact", "none", gelu), ("tanh", "tanh", gelu_new)):
            theirs = lambda x, form=approximate: F.gelu(x, approximate=form)  # noqa: E731
            row(f"GELU, {name}; {shape[0]} × {shape[1]}", *both_passes(theirs, ours, [x], grad))


def layers() -> None:
    """Linear layers that fit in a core's cache, and MLPs, which need not."""
    for B, K, N in SMALL:
        tensors = [torch.randn(B, K), torch.randn(N, K) * K**-0.5, torch.randn(N)]
        tensors = [t.requires_grad_() for t in tensors]
        row(
            f"linear layer; {B} × {K} → {N}", *both_passes(F.linear, linear, tensors, torch.randn(B, N), 1e-3)
        )
    for B, C in MLPS:
        fc, proj = Linear(C, 4 * C), Linear(4 * C, C)
        x, grad = torch.randn(B, C, requires_grad=True), torch.randn(B, C)
        tensors = [x, *fc.parameters(), *proj.parameters()]

        def theirs(x: Tensor, *parameters: Tensor) -> Tensor:
            fc, fc_bias, proj, proj_bias = parameters
            return F.linear(F.gelu(F.linear(x, fc, fc_bias)), proj, proj_bias)

        def ours(x: Tensor, *_: Tensor, fc: Linear = fc, proj: Linear = proj) -> Tensor:
            assert can_mlp(x, fc, gelu, proj)
            return mlp(x, fc, gelu, proj)

        row(f"MLP, exact GELU; {B} × {C}", *both_passes(theirs, ours, tensors, grad, 1e-3))


def products() -> None:
    """The three products of a linear layer's step, and their errors relative to float64."""
    for B, K, N in LAYERS:
        x, weight, grad = torch.randn(B, K), torch.randn(N, K), torch.randn(B, N)
        for name, a, b in (
            ("output", x, weight.T),
            ("gradient of x", grad, weight),
            ("gradient of W", grad.T, x),
        ):
            exact, out = a.double() @ b.double(), torch.empty(len(a), b.size(1))
            theirs, ours = ((p.double() - exact).norm() / exact.norm() for p in (a @ b, mm(a, b)))
            row(
                f"{name}; {B} × {K} → {N} (errors {theirs:.1e} and {ours:.1e})",
                lambda a=a, b=b, out=out: torch.mm(a, b, out=out),
                lambda a=a, b=b, out=out: mm(a, b, out),
            )


@torch.no_grad()
def greedy() -> None:
    """The likeliest of 50,257 tokens for a batch of states: all logits and argmax, beside a shortlist."""
    for B, C in ((1, 384), (4, 128), (16, 128), (16, 384), (64, 128)):
        head, x = nn.Linear(C, 50257, bias=False), torch.randn(B, C)
        nn.init.normal_(head.weight, std=0.02)
        short = Shortlist(head)
        assert torch.equal(short.likeliest(x), head(x).argmax(-1))
        row(
            f"likeliest token; {B} × {C} → 50257",
            lambda head=head, x=x: head(x).argmax(-1),
            lambda short=short, x=x: short.likeliest(x),
        )


def optimizer() -> None:
    """Clipping and a step of AdamW, PyTorch's fused one, for the training benchmark's smallest model."""
    model = GPT(GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128))
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    ours = adamw(model, 1e-4)
    theirs = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def step() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        theirs.step()

    row(f"clipping and AdamW; {model.n_params():,} parameters", step, lambda: clip_and_step(ours, 1.0))


def main() -> None:
    """Print the table."""
    if not has_loops():
        print("our loops need AVX-512 and numba, which are not here: PyTorch's kernels are used")
        return
    print(hardware(), "\n")
    print("| forward and backward pass, or a step | PyTorch µs | ours µs | ratio |\n|---|---|---|---|")
    attention()
    activations()
    optimizer()
    if has_tiles():
        layers()
        products()
        greedy()


if __name__ == "__main__":
    main()
