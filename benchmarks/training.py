"""Training step beside transformers' GPT-2, LitGPT and nanoGPT: same sizes, batch and optimizer, interleaved.

    python benchmarks/training.py --nanogpt PATH

Ours runs twice, with the tanh GELU of transformers' GPT-2 and with the exact one of LitGPT and nanoGPT; each
peer's ratio is to the one that does the same work. With transformers and nanoGPT also the same weights: the
first loss of both must agree to 1e-4, or the benchmark ends with an error. LitGPT has rotary positions
always: same sizes, not the same weights. nanoGPT is not on PyPI: ``--nanogpt PATH`` measures a checkout's
``model.py`` as it is, with PyTorch's fused AdamW that all peers get here, and with the one that its own
``configure_optimizers`` makes on a CPU; ours clips and steps as ``ai-learning pretrain`` does. Peak memory is
that of a process of its own for each, above what it holds after its imports and a step of a tiny model, and
LLVM's loader of compiled loops (50 MB) for ours.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import hardware, interleaved
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.device import compile_as_one
from ai_learning.loops import ready
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT
from ai_learning.optim import adamw, clip_and_step, parameter_groups
from ai_learning.pretrained import config_from_hf, from_hf

# name: layers, heads, width, block, batch, vocabulary
SETTINGS = {
    "4/4/128, block 64, batch 12, vocabulary 65": (4, 4, 128, 64, 12, 65),
    "4/4/128, block 64, batch 12, vocabulary 50257": (4, 4, 128, 64, 12, 50257),
    "6/6/384, block 256, batch 12, vocabulary 50257": (6, 6, 384, 256, 12, 50257),
}
TANH, EXACT = "ai_learning", "ai_learning, exact GELU"
PEERS = {"transformers": TANH, "LitGPT": EXACT, "nanoGPT": EXACT, "nanoGPT, own AdamW": EXACT}
COMPILED = "ai_learning, exact GELU, compiled"

Step = Callable[[], None]
Setting = tuple[int, int, int, int, int, int]


def transformers_config(setting: Setting) -> GPT2Config:
    """GPT-2 of the setting's sizes."""
    n_layer, n_head, n_embd, T, _, V = setting
    return GPT2Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=T, vocab_size=V,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None, use_cache=False,
    )  # fmt: skip


def batch(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) inputs and targets."""
    *_, T, B, V = setting
    idx = torch.randint(0, V, (B, T + 1), generator=torch.Generator().manual_seed(1))
    return idx[:, :-1].contiguous(), idx[:, 1:].contiguous()


def loss_of(who: str, setting: Setting, nanogpt: Path | None) -> tuple[torch.nn.Module, Callable] | None:
    """A model and its loss; ``None`` where the peer is not at hand."""
    x, y = batch(setting)
    n_layer, n_head, n_embd, T, _, V = setting
    if who.startswith("ai_learning"):
        config = config_from_hf(transformers_config(setting))
        ours = GPT(config if who == TANH else replace(config, activation="gelu")).train()
        if who == COMPILED:
            compile_as_one(ours)
        return ours, lambda: next_token_loss(ours, x, y)
    if who == "transformers":
        theirs = GPT2LMHeadModel(transformers_config(setting)).train()
        return theirs, lambda: F.cross_entropy(theirs(x).logits.flatten(0, 1), y.flatten())
    if who == "LitGPT":
        if importlib.util.find_spec("litgpt") is None:
            return None
        with contextlib.redirect_stderr(io.StringIO()):
            import litgpt
        config = litgpt.Config(
            n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=V, padded_vocab_size=V, block_size=T,
            bias=True, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
        )  # fmt: skip
        lit = litgpt.GPT(config).train()
        lit.lm_head.weight = lit.transformer.wte.weight  # tied, as in GPT-2
        for p in lit.parameters():  # PyTorch's own embedding is 50 times wider: a loss of hundreds of nats
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.02)
        return lit, lambda: F.cross_entropy(lit(x).flatten(0, 1), y.flatten())
    if nanogpt is None:
        return None
    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    if spec is None or spec.loader is None or not (nanogpt / "model.py").is_file():
        sys.exit(f"no model.py in {nanogpt}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"block_size": T, "vocab_size": V, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    with contextlib.redirect_stdout(io.StringIO()):
        nano = module.GPT(module.GPTConfig(dropout=0.0, bias=True, **sizes)).train()
    return nano, lambda: nano(x, y)[1]


def trainer(who: str, model: Any, loss: Callable[[], torch.Tensor]) -> Step:
    """One step: backward, clipping, AdamW: our own, PyTorch's fused one, or the one that nanoGPT makes."""
    if who.startswith("ai_learning"):
        ours = adamw(model, 1e-4)
        return step_of(ours, loss, lambda: clip_and_step(ours, 1.0))
    if who.endswith("own AdamW"):
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), "cpu")
    else:
        optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-4, betas=(0.9, 0.95), fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step_of(optimizer, loss, update)


