"""PEFT's files both ways, on our GPT and on transformers' GPT-2: logits, gradients, refusals."""

import copy
import json
import shutil
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from ai_learning.adapters import (
    LoRAConfig,
    adapter_names,
    adapters_by_row,
    inject_lora,
    load_peft,
    lora_state_dict,
    save_peft,
    set_adapter,
    use_adapter,
)
from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss
from ai_learning.pretrained import from_hf

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
    {"target_modules": ["wte", "c_attn"], "use_dora": True},
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


def test_a_tied_copy_and_a_convolution_are_refused_by_their_names(tmp_path):
    """The file is whole, and of this model: what it uses is what is told."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    tied = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1))
    config = peft.LoraConfig(
        target_modules=["c_attn"],
        modules_to_save=["lm_head"],
        ensure_weight_tying=True,
        fan_in_fan_out=True,
    )
    model = peft.get_peft_model(copy.deepcopy(tied), config)
    with torch.no_grad():
        model.base_model.model.transformer.wte.modules_to_save.default.weight.add_(1)
    model.save_pretrained(tmp_path / "tied")
    with pytest.raises(InputError, match=r"ensure_weight_tying with .*lm_head.weight as well"):
        load_peft(tied, tmp_path / "tied")

    image = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 4))
    peft.get_peft_model(copy.deepcopy(image), peft.LoraConfig(target_modules=["0"])).save_pretrained(
        tmp_path / "image"
    )
    with pytest.raises(InputError, match="update of '0' is one of a convolution"):
        load_peft(image, tmp_path / "image")


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


# ---- what outsiders tried ------------------------------------------------------------------------


def test_heads_that_another_architecture_would_have_mean_nothing(tmp_path):
    """PEFT notes ``classifier`` and ``score`` for every classifier, whichever the model has."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=97, n_layer=1, n_head=2, n_embd=16, n_positions=16, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config).eval()
    base = copy.deepcopy(model)
    made = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["c_attn"])).eval()
    disturb(made)
    made.save_pretrained(tmp_path / "theirs")
    config = load_peft(base, tmp_path / "theirs")
    assert config.modules_to_save == ("score",)
    assert torch.allclose(base(ids()).logits, made(ids()).logits, atol=1e-5)
    save_peft(base, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("same_name", [True, False])
def test_a_file_that_does_not_fit_leaves_everything_as_it_was(same_name, tmp_path):
    model = gpt()
    disturb(inject_lora(model, LoRAConfig(target_modules=["c_attn"], bias="all", modules_to_save=["ln_f"])))
    want, flags = model(ids()), [p.requires_grad for p in model.parameters()]
    tensors = [id(p) for p in model.parameters()]
    other = disturb(inject_lora(gpt(), LoRAConfig(target_modules=["c_fc"], r=2)))
    save_peft(other, tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    save_file(weights | {"base_model.model.transformer.ln_q.weight": torch.ones(32)}, file)
    with pytest.raises(InputError, match=r"unexpected \['ln_q.weight'\]"):
        load_peft(model, tmp_path, "default" if same_name else "second")
    assert adapter_names(model) == ["default"] and torch.equal(model(ids()), want)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [id(p) for p in model.parameters()] == tensors


def test_tied_biases_and_modules_beside_bias_all(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForMaskedLM(config).eval()
    base = copy.deepcopy(model)
    made = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], bias="all")).eval()
    disturb(made)
    made.save_pretrained(tmp_path / "bert")
    load_peft(base, tmp_path / "bert")
    assert torch.allclose(base(ids()).logits, made(ids()).logits, atol=1e-5)
    ours, theirs = hf_pair()
    settings = {
        "target_modules": ["c_attn"],
        "bias": "all",
        "modules_to_save": ["ln_f"],
        "fan_in_fan_out": True,
    }
    made = disturb(peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval())
    made.save_pretrained(tmp_path / "gpt")
    load_peft(ours, tmp_path / "gpt")
    assert torch.allclose(ours(ids()), made(ids()).logits, atol=1e-5)


