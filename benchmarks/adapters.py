"""Adapters side by side with PEFT and bitsandbytes, on the CPU, in one run.

    python -m benchmarks.adapters                 # everything
    python -m benchmarks.adapters nf4 lora dora   # some sections: nf4 lora qlora dora rows swap

The two sides are taken in turn; the ratio is the median of the rounds' ratios. Times are CPU seconds on one
thread (set OMP_NUM_THREADS) and wall time on several. Peak memory is the resident set's high-water mark above
what is resident before the step.
"""

import argparse
import copy
import ctypes
import functools
import gc
import logging
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    adapters_by_row,
    dequantize_nf4,
    inject_lora,
    load_peft,
    nf4_fast,
    prepare_qlora,
    quantize_nf4,
    save_peft,
)
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import from_hf

from .common import hardware, process_clock

SIZES = {"6/384 B4 T256": (6, 384, 4, 256), "12/768 B2 T512": (12, 768, 2, 512)}
VOCAB = 50257


# ---- measuring -----------------------------------------------------------------------------------


def take_turns(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """(our seconds, their seconds, ratio theirs / ours), medians."""
    clock = process_clock()
    ours(), theirs()  # compile, allocate
    pairs = []
    for turn in range(rounds):
        seconds = {}
        for side in (ours, theirs) if turn % 2 else (theirs, ours):
            start = clock()
            side()
            seconds[side] = clock() - start
        pairs.append((seconds[ours], seconds[theirs]))
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def peak_megabytes(step: Callable[[], object]) -> float:
    """High-water mark of the resident set during ``step``, above what was resident before it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"no {name} in /proc/self/status")


def row(*cells: object) -> None:
    print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def header(*cells: str) -> None:
    print()
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


# ---- the two sides -------------------------------------------------------------------------------


def pair(layers: int, width: int, length: int) -> tuple[GPT, nn.Module]:
    """Our GPT and transformers' GPT-2 with the same random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    heads = width // 64
    ours = GPT(GPTConfig(VOCAB, length, layers, heads, width))
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=length,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    )
    theirs = GPT2LMHeadModel(config)
    state = {}
    for name, tensor in ours.state_dict().items():
        flip = name.startswith("h.") and tensor.dim() == 2
        state[name if name == "lm_head.weight" else f"transformer.{name}"] = tensor.t() if flip else tensor
    theirs.load_state_dict(state)
    return ours, theirs


def llama_pair() -> tuple[GPT, nn.Module]:
    """A small Llama of 24 layers, ours and transformers'."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 24}
    theirs = LlamaForCausalLM(LlamaConfig(vocab_size=1000, max_position_embeddings=512, **sizes, **heads))
    return from_hf(theirs), theirs


def with_bitsandbytes(hf: nn.Module) -> nn.Module:
    """transformers' GPT-2 with its blocks' layers in bitsandbytes' NF4."""
    import bitsandbytes as bnb

    for block in hf.transformer.h:
        for parent, name in (
            (block.attn, "c_attn"),
            (block.attn, "c_proj"),
            (block.mlp, "c_fc"),
            (block.mlp, "c_proj"),
        ):
            conv = getattr(parent, name)
            layer = bnb.nn.Linear4bit(*conv.weight.shape, compute_dtype=torch.float32, quant_type="nf4")
            weight = conv.weight.data.t().contiguous()
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
            layer.bias = nn.Parameter(conv.bias.data.clone(), requires_grad=False)
            setattr(parent, name, layer.to("cpu"))
    return hf


def our_step(model: GPT, x: torch.Tensor) -> Callable[[], float]:
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> float:
        for p in parameters:
            p.grad = None
        loss = next_token_loss(model, x[:, :-1], x[:, 1:])
        loss.backward()
        return loss.item()

    return step


