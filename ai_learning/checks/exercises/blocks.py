"""Day 2: layer norm, GELU, the MLP and the block of GPT-1."""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...model.gpt import Block
from ...model.mlp import MLP, gelu_new
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form, same_gradients


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- day2.layer_norm ----------------------------------------------------------------------------------------


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.size(-1),), weight, bias, eps)


def _norm_cases() -> list[tuple[Any, ...]]:
    # A large eps: with 1e-5 its place under the root could not be seen.
    return [
        (3 * _randn(1, 2, 3, 5) + 1, 1 + _randn(2, 5), _randn(3, 5), 0.1),
        (_randn(4, 1, 1, 7), _randn(5, 7), _randn(6, 7), 1e-5),
        (_randn(7, 4, 2) - 5, torch.ones(2).double(), torch.zeros(2).double(), 0.5),
    ]


def _norm_with(
    axis: Any = -1,
    centre: bool = True,
    correction: int = 0,
    where: str = "inside",
    use_weight: bool = True,
    use_bias: bool = True,
    divide: bool = True,
    unbias_first: bool = False,
) -> Any:
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        mean = x.mean(axis, keepdim=True) if centre else torch.zeros_like(x[..., :1])
        variance = (
            x.var(axis, keepdim=True, correction=correction)
            if centre
            else x.square().mean(axis, keepdim=True)
        )
        y = x - mean
        if unbias_first:
            y = y + bias
        if divide:
            y = (
                y
                / {
                    "inside": (variance + eps).sqrt(),
                    "outside": variance.sqrt() + eps,
                    "none": variance + eps,
                }[where]
            )
        if use_weight:
            y = y * weight
        return y + bias if use_bias and not unbias_first else y

    return layer_norm


def _norm_statistics(fn: Any) -> None:
    x, _, _, eps = _norm_cases()[0]
    y = fn(x, torch.ones(5, dtype=x.dtype), torch.zeros(5, dtype=x.dtype), eps)
    if y.mean(-1).abs().max() > 1e-9:
        raise Wrong(
            "the mean is not taken away: with weight 1 and bias 0 every token's features have mean 0",
            f"largest mean {y.mean(-1).abs().max():.3f}",
        )
    moved = fn(x * 2 + 3, torch.ones(5, dtype=x.dtype), torch.zeros(5, dtype=x.dtype), 1e-12)
    still = fn(x, torch.ones(5, dtype=x.dtype), torch.zeros(5, dtype=x.dtype), 1e-12)
    if not torch.allclose(moved, still):
        raise Wrong(
            "not normalised: doubling and moving a token's features must change nothing",
            f"it moved the result by {(moved - still).abs().max():.3f}",
        )


def _norm_tokens_apart(fn: Any) -> None:
    x, weight, bias, eps = _norm_cases()[0]
    other = x.clone()
    other[0, 1:] = 9.0
    other[1] = -x[1] * 4 + 1
    if not torch.allclose(fn(x, weight, bias, eps)[0, 0], fn(other, weight, bias, eps)[0, 0]):
        raise Wrong(
            "wrong axis: every token is normalised by its own features alone (the last axis)",
            "changing other tokens changed token 0",
        )


