"""PEFT's files both ways, on our GPT and on transformers' GPT-2: logits, gradients, refusals."""

import copy
import json
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    adapter_names,
    inject_lora,
    load_peft,
    lora_state_dict,
    save_peft,
)
from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss

from .helpers import disturb, gpt, hf_pair, ids, same_state

VARIANTS = [
    {},
    {"use_dora": True},
    {"use_rslora": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"modules_to_save": ["ln_f"]},
    {"modules_to_save": ["lm_head"]},
    {"modules_to_save": ["mlp"], "target_modules": ["c_attn"]},
    {"target_modules": ["c_attn", "lm_head"]},
    {"target_modules": ["wte", "c_attn"]},
    {"target_modules": r"h\.1\..*"},
    {"rank_pattern": {"c_fc": 2}, "alpha_pattern": {"c_proj": 3}},
    {"target_modules": ["h.0.attn.c_proj", "h.1.mlp.c_fc"], "use_dora": True, "use_rslora": True},
    {"target_modules": ["c_attn", "c_fc"], "exclude_modules": ["h.0.mlp.c_fc"]},
    {"target_modules": "all-linear", "layers_to_transform": [1], "exclude_modules": r".*c_proj"},
    {"target_modules": ["c_fc", "c_attn"], "rank_pattern": {r"^h\.1\.mlp\.c_fc": 2}},
]


