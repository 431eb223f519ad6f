"""Training step beside transformers' GPT-2 and LitGPT: same sizes, batch and optimizer, interleaved.

    python benchmarks/training.py

With transformers also the same weights: the first loss of both must agree to 1e-4, or the benchmark ends with
an error. LitGPT has rotary positions always: same sizes, not the same weights. nanoGPT is not on PyPI:
``--nanogpt PATH`` measures a checkout's ``model.py`` as it is. Peak memory is that of a process of its own
for each, above what it holds after its imports and a step of a tiny model.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import hardware, interleaved
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.loss import next_token_loss
from ai_learning.model import GPT
from ai_learning.optim import adamw
from ai_learning.pretrained import config_from_hf, from_hf

# name: layers, heads, width, block, batch, vocabulary
SETTINGS = {
    "4/4/128, block 64, batch 12, vocabulary 65": (4, 4, 128, 64, 12, 65),
    "4/4/128, block 64, batch 12, vocabulary 50257": (4, 4, 128, 64, 12, 50257),
    "6/6/384, block 256, batch 4, vocabulary 50257": (6, 6, 384, 256, 4, 50257),
}
NAMES = ("ai_learning", "transformers", "LitGPT", "nanoGPT")

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
    if who == "ai_learning":
        ours = GPT(config_from_hf(transformers_config(setting))).train()
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
        return lit, lambda: F.cross_entropy(lit(x).flatten(0, 1), y.flatten())
    if nanogpt is None:
        return None
    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt / "model.py")
    if spec is None or spec.loader is None or not (nanogpt / "model.py").is_file():
        sys.exit(f"no model.py in {nanogpt}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"block_size": T, "vocab_size": V, "n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    nano = module.GPT(module.GPTConfig(dropout=0.0, bias=True, **sizes)).train()
    return nano, lambda: nano(x, y)[1]


def trainer(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """One step: backward, clipping, AdamW. Every model gets the same fused optimizer."""
    optimizer = adamw(model, 1e-4)

    def step() -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def trainers(setting: Setting, nanogpt: Path | None) -> dict[str, Step]:
    """One step of each that is at hand, on the same batch."""
    found = {who: pair for who in NAMES if (pair := loss_of(who, setting, nanogpt)) is not None}
    found["ai_learning"][0].load_state_dict(from_hf(found["transformers"][0]).state_dict())
    first = {who: found[who][1]().item() for who in ("ai_learning", "transformers")}
    if abs(first["ai_learning"] - first["transformers"]) > 1e-4:
        sys.exit(f"not the same work: losses {first}")
    return {who: trainer(*pair) for who, pair in found.items()}


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
    gc.collect()
    before = peak_bytes()
    pair = loss_of(who, setting, nanogpt)
    if pair is None:
        return
    step = trainer(*pair)
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


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        n_layer, n_head, n_embd, T, B, V = map(int, options.setting.split(","))
        print_one_peak(options.one, (n_layer, n_head, n_embd, T, B, V), options.nanogpt)
        return
    print(f"Training, tokens/s, and ours over each ({hardware()})\n")
    print("| setting | ai_learning | transformers | LitGPT | nanoGPT |\n|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        seconds = interleaved(trainers(setting, options.nanogpt), rounds=8)
        rates = {who: setting[3] * setting[4] / s for who, s in seconds.items()}
        ours = rates["ai_learning"]
        cells = [f"{rates[w]:,.0f} ({ours / rates[w]:.2f} ×)" if w in rates else "–" for w in NAMES[1:]]
        print(f"| {name} | {rates['ai_learning']:,.0f} | {' | '.join(cells)} |", flush=True)
    print("\nPeak memory of three steps, MB, and ours over each\n")
    print("| setting | ai_learning | transformers | LitGPT | nanoGPT |\n|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        mb = {who: peak_memory(who, setting, options.nanogpt) for who in NAMES}
        own = mb["ai_learning"] or 0.0
        cells = [f"{m:,.0f} ({own / m:.2f})" if (m := mb[who]) else "–" for who in NAMES[1:]]
        print(f"| {name} | {own:,.0f} | {' | '.join(cells)} |", flush=True)
    print("\n–: not at hand (nanoGPT is not on PyPI; LitGPT needs the extra `bench-litgpt`).")


if __name__ == "__main__":
    main()
