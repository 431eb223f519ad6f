"""4-bit linear layers and QLoRA: state that never changes, merging, parity with PEFT on bitsandbytes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    NF4Linear,
    dequantize_nf4,
    eject_lora,
    inject_lora,
    load_peft,
    make_optimizer,
    merge_lora,
    prepare_qlora,
    quantize_linears,
    quantize_nf4,
    save_peft,
    unmerge_lora,
)
from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss

from .helpers import disturb, gpt, hf_pair, ids, same_state


def clone_state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def saved_elements(forward):
    """How many elements autograd keeps for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        forward()
    return sum(kept)


def test_forward_and_backward_are_those_of_the_dequantised_weight():
    linear = nn.Linear(70, 33)
    layer = NF4Linear.from_linear(linear, compress_statistics=False)
    W = dequantize_nf4(*quantize_nf4(linear.weight))
    x = torch.randn(4, 5, 70, requires_grad=True)
    y = layer(x)
    assert torch.equal(layer.dequantize(), W) and torch.equal(y, F.linear(x, W, linear.bias))
    grad = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, layer.bias], grad)
    want = torch.autograd.grad(F.linear(x, W, linear.bias), [x, linear.bias], grad)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, want, strict=True))


def test_every_odd_size():
    for inputs in range(1, 131, 3):
        outputs = 131 - inputs
        linear = nn.Linear(inputs, outputs)
        layer = NF4Linear.from_linear(linear)
        x = torch.randn(2, inputs)
        assert layer(x).shape == (2, outputs)
        fresh = NF4Linear(inputs, outputs)
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(fresh(x), layer(x))


def test_train_eval_train_leaves_state_and_gradients_bit_identical():
    model = prepare_qlora(gpt(n_embd=64, n_head=2), LoRAConfig(r=4))
    disturb(model)
    state = clone_state(model)

    def gradients():
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(next_token_loss(model, ids(), ids()), parameters)

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(ids())
    model(ids())
    after = gradients()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_bytes_kept_between_calls():
    layer = NF4Linear.from_linear(nn.Linear(1024, 1024, bias=False))
    size = sum(t.numel() * t.element_size() for t in layer.state_dict().values())
    assert size * 8 / 1024**2 < 4.15
    x = torch.randn(8, 1024, requires_grad=True)
    assert saved_elements(lambda: layer(x)) < 1024**2 / 8, (
        "the de-quantised weight must not be kept for the backward pass"
    )


def test_changing_dtype_leaves_the_codes_and_statistics():
    layer = NF4Linear.from_linear(nn.Linear(96, 64))
    want = layer.dequantize(torch.float32)
    layer.to(torch.bfloat16)
    assert layer.state.nested_absmax.dtype == torch.float32 and layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.dequantize(torch.float32), want)
    copied = copy.deepcopy(layer)
    assert torch.equal(copied.dequantize(), layer.dequantize())


