"""Day 3: what GPT-2 is made of: embeddings, how many parameters, how the weights begin."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model import GPT
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form, same_gradients

# --- day3.embed ---------------------------------------------------------------------------------------------


def _embed(idx: Tensor, wte: Tensor, wpe: Tensor, start: int = 0) -> Tensor:
    return wte[idx] + wpe[start : start + idx.size(1)]


def _embed_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(3)
    cases = []
    for B, T, V, block, C, start in [
        (2, 3, 7, 6, 4, 0),
        (1, 1, 5, 4, 3, 3),
        (3, 3, 4, 9, 2, 4),
        (2, 5, 9, 5, 5, 0),
    ]:
        cases.append(
            (
                torch.randint(0, V, (B, T), generator=generator),
                torch.randn(V, C, generator=generator, dtype=torch.float64),
                torch.randn(block, C, generator=generator, dtype=torch.float64),
                start,
            )
        )
    return cases


def _embed_order(fn: Any) -> None:
    idx, wte, wpe, _ = _embed_cases()[3]
    twice = torch.full_like(idx, 2)
    out = fn(twice, wte, wpe, 0)
    if torch.allclose(out[:, 0], out[:, 1]):
        raise Wrong(
            "positions missing: the same token at two places must give two vectors, or order is lost",
            "token 2 gives the same vector at positions 0 and 1",
        )


EMBED = Exercise(
    name="day3.embed",
    title="token embedding plus position embedding",
    stub='''
def embed(idx, wte, wpe, start=0):
    """What enters the first block.

    idx is (B, T) ids; wte is (V, C), a row a token; wpe is (block_size, C), a row a position.
    ``start`` is the position of the first token (not 0 when a cache holds what came before).
    Returns (B, T, C).
    """
    raise NotImplementedError
''',
    solution=GPT.hidden,
    reference=_embed,
    steps=(
        same_form(_embed, _embed_cases, "(B, T, C)"),
        leaves_inputs(_embed_cases),
        Step("tells one place from another", _embed_order),
        equals(_embed, _embed_cases),
        same_gradients(_embed, _embed_cases),
    ),
    hints=(
        "An embedding is a table: indexing it with ids gives rows.",
        "wte[idx] is (B, T, C); the positions are start … start + T − 1, the same for every row of the batch.",
        "wte[idx] + wpe[start : start + idx.size(1)] (the (T, C) part broadcasts over B).",
    ),
    cases=_embed_cases,
    mutants=(
        Mutant("positions missing", "attention alone cannot tell order", lambda i, t, p, s=0: t[i]),
        Mutant(
            "tokens missing",
            "add the token's row",
            lambda i, t, p, s=0: p[s : s + i.size(1)].expand(*i.shape, -1),
        ),
        Mutant(
            "start is not used",
            "with a cache the first position is not 0",
            lambda i, t, p, s=0: t[i] + p[: i.size(1)],
        ),
        Mutant("one position for all", "each token has its own row of wpe", lambda i, t, p, s=0: t[i] + p[s]),
        Mutant(
            "position by id",
            "wpe is indexed by place, not by token",
            lambda i, t, p, s=0: t[i] + p[i % len(p)],
        ),
        Mutant(
            "last positions",
            "count from start, not from the end of the table",
            lambda i, t, p, s=0: t[i] + p[-i.size(1) :],
        ),
        Mutant(
            "off by one",
            "the first position is row `start`",
            lambda i, t, p, s=0: t[i] + p[(torch.arange(i.size(1)) + s + 1) % len(p)],
        ),
        Mutant("multiplied", "the two are added", lambda i, t, p, s=0: t[i] * p[s : s + i.size(1)]),
        Mutant(
            "scaled by √C",
            "the original transformer scales the token embedding; GPT does not",
            lambda i, t, p, s=0: t[i] * math.sqrt(t.size(1)) + p[s : s + i.size(1)],
        ),
        Mutant(
            "positions run over the batch",
            "a row a position t, not a row a batch entry",
            lambda i, t, p, s=0: t[i] + p[s : s + i.size(0)][:, None] if len(p) >= s + i.size(0) else t[i],
        ),
    ),
    alternatives=(
        lambda i, t, p, s=0: F.embedding(i, t) + F.embedding(torch.arange(s, s + i.size(1)), p),
        lambda i, t, p, s=0: F.one_hot(i, len(t)).to(t.dtype) @ t + p.narrow(0, s, i.size(1)).unsqueeze(0),
    ),
)

# --- day3.count_parameters ----------------------------------------------------------------------------------


def _count(
    vocab_size: int,
    block_size: int,
    n_layer: int,
    n_embd: int,
    *,
    attention: int = 4,
    mlp: int = 8,
    linear_bias: int = 9,
    norms: int = 4,
    final_norm: int = 2,
    positions: int = 1,
    heads: int = 0,
    layers: int = 1,
) -> int:
    C = n_embd
    block = attention * C * C + mlp * C * C + linear_bias * C + norms * C
    return (
        (1 + heads) * vocab_size * C
        + positions * block_size * C
        + (n_layer if layers else 1) * block
        + final_norm * C
    )


def _count_reference(vocab_size: int, block_size: int, n_layer: int, n_embd: int) -> int:
    return _count(vocab_size, block_size, n_layer, n_embd)


def _count_cases() -> list[tuple[Any, ...]]:
    return [(50257, 1024, 12, 768), (50257, 1024, 24, 1024), (65, 64, 4, 128), (258, 1, 1, 8), (11, 7, 3, 2)]


def _count_published(fn: Any) -> None:
    got = fn(50257, 1024, 12, 768)
    if got != 124_439_808:
        raise Wrong(
            "another number than GPT-2's: its smallest model has 124,439,808 parameters",
            f"{got:,}, which is {got - 124_439_808:+,}",
        )


def _miscount(**changes: int) -> Any:
    return lambda v, b, n, c: _count(v, b, n, c, **changes)


COUNT = Exercise(
    name="day3.count_parameters",
    title="how many parameters GPT-2 has",
    stub='''
def count_parameters(vocab_size, block_size, n_layer, n_embd):
    """Parameters of a GPT-2: biases everywhere but in the output head, which shares the token embedding.

    A block has two layer norms, c_attn (C → 3C), c_proj (C → C), c_fc (C → 4C) and c_proj (4C → C).
    """
    raise NotImplementedError
''',
    solution=GPT,
    reference=_count_reference,
    steps=(
        same_form(_count_reference, _count_cases, "an int"),
        Step("gives GPT-2 small its 124,439,808", _count_published),
        equals(_count_reference, _count_cases, 0, "is right for other shapes"),
    ),
    hints=(
        "Count one block first, with C = n_embd: weights, biases, and the gain and shift of each layer norm.",
        "A block: 3C² + 3C, C² + C, 4C² + 4C, 4C² + C, and 2 · 2C: together 12C² + 13C.",
        "vocab_size·C + block_size·C + n_layer·(12C² + 13C) + 2C",
    ),
    cases=_count_cases,
    mutants=(
        Mutant(
            "the head is counted", "it shares the token embedding's weight: count it once", _miscount(heads=1)
        ),
        Mutant("positions missing", "wpe has block_size rows", _miscount(positions=0)),
        Mutant("biases missing", "the four linear layers have 3C + C + 4C + C", _miscount(linear_bias=0)),
        Mutant("norms missing", "two layer norms a block, each gain and shift", _miscount(norms=0)),
        Mutant("one norm a block", "there are two, each with gain and shift", _miscount(norms=2)),
        Mutant("final norm missing", "GPT-2 ends in a layer norm", _miscount(final_norm=0)),
        Mutant(
            "output projection missing", "attention has c_proj besides q, k and v", _miscount(attention=3)
        ),
        Mutant("half an MLP", "it widens (C → 4C) and narrows (4C → C)", _miscount(mlp=4)),
        Mutant("one block", "there are n_layer of them", _miscount(layers=0)),
        Mutant("one bias a layer of C", "c_attn's bias is 3C and c_fc's 4C", _miscount(linear_bias=4)),
    ),
    alternatives=(
        lambda v, b, n, c: v * c + b * c + n * (12 * c**2 + 13 * c) + 2 * c,
        lambda v, b, n, c: (
            sum(
                o * i + o
                for _ in range(n)
                for o, i in ((3 * c, c), (c, c), (4 * c, c), (c, 4 * c), (c, 1), (c, 1))
            )
            + (v + b + 2) * c
        ),
    ),
)

# --- day3.init_std ------------------------------------------------------------------------------------------


def _init_std(name: str, n_layer: int) -> float:
    return 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02


def _init_cases() -> list[tuple[Any, ...]]:
    names = (
        "wte.weight",
        "wpe.weight",
        "h.0.attn.c_attn.weight",
        "h.1.attn.c_proj.weight",
        "h.2.mlp.c_fc.weight",
        "h.3.mlp.c_proj.weight",
    )
    return [(name, n_layer) for n_layer in (1, 12, 48) for name in names]


def _stream_grows(fn: Any) -> None:
    for n_layer in (2, 12, 48):
        total = sum(
            fn(f"h.{i}.{part}.c_proj.weight", n_layer) ** 2
            for i in range(n_layer)
            for part in ("attn", "mlp")
        )
        if abs(total / 0.02**2 - 1) > 1e-6:
            raise Wrong(
                "the stream grows with depth: 2·n_layer branches add up, so each one's variance is that much smaller",
                f"with {n_layer} layers the branches' variances add up to {total / 0.02**2:.2f} × 0.02²",
            )


INIT_STD = Exercise(
    name="day3.init_std",
    title="how large the weights begin",
    stub='''
def init_std(name, n_layer):
    """Standard deviation of a weight's first values, by its name ("h.3.mlp.c_proj.weight").

    GPT-2 (section 2.3): 0.02, but the last layer of each residual branch (c_proj) is scaled by 1/√N,
    N the number of residual branches.
    """
    raise NotImplementedError
''',
    solution=GPT.init_weights,
    reference=_init_std,
    steps=(
        same_form(_init_std, _init_cases, "a float"),
        Step("keeps the stream's variance whatever the depth", _stream_grows),
        equals(_init_std, _init_cases, 1e-9, "is right for every weight"),
    ),
    hints=(
        "Each block adds two branches to the stream: how many in all?",
        "Only weights called c_proj end a branch; both attention and the MLP have one.",
        '0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02',
    ),
    cases=_init_cases,
    tolerance=1e-9,
    mutants=(
        Mutant("not scaled with depth", "c_proj begins smaller the deeper the model", lambda n, l: 0.02),
        Mutant(
            "√n_layer",
            "there are two branches a block: √(2·n_layer)",
            lambda n, l: 0.02 / math.sqrt(l) if "c_proj" in n else 0.02,
        ),
        Mutant(
            "no root",
            "variances add up, so the deviation goes with the root",
            lambda n, l: 0.02 / (2 * l) if "c_proj" in n else 0.02,
        ),
        Mutant("everything scaled", "only what ends a branch", lambda n, l: 0.02 / math.sqrt(2 * l)),
        Mutant(
            "only attention's c_proj",
            "the MLP ends in a c_proj too",
            lambda n, l: 0.02 / math.sqrt(2 * l) if "attn.c_proj" in n else 0.02,
        ),
        Mutant(
            "only the MLP's c_proj",
            "attention ends in a c_proj too",
            lambda n, l: 0.02 / math.sqrt(2 * l) if "mlp.c_proj" in n else 0.02,
        ),
        Mutant(
            "the wrong layer",
            "c_fc begins the branch; c_proj ends it",
            lambda n, l: 0.02 / math.sqrt(2 * l) if "c_fc" in n else 0.02,
        ),
        Mutant(
            "multiplied",
            "divide by the root",
            lambda n, l: 0.02 * math.sqrt(2 * l) if "c_proj" in n else 0.02,
        ),
        Mutant(
            "variance for deviation",
            "0.02 is the standard deviation",
            lambda n, l: 0.02**2 / (2 * l) if "c_proj" in n else 0.02**2,
        ),
    ),
    alternatives=(
        lambda name, n_layer: 0.02 * ((2 * n_layer) ** -0.5 if ".c_proj." in name else 1.0),
        lambda name, n_layer: 0.02 / math.sqrt({"c_proj": 2 * n_layer}.get(name.split(".")[-2], 1)),
    ),
)

EXERCISES = (EMBED, COUNT, INIT_STD)
