"""How much is learned from 1.5 million characters: recipes at one size, and what each change brings.

    python -m benchmarks.sample_efficiency --data tinyshakespeare.txt
    python -m benchmarks.sample_efficiency --data tinyshakespeare.txt --recipes record --ablations
    python -m benchmarks.sample_efficiency --data tinyshakespeare.txt --equal-time

The text is split as nanoGPT splits it (90 % training, 10 % held out), over its own characters; the loss is
that of the whole held-out part in windows of 64 characters, in nats a character.

``--equal-time`` asks another question: what does each recipe reach in the CPU seconds that nanoGPT's takes?
Each is timed over a hundred steps first, then trained for as many steps as fit, its schedule made for them.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ai_learning.optim import lr_factor
from ai_learning.recipes import RECIPES, Recipe

from .common import hardware


def characters(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the training and of the held-out part."""
    if not path.is_file():
        sys.exit(f"no text at {path}: give --data")
    text = path.read_bytes().decode()
    ids = {c: i for i, c in enumerate(sorted(set(text)))}
    if len(ids) != 65:
        sys.exit(f"{path} has {len(ids)} characters: the setting is tinyshakespeare's, which has 65")
    tokens = np.array([ids[c] for c in text])
    cut = int(0.9 * len(tokens))
    return tokens[:cut], tokens[cut:]


def windows(tokens: np.ndarray, starts: np.ndarray, T: int) -> torch.Tensor:
    """(len(starts), T + 1) int64."""
    return torch.from_numpy(np.stack([tokens[s : s + T + 1] for s in starts]))


