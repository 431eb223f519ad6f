"""Day 4: the loss, the optimizer's step, clipping, the schedule."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...loss import linear_cross_entropy
from ...optim import lr_factor, reference_adamw_step
from ..engine import Exercise, Mutant, Step, Wrong, apart, equals, leaves_inputs, same_form, same_gradients

# --- day4.cross_entropy -------------------------------------------------------------------------------------


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _loss_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(4)
    cases = []
    for B, T, V, hidden in [(2, 3, 5, 0), (1, 1, 7, 0), (3, 4, 6, 5), (2, 2, 9, 2)]:
        logits = 3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
        targets = torch.randint(0, V, (B, T), generator=generator)
        targets.view(-1)[:hidden] = -100
        cases.append((logits, targets))
    return cases


def _loss_survives(fn: Any) -> None:
    logits, targets = _loss_cases()[0]
    big = fn(logits + 5000, targets)
    if not torch.isfinite(big):
        raise Wrong(
            "overflow: exp of a large logit is inf; subtract the row's maximum first (log_softmax does)",
            f"logits near 5000 give {big.item()}",
        )
    far = logits.clone()
    far[0, 0, targets[0, 0]] = -5000.0
    if not torch.isfinite(fn(far, targets)):
        raise Wrong(
            "log of 0: a very unlikely target has probability 0 in floating point; stay in logs (log_softmax)",
            "a logit of −5000 gives inf",
        )


def _loss_uniform(fn: Any) -> None:
    got = fn(torch.zeros(2, 3, 8, dtype=torch.float64), torch.ones(2, 3, dtype=torch.long)).item()
    if abs(got - math.log(8)) > 1e-9:
        raise Wrong(
            "a model that knows nothing pays ln V nats a token",
            f"for V = 8: {apart(got, math.log(8))}",
        )


def _loss_with(rule: Any) -> Any:
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        log_p = F.log_softmax(logits, -1)
        counted = targets != -100
        picked = log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)  # (B, T)
        result: Tensor = rule(log_p, picked, counted)
        return result

    return loss


CROSS_ENTROPY = Exercise(
    name="day4.cross_entropy",
    title="the loss of a language model",
    stub='''
def cross_entropy(logits, targets):
    """Mean −log p(target), in nats.

    logits are (B, T, V), targets (B, T) ids; a target of −100 does not count. Returns a scalar.
    """
    raise NotImplementedError
''',
    solution=linear_cross_entropy,
    reference=_loss,
    steps=(
        same_form(_loss, _loss_cases, "a scalar"),
        leaves_inputs(_loss_cases),
        Step("is ln V where the model knows nothing", _loss_uniform),
        Step("survives large logits", _loss_survives),
        equals(_loss, _loss_cases),
        same_gradients(_loss, _loss_cases),
    ),
    hints=(
        "log-probabilities first: F.log_softmax(logits, dim=-1), or logits − logsumexp.",
        "gather picks one entry along the last axis: log_p.gather(-1, ids.unsqueeze(-1)); −100 is no index, so clamp it.",
        "Mean over the positions that count: −(picked * counted).sum() / counted.sum().",
    ),
    cases=_loss_cases,
    mutants=(
        Mutant(
            "sign",
            "log p is negative: the loss is −log p",
            _loss_with(lambda l, p, c: (p * c).sum() / c.sum()),
        ),
        Mutant("a sum", "the mean over the positions that count", _loss_with(lambda l, p, c: -(p * c).sum())),
        Mutant(
            "divided by all positions",
            "those with −100 do not count in the denominator either",
            _loss_with(lambda l, p, c: -(p * c).mean()),
        ),
        Mutant(
            "−100 counts",
            "positions with target −100 must not be in the loss",
            _loss_with(lambda l, p, c: -p.mean()),
        ),
        Mutant(
            "mean of row means",
            "each position counts alike, whatever row it is in",
            _loss_with(lambda l, p, c: -((p * c).sum(1) / c.sum(1).clamp(min=1)).mean()),
        ),
        Mutant(
            "base 2",
            "nats: the natural logarithm",
            _loss_with(lambda l, p, c: -(p * c).sum() / c.sum() / math.log(2)),
        ),
        Mutant(
            "probability for log-probability",
            "−log p, not −p",
            _loss_with(lambda l, p, c: -(p.exp() * c).sum() / c.sum()),
        ),
        Mutant(
            "softmax over the wrong axis",
            "over the vocabulary, the last axis",
            lambda x, t: F.nll_loss(F.log_softmax(x, 1).flatten(0, 1), t.flatten()),
        ),
        Mutant(
            "softmax twice",
            "F.cross_entropy takes logits, not probabilities",
            lambda x, t: _loss(x.softmax(-1), t),
        ),
        Mutant(
            "a reward for all tokens",
            "only the target's log-probability counts",
            _loss_with(lambda l, p, c: -(l.mean(-1) * c).sum() / c.sum()),
        ),
        Mutant(
            "overflow",
            "subtract the maximum before exp",
            lambda x, t: (
                -(
                    (x.exp() / x.exp().sum(-1, keepdim=True))
                    .log()
                    .gather(-1, t.clamp(min=0)[..., None])[..., 0]
                    * (t != -100)
                ).sum()
                / (t != -100).sum()
            ),
        ),
    ),
    alternatives=(
        _loss_with(lambda l, p, c: -p[c].mean()),
        lambda x, t: (x.logsumexp(-1) - x.gather(-1, t.clamp(min=0)[..., None])[..., 0])[t != -100].mean(),
    ),
)

# --- day4.adamw_step ----------------------------------------------------------------------------------------


def _adamw(
    p: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    *,
    correct: str = "mv",
    decay: str = "decoupled",
    eps_inside: bool = False,
    root: bool = True,
    old_moments: bool = False,
    swap: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    b1, b2 = betas[::-1] if swap else betas
    if decay == "l2":
        grad = grad + weight_decay * p
    new_m, new_v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
    m_hat = (m if old_moments else new_m) / (1 - b1**step if "m" in correct else 1)
    v_hat = new_v / (1 - b2**step if "v" in correct else 1)
    size = (v_hat + eps).sqrt() if eps_inside else (v_hat.sqrt() if root else v_hat) + eps
    factor = {"decoupled": 1 - lr * weight_decay, "no lr": 1 - weight_decay}.get(decay, 1.0)
    return p * factor - lr * m_hat / size, new_m, new_v


def _adamw_reference(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    p, grad, m, v, step, lr, betas, eps, weight_decay = args
    parameter = torch.nn.Parameter(p.clone())
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    state = {"step": torch.tensor(float(step - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[parameter] = state
    parameter.grad = grad.clone()
    optimizer.step()
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


def _adamw_cases() -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(8)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    zero = torch.zeros(3, 2, dtype=torch.float64)
    return [
        (randn(3, 2), randn(3, 2), zero.clone(), zero.clone(), 1, 0.1, (0.9, 0.95), 1e-2, 0.1),
        (randn(4), randn(4), randn(4), randn(4) ** 2, 7, 0.01, (0.8, 0.99), 1e-1, 0.5),
        (randn(2, 2), randn(2, 2), randn(2, 2), randn(2, 2) ** 2, 3, 1.0, (0.9, 0.999), 1e-8, 0.0),
    ]


def _adamw_first(fn: Any) -> None:
    one = torch.ones(2, dtype=torch.float64)
    p, *_ = fn(
        one,
        torch.tensor([1e-3, -50.0], dtype=torch.float64),
        0 * one,
        0 * one,
        1,
        0.1,
        (0.9, 0.95),
        1e-12,
        0.0,
    )
    moved = (p - one).tolist()
    if abs(moved[0] + 0.1) > 1e-6 or abs(moved[1] - 0.1) > 1e-6:
        raise Wrong(
            "the first step is not lr large: with both corrections it goes lr against the gradient's sign, whatever its size",
            f"gradients 0.001 and −50 moved the parameters by {moved[0]:.4f} and {moved[1]:.4f}, expected −0.1 and 0.1",
        )


def _adamw_with(**changes: Any) -> Any:
    return lambda *args: _adamw(*args, **changes)


def _adamw_in_place(
    p: Tensor, grad: Tensor, m: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    new_p, new_m, new_v = _adamw(p, grad, m, v, *rest)
    return new_p, m.copy_(new_m), v.copy_(new_v)


ADAMW = Exercise(
    name="day4.adamw_step",
    title="one step of AdamW",
    stub='''
def adamw_step(p, grad, m, v, step, lr, betas, eps, weight_decay):
    """One step of AdamW (Loshchilov & Hutter 2019, algorithm 2) for one tensor.

    m and v are the moments so far, step counts from 1. Returns new (p, m, v); the inputs stay as they are.
    """
    raise NotImplementedError
''',
    solution=reference_adamw_step,
    reference=_adamw_reference,
    steps=(
        same_form(_adamw_reference, _adamw_cases, "new (p, m, v)"),
        leaves_inputs(_adamw_cases),
        Step("makes a first step of size lr", _adamw_first),
        equals(_adamw_reference, _adamw_cases, title="equals torch.optim.AdamW"),
    ),
    hints=(
        "Two running means: m of the gradient, v of its square. At step 1 both are far too small: by what factor?",
        "m̂ = m / (1 − β₁^step), v̂ = v / (1 − β₂^step); the decay shrinks p by lr·weight_decay and touches neither.",
        "p·(1 − lr·weight_decay) − lr · m̂ / (√v̂ + eps)",
    ),
    cases=_adamw_cases,
    mutants=(
        Mutant(
            "no bias correction", "m and v begin at 0 and are too small at first", _adamw_with(correct="")
        ),
        Mutant("m is not corrected", "divide m by 1 − β₁^step", _adamw_with(correct="v")),
        Mutant("v is not corrected", "divide v by 1 − β₂^step", _adamw_with(correct="m")),
        Mutant(
            "L2 in the gradient",
            "that is Adam with L2; AdamW shrinks the weights themselves",
            _adamw_with(decay="l2"),
        ),
        Mutant("no weight decay", "shrink p by lr · weight_decay", _adamw_with(decay="none")),
        Mutant("decay without lr", "the decay is scaled by the learning rate", _adamw_with(decay="no lr")),
        Mutant("eps inside the root", "√v̂ + eps", _adamw_with(eps_inside=True)),
        Mutant("no root", "v is a square: divide by its root", _adamw_with(root=False)),
        Mutant("the old m", "update m first, then step with it", _adamw_with(old_moments=True)),
        Mutant("betas swapped", "β₁ belongs to m, β₂ to v", _adamw_with(swap=True)),
        Mutant("input mutated", "return new moments", _adamw_in_place),
    ),
    alternatives=(
        _adamw_with(),
        lambda p, g, m, v, t, lr, b, eps, wd: (
            torch.addcdiv(
                p - lr * wd * p,
                torch.lerp(m, g, 1 - b[0]),
                (v.lerp(g * g, 1 - b[1]) / (1 - b[1] ** t)).sqrt().add(eps),
                value=-lr / (1 - b[0] ** t),
            ),
            torch.lerp(m, g, 1 - b[0]),
            torch.lerp(v, g * g, 1 - b[1]),
        ),
    ),
)

# --- day4.clip_gradients ------------------------------------------------------------------------------------


def _clip(grads: list[Tensor], max_norm: float) -> list[Tensor]:
    norm = torch.cat([g.flatten() for g in grads]).norm()
    return [g * min(1.0, max_norm / float(norm)) if norm > 0 else g.clone() for g in grads]


def _clip_cases() -> list[tuple[Any, ...]]:
    def tensors(*values: Any) -> list[Tensor]:
        return [torch.tensor(v, dtype=torch.float64) for v in values]

    return [
        (tensors([3.0, 4.0], [[12.0]]), 1.0),
        (tensors([0.3, -0.4]), 1.0),
        (tensors([0.0, 0.0], [0.0]), 2.0),
        (tensors([-6.0], [8.0], [0.1]), 5.0),
        (tensors([0.6, -0.8], [[0.9, -0.2], [0.1, 0.3]]), 1.2),
        (tensors([3.0, 4.0], [[6.0, 8.0]]), 2.0),
    ]


def _clip_direction(fn: Any) -> None:
    grads, limit = _clip_cases()[0]
    before = torch.cat([g.flatten() for g in grads])
    after = torch.cat([g.flatten() for g in fn([g.clone() for g in grads], limit)])
    if after.norm() > limit + 1e-6:
        raise Wrong(
            "still too long: all gradients together, as one vector, must not exceed max_norm",
            f"norm {after.norm():.3f} > {limit}",
        )
    if abs(F.cosine_similarity(before, after, dim=0).item() - 1) > 1e-6:
        raise Wrong(
            "the direction changed: one factor for all tensors",
            f"cosine {F.cosine_similarity(before, after, dim=0):.4f}",
        )


def _clip_in_place(grads: list[Tensor], max_norm: float) -> list[Tensor]:
    for grad, new in zip(grads, _clip(grads, max_norm), strict=True):
        grad.copy_(new)
    return grads


def _clip_by(factor: Any) -> Any:
    return lambda grads, limit: [g * factor(grads, limit) for g in grads]


def _norm(grads: list[Tensor]) -> float:
    return math.sqrt(sum(float((g**2).sum()) for g in grads))


CLIP = Exercise(
    name="day4.clip_gradients",
    title="one long step made short, in the same direction",
    stub='''
def clip_gradients(grads, max_norm):
    """Clip by global norm (Pascanu et al. 2013): the list of tensors is one long vector.

    Returns new tensors; unchanged values where the norm is at most max_norm.
    """
    raise NotImplementedError
''',
    solution=torch.nn.utils.clip_grad_norm_,
    reference=_clip,
    steps=(
        same_form(_clip, _clip_cases, "a list of tensors"),
        leaves_inputs(_clip_cases),
        Step("shortens without turning", _clip_direction),
        equals(_clip, _clip_cases, 1e-5, "leaves short and zero gradients alone"),
    ),
    hints=(
        "The norm is over all tensors together: the root of the sum of all squares.",
        "One factor for all: max_norm / norm, but never above 1.",
        "scale = min(1.0, max_norm / (norm + 1e-6)); [g * scale for g in grads]",
    ),
    cases=_clip_cases,
    tolerance=1e-5,
    mutants=(
        Mutant(
            "each tensor on its own",
            "one norm over all tensors, or the direction changes",
            lambda gs, m: [_clip([g], m)[0] for g in gs],
        ),
        Mutant(
            "clipped by value",
            "that turns the step; scale it instead",
            lambda gs, m: [g.clamp(-m, m) for g in gs],
        ),
        Mutant(
            "always scaled",
            "short gradients stay as they are",
            _clip_by(lambda gs, m: m / max(_norm(gs), 1e-9)),
        ),
        Mutant("no clipping", "the norm must end at max_norm", lambda gs, m: [g.clone() for g in gs]),
        Mutant(
            "squared norm",
            "take the root of the sum of squares",
            _clip_by(lambda gs, m: min(1.0, m / max(_norm(gs) ** 2, 1e-9))),
        ),
        Mutant(
            "norm of norms added",
            "add squares, not lengths",
            _clip_by(lambda gs, m: min(1.0, m / max(sum(float(g.norm()) for g in gs), 1e-9))),
        ),
        Mutant(
            "largest tensor",
            "all tensors together are one vector: its length, not that of the longest part",
            _clip_by(lambda gs, m: min(1.0, m / max(max(float(g.norm()) for g in gs), 1e-9))),
        ),
        Mutant(
            "largest entry",
            "the length of the vector, not its largest entry",
            _clip_by(lambda gs, m: min(1.0, m / max(max(float(g.abs().max()) for g in gs), 1e-9))),
        ),
        Mutant(
            "mean square",
            "a sum of squares, not a mean",
            _clip_by(
                lambda gs, m: min(1.0, m / max(_norm(gs) / math.sqrt(sum(g.numel() for g in gs)), 1e-9))
            ),
        ),
        Mutant(
            "set to zero",
            "a long gradient is shortened, not dropped",
            _clip_by(lambda gs, m: 1.0 if _norm(gs) <= m else 0.0),
        ),
        Mutant("input mutated", "return new tensors here", _clip_in_place),
    ),
    alternatives=(
        _clip_by(lambda gs, m: min(1.0, m / (_norm(gs) + 1e-6))),
        lambda gs, m: [
            g / max(1.0, float(torch.linalg.vector_norm(torch.stack([h.norm() for h in gs]))) / m) for g in gs
        ],
    ),
)

# --- day4.cosine_schedule -----------------------------------------------------------------------------------


def _cosine(step: int, total: int, warmup: int, floor: float) -> float:
    return lr_factor(step, total, "cosine", warmup, floor)


def _schedule_cases() -> list[tuple[Any, ...]]:
    return [(s, 20, 4, 0.1) for s in (0, 1, 2, 3, 4, 5, 12, 19, 20, 25)] + [
        (s, 10, 0, 0.0) for s in (0, 3, 5, 10)
    ]


def _schedule_shape(fn: Any) -> None:
    values = [fn(s, 20, 4, 0.1) for s in range(21)]
    if values[0] <= 0:
        raise Wrong(
            "the first step is lost: at step 0 a rate of 0 changes nothing; begin at 1/warmup", f"{values[0]}"
        )
    if max(values) > 1 + 1e-9 or abs(max(values) - 1) > 1e-9:
        raise Wrong(
            "the peak is not 1: the warm-up ends at the full rate", f"highest value {max(values):.4f}"
        )
    if abs(values[20] - 0.1) > 1e-9:
        raise Wrong("does not end at the floor", f"{values[20]:.4f} at the last step, expected 0.1")


def _schedule_with(rise: Any = None, fall: Any = None, progress: Any = None, end: Any = None) -> Any:
    def schedule(step: int, total: int, warmup: int, floor: float) -> float:
        if step < warmup:
            return float((rise or (lambda s, w: (s + 1) / w))(step, warmup))
        done = (progress or (lambda s, t, w: (s - w) / (t - w)))(step, total, warmup)
        done = (end or (lambda x: min(1.0, max(0.0, x))))(done)
        return float((fall or (lambda x, f: f + (1 - f) * (1 + math.cos(math.pi * x)) / 2))(done, floor))

    return schedule


SCHEDULE = Exercise(
    name="day4.cosine_schedule",
    title="warm up, then half a cosine down",
    stub='''
def cosine_schedule(step, total, warmup, floor):
    """Share of the peak learning rate at a step, counted from 0.

    (step + 1) / warmup during the warm-up, so that it ends at 1; then half a cosine from 1 (at step
    ``warmup``) to ``floor`` (at step ``total``), and ``floor`` afterwards.
    """
    raise NotImplementedError
''',
    solution=lr_factor,
    reference=_cosine,
    steps=(
        same_form(_cosine, _schedule_cases, "a float"),
        Step("rises to 1 and ends at the floor", _schedule_shape),
        equals(_cosine, _schedule_cases, 1e-9, "equals the library at every step"),
    ),
    hints=(
        "Two cases: step < warmup, and the rest. In the rest, how far are we on the way from warmup to total, from 0 to 1?",
        "(1 + cos(π · progress)) / 2 falls from 1 to 0.",
        "floor + (1 − floor) · (1 + cos(π · progress)) / 2, progress clamped to at most 1.",
    ),
    cases=_schedule_cases,
    tolerance=1e-9,
    mutants=(
        Mutant(
            "the first step is lost",
            "(step + 1) / warmup: a rate of 0 changes nothing",
            _schedule_with(rise=lambda s, w: s / w),
        ),
        Mutant("no warm-up", "the first steps rise from 1/warmup", _schedule_with(rise=lambda s, w: 1.0)),
        Mutant(
            "progress from 0",
            "the cosine begins where the warm-up ends",
            _schedule_with(progress=lambda s, t, w: s / t),
        ),
        Mutant(
            "floor is not used",
            "the cosine ends at the floor, not at 0",
            _schedule_with(fall=lambda x, f: (1 + math.cos(math.pi * x)) / 2),
        ),
        Mutant(
            "floor added on top",
            "the peak stays 1: scale the cosine by 1 − floor",
            _schedule_with(fall=lambda x, f: f + (1 + math.cos(math.pi * x)) / 2),
        ),
        Mutant(
            "cut at the floor",
            "the cosine is squeezed between 1 and floor, not cut",
            _schedule_with(fall=lambda x, f: max(f, (1 + math.cos(math.pi * x)) / 2)),
        ),
        Mutant(
            "a line", "half a cosine, slow at both ends", _schedule_with(fall=lambda x, f: 1 - (1 - f) * x)
        ),
        Mutant(
            "a quarter cosine",
            "cos from 0 to π, moved and halved",
            _schedule_with(fall=lambda x, f: f + (1 - f) * math.cos(math.pi * x / 2)),
        ),
        Mutant(
            "a whole cosine",
            "to π, not to 2π: the rate must not rise again",
            _schedule_with(fall=lambda x, f: f + (1 - f) * (1 + math.cos(2 * math.pi * x)) / 2),
        ),
        Mutant(
            "rises after the end",
            "clamp the progress: after total the rate stays at the floor",
            _schedule_with(end=lambda x: x),
        ),
    ),
    alternatives=(
        _schedule_with(),
        lambda s, t, w, f: (
            (s + 1) / w if s < w else f + (1 - f) * math.cos(math.pi / 2 * min(1.0, (s - w) / (t - w))) ** 2
        ),
    ),
)

EXERCISES = (CROSS_ENTROPY, ADAMW, CLIP, SCHEDULE)
