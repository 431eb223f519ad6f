"""What four bits and low ranks cost a model trained here: the papers' headline tables, in small.

    python -m benchmarks.quantization                 # both tables, three seeds
    python -m benchmarks.quantization bits --seeds 5  # one of: bits ranks

``bits``: a byte-level GPT is trained on the standard library's source, its blocks' matrices are quantized,
and the held-out loss is measured before and after (Dettmers et al. 2023, table 2). ``ranks``: the same base
is fine-tuned on prose by LoRA of several ranks and by all weights (Hu et al. 2021, table 6). Every figure is
the mean over the seeds; a row of the single seeds stands below.
"""

import argparse
import copy
import statistics
import time

import numpy as np
import torch

from ai_learning.adapters import LoRAConfig, inject_lora, quantize_linears
from ai_learning.batches import TokenBatches, evaluation_batches
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw, lr_factor
from ai_learning.text import read_text
from ai_learning.tokenizers import ByteTokenizer

from .adapters import header, row
from .common import hardware

CONFIG = GPTConfig(vocab_size=258, block_size=128, n_layer=4, n_head=4, n_embd=128)
BASE_STEPS, TUNE_STEPS, BATCH = 1200, 200, 16
RANKS = (1, 4, 16, 64)
TYPES = {
    "Int4": {"quant_type": "int4", "compress_statistics": False},
    "FP4": {"quant_type": "fp4", "compress_statistics": False},
    "NF4": {"quant_type": "nf4", "compress_statistics": False},
    "NF4 + double quantization": {"quant_type": "nf4", "compress_statistics": True},
}


def ids(source: str, characters: int) -> tuple[np.ndarray, np.ndarray]:
    """To train on, and the last 60 kB to measure on."""
    tokens = np.array(ByteTokenizer().encode(read_text(source)[:characters]), np.int64)
    return tokens[:-60_000], tokens[-60_000:]


def fit(model: torch.nn.Module, tokens: np.ndarray, steps: int, lr: float, seed: int) -> torch.nn.Module:
    """Train what is not frozen."""
    batches = TokenBatches(tokens, CONFIG.block_size, BATCH, seed)
    optimizer = adamw(model, lr, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(step, steps, "linear", warmup=steps // 20)
        loss = next_token_loss(model, *batches(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def held_out(model: torch.nn.Module, tokens: np.ndarray) -> float:
    """Nats a byte."""
    batches = evaluation_batches(tokens, CONFIG.block_size, 32)
    return sum(next_token_loss(model, x, y).item() * y.numel() for x, y in batches) / sum(
        y.numel() for _, y in batches
    )


def base(seed: int, tokens: np.ndarray) -> GPT:
    torch.manual_seed(seed)
    model = GPT(CONFIG)
    fit(model, tokens, BASE_STEPS, 3e-3, seed)
    return model


def bits(bases: list[GPT], code: np.ndarray) -> None:
    """The loss that quantization adds."""
    header("bits", "held-out loss", "increase", "perplexity × ", "increase of each seed")
    before = [held_out(model, code) for model in bases]
    row("fp32", statistics.mean(before), "", "", ", ".join(f"{loss:.4f}" for loss in before))
    for name, settings in TYPES.items():
        after = []
        for model in bases:
            quantized = copy.deepcopy(model)
            quantize_linears(quantized, **settings)  # type: ignore[arg-type]
            after.append(held_out(quantized, code))
        rises = [a - b for a, b in zip(after, before, strict=True)]
        mean = statistics.mean(rises)
        each = ", ".join(f"{rise:.5f}" for rise in rises)
        row(name, statistics.mean(after), f"{mean:.5f}", f"{np.exp(mean):.4f}", each)


def ranks(bases: list[GPT], prose: tuple[np.ndarray, np.ndarray]) -> None:
    """What LoRA of each rank reaches on a text that the base has not seen, and at how many parameters."""
    train, test = prose
    header("fine-tuned on prose", "trained", "held-out loss", "share of the gain of all weights", "each seed")
    before = [held_out(model, test) for model in bases]
    full = [held_out(fit(copy.deepcopy(m), train, TUNE_STEPS, 1e-3, s), test) for s, m in enumerate(bases)]

    def line(name: str, trained: int, losses: list[float]) -> None:
        gains = [(b - a) / (b - f) for a, b, f in zip(losses, before, full, strict=True)]
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        row(name, f"{trained:,}", f"{statistics.mean(losses):.4f}", f"{statistics.mean(gains):.1%}", each)

    line("base", 0, before)
    for r in RANKS:
        losses = []
        for seed, model in enumerate(bases):
            torch.manual_seed(seed)
            adapted = inject_lora(copy.deepcopy(model), LoRAConfig(r=r, lora_alpha=2 * r))
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
            losses.append(held_out(fit(adapted, train, TUNE_STEPS, 5e-3, seed), test))
        line(f"LoRA, r = {r}", trained, losses)
    line("all weights", bases[0].n_params(), full)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", choices=[[], "bits", "ranks"], help="both by default")
    parser.add_argument("--seeds", type=int, default=3, help="models trained (default 3)")
    args = parser.parse_args()
    started = time.process_time()
    print(hardware())
    print(f"{CONFIG.n_layer} layers of {CONFIG.n_embd}, {BASE_STEPS} steps of {BATCH} × {CONFIG.block_size}")
    code, prose = ids("builtin:stdlib", 4_000_000), ids("builtin:reference", 1_000_000)
    bases = [base(seed, code[0]) for seed in range(args.seeds)]
    if not args.tables or "bits" in args.tables:
        bits(bases, code[1])
    if not args.tables or "ranks" in args.tables:
        ranks(bases, prose)
    print(f"\n{(time.process_time() - started) / 60:.1f} CPU minutes")


if __name__ == "__main__":
    main()