def test_compute_dtype_and_autocast():
    linear = nn.Linear(64, 32)
    x = torch.randn(3, 64)
    layer = NF4Linear.from_linear(linear, compute_dtype=torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.float32
    want = F.linear(x.bfloat16(), layer.dequantize(torch.bfloat16), linear.bias.bfloat16()).float()
    assert torch.equal(y, want)
    plain = NF4Linear.from_linear(linear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = plain(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_merging_into_4_bit_is_right(use_dora, bias):
    model = prepare_qlora(gpt(n_embd=64), LoRAConfig(r=4, use_dora=use_dora, bias=bias))
    quantized = copy.deepcopy(model)
    eject_lora(quantized)
    disturb(model)
    want, state = model(ids()), clone_state(model)
    merge_lora(model)
    assert isinstance(model.h[0].mlp.c_fc.base_layer, nn.Linear)
    assert model.h[0].mlp.c_fc.base_layer.weight.dtype == torch.float32
    assert torch.allclose(model(ids()), want, atol=1e-5)
    unmerge_lora(model)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    eject_lora(model, merge=True)
    assert not any(isinstance(module, NF4Linear) for module in model.modules())
    assert torch.allclose(model(ids()), want, atol=1e-5)
    plain = gpt(n_embd=64)
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(ids()), want, atol=1e-5)


def test_training_changes_only_the_adapter():
    model = prepare_qlora(gpt(n_embd=64), LoRAConfig(r=4))
    frozen = {k: v.clone() for k, v in model.state_dict().items() if "lora_" not in k}
    optimizer = make_optimizer(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = next_token_loss(model.train(), ids(), ids())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(frozen[k], model.state_dict()[k]) for k in frozen)


def test_gradient_checkpointing_gives_the_same_gradients():
    config = LoRAConfig(r=4)
    one = prepare_qlora(gpt(), config)
    two = copy.deepcopy(one)
    from ai_learning.adapters import checkpoint_blocks

    assert checkpoint_blocks(two) == 2
    disturb(one), disturb(two)
    kept = {}
    for name, model in (("plain", one), ("checkpointed", two)):
        model.train()
        kept[name] = saved_elements(lambda model=model: next_token_loss(model, ids(), ids()))
        next_token_loss(model, ids(), ids()).backward()
    assert kept["checkpointed"] < 0.5 * kept["plain"]
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    with pytest.raises(InputError, match="ModuleList"):
        checkpoint_blocks(nn.Linear(2, 2))


def test_refusals():
    with pytest.raises(InputError, match="shares its weight"):
        quantize_linears(gpt(), ["lm_head"])
    with pytest.raises(InputError, match="adapters already"):
        prepare_qlora(inject_lora(gpt()))
    with pytest.raises(InputError, match="Conv2d"):
        NF4Linear.from_linear(nn.Conv2d(1, 1, 1))
    with pytest.raises(InputError, match="sparse"):
        make_optimizer([nn.Parameter(torch.zeros(1))], "sparse")
    with pytest.raises(InputError, match=r"paged_adamw8bit pages memory .* it needs a GPU"):
        make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], "paged_adamw8bit")
    layer = NF4Linear(64, 64)
    for key, value in [("weight", torch.zeros(3, 1, dtype=torch.uint8)), ("weight.absmax", torch.zeros(2))]:
        state = layer.state_dict() | {key: value}
        if key == "weight.absmax":
            with pytest.raises(RuntimeError, match="absmax"):
                NF4Linear(64, 64).load_state_dict(state)
    with pytest.raises(RuntimeError, match="shape"):
        NF4Linear(64, 32).load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match="quant_state"):
        NF4Linear(64, 64).load_state_dict(nn.Linear(64, 64).state_dict())


def peer_qlora(hf, folder):
    """transformers' GPT-2 with bitsandbytes' 4-bit layers and PEFT's adapter from ``folder``."""
    bnb = pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    for block in hf.transformer.h:
        for parent, name in (
            (block.attn, "c_attn"),
            (block.attn, "c_proj"),
            (block.mlp, "c_fc"),
            (block.mlp, "c_proj"),
        ):
            conv = getattr(parent, name)
            inputs, outputs = conv.weight.shape
            layer = bnb.nn.Linear4bit(
                inputs, outputs, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
            )
            weight = conv.weight.data.t().contiguous()
            layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
            layer.bias = nn.Parameter(conv.bias.data.clone(), requires_grad=False)
            setattr(parent, name, layer.to("cpu"))
    return peft.PeftModel.from_pretrained(hf, folder, is_trainable=True)