def _norm_detached(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True).detach(), x.var(-1, keepdim=True, correction=0).detach()
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def _norm_mutating(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x -= x.mean(-1, keepdim=True)
    return _layer_norm(x, weight, bias, eps)


LAYER_NORM = Exercise(
    name="day2.layer_norm",
    title="every token to mean 0 and variance 1, then a learned gain and shift",
    stub='''
def layer_norm(x, weight, bias, eps):
    """Layer norm over the last axis (Ba et al. 2016).

    x is (…, C); weight and bias are (C,). The variance is the mean of squares (not divided by C − 1);
    eps is added to it before the square root.
    """
    raise NotImplementedError
''',
    solution=F.layer_norm,
    reference=_layer_norm,
    steps=(
        same_form(_layer_norm, _norm_cases, "the shape of x"),
        leaves_inputs(_norm_cases),
        Step("normalises each token by its own features", _norm_tokens_apart),
        Step("gives mean 0 whatever the scale was", _norm_statistics),
        equals(_layer_norm, _norm_cases),
        same_gradients(_layer_norm, _norm_cases),
    ),
    hints=(
        "Mean and variance are taken for every token over its C features: which dim, and why keepdim=True?",
        "x.var(-1, keepdim=True, correction=0): the plain mean of squares. eps goes under the root.",
        "(x - mean) / (variance + eps).sqrt() * weight + bias",
    ),
    cases=_norm_cases,
    mutants=(
        Mutant(
            "wrong axis",
            "this normalises each feature over the tokens: use the last axis",
            _norm_with(axis=-2),
        ),
        Mutant(
            "the mean is not taken away",
            "this is RMSNorm; layer norm centres first",
            _norm_with(centre=False),
        ),
        Mutant(
            "variance over C − 1",
            "correction=0: the mean of squares, as torch and the paper do",
            _norm_with(correction=1),
        ),
        Mutant(
            "eps outside the root",
            "sqrt(variance + eps), not sqrt(variance) + eps",
            _norm_with(where="outside"),
        ),
        Mutant(
            "divided by the variance",
            "take the square root: the standard deviation",
            _norm_with(where="none"),
        ),
        Mutant("no gain", "multiply by weight at the end", _norm_with(use_weight=False)),
        Mutant("no shift", "add bias at the end", _norm_with(use_bias=False)),
        Mutant(
            "not normalised",
            "only the mean was taken away: divide by the deviation",
            _norm_with(divide=False),
        ),
        Mutant(
            "gain and shift swapped",
            "weight multiplies, bias is added",
            lambda x, w, b, eps: _layer_norm(x, b, w, eps),
        ),
        Mutant("bias before the gain", "scale first, shift last", _norm_with(unbias_first=True)),
        Mutant("wrong gradient", "mean and variance depend on x: do not detach them", _norm_detached),
        Mutant("input mutated", "x is the residual stream: it is needed again", _norm_mutating),
    ),
    alternatives=(
        _norm_with(),
        lambda x, w, b, eps: torch.addcmul(
            b, x - x.mean(-1, True), w * ((x**2).mean(-1, True) - x.mean(-1, True) ** 2 + eps).rsqrt()
        ),
    ),
)

# --- day2.gelu ----------------------------------------------------------------------------------------------


def _gelu_cases() -> list[tuple[Any, ...]]:
    return [
        (torch.linspace(-6, 6, 49, dtype=torch.float64),),
        (_randn(1, 2, 3, 4),),
        (_randn(2, 1, 1, 1) * 3,),
    ]


def _gelu_values(fn: Any) -> None:
    zero, far, low = fn(torch.tensor([0.0, 20.0, -20.0], dtype=torch.float64)).tolist()
    if abs(zero) > 1e-12:
        raise Wrong("not 0 at 0: GELU(x) is x times a probability", f"gelu(0) = {zero:.4f}")
    if abs(far - 20) > 1e-6 or abs(low) > 1e-6:
        raise Wrong(
            "wrong far away: large x pass through, very negative x become 0",
            f"gelu(20) = {far:.4f}, gelu(−20) = {low:.4f}",
        )


def _tanh_gelu(
    root: float = math.sqrt(2 / math.pi), cubic: float = 0.044715, half: float = 0.5, plus: float = 1.0
) -> Any:
    return lambda x: half * x * (plus + torch.tanh(root * (x + cubic * x**3)))


GELU = Exercise(
    name="day2.gelu",
    title="GELU by its tanh approximation",
    stub='''
def gelu(x):
    """0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))), element by element (Hendrycks & Gimpel 2016)."""
    raise NotImplementedError
''',
    solution=gelu_new,
    reference=gelu_new,
    steps=(
        same_form(gelu_new, _gelu_cases, "the shape of x"),
        leaves_inputs(_gelu_cases),
        Step("is 0 at 0, x far right and 0 far left", _gelu_values),
        equals(gelu_new, _gelu_cases, 1e-7, "equals the library to 1e-7"),
        same_gradients(gelu_new, _gelu_cases),
    ),
    hints=(
        "Write the formula in torch as it stands: torch.tanh, math.sqrt, math.pi.",
        "The cube is x * x * x or x**3, with its factor 0.044715, inside the bracket that √(2/π) multiplies.",
        "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
    ),
    cases=_gelu_cases,
    tolerance=1e-7,
    mutants=(
        Mutant("the exact GELU", "x·Φ(x) by erf differs by up to 5e-4; GPT used the tanh form", F.gelu),
        Mutant(
            "the sigmoid form",
            "x·σ(1.702x) is a coarser approximation",
            lambda x: x * torch.sigmoid(1.702 * x),
        ),
        Mutant("SiLU", "x·σ(x) is another function", F.silu),
        Mutant("ReLU", "GELU is smooth, and a little below 0 for negative x", F.relu),
        Mutant("no cube", "x + 0.044715·x³ inside the tanh", _tanh_gelu(cubic=0.0)),
        Mutant("wrong root", "√(2/π) ≈ 0.798, not 2/π", _tanh_gelu(root=2 / math.pi)),
        Mutant("wrong root", "√(2/π), not √(π/2)", _tanh_gelu(root=math.sqrt(math.pi / 2))),
        Mutant("the half is missing", "1 + tanh runs from 0 to 2: halve it", _tanh_gelu(half=1.0)),
        Mutant("the 1 is missing", "tanh alone runs from −1 to 1", _tanh_gelu(plus=0.0)),
        Mutant(
            "x is missing",
            "the bracket is a probability; multiply it by x",
            lambda x: gelu_new(x) / torch.where(x == 0, 2.0, x),
        ),
    ),
    alternatives=(
        _tanh_gelu(),
        lambda x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)),
    ),
)

