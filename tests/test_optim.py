"""Decay groups and learning-rate schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.model import GPT
from ai_learning.optim import SCHEDULES, adamw, lr_factor, parameter_groups


def test_matrices_decay_and_vectors_do_not(tiny_gpt: GPT) -> None:
    decay, no_decay = parameter_groups(tiny_gpt, 0.1)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in tiny_gpt.named_parameters()}
    assert all("ln" not in names[id(p)] and "bias" not in names[id(p)] for p in decay["params"])
    assert all("ln" in names[id(p)] or "bias" in names[id(p)] for p in no_decay["params"])
    assert len(decay["params"]) + len(no_decay["params"]) == len(names)  # the tied weight stands once


def test_frozen_parameters_are_left_out(tiny_gpt: GPT) -> None:
    for p in tiny_gpt.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        adamw(tiny_gpt, 1e-3)
    tiny_gpt.ln_f.weight.requires_grad_(True)
    assert sum(len(g["params"]) for g in adamw(tiny_gpt, 1e-3).param_groups) == 1


def test_one_adamw_step_by_hand() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    optimizer = adamw(layer, lr=0.1, weight_decay=0.5, eps=0.0)
    layer.weight.grad = torch.tensor([[7.0]])
    optimizer.step()
    # decoupled decay, then a first step of exactly lr · sign(gradient): algorithm 2 of Loshchilov & Hutter
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) - 0.1)


@given(
    st.sampled_from(SCHEDULES),
    st.integers(1, 500),
    st.integers(0, 100),
    st.floats(0, 1),
    st.integers(0, 600),
)
def test_factor_stays_in_range(schedule: str, total: int, warmup: int, floor: float, step: int) -> None:
    factor = lr_factor(step, total, schedule, warmup, floor)
    assert 0 <= factor <= 1
    if step >= warmup:
        assert factor >= floor - 1e-12


def test_shapes_of_the_schedules() -> None:
    def at(schedule: str, step: int) -> float:
        return lr_factor(step, 1000, schedule, 100, 0.1)

    assert all(at(s, 0) == pytest.approx(0.01) and at(s, 99) == pytest.approx(1.0) for s in SCHEDULES)
    assert at("constant", 999) == 1
    assert at("linear", 550) == pytest.approx(0.55)
    assert at("cosine", 550) == pytest.approx(0.55)
    assert at("cosine", 1000) == pytest.approx(0.1)
    assert (
        at("wsd", 799) == 1
        and at("wsd", 900) == pytest.approx(0.55)
        and at("wsd", 1000) == pytest.approx(0.1)
    )
    with pytest.raises(ValueError, match="schedule='cos' is not known; use cosine, wsd, linear, constant"):
        lr_factor(0, 10, "cos")
