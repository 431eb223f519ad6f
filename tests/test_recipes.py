"""Recipes at one size: the same number of parameters, and each learns."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ai_learning.device import checkpointed, compile_blocks
from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss, reference_next_token_loss
from ai_learning.model.record import RecordGPT, ShortConvolution
from ai_learning.optim import muon_with_adamw, reference_adamw_step
from ai_learning.recipes import RECIPES
from ai_learning.text import read_text


@pytest.mark.parametrize("name", RECIPES)
def test_same_size_and_no_look_ahead(name: str) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    model = recipe.build().eval()
    # nanoGPT counts 0.80 M
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(804_000, rel=0.01)
    for parameter in model.parameters():  # zeros would hide a leak
        parameter.data += 0.05 * torch.randn_like(parameter)
    idx = torch.randint(0, 65, (2, 64))
    changed = idx.clone()
    changed[:, 40:] = 7
    torch.testing.assert_close(model(idx)[:, :40], model(changed)[:, :40], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(idx)[:, 40:], model(changed)[:, 40:], atol=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_learns(name: str) -> None:
    torch.manual_seed(0)
    recipe = RECIPES[name]
    model = recipe.build()
    optimizers = recipe.optimizers(model)
    assert len(optimizers) == (1 if recipe.muon_lr is None else 2)
    text = (
        np.frombuffer(read_text("builtin:reference")[:20_000].encode("ascii", "ignore"), dtype=np.uint8) % 65
    )
    tokens = torch.from_numpy(text.astype(np.int64))
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(30):
        starts = torch.randint(0, len(tokens) - 65, (12,), generator=generator)
        w = torch.stack([tokens[s : s + 65] for s in starts.tolist()])
        loss = F.cross_entropy(model(w[:, :-1]).flatten(0, 1), w[:, 1:].flatten())
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(65), abs=0.6)
    assert sum(losses[-5:]) / 5 < losses[0] - 0.7


def test_every_parameter_has_one_optimizer_and_its_own_rate() -> None:
    model = RECIPES["record"].build()
    optimizers = muon_with_adamw(model, lr=1.0, muon_lr=2.0, lr_by_name={"wte.weight": 3.0}, weight_decay=0.5)
    rates = {
        id(p): (type(o).__name__, g["lr"], g["weight_decay"])
        for o in optimizers
        for g in o.param_groups
        for p in g["params"]
    }
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(rates) == len(trained) == len(list(model.parameters())) - 1  # the first block mixes no values
    names = {name: rates[id(p)] for name, p in trained.items()}
    assert names["wte.weight"] == ("AdamW", 3.0, 0.5)
    assert names["h.0.attn.c_attn.weight"] == ("Muon", 2.0, 0.5)
    assert names["ln_f.weight"] == ("AdamW", 1.0, 0.0) and names["lm_head.weight"] == ("AdamW", 1.0, 0.5)


@pytest.mark.parametrize("name", RECIPES)
def test_the_librarys_loss_is_that_of_the_models_own_logits(name: str) -> None:
    """Bounded ones, too; and every parameter that may have a gradient has one, as DDP asks."""
    torch.manual_seed(0)
    model = RECIPES[name].build()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x, y = torch.randint(0, 65, (2, 2, 64)).unbind()
    y[0, :9] = -100
    loss = next_token_loss(model, x, y)
    torch.testing.assert_close(loss, reference_next_token_loss(model, x, y))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="no target counts"):
        next_token_loss(model, x, torch.full_like(y, -100))


def test_record_blocks_are_recomputed_and_compiled() -> None:
    torch.manual_seed(0)
    model = RECIPES["record"].build()
    x, y = torch.randint(0, 65, (2, 2, 64)).unbind()
    kept, losses = [], []
    for recompute in (False, True):
        sizes: list[int] = []

        def count(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        looking_on = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
        with looking_on, checkpointed(model) if recompute else nullcontext():
            loss = next_token_loss(model, x, y)
            loss.backward()
        kept.append(sum(sizes))
        losses.append(loss.item())
    assert losses[0] == losses[1] and kept[1] < kept[0] / 3
    compile_blocks(model)
    assert all(block._compiled_call_impl is not None for block in model.h)


def test_an_option_that_would_do_nothing_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="compile acts on blocks, and Sequential has no Block"):
        compile_blocks(model)
    with pytest.raises(InputError, match="checkpoint_activations acts on blocks"), checkpointed(model):
        pass


def test_short_convolution_begins_as_nothing_and_looks_back_only() -> None:
    convolution = ShortConvolution(3, length=4)
    x = torch.randn(2, 9, 3)
    assert torch.equal(convolution(x), x)
    torch.nn.init.normal_(convolution.weight)
    expected = x.clone()
    for t in range(9):
        for back in range(min(4, t + 1)):
            expected[:, t] += x[:, t - back] * convolution.weight[:, 0, 3 - back]
    torch.testing.assert_close(convolution(x), expected)


def test_record_mixes_the_first_values() -> None:
    torch.manual_seed(0)
    model = RecordGPT(RECIPES["record"].model)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    idx = torch.randint(0, 65, (1, 8))
    before = model(idx)
    model.h[2].attn.value_mix.data[1] += 1.0
    assert not torch.allclose(before, model(idx), atol=1e-4)
    assert model(idx).abs().max() < model.softcap
    bounded = model(idx)
    model.softcap = math.inf  # the ablation "without a softcap"
    torch.testing.assert_close(15.0 * torch.tanh(model(idx) / 15.0), bounded)


def test_adamw_step_written_out_is_torchs() -> None:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.3)
    p, m, v = parameter.detach().clone(), torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step in range(1, 6):
        parameter.grad = torch.randn_like(parameter)
        p, m, v = reference_adamw_step(
            p, parameter.grad, m, v, step, lr=0.1, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.3
        )
        optimizer.step()
        torch.testing.assert_close(p, parameter.detach())