# --- day2.mlp -----------------------------------------------------------------------------------------------


def _mlp(x: Tensor, w_fc: Tensor, b_fc: Tensor, w_proj: Tensor, b_proj: Tensor) -> Tensor:
    return F.linear(gelu_new(F.linear(x, w_fc, b_fc)), w_proj, b_proj)


def _mlp_cases() -> list[tuple[Any, ...]]:
    return [
        tuple(
            _randn(10 * i + j, *s) for j, s in enumerate([(B, T, C), (4 * C, C), (4 * C,), (C, 4 * C), (C,)])
        )
        for i, (B, T, C) in enumerate([(2, 3, 4), (1, 1, 3), (2, 5, 1)])
    ]


def _mlp_positions(fn: Any) -> None:
    x, *rest = _mlp_cases()[0]
    if not torch.allclose(fn(x, *rest)[:, 1:2], fn(x[:, 1:2], *rest)):
        raise Wrong(
            "positions mixed: the MLP reads one position at a time", "position 1 alone gives something else"
        )


MLP_EXERCISE = Exercise(
    name="day2.mlp",
    title="widen, bend, narrow",
    stub='''
def mlp(x, w_fc, b_fc, w_proj, b_proj):
    """The feed-forward layer: (B, T, C) → (B, T, 4C) → GELU (tanh form) → (B, T, C).

    Weights are as nn.Linear keeps them: w_fc is (4C, C), w_proj is (C, 4C).
    You may use ai_learning.model.mlp.gelu_new.
    """
    raise NotImplementedError
''',
    solution=MLP,
    reference=_mlp,
    steps=(
        same_form(_mlp, _mlp_cases, "(B, T, C)"),
        leaves_inputs(_mlp_cases),
        Step("works on each position alone", _mlp_positions),
        equals(_mlp, _mlp_cases),
        same_gradients(_mlp, _mlp_cases),
    ),
    hints=(
        "Two linear layers with a bend between them: without it they would be one.",
        "F.linear(x, weight, bias) is x @ weight.T + bias.",
        "F.linear(gelu_new(F.linear(x, w_fc, b_fc)), w_proj, b_proj)",
    ),
    cases=_mlp_cases,
    mutants=(
        Mutant(
            "no activation",
            "two linear layers in a row are one linear layer",
            lambda x, a, b, c, d: (x @ a.T + b) @ c.T + d,
        ),
        Mutant("ReLU", "GPT bends with GELU", lambda x, a, b, c, d: F.relu(x @ a.T + b) @ c.T + d),
        Mutant(
            "the exact GELU",
            "the tanh form, as in GPT's code",
            lambda x, a, b, c, d: F.gelu(x @ a.T + b) @ c.T + d,
        ),
        Mutant(
            "first bias missing",
            "add b_fc before the bend",
            lambda x, a, b, c, d: gelu_new(x @ a.T) @ c.T + d,
        ),
        Mutant(
            "last bias missing", "add b_proj at the end", lambda x, a, b, c, d: gelu_new(x @ a.T + b) @ c.T
        ),
        Mutant(
            "bent twice",
            "no activation after the second layer: a branch must be able to subtract",
            lambda x, a, b, c, d: gelu_new(_mlp(x, a, b, c, d)),
        ),
        Mutant(
            "residual added",
            "the block adds the residual, not the MLP",
            lambda x, a, b, c, d: x + _mlp(x, a, b, c, d),
        ),
        Mutant(
            "bias after the bend", "bias, then GELU", lambda x, a, b, c, d: (gelu_new(x @ a.T) + b) @ c.T + d
        ),
        Mutant(
            "bent too early",
            "widen first, then bend",
            lambda x, a, b, c, d: (gelu_new(x) @ a.T + b) @ c.T + d,
        ),
    ),
    alternatives=(
        lambda x, a, b, c, d: gelu_new(x @ a.T + b) @ c.T + d,
        lambda x, a, b, c, d: (
            torch.einsum("btf,cf->btc", F.gelu(torch.einsum("btc,fc->btf", x, a) + b, approximate="tanh"), c)
            + d
        ),
    ),
)

