"""Day 9: low-rank updates: the forward pass, merging, and where they begin."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...adapters import LoRAConfig, merge_lora
from ...adapters.layers import LoRALayer
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form, same_gradients


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- day9.lora_forward --------------------------------------------------------------------------------------


def _forward(x: Tensor, weight: Tensor, bias: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return x @ weight.T + bias + alpha / A.size(0) * (x @ A.T) @ B.T


def _forward_cases() -> list[tuple[Any, ...]]:
    cases = []
    for seed, (batch, T, n_in, n_out, r, alpha) in enumerate(
        [(2, 3, 5, 4, 2, 16.0), (1, 1, 6, 6, 3, 3.0), (2, 2, 4, 7, 1, 0.5), (1, 3, 4, 4, 4, 8.0)]
    ):
        s = 10 * seed
        cases.append(
            (
                _randn(s, batch, T, n_in),
                _randn(s + 1, n_out, n_in),
                _randn(s + 2, n_out),
                _randn(s + 3, r, n_in),
                _randn(s + 4, n_out, r),
                alpha,
            )
        )
    return cases


def _begins_as_base(fn: Any) -> None:
    x, weight, bias, A, B, alpha = _forward_cases()[0]
    if not torch.allclose(fn(x, weight, bias, A, torch.zeros_like(B), alpha), F.linear(x, weight, bias)):
        raise Wrong(
            "with B = 0 the layer must be the base layer: that is how training begins",
            "it gives something else",
        )


def _alpha_scales(fn: Any) -> None:
    x, weight, bias, A, B, alpha = _forward_cases()[0]
    base = F.linear(x, weight, bias)
    one, two = fn(x, weight, bias, A, B, alpha) - base, fn(x, weight, bias, A, B, 2 * alpha) - base
    if not torch.allclose(two, 2 * one):
        raise Wrong("alpha is not the scale: twice alpha, twice the update", "it did not double")


LORA_FORWARD = Exercise(
    name="day9.lora_forward",
    title="a frozen layer and a thin detour",
    stub='''
def lora_forward(x, weight, bias, A, B, alpha):
    """A linear layer with a LoRA update (Hu et al. 2021, equation 3).

    x is (…, n_in), weight (n_out, n_in), bias (n_out,), A (r, n_in), B (n_out, r). The update is scaled by
    alpha / r. Returns (…, n_out).
    """
    raise NotImplementedError
''',
    solution=LoRALayer.forward,
    reference=_forward,
    steps=(
        same_form(_forward, _forward_cases, "(…, n_out)"),
        leaves_inputs(_forward_cases),
        Step("is the base layer while B is zero", _begins_as_base),
        Step("scales with alpha", _alpha_scales),
        equals(_forward, _forward_cases),
        same_gradients(_forward, _forward_cases),
    ),
    hints=(
        "Two paths from x: through weight, and through A (down to r numbers) then B (up again).",
        "x @ A.T is (…, r); that @ B.T is (…, n_out). r is A.size(0).",
        "F.linear(x, weight, bias) + alpha / A.size(0) * (x @ A.T) @ B.T",
    ),
    cases=_forward_cases,
    mutants=(
        Mutant(
            "not scaled",
            "multiply the update by alpha / r",
            lambda x, w, b, A, B, a: F.linear(x, w, b) + x @ A.T @ B.T,
        ),
        Mutant(
            "not divided by r",
            "alpha / r: so that r can change without a new learning rate",
            lambda x, w, b, A, B, a: F.linear(x, w, b) + a * x @ A.T @ B.T,
        ),
        Mutant(
            "rsLoRA's scale",
            "alpha / √r is another method",
            lambda x, w, b, A, B, a: F.linear(x, w, b) + a / math.sqrt(len(A)) * x @ A.T @ B.T,
        ),
        Mutant(
            "r / alpha", "alpha / r", lambda x, w, b, A, B, a: F.linear(x, w, b) + len(A) / a * x @ A.T @ B.T
        ),
        Mutant(
            "the base is missing",
            "the update is added to the frozen layer",
            lambda x, w, b, A, B, a: a / len(A) * x @ A.T @ B.T,
        ),
        Mutant(
            "the bias is missing",
            "the frozen layer keeps its bias",
            lambda x, w, b, A, B, a: x @ w.T + a / len(A) * x @ A.T @ B.T,
        ),
        Mutant(
            "the bias is scaled too",
            "only the update",
            lambda x, w, b, A, B, a: x @ w.T + a / len(A) * (x @ A.T @ B.T + b),
        ),
        Mutant(
            "everything is scaled",
            "only the update",
            lambda x, w, b, A, B, a: a / len(A) * (F.linear(x, w, b) + x @ A.T @ B.T),
        ),
        Mutant(
            "r taken from the wrong axis",
            "A is (r, n_in): r is A.size(0)",
            lambda x, w, b, A, B, a: F.linear(x, w, b) + a / A.size(1) * x @ A.T @ B.T,
        ),
        Mutant(
            "a bend in between",
            "the update is linear: it can be merged",
            lambda x, w, b, A, B, a: F.linear(x, w, b) + a / len(A) * F.relu(x @ A.T) @ B.T,
        ),
        Mutant(
            "wrong gradient",
            "A learns through x: nothing in the detour is detached",
            lambda x, w, b, A, B, a: _forward(x, w, b, A.detach(), B, a),
        ),
    ),
    alternatives=(
        lambda x, w, b, A, B, a: x @ (w + a / len(A) * B @ A).T + b,
        lambda x, w, b, A, B, a: F.linear(x, w, b) + F.linear(F.linear(x * (a / A.shape[0]), A), B),
    ),
)

# --- day9.lora_merge ----------------------------------------------------------------------------------------


def _merge(weight: Tensor, A: Tensor, B: Tensor, alpha: float, fan_in_fan_out: bool) -> Tensor:
    delta = alpha / A.size(0) * B @ A
    return weight + (delta.T if fan_in_fan_out else delta)


def _merge_cases() -> list[tuple[Any, ...]]:
    return [
        (_randn(1, 4, 6), _randn(2, 2, 6), _randn(3, 4, 2), 8.0, False),
        (_randn(4, 6, 4), _randn(5, 3, 6), _randn(6, 4, 3), 1.0, True),
        (_randn(7, 5, 5), _randn(8, 2, 5), _randn(9, 5, 2), 4.0, True),
        (_randn(7, 5, 5), _randn(8, 2, 5), _randn(9, 5, 2), 4.0, False),
    ]


def _merge_same_output(fn: Any) -> None:
    for weight, A, B, alpha, turned in _merge_cases():
        merged = fn(weight.clone(), A, B, alpha, turned)
        x = _randn(11, 3, A.size(1))
        apply = (lambda y, w: y @ w) if turned else (lambda y, w: y @ w.T)
        off = (apply(x, merged) - apply(x, weight) - alpha / len(A) * x @ A.T @ B.T).abs().max().item()
        if off > 1e-9:
            raise Wrong(
                "the merged layer answers differently from the unmerged one",
                f"by {off:.3f} with fan_in_fan_out={turned}",
            )


LORA_MERGE = Exercise(
    name="day9.lora_merge",
    title="the detour folded into the weight",
    stub='''
def lora_merge(weight, A, B, alpha, fan_in_fan_out):
    """A new weight that answers as the layer with its update does.

    weight is (n_out, n_in), or (n_in, n_out) when fan_in_fan_out (transformers' Conv1D); A is (r, n_in) and
    B (n_out, r). The frozen weight itself must stay as it is: unmerging means going back to it.
    """
    raise NotImplementedError
''',
    solution=merge_lora,
    reference=_merge,
    steps=(
        same_form(_merge, _merge_cases, "the weight's shape"),
        leaves_inputs(_merge_cases),
        Step("answers as the unmerged layer", _merge_same_output),
        equals(_merge, _merge_cases),
    ),
    hints=(
        "x @ W.T + s · (x @ A.T) @ B.T = x @ (W + ?).T",
        "The update as a matrix is s · B @ A, (n_out, n_in).",
        "delta = alpha / A.size(0) * B @ A; weight + (delta.T if fan_in_fan_out else delta)",
    ),
    cases=_merge_cases,
    mutants=(
        Mutant(
            "not scaled",
            "alpha / r belongs to the update",
            lambda w, A, B, a, f: _merge(w, A, B, float(len(A)), f),
        ),
        Mutant("not divided by r", "alpha / r", lambda w, A, B, a, f: _merge(w, A, B, a * len(A), f)),
        Mutant(
            "fan_in_fan_out is not used",
            "Conv1D keeps (in, out): turn the update",
            lambda w, A, B, a, f: (
                w + a / len(A) * ((B @ A) if w.shape == (B.size(0), A.size(1)) else (B @ A).T)
            ),
        ),
        Mutant(
            "turned the wrong way",
            "only Conv1D's weight is (in, out)",
            lambda w, A, B, a, f: (
                w
                + a
                / len(A)
                * (
                    (B @ A).T
                    if w.shape != (B.size(0), A.size(1)) or (not f and w.size(0) == w.size(1))
                    else (B @ A)
                )
            ),
        ),
        Mutant(
            "subtracted",
            "merging adds; subtracting is how others unmerge",
            lambda w, A, B, a, f: 2 * w - _merge(w, A, B, a, f),
        ),
        Mutant(
            "replaced",
            "the update is added to the weight",
            lambda w, A, B, a, f: _merge(torch.zeros_like(w), A, B, a, f),
        ),
        Mutant(
            "the weight is scaled",
            "only the update",
            lambda w, A, B, a, f: a / len(A) * _merge(w, A, B, float(len(A)), f),
        ),
        Mutant(
            "rsLoRA's scale",
            "alpha / √r is another method",
            lambda w, A, B, a, f: _merge(w, A, B, a * math.sqrt(len(A)), f),
        ),
        Mutant(
            "input mutated",
            "keep the frozen weight: unmerging by subtraction drifts",
            lambda w, A, B, a, f: w.copy_(_merge(w, A, B, a, f)),
        ),
        Mutant("merged twice", "once", lambda w, A, B, a, f: _merge(w, A, B, 2 * a, f)),
    ),
    alternatives=(
        lambda w, A, B, a, f: torch.einsum("or,ri->io" if f else "or,ri->oi", B, A) * a / A.size(0) + w,
        lambda w, A, B, a, f: torch.addmm(w, *((A.T, B.T) if f else (B, A)), alpha=a / len(A)),
    ),
)

# --- day9.lora_parameters -----------------------------------------------------------------------------------


def _trainable(shapes: list[tuple[int, int]], r: int) -> int:
    return sum(r * (n_out + n_in) for n_out, n_in in shapes)


def _trainable_cases() -> list[tuple[Any, ...]]:
    gpt2 = [(3 * 768, 768), (768, 768), (4 * 768, 768), (768, 4 * 768)] * 12
    return [(gpt2, 8), ([(5, 3)], 2), ([(4, 4), (7, 2)], 1), ([], 4), ([(2, 9), (5, 3)], 6)]


LORA_PARAMETERS = Exercise(
    name="day9.lora_parameters",
    title="how many numbers LoRA trains",
    stub='''
def lora_parameters(shapes, r):
    """Trainable parameters when every layer of ``shapes``, pairs (n_out, n_in), gets an update of rank r."""
    raise NotImplementedError
''',
    solution=LoRAConfig,
    reference=_trainable,
    steps=(
        same_form(_trainable, _trainable_cases, "an int"),
        equals(_trainable, _trainable_cases, 0, "is right for GPT-2 and for odd shapes"),
    ),
    hints=(
        "What are the shapes of A and B?",
        "A is (r, n_in), B is (n_out, r).",
        "sum(r * (n_in + n_out) for n_out, n_in in shapes)",
    ),
    cases=_trainable_cases,
    mutants=(
        Mutant(
            "the frozen weights are counted",
            "only A and B are trained",
            lambda s, r: sum(o * i + r * (o + i) for o, i in s),
        ),
        Mutant(
            "the merged matrix is counted",
            "B @ A has n_out · n_in entries, but r · (n_in + n_out) numbers",
            lambda s, r: sum(o * i for o, i in s),
        ),
        Mutant("A only", "B is trained too", lambda s, r: sum(r * i for _, i in s)),
        Mutant("B only", "A is trained too", lambda s, r: sum(r * o for o, _ in s)),
        Mutant(
            "r is not used",
            "each of the r directions costs n_in + n_out",
            lambda s, r: sum(o + i for o, i in s),
        ),
        Mutant(
            "r cut to the layer",
            "A has r rows and B r columns, also where that is more than the layer's own rank",
            lambda s, r: sum(min(r, o, i) * (o + i) for o, i in s),
        ),
        Mutant(
            "a core of r × r",
            "there is no matrix between A and B",
            lambda s, r: sum(r * (o + i) + r * r for o, i in s),
        ),
        Mutant(
            "A and B of the same size",
            "A has n_in columns, B has n_out rows",
            lambda s, r: sum(2 * r * i for _, i in s),
        ),
        Mutant("biases added", "A and B have none", lambda s, r: sum(r * (o + i) + o + r for o, i in s)),
        Mutant("first layer only", "every layer of the list", lambda s, r: r * sum(s[0]) if s else 0),
    ),
    alternatives=(
        lambda shapes, r: r * sum(map(sum, shapes)),
        lambda shapes, r: sum(torch.empty(r, i).numel() + torch.empty(o, r).numel() for o, i in shapes),
    ),
)

EXERCISES = (LORA_FORWARD, LORA_MERGE, LORA_PARAMETERS)
