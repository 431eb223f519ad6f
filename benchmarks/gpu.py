"""One GPU: training and generation of GPT-2 124M beside transformers and nanoGPT, NF4 beside bitsandbytes.

    python -m benchmarks.gpu [--nanogpt PATH]     on a GPU: block 1024, bfloat16, compiled
    python -m benchmarks.gpu --smoke              tiny sizes on the CPU: that the script works, no figures

nanoGPT takes part where a checkout of it is given. Contestants start from the same weights and must agree on
the first loss, or the run ends with an error: it compares equal work only.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.adapters import NF4Linear, nf4_triton
from ai_learning.adapters.nf4 import dequantize_4bit
from ai_learning.device import compile_blocks, flops_per_token, peak_flops
from ai_learning.generate import generate
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.optim import adamw
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
    batch: int = 32
    rounds: int = 20
    new_tokens: int = 256
    prompt: int = 64
    copy_bytes: int = 2**30
    nf4_side: int = 8192
    """rows and columns of the 4-bit matrix"""
    nf4_repeats: int = 50


SMOKE = Sizes(
    2,
    2,
    32,
    32,
    100,
    batch=2,
    rounds=2,
    new_tokens=8,
    prompt=4,
    copy_bytes=2**20,
    nf4_side=128,
    nf4_repeats=2,
)


def theirs(sizes: Sizes) -> GPT2LMHeadModel:
    """transformers' model with fresh weights, from which the others are made."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=sizes.n_layer, n_head=sizes.n_head, n_embd=sizes.n_embd, n_positions=sizes.block_size,
        vocab_size=sizes.vocab_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def nanogpt(folder: Path, reference: GPT2LMHeadModel, sizes: Sizes) -> nn.Module:
    """The model of a nanoGPT checkout as it is, with the same weights."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    model = module.GPT(
        module.GPTConfig(
            sizes.block_size,
            sizes.vocab_size,
            sizes.n_layer,
            sizes.n_head,
            sizes.n_embd,
            dropout=0.0,
            bias=True,
        )
    )
    source, own = reference.state_dict(), model.state_dict()
    transposed = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    with torch.no_grad():
        for name, value in own.items():
            if name in source:
                value.copy_(source[name].t() if name.endswith(transposed) else source[name])
    return model


# --- training ----------------------------------------------------------------------------------------------


def training(sizes: Sizes, device: torch.device, checkout: Path | None) -> None:
    """A step each: forward, backward, clipping, AdamW; the same batch for all."""
    cuda = device.type == "cuda"
    reference = theirs(sizes)
    models: dict[str, nn.Module] = {"ai_learning": from_hf(reference)}
    if checkout is not None:
        models["nanoGPT"] = nanogpt(checkout, reference, sizes)
    models["transformers"] = reference
    losses: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
        "ai_learning": next_token_loss,
        "nanoGPT": lambda model, x, y: model(x, y)[1],
        "transformers": lambda model, x, y: F.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()),
    }
    torch.manual_seed(1)
    idx = torch.randint(0, sizes.vocab_size, (sizes.batch, sizes.block_size + 1), device=device)
    x, y = idx[:, :-1].contiguous(), idx[:, 1:].contiguous()
    steps, first, peaks = {}, {}, {}
    per_token = flops_per_token(models["ai_learning"])
    for name, model in models.items():
        before = torch.cuda.memory_allocated() if cuda else 0
        model = model.to(device).train()
        if cuda and name == "ai_learning":
            compile_blocks(model)
        elif cuda:
            model = torch.compile(model)
        step, first[name] = _trainer(model, losses[name], x, y, device)
        for _ in range(3):
            step()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            step()
            torch.cuda.synchronize()
            peaks[name] = f"{(torch.cuda.max_memory_allocated() - before) / 1e9:.2f}"
        steps[name] = step
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
    print("| | tokens/s | ms a step | MFU | peak GB |\n|---|---|---|---|---|")
    for name, rate in rates.items():
        mfu = f"{rate * per_token / peak:.1%}" if peak else "–"
        print(f"| {name} | {rate:,.0f} | {1000 * seconds[name]:.2f} | {mfu} | {peaks.get(name, '–')} |")
    print(f"\nai_learning ÷ best other: {rates['ai_learning'] / max(others):.2f}")
    if checkout is None:
        print("nanoGPT was not measured: give a checkout with --nanogpt")


def _trainer(
    model: nn.Module, loss_of: Callable[..., Tensor], x: Tensor, y: Tensor, device: torch.device
) -> tuple[Callable[[], None], float]:
    optimizer = adamw(model, 1e-5)

    def context() -> AbstractContextManager:
        return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()

    with torch.no_grad(), context():
        first = float(loss_of(model, x, y))

    def step() -> None:
        with context():
            loss = loss_of(model, x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, first


# --- generation --------------------------------------------------------------------------------------------


class _StaticLayer:
    """A layer's cache of fixed shape, written at a place that is itself a tensor: a graph can replay it."""

    length = 0  # what the model asks for; places and mask are given to it instead

    def __init__(self, k: Tensor, v: Tensor, place: Tensor) -> None:
        self.k, self.v, self.place = k, v, place

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.k.index_copy_(2, self.place, k)
        self.v.index_copy_(2, self.place, v)
        return self.k, self.v