def starts(recipe: Recipe, n_tokens: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Where the windows of each batch begin."""
    T, B = recipe.model.block_size, recipe.batch_size
    while True:
        if not recipe.every_token_once:
            yield generator.integers(0, n_tokens - T, size=B)
            continue
        places = np.arange(int(generator.integers(0, T)), n_tokens - T - 1, T)
        generator.shuffle(places)
        for i in range(0, len(places) - B + 1, B):
            yield places[i : i + B]


@torch.inference_mode()
def held_out_loss(model: torch.nn.Module, tokens: np.ndarray, T: int) -> float:
    """Nats a character of the whole held-out part."""
    total, count = 0.0, 0
    places = np.arange(0, len(tokens) - T - 1, T)
    for i in range(0, len(places), 64):
        w = windows(tokens, places[i : i + 64], T)
        total += F.cross_entropy(model(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten(), reduction="sum").item()
        count += w[:, 1:].numel()
    return total / count


def train(
    recipe: Recipe, training: np.ndarray, held_out: np.ndarray, seed: int, curve: Path | None = None
) -> dict[str, float]:
    """Train one model; its held-out loss, parameters and CPU seconds; the way there goes to ``curve``."""
    torch.manual_seed(seed)
    model = recipe.build()
    optimizers = recipe.optimizers(model)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    batches = starts(recipe, len(training), np.random.default_rng(seed))
    T = recipe.model.block_size
    began, paused = time.process_time(), 0.0
    for step in range(recipe.steps):
        factor = lr_factor(step, recipe.steps, recipe.schedule, recipe.warmup, recipe.lr_floor)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = peak * factor
        w = windows(training, next(batches), T)
        loss = F.cross_entropy(model(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if curve and (step + 1) % 200 == 0:
            now = time.process_time()
            row = {"step": step + 1, "seconds": round(now - began - paused, 2)}
            row["loss"] = held_out_loss(model.eval(), held_out, T)
            model.train()
            with curve.open("a") as file:
                file.write(json.dumps(row) + "\n")
            paused += time.process_time() - now
    seconds = time.process_time() - began - paused
    parameters = sum(p.numel() for p in model.parameters())
    return {"loss": held_out_loss(model.eval(), held_out, T), "parameters": parameters, "seconds": seconds}


def equal_time(chosen: dict[str, Recipe], seed: int, out: Path, training: Any, held_out: Any) -> None:
    """Each recipe in the CPU seconds that nanoGPT's takes for its steps; curves beside ``out``."""

    def seconds_a_step(recipe: Recipe) -> float:
        return train(replace(recipe, steps=100), training, held_out[:1000], seed)["seconds"] / 100

    nanogpt = replace(RECIPES["nanogpt"], steps=next(iter(chosen.values())).steps)
    chosen = {"nanogpt": nanogpt, **{name: r for name, r in chosen.items() if name != "nanogpt"}}
    cost = {name: seconds_a_step(recipe) for name, recipe in chosen.items()}
    budget = cost["nanogpt"] * chosen["nanogpt"].steps
    print(f"Held-out loss in the time of nanoGPT's recipe, {budget:.0f} CPU seconds ({hardware()})\n")
    print("| recipe | steps | CPU seconds | loss |\n|---|---|---|---|")
    for name, recipe in chosen.items():
        steps = max(1, int(budget / cost[name]))
        curve = out.with_name(f"{out.stem}_equal_time_{name}_{seed}.jsonl")
        curve.unlink(missing_ok=True)
        row = train(replace(recipe, steps=steps), training, held_out, seed, curve)
        print(f"| {name} | {steps} | {row['seconds']:.0f} | {row['loss']:.4f} |", flush=True)


def ablations() -> dict[str, Recipe]:
    """Each recipe with one thing taken away."""
    modern, record = replace(RECIPES["modern"], warmup=50), RECIPES["record"]  # modern's rows: on this base
    return {
        "modern, 50 steps of warm-up": modern,
        "modern, learned positions": replace(modern, model=replace(modern.model, positions="learned")),
        "modern without QK-norm": replace(modern, model=replace(modern.model, qk_norm=False)),
        "modern with GELU": replace(modern, model=replace(modern.model, activation="gelu_new")),
        "modern, projections not zero": replace(modern, zero_projections=False),
        "modern, one rate for all": replace(modern, embedding_lr=None),
        "record with AdamW only": replace(record, muon_lr=None, lr=5e-3, embedding_lr=5e-2),
        "record without a softcap": replace(record, softcap=math.inf),
        "record, random windows": replace(record, every_token_once=False),
        "record's recipe on modern's model": replace(record, record=False),
    }


def main() -> None:
    """Print the table; finished runs are kept in ``--out`` and not made again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="tinyshakespeare as one file")
    parser.add_argument(
        "--recipes",
        nargs="*",
        choices=RECIPES,
        default=list(RECIPES),
        metavar="NAME",
        help=f"of {', '.join(RECIPES)}",
    )
    parser.add_argument("--ablations", action="store_true", help="also each with one thing taken away")
    parser.add_argument("--equal-time", action="store_true", help="the time of nanoGPT's recipe for each")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="fewer, to try it out")
    parser.add_argument("--out", type=Path, default=Path("runs/sample_efficiency.jsonl"))
    options = parser.parse_args()
    chosen = {name: RECIPES[name] for name in options.recipes}
    chosen |= ablations() if options.ablations else {}
    training, held_out = characters(options.data)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.equal_time:
        steps = options.steps or RECIPES["nanogpt"].steps
        chosen = {name: replace(recipe, steps=steps) for name, recipe in chosen.items()}
        for seed in options.seeds:
            equal_time(chosen, seed, options.out, training, held_out)
        return
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {(row["name"], row["seed"], row["steps"]): row for row in map(json.loads, lines)}
    print(f"Held-out loss, nats a character, mean ± spread of seeds {options.seeds} ({hardware()})\n")
    print("| recipe | loss | parameters | CPU seconds |\n|---|---|---|---|")
    for name, recipe in chosen.items():
        recipe = replace(recipe, steps=options.steps or recipe.steps)
        rows = []
        for seed in options.seeds:
            key = (name, seed, recipe.steps)
            if key not in done:
                row = {
                    "name": name,
                    "seed": seed,
                    "steps": recipe.steps,
                    **train(recipe, training, held_out, seed),
                }
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                done[key] = row
            rows.append(done[key])
        losses = [row["loss"] for row in rows]
        spread = float(np.std(losses, ddof=1)) if len(losses) > 1 else 0.0  # NaN where a run diverged
        seconds = statistics.mean(row["seconds"] for row in rows)
        loss = f"{statistics.mean(losses):.4f} ± {spread:.4f}"
        print(f"| {name} | {loss} | {rows[0]['parameters']:,} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