def step_of(optimizer: Any, loss: Callable[[], torch.Tensor], update: Callable[[], object]) -> Step:
    """Forward, backward, update, and the gradients forgotten."""

    def step() -> None:
        loss().backward()
        update()
        optimizer.zero_grad(set_to_none=True)

    return step


def trainers(setting: Setting, nanogpt: Path | None, compiled: bool = False) -> dict[str, Step]:
    """One step of each that is at hand, on the same batch."""
    names = [TANH, EXACT, *PEERS, *([COMPILED] if compiled else [])]
    found = {who: pair for who in names if (pair := loss_of(who, setting, nanogpt)) is not None}
    same = {TANH: from_hf(found["transformers"][0]).state_dict()}
    if "nanoGPT" in found:  # its names are GPT-2's, behind a prefix
        theirs = found["nanoGPT"][0].state_dict()
        same[EXACT] = {name.removeprefix("transformer."): value for name, value in theirs.items()}
    for who, peer in ((TANH, "transformers"), (EXACT, "nanoGPT")):
        if peer not in found:
            continue
        found[who][0].load_state_dict(same[who])
        first = {name: found[name][1]().item() for name in (who, peer)}
        if abs(first[who] - first[peer]) > 1e-4:
            sys.exit(f"not the same work: losses {first}")
    return {who: trainer(who, *pair) for who, pair in found.items()}


def peak_memory(who: str, setting: Setting, nanogpt: Path | None) -> float | None:
    """MB that three steps add to a process that has imported everything; in a process of its own."""
    command = [sys.executable, __file__, "--one", who, "--setting", ",".join(map(str, setting))]
    command += ["--nanogpt", str(nanogpt)] if nanogpt else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout) if done.stdout.strip() else None


def print_one_peak(who: str, setting: Setting, nanogpt: Path | None) -> None:
    """What ``peak_memory`` runs."""
    warm = trainers((1, 1, 8, 4, 1, 16), nanogpt)  # imports and pools of every peer alike
    for step in warm.values():
        step()
    del warm
    ready()
    gc.collect()
    before = peak_bytes()
    pair = loss_of(who, setting, nanogpt)
    if pair is None:
        return
    step = trainer(who, *pair)
    for _ in range(3):
        step()
    print((peak_bytes() - before) / 1e6)


def peak_bytes() -> int:
    """The most that this process has held; ``ru_maxrss`` would begin with the parent's peak on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: in bytes


def print_row(name: str, values: dict[str, float | None]) -> None:
    """One line of a table: ours, then each peer's with ours over it."""
    cells = [f"{values[who] or 0:,.0f}" for who in (TANH, EXACT)]
    for peer, own in PEERS.items():
        value = values.get(peer)
        cells.append(f"{value:,.0f} ({(values[own] or 0) / value:.2f} ×)" if value else "–")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--compiled", action="store_true", help="also the first setting compiled")
    parser.add_argument(
        "--rounds",
        type=int,
        default=8,
        help="steps of each, in turn; five times as many of the smallest setting",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n_layer, n_head, n_embd, T, B, V = map(int, options.setting.split(","))
        print_one_peak(options.one, (n_layer, n_head, n_embd, T, B, V), options.nanogpt)
        return
    head = f"| setting | {TANH} | {' | '.join([EXACT, *PEERS])} |\n|{'---|' * (3 + len(PEERS))}"
    print(f"Training, tokens/s, and ours over each ({hardware()})\n\n{head}")
    for name, setting in SETTINGS.items():
        rounds = options.rounds * (5 if setting[-1] < 1000 else 1)  # short steps vary more
        seconds = interleaved(trainers(setting, options.nanogpt), rounds=rounds)
        print_row(name, {who: setting[3] * setting[4] / s for who, s in seconds.items()})
    print(f"\nPeak memory of three steps, MB, and ours over each\n\n{head}")
    for name, setting in SETTINGS.items():
        print_row(name, {who: peak_memory(who, setting, options.nanogpt) for who in [TANH, EXACT, *PEERS]})
    if options.compiled:
        name, setting = next(iter(SETTINGS.items()))
        steps = trainers(setting, options.nanogpt, compiled=True)
        began = time.perf_counter()
        steps[COMPILED]()
        print(f"\nCompiled (the first step took {time.perf_counter() - began:.0f} s), {name}, tokens/s\n")
        seconds = interleaved(steps, rounds=5 * options.rounds)
        for who, s in seconds.items():
            print(f"| {who} | {setting[3] * setting[4] / s:,.0f} | {s / seconds[COMPILED]:.2f} × |")
    print("\n–: not at hand (nanoGPT is not on PyPI; LitGPT needs the extra `bench-litgpt`).")


if __name__ == "__main__":
    main()
