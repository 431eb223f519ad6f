"""Greedy generation against transformers' cached ``generate``: same weights, identical tokens, interleaved.

python benchmarks/generation.py
"""

import sys

import torch
from common import hardware, interleaved
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.generate import generate
from ai_learning.pretrained import from_hf

# name: layers, heads, width, batch
SETTINGS = {"6/6/384, batch 1": (6, 6, 384, 1), "4/4/128, batch 16": (4, 4, 128, 16)}
NEW = 256


def main() -> None:
    print(f"Generation of {NEW} tokens, ms a step ({hardware()})\n")
    print("| setting | ai_learning | transformers | ratio |\n|---|---|---|---|")
    for name, (n_layer, n_head, n_embd, batch) in SETTINGS.items():
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=512, vocab_size=50257,
            initializer_range=0.2, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        theirs = GPT2LMHeadModel(config).eval()
        ours = from_hf(theirs)
        idx = torch.randint(0, 50257, (batch, 16))

        def run_ours(ours=ours, idx=idx) -> torch.Tensor:
            return generate(ours, idx, NEW, temperature=0)

        def run_theirs(theirs=theirs, idx=idx) -> torch.Tensor:
            return theirs.generate(idx, max_new_tokens=NEW, do_sample=False, pad_token_id=0)

        if not torch.equal(run_ours(), run_theirs()):
            sys.exit("not the same tokens")
        seconds = interleaved({"ai_learning": run_ours, "transformers": run_theirs}, rounds=5, warmup=1)
        ms = {who: 1000 * s / NEW for who, s in seconds.items()}
        ratio = ms["transformers"] / ms["ai_learning"]
        print(f"| {name} | {ms['ai_learning']:.2f} | {ms['transformers']:.2f} | {ratio:.2f} × |", flush=True)


if __name__ == "__main__":
    main()