def their_step(model: nn.Module, x: torch.Tensor) -> Callable[[], float]:
    parameters = [p for p in model.parameters() if p.requires_grad]

    def step() -> float:
        for p in parameters:
            p.grad = None
        logits = model(x[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        loss.backward()
        return loss.item()

    return step


def adapters(ours: nn.Module, theirs: nn.Module, config: LoRAConfig, quantized: bool = False) -> tuple:
    """The same adapter on both sides, through PEFT's file."""
    import peft

    if quantized:
        prepare_qlora(ours, config)
        with_bitsandbytes(theirs)
    else:
        inject_lora(ours, config)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        save_peft(ours, folder)
        opened = peft.PeftModel.from_pretrained(theirs, folder, is_trainable=True)
    return ours.train(), opened.train()


# ---- sections ------------------------------------------------------------------------------------


def nf4(rounds: int) -> None:
    """Quantize and de-quantise against bitsandbytes."""
    import bitsandbytes.functional as peer

    header("4-bit", "elements", "ours µs", "bitsandbytes µs", "ratio")
    _keep_freed_memory(True)
    for n in (2**18, 2**20, 2**22):
        _nf4_of_size(peer, n, rounds)
    _keep_freed_memory(False)
    _nf4_of_size(peer, 2**24, rounds)  # as it is by default: so large a tensor always gets fresh memory


def _keep_freed_memory(keep: bool) -> None:
    """Whether glibc keeps freed tensors: else fresh pages on either side drown the kernels' times."""
    libc = ctypes.CDLL("libc.so.6")
    for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        libc.mallopt(option, 2**30 if keep else 2**17)


def _nf4_of_size(peer: ModuleType, n: int, rounds: int) -> None:
    x = torch.randn(n // 1024, 1024)
    repeat = max(1, 2**22 // n)

    def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
        def several(side: Callable[[], object]) -> None:
            for _ in range(repeat):
                side()  # its result is given up at once, as a layer gives up its weight after the product

        sides = [functools.partial(several, side) for side in (ours, theirs)]
        a, b, ratio = take_turns(*sides, rounds)
        row(name, n, a / repeat * 1e6, b / repeat * 1e6, ratio)

    packed, state = quantize_nf4(x)
    theirs, their_state = peer.quantize_4bit(x, quant_type="nf4")
    assert torch.equal(packed, theirs)
    peer_quantize = functools.partial(peer.quantize_4bit, x, quant_type="nf4")
    compare("quantize fp32", lambda: quantize_nf4(x), peer_quantize, rounds)
    flat, absmax, table = packed.view(-1), state.absmax, state.code
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        their_state.dtype = dtype
        name = f"de-quantise {str(dtype).removeprefix('torch.')}"
        fast = functools.partial(dequantize_nf4, packed, state, dtype=dtype)
        portable = functools.partial(nf4_fast.dequantize, flat, absmax, table, 64, (n,), dtype, portable=True)
        peer_side = functools.partial(peer.dequantize_4bit, theirs, their_state)
        compare(name, fast, peer_side, 3 * rounds)
        compare(f"{name}, portable loops", portable, peer_side, 3 * rounds)


def _against_peft(title: str, config: LoRAConfig, rounds: int, quantized: bool = False) -> None:
    header(
        title,
        "loss ours",
        "loss PEFT",
        "s ours",
        "s PEFT",
        "speed ratio",
        "MB ours",
        "MB PEFT",
        "memory ratio",
    )
    for name, (layers, width, B, T) in SIZES.items():
        ours, theirs = adapters(*pair(layers, width, T), config, quantized)
        x = torch.randint(0, VOCAB, (B, T + 1), generator=torch.Generator().manual_seed(1))
        mine, other = our_step(ours, x), their_step(theirs, x)
        losses = mine(), other()
        assert abs(losses[0] - losses[1]) < 1e-4, losses
        a, b, ratio = take_turns(mine, other, rounds)
        memory = peak_megabytes(mine), peak_megabytes(other)
        row(name, *(f"{v:.5f}" for v in losses), a, b, ratio, *memory, memory[0] / memory[1])


def lora(rounds: int) -> None:
    """A training step against PEFT: LoRA r=8 on all linear layers."""
    _against_peft("LoRA step", LoRAConfig(r=8), rounds)


def qlora(rounds: int) -> None:
    """A training step against PEFT on bitsandbytes' NF4."""
    _against_peft("QLoRA step", LoRAConfig(r=8), rounds, quantized=True)


def dora(rounds: int) -> None:
    """DoRA against PEFT's, and against our own LoRA."""
    _against_peft("DoRA step", LoRAConfig(r=8, use_dora=True), rounds)
    header("DoRA over our LoRA", "s LoRA", "s DoRA", "cost ratio")
    for name, (layers, width, B, T) in SIZES.items():
        base, _ = pair(layers, width, T)
        x = torch.randint(0, VOCAB, (B, T + 1), generator=torch.Generator().manual_seed(1))
        plain = our_step(inject_lora(copy.deepcopy(base), LoRAConfig(r=8)).train(), x)
        dora_step = our_step(inject_lora(copy.deepcopy(base), LoRAConfig(r=8, use_dora=True)).train(), x)
        a, b, ratio = take_turns(plain, dora_step, rounds)
        row(name, a, b, ratio)


def rows(rounds: int) -> None:
    """One batch whose rows have different adapters, forward pass."""
    import peft

    header("mixed adapters, forward", "adapters", "tokens a row", "s ours", "s PEFT", "ratio")
    for name, layers, width, n in (("6/384", 6, 384, 16), ("12/768", 12, 768, 8)):
        ours, theirs = pair(layers, width, 64)
        opened = None
        names = [f"task{i}" for i in range(n)]
        with tempfile.TemporaryDirectory() as folder:
            for i, adapter in enumerate(names):
                inject_lora(ours, LoRAConfig(r=8), adapter)
                with torch.no_grad():
                    for key, p in ours.named_parameters():
                        if key.endswith(f"lora_B.{adapter}"):
                            p.normal_(std=0.02)
                save_peft(ours, f"{folder}/{i}", adapter)
                if opened is None:
                    opened = peft.PeftModel.from_pretrained(theirs, f"{folder}/{i}", adapter_name=adapter)
                else:
                    opened.load_adapter(f"{folder}/{i}", adapter_name=adapter)
        ours.eval(), opened.eval()
        for T in (1, 8, 16, 32):
            x = torch.randint(0, VOCAB, (n, T))

            @torch.no_grad()
            def mine(ours: GPT = ours, x: torch.Tensor = x, names: list[str] = names) -> torch.Tensor:
                with adapters_by_row(ours, names):
                    return ours.lm_head(ours.hidden(x)[:, -1])

            @torch.no_grad()
            def other(
                opened: nn.Module = opened, x: torch.Tensor = x, names: list[str] = names
            ) -> torch.Tensor:
                return opened(x, adapter_names=names, logits_to_keep=1).logits

            assert torch.allclose(mine(), other()[:, 0], atol=1e-4)
            a, b, ratio = take_turns(mine, other, 3 * rounds)
            row(name, n, T, a, b, ratio)


def swap(rounds: int) -> None:
    """Exchanging the adapter on a model for another from disk."""
    import peft

    header("hot swap", "ms ours", "ms PEFT", "ours / PEFT")
    for name, (layers, width, _, T) in SIZES.items():
        _swap(name, *pair(layers, width, T), peft.LoraConfig(target_modules="all-linear"), rounds)
    # Seven layers a block there; queries, keys and values are one of ours.
    _swap("Llama 24/256", *llama_pair(), peft.LoraConfig(target_modules="all-linear"), rounds)


def _swap(name: str, ours: GPT, theirs: nn.Module, config: Any, rounds: int) -> None:
    import peft
    from peft.utils.hotswap import hotswap_adapter

    turns = {"ours": 0, "theirs": 0}
    with tempfile.TemporaryDirectory() as folder:
        made = peft.get_peft_model(theirs, config)
        for letter in "ab":
            with torch.no_grad():
                for p in made.parameters():
                    if p.requires_grad:
                        p.normal_(std=0.01)
            made.save_pretrained(f"{folder}/{letter}")
        opened = peft.PeftModel.from_pretrained(made.unload(), f"{folder}/a")
        load_peft(ours, f"{folder}/a")

        def mine() -> None:
            turns["ours"] += 1
            load_peft(ours, f"{folder}/{'ab'[turns['ours'] % 2]}")

        def other() -> None:
            turns["theirs"] += 1
            hotswap_adapter(opened, f"{folder}/{'ab'[turns['theirs'] % 2]}", adapter_name="default")

        a, b, ratio = take_turns(mine, other, 5 * rounds)
        x = torch.arange(8)[None]
        with torch.no_grad():
            assert torch.allclose(ours(x), opened(x).logits, atol=1e-4)
    row(name, a * 1e3, b * 1e3, 1 / ratio)


SECTIONS = {"nf4": nf4, "lora": lora, "qlora": qlora, "dora": dora, "rows": rows, "swap": swap}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *SECTIONS], help="all by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default 5)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if len(args.sections) == 1:
        print(f"{hardware()}, Python {sys.version.split()[0]}")
        SECTIONS[args.sections[0]](args.rounds)
        return
    for name in args.sections or SECTIONS:  # each in a process of its own: the C library keeps what one freed
        command = [sys.executable, "-m", "benchmarks.adapters", name, "--rounds", str(args.rounds)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
