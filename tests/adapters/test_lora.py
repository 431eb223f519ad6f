"""LoRA by itself: arithmetic, matching, merging, several adapters, DoRA, what is trained and what is not."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    LoRALayer,
    NF4Linear,
    adapter_names,
    adapters_by_row,
    delete_adapter,
    eject_lora,
    inject_lora,
    load_lora_state_dict,
    lora_plus_groups,
    lora_state_dict,
    merge_lora,
    quantize_linears,
    set_adapter,
    unmerge_lora,
    use_adapter,
)
from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss

from .helpers import adapted, disturb, gpt, hf_pair, ids, same_state

VARIANTS = [
    {},
    {"use_dora": True},
    {"use_rslora": True},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"modules_to_save": ["ln_f"]},
    {"modules_to_save": ["lm_head"]},
    {"target_modules": ["c_attn", "lm_head"]},
    {"target_modules": ["wte", "c_fc"]},
    {"target_modules": r"h\.1\..*"},
    {"target_modules": ["c_attn", "lm_head"], "use_dora": True},
]


# ---- arithmetic ----------------------------------------------------------------------------------


def dense_reference(x, W, b, A, B, s, m=None):
    """The papers' formulas with the whole matrix written out; DoRA's norm held constant."""
    weight = W + s * B @ A
    if m is not None:
        weight = weight * (m / weight.detach().norm(dim=1)).unsqueeze(1)
    return x @ weight.t() + (0 if b is None else b)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "nf4"])
def test_output_and_gradients_are_the_formula(use_dora, bias, kind):
    base = nn.Linear(20, 12, bias=bias)
    W, b = base.weight.detach().double(), base.bias.detach().double() if bias else None
    if kind == "conv1d":
        conv = pytest.importorskip("transformers.pytorch_utils").Conv1D(12, 20)
        conv.weight.data = base.weight.data.t().contiguous()
        b = conv.bias.detach().double()
        base = conv
    elif kind == "nf4":
        base = NF4Linear.from_linear(base)
        W = base.dequantize().double()
    model = nn.Sequential(base)
    inject_lora(model, LoRAConfig(r=3, lora_alpha=5, target_modules=["0"], use_dora=use_dora))
    disturb(model, scale=0.5)
    layer = model[0]
    x = torch.randn(2, 7, 20, requires_grad=True)
    out = torch.randn(2, 7, 12)
    y = model(x)
    (y * out).sum().backward()
    reference = {
        n: p.detach().double().requires_grad_() for n, p in layer.named_parameters() if p.requires_grad
    }
    x64 = x.detach().double().requires_grad_()
    want = dense_reference(
        x64,
        W,
        b,
        reference["lora_A.default"],
        reference["lora_B.default"],
        5 / 3,
        reference.get("lora_magnitude_vector.default"),
    )
    (want * out).sum().backward()
    assert torch.allclose(y.double(), want, atol=1e-5)
    assert torch.allclose(x.grad.double(), x64.grad, atol=1e-4)
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad.double(), reference[name].grad, atol=1e-4), name


@pytest.mark.parametrize("use_dora", [False, True])
def test_written_out_gradients_equal_plain_autograd(use_dora, monkeypatch):
    model, _ = adapted(LoRAConfig(r=4, use_dora=use_dora, bias="lora_only"))
    fused = torch.autograd.grad(
        next_token_loss(model, ids(), ids()), [p for p in model.parameters() if p.requires_grad]
    )
    monkeypatch.setattr(LoRALayer, "_fusable", lambda *args: False)
    plain = torch.autograd.grad(
        next_token_loss(model, ids(), ids()), [p for p in model.parameters() if p.requires_grad]
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fused, plain, strict=True))


def test_start_is_kaiming_for_a_and_zero_for_b():
    model = gpt()
    before = model(ids())
    inject_lora(model, LoRAConfig(r=4, target_modules=["c_fc"]))
    layer = model.h[0].mlp.c_fc
    A, B = layer.lora_A["default"].detach(), layer.lora_B["default"]
    assert A.shape == (4, 32) and B.shape == (128, 4) and not B.any()
    bound = 1 / math.sqrt(32)  # √(6 / ((1 + 5) · fan_in))
    assert A.abs().max() <= bound and A.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)
    assert torch.equal(model(ids()), before)
    torch.manual_seed(0)
    model = inject_lora(gpt(), LoRAConfig(r=8, init="gaussian"))
    assert model.h[0].mlp.c_proj.lora_A["default"].detach().std() == pytest.approx(1 / 8, rel=0.15)


def test_scaling_of_lora_and_rslora():
    assert LoRAConfig(r=4, lora_alpha=8).scaling("x") == 2
    assert LoRAConfig(r=4, lora_alpha=8, use_rslora=True).scaling("x") == 4
    config = LoRAConfig(r=4, lora_alpha=8, rank_pattern={"c_fc": 2}, alpha_pattern={r"h\.1\.mlp\.c_fc": 6})
    assert config.scaling("h.0.mlp.c_fc") == 4 and config.scaling("h.1.mlp.c_fc") == 3
    model = inject_lora(gpt(), config)
    assert model.h[0].mlp.c_fc.lora_A["default"].shape[0] == 2
    assert model.h[0].mlp.c_proj.lora_A["default"].shape[0] == 4


def test_dropout_only_while_training_and_only_on_the_update():
    model, before = adapted(LoRAConfig(lora_dropout=0.5))
    assert torch.equal(model(ids()), model(ids()))
    model.train()
    assert not torch.equal(model(ids()), model(ids()))
    with use_adapter(model, None):
        assert torch.equal(model(ids()), before(ids()))


# ---- matching ------------------------------------------------------------------------------------


def wrapped(model):
    return [path for path, module in model.named_modules() if isinstance(module, LoRALayer)]


def test_targets_by_name_path_pattern_and_all_linear():
    names = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    every = [f"h.{i}.{name}" for i in range(2) for name in names]
    assert wrapped(inject_lora(gpt())) == every
    assert wrapped(inject_lora(gpt(), LoRAConfig(target_modules="c_fc"))) == ["h.0.mlp.c_fc", "h.1.mlp.c_fc"]
    assert wrapped(inject_lora(gpt(), LoRAConfig(target_modules=["h.1.mlp.c_fc"]))) == ["h.1.mlp.c_fc"]
    assert wrapped(inject_lora(gpt(), LoRAConfig(target_modules=r"h\.1\.attn\..*"))) == every[4:6]
    assert "lm_head" in wrapped(inject_lora(gpt(), LoRAConfig(target_modules=["lm_head"])))
    untied = inject_lora(gpt(tie_weights=False))
    assert wrapped(untied) == every


@pytest.mark.parametrize("targets", ["q_proj", ["c_attn", "q_proj"], r"layers\..*"])
def test_a_pattern_that_matches_nothing_lists_the_candidates(targets):
    model, before = gpt(), gpt()
    before.load_state_dict(model.state_dict())
    with pytest.raises(InputError, match=r"(q_proj|layers).*candidates are.*h\.\*\.attn\.c_attn.*lm_head"):
        inject_lora(model, LoRAConfig(target_modules=targets))
    assert same_state(model, before) and all(p.requires_grad for p in model.parameters())


CHOICES = [
    {"target_modules": ["c_attn", "c_fc"], "exclude_modules": ["h.1.mlp.c_fc"]},
    {"target_modules": "all-linear", "exclude_modules": r".*\.c_proj"},
    {"target_modules": ["c_attn", "wte"], "layers_to_transform": 1},
    {
        "target_modules": ["c_attn", "c_proj"],
        "layers_to_transform": [0, 1],
        "exclude_modules": ["mlp.c_proj"],
    },
]


@pytest.mark.parametrize("settings", CHOICES, ids=str)
def test_excluded_modules_and_chosen_blocks_are_those_of_peft(settings):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    asked = peft.get_peft_model(theirs, peft.LoraConfig(r=2, fan_in_fan_out=True, **settings))
    names = [
        name.removeprefix("base_model.model.transformer.")
        for name, module in asked.named_modules()
        if hasattr(module, "lora_A")
    ]
    assert wrapped(inject_lora(ours, LoRAConfig(r=2, **settings))) == names != []


def test_blocks_without_their_surroundings():
    config = LoRAConfig(target_modules="all-linear", layers_to_transform=[1])
    assert wrapped(inject_lora(gpt(), config)) == [
        "h.1.attn.c_attn",
        "h.1.attn.c_proj",
        "h.1.mlp.c_fc",
        "h.1.mlp.c_proj",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"exclude_modules": ["q_proj"]},
            r"exclude_modules: 'q_proj' matches no layer; the candidates are wte",
        ),
        ({"exclude_modules": "("}, r"exclude_modules='\(' is no regular expression"),
        ({"target_modules": ["c_fc"], "exclude_modules": ["c_fc"]}, "leaves no layer"),
        (
            {"layers_to_transform": [0, 2]},
            r"layers_to_transform=\[0, 2\]: the model has blocks 0 to 1, not 2",
        ),
        ({"target_modules": ["lm_head"], "layers_to_transform": 0}, "leaves no layer"),
    ],
)
def test_a_choice_that_leaves_nothing_says_so(settings, message):
    model, before = gpt(), gpt()
    before.load_state_dict(model.state_dict())
    with pytest.raises(InputError, match=message):
        inject_lora(model, LoRAConfig(**settings))
    assert same_state(model, before)


def test_bad_values_are_named():
    for settings, word in [
        ({"r": 0}, "r=0"),
        ({"lora_alpha": math.nan}, "nan"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0"),
        ({"bias": "some"}, "'some'"),
        ({"init": "ones"}, "'ones'"),
        ({"target_modules": []}, "names no layer"),
        ({"modules_to_save": "ln_f"}, "must be a list"),
        ({"modules_to_save": 3}, "must be a list"),
        ({"target_modules": ["c_attn", 3]}, "must be a list of names"),
        ({"lora_alpha": "16"}, "lora_alpha='16'"),
        ({"lora_dropout": "x"}, "lora_dropout='x'"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"rank_pattern": [4]}, "must be a mapping"),
        ({"alpha_pattern": {"c_attn": math.nan}}, "lora_alpha=nan"),
        ({"layers_to_transform": "1"}, "layers_to_transform='1' must be a block's number"),
        ({"layers_to_transform": True}, "layers_to_transform=True"),
        ({"layers_to_transform": [0, 1.5]}, "1.5"),
        ({"layers_to_transform": []}, "must be a block's number, or a list"),
    ]:
        with pytest.raises(InputError, match=word):
            LoRAConfig(**settings)
    with pytest.raises(InputError, match="no regular expression"):
        inject_lora(gpt(), LoRAConfig(target_modules="("))
    with pytest.raises(InputError, match=r"ln_x.*ln_f"):
        inject_lora(gpt(), LoRAConfig(modules_to_save=["ln_x"]))
    with pytest.raises(InputError, match="trained whole"):
        inject_lora(gpt(), LoRAConfig(target_modules=["c_fc"], modules_to_save=["mlp"]))
    with pytest.raises(InputError, match="without dots"):
        inject_lora(gpt(), adapter_name="a.b")
    model = inject_lora(gpt())
    with pytest.raises(InputError, match="already"):
        inject_lora(model)
    with pytest.raises(InputError, match=r"no adapter 'x'; there are 'default'"):
        set_adapter(model, "x")
    for function in (merge_lora, unmerge_lora, eject_lora, lora_state_dict):
        with pytest.raises(InputError, match="inject_lora first"):
            function(gpt())


def test_a_failed_injection_leaves_the_model_as_it_was():
    model = gpt()
    int8 = model.h[1].mlp.c_fc.weight.to(torch.int8)
    model.h[1].mlp.c_fc.weight = nn.Parameter(int8, requires_grad=False)
    before = copy.deepcopy(model)
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc: cannot adapt"):
        inject_lora(model, LoRAConfig(target_modules=["c_fc", "wte"]))
    assert same_state(model, before) and not wrapped(model)
    assert all(p.requires_grad for p in model.parameters() if p.is_floating_point())


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_only_the_adapter_learns_and_the_frozen_weights_stay_bit_identical(settings):
    model = gpt()
    before = copy.deepcopy(model)
    inject_lora(model, LoRAConfig(r=2, **settings)).train()
    names = set(lora_state_dict(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(t.numel() for t in lora_state_dict(model).values())
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    losses = []
    for _ in range(20):
        loss = next_token_loss(model, ids(), ids().roll(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert set(lora_state_dict(model)) == names
    eject_lora(model)
    assert same_state(model, before)
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model.eval()(ids()), before(ids()))


def test_checkpoints_are_small_and_load():
    model, _ = adapted(LoRAConfig(r=2, use_dora=True))
    state = {key: tensor.clone() for key, tensor in lora_state_dict(model).items()}
    size = sum(t.numel() for t in state.values())
    assert size < 0.2 * sum(p.numel() for p in gpt().parameters())
    other = inject_lora(gpt(), LoRAConfig(r=2, use_dora=True))
    other.load_state_dict({**model.state_dict()})
    fresh = inject_lora(gpt(), LoRAConfig(r=2, use_dora=True))
    load_lora_state_dict(fresh, state)
    assert all(
        torch.equal(a, b) for a, b in zip(lora_state_dict(fresh).values(), state.values(), strict=True)
    )
    with pytest.raises(InputError, match="missing"):
        load_lora_state_dict(fresh, {})
    with pytest.raises(InputError, match="shape"):
        load_lora_state_dict(fresh, {key: tensor[:1] for key, tensor in state.items()})


def test_the_chunked_loss_sees_an_adapted_head():
    model, before = adapted(LoRAConfig(target_modules=["lm_head"]))
    want = F.cross_entropy(model(ids()).flatten(0, 1), ids().flatten())
    got = next_token_loss(model, ids(), ids())
    assert got.item() == pytest.approx(want.item(), abs=1e-6)
    assert abs(got.item() - next_token_loss(before, ids(), ids()).item()) > 1e-3
    parameters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    model, _ = adapted(LoRAConfig(target_modules=["lm_head"], lora_dropout=0.5))
    with pytest.raises(InputError, match="dropout"):
        next_token_loss(model.train(), ids(), ids())


def test_loraplus_groups():
    model = inject_lora(gpt(), LoRAConfig(use_dora=True, modules_to_save=["ln_f"]))
    groups = lora_plus_groups(model, 1e-3, ratio=8, weight_decay=0.1)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert rates[id(p)] == (8e-3 if "lora_B" in name else 1e-3, 0.1 if p.dim() > 1 else 0.0)
    assert len(rates) == sum(p.requires_grad for p in model.parameters())
    torch.optim.AdamW(groups)
    with pytest.raises(InputError, match=r"ratio=0\.5"):
        lora_plus_groups(model, 1e-3, ratio=0.5)
    with pytest.raises(InputError, match="no adapter is being trained"):
        lora_plus_groups(gpt(), 1e-3)


# ---- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_merge_keeps_the_outputs_and_unmerge_the_bits(settings):
    model, before = adapted(LoRAConfig(r=3, **settings))
    want, state = model(ids()), copy.deepcopy(model.state_dict())
    assert (want - before(ids())).abs().max() > 1e-2
    for _ in range(3):
        assert merge_lora(model) is model
        assert torch.allclose(model(ids()), want, atol=1e-5)
        unmerge_lora(model)
        assert torch.equal(model(ids()), want)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    eject_lora(model, merge=False)
    assert same_state(model, before)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_merged_and_ejected_is_a_plain_model(settings):
    model, before = adapted(LoRAConfig(r=3, **settings))
    want = model(ids())
    merge_lora(model)
    head = {"lm_head", "wte"} & {*settings.get("target_modules", []), *settings.get("modules_to_save", [])}
    if head:
        with pytest.raises(InputError, match="untie=True"):
            eject_lora(model)
    eject_lora(model, untie=True)
    assert model.state_dict().keys() == before.state_dict().keys()
    assert torch.allclose(model(ids()), want, atol=1e-5)
    assert model.config.tie_weights == (not head)
    fresh = gpt(tie_weights=not head)
    fresh.load_state_dict(model.state_dict())
    assert torch.allclose(fresh(ids()), want, atol=1e-5)


@pytest.mark.parametrize("target", ["lm_head", "wte"])
def test_merging_a_tied_weight_leaves_the_other_alone(target):
    model, before = adapted(LoRAConfig(target_modules=[target]))
    merge_lora(model)
    other = model.wte if target == "lm_head" else model.lm_head
    assert torch.equal(other.weight, before.wte.weight)
    with pytest.raises(InputError, match="untie=True"):
        eject_lora(unmerge_lora(model), merge=True)
    eject_lora(model, merge=False)
    assert model.lm_head.weight is model.wte.weight and same_state(model, before)


def test_bf16_merges_do_not_drift():
    model, before = adapted(LoRAConfig(r=4), gpt().to(torch.bfloat16))
    assert model.h[0].mlp.c_fc.lora_A["default"].dtype == torch.float32
    for _ in range(3):
        unmerge_lora(merge_lora(model))
    layer = merge_lora(model).h[0].mlp.c_fc
    exact = before.h[0].mlp.c_fc.weight.float() + layer.delta("default")
    assert torch.equal(layer.base_layer.weight, exact.to(torch.bfloat16))
    eject_lora(model, merge=False)
    assert same_state(model, before)


def test_a_merge_that_fails_changes_nothing():
    model, before = adapted(LoRAConfig())
    with torch.no_grad():
        model.h[1].mlp.c_proj.lora_B["default"][0, 0] = math.inf
    with pytest.raises(InputError, match="NaN or Inf"):
        merge_lora(model)
    assert not any(m.merged for m in model.modules() if isinstance(m, LoRALayer))
    eject_lora(model)
    assert same_state(model, before)


def test_merged_models_refuse_what_would_go_wrong():
    model, _ = adapted(LoRAConfig())
    merge_lora(model)
    for action in (
        lambda: merge_lora(model),
        lambda: set_adapter(model, None),
        lambda: inject_lora(model, adapter_name="b"),
        lambda: load_lora_state_dict(model, lora_state_dict(model)),
    ):
        with pytest.raises(InputError, match="merged"):
            action()


def test_models_can_be_copied_and_moved_while_merged():
    model, _ = adapted(LoRAConfig())
    want = model(ids())
    copied = copy.deepcopy(merge_lora(model)).to(torch.float64)
    unmerge_lora(copied)
    assert copied.h[0].mlp.c_fc.base_layer is not model.h[0].mlp.c_fc._kept
    unmerge_lora(model)
    assert torch.equal(model(ids()), want)


@pytest.mark.parametrize("method", ["unmerge", "eject"])
def test_a_model_cast_while_merged_is_all_of_that_dtype_after(method):
    model, _ = adapted(LoRAConfig())
    merge_lora(model).to(torch.bfloat16)
    unmerge_lora(model) if method == "unmerge" else eject_lora(model, merge=False)
    frozen = {p.dtype for name, p in model.named_parameters() if "lora_" not in name}
    assert frozen == {torch.bfloat16}
    assert model(ids()).dtype == torch.bfloat16
    # What the merge itself was asked for is no cast: the frozen weights keep theirs.
    model, _ = adapted(LoRAConfig())
    want = model(ids())
    unmerge_lora(merge_lora(model, dtype=torch.bfloat16))
    assert torch.equal(model(ids()), want)


# ---- several adapters ----------------------------------------------------------------------------


def three():
    model = gpt()
    solo = {}
    for seed, (name, settings) in enumerate(
        {"a": {}, "b": {"r": 3, "use_rslora": True}, "c": {"r": 5, "target_modules": ["c_fc"]}}.items()
    ):
        config = LoRAConfig(**settings)
        disturb(inject_lora(model, config, name), seed=seed)
        with use_adapter(model, name):
            solo[name] = model(ids())
    with use_adapter(model, None):
        solo[None] = model(ids())
    return model, solo


def test_switching_for_each_call():
    model, solo = three()
    assert adapter_names(model) == ["a", "b", "c"]
    outputs = list(solo.values())
    assert all(not torch.allclose(a, b, atol=1e-2) for i, a in enumerate(outputs) for b in outputs[:i])
    set_adapter(model, "a")
    assert torch.equal(model(ids()), solo["a"])
    with use_adapter(model, "b"):
        assert torch.equal(model(ids()), solo["b"])
    assert torch.equal(model(ids()), solo["a"])
    assert {n.split(".")[-1] for n, p in model.named_parameters() if p.requires_grad} == {"a"}
    delete_adapter(model, "b")
    assert adapter_names(model) == ["a", "c"] and torch.equal(model(ids()), solo["a"])


def test_the_sum_of_several_and_its_merge():
    model, _ = three()
    layer = model.h[0].mlp.c_fc
    set_adapter(model, ["a", "b"])
    x = torch.randn(4, 32)
    W = layer.base_layer.weight + layer.delta("a") + layer.delta("b")
    assert torch.allclose(layer(x), F.linear(x, W, layer.bias), atol=1e-5)
    want = model(ids())
    assert torch.allclose(merge_lora(model)(ids()), want, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_for_each_row(dora):
    model, solo = three()
    names = ["a", None, "c", "b", "a", "c"]
    if dora:
        disturb(inject_lora(model, LoRAConfig(r=2, use_dora=True), "d"), seed=9)
        with use_adapter(model, "d"):
            solo["d"] = model(ids())
        names += ["d"]
    x = ids().repeat(3, 1)[: len(names)]
    with adapters_by_row(model, names):
        mixed = model(x)
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], solo[name][row % 3], atol=1e-5), name
    with (
        adapters_by_row(model, ["a", "b"]),
        pytest.raises(InputError, match="2 adapter names for a batch of 3"),
    ):
        model(ids())
    with pytest.raises(InputError, match="no adapter 'x'"), adapters_by_row(model, ["x"]):
        pass
    assert torch.equal(model(ids()), solo["d" if dora else "c"])  # the active one again


def test_rows_train_too():
    model, _ = three()
    set_adapter(model, ["a", "b"])
    x = ids(4)
    with adapters_by_row(model, ["a", "b", "a", "b"]):
        next_token_loss(model, x, x).backward()
    mixed = model.h[0].mlp.c_fc.lora_B["a"].grad.clone()
    model.zero_grad()
    with use_adapter(model, "a"):
        (next_token_loss(model, x[::2], x[::2]) / 2).backward()
    assert torch.allclose(model.h[0].mlp.c_fc.lora_B["a"].grad, mixed, atol=1e-6)


def test_dora_adapters_cannot_be_summed():
    model = inject_lora(inject_lora(gpt(), LoRAConfig(use_dora=True), "a"), LoRAConfig(), "b")
    with pytest.raises(InputError, match="DoRA"):
        set_adapter(model, ["a", "b"])
    model = inject_lora(inject_lora(gpt(), LoRAConfig(modules_to_save=["ln_f"]), "a"), LoRAConfig(), "b")
    set_adapter(model, ["a", "b"])
    inject_lora(model, LoRAConfig(modules_to_save=["ln_f"]), "c")
    with pytest.raises(InputError, match="own copy"):
        set_adapter(model, ["a", "c"])
    inject_lora(model, LoRAConfig(bias="all"), "d")
    with pytest.raises(InputError, match="biases"):
        inject_lora(model, LoRAConfig(bias="lora_only"), "e")


# ---- other models --------------------------------------------------------------------------------


def test_dora_norm_follows_a_changed_base():
    model = inject_lora(gpt(), LoRAConfig(use_dora=True))
    model(ids())
    with torch.no_grad():
        model.h[0].mlp.c_fc.base_layer.weight.mul_(2)
    layer, x = model.h[0].mlp.c_fc, torch.randn(3, 32)
    W = layer.base_layer.weight
    scale = layer.lora_magnitude_vector["default"] / W.norm(dim=1)
    assert torch.allclose(layer(x), F.linear(x, W * scale[:, None], layer.bias), atol=1e-5)


def test_transformers_model_with_conv1d():
    pytest.importorskip("transformers")
    ours, theirs = hf_pair()
    config = LoRAConfig(r=3, use_dora=True)
    disturb(inject_lora(ours, config))
    inject_lora(theirs, config)
    state = {f"transformer.{key}": tensor for key, tensor in lora_state_dict(ours).items()}
    load_lora_state_dict(theirs, state)
    want = ours(ids())
    assert torch.allclose(theirs(ids()).logits, want, atol=1e-5)
    assert torch.allclose(merge_lora(theirs)(ids()).logits, want, atol=1e-5)


def test_any_module_with_hooks_autocast_and_attention():
    encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 16)
    model, _ = adapted(LoRAConfig(target_modules=["linear1", "out_proj"]), encoder.train())
    want = model(x)  # nn.MultiheadAttention reads out_proj.weight and never calls the layer
    assert torch.allclose(merge_lora(model)(x), want, atol=1e-5)
    unmerge_lora(model)
    calls = []
    model.linear1.base_layer.register_forward_hook(lambda *args: calls.append(1))
    assert torch.allclose(model(x), want, atol=1e-6) and calls
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        y.float().sum().backward()
    assert (y - want).abs().max() < 0.1


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_second_derivative_is_refused(use_dora):
    """The first one's own gradient is constant: a complaint must not wait for one that is not."""
    model = inject_lora(nn.Sequential(nn.Linear(6, 5)), LoRAConfig(target_modules=["0"], use_dora=use_dora))
    x = torch.randn(3, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)


