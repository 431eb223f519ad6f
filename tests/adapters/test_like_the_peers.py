"""What PEFT's own tests ask of an adapter and ours did not: names, dtypes, files, rows, patterns, copies."""

import copy
import io
import json
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    LoRALayer,
    SavedModule,
    adapter_names,
    adapters_by_row,
    delete_adapter,
    eject_lora,
    inject_lora,
    load_lora_state_dict,
    load_peft,
    lora_state_dict,
    merge_lora,
    save_peft,
    set_adapter,
    unmerge_lora,
    use_adapter,
)
from ai_learning.adapters.config import find_targets
from ai_learning.errors import InputError

from .helpers import adapted, disturb, gpt, hf_pair, ids, same_state


def mlp():
    layers = {"lin0": nn.Linear(10, 20), "act": nn.ReLU(), "lin1": nn.Linear(20, 4)}
    return nn.Sequential(OrderedDict(layers)).eval()


def emb_conv():
    """An embedding and transformers' Conv1D, whose weight lies the other way."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    layers = {"emb": nn.Embedding(97, 6), "conv": conv1d(5, 6), "lin": nn.Linear(5, 3)}
    return nn.Sequential(OrderedDict(layers)).eval()


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


# ---- start and names -----------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_an_embedding_starts_with_zero_a_and_normal_b(init):
    model = nn.Sequential(nn.Embedding(500, 400))
    layer = inject_lora(model, LoRAConfig(target_modules=["0"], init=init))[0]
    A, B = layer.lora_A["default"], layer.lora_B["default"].detach()
    assert A.shape == (8, 500) and not A.any() and B.shape == (400, 8)
    assert B.mean().abs() < 0.1 and B.std() == pytest.approx(1, abs=0.1) and B.abs().max() > 2.5


def test_the_adapters_name_makes_no_difference():
    outputs, states = [], []
    for name in ("default", "other-name", "lora_B"):
        torch.manual_seed(7)
        model, _ = adapted(
            LoRAConfig(r=2, modules_to_save=["lin1"], target_modules=["lin0"]), mlp(), adapter_name=name
        )
        outputs.append(model(torch.ones(2, 10)))
        states.append(lora_state_dict(model, name))
    for output, state in zip(outputs, states, strict=True):
        assert torch.equal(output, outputs[0]) and state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


def test_names_that_contain_one_another_are_kept_apart(tmp_path):
    model = mlp()
    names = ["default", "default2", "other_default", "efaul"]
    for seed, name in enumerate(names):
        disturb(inject_lora(model, LoRAConfig(r=2), name), seed=seed)
    for name in names:
        save_peft(model, tmp_path / name, name)
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        own = lora_state_dict(model, name)
        assert saved.keys() == {f"base_model.model.{key}" for key in own} and len(saved) == 4
        assert all(torch.equal(saved[f"base_model.model.{key}"], own[key]) for key in own)
    delete_adapter(model, "default")
    assert adapter_names(model) == names[1:] and not any(
        key.endswith(".default") for key in model.state_dict()
    )


@pytest.mark.parametrize("name", ["keys", "pop", "update", "train", "type", "forward"])
def test_a_name_that_torch_needs_itself_is_refused(name):
    model, before = mlp(), None
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=name):
        inject_lora(model, LoRAConfig(modules_to_save=["lin1"], target_modules=["lin0"]), name)
    assert same_state(model, before) and not adapter_names(model)


def test_a_name_that_is_taken_changes_nothing():
    model, _ = adapted(LoRAConfig(r=2), mlp())
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="already"):
        inject_lora(model, LoRAConfig(r=4))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_a_second_adapter_that_fails_leaves_the_first_at_work():
    model, _ = adapted(LoRAConfig(r=2, target_modules=["lin1"]), mlp())
    x = torch.randn(3, 10)
    want, flags = model(x), trainable(model)
    with pytest.raises(InputError, match="lin1"):
        inject_lora(model, LoRAConfig(target_modules=["lin0"], modules_to_save=["lin1"]), "b")
    assert torch.equal(model(x), want) and trainable(model) == flags and adapter_names(model) == ["default"]
    assert not isinstance(model.lin0, LoRALayer)


def test_wrapped_layers_still_look_like_layers():
    layer = inject_lora(mlp(), LoRAConfig(r=3)).lin0
    assert (layer.in_features, layer.out_features) == (10, 20)
    assert layer.weight.shape == (20, 10) and layer.bias.shape == (20,)
    assert "default: r=3" in repr(layer) and "in_features=10" in repr(layer)


# ---- what is trained -----------------------------------------------------------------------------


@pytest.mark.parametrize("second", [["lin0"], ["lin1"]])
def test_which_weights_learn_follows_the_active_adapter(second):
    model = inject_lora(mlp(), LoRAConfig(target_modules=["lin0"]), "a")
    inject_lora(model, LoRAConfig(target_modules=second), "b")
    of = {
        "a": {"lin0.lora_A.a", "lin0.lora_B.a"},
        "b": {f"{second[0]}.lora_A.b", f"{second[0]}.lora_B.b"},
    }
    assert trainable(model) == of["b"]
    for name in ("a", "b", "a"):
        set_adapter(model, name)
        assert trainable(model) == of[name]
        with use_adapter(model, None):
            assert not trainable(model)
        assert trainable(model) == of[name]
    set_adapter(model, ["a", "b"])
    assert trainable(model) == of["a"] | of["b"]


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_biases_that_learn(bias):
    model = inject_lora(mlp(), LoRAConfig(target_modules=["lin0"], bias=bias))
    want = {
        "none": set(),
        "all": {"lin0.base_layer.bias", "lin1.bias"},
        "lora_only": {"lin0.base_layer.bias"},
    }
    assert {name for name in trainable(model) if name.endswith("bias")} == want[bias]


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_without_an_adapter_it_is_the_base_model_whatever_was_trained(bias):
    model, before = adapted(LoRAConfig(r=2, target_modules=["lin0"], bias=bias), mlp())
    x = torch.randn(3, 10)
    want, state = model(x), {key: value.clone() for key, value in lora_state_dict(model).items()}
    with use_adapter(model, None):
        assert torch.equal(model(x), before(x))
        inside = lora_state_dict(model)
        assert all(torch.equal(inside[key], state[key]) for key in state)
    assert torch.equal(model(x), want)
    kept = lora_state_dict(model)
    with torch.inference_mode():
        set_adapter(model, None)
    assert torch.equal(model(x), before(x)) and all(torch.equal(kept[key], state[key]) for key in kept)
    load_lora_state_dict(model, {key: value * 2 for key, value in state.items()})
    assert torch.equal(model(x), before(x))
    set_adapter(model, "default")
    assert all(torch.equal(value, state[key] * 2) for key, value in lora_state_dict(model).items())
    assert torch.equal(model.lin0.bias, before.lin0.bias if bias == "none" else state["lin0.bias"] * 2)
    inject_lora(model, LoRAConfig(r=2, target_modules=["lin1"]), "b")
    assert torch.equal(model(x), before(x))
    delete_adapter(model, "default")
    assert torch.equal(model(x), before(x))
    eject_lora(model)
    assert same_state(model, before)


@pytest.mark.parametrize("saved", [["ln_f"], ["mlp"], ["ln_1", "lm_head"]], ids=str)
@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_beside_modules_that_are_trained_whole(bias, saved, tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    base = copy.deepcopy(ours)
    disturb(inject_lora(ours, LoRAConfig(r=2, bias=bias, modules_to_save=saved, target_modules=["c_attn"])))
    state = lora_state_dict(ours)
    frozen = copy.deepcopy(ours)
    for path, layer in frozen.named_modules():
        if isinstance(layer, SavedModule):  # the copy's biases are the adapter's, the original's stay
            prefix = f"{path}."
            copied = {prefix + name: t for name, t in layer.copies["default"].state_dict().items()}
            assert copied and all(torch.equal(state[key], tensor) for key, tensor in copied.items())
            assert all(not p.requires_grad for p in layer.original.parameters())
    save_peft(ours, tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert torch.allclose(opened(ids()).logits, ours(ids()), atol=1e-5)
    load_peft(frozen := copy.deepcopy(base), tmp_path)
    assert torch.equal(frozen(ids()), ours(ids()))
    with use_adapter(ours, None):
        assert torch.equal(ours(ids()), base(ids()))
    assert same_state(eject_lora(ours), base)


def test_rows_share_their_biases():
    model, _ = adapted(LoRAConfig(r=2, bias="lora_only"), mlp())
    before = eject_lora(copy.deepcopy(model))
    inject_lora(model, LoRAConfig(r=2), "b")
    set_adapter(model, "default")
    x = torch.randn(2, 10)
    want = model(x)
    with pytest.raises(InputError, match="trained biases"), adapters_by_row(model, ["default", "b"]):
        pass
    with adapters_by_row(model, ["b", None]):
        assert torch.allclose(model(x), before(x), atol=1e-6)
    assert torch.equal(model(x), want)


def test_a_module_that_holds_anothers_adapter_cannot_be_trained_whole():
    model = inject_lora(gpt(), LoRAConfig(target_modules=["c_fc"]), "a")
    with pytest.raises(InputError, match=r"mlp is trained whole, so h\.0\.mlp\.c_fc"):
        inject_lora(model, LoRAConfig(target_modules=["c_attn"], modules_to_save=["mlp"]), "b")
    inject_lora(model, LoRAConfig(target_modules=["c_attn"], modules_to_save=["ln_1"]), "c")
    inject_lora(model, LoRAConfig(target_modules=["c_attn"], modules_to_save=["ln_1"]), "d")
    assert adapter_names(model) == ["a", "c", "d"]


def test_inference_mode_first_training_after():
    model, _ = adapted(LoRAConfig(r=2, use_dora=True), mlp())
    other = copy.deepcopy(model)
    x = torch.randn(3, 10)
    with torch.inference_mode():
        model(x)
    for each in (model, other):
        each(x).square().sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


# ---- dtypes and shapes ---------------------------------------------------------------------------

KINDS = [
    {},
    {"use_dora": True},
    {"bias": "all"},
    {"modules_to_save": ["lin"], "target_modules": ["conv"]},
    {"target_modules": ["emb", "conv", "lin"]},
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("whole", [False, True], ids=["fp32 adapter", "adapter cast too"])
@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_every_state_computes_in_the_models_dtype(dtype, whole, settings):
    exact, _ = adapted(LoRAConfig(r=2, **settings), emb_conv())
    model = eject_lora(copy.deepcopy(exact)).to(dtype)
    inject_lora(model, LoRAConfig(r=2, **settings))
    load_lora_state_dict(model, lora_state_dict(exact))
    if whole:
        model.to(dtype)
    want = exact(ids()).to(dtype)

    def check(y):
        assert y.dtype == dtype and torch.allclose(y, want, atol=0.05, rtol=0.05)

    check(model(ids()))
    loss = model.train()(ids()).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)
    model.eval()
    if not {"modules_to_save", "bias"} & settings.keys():
        with adapters_by_row(model, ["default"] * 3), torch.no_grad():
            check(model(ids()))
    check(merge_lora(model)(ids()))
    check(unmerge_lora(model)(ids()))
    check(eject_lora(model, merge=True)(ids()))
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_cross_dtypes(dtype, tmp_path):
    model, base = adapted(LoRAConfig(r=2, use_dora=True), mlp())
    want = lora_state_dict(copy.deepcopy(model).to(dtype))
    save_peft(copy.deepcopy(model).to(dtype), tmp_path / "low")
    assert {t.dtype for t in load_file(tmp_path / "low" / "adapter_model.safetensors").values()} == {dtype}
    load_peft(base, tmp_path / "low")
    got = lora_state_dict(base)
    assert all(got[key].dtype == torch.float32 and torch.equal(got[key], want[key].float()) for key in got)
    save_peft(model, tmp_path / "full")
    low = eject_lora(copy.deepcopy(model)).to(dtype)
    load_peft(low, tmp_path / "full")  # a frozen model in 16 bits does not round the adapter
    assert all(
        torch.equal(a, b)
        for a, b in zip(lora_state_dict(low).values(), lora_state_dict(model).values(), strict=True)
    )


def test_a_merge_that_overflows_in_the_weights_dtype_is_refused():
    model = mlp().to(torch.float16)
    before = copy.deepcopy(model)
    inject_lora(model, LoRAConfig(r=1, lora_alpha=1))
    with torch.no_grad():
        model.lin1.lora_A["default"].fill_(300)
        model.lin1.lora_B["default"].fill_(300)  # 90,000: finite in fp32, not in fp16
    with pytest.raises(InputError, match=r"lin1.*NaN or Inf"):
        merge_lora(model)
    assert not any(layer.merged for layer in model.modules() if isinstance(layer, LoRALayer))
    assert torch.isfinite(merge_lora(model, dtype=torch.float32).lin1.base_layer.weight).all()
    assert same_state(eject_lora(model, merge=False), before)


@pytest.mark.parametrize("where", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_a_merge_refuses_nan_anywhere(where):
    model, before = adapted(LoRAConfig(r=2, use_dora=True), mlp())
    with torch.no_grad():
        getattr(model.lin1, where)["default"][0] = torch.nan
    with pytest.raises(InputError, match="NaN or Inf"):
        merge_lora(model)
    assert same_state(eject_lora(model), before)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"lora_dropout": 0.1}], ids=str)
@pytest.mark.parametrize("shape", [(10,), (0, 10), (2, 0, 10), (1, 2, 3, 10)], ids=str)
def test_inputs_of_any_shape_even_empty_ones(settings, shape):
    model, before = adapted(LoRAConfig(r=2, **settings), mlp())
    x = torch.randn(shape, requires_grad=True)
    y = model.train()(x)
    assert y.shape == before(x).shape == (*shape[:-1], 4)
    y.sum().backward()
    assert x.grad.shape == shape
    if len(shape) > 1:
        with adapters_by_row(model.eval(), ["default"] * shape[0]):
            assert torch.allclose(model(x), merge_on_copy(model)(x), atol=1e-5)


def merge_on_copy(model):
    copied = copy.deepcopy(model)
    for layer in copied.modules():
        if isinstance(layer, LoRALayer):
            layer.rows = None
    return merge_lora(copied)


# ---- embeddings ----------------------------------------------------------------------------------


def test_padding_of_an_embedding_gets_no_gradient_as_in_peft():
    peft = pytest.importorskip("peft")
    base = nn.Sequential(OrderedDict(emb=nn.Embedding(11, 6, padding_idx=3)))
    theirs = peft.get_peft_model(
        copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["emb"], lora_alpha=2)
    )
    disturb(theirs)
    ours = inject_lora(base, LoRAConfig(r=2, target_modules=["emb"], lora_alpha=2))
    layer = theirs.base_model.model.emb
    load_lora_state_dict(
        ours,
        {f"emb.lora_embedding_{x}": getattr(layer, f"lora_embedding_{x}")["default"] for x in "AB"},
    )
    x = torch.tensor([[3, 1, 3], [2, 3, 10]])
    for model in (ours, theirs):
        model(x).square().sum().backward()
    assert torch.allclose(ours.emb.lora_A["default"].grad, layer.lora_embedding_A["default"].grad)
    assert torch.allclose(ours.emb.lora_B["default"].grad, layer.lora_embedding_B["default"].grad)
    assert not ours.emb.lora_A["default"].grad[:, 3].any()


class Scaled(nn.Embedding):
    """An embedding that scales what it looks up, as Gemma's does."""

    def __init__(self, *args, scale):
        super().__init__(*args)
        self.register_buffer("embed_scale", torch.tensor(scale), persistent=False)

    def forward(self, x):
        return super().forward(x) * self.embed_scale


