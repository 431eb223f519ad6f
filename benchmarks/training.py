"""Training step against transformers' GPT-2: same architecture, weights, batch and optimizer, interleaved.

    python benchmarks/training.py

The first loss of both must agree to 1e-4, or the benchmark ends with an error: it compares equal work only.
"""

import sys
from collections.abc import Callable

import torch
from common import hardware, interleaved
from transformers import GPT2Config, GPT2LMHeadModel

from ai_learning.loss import next_token_loss
from ai_learning.optim import adamw
from ai_learning.pretrained import from_hf

# name: layers, heads, width, block, batch, vocabulary
SETTINGS = {
    "4/4/128, block 64, batch 12, vocabulary 65": (4, 4, 128, 64, 12, 65),
    "4/4/128, block 64, batch 12, vocabulary 50257": (4, 4, 128, 64, 12, 50257),
    "6/6/384, block 256, batch 4, vocabulary 50257": (6, 6, 384, 256, 4, 50257),
}

Step = Callable[[], None]


def trainers(n_layer: int, n_head: int, n_embd: int, T: int, B: int, V: int) -> dict[str, Step]:
    """One step of each, on the same fixed batch."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_positions=T, vocab_size=V,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None, use_cache=False,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).train()
    ours = from_hf(theirs).train()
    idx = torch.randint(0, V, (B, T + 1))
    x, y = idx[:, :-1], idx[:, 1:]
    losses = {
        "ai_learning": lambda: next_token_loss(ours, x, y),
        "transformers": lambda: torch.nn.functional.cross_entropy(
            theirs(x).logits.flatten(0, 1), y.flatten()
        ),
    }
    first = {name: loss().item() for name, loss in losses.items()}
    if abs(first["ai_learning"] - first["transformers"]) > 1e-4:
        sys.exit(f"not the same work: losses {first}")

    def trainer(loss: Callable[[], torch.Tensor], model: torch.nn.Module) -> Step:
        optimizer = adamw(model, 1e-4)

        def step() -> None:
            loss().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return {
        name: trainer(loss, {"ai_learning": ours, "transformers": theirs}[name])
        for name, loss in losses.items()
    }


def main() -> None:
    print(f"Training, tokens/s ({hardware()})\n")
    print("| setting | ai_learning | transformers | ratio |\n|---|---|---|---|")
    for name, setting in SETTINGS.items():
        seconds = interleaved(trainers(*setting), rounds=10)
        tokens = setting[3] * setting[4]
        rates = {who: tokens / s for who, s in seconds.items()}
        ratio = rates["ai_learning"] / rates["transformers"]
        print(
            f"| {name} | {rates['ai_learning']:,.0f} | {rates['transformers']:,.0f} | {ratio:.2f} × |",
            flush=True,
        )


if __name__ == "__main__":
    main()