class StaticDecoder:
    """Greedy decoding at batch 1, one token a call, without allocation or a look at the CPU.

    Args:
        model: in evaluation mode.
        capacity: positions to make room for.
        graph: replay the step as a CUDA graph.
    """

    def __init__(self, model: GPT, capacity: int, graph: bool) -> None:
        self.model, weight = model, model.wte.weight
        config: GPTConfig = model.config
        shape = (1, config.n_head, capacity, config.n_embd // config.n_head)
        self.place = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.token = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
        self.places = torch.arange(capacity, device=weight.device)
        self.cache: Any = _Layers(
            _StaticLayer(weight.new_zeros(shape), weight.new_zeros(shape), self.place)
            for _ in range(config.n_layer)
        )
        self.graph: torch.cuda.CUDAGraph | None = None
        if graph:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._step()

    def _step(self) -> None:
        mask = (self.places <= self.place)[None, None, None]  # (1, 1, 1, S)
        logits = self.model(self.token, cache=self.cache, positions=self.place, mask=mask)  # (1, 1, V)
        self.token.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))
        self.place += 1

    @torch.inference_mode()
    def __call__(self, prompt: Tensor, n: int) -> Tensor:
        """(1, T) → (1, T + n) ids; the prompt is read a token at a time by the same step."""
        self.place.zero_()
        ids = [prompt]
        for t in range(prompt.size(1) + n - 1):
            if t < prompt.size(1):
                self.token.copy_(prompt[:, t : t + 1])
            if self.graph is not None:
                self.graph.replay()
            else:
                self._step()
            if t >= prompt.size(1) - 1:
                ids.append(self.token.clone())
        return torch.cat(ids, dim=1)


class _Layers(list):
    length = 0