def test_embeddings_that_peft_saves_along_must_be_the_models_own(tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = hf_pair()
    settings = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    made = disturb(peft.get_peft_model(theirs, peft.LoraConfig(**settings)).eval())
    made.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("wte" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    load_peft(ours, tmp_path)
    assert torch.allclose(ours(ids()), made(ids()).logits, atol=1e-5)
    with pytest.raises(InputError, match="brings its own frozen"):
        load_peft(gpt(), tmp_path)


def test_a_compiled_models_file_has_the_plain_names(tmp_path):
    ours, theirs = hf_pair()
    peft = pytest.importorskip("peft")
    plain = copy.deepcopy(ours)
    compiled = torch.compile(ours)
    disturb(inject_lora(compiled, LoRAConfig(target_modules=["c_attn"])))
    want = ours(ids())
    save_peft(compiled, tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert torch.allclose(opened(ids()).logits, want, atol=1e-5)
    again = torch.compile(plain)
    load_peft(again, tmp_path)
    assert torch.allclose(plain(ids()), want, atol=1e-6)
    blocks = gpt()
    for number, block in enumerate(blocks.h):
        blocks.h[number] = torch.compile(block)
    load_peft(blocks, tmp_path)
    save_peft(blocks, tmp_path / "again")
    one, other = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_task_type_is_what_the_file_said(tmp_path):
    save_peft(inject_lora(gpt()), tmp_path / "a", task_type="FEATURE_EXTRACTION")
    model = gpt()
    load_peft(model, tmp_path / "a")
    save_peft(model, tmp_path / "b")
    assert (
        json.loads((tmp_path / "b" / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"
    )
    save_peft(inject_lora(nn.Sequential(nn.Linear(4, 4))), tmp_path / "c")
    assert json.loads((tmp_path / "c" / "adapter_config.json").read_text())["task_type"] is None
    save_peft(inject_lora(gpt()), tmp_path / "d")
    assert json.loads((tmp_path / "d" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", None), ("r", "x"), ("lora_alpha", "x"), ("lora_dropout", "x"), ("target_modules", [3]),
        ("alpha_pattern", [1]), ("alpha_pattern", {"(": 1}), ("alpha_pattern", {"c_attn": None}),
        ("modules_to_save", 3),
    ],
)  # fmt: skip
def test_a_malformed_config_is_one_line(name, value, tmp_path):
    save_peft(inject_lora(gpt()), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    model = gpt()
    if value is None:  # left out: PEFT's default
        load_peft(model, tmp_path)
        return
    with pytest.raises(InputError, match=name):
        load_peft(model, tmp_path)
    assert adapter_names(model) == []


@pytest.mark.parametrize("content", [b"", b"abc", b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00lsq\x00\x85R."])
def test_a_damaged_pickle_is_one_line(content, tmp_path):
    save_peft(inject_lora(gpt()), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"adapter_model\.bin is damaged"):
        load_peft(gpt(), tmp_path)
    torch.save([torch.ones(1)], tmp_path / "adapter_model.bin")
    with pytest.raises(InputError, match="must hold tensors by name"):
        load_peft(gpt(), tmp_path)


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"modules_to_save": ["ln_f"]}, {"bias": "all"}], ids=str
)
def test_a_swap_does_not_believe_a_config_that_the_tensors_contradict(change, tmp_path):
    model = inject_lora(gpt())
    save_peft(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match="missing"):
        load_peft(model, tmp_path)
    assert adapter_names(model) == ["default"]


def test_integers_are_no_adapter(tmp_path):
    save_peft(inject_lora(gpt()), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({key: tensor.to(torch.int8) for key, tensor in load_file(file).items()}, file)
    with pytest.raises(InputError, match=r"torch\.int8: adapters hold floats"):
        load_peft(gpt(), tmp_path)


# ---- our Llama and Qwen 3, our GPT-1 -------------------------------------------------------------


def llama_pair(qwen=False):
    """(our GPT, transformers' model) of the Llama family with the same weights."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32, "head_dim": 8,
    }  # fmt: skip
    kind = "Qwen3" if qwen else "Llama"
    config = getattr(transformers, f"{kind}Config")(**sizes)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    return from_hf(theirs).eval(), theirs


LLAMA_VARIANTS = [
    {},
    {"use_dora": True},
    {"use_rslora": True, "rank_pattern": {"c_attn": 2}, "alpha_pattern": {"c_proj": 3, "c_attn": 5}},
    {"target_modules": ["c_attn", "c_gate"]},
    {"target_modules": ["wte", "attn.c_proj"]},
    {"target_modules": ["c_fc"], "modules_to_save": ["ln_f", "lm_head"]},
    {"target_modules": ["c_fc"], "modules_to_save": ["attn"]},
    {"target_modules": "all-linear", "layers_to_transform": [1]},
]


@pytest.mark.parametrize("settings", LLAMA_VARIANTS, ids=str)
@pytest.mark.parametrize("qwen", [False, True])
def test_our_llama_opens_in_peft_and_comes_back(qwen, settings, tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = llama_pair(qwen)
    base = copy.deepcopy(ours)
    disturb(inject_lora(ours, LoRAConfig(r=4, lora_alpha=7, **settings)))
    want = ours(ids())
    assert (want - base(ids())).abs().max() > 1e-2
    save_peft(ours, tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    assert torch.allclose(opened(ids()).logits, want, atol=1e-5)
    again = copy.deepcopy(base)
    load_peft(again, tmp_path / "ours")
    assert torch.allclose(again(ids()), want, atol=1e-6)
    mine, loaded = lora_state_dict(ours), lora_state_dict(again)
    assert mine.keys() == loaded.keys() and all(torch.equal(mine[key], loaded[key]) for key in mine)
    opened.save_pretrained(tmp_path / "theirs")
    fresh = copy.deepcopy(base)
    load_peft(fresh, tmp_path / "theirs")
    assert torch.allclose(fresh(ids()), want, atol=1e-5)


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "up_proj"], ["k_proj"]], ids=str
)
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_updates_of_queries_keys_and_values_become_one(settings, targets, tmp_path):
    """Each with its own A, rank and scaling."""
    peft = pytest.importorskip("peft")
    ours, theirs = llama_pair()
    patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=targets, **patterns, **settings)
    made = disturb(peft.get_peft_model(theirs, config).eval())
    made.save_pretrained(tmp_path / "theirs")
    load_peft(ours, tmp_path / "theirs")
    want = made(ids()).logits
    assert torch.allclose(ours(ids()), want, atol=1e-5)
    save_peft(ours, tmp_path / "ours")
    opened = peft.PeftModel.from_pretrained(made.unload(), tmp_path / "ours").eval()
    assert torch.allclose(opened(ids()).logits, want, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=str)
def test_a_hot_swap_of_three_updates_that_are_one_here(settings, tmp_path, monkeypatch):
    """Files of one layout go straight into our one update, whichever way it was joined."""
    peft = pytest.importorskip("peft")
    ours, theirs = llama_pair()
    patterns = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], **patterns, **settings)
    made, want = peft.get_peft_model(theirs, config).eval(), {}
    for seed, name in enumerate("ab"):
        disturb(made, seed=seed).save_pretrained(tmp_path / name)
        want[name] = made(ids()).logits
    load_peft(ours, tmp_path / "a")
    pointers = {name: p.data_ptr() for name, p in ours.named_parameters()}
    with monkeypatch.context() as patch:
        patch.setattr("ai_learning.adapters.peft._translate", None)  # the way of files that are not known
        for name in "ba":
            load_peft(ours, tmp_path / name)
            assert torch.allclose(ours(ids()), want[name], atol=1e-5)
    assert pointers == {name: p.data_ptr() for name, p in ours.named_parameters()}
    assert (want["a"] - want["b"]).abs().max() > 1e-2


def test_a_hot_swap_looks_whether_three_updates_still_share_one_matrix(tmp_path, monkeypatch):
    ours, _ = llama_pair()
    base, want = copy.deepcopy(ours), {}
    inject_lora(ours, LoRAConfig(r=3, target_modules=["c_attn"]))
    for seed, name in enumerate("ab"):
        save_peft(disturb(ours, seed=seed), tmp_path / name)
        want[name] = ours(ids())
    file = tmp_path / "b" / "adapter_model.safetensors"
    weights = load_file(file)
    weights["base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight"].mul_(-3)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    save_file(weights, tmp_path / "c" / "adapter_model.safetensors", metadata={"format": "pt"})
    fresh = copy.deepcopy(base)
    load_peft(fresh, tmp_path / "c")
    want["c"] = fresh(ids())
    assert (want["c"] - want["b"]).abs().max() > 1e-3
    load_peft(base, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr("ai_learning.adapters.peft._translate", None)
        load_peft(base, tmp_path / "b")
        assert torch.allclose(base(ids()), want["b"], atol=1e-6)
    for name in "cac":
        load_peft(base, tmp_path / name)
        assert torch.allclose(base(ids()), want[name], atol=1e-6)


@pytest.mark.parametrize("shape", [(15,), (1,), (16, 1)], ids=str)
def test_a_magnitude_that_does_not_fit_a_third_of_c_attn(shape, tmp_path):
    ours, _ = llama_pair()
    save_peft(inject_lora(copy.deepcopy(ours), LoRAConfig(use_dora=True)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    weights["base_model.model.model.layers.1.self_attn.k_proj.lora_magnitude_vector"] = torch.ones(shape)
    save_file(weights, file)
    with pytest.raises(InputError, match=r"k_proj.*lora_magnitude_vector has shape"):
        load_peft(ours, tmp_path)


def test_our_gpt1_and_its_embedding(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"vocab_size": 97, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = transformers.OpenAIGPTConfig(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    theirs = transformers.OpenAIGPTLMHeadModel(config).eval()
    ours = disturb(inject_lora(from_hf(theirs).eval(), LoRAConfig(target_modules=["wte", "c_attn"])))
    save_peft(ours, tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    assert torch.allclose(opened(ids()).logits, ours(ids()), atol=1e-5)


@pytest.mark.parametrize("r", [2, 3])
def test_after_a_file_that_was_refused_the_next_one_is_taken(r, tmp_path):
    for seed, name in enumerate("ab"):
        save_peft(disturb(inject_lora(gpt(), LoRAConfig(r=2)), seed=seed), tmp_path / name)
    save_peft(inject_lora(gpt(), LoRAConfig(r=r)), tmp_path / "bad")
    file = tmp_path / "bad" / "adapter_model.safetensors"
    weights = load_file(file)
    weights.pop("base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight")
    save_file(weights, file)
    model, fresh = gpt(), gpt()
    fresh.load_state_dict(model.state_dict())
    inject_lora(model, LoRAConfig(target_modules=["c_attn"]), "other")
    load_peft(model, tmp_path / "a", "x")
    with pytest.raises(InputError):
        load_peft(model, tmp_path / "bad", "x")
    load_peft(model, tmp_path / "b", "x")
    load_peft(fresh, tmp_path / "b")
    assert torch.equal(model(ids()), fresh(ids()))


def test_a_swap_while_rows_choose_does_not_touch_the_frozen_biases(tmp_path):
    save_peft(disturb(inject_lora(gpt(), LoRAConfig(bias="all"))), tmp_path)
    model = gpt()
    before = model(ids())
    load_peft(model, tmp_path, "biases")
    inject_lora(model, LoRAConfig(), "plain")
    set_adapter(model, "biases")
    with adapters_by_row(model, ["plain"] * 3):
        load_peft(model, tmp_path, "biases")
    with use_adapter(model, None):
        assert torch.equal(model(ids()), before)


def test_a_compiled_llama_and_compiled_parts(tmp_path):
    ours, _ = llama_pair()
    plain = copy.deepcopy(ours)
    compiled = torch.compile(ours)
    disturb(inject_lora(compiled, LoRAConfig(r=2, modules_to_save=["ln_f"])))
    save_peft(compiled, tmp_path)
    parts = copy.deepcopy(plain)
    parts.ln_f = torch.compile(parts.ln_f)
    for number, block in enumerate(parts.h):
        parts.h[number] = torch.compile(block)
    for model in (torch.compile(plain), torch.compile(parts)):
        config = load_peft(model, tmp_path)
        assert config.modules_to_save == ("ln_f",)
        save_peft(model, tmp_path / "again")
        again = load_file(tmp_path / "again" / "adapter_model.safetensors")
        for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
            assert torch.equal(again[key], tensor)
    assert torch.allclose(plain(ids()), ours(ids()), atol=1e-6)


def test_an_adapter_of_another_llama_is_one_line(tmp_path):
    peft = pytest.importorskip("peft")
    _, theirs = llama_pair()
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    peft.get_peft_model(theirs, config).save_pretrained(tmp_path)
    sizes = {"vocab_size": 97, "block_size": 16, "n_head": 4, "n_kv_head": 2, "bias": False}
    parts = {"norm": "rmsnorm", "positions": "rotary", "mlp": "gated", "activation": "silu"}
    with pytest.raises(InputError, match=r"layers\.1\.self_attn', which the model does not have"):
        load_peft(gpt(**sizes, **parts, n_layer=1, n_embd=32), tmp_path)
    with pytest.raises(InputError, match="it is 64 → 64 wide"):
        load_peft(gpt(**sizes, **parts, n_layer=2, n_embd=64), tmp_path)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_a_llama_with_biases_comes_back(bias, tmp_path):
    parts = {"norm": "rmsnorm", "positions": "rotary", "mlp": "gated", "activation": "silu", "bias": True}
    model = gpt(**parts)
    fresh = copy.deepcopy(model)
    save_peft(disturb(inject_lora(model, LoRAConfig(bias=bias))), tmp_path)
    load_peft(fresh, tmp_path)
    assert torch.allclose(fresh(ids()), model(ids()), atol=1e-6)


@pytest.mark.parametrize("saved", [["o_proj"], ["down_proj"], ["norm"], ["model.norm", "lm_head"]], ids=str)
def test_modules_of_pefts_names_trained_whole(saved, tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = llama_pair()
    config = peft.LoraConfig(target_modules=["gate_proj"], modules_to_save=saved)
    made = disturb(peft.get_peft_model(theirs, config).eval())
    made.save_pretrained(tmp_path)
    load_peft(ours, tmp_path)
    assert torch.allclose(ours(ids()), made(ids()).logits, atol=1e-5)


def test_a_module_whose_name_ends_others_is_saved_in_full(tmp_path):
    """To PEFT "norm" means every input_layernorm as well, whose weights the file does not have."""
    peft = pytest.importorskip("peft")
    _, theirs = llama_pair()
    plain = copy.deepcopy(theirs)
    disturb(inject_lora(theirs, LoRAConfig(target_modules=["q_proj"], modules_to_save=["norm", "lm_head"])))
    save_peft(theirs, tmp_path)
    made = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path).eval()
    want = theirs.eval()(ids()).logits
    assert torch.allclose(made(ids()).logits, want, atol=1e-5)
    load_peft(plain, tmp_path)
    assert torch.allclose(plain(ids()).logits, want, atol=1e-5)


def test_a_scaling_of_zero(tmp_path):
    peft = pytest.importorskip("peft")
    ours, theirs = llama_pair()
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], alpha_pattern={"q_proj": 0})
    made = disturb(peft.get_peft_model(theirs, config).eval())
    made.save_pretrained(tmp_path)
    load_peft(ours, tmp_path)
    assert torch.allclose(ours(ids()), made(ids()).logits, atol=1e-5)