def test_an_embedding_that_scales_itself_scales_its_update():
    model, before = adapted(LoRAConfig(r=2, target_modules=["0"]), nn.Sequential(Scaled(97, 6, scale=7.0)))
    want = F.embedding(ids(), before[0].weight + model[0].delta("default").t()) * 7
    assert torch.allclose(model(ids()), want, atol=1e-4)
    with adapters_by_row(model, ["default", None, "default"]):
        mixed = model(ids())
    assert torch.allclose(mixed[::2], want[::2], atol=1e-4) and torch.equal(mixed[1], before(ids())[1])
    assert torch.allclose(merge_lora(model)(ids()), want, atol=1e-4)


def test_both_ends_of_a_tied_weight_carry_their_own_update(tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    plain = copy.deepcopy(ours)
    disturb(inject_lora(ours, LoRAConfig(r=2, target_modules=["wte", "lm_head"])))
    want = ours(ids())
    save_peft(ours, tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert torch.allclose(opened(ids()).logits, want, atol=1e-5)
    assert ours.wte.base_layer.weight is ours.lm_head.base_layer.weight
    assert torch.allclose(merge_lora(ours)(ids()), want, atol=1e-5)
    assert not torch.equal(ours.wte.base_layer.weight, ours.lm_head.base_layer.weight)
    assert same_state(eject_lora(ours, merge=False), plain) and ours.wte.weight is ours.lm_head.weight


# ---- a row, an adapter ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "one, two",
    [
        ({"target_modules": ["emb", "conv"]}, {"target_modules": ["emb", "conv"], "r": 5}),
        ({"target_modules": ["emb"]}, {"target_modules": ["lin"]}),
        ({"target_modules": ["conv"]}, {"target_modules": ["conv", "lin"], "use_rslora": True}),
        ({"target_modules": ["conv", "lin"], "use_dora": True}, {"target_modules": ["emb", "conv"]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("grad", [False, True])
def test_rows_over_embeddings_conv1d_and_different_layers(one, two, grad):
    model = emb_conv()
    solo = {None: model(ids(6))}
    for seed, (name, settings) in enumerate({"a": one, "b": two}.items()):
        disturb(inject_lora(model, LoRAConfig(**({"r": 2} | settings)), name), seed=seed, scale=0.5)
        solo[name] = model(ids(6))
    names = [None, "a", "b"] * 2
    with torch.set_grad_enabled(grad):
        with adapters_by_row(model, names):
            mixed = model(ids(6))
        with adapters_by_row(model, [None] * 6):
            assert torch.equal(model(ids(6)), solo[None])
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], solo[name][row], atol=1e-5), (row, name)


def test_rows_drop_out_while_training():
    model, before = adapted(LoRAConfig(r=4, lora_dropout=0.5, target_modules=["lin0"]), mlp())
    disturb(inject_lora(model, LoRAConfig(r=2, target_modules=["lin0"]), "dry"), seed=2)
    set_adapter(model, ["default", "dry"])
    x = torch.randn(4, 10)
    names = ["default", "dry", None, "default"]
    with adapters_by_row(model.train(), names):
        outputs = torch.stack([model.lin0(x) for _ in range(400)])
    spread = outputs.std(0).amax(1)
    assert (spread[[0, 3]] > 0.01).all() and (spread[[1, 2]] == 0).all()
    with adapters_by_row(model.eval(), names):
        want = model.lin0(x)
    assert (outputs.mean(0) - want).abs().max() < 0.3 * (want - before.lin0(x)).abs().max()


def test_contexts_nest_and_a_failed_one_leaves_no_trace():
    model, before = adapted(LoRAConfig(target_modules=["lin0"]), mlp())
    x = torch.randn(2, 10)
    one = model(x)
    with adapters_by_row(model, ["default", None]):
        outer = model(x)
        with adapters_by_row(model, [None, "default"]):
            assert torch.allclose(model(x)[1], one[1], atol=1e-6)
        assert torch.equal(model(x), outer)
    assert torch.equal(model(x), one)
    inject_lora(model, LoRAConfig(target_modules=["lin1"]), "b")  # lin0 has no part in it
    merge_lora(model)
    with pytest.raises(InputError, match="merged"), adapters_by_row(model, ["b", "b"]):
        pass
    unmerge_lora(model)
    assert all(layer.rows is None for layer in model.modules() if isinstance(layer, LoRALayer))
    assert torch.equal(model(x[:1]), before(x[:1]))


# ---- several adapters ----------------------------------------------------------------------------


def test_each_adapter_has_copies_of_its_own_modules_only():
    model = inject_lora(gpt(), LoRAConfig(modules_to_save=["wte"]), "a")
    inject_lora(model, LoRAConfig(modules_to_save=["lm_head"]), "b")
    inject_lora(model, LoRAConfig(), "c")
    assert list(model.wte.copies) == ["a"] and list(model.lm_head.copies) == ["b"]
    for name, saved in {"a": {"wte.copies.a.weight"}, "b": {"lm_head.copies.b.weight"}, "c": set()}.items():
        set_adapter(model, name)
        assert {n for n in trainable(model) if ".copies." in n} == saved


def test_deleting_leaves_nothing_behind():
    model = mlp()
    before, x = copy.deepcopy(model), torch.randn(3, 10)
    outputs = {}
    for seed, saved in enumerate([["lin1"], [], ["lin1"]]):
        name = f"gone{seed}"
        disturb(
            inject_lora(model, LoRAConfig(target_modules=["lin0"], modules_to_save=saved), name), seed=seed
        )
        outputs[name] = model(x)
    delete_adapter(model, "gone1")  # not active: the active one stays
    assert torch.equal(model(x), outputs["gone2"])
    set_adapter(model, "gone0")
    delete_adapter(model, "gone0")  # the active one: the first of the others takes its place
    assert torch.equal(model(x), outputs["gone2"]) and list(model.lin1.copies) == ["gone2"]
    for module in model.modules():
        for attribute in vars(module).values():
            if isinstance(attribute, dict | nn.Module | tuple):
                assert "gone0" not in repr(attribute), type(module)
    set_adapter(model, None)
    assert torch.equal(model(x), before(x))
    with pytest.raises(InputError, match="no adapter 'gone1'"):
        delete_adapter(model, "gone1")
    delete_adapter(model, "gone2")
    assert same_state(model, before) and torch.equal(model(x), before(x)) and not adapter_names(model)


def test_merging_some_of_several():
    model = mlp()
    x, outputs = torch.randn(3, 10), {}
    for seed, name in enumerate("ab"):
        disturb(inject_lora(model, LoRAConfig(target_modules=["lin0"]), name), seed=seed)
        outputs[name] = model.lin0(x)
    base = copy.deepcopy(model.lin0.base_layer)
    for names in ("a", "b", ["a", "b"], ["b", "a"]):
        merged = eject_lora(merge_lora(copy.deepcopy(model), names))
        want = sum(outputs[name] - base(x) for name in names) + base(x)
        assert type(merged.lin0) is nn.Linear and torch.allclose(merged.lin0(x), want, atol=1e-5)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"modules_to_save": ["lin"], "target_modules": ["conv"]}], ids=str
)
def test_pickles_and_files_of_the_whole_model(settings, tmp_path):
    model, before = adapted(LoRAConfig(**settings), emb_conv())
    want = model(ids())
    for state in (model, merge_lora(copy.deepcopy(model))):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        for again in (pickle.loads(pickle.dumps(state)), torch.load(buffer, weights_only=False)):
            assert torch.allclose(again(ids()), want, atol=1e-5) and adapter_names(again) == ["default"]
            assert same_state(eject_lora(again, merge=False), before)
    plain = eject_lora(merge_lora(model))
    save_file(plain.state_dict(), tmp_path / "model.safetensors")  # refuses weights that are not contiguous
    before.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(before(ids()), plain(ids()))