def gradients(model, loss):
    """By an adapter weight's name in PEFT's file."""
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_both_ways_with_peft_on_transformers(settings, tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    base = copy.deepcopy(ours)
    disturb(inject_lora(ours, LoRAConfig(r=4, lora_alpha=7, **settings)))
    want = ours(ids())
    assert (want - base(ids())).abs().max() > 1e-2
    save_peft(ours, tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours", is_trainable=True).eval()
    assert torch.allclose(opened(ids()).logits, want, atol=1e-5)
    # the same gradients
    loss = F.cross_entropy(opened(ids()).logits.flatten(0, 1), ids().flatten())
    loss.backward()
    mine = next_token_loss(ours, ids(), ids())
    mine.backward()
    assert mine.item() == pytest.approx(loss.item(), abs=1e-5)
    pairs = 0
    layers = dict(opened.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad and "lora_" in name:
            kind = "lora_embedding" if ".wte." in f".{name}" else "lora"
            key = "base_model.model." + ("" if name.startswith("lm_head") else "transformer.") + name
            key = key.replace("lora_A", f"{kind}_A").replace("lora_B", f"{kind}_B")
            other = layers.get(key, layers.get(key + ".weight"))
            assert torch.allclose(parameter.grad, other.grad, atol=1e-5), name
            pairs += 1
    assert pairs >= 4
    # and back: what PEFT saves opens on ours
    opened.save_pretrained(tmp_path / "theirs")
    fresh = copy.deepcopy(base)
    config = load_peft(fresh, tmp_path / "theirs")
    assert torch.allclose(fresh(ids()), want, atol=1e-5)
    assert config.r == 4 and config.use_dora == settings.get("use_dora", False)
    keys = set(load_file(tmp_path / "ours" / "adapter_model.safetensors"))
    extra = set(load_file(tmp_path / "theirs" / "adapter_model.safetensors")) - keys
    assert extra <= {"base_model.model.lm_head.base_layer.weight"} and keys


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"target_modules": "all-linear"}], ids=str)
def test_adapter_made_by_peft_opens_on_ours(settings, tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    made = peft.get_peft_model(
        theirs,
        peft.LoraConfig(
            **(
                {"r": 5, "lora_alpha": 3, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
                | settings
            )
        ),
    ).eval()
    disturb(made)
    made.save_pretrained(tmp_path)
    load_peft(ours, tmp_path)
    assert torch.allclose(ours(ids()), made(ids()).logits, atol=1e-5)
    merged = copy.deepcopy(made).merge_and_unload()
    assert torch.allclose(ours(ids()), merged(ids()).logits, atol=1e-5)


def test_ours_on_the_transformers_model_keeps_its_names(tmp_path):
    peft = pytest.importorskip("peft")
    _, theirs = hf_pair()
    plain = copy.deepcopy(theirs)
    disturb(inject_lora(theirs, LoRAConfig(r=2)))
    save_peft(theirs, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    opened = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    assert torch.allclose(opened(ids()).logits, theirs(ids()).logits, atol=1e-5)
    load_peft(plain, tmp_path)
    assert torch.equal(plain(ids()).logits, theirs(ids()).logits)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_round_trip_without_peft(settings, tmp_path):
    model = gpt()
    fresh = copy.deepcopy(model)
    disturb(inject_lora(model, LoRAConfig(r=3, **settings)))
    save_peft(model, tmp_path)
    load_peft(fresh, tmp_path)
    assert torch.equal(fresh(ids()), model(ids()))
    a, b = lora_state_dict(model), lora_state_dict(fresh)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def saved(folder, seed=1, **settings):
    model = gpt()
    model.load_state_dict(BASE)
    disturb(inject_lora(model, LoRAConfig(**({"r": 2} | settings))), seed=seed)
    save_peft(model, folder)
    return model(ids())


torch.manual_seed(3)
BASE = gpt().state_dict()


def base():
    model = gpt()
    model.load_state_dict(BASE)
    return model


def test_hot_swap_keeps_the_tensors(tmp_path):
    one = saved(tmp_path / "1")
    two = saved(tmp_path / "2", seed=2, lora_alpha=40)
    other = saved(tmp_path / "3", seed=3, r=5, use_dora=True)
    model = base()
    load_peft(model, tmp_path / "1")
    assert torch.equal(model(ids()), one)
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    load_peft(model, tmp_path / "2")  # another alpha, the same shapes
    assert torch.equal(model(ids()), two)
    assert pointers == {name: p.data_ptr() for name, p in model.named_parameters()}
    load_peft(model, tmp_path / "3")  # another kind: replaced
    assert torch.equal(model(ids()), other)
    load_peft(model, tmp_path / "1", "second")
    assert adapter_names(model) == ["default", "second"] and torch.equal(model(ids()), one)


def damage(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bad_files_are_refused_and_the_model_left_alone(tmp_path):
    saved(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    good_config, good = config.read_bytes(), load_file(weights)

    def refused(match):
        model = base()
        with pytest.raises(InputError, match=match):
            load_peft(model, tmp_path)
        assert same_state(model, base()) and not adapter_names(model)
        config.write_bytes(good_config)
        save_file(good, weights)

    for change, word in [
        ({"peft_type": "IA3"}, "IA3"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 0}, "r=0"),
    ]:
        damage(tmp_path, **change)
        refused(word)
    config.write_text("{")
    refused("cannot be read")
    config.unlink()
    refused("no adapter_config.json")
    weights.write_bytes(b"nonsense")
    refused("damaged")
    weights.unlink()
    refused("no adapter_model.safetensors")
    save_file({k.replace("c_fc", "c_xx"): v for k, v in good.items()}, weights)
    refused(r"c_xx")
    save_file({k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in good.items()}, weights)
    refused("wide")
    save_file({k: v for k, v in good.items() if "h.0.mlp.c_fc.lora_B" not in k}, weights)
    refused("missing")
    save_file({k.removeprefix("base_model."): v for k, v in good.items()}, weights)
    refused("not PEFT's format")


def test_another_frozen_head_in_the_file_is_refused(tmp_path):
    saved(tmp_path, target_modules=["lm_head"])
    weights = tmp_path / "adapter_model.safetensors"
    state = load_file(weights)
    key = "base_model.model.lm_head.base_layer.weight"
    save_file(state | {key: BASE["lm_head.weight"].clone()}, weights)
    load_peft(base(), tmp_path)
    save_file(state | {key: BASE["lm_head.weight"] + 1}, weights)
    with pytest.raises(InputError, match="another model"):
        load_peft(base(), tmp_path)


def test_saving_over_an_adapter_is_atomic(tmp_path, monkeypatch):
    want = saved(tmp_path)

    def broken(state, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("ai_learning.adapters.peft.save_file", broken)
    with pytest.raises(OSError, match="no space"):
        saved(tmp_path, seed=2)
    model = base()
    load_peft(model, tmp_path)
    assert torch.equal(model(ids()), want)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_layers_that_a_name_would_not_tell_apart(tmp_path):
    def model():
        torch.manual_seed(0)
        inner = nn.Sequential(OrderedDict(fc=nn.Linear(8, 8)))
        return nn.Sequential(OrderedDict(fc=nn.Linear(8, 8), block=inner))

    settings = {"target_modules": ["fc"], "exclude_modules": ["block.fc"], "r": 2}
    ours = disturb(inject_lora(model(), LoRAConfig(**settings)))
    save_peft(ours, tmp_path, task_type=None)
    x = torch.randn(3, 8)
    again = model()
    load_peft(again, tmp_path)
    assert torch.equal(again(x), ours(x))
    peft = pytest.importorskip("peft")
    opened = peft.PeftModel.from_pretrained(model(), tmp_path).eval()
    torch.testing.assert_close(opened(x), ours(x))
