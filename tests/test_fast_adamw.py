"""The compiled AdamW does what PyTorch's does, step for step, and leaves to it what it cannot."""

import copy
import math
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ai_learning.kernels import fast_adamw as module
from ai_learning.kernels.fast_adamw import FastAdamW, suits
from ai_learning.optim import Together, adamw, clip_and_step, reference_adamw_step

pytestmark = pytest.mark.skipif(not suits([]), reason="numba is not installed")

SHAPES = ((3,), (130, 130), (1,), (), (5, 0), (2, 3, 7))  # a scalar, an empty one, one of two chunks


def parameters(shapes: Sequence[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def pair(**options: object) -> tuple[FastAdamW, torch.optim.AdamW]:
    """Both optimizers on equal parameters, in two groups."""

    def groups() -> list[dict]:
        ps = parameters()
        return [{"params": ps[:2], "weight_decay": 0.1, "lr": 0.02}, {"params": ps[2:], "weight_decay": 0.0}]

    settings = {"lr": 0.01, "betas": (0.9, 0.95), **options}
    return FastAdamW(groups(), **settings), torch.optim.AdamW(groups(), **settings)


def of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give_gradients(*optimizers: torch.optim.Optimizer, seed: int = 1, scale: float = 1.0) -> None:
    for optimizer in optimizers:
        torch.manual_seed(seed)
        for p in of(optimizer):
            p.grad = torch.randn(p.shape) * scale


def assert_alike(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, scale: float = 1.0) -> None:
    """Up to rounding of gradients of size ``scale``: means of what cancels out are off by that."""
    for p, q in zip(of(ours), of(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for name, atol in (("step", 0.0), ("exp_avg", 1e-6 * scale), ("exp_avg_sq", 1e-6 * scale**2)):
            torch.testing.assert_close(ours.state[p][name], theirs.state[q][name], rtol=1e-5, atol=atol)


@pytest.fixture
def own_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each step that was left to PyTorch."""
    left: list[int] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, closure: Callable | None = None) -> object:
        left.append(1)
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    return left


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-6, 1e3), st.floats(1e-3, 1e3), st.integers(1, 4))
def test_steps_and_norms_are_pytorchs(seed: int, scale: float, limit: float, steps: int) -> None:
    ours, theirs = pair()
    for number in range(steps):
        give_gradients(ours, theirs, seed=seed + number, scale=scale)
        norm = ours.clip_and_step(limit)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(of(theirs), limit), rtol=1e-5, atol=0)
        theirs.step()
    assert_alike(ours, theirs, min(scale, limit))


def test_a_step_alone_clips_nothing_and_is_the_written_out_one(own_steps: list[int]) -> None:
    (p,) = parameters([(200,)])
    optimizer = FastAdamW([p], lr=0.1, betas=(0.9, 0.95), weight_decay=0.3)
    expected, m, v = p.detach().double(), torch.zeros(200), torch.zeros(200)
    for step in range(1, 6):
        p.grad = torch.randn(200) * 100
        expected, m, v = reference_adamw_step(
            expected, p.grad.double(), m, v, step, lr=0.1, betas=(0.9, 0.95), weight_decay=0.3
        )
        optimizer.step()
    torch.testing.assert_close(p.double(), expected, rtol=1e-5, atol=1e-6)
    assert not own_steps


def test_gradients_stay_as_they_are() -> None:
    ours, _ = pair()
    give_gradients(ours, scale=100)
    before = [p.grad.clone() for p in of(ours)]
    ours.clip_and_step(0.1)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(of(ours), before, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_shows_in_the_norm(value: float) -> None:
    ours, theirs = pair()
    give_gradients(ours, theirs)
    for optimizer in (ours, theirs):
        of(optimizer)[1].grad[7, 7] = value
    norm = ours.clip_and_step(1.0)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(of(theirs), 1.0), equal_nan=True)
    assert not torch.isfinite(norm) and of(ours)[1][7, 7].isnan()


def test_state_goes_both_ways() -> None:
    ours, theirs = pair()
    for number in range(3):
        give_gradients(ours, theirs, seed=number)
        ours.step()
        theirs.step()
    state = [copy.deepcopy(o.state_dict()) for o in (ours, theirs)]
    assert state[0].keys() == state[1].keys() and state[0]["state"][1].keys() == state[1]["state"][1].keys()
    ours.load_state_dict(state[1])
    theirs.load_state_dict(state[0])
    give_gradients(ours, theirs, seed=9)
    ours.step()
    theirs.step()
    assert_alike(ours, theirs)
    twin = copy.deepcopy(ours)  # with parameters of its own
    before = [p.clone() for p in of(ours)]
    give_gradients(twin)
    twin.step()
    assert all(torch.equal(p, q) for p, q in zip(of(ours), before, strict=True))


def test_replaced_tensors_are_followed() -> None:
    ours, theirs = pair()
    give_gradients(ours, theirs)
    ours.step(), theirs.step()
    for optimizer in (ours, theirs):
        for p in of(optimizer):
            p.data = p.data.clone() + 1
            optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"] * 2
    give_gradients(ours, theirs, seed=2)
    ours.step(), theirs.step()
    assert_alike(ours, theirs)


def moved(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    p.data = p.data.clone() + 1


def other_mean(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    state["exp_avg"] = state["exp_avg"] * 2


def mean_moved(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    state["exp_avg_sq"].data = state["exp_avg_sq"].data * 2


def more_steps(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    state["step"] += 3


def other_steps(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    state["step"] = torch.tensor(7.0)


def smaller_mean(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    """At the same place; as if it had been given back and made anew."""
    state["exp_avg"].data = state["exp_avg"].data.flatten()[: p.numel() // 2]


def shorter_numbers(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    state["exp_avg_sq"].data = (
        state["exp_avg_sq"].data.flatten().view(torch.bfloat16)[: p.numel()].view(p.shape)
    )


def whole_step(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    state["step"].data = state["step"].data.view(torch.int32)


@pytest.mark.parametrize("change", [smaller_mean, shorter_numbers, whole_step])
def test_state_that_became_another_where_it_lies_is_left_to_pytorch(
    change: Callable, own_steps: list[int]
) -> None:
    (p,) = parameters([(100, 100)])
    optimizer = FastAdamW([p], lr=0.1)
    give_gradients(optimizer)
    optimizer.step()
    change(p, optimizer.state[p])
    try:
        optimizer.step()
    except (ValueError, RuntimeError):  # the loops would not notice
        return
    assert own_steps


def test_replaced_state_is_not_kept_alive() -> None:
    (p, q) = parameters([(100,), (100,)])
    optimizer = FastAdamW([p, q], lr=0.1)
    give_gradients(optimizer)
    optimizer.step()
    old = weakref.ref(optimizer.state[p]["exp_avg"])
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert old() is None
    optimizer.step()
    old = weakref.ref(optimizer.state[p]["exp_avg"])
    q.grad = None  # the next steps are PyTorch's
    optimizer.step()
    del optimizer.state[p]
    assert old() is None


def other_way_round(p: nn.Parameter, state: dict[str, Tensor]) -> None:
    """At the same place, in the same shape."""
    if p.dim() == 2 and p.size(0) == p.size(1):
        p.data = p.data.t()


@pytest.mark.parametrize("change", [moved, other_mean, mean_moved, more_steps, other_steps, other_way_round])
def test_each_replaced_tensor_is_noticed(change: Callable) -> None:
    ours, theirs = pair()
    for seed in (1, 2, 3):
        give_gradients(ours, theirs, seed=seed)
        ours.step(), theirs.step()
        for optimizer in (ours, theirs):
            for p in of(optimizer):
                change(p, optimizer.state[p])
    give_gradients(ours, theirs, seed=4)
    ours.step(), theirs.step()
    assert_alike(ours, theirs)


def test_groups_that_come_go_and_change_places() -> None:
    ours, theirs = pair()
    for seed in range(4):
        give_gradients(ours, theirs, seed=seed)
        ours.step(), theirs.step()
        for optimizer in (ours, theirs):
            if seed == 0:
                optimizer.add_param_group(
                    {"params": parameters([(9,)], seed=5), "weight_decay": 0.5, "lr": 1.0}
                )
            elif seed == 1:
                optimizer.param_groups.reverse()
            else:  # the same parameters, divided otherwise
                first, last = optimizer.param_groups[0], optimizer.param_groups[-1]
                first["params"], last["params"] = [*first["params"], *last["params"][:1]], last["params"][1:]
        if seed >= 2:
            break
    give_gradients(ours, theirs, seed=9)
    ours.step(), theirs.step()
    assert_alike(ours, theirs)


def test_a_parameter_made_smaller_where_it_lies_is_refused() -> None:
    (p,) = parameters([(40, 3)])
    optimizer = FastAdamW([p], lr=0.1)
    give_gradients(optimizer)
    optimizer.step()
    before = p.detach().clone()
    p.data = p.data[:10]
    with pytest.raises(ValueError, match=r"differ in shape: \(10, 3\), \(40, 3\), \(40, 3\), \(40, 3\)"):
        optimizer.step()
    give_gradients(optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"differ in shape: \(10, 3\), \(10, 3\), \(40, 3\), \(40, 3\)"):
            optimizer.step()
    assert torch.equal(p, before[:10])


def test_a_schedule_moves_the_rate() -> None:
    ours, theirs = pair()
    for number in range(3):
        for optimizer in (ours, theirs):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + number)
        give_gradients(ours, theirs, seed=number)
        ours.step(), theirs.step()
    assert_alike(ours, theirs)


def missing(optimizer: torch.optim.Optimizer) -> None:
    of(optimizer)[0].grad = None


def doubles(optimizer: torch.optim.Optimizer) -> None:
    for p in of(optimizer):
        p.data, p.grad = p.data.double(), p.grad.double()


def strided(optimizer: torch.optim.Optimizer) -> None:
    of(optimizer)[1].grad = of(optimizer)[1].grad.t().contiguous().t()


def uneven(optimizer: torch.optim.Optimizer) -> None:
    """One parameter has seen a step more than its group."""
    p = of(optimizer)[1]
    others = [q.grad for q in of(optimizer)]
    for q in of(optimizer):
        q.grad = q.grad if q is p else None
    torch.optim.AdamW.step(optimizer)
    for q, grad in zip(of(optimizer), others, strict=True):
        q.grad = grad


@pytest.mark.parametrize("change", [missing, doubles, strided, uneven])
def test_what_there_is_no_loop_for_is_left_to_pytorch(change: Callable, own_steps: list[int]) -> None:
    ours, theirs = pair()
    give_gradients(ours, theirs)
    change(ours), change(theirs)
    own_steps.clear()
    norm = clip_and_step(ours, 1.0)
    assert own_steps
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(of(theirs), 1.0))
    theirs.step()
    for p, q in zip(of(ours), of(theirs), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}, {"lr": torch.tensor(0.01)}])
def test_special_forms_are_left_to_pytorch(options: dict, own_steps: list[int]) -> None:
    ours, theirs = pair(**options)
    give_gradients(ours, theirs)
    ours.step()
    assert own_steps
    theirs.step()
    assert_alike(ours, theirs)


def test_a_closure_is_called(own_steps: list[int]) -> None:
    ours, _ = pair()
    give_gradients(ours)
    assert float(ours.step(lambda: torch.tensor(3.0))) == 3
    assert own_steps


def test_sparse_gradients_are_refused_as_by_pytorch() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    optimizer = FastAdamW(table.parameters(), lr=0.1)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize("way", ["step", "clip_and_step", "left to PyTorch"])
def test_hooks_and_schedulers_see_one_step(way: str) -> None:
    torch.optim.AdamW(parameters())  # PyTorch wraps the class's step when the first one is made
    optimizer, _ = pair()
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *args: seen.append("before"))
    optimizer.register_step_post_hook(lambda *args: seen.append("after"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    give_gradients(optimizer)
    if way == "left to PyTorch":
        missing(optimizer)
    _ = optimizer.step() if way == "step" else optimizer.clip_and_step(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule.step()
    assert seen == ["before", "after"] and optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("overflow", [False, True])
def test_a_grad_scaler_scales_and_skips(overflow: bool) -> None:
    results = []
    for kind in (FastAdamW, torch.optim.AdamW):
        (p,) = parameters([(8,)])
        optimizer, scaler = kind([p], lr=0.1, eps=1.0, fused=True), torch.amp.GradScaler("cpu")
        scaler.scale((p * (math.inf if overflow else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        results.append(p.detach())
    torch.testing.assert_close(results[0], results[1])


def test_another_shape_is_refused() -> None:
    (small,), (large,) = parameters([(10,)]), parameters([(4_000_000,)])
    first, second = FastAdamW([small]), FastAdamW([large])
    give_gradients(first, second)
    first.step()
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match=r"differ in shape: \(4000000,\), \(4000000,\), \(10,\), \(10,\)"):
        second.step()


def test_a_step_is_seen_by_who_keeps_what_was_made_of_the_weights() -> None:
    ours, _ = pair()
    give_gradients(ours)
    before = [p._version for p in of(ours)]
    ours.step()
    assert all(p._version > v for p, v in zip(of(ours), before, strict=True))


def test_another_parameter_at_the_same_place_is_the_one_that_is_told() -> None:
    (p,) = parameters([(9,)])
    optimizer = FastAdamW([p], lr=0.1)
    give_gradients(optimizer)
    optimizer.step()
    twin = nn.Parameter(p.data)
    optimizer.param_groups[0]["params"], optimizer.state[twin] = [twin], optimizer.state.pop(p)
    give_gradients(optimizer)
    before = twin._version
    optimizer.step()
    assert twin._version > before


def test_a_slow_mean() -> None:
    """``1 − beta1`` has all its places, though ``beta1`` is nearly 1."""
    (p,) = parameters([(5,)])
    optimizer = FastAdamW([p], lr=0.1, betas=(1 - 1e-6, 1 - 1e-6))
    p.grad = torch.ones(5)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].tolist() == pytest.approx([1e-6] * 5, rel=1e-6)


def test_a_small_model_loads_no_compiled_code() -> None:
    code = "import sys, torch\nfrom ai_learning.optim import adamw\nadamw(torch.nn.Linear(8, 8), 0.1)\n"
    code += "print({'numba', 'llvmlite'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()", done.stderr


def test_adamw_takes_it_for_models_that_are_large_enough() -> None:
    small, large = nn.Linear(8, 8), nn.Linear(512, module.WORTH_IT // 512)
    assert type(adamw(small, 0.1)) is torch.optim.AdamW and type(adamw(large, 0.1)) is FastAdamW
    assert type(adamw(large.double(), 0.1)) is torch.optim.AdamW


def test_clipping_together_is_over_all_optimizers() -> None:
    a, b = parameters([(70, 1000), (3,)])
    a.grad, b.grad = torch.full_like(a, 3.0), torch.full_like(b, 4.0)
    both = Together([FastAdamW([a], lr=0.1), torch.optim.SGD([b], lr=1.0)])
    before = b.detach().clone()
    norm = clip_and_step(both, 1.0)
    assert float(norm) == pytest.approx(math.sqrt(70_000 * 9 + 3 * 16))
    torch.testing.assert_close(before - b, torch.full_like(b, 4 / float(norm)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads: int) -> None:
    results = []
    for number in (1, threads):
        before = torch.get_num_threads()
        torch.set_num_threads(number)
        try:
            (p,) = parameters([(400, 500)])
            optimizer = FastAdamW([p], lr=0.1)
            for seed in range(3):
                give_gradients(optimizer, seed=seed)
                norm = optimizer.clip_and_step(1.0)
        finally:
            torch.set_num_threads(before)
        results.append((p.detach().clone(), norm))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