# ---- patterns and files --------------------------------------------------------------------------

PATHS = [
    "foo",
    "foobar",
    "barfoo",
    "a.barfoo",
    "a.foo",
    "a.b.foo",
    "a.foo.bar",
    "h.1.q_proj",
    "h.10.q_proj",
    "h.1.q_proj_extra",
    "out",
]


@pytest.mark.parametrize(
    "targets",
    [
        ["foo"],
        ["foo", "q_proj"],
        ["b.foo"],
        ["1.q_proj"],
        ["a.foo.bar"],
        ".*oo",
        "fo.*",
        ".*oba.*",
        r"h\.\d\..*",
        "(.*)foo",
        ".*(foo|out)$",
    ],
    ids=str,
)
def test_targets_mean_the_layers_that_peft_takes(targets):
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    config = peft.LoraConfig(target_modules=targets)
    theirs = [path for path in PATHS if check_target_module_exists(config, path)]
    assert theirs and find_targets({path: nn.Linear(1, 1) for path in PATHS}, targets, set()) == theirs


def test_the_first_pattern_that_fits_counts_also_after_a_file(tmp_path):
    peft = pytest.importorskip("peft")
    patterns = {
        "rank_pattern": {"mlp": 6, "mlp.c_fc": 2, "c_fc": 3, "attn.*": 5},
        "alpha_pattern": {r"h\.1\..*": 9, "c_fc": 1},
    }
    ours, theirs = hf_pair()
    base = copy.deepcopy(ours)
    disturb(inject_lora(ours, LoRAConfig(r=4, **patterns)))
    ranks = [ours.h[0].mlp.c_fc, ours.h[1].attn.c_attn, ours.h[1].mlp.c_proj]
    assert [layer.adapters["default"].r for layer in ranks] == [2, 5, 4]
    assert ours.h[1].mlp.c_fc.adapters["default"].scaling == 9 / 2
    save_peft(ours, tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert torch.allclose(opened(ids()).logits, ours(ids()), atol=1e-5)
    load_peft(base, tmp_path)
    assert torch.equal(base(ids()), ours(ids()))


@pytest.mark.parametrize(
    "settings",
    [
        {"layers_to_transform": [1], "target_modules": ["c_attn"]},
        {"layers_to_transform": 0, "layers_pattern": "h", "target_modules": ["c_fc"], "use_rslora": True},
        {"target_modules": "all-linear", "exclude_modules": ["c_proj"]},
        {"target_modules": r".*\.(c_attn|wte)", "exclude_modules": r".*\.0\..*"},
        {
            "target_modules": ["c_attn", "c_fc"],
            "rank_pattern": {"^transformer.h.0.attn.c_attn": 2},
            "alpha_pattern": {"attn.c_attn": 5, "c_attn": 7},
        },
        {"target_modules": ["c_attn"], "init_lora_weights": "gaussian", "modules_to_save": ["wpe", "ln_1"]},
        {"target_modules": ["c_attn"], "init_lora_weights": "orthogonal"},
    ],
    ids=str,
)
@pytest.mark.parametrize("safetensors", [True, False])
def test_options_of_peft_that_choose_layers(settings, safetensors, tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    made = peft.get_peft_model(
        theirs, peft.LoraConfig(**({"r": 4, "fan_in_fan_out": True} | settings))
    ).eval()
    disturb(made)
    made.save_pretrained(tmp_path)
    if not safetensors:  # as PEFT wrote before 0.7
        torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
        (tmp_path / "adapter_model.safetensors").unlink()
    load_peft(ours, tmp_path)
    assert torch.allclose(ours(ids()), made(ids()).logits, atol=1e-5)
    save_peft(ours, tmp_path / "again")
    _, fresh = hf_pair()
    fresh.load_state_dict(made.unload().state_dict())
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "again").eval()
    assert torch.allclose(again(ids()).logits, ours(ids()), atol=1e-5)


def test_a_saved_batch_norm_brings_its_statistics(tmp_path):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(OrderedDict(lin=nn.Linear(3, 3), norm=nn.BatchNorm1d(3)))

    trained = inject_lora(model(), LoRAConfig(r=1, target_modules=["lin"], modules_to_save=["norm"])).train()
    for _ in range(7):
        trained(torch.randn(5, 3) + 4)
    save_peft(trained, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.norm.num_batches_tracked"]
    assert saved.shape == () and saved == 7
    loaded = model()
    for _ in range(2):  # the second time by copying in place
        load_peft(loaded, tmp_path)
        assert loaded.norm.copies["default"].num_batches_tracked == 7
    x = torch.randn(5, 3)
    assert torch.equal(loaded.eval()(x), trained.eval()(x))
    assert same_state(eject_lora(trained), model())


def two_files(folder, **settings):
    model, base = adapted(LoRAConfig(r=2, **settings), mlp())
    save_peft(model, folder / "1")
    save_peft(disturb(model, seed=5), folder / "2")
    return base, model


@pytest.mark.parametrize(
    "settings", [{}, {"modules_to_save": ["lin1"], "target_modules": ["lin0"], "bias": "lora_only"}], ids=str
)
@pytest.mark.parametrize("change", ["copied", "moved", "disabled", "state loaded", "pickled"])
def test_a_hot_swap_reaches_the_model_as_it_is_now(change, settings, tmp_path):
    model, second = two_files(tmp_path, **settings)
    x = torch.randn(3, 10)
    load_peft(model, tmp_path / "1")
    want = model(x)
    was = model
    if change == "copied":
        model = copy.deepcopy(model)
    elif change == "pickled":
        model = pickle.loads(pickle.dumps(model))
    elif change == "moved":
        model.to(torch.float64).to(torch.float32)
    elif change == "disabled":
        set_adapter(model, None)
    else:
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    load_peft(model, tmp_path / "2")
    assert torch.allclose(model(x), second(x), atol=1e-6)
    if model is not was:
        assert torch.equal(was(x), want)


def test_the_config_file_reads_like_peft_s(tmp_path):
    peft = pytest.importorskip("peft")
    settings = {
        "r": 6,
        "lora_alpha": 5,
        "lora_dropout": 0.25,
        "bias": "lora_only",
        "use_rslora": True,
        "use_dora": True,
    }
    model = inject_lora(mlp(), LoRAConfig(target_modules=["lin1"], modules_to_save=["lin0"], **settings))
    save_peft(model, tmp_path, base_model="some/model", task_type=None)
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert {key: getattr(read, key) for key in settings} == settings
    assert read.target_modules == {"lin1"} and read.modules_to_save == ["lin0"] and read.inference_mode
    assert read.base_model_name_or_path == "some/model" and read.task_type is None
    assert set(json.loads((tmp_path / "adapter_config.json").read_text())) <= set(peft.LoraConfig().to_dict())
    assert isinstance(model.lin0, SavedModule)
