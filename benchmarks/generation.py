"""Greedy generation beside transformers' cached ``generate`` and LitGPT's, interleaved; int8, draft models.

    python benchmarks/generation.py

With transformers: the same weights, and the tokens must be identical, or the benchmark ends with an error.
LitGPT has rotary positions always: its model is of the same sizes but not of the same weights. nanoGPT is not
on PyPI: ``--nanogpt PATH`` measures a checkout's ``model.py`` as it is (it has no cache).
"""

import argparse
import contextlib
import importlib.util
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import hardware, interleaved
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.generate import Sampling, generate
from ai_learning.int8 import quantize_int8
from ai_learning.model import GPT
from ai_learning.presets import preset
from ai_learning.pretrained import from_hf
from ai_learning.speculative import Acceptance, speculative_stream

# name: layers, heads, width, batch, vocabulary
SETTINGS = {
    "6/6/384, batch 1, vocabulary 50257": (6, 6, 384, 1, 50257),
    "4/4/128, batch 16, vocabulary 50257": (4, 4, 128, 16, 50257),
    "4/4/128, batch 16, vocabulary 65": (4, 4, 128, 16, 65),
}
NEW = 256
Run = Callable[[], Any]


def litgpt_run(n_layer: int, n_head: int, n_embd: int, V: int, idx: torch.Tensor) -> Run | None:
    """LitGPT's own generation of one prompt; ``None`` where it is not installed."""
    if importlib.util.find_spec("litgpt") is None or idx.size(0) > 1:
        return None
    with contextlib.redirect_stderr(io.StringIO()):
        import litgpt
        from litgpt.generate.base import generate as lit_generate
    config = litgpt.Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=V, padded_vocab_size=V, block_size=512,
        bias=True, norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP",
    )  # fmt: skip
    model = litgpt.GPT(config).eval()
    model.set_kv_cache(batch_size=1)

    def run() -> None:
        lit_generate(model, idx[0], idx.size(1) + NEW, temperature=0.0, top_k=1, include_prompt=True)

    return run


def nanogpt_run(path: Path, n_layer: int, n_head: int, n_embd: int, V: int, idx: torch.Tensor) -> Run:
    """The ``generate`` of a nanoGPT checkout; it samples, from the likeliest one."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    if spec is None or spec.loader is None or not (path / "model.py").is_file():
        sys.exit(f"no model.py in {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=512, vocab_size=V, n_layer=n_layer, n_head=n_head, n_embd=n_embd, dropout=0.0, bias=True
    )
    model = module.GPT(config).eval()
    return lambda: model.generate(idx, NEW, top_k=1)


def peers(setting: tuple[int, ...], nanogpt: Path | None) -> dict[str, Run]:
    """One run of each on the same prompt."""
    n_layer, n_head, n_embd, batch, V = setting
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=512, vocab_size=V,
        initializer_range=0.2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).eval()
    ours = from_hf(theirs)
    idx = torch.randint(0, V, (batch, 16))
    every = torch.ones_like(idx)  # or transformers takes the id that it pads with for padding
    how = {"attention_mask": every, "max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    runs: dict[str, Run] = {
        "ai_learning": lambda: generate(ours, idx, NEW, temperature=0),
        "transformers": lambda: theirs.generate(idx, **how),
    }
    if not torch.equal(runs["ai_learning"](), runs["transformers"]()):
        sys.exit("not the same tokens")
    lit = litgpt_run(n_layer, n_head, n_embd, V, idx)
    if lit is not None:
        runs["LitGPT"] = lit
    if nanogpt is not None:
        runs["nanoGPT"] = nanogpt_run(nanogpt, n_layer, n_head, n_embd, V, idx)
    return runs


def compare(nanogpt: Path | None) -> None:
    """The table beside the peers."""
    names = ("transformers", "LitGPT", "nanoGPT")
    print(f"Generation of {NEW} tokens, ms a step, and how many times ours each takes ({hardware()})\n")
    print("| setting | ai_learning | transformers | LitGPT | nanoGPT |\n|---|---|---|---|---|")
    for name, setting in SETTINGS.items():
        seconds = interleaved(peers(setting, nanogpt), rounds=5, warmup=1)
        ms = {who: 1000 * s / NEW for who, s in seconds.items()}
        cells = [f"{ms[w]:.2f} ({ms[w] / ms['ai_learning']:.2f} ×)" if w in ms else "–" for w in names]
        print(f"| {name} | {ms['ai_learning']:.2f} | {' | '.join(cells)} |", flush=True)
    print("\n–: not measured (LitGPT generates one prompt at a time; nanoGPT is not on PyPI).\n")


def compare_int8() -> None:
    """fp32 beside int8 at GPT-2's smallest size, random weights: speed does not depend on their values."""
    torch.manual_seed(0)
    full = GPT(preset("gpt2")).eval()
    small = GPT(preset("gpt2")).eval()
    small.load_state_dict(full.state_dict())
    quantize_int8(small)
    idx = torch.randint(0, 50257, (1, 16))
    n = 32
    runs = {
        "fp32": lambda: generate(full, idx, n, temperature=0),
        "int8": lambda: generate(small, idx, n, temperature=0),
    }
    seconds = interleaved(runs, rounds=3, warmup=1)
    ms = {who: 1000 * s / n for who, s in seconds.items()}
    print("GPT-2 124M, batch 1, ms a token\n\n| fp32 | int8 | ratio |\n|---|---|---|")
    print(f"| {ms['fp32']:.1f} | {ms['int8']:.1f} | {ms['fp32'] / ms['int8']:.2f} × |\n", flush=True)


def compare_draft(checkpoint: Path, draft: Path) -> None:
    """Speculative decoding with two trained models of one tokenizer."""
    from ai_learning.checkpoint import open_model

    model, tokenizer, _ = open_model(checkpoint)
    guesser, _, _ = open_model(draft)
    assert tokenizer is not None
    idx = torch.tensor([tokenizer.encode("The ")])
    n = min(model.config.block_size, guesser.config.block_size) - idx.size(1)
    stats = Acceptance()
    greedy = Sampling(temperature=0)

    def guess() -> list[int]:
        return list(speculative_stream(model, guesser, idx, n, greedy, acceptance=stats))

    def plain() -> torch.Tensor:
        return generate(model, idx, n, temperature=0)

    if guess() != plain()[0, idx.size(1) :].tolist():
        sys.exit("not the same tokens")
    seconds = interleaved({"plain": plain, "with a draft": guess}, rounds=5, warmup=1)
    ms = {who: 1000 * s / n for who, s in seconds.items()}
    sizes = f"{model.n_params() / 1e6:.2f} M guided by {guesser.n_params() / 1e6:.2f} M parameters"
    print(f"Speculative decoding, {sizes}, {stats.rate:.0%} of the guesses kept, ms a token\n")
    print("| plain | with a draft | ratio |\n|---|---|---|")
    plain_ms, draft_ms = ms["plain"], ms["with a draft"]
    print(f"| {plain_ms:.2f} | {draft_ms:.2f} | {plain_ms / draft_ms:.2f} × |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--checkpoint", type=Path, help="a trained model, for the draft's table")
    parser.add_argument("--draft", type=Path, help="a smaller one of the same tokenizer")
    options = parser.parse_args()
    compare(options.nanogpt)
    compare_int8()
    if options.checkpoint and options.draft:
        compare_draft(options.checkpoint, options.draft)


if __name__ == "__main__":
    main()
