"""One GPU: training and generation of GPT-2 beside transformers and nanoGPT, NF4 beside bitsandbytes.

    python -m benchmarks.gpu [--nanogpt PATH]     on a GPU: 124M, block 1024, bfloat16, compiled
    python -m benchmarks.gpu --smoke              tiny sizes on the CPU: that the script works, no figures

nanoGPT takes part where a checkout of it is given. Contestants start from the same weights and must agree on
the first loss, or the run ends with an error: it compares equal work only.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.adapters import NF4Linear, nf4_triton
from ai_learning.adapters.nf4 import dequantize_4bit
from ai_learning.decode_triton import Decoder, suits
from ai_learning.device import autocast, compiled, flops_per_token, on_a_gpu, peak_flops
from ai_learning.generate import generate
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig, KVCache
from ai_learning.optim import adamw, clip_and_step
from ai_learning.pretrained import from_hf

from .common import hardware, interleaved


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 50257
    batch: int = 64
    padded_vocab_size: int = 50304
    """of the others' models: nanoGPT's own default, without which their heads take seven times as long"""
    rounds: int = 20
    new_tokens: int = 256
    prompt: int = 64
    copy_bytes: int = 2**30
    decoded: tuple[tuple[str, dict[str, int]], ...] = (
        ("124M", {}),
        ("355M", {"n_layer": 24, "n_head": 16, "n_embd": 1024}),
        ("774M", {"n_layer": 36, "n_head": 20, "n_embd": 1280}),
        ("1.5B", {"n_layer": 48, "n_head": 25, "n_embd": 1600}),
    )
    """GPT-2's published sizes"""
    nf4_side: int = 8192
    """rows and columns of the 4-bit matrix"""
    nf4_matrices: int = 4
    """taken in turn, so that none is still in the cache"""


SMOKE = Sizes(
    2, 2, 32, 32, 100, batch=2, padded_vocab_size=100, rounds=2, new_tokens=8, prompt=4, copy_bytes=2**20,
    nf4_side=128, nf4_matrices=2,
)  # fmt: skip


# --- training ----------------------------------------------------------------------------------------------


def theirs(sizes: Sizes) -> GPT2LMHeadModel:
    """transformers' model with fresh weights, from which the others are made; its vocabulary is filled up."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=sizes.n_layer, n_head=sizes.n_head, n_embd=sizes.n_embd, n_positions=sizes.block_size,
        vocab_size=sizes.padded_vocab_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def ours(reference: GPT2LMHeadModel, sizes: Sizes) -> GPT:
    """The same weights, without the rows that fill up the vocabulary."""
    whole = from_hf(reference)
    state = {name: t[: sizes.vocab_size] if "wte" in name or "lm_head" in name else t
             for name, t in whole.state_dict().items()}  # fmt: skip
    model = GPT(replace(whole.config, vocab_size=sizes.vocab_size))
    model.load_state_dict(state)
    return model


def nanogpt(folder: Path, reference: GPT2LMHeadModel, sizes: Sizes) -> nn.Module:
    """The model of a nanoGPT checkout as it is, with the same weights."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        sizes.block_size, sizes.padded_vocab_size, sizes.n_layer, sizes.n_head, sizes.n_embd,
        dropout=0.0, bias=True,
    )  # fmt: skip
    model = module.GPT(config)
    source, own = reference.state_dict(), model.state_dict()
    transposed = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    with torch.no_grad():
        for name, value in own.items():
            if name in source:
                value.copy_(source[name].t() if name.endswith(transposed) else source[name])
    return model


LossOf = Callable[[Tensor, Tensor], Tensor]