# --- day2.block ---------------------------------------------------------------------------------------------


def _block(x: Tensor, attn: Any, mlp: Any, ln_1: Any, ln_2: Any, norm_first: bool) -> Tensor:
    if norm_first:
        x = x + attn(ln_1(x))
        return x + mlp(ln_2(x))
    x = ln_1(x + attn(x))
    return ln_2(x + mlp(x))


def _block_cases() -> list[tuple[Any, ...]]:
    def scale(a: float, b: float) -> Any:
        return _Affine(a, b)

    x = _randn(1, 2, 3, 4)
    parts = (scale(0.5, 1.0), scale(-2.0, 0.3), scale(3.0, 0.1), scale(0.7, -0.2))
    bent = (torch.tanh, torch.sin, torch.sigmoid, torch.cos)
    return [(x, *parts, True), (x, *parts, False), (x, *bent, True), (x, *bent, False)]


class _Affine:
    """A named stand-in for a branch, so that their order can be seen in the result."""

    def __init__(self, a: float, b: float) -> None:
        self.a, self.b = a, b

    def __call__(self, x: Tensor) -> Tensor:
        return self.a * x + self.b

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Affine) and (self.a, self.b) == (other.a, other.b)

    def __hash__(self) -> int:
        return hash((self.a, self.b))

    def __repr__(self) -> str:
        return f"(x ↦ {self.a}x + {self.b})"


def _block_residual(fn: Any) -> None:
    x, *_ = _block_cases()[0]
    nothing = torch.zeros_like
    same_x = fn(x, nothing, nothing, lambda y: y, lambda y: y, True)
    if not torch.allclose(same_x, x):
        raise Wrong(
            "no residual: with branches that give 0 and norms that do nothing the block gives x back",
            "it gave something else",
        )


def _block_mutant(rule: Any) -> Any:
    return lambda x, attn, mlp, ln_1, ln_2, norm_first: rule(x, attn, mlp, ln_1, ln_2, norm_first)