@torch.no_grad()
def test_dora_sees_a_weight_that_is_changed_behind_its_back():
    model = inject_lora(nn.Sequential(nn.Linear(64, 64)), LoRAConfig(target_modules=["0"], use_dora=True))
    weight, x = model[0].base_layer.weight, torch.randn(3, 64)

    def check() -> None:
        magnitude = model[0].lora_magnitude_vector["default"]
        want = x @ (weight / weight.norm(dim=1, keepdim=True)).T * magnitude + model[0].bias
        assert torch.allclose(model(x), want, atol=1e-5)

    check()
    weight.data.mul_(2)
    check()
    for _ in range(5):  # as offloading does: the new one may lie where the old one lay
        weight.data = torch.empty(0)
        weight.data = torch.randn(64, 64)
        check()


def test_dora_on_weights_made_in_inference_mode():
    """They count no changes, so that nothing can be kept of them."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 5))
        inject_lora(model, LoRAConfig(target_modules=["0"], use_dora=True))
        x, weight = torch.randn(3, 6), model[0].base_layer.weight
        for factor in (1, 2):
            weight.mul_(factor)
            magnitude = model[0].lora_magnitude_vector["default"]
            want = x @ (weight / weight.norm(dim=1, keepdim=True)).T * magnitude + model[0].bias
            assert torch.allclose(model(x), want, atol=1e-6)


def test_gradient_through_dropout_path_matches_when_dropout_is_off():
    model, _ = adapted(LoRAConfig(lora_dropout=0.3, use_dora=True))
    want = torch.autograd.grad(next_token_loss(model, ids(), ids()), model.h[0].mlp.c_fc.lora_A["default"])[0]
    other, _ = adapted(LoRAConfig(use_dora=True))
    load_lora_state_dict(other, lora_state_dict(model))
    other.load_state_dict(model.state_dict())
    got = torch.autograd.grad(next_token_loss(other, ids(), ids()), other.h[0].mlp.c_fc.lora_A["default"])[0]
    assert torch.allclose(want, got, atol=1e-7)


@torch.no_grad()
def test_rows_see_changed_weights():
    model, _ = three()
    names = ["a", "b", None]
    with adapters_by_row(model, names):
        before = model(ids())
        assert torch.equal(model(ids()), before)
        model.h[0].mlp.c_fc.lora_B["a"].mul_(2)
        after = model(ids())
    assert not torch.equal(after[0], before[0]) and torch.allclose(after[1:], before[1:], atol=1e-6)
    with use_adapter(model, "a"):
        assert torch.allclose(after[0], model(ids())[0], atol=1e-5)


# ---- what outsiders tried ------------------------------------------------------------------------


def test_both_ends_of_a_tied_weight_are_untied_or_refused():
    config = LoRAConfig(target_modules=["wte", "lm_head"])
    model, _ = adapted(config, gpt(tie_weights=True))
    want = model(ids())
    with pytest.raises(InputError, match="shares its weight"):
        eject_lora(model, merge=True)
    assert torch.allclose(model(ids()), want)
    eject_lora(model, merge=True, untie=True)
    assert not model.config.tie_weights
    assert torch.allclose(reopened(model)(ids()), want, atol=1e-5)


def reopened(model):
    """A fresh model from config and state alone, as a checkpoint makes one."""
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_all_linear_leaves_out_what_is_trained_whole_and_classification_heads():
    model = inject_lora(gpt(), LoRAConfig(modules_to_save=["mlp"]))
    assert all(isinstance(model.h[0].get_submodule(f"mlp.copies.default.{n}"), nn.Linear) for n in ("c_fc",))
    assert isinstance(model.h[0].attn.c_attn, LoRALayer)
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=97, n_layer=1, n_head=2, n_embd=16, n_positions=16)
    classifier = inject_lora(transformers.GPT2ForSequenceClassification(config))
    assert not isinstance(classifier.score, LoRALayer)


def test_code_that_only_asks_for_a_weights_dtype_may_while_dropout_is_on():
    """T5 compares ``self.wo.weight.dtype`` with its input's."""
    model = inject_lora(gpt(), LoRAConfig(target_modules=["c_fc"], lora_dropout=0.5)).train()
    weight = model.h[0].mlp.c_fc.weight
    assert weight.dtype == torch.float32 and tuple(weight.shape) == (128, 32) and weight.dim() == 2
    with pytest.raises(InputError, match=r"h\.0\.mlp\.c_fc: LoRA dropout is on"):
        F.linear(torch.ones(1, 32), weight)
    with pytest.raises(InputError, match="LoRA dropout is on"):
        weight + 1
    quantized = nn.Sequential(nn.Linear(48, 16))
    quantize_linears(quantized, ["0"])
    inject_lora(quantized, LoRAConfig(target_modules=["0"], lora_dropout=0.5)).train()
    assert quantized[0].weight.dtype == torch.float32 and tuple(quantized[0].weight.shape) == (16, 48)


