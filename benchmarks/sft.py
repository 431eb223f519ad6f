"""Fine-tuning on examples of unlike lengths, beside PEFT with padded and with packed batches, in one run.

    python -m benchmarks.sft                    # 6 layers of 384, 16 examples a batch
    python -m benchmarks.sft --layers 12 --width 768

All sides take the same step: the same base and adapter (LoRA, r = 8, on every linear layer), the same
examples, the same loss to five digits; forward and backward pass. Times are CPU seconds, the sides taken in
turn; a ratio is the median of the rounds' ratios. Set OMP_NUM_THREADS for a number of threads.
"""

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ai_learning.adapters import LoRAConfig
from ai_learning.loss import IGNORE_INDEX
from ai_learning.sft import SFTBatches, SFTData, document_mask, sft_loss

from .adapters import VOCAB, adapters, header, pair, peak_megabytes, row
from .common import hardware, process_clock

BLOCK = 512


def uneven(examples: int, response: float, seed: int = 0) -> SFTData:
    """Random ids in lengths as instruction data has them: many short, few long (log-normal)."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(np.log(150), 0.5, examples), 16, BLOCK).astype(int) + 1
    ids = generator.integers(0, VOCAB, lengths.sum()).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    is_target = np.zeros(len(ids), bool)
    for end, length in zip(starts[1:], lengths, strict=True):
        is_target[end - max(1, round(response * length)) : end] = True
    return SFTData(ids, is_target, starts)


def our_step(model: nn.Module, batches: SFTBatches) -> Callable[[], float]:
    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = sft_loss(model, batches(0), batches.layout)
        loss.backward()
        return loss.item()

    return step


def their_step(model: nn.Module, batches: SFTBatches) -> Callable[[], float]:
    """transformers' own loss: targets are given as ``shift_labels``, already one step on."""
    idx, targets, positions, documents, _ = batches(0)
    if batches.layout == "pad":
        inputs = {"attention_mask": (documents >= 0).long()}
    else:
        causal = torch.ones(idx.size(1), idx.size(1), dtype=torch.bool).tril()
        inputs = {"position_ids": positions, "attention_mask": document_mask(documents) & causal}
    labels = torch.full((idx.size(0), idx.size(1) + 1), IGNORE_INDEX)
    labels[:, 1:] = targets
    inputs |= {"input_ids": idx, "labels": labels[:, :-1], "shift_labels": targets}

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(**inputs).loss
        loss.backward()
        return float(loss)

    return step


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round (`process_clock`)."""
    clock = process_clock()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            started = clock()
            step()
            if number:
                seconds[name].append(clock() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6, help="of the base (default 6)")
    parser.add_argument("--width", type=int, default=384, help="of the base (default 384)")
    parser.add_argument("--batch", type=int, default=16, help="examples a batch (default 16)")
    parser.add_argument("--response", type=float, default=0.35, help="the answers' share (default 0.35)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(hardware())
    ours, theirs = adapters(*pair(args.layers, args.width, BLOCK), LoRAConfig(r=8))
    data = uneven(args.batch, args.response)
    batches = {name: SFTBatches(data, args.batch, BLOCK, layout=name) for name in ("stream", "pack", "pad")}
    filling = 1 - data.lengths.sum() / (len(data) * data.lengths.max())
    share = data.n_targets / data.lengths.sum()
    print(
        f"{args.layers}/{args.width}, {len(data)} examples of {data.lengths.min()} to {data.lengths.max()} "
        f"tokens: {filling:.0%} padding where padded; answers are {share:.0%} of the tokens"
    )
    sides = {
        "ours, one stream": our_step(ours, batches["stream"]),
        "ours, packed": our_step(ours, batches["pack"]),
        "ours, padded": our_step(ours, batches["pad"]),
        "PEFT, packed": their_step(theirs, batches["pack"]),
        "PEFT, padded": their_step(theirs, batches["pad"]),
    }
    losses = {name: step() for name, step in sides.items()}
    spread = max(losses.values()) - min(losses.values())
    if spread > 1e-4:
        raise SystemExit(f"the sides do not compute the same loss: {losses}")
    seconds = in_turn(sides, args.rounds)
    header("batches", "loss", "examples/s", "over PEFT padded", "over PEFT packed", "peak MB")
    for name, times in seconds.items():
        ratios = [
            statistics.median(b / a for a, b in zip(times, seconds[other], strict=True))
            for other in ("PEFT, padded", "PEFT, packed")
        ]
        rate = args.batch / statistics.median(times)
        row(name, f"{losses[name]:.5f}", rate, *ratios, peak_megabytes(sides[name]))


if __name__ == "__main__":
    main()
