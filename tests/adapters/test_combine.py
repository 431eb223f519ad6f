"""Several adapters in one: the sum itself, and each of PEFT's ways as PEFT computes it."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    adapter_config,
    adapter_names,
    add_weighted_adapter,
    inject_lora,
    load_peft,
    lora_state_dict,
    save_peft,
    set_adapter,
    use_adapter,
)
from ai_learning.adapters.combine import COMBINATIONS, _closest, _largest, _pruned_sum, _random_part
from ai_learning.errors import InputError

from .helpers import disturb, gpt, hf_pair, ids

TARGETS = ["c_attn", "c_fc", "wte"]


def two_adapters(model, ranks=(4, 4), **settings):
    """Adapters "a" and "b" that matter, with different scales."""
    for number, (name, r) in enumerate(zip("ab", ranks, strict=True)):
        config = LoRAConfig(r=r, lora_alpha=7 + number, **({"target_modules": TARGETS} | settings))
        disturb(inject_lora(model, config, name), seed=number)
    return model


def every_third(p):
    """In place of `torch.bernoulli`: a matrix of ones and zeros that is its own transpose."""
    i, j = (torch.arange(size).view(shape) for size, shape in zip(p.shape, ((-1, 1), (1, -1)), strict=True))
    return ((i * j + i + j) % 3 != 0).to(p.dtype)


def deltas(model, name):
    return {p: m.delta(name).detach() for p, m in model.named_modules() if name in getattr(m, "adapters", {})}


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, -2.0], [0.0, 1.0]])
def test_cat_is_the_weighted_sum(weights):
    model = add_weighted_adapter(two_adapters(gpt(), (2, 5)), ["a", "b"], weights, "both", "cat")
    a, b, both = (deltas(model, name) for name in ("a", "b", "both"))
    assert adapter_config(model, "both").r == 7
    for path, delta in both.items():
        torch.testing.assert_close(delta, weights[0] * a[path] + weights[1] * b[path], atol=1e-6, rtol=1e-5)


def test_cat_computes_what_both_adapters_active_compute():
    model = add_weighted_adapter(two_adapters(gpt()), ["a", "b"], [1.0, 1.0], "both", "cat")
    with use_adapter(model, ["a", "b"]):
        want = model(ids())
    with use_adapter(model, "both"):
        torch.testing.assert_close(model(ids()), want, atol=1e-5, rtol=1e-5)


def test_svd_of_enough_ranks_is_the_sum_and_of_fewer_the_closest():
    model = two_adapters(gpt(), (2, 3))
    add_weighted_adapter(model, ["a", "b"], [1.0, 0.5], "exact", "svd", svd_rank=5)
    add_weighted_adapter(model, ["a", "b"], [1.0, 0.5], "short", "svd", svd_rank=2)
    add_weighted_adapter(model, ["a", "b"], [1.0, 0.5], "cat", "cat")
    sums, exact, short = (deltas(model, name) for name in ("cat", "exact", "short"))
    for path, delta in sums.items():
        torch.testing.assert_close(exact[path], delta, atol=1e-5, rtol=1e-4)
        left = torch.linalg.svdvals(delta)[2:].square().sum()  # Eckart-Young: no rank 2 comes closer
        assert (short[path] - delta).square().sum() == pytest.approx(left.item(), rel=1e-3)


def test_a_rank_beyond_the_layer_is_filled_with_zeros():
    A, B = torch.randn(3, 4), torch.randn(2, 3)
    short_A, short_B = _closest(A, B, 6)
    assert short_A.shape == (6, 4) and short_B.shape == (2, 6)
    torch.testing.assert_close(short_B @ short_A, B @ A)


@pytest.mark.parametrize("signs", ["total", "frequency"])
@pytest.mark.parametrize("how", COMBINATIONS)
def test_as_peft_does(how, signs, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    # The same random part on both sides, though PEFT draws at another time and on the transposed update.
    monkeypatch.setattr(torch, "bernoulli", every_third)
    ours, theirs = hf_pair()
    two_adapters(ours)
    for name in "ab":
        save_peft(ours, tmp_path / name, name)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "a", adapter_name="a")
    opened.load_adapter(tmp_path / "b", adapter_name="b")
    options = {"density": 0.6, "majority_sign_method": signs}
    weights = [0.7, -1.3]
    opened.add_weighted_adapter(["a", "b"], weights, "both", how, svd_rank=3, **options)
    add_weighted_adapter(ours, ["a", "b"], weights, "both", how, svd_rank=3, **options)
    opened.set_adapter("both")
    set_adapter(ours, "both")
    tolerance = 1e-4 if how.endswith("svd") else 1e-5
    torch.testing.assert_close(ours(ids()), opened(ids()).logits, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("density", [0.3, 1.0])
@pytest.mark.parametrize("signs", ["total", "frequency"])
@pytest.mark.parametrize("how", ["magnitude_prune", "ties", "dare_linear", "dare_ties"])
@pytest.mark.filterwarnings("ignore:The density")
def test_the_arithmetic_is_that_of_pefts_merge_utils(how, signs, density):
    utils = pytest.importorskip("peft.utils.merge_utils")
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(6, 11, generator=generator) for _ in range(3)]
    weights = [0.5, -1.0, 2.0]
    extra = (signs,) if how.endswith("ties") else ()
    torch.manual_seed(0)
    want = getattr(utils, how)(tensors, torch.tensor(weights), density, *extra)
    torch.manual_seed(0)
    assert torch.equal(_pruned_sum(tensors, weights, how, density, signs), want)


def test_pruning_keeps_the_share_it_was_asked_for():
    tensor = torch.randn(40, 50)
    kept = _largest(tensor, 0.25)
    assert int((kept != 0).sum()) == 500
    assert kept.abs()[kept != 0].min() >= tensor.abs()[kept == 0].max()
    part = _random_part(torch.ones(400, 500), 0.25)
    assert set(part.unique().tolist()) == {0.0, 4.0} and abs(part.mean() - 1) < 0.02


def test_a_layer_of_one_adapter_only_gets_its_share():
    model = gpt()
    disturb(inject_lora(model, LoRAConfig(r=2, target_modules=["c_attn"]), "a"))
    disturb(inject_lora(model, LoRAConfig(r=3, target_modules=["c_fc"], use_rslora=True), "b"))
    add_weighted_adapter(model, ["a", "b"], [2.0, 3.0], "both", "cat")
    a, b, both = (deltas(model, name) for name in ("a", "b", "both"))
    assert both.keys() == a.keys() | b.keys()
    for path, delta in both.items():
        torch.testing.assert_close(delta, 2 * a[path] if path in a else 3 * b[path], atol=1e-6, rtol=1e-5)


def test_the_active_adapters_stay_active_and_the_others_untouched():
    model = two_adapters(gpt())
    set_adapter(model, ["a", "b"])
    before = {n: {k: v.clone() for k, v in lora_state_dict(model, n).items()} for n in "ab"}
    want, trainable = model(ids()), {n for n, p in model.named_parameters() if p.requires_grad}
    add_weighted_adapter(model, ["a", "b"], [1.0, 1.0], "both", "svd")
    assert torch.equal(model(ids()), want)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    for name in "ab":
        after = lora_state_dict(model, name)
        assert all(torch.equal(tensor, after[key]) for key, tensor in before[name].items())


def test_a_combined_adapter_is_saved_and_opened_like_any(tmp_path):
    model = two_adapters(gpt(), (2, 3), rank_pattern={"c_fc": 1})
    add_weighted_adapter(model, ["a", "b"], [1.0, -0.5], "both", "cat")
    save_peft(model, tmp_path, "both")
    other = gpt()
    other.load_state_dict({k: v for k, v in gpt_state(model).items()})
    load_peft(other, tmp_path)
    set_adapter(model, "both")
    torch.testing.assert_close(other(ids()), model(ids()), atol=1e-6, rtol=1e-6)


def gpt_state(model):
    """The frozen weights of an adapted model, under their own names."""
    return {
        name.replace(".base_layer", ""): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


def nested():
    """Layers of which one's name is the end of another's."""
    return nn.Sequential(
        OrderedDict(fc=nn.Linear(8, 8), block=nn.Sequential(OrderedDict(fc=nn.Linear(8, 8))))
    )


def test_a_name_that_ends_another_means_itself_only(tmp_path):
    model = nested()
    for name in "ab":
        disturb(inject_lora(model, LoRAConfig(r=2, target_modules="(fc)"), name))
    add_weighted_adapter(model, ["a", "b"], [1, 1], "both", "cat")
    assert deltas(model, "both").keys() == {"fc"}
    other = nested()
    disturb(inject_lora(other, LoRAConfig(r=2, target_modules=["fc"], rank_pattern={"^fc": 1}), "a"))
    disturb(inject_lora(other, LoRAConfig(r=3, target_modules=["fc"]), "b"))
    add_weighted_adapter(other, ["a", "b"], [1, 0], "both", "cat")
    for path, delta in deltas(other, "both").items():
        torch.testing.assert_close(delta, deltas(other, "a")[path])
    save_peft(other, tmp_path, "both")
    again = nested()
    again.load_state_dict(gpt_state(other))
    load_peft(again, tmp_path)
    set_adapter(other, "both")
    x = torch.randn(3, 8)
    torch.testing.assert_close(again(x), other(x))


@pytest.mark.parametrize("how", COMBINATIONS)
def test_adapters_in_16_bits(how):
    model = two_adapters(gpt()).bfloat16()
    add_weighted_adapter(model, ["a", "b"], [1.0, 0.5], "both", how, density=0.9)
    set_adapter(model, "both")
    assert model(ids()).isfinite().all()


@pytest.mark.parametrize("how", ["cat", "svd", "linear", "ties_svd"])
def test_a_sum_that_is_not_finite_is_refused(how):
    model = two_adapters(gpt())
    with torch.no_grad():
        model.h[0].mlp.c_fc.lora_A["a"][0, 0] = torch.nan
    with pytest.raises(InputError, match=r"h\.0\.mlp\.c_fc: the sum is not finite"):
        add_weighted_adapter(model, ["a", "b"], [1.0, 0.5], "both", how)
    assert adapter_names(model) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, (["a", "c"], [1, 1], "n", "cat"), "no adapter 'c'"),
        ({}, (["a", "b"], [1], "n", "cat"), "same length"),
        ({}, ([], [], "n", "cat"), "not empty"),
        ({}, ("ab", [1, 1], "n", "cat"), "two lists"),
        ({}, (["a", "a"], [1, 1], "n", "cat"), "names one twice"),
        ({}, (["a", "b"], [1, float("nan")], "n", "cat"), "finite"),
        ({}, (["a", "b"], ["1", "1"], "n", "cat"), "finite"),
        ({}, (["a", "b"], [1, 1], "n", "sum"), "combination_type='sum' is unknown: use one of cat, svd"),
        ({}, (["a", "b"], [1, 1], "a", "cat"), "has an adapter 'a' already"),
        ({}, (["a", "b"], [1, 1], "n", "linear"), r"ranks \[2, 3\] cannot be combined by 'linear'"),
        ({"use_dora": True, "target_modules": ["c_fc"]}, (["a", "b"], [1, 1], "n", "svd"), "is DoRA"),
        ({"modules_to_save": ["ln_f"]}, (["a", "b"], [1, 1], "n", "svd"), "trained whole modules"),
    ],
)
def test_what_cannot_be_combined_is_refused_and_nothing_changes(settings, arguments, message):
    model = two_adapters(gpt(), (2, 3), **settings)
    want = model(ids())
    with pytest.raises(InputError, match=message):
        add_weighted_adapter(model, *arguments)
    assert adapter_names(model) == ["a", "b"] and torch.equal(model(ids()), want)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"svd_rank": 0}, "svd_rank=0"),
        ({"density": 0.0}, "density=0.0"),
        ({"density": 1.5}, "density=1.5"),
        ({"majority_sign_method": "most"}, "majority_sign_method='most' is unknown"),
    ],
)
def test_options_that_cannot_work(option, message):
    with pytest.raises(InputError, match=message):
        add_weighted_adapter(two_adapters(gpt()), ["a", "b"], [1, 1], "n", "ties_svd", **option)