def test_the_weight_in_effect_has_the_frozen_ones_dtype():
    model, _ = adapted(LoRAConfig(target_modules=["c_fc"]), gpt().bfloat16())
    assert model.h[0].mlp.c_fc.weight.dtype == torch.bfloat16


def test_an_adapter_on_a_part_is_not_overwritten_from_the_whole():
    model = gpt()
    disturb(inject_lora(model.h[0], LoRAConfig(target_modules=["c_attn"])))
    want = model(ids())
    with pytest.raises(InputError, match=r"c_attn has an adapter 'default' already"):
        inject_lora(model, LoRAConfig(target_modules=["c_attn"]))
    assert torch.equal(model(ids()), want)


def test_rows_that_are_shortened_when_read_cannot_be_merged():
    model, _ = adapted(LoRAConfig(target_modules=["0"]), nn.Sequential(nn.Embedding(97, 6, max_norm=0.1)))
    with pytest.raises(InputError, match="max_norm"):
        merge_lora(model)
    for weight_norm in (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm):
        normed = nn.Sequential(weight_norm(nn.Linear(4, 4)))
        inject_lora(normed, LoRAConfig(target_modules=["0"]))
        with pytest.raises(InputError, match="makes its weight anew"):
            merge_lora(normed)


@pytest.mark.parametrize("train", [False, True])
def test_dora_on_a_row_of_zeros_changes_nothing_and_has_gradients(train):
    model = nn.Sequential(nn.Linear(8, 6, bias=False))
    with torch.no_grad():
        model[0].weight[2] = 0
    x = torch.randn(3, 8)
    want = model(x)
    inject_lora(model, LoRAConfig(target_modules=["0"], use_dora=True, lora_dropout=0.1 * train))
    model.train(train)
    got = model(x)
    assert got.isfinite().all() and (train or torch.allclose(got, want, atol=1e-6))
    got.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert merge_lora(model.eval())(x).isfinite().all()


