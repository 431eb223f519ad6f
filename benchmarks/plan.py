"""What training costs before it is started: memory a GPU, tokens a second, hours and money.

    python -m benchmarks.plan --mfu 0.45 --peak-tflops 989 --memory-gb 141 --price 3.5

Memory follows a formula that a test holds against a real run. Speed does not: the share of the peak that is
reached (MFU) is measured on the GPU at hand (``python -m benchmarks.gpu``, or the ``mfu`` that ``pretrain``
logs on as many GPUs as planned), so it must be given. See docs/scale.md.
"""

import argparse
import sys
from dataclasses import replace
from functools import cache

import torch

from ai_learning.device import flops_per_token
from ai_learning.model import GPT, GPTConfig
from ai_learning.presets import preset

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
GPUS = (1, 2, 4, 8, 16, 32, 64)
_LOGITS = 3 * 32 * 2**20  # a chunk of the loss's logits, in three copies


@cache
def _counts(config: GPTConfig) -> tuple[int, float]:
    """Parameters and FLOPs a token, counted on the model itself, without its memory."""
    with torch.device("meta"):
        model = GPT(config)
    return model.n_params(), flops_per_token(model)


def n_params(config: GPTConfig) -> int:
    """Parameters; a tied weight counts once."""
    return _counts(config)[0]


def state_bytes(config: GPTConfig, gpus: int = 1, sharded: bool = False) -> float:
    """Weights, gradients and AdamW's two moments in float32: 16 bytes a parameter, under FSDP shared out."""
    return 16 * n_params(config) / (gpus if sharded else 1)


def gathered_bytes(config: GPTConfig, low: bool = False) -> float:
    """What FSDP holds whole at a time: embeddings and two blocks, each with its gradients."""
    embeddings = (config.vocab_size * (1 if config.tie_weights else 2) + config.block_size) * config.n_embd
    return (embeddings + 2 * 12 * config.n_embd**2) * ((2 if low else 4) + 4)


def activation_bytes(config: GPTConfig, batch: int, *, low: bool = False, recompute: bool = False) -> float:
    """Kept from the forward to the backward pass (no dropout, attention by the fused kernel).

    A block keeps, for each token: two norms' inputs and statistics, the input of each of its four products,
    the queries, keys and values, attention's output and log-sum-exp, and the activation's input. In float32
    that is 64·C + 4·H + 16 bytes, under bfloat16 autocast 36·C + 4·H + 16, and once a block 24·C² for the
    cast weights. Recomputed, a block keeps its input, 4·C, and one block at a time the rest. (On a CPU, in
    float32, most sizes compute GELU's output anew and keep 16·C less: ``ai_learning.kernels.cpu_mlp``.)

    Args:
        config: of the model.
        batch: sequences in a process at a time.
        low: bfloat16 autocast.
        recompute: ``--checkpoint-activations``.
    """
    tokens, C, V = batch * config.block_size, config.n_embd, config.vocab_size
    block = tokens * ((36 if low else 64) * C + 4 * config.n_head + 16) + (24 * C * C if low else 0)
    blocks = config.n_layer * tokens * 4 * C + block if recompute else config.n_layer * block
    # the final norm's input and statistics, the loss's gradients with respect to its input and to the head
    return blocks + tokens * ((6 if low else 8) * C + 16) + (2 if low else 4) * V * C + _LOGITS


def tokens_per_second(config: GPTConfig, gpus: int, mfu: float, peak_flops: float) -> float:
    """gpus · MFU · peak / (6·N + 12·n_layer·n_embd·block_size)."""
    return gpus * mfu * peak_flops / _counts(config)[1]


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan",
        description="Plan memory, tokens/s and cost of training GPT-2 sizes; formulas in docs/scale.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--mfu", type=float, required=True, help="share of the peak reached: measure it")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bf16 of one GPU (data sheet)")
    parser.add_argument("--memory-gb", type=float, default=80.0, help="of one GPU")
    parser.add_argument("--price", type=float, required=True, help="of one GPU for one hour, any currency")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a process at a time")
    parser.add_argument(
        "--tokens-per-parameter", type=float, default=20.0, help="Hoffmann et al. 2022: about 20"
    )
    parser.add_argument("--recompute", action="store_true", help="plan with --checkpoint-activations")
    options = parser.parse_args(args)
    for name, high in (
        ("mfu", 1.0),
        ("peak_tflops", 1e6),
        ("memory_gb", 1e6),
        ("price", 1e9),
        ("batch", 1e6),
    ):
        if not 0 < getattr(options, name) <= high:
            flag = name.replace("_", "-")
            print(
                f"plan: error: --{flag} {getattr(options, name)} must be above 0 and at most {high:g}",
                file=sys.stderr,
            )
            return 2
    print(
        f"MFU {options.mfu:.0%} (given, not measured here) of {options.peak_tflops:g} TFLOP/s a GPU at "
        f"{options.price:g} an hour; {options.batch} × 1024 tokens in a process, bfloat16 autocast"
        f"{', activations recomputed' if options.recompute else ''}\n"
    )
    print("| model | parameters | GPUs | GB a GPU, ddp | GB a GPU, fsdp | tokens/s | hours | cost |")
    print("|---|---|---|---|---|---|---|---|")
    for name in MODELS:
        config = replace(preset(name), dropout=0.0)
        n = n_params(config)
        kept = activation_bytes(config, options.batch, low=True, recompute=options.recompute)
        for gpus in GPUS:
            ddp = state_bytes(config) + kept
            fsdp = state_bytes(config, gpus, sharded=True) + gathered_bytes(config, low=True) + kept
            rate = tokens_per_second(config, gpus, options.mfu, options.peak_tflops * 1e12)
            hours = options.tokens_per_parameter * n / rate / 3600
            cells = [
                f"{size / 1e9:.1f}{'' if size <= options.memory_gb * 1e9 else ' (too large)'}"
                for size in (ddp, fsdp)
            ]
            print(
                f"| {name} | {n / 1e6:,.0f} M | {gpus} | {cells[0]} | {cells[1] if gpus > 1 else '–'} | "
                f"{rate:,.0f} | {hours:,.1f} | {hours * gpus * options.price:,.0f} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
