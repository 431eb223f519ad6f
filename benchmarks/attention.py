"""Causal attention on the CPU, ours beside PyTorch's own kernel, forward and backward pass, in turn.

python -m benchmarks.attention
"""

import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from ai_learning.cpu_attention import causal_attention, has_loops

from .common import hardware

# B, T, H, D: of the training benchmark, of the adapters' benchmark, and GPT-2's own context
SIZES = ((12, 64, 4, 32), (12, 256, 6, 64), (4, 256, 6, 64), (2, 512, 12, 64), (1, 1024, 12, 64))


def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's kernel."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def main() -> None:
    """Print the table."""
    if not has_loops():
        print("our loops need AVX-512 and numba, which are not here: PyTorch's kernel is used")
        return
    print(hardware(), "\n")
    print("| B, T, H, D | PyTorch µs | ours µs | ratio |\n|---|---|---|---|")
    for B, T, H, D in SIZES:
        packed = torch.randn(B, T, 3 * H * D, generator=torch.Generator().manual_seed(0))
        parts = (part.view(B, T, H, D).transpose(1, 2) for part in packed.split(H * D, dim=-1))
        heads = [part.detach().requires_grad_() for part in parts]
        grad = torch.randn(B, T, H, D).transpose(1, 2)
        times: dict[str, list[float]] = {"PyTorch": [], "ours": []}
        torch.testing.assert_close(causal_attention(*heads), theirs(*heads), rtol=1e-4, atol=1e-5)
        for turn in range(31):
            for name, attend in (("PyTorch", theirs), ("ours", causal_attention)):
                start = time.perf_counter()
                torch.autograd.grad(attend(*heads), heads, grad)
                if turn:  # the first of each warms up
                    times[name].append(time.perf_counter() - start)
        one, other = (statistics.median(times[name]) * 1e6 for name in ("PyTorch", "ours"))
        ratio = statistics.median(a / b for a, b in zip(times["PyTorch"], times["ours"], strict=True))
        print(f"| {B}, {T}, {H}, {D} | {one:,.0f} | {other:,.0f} | {ratio:.2f} × |")


if __name__ == "__main__":
    main()
