"""What the processes of ``test_distributed.py`` do; started by torchrun with a folder as argument."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from ai_learning.batches import TokenBatches
from ai_learning.distributed import Team, leave, sum_over_processes, world
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.train import Interrupted, TrainConfig, train

MODEL = GPTConfig(vocab_size=32, block_size=16, n_layer=2, n_head=2, n_embd=32)
TOKENS = np.random.default_rng(0).integers(0, 32, 2000).astype(np.uint16)
HOW = TrainConfig(
    steps=8, batch_size=4, grad_accum=2, warmup=2, eval_every=4, save_every=3, log_every=1, device="cpu"
)
STOP_AFTER = 4


def run(out: Path, config: TrainConfig = HOW, *, stop_after: int = 0, resume: bool = False) -> GPT:
    """The same training on any number of processes; with ``stop_after`` the last one gets SIGTERM there."""
    here = world()
    torch.manual_seed(config.seed)
    model = GPT(MODEL)
    calls = 0

    def loss(model, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += model.training
        if stop_after and calls == 2 * stop_after and model.training and here.rank == here.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_token_loss(model, *batch)

    def evaluate(model) -> dict:  # type: ignore[no-untyped-def]
        x, y = TokenBatches(TOKENS, 16, 4, 99)(0)
        share = float(next_token_loss(model, x[here.rank :: here.size], y[here.rank :: here.size]))
        return {"val_loss": float(sum_over_processes(torch.tensor(share, dtype=torch.float64)) / here.size)}

    try:
        train(
            model,
            loss,
            TokenBatches(TOKENS, 16, config.batch_size, config.seed, here.rank, here.size),
            config,
            out,
            evaluate=evaluate,
            resume=resume,
        )
    except Interrupted:
        if not stop_after:
            raise
    return model


def gradients(kind: str) -> dict[str, list[float]]:
    """Of the first matrix, after a batch that is not the last one and after the last: ranks side by side."""
    here = world()
    torch.manual_seed(0)
    model = GPT(MODEL)
    batches = TokenBatches(TOKENS, 16, 4, 0, here.rank, here.size)
    found = {}
    with Team(kind, torch.device("cpu")) as team:
        root = team.wrap(model)
        for number, last in enumerate((False, True)):
            with team.synchronised(root, last):
                (root(lambda model, batch: next_token_loss(model, *batch), batches(number)) / 2).backward()
            grad = model.h[0].attn.c_proj.weight.grad
            found[f"last={last}"] = None if grad is None else team.whole({"grad": grad})["grad"]
    if kind == "fsdp":
        return {"before": [found["last=False"] is None], "after": found["last=True"]}
    both = [torch.zeros_like(found["last=True"]) for _ in range(2)]
    # DDP keeps gradients as views of its buckets: the first look was overwritten by the second
    dist.all_gather(both, found["last=True"].contiguous())
    return {"after": found["last=True"], "same": [torch.equal(both[0], both[1])]}


def unsynchronised_differ() -> bool:
    """Whether DDP left each process its own gradients in a batch that is not the last."""
    here = world()
    torch.manual_seed(0)
    model = GPT(MODEL)
    with Team("ddp", torch.device("cpu")) as team:
        root = team.wrap(model)
        batch = TokenBatches(TOKENS, 16, 4, 0, here.rank, here.size)(0)
        with team.synchronised(root, last=False):
            root(lambda model, batch: next_token_loss(model, *batch), batch).backward()
        grad = model.h[0].attn.c_proj.weight.grad
        both = [torch.zeros_like(grad) for _ in range(2)]
        dist.all_gather(both, grad.contiguous())
    return not torch.allclose(both[0], both[1])


def main(home: Path) -> None:
    dist.init_process_group("gloo")
    for kind in ("ddp", "fsdp"):
        how = replace(HOW, parallel=kind)
        run(home / kind, how)
        run(home / f"{kind}-stopped", how, stop_after=STOP_AFTER)
        run(home / f"one-then-{kind}", how, resume=True)  # the test put a stopped run of one process there
        run(home / f"{kind}-recomputed", replace(how, checkpoint_activations=True))
        run(home / f"{kind}-bfloat16", replace(how, dtype="bfloat16"))
    run(home / "fsdp-then-ddp", replace(HOW, parallel="fsdp"), stop_after=STOP_AFTER)
    run(home / "fsdp-then-ddp", replace(HOW, parallel="ddp"), resume=True)
    found = {kind: gradients(kind) for kind in ("ddp", "fsdp")}
    found["unsynchronised differ"] = {"ddp": unsynchronised_differ()}
    if world().is_main:
        torch.save(found, home / "gradients.pt")
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