def training(sizes: Sizes, device: torch.device, checkout: Path | None) -> None:
    """A step each: forward, backward, clipping, AdamW; the same batch for all."""
    cuda = device.type == "cuda"
    compile_if = torch.compile if cuda else lambda function: function
    reference = theirs(sizes)
    own = ours(reference, sizes)
    models: dict[str, nn.Module] = {"ai_learning": own}
    losses: dict[str, LossOf] = {"ai_learning": lambda x, y: next_token_loss(own, x, y)}
    if checkout is not None:
        peer = models["nanoGPT"] = nanogpt(checkout, reference, sizes)
        losses["nanoGPT"] = compile_if(lambda x, y: peer(x, y)[1])
    models["transformers"] = reference
    losses["transformers"] = compile_if(
        lambda x, y: F.cross_entropy(reference(x).logits.flatten(0, 1), y.flatten())
    )
    torch.manual_seed(1)
    idx = torch.randint(0, sizes.vocab_size, (sizes.batch, sizes.block_size + 1), device=device)
    x, y = idx[:, :-1].contiguous(), idx[:, 1:].contiguous()
    steps, first, peaks = {}, {}, {}
    per_token = flops_per_token(own)
    with ExitStack() as stack:
        if cuda:
            stack.enter_context(compiled(own, as_one=True))
        for name, model in models.items():
            before = torch.cuda.memory_allocated() if cuda else 0
            model.to(device).train()
            step = _trainer(model, losses[name], x, y, name == "ai_learning")
            first[name] = step()
            for _ in range(3):
                step()
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                step()
                peaks[name] = f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}"
            steps[name] = step
        # In bfloat16, and with 47 ids that are none, the losses of the others differ a little.
        if max(first.values()) - min(first.values()) > (2e-2 if cuda else 1e-4):
            sys.exit(f"not the same work: first losses {first}")
        seconds = interleaved(steps, sizes.rounds)
    peak = peak_flops(device)
    rates = {name: x.numel() / s for name, s in seconds.items()}
    others = [rate for name, rate in rates.items() if name != "ai_learning"]
    print(
        f"\n## Training, {sizes.batch} × {sizes.block_size} tokens a step"
        f"{', bfloat16, compiled' if cuda else ''}\n"
    )
    print("| | tokens/s | ms a step | MFU | peak GB | first loss |\n|---|---|---|---|---|---|")
    for name, rate in rates.items():
        mfu = f"{rate * per_token / peak:.1%}" if peak else "–"
        print(
            f"| {name} | {rate:,.0f} | {1000 * seconds[name]:.2f} | {mfu} | {peaks.get(name, '–')} "
            f"| {first[name]:.4f} |"
        )
    print(f"\nai_learning ÷ best other: {rates['ai_learning'] / max(others):.2f}")
    if checkout is None:
        print("nanoGPT was not measured: give a checkout with --nanogpt")


def _trainer(model: nn.Module, loss_of: LossOf, x: Tensor, y: Tensor, is_ours: bool) -> Callable[[], float]:
    """A step, which gives its loss; what `train` does around ours is done here as well."""
    optimizer, device = adamw(model, 1e-5), x.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    context = autocast(device, dtype)

    def around() -> AbstractContextManager:
        return on_a_gpu(model, device, dtype, fixed_shapes=True) if is_ours else nullcontext()

    def step() -> float:
        with around():
            with context():
                loss = loss_of(x, y)
            loss.backward()
        clip_and_step(optimizer, 1.0)
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    return step


# --- generation --------------------------------------------------------------------------------------------


def copy_bandwidth(n_bytes: int, device: torch.device, rounds: int = 10) -> float:
    """Bytes a second that a copy reads and writes: what the memory really gives."""
    source = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * n_bytes / interleaved({"copy": copy}, rounds)["copy"]