BLOCK = Exercise(
    name="day2.block",
    title="two branches on the residual stream, with the norm before or after",
    stub='''
def block(x, attn, mlp, ln_1, ln_2, norm_first):
    """One transformer block; attn, mlp, ln_1 and ln_2 are functions (B, T, C) → (B, T, C).

    norm_first=True (GPT-2): each branch reads the normalised stream and adds to the stream itself.
    norm_first=False (GPT-1): each branch reads the stream, and the sum is normalised.
    """
    raise NotImplementedError
''',
    solution=Block,
    reference=_block,
    steps=(
        same_form(_block, _block_cases, "(B, T, C)"),
        leaves_inputs(_block_cases),
        Step("adds its branches to the stream", _block_residual),
        equals(_block, _block_cases, title="has every part in its place, both ways"),
    ),
    hints=(
        "Draw both: where does the arrow that passes each branch by start, and where does it end?",
        "Pre-norm: x = x + branch(norm(x)). Post-norm: x = norm(x + branch(x)).",
        "The second branch reads what the first has made: assign x in between.",
    ),
    cases=_block_cases,
    mutants=(
        Mutant(
            "norm_first is not used",
            "this is pre-norm always; GPT-1 normalises the sum",
            _block_mutant(lambda x, a, m, n1, n2, f: _block(x, a, m, n1, n2, True)),
        ),
        Mutant(
            "norm_first is not used",
            "this is post-norm always; GPT-2 normalises what a branch reads",
            _block_mutant(lambda x, a, m, n1, n2, f: _block(x, a, m, n1, n2, False)),
        ),
        Mutant(
            "norm_first is upside down",
            "True means before the branch",
            _block_mutant(lambda x, a, m, n1, n2, f: _block(x, a, m, n1, n2, not f)),
        ),
        Mutant(
            "norms swapped",
            "ln_1 belongs to attention, ln_2 to the MLP",
            _block_mutant(lambda x, a, m, n1, n2, f: _block(x, a, m, n2, n1, f)),
        ),
        Mutant(
            "branches swapped",
            "attention first, then the MLP",
            _block_mutant(lambda x, a, m, n1, n2, f: _block(x, m, a, n1, n2, f)),
        ),
        Mutant(
            "branches side by side",
            "the MLP reads the stream after attention has added to it",
            _block_mutant(
                lambda x, a, m, n1, n2, f: x + a(n1(x)) + m(n2(x)) if f else n2(n1(x + a(x)) + m(x))
            ),
        ),
        Mutant(
            "no residual",
            "a branch adds to the stream; it does not replace it",
            _block_mutant(lambda x, a, m, n1, n2, f: m(n2(a(n1(x)))) if f else n2(m(n1(a(x))))),
        ),
        Mutant(
            "the residual is normalised",
            "pre-norm adds the branch to x itself, not to ln_1(x)",
            _block_mutant(
                lambda x, a, m, n1, n2, f: (
                    (lambda y: (lambda z: z + m(z))(n2(y)))((lambda z: z + a(z))(n1(x)))
                    if f
                    else _block(x, a, m, n1, n2, f)
                )
            ),
        ),
        Mutant(
            "second residual missing",
            "the MLP's output is added too",
            _block_mutant(lambda x, a, m, n1, n2, f: m(n2(x + a(n1(x)))) if f else n2(m(n1(x + a(x))))),
        ),
    ),
    alternatives=(
        lambda x, attn, mlp, ln_1, ln_2, norm_first: (
            (lambda y: y + mlp(ln_2(y)))(x + attn(ln_1(x)))
            if norm_first
            else (lambda y: ln_2(y + mlp(y)))(ln_1(x + attn(x)))
        ),
        lambda x, attn, mlp, ln_1, ln_2, norm_first: functools.reduce(
            lambda y, part: y + part[0](part[1](y)) if norm_first else part[1](y + part[0](y)),
            ((attn, ln_1), (mlp, ln_2)),
            x,
        ),
    ),
)

EXERCISES = (LAYER_NORM, GELU, MLP_EXERCISE, BLOCK)
