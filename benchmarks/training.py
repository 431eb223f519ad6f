"""Training step beside transformers' GPT-2, LitGPT and nanoGPT: same sizes and batch, in turn.

    python benchmarks/training.py --nanogpt PATH

Each runs in a process of its own, and they take turns. Ours is there twice, with the tanh GELU of
transformers' GPT-2 and with the exact one of LitGPT and nanoGPT; each peer's ratio is to the one that does
the same work. With transformers and nanoGPT also the same weights: the first loss of both must agree to
1e-4, or the benchmark ends with an error. LitGPT has rotary positions always: same sizes, not the same
weights. nanoGPT is not on PyPI: ``--nanogpt PATH`` measures a checkout's ``model.py`` as it is, with
PyTorch's fused AdamW that all peers get here, and with the one that its own ``configure_optimizers`` makes
on a CPU. Ours clips and steps as ``ai-learning pretrain`` does. Peak memory is above
what a process holds after its imports and a step of a tiny model, and LLVM's loader of compiled loops (50
MB) for ours.
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import hardware, interleaved_processes, serve
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.device import compile_as_one
from ai_learning.kernels.loops import ready
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
TINY = (1, 1, 8, 4, 1, 16)
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


def check_losses(setting: Setting, nanogpt: Path | None) -> None:
    """With the same weights ours and its peers must have the same loss, else the program ends."""
    for who, peer in ((TANH, "transformers"), (EXACT, "nanoGPT")):
        pairs = loss_of(peer, setting, nanogpt), loss_of(who, setting, nanogpt)
        if pairs[0] is None or pairs[1] is None:
            continue
        (theirs, their_loss), (ours, our_loss) = pairs
        if peer == "transformers":
            weights = from_hf(theirs).state_dict()
        else:  # its names are GPT-2's, behind a prefix
            weights = {
                name.removeprefix("transformer."): value for name, value in theirs.state_dict().items()
            }
        ours.load_state_dict(weights)
        losses = {who: our_loss().item(), peer: their_loss().item()}
        if abs(losses[who] - losses[peer]) > 1e-4:
            sys.exit(f"not the same work: losses {losses}")


def trainer_of(who: str, setting: Setting, nanogpt: Path | None) -> Step | None:
    """One step; ``None`` where the peer is not at hand."""
    pair = loss_of(who, setting, nanogpt)
    return trainer(who, *pair) if pair else None


def is_at_hand(who: str, nanogpt: Path | None) -> bool:
    return loss_of(who, TINY, nanogpt) is not None


def program(who: str, setting: Setting, nanogpt: Path | None, work: str) -> list[str]:
    """Starts this file for one of them alone; ``work`` is time or peak."""
    command = [sys.executable, __file__, "--one", who, "--work", work]
    command += ["--setting", ",".join(map(str, setting))]
    return command + (["--nanogpt", str(nanogpt)] if nanogpt else [])


def speeds(setting: Setting, names: Sequence[str], nanogpt: Path | None, starts: int) -> dict[str, float]:
    """Tokens/s of each."""
    *_, T, B, V = setting
    steps = 20 if V < 1000 else 2  # short steps vary more
    commands = {who: program(who, setting, nanogpt, "time") for who in names}
    return {who: T * B / s for who, s in interleaved_processes(commands, starts, 3, steps).items()}


def peak_memory(who: str, setting: Setting, nanogpt: Path | None) -> float:
    """MB that three steps add to a process that has imported everything; in a process of its own."""
    command = program(who, setting, nanogpt, "peak")
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(who: str, setting: Setting, nanogpt: Path | None) -> None:
    """What ``peak_memory`` runs."""
    for peer in (TANH, EXACT, *PEERS):  # imports and pools of every one alike
        if warm := trainer_of(peer, TINY, nanogpt):
            warm()
    del warm
    ready()
    gc.collect()
    before = peak_bytes()
    step = trainer_of(who, setting, nanogpt)
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


def print_row(name: str, values: dict[str, float]) -> None:
    """One line of a table: ours, then each peer's with ours over it."""
    cells = [f"{values[who]:,.0f}" for who in (TANH, EXACT)]
    for peer, own in PEERS.items():
        value = values.get(peer)
        cells.append(f"{value:,.0f} ({values[own] / value:.2f} ×)" if value else "–")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def run_one(who: str, setting: Setting, nanogpt: Path | None, work: str) -> None:
    """What ``program`` starts."""
    if work == "peak":
        print_peak(who, setting, nanogpt)
        return

    def first_step_taken() -> Step:
        step = trainer_of(who, setting, nanogpt)
        began = time.perf_counter()
        step()
        if who == COMPILED:
            print(f"(its first step took {time.perf_counter() - began:.0f} s)")
        return step

    serve(first_step_taken)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--compiled", action="store_true", help="also the first setting compiled")
    parser.add_argument("--starts", type=int, default=3, help="how often each process is started anew")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    nanogpt = options.nanogpt
    if options.one:
        n_layer, n_head, n_embd, T, B, V = map(int, options.setting.split(","))
        run_one(options.one, (n_layer, n_head, n_embd, T, B, V), nanogpt, options.work)
        return
    names = [who for who in (TANH, EXACT, *PEERS) if is_at_hand(who, nanogpt)]
    head = f"| setting | {TANH} | {' | '.join([EXACT, *PEERS])} |\n|{'---|' * (3 + len(PEERS))}"
    print(f"Training, tokens/s, and ours over each ({hardware()})\n\n{head}")
    for name, setting in SETTINGS.items():
        check_losses(setting, nanogpt)
        print_row(name, speeds(setting, names, nanogpt, options.starts))
    print(f"\nPeak memory of three steps, MB, and ours over each\n\n{head}")
    for name, setting in SETTINGS.items():
        print_row(name, {who: peak_memory(who, setting, nanogpt) for who in names})
    if options.compiled:
        name, setting = next(iter(SETTINGS.items()))
        print(f"\nCompiled, {name}, tokens/s\n")
        found = speeds(setting, [COMPILED, *names], nanogpt, options.starts)
        for who, value in found.items():
            print(f"| {who} | {value:,.0f} | {found[COMPILED] / value:.2f} × |")
    print("\n–: not at hand (nanoGPT is not on PyPI; LitGPT needs the extra `bench-litgpt`).")


if __name__ == "__main__":
    main()