def generation(sizes: Sizes, device: torch.device) -> None:
    """Greedy, batch 1: every token reads all weights, so that bandwidth is the bound."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    reference = theirs(sizes).eval()
    own = ours(reference, sizes).to(device, dtype).eval()
    reference = reference.to(device, dtype)
    prompt = torch.randint(0, sizes.vocab_size, (1, sizes.prompt), device=device)
    n = sizes.new_tokens
    contestants: dict[str, Callable[[], Tensor]] = {
        "ai_learning": lambda: generate(own, prompt, n, temperature=0),
        "transformers": lambda: reference.generate(
            prompt, max_new_tokens=n, do_sample=False, pad_token_id=0, use_cache=True
        ),
    }
    expected = generate(own, prompt, n, temperature=0)
    agree = {name: int((run()[0] == expected[0]).sum()) - sizes.prompt for name, run in contestants.items()}
    if not cuda and min(agree.values()) < n:  # in bfloat16 near ties fall either way: there it is only told
        sys.exit(f"not the same tokens: {agree} of {n} agree")

    def timed(run: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            run()
            if cuda:
                torch.cuda.synchronize()

        return step

    seconds = interleaved({name: timed(run) for name, run in contestants.items()}, 5, warmup=1)
    bandwidth = copy_bandwidth(sizes.copy_bytes, device)
    print(f"\n## Generation, batch 1, {n} tokens after {sizes.prompt}, {str(dtype)[6:]}\n")
    print(f"Measured copy bandwidth: {bandwidth / 1e9:,.0f} GB/s; weights: {_weights(own) / 1e6:,.0f} MB\n")
    print("| | tokens/s | ms a token | share of bandwidth | tokens as the first |\n|---|---|---|---|---|")
    for name, s in seconds.items():
        share = _weights(own) * n / s / bandwidth
        print(f"| {name} | {n / s:,.0f} | {1000 * s / n:.3f} | {share:.1%} | {agree[name]} of {n} |")
    if cuda:
        print("\nOne step of the decoder, 256 in a row from 64 positions on:\n")
        print("| model | weights MB | µs | share of bandwidth |\n|---|---|---|---|")
        for name, shape in sizes.decoded:
            _one_token(name, GPTConfig(vocab_size=sizes.vocab_size, **shape), bandwidth, device)


def _weights(model: GPT) -> int:
    """Bytes that a token reads: all but the position table; the tied token table is read as the head."""
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "wpe" not in name)


@torch.inference_mode()
def _one_token(name: str, config: GPTConfig, bandwidth: float, device: torch.device) -> None:
    torch.manual_seed(0)
    with device:
        model = GPT(config).to(torch.bfloat16).eval()
    assert suits(model)
    cache = KVCache(config, 1, 512, torch.bfloat16, device)
    model.hidden(torch.randint(0, config.vocab_size, (1, 64), device=device), cache=cache)
    decoder = Decoder(model, cache)

    def steps() -> None:
        cache.truncate(64)
        for _ in range(256):
            decoder.step(decoder.likeliest[:, None])
        torch.cuda.synchronize()

    s = interleaved({name: steps}, 5, warmup=1)[name] / 256
    weights = _weights(model)
    print(f"| {name} | {weights / 1e6:,.0f} | {1e6 * s:.1f} | {weights / s / bandwidth:.1%} |")


# --- four bits ---------------------------------------------------------------------------------------------


def four_bits(sizes: Sizes, device: torch.device) -> None:
    """NF4: de-quantising a matrix, and one token's product with it, beside bitsandbytes where it is.

    On a GPU as a graph, so that the kernels' own time is told, and called one by one as from a model.
    """
    cuda = device.type == "cuda"
    side, dtype = sizes.nf4_side, torch.bfloat16 if cuda else torch.float32
    weights = [torch.randn(side, side, device=device, dtype=dtype) * 0.02 for _ in range(sizes.nf4_matrices)]
    layers = [NF4Linear.from_linear(_linear(weight)).to(device) for weight in weights]
    x = torch.randn(1, side, device=device, dtype=dtype)
    state = layers[0].state
    codes = side * side // 2 + state.absmax.numel() * state.absmax.element_size()
    results = side * side * weights[0].element_size()
    for layer in layers:
        plain = dequantize_4bit(layer.weight, layer.state, dtype=dtype, fast=False)
        if not torch.equal(layer.dequantize(dtype), plain):
            sys.exit("the kernel and the definition give different bits")
    runs: dict[str, tuple[list[Callable[[], Any]], int]] = {  # what to call, and the bytes it must move
        "de-quantise, ai_learning": ([lambda a=a: a.dequantize(dtype) for a in layers], codes + results),
        "one token's product, ai_learning": ([lambda a=a: a(x) for a in layers], codes),
    }
    if cuda and importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes as bnb

        def peer_of(weight: Tensor) -> Any:
            peer = bnb.nn.Linear4bit(side, side, bias=False, compute_dtype=dtype, quant_type="nf4")
            peer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
            return peer.to(device)

        peers = [peer_of(weight) for weight in weights]
        with torch.no_grad():
            apart = (peers[0](x).float() - layers[0](x).float()).norm() / layers[0](x).float().norm()
        if float(apart) > 1e-2:
            sys.exit(f"not the same product: {float(apart):.1e} apart")
        runs["de-quantise, bitsandbytes"] = (
            [lambda p=p: bnb.functional.dequantize_4bit(p.weight, p.weight.quant_state) for p in peers],
            codes + results,
        )
        runs["one token's product, bitsandbytes"] = ([lambda p=p: p(x) for p in peers], codes)
    seconds = interleaved({name: _ten_times(calls, graph=cuda) for name, (calls, _) in runs.items()}, 10)
    eager = interleaved({name: _ten_times(calls, graph=False) for name, (calls, _) in runs.items()}, 10)
    bandwidth = copy_bandwidth(sizes.copy_bytes, device)
    kernels = (
        "Triton kernels" if nf4_triton.usable(layers[0].weight, layers[0].state) else "no Triton kernels here"
    )
    print(f"\n## NF4 with double quantization, {side} × {side}, {str(dtype)[6:]} ({kernels})\n")
    print("| | µs in a graph | share of copy bandwidth | µs called from Python |\n|---|---|---|---|")
    for name, (calls, moved) in runs.items():
        s = seconds[name] / (10 * len(calls))
        each = eager[name] / (10 * len(calls))
        print(f"| {name} | {1e6 * s:.1f} | {moved / s / bandwidth:.1%} | {1e6 * each:.1f} |")


def _ten_times(calls: list[Callable[[], Any]], graph: bool) -> Callable[[], None]:
    """All of them in turn, ten times, and wait."""

    @torch.no_grad()
    def all_of_them() -> None:
        for _ in range(10):
            for call in calls:
                call()

    if not graph:
        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        return lambda: (all_of_them(), wait(), None)[2]
    all_of_them()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        all_of_them()
    return lambda: (recorded.replay(), torch.cuda.synchronize(), None)[2]


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


PARTS = ("training", "generation", "nf4")


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="GPT-2 124M on one GPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU: that the script works")
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout (its model.py)")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    parser.add_argument("--batch", type=int, help=f"sequences a step (default {Sizes.batch})")
    options = parser.parse_args(args)
    if not options.smoke and not torch.cuda.is_available():
        print(
            "gpu: error: no CUDA GPU here; --smoke tries the script on the CPU, without figures",
            file=sys.stderr,
        )
        return 2
    if options.nanogpt is not None and not (options.nanogpt / "model.py").is_file():
        print(f"gpu: error: no model.py in {options.nanogpt}: give a nanoGPT checkout", file=sys.stderr)
        return 2
    if options.batch is not None and options.batch < 1:
        print(f"gpu: error: --batch {options.batch} must be at least 1", file=sys.stderr)
        return 2
    sizes = SMOKE if options.smoke else Sizes(batch=options.batch or Sizes.batch)
    device = torch.device("cpu" if options.smoke else "cuda")
    torch.set_float32_matmul_precision("high")
    print(f"# GPT-2 {'smoke test, no figures' if options.smoke else '124M'} ({hardware()})")
    parts = {
        "training": lambda: training(sizes, device, options.nanogpt),
        "generation": lambda: generation(sizes, device),
        "nf4": lambda: four_bits(sizes, device),
    }
    for part in PARTS if options.only is None else [options.only]:
        parts[part]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