def test_lora_plus_is_fast_where_the_update_starts_at_zero():
    model = inject_lora(gpt(), LoRAConfig(target_modules=["wte", "c_fc"]))
    fast = {id(p) for group in lora_plus_groups(model, 1e-3) if group["lr"] > 1e-3 for p in group["params"]}
    assert fast == {
        id(model.wte.lora_A["default"]), *(id(block.mlp.c_fc.lora_B["default"]) for block in model.h)
    }  # fmt: skip


def test_dora_on_an_embedding_merges_and_mixes_by_row():
    model, before = adapted(LoRAConfig(target_modules=["wte", "c_fc"], use_dora=True), gpt(tie_weights=False))
    want = model(ids())
    with adapters_by_row(model, ["default", None, "default"]):
        mixed = model(ids())
    assert torch.allclose(mixed[::2], want[::2], atol=1e-5)
    assert torch.allclose(mixed[1], before(ids())[1], atol=1e-5)
    assert torch.allclose(merge_lora(model)(ids()), want, atol=1e-5)


def test_biases_of_an_adapter_that_is_gone_are_frozen():
    model = inject_lora(gpt(), LoRAConfig(bias="all"), "a")
    inject_lora(model, LoRAConfig(), "b")
    set_adapter(model, "a")
    delete_adapter(model, "a")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names and all(re.search(r"lora_[AB]\.b$", name) for name in names)


def test_collections_of_any_kind_are_kept_as_lists():
    config = LoRAConfig(target_modules={"c_fc", "c_attn"}, layers_to_transform=range(2))
    assert config.target_modules == ["c_attn", "c_fc"] and config.layers_to_transform == [0, 1]


def test_a_wrapped_model_is_refused_as_its_adapter_would_not_be_synchronised():
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)  # without the group of processes that the real one needs
    wrapped.module = gpt()
    with pytest.raises(InputError, match=r"inject_lora into its \.module"):
        inject_lora(wrapped)