def copy_bandwidth(n_bytes: int, device: torch.device, rounds: int = 10) -> float:
    """Bytes a second that a copy reads and writes: what the memory really gives."""
    source = torch.zeros(n_bytes, dtype=torch.uint8, device=device)
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
    ours = from_hf(reference).to(device, dtype).eval()
    reference = reference.to(device, dtype)
    prompt = torch.randint(0, sizes.vocab_size, (1, sizes.prompt), device=device)
    with torch.inference_mode():
        static = StaticDecoder(ours, sizes.prompt + sizes.new_tokens, graph=cuda)
    n = sizes.new_tokens
    contestants: dict[str, Callable[[], Tensor]] = {
        "ai_learning": lambda: generate(ours, prompt, n, temperature=0),
        f"ai_learning, static cache{', CUDA graph' if cuda else ''}": lambda: static(prompt, n),
        "transformers": lambda: reference.generate(
            prompt, max_new_tokens=n, do_sample=False, pad_token_id=0, use_cache=True
        ),
    }
    expected = generate(ours, prompt, n, temperature=0)
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
    # the position table is looked up; the tied token table is read whole, as the head
    weights = sum(p.numel() * p.element_size() for name, p in ours.named_parameters() if "wpe" not in name)
    print(f"\n## Generation, batch 1, {n} tokens after {sizes.prompt}, {str(dtype)[6:]}\n")
    print(f"Measured copy bandwidth: {bandwidth / 1e9:,.0f} GB/s; weights: {weights / 1e6:,.0f} MB\n")
    print("| | tokens/s | ms a token | share of bandwidth | tokens as the first |\n|---|---|---|---|---|")
    for name, s in seconds.items():
        # the static decoder reads the prompt token by token, all weights each time
        read = n + (sizes.prompt - 1 if "static" in name else 0)
        share = weights * read / s / bandwidth
        print(f"| {name} | {n / s:,.0f} | {1000 * s / n:.3f} | {share:.1%} | {agree[name]} of {n} |")


def four_bits(sizes: Sizes, device: torch.device) -> None:
    """NF4: de-quantising a matrix, and one token's product with it, beside bitsandbytes where it is."""
    side, dtype = sizes.nf4_side, torch.bfloat16 if device.type == "cuda" else torch.float32
    weight = torch.randn(side, side, device=device, dtype=dtype) * 0.02
    layer = NF4Linear.from_linear(_linear(weight)).to(device)
    x = torch.randn(1, side, device=device, dtype=dtype)
    codes = layer.weight.numel() + layer.state.absmax.numel() * layer.state.absmax.element_size()
    results = weight.numel() * weight.element_size()
    plain = dequantize_4bit(layer.weight, layer.state, dtype=dtype, fast=False)
    if not torch.equal(layer.dequantize(dtype), plain):
        sys.exit("the kernel and the definition give different bits")
    runs: dict[str, tuple[Callable[[], Any], int]] = {  # what to call, and the bytes it must move
        "de-quantise, ai_learning": (lambda: layer.dequantize(dtype), codes + results),
        "de-quantise, PyTorch operations": (
            lambda: dequantize_4bit(layer.weight, layer.state, dtype=dtype, fast=False),
            codes + results,
        ),
        "one token's product, ai_learning": (lambda: layer(x), codes),
    }
    if device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
        import bitsandbytes as bnb

        peer = bnb.nn.Linear4bit(side, side, bias=False, compute_dtype=dtype, quant_type="nf4")
        peer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
        peer = peer.to(device)
        state = peer.weight.quant_state
        runs["de-quantise, bitsandbytes"] = (
            lambda: bnb.functional.dequantize_4bit(peer.weight, state),
            codes + results,
        )
        runs["one token's product, bitsandbytes"] = (lambda: peer(x), codes)

    def timed(run: Callable[[], Any]) -> Callable[[], None]:
        def step() -> None:
            with torch.no_grad():
                for _ in range(sizes.nf4_repeats):
                    run()
            if device.type == "cuda":
                torch.cuda.synchronize()

        return step

    seconds = interleaved({name: timed(run) for name, (run, _) in runs.items()}, 5)
    bandwidth = copy_bandwidth(sizes.copy_bytes, device)
    kernels = "Triton kernels" if nf4_triton.usable(layer.weight) else "no Triton kernels here"
    print(f"\n## NF4, {side} × {side}, {str(dtype)[6:]} ({kernels})\n")
    print("| | µs | share of copy bandwidth |\n|---|---|---|")
    for name, (_, moved) in runs.items():
        s = seconds[name] / sizes.nf4_repeats
        print(f"| {name} | {1e6 * s:.1f} | {moved / s / bandwidth:.1%} |")


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.size(1), weight.size(0), bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="GPT-2 124M on one GPU.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU: that the script works")
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout (its model.py)")
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
    training(sizes, device, options.nanogpt)
    generation(sizes, device)
    four_bits(sizes, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