@pytest.mark.parametrize("use_dora", [False, True])
def test_training_equals_peft_on_bitsandbytes(use_dora, tmp_path):
    ours, hf = hf_pair(n_embd=64)
    prepare_qlora(ours, LoRAConfig(r=4, use_dora=use_dora))
    disturb(ours, scale=0.02)
    save_peft(ours, tmp_path)
    theirs = peer_qlora(hf, tmp_path).train()
    ours.train()
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=5e-3) for m in (ours, theirs)
    ]
    generator = torch.Generator().manual_seed(4)
    first, last = None, None
    for _ in range(20):
        x = torch.randint(0, 97, (4, 16), generator=generator)
        mine = next_token_loss(ours, x[:, :-1], x[:, 1:])
        other = F.cross_entropy(theirs(x[:, :-1]).logits.flatten(0, 1), x[:, 1:].flatten())
        assert mine.item() == pytest.approx(other.item(), abs=1e-4)
        for optimizer, loss in zip(optimizers, (mine, other), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        first, last = first or mine.item(), mine.item()
    assert last != first


def test_qlora_adapter_on_the_full_precision_model(tmp_path):
    model = gpt(n_embd=64)
    full = copy.deepcopy(model)
    disturb(prepare_qlora(model, LoRAConfig(r=2)))
    save_peft(model, tmp_path)
    load_peft(full, tmp_path)
    assert (full(ids()) - model(ids())).abs().max() < 1.0
    again = eject_lora(copy.deepcopy(model))
    load_peft(again, tmp_path)
    assert torch.equal(again(ids()), model(ids()))
    assert same_state(again, model)


@pytest.mark.parametrize("name", ["adamw8bit"])
def test_8_bit_optimizer_trains(name):
    pytest.importorskip("bitsandbytes")
    model = prepare_qlora(gpt(n_embd=64), LoRAConfig(r=4))
    optimizer = make_optimizer(model.parameters(), name, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = next_token_loss(model, ids(), ids())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_transformers_gpt2_saves_and_reloads_after_a_merge(tmp_path):
    """Its layers are Conv1D, with the weight (in, out): they come back as such, not as nn.Linear."""
    transformers = pytest.importorskip("transformers")
    _, model = hf_pair()
    kinds = {path: type(module) for path, module in model.named_modules()}
    prepare_qlora(model, LoRAConfig(r=4))
    disturb(model)
    with torch.no_grad():
        adapted = model(ids()).logits
        eject_lora(model, merge=True)
        assert {path: type(module) for path, module in model.named_modules()} == kinds
        assert torch.allclose(model(ids()).logits, adapted, atol=1e-5)
        model.save_pretrained(tmp_path)
        reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.allclose(reloaded(ids()).logits, adapted, atol=1e-5)


def test_our_own_layers_come_back_too():
    model = gpt()
    kinds = [type(module) for module in model.modules()]
    prepare_qlora(model, LoRAConfig(r=4))
    eject_lora(model, merge=True)
    assert [type(module) for module in model.modules()] == kinds


def test_what_is_trained_whole_is_not_quantized():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=97, n_layer=1, n_head=2, n_embd=16, n_positions=16, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config)
    prepare_qlora(model, LoRAConfig(target_modules=["c_attn"], modules_to_save=["score"]))
    assert isinstance(model.score.copies["default"], nn.Linear)
    model(ids()).logits.sum().backward()
    assert model.score.copies["default"].weight.grad is not None


def test_a_wrong_config_shows_before_anything_is_quantized():
    model = gpt()
    before = clone_state(model)
    with pytest.raises(InputError, match="'nope' matches no layer"):
        prepare_qlora(model, LoRAConfig(target_modules=["nope"]))
    model.h[1].mlp.c_fc.double()
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc has a torch\.float64 weight"):
        quantize_linears(model)
    model.h[1].mlp.c_fc.float()
    assert not any(isinstance(module, NF4Linear) for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    prepare_qlora(model)
    with pytest.raises(InputError, match="already"):
        prepare_qlora(eject_lora(model))


def test_a_whole_model_of_bitsandbytes_is_taken_over():
    bnb = pytest.importorskip("bitsandbytes")
    theirs = nn.Sequential(
        bnb.nn.Linear4bit(64, 64, quant_type="nf4", compress_statistics=False),
        bnb.nn.Linear4bit(64, 32, quant_type="fp4"),
    ).to("cpu")
    x = torch.randn(3, 64)
    ours = copy.deepcopy(theirs)
    assert quantize_linears(ours) == ["0", "1"]
    assert ours[0].quant_type == "nf4" and ours[1].quant_type == "fp4"
    assert torch.allclose(ours(x), theirs.train()(x), atol=1e-2)
    with pytest.raises(InputError, match="not quantized yet"):
        NF4Linear.from_bnb(bnb.nn.Linear4bit(8, 8))
    with pytest.raises(InputError, match=r"Linear is no bitsandbytes\.nn\.Linear4bit"):
        NF4Linear.from_bnb(nn.Linear(8, 8))


@pytest.mark.parametrize("family", ["Llama", "GPT2"])  # GPT-2's layers were Conv1D before, and are again
def test_a_model_that_bitsandbytes_quantized_is_saved_dense_once_it_is_merged(family, tmp_path):
    """Its config said that it was quantized, so transformers took the merged weights for codes."""
    pytest.importorskip("bitsandbytes")
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 64}
    more = {"intermediate_size": 64} if family == "Llama" else {"bos_token_id": None, "eos_token_id": None}
    kind = transformers.LlamaForCausalLM if family == "Llama" else transformers.GPT2LMHeadModel
    plain = kind(kind.config_class(vocab_size=1000, **sizes, **more))
    plain.save_pretrained(tmp_path / "base")
    four_bits = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = kind.from_pretrained(tmp_path / "base", quantization_config=four_bits, device_map="cpu")
    some = "q_proj" if family == "Llama" else "c_fc"
    disturb(prepare_qlora(model, LoRAConfig(r=2, target_modules=[some])))
    eject_lora(model, merge=True)
    assert model.config.quantization_config is not None  # the other layers are in 4 bits yet
    disturb(inject_lora(model, LoRAConfig(r=2)))
    want = eject_lora(model, merge=True).eval()(ids()).logits
    model.save_pretrained(tmp_path / "merged")
    again = kind.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(again(ids()).logits, want)


def test_integers_are_refused_as_nn_linear_refuses_them():
    with pytest.raises(InputError, match=r"floats, not torch\.int32"):
        NF4Linear(64, 2)(torch.ones(2, 64).int())


def test_a_layer_on_meta_takes_over_what_is_loaded():
    source = NF4Linear(8, 4)
    layer = NF4Linear(8, 4).to("meta")
    layer.load_state_dict(source.state_dict(), assign=True)
    assert layer.weight.device.type == layer.bias.device.type == layer.state.absmax.device.type == "cpu"
    x = torch.randn(2, 8)
    assert torch.equal(layer(x), source(x))


def test_named_parameters_make_an_optimizer():
    model = inject_lora(gpt())
    optimizer = make_optimizer(model.named_parameters())
    wanted = sum(p.requires_grad for p in model.parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == wanted


@pytest.mark.parametrize(
    ("settings", "nested"),
    [({}, True), ({"use_dora": True}, False), ({"bias": "all"}, True), ({"lora_dropout": 0.1}, True)],
    ids=str,
)
def test_a_compiled_model_is_one_graph_that_keeps_no_dense_weight(settings, nested):
    model = prepare_qlora(gpt(), LoRAConfig(**settings), compress_statistics=nested)
    disturb(model)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)

    def passes(forward):
        torch.manual_seed(1)
        loss = forward(ids()).square().mean()
        loss.backward()
        found = [p.grad for p in model.parameters() if p.requires_grad]
        model.zero_grad()
        return loss.detach(), found

    one, other = passes(model), passes(whole)
    assert torch.allclose(one[0], other[0], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one[1], other[1], strict=True))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        whole(ids())
    dense = {layer.shape for layer in model.modules() if isinstance(layer, NF4Linear)}
    assert saved and not dense & {*saved, *(shape[::-1] for shape in saved)}


def test_modules_that_are_skipped_are_skipped_however_layers_are_named():
    model = gpt()
    assert quantize_linears(model, ["c_attn"], skip_modules=["h.0"]) == ["h.1.attn.c_attn"]
    with pytest.raises(InputError, match=r"skip_modules: 'nope' matches no module"):
        quantize_linears(gpt(), skip_modules=["nope"])


def test_nothing_is_quantized_where_a_later_step_would_fail():
    bnb = pytest.importorskip("bitsandbytes")
    for model, act, message in (
        (gpt(), lambda m: prepare_qlora(m, adapter_name="a.b"), "without dots"),
        (
            nn.Sequential(nn.Linear(64, 64)),
            lambda m: prepare_qlora(m, gradient_checkpointing=True),
            "ModuleList",
        ),
        (nn.Sequential(nn.Linear(64, 64), bnb.nn.Linear4bit(64, 64)), quantize_linears, "not quantized yet"),
    ):
        with pytest.raises(InputError, match=message):
            act(model)
        assert not any(isinstance(module, NF4Linear) for module in model.modules())
