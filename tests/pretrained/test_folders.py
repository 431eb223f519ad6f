"""Hugging Face's format both ways: the same logits, folders that transformers opens, faults by name."""

import copy
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from ai_learning.adapters import LoRAConfig, inject_lora, quantize_linears
from ai_learning.checkpoint import load_gpt, save_checkpoint
from ai_learning.errors import InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.presets import preset
from ai_learning.pretrained import config_to_hf, from_hf, load_pretrained, save_pretrained, to_hf
from ai_learning.tokenizers import ByteTokenizer

CONFIG = GPTConfig(vocab_size=97, block_size=24, n_layer=2, n_head=2, n_embd=32)
IDX = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("changes", [{}, {"tie_weights": False}, {"bias": False}, {"activation": "relu"}])
def test_there_and_back(norm_first: bool, changes: dict, tmp_path: Path) -> None:
    ours = GPT(replace(CONFIG, norm_first=norm_first, **changes)).eval()
    theirs = to_hf(ours)
    torch.testing.assert_close(theirs(IDX).logits, ours(IDX), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(from_hf(theirs)(IDX), ours(IDX), atol=1e-6, rtol=1e-5)
    save_pretrained(ours, tmp_path)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(opened(IDX).logits, ours(IDX), atol=1e-6, rtol=1e-5)
    loaded = load_pretrained(tmp_path)
    torch.testing.assert_close(loaded(IDX), ours(IDX), atol=1e-6, rtol=1e-5)
    assert not loaded.training and (loaded.lm_head.weight is loaded.wte.weight) == ours.config.tie_weights
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }


def test_loaded_models_train_and_cache(tmp_path: Path) -> None:
    """The mask is made anew after the weights came from a file: the future must not leak."""
    save_pretrained(GPT(CONFIG), tmp_path)
    model = load_pretrained(tmp_path)
    changed = IDX.clone()
    changed[:, 12:] = 5
    assert torch.equal(model(IDX)[:, :12], model(changed)[:, :12])
    model(IDX).sum().backward()
    assert model.wte.weight.grad is not None


def test_sharded_folders_of_transformers(tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(config_to_hf(CONFIG)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(load_pretrained(tmp_path)(IDX), theirs(IDX).logits, atol=1e-6, rtol=1e-5)


def test_other_weights_beside_the_models_are_not_read(tmp_path: Path) -> None:
    """What Mistral and adapters leave there, and the same tensors once more."""
    theirs = transformers.GPT2LMHeadModel(config_to_hf(CONFIG)).eval()
    expected = theirs(IDX).logits
    for name, size in (("whole", "1GB"), ("shards", "40KB")):
        folder = tmp_path / name
        theirs.save_pretrained(folder, max_shard_size=size)
        save_file({"layers.0.wq": torch.zeros(2)}, folder / "consolidated.safetensors")
        save_file({"transformer.wte.weight": torch.zeros(97, 32)}, folder / "adapter_model.safetensors")
        torch.testing.assert_close(load_pretrained(folder)(IDX), expected, atol=1e-6, rtol=1e-5)
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "whole" / "other.safetensors")
    with pytest.raises(
        InputError,
        match=r"adapter_model\.safetensors, consolidated\.safetensors, other\.safetensors, and neither",
    ):
        load_pretrained(tmp_path / "whole")
    for name in ("consolidated", "adapter_model"):
        (tmp_path / "whole" / f"{name}.safetensors").unlink()
    torch.testing.assert_close(load_pretrained(tmp_path / "whole")(IDX), expected, atol=1e-6, rtol=1e-5)


def test_shards_are_those_of_the_index(tmp_path: Path) -> None:
    transformers.GPT2LMHeadModel(config_to_hf(CONFIG)).save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    first, second, *_ = sorted(set(said["weight_map"].values()))
    moved = (tmp_path / first).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"lacks {first}, which model\.safetensors\.index\.json names"):
        load_pretrained(tmp_path)
    moved.rename(tmp_path / first)
    twice = load_file(tmp_path / second) | {next(iter(load_file(tmp_path / first))): torch.zeros(1)}
    save_file(twice, tmp_path / second)
    with pytest.raises(InputError, match=f"stands both in {first} and in {second}"):
        load_pretrained(tmp_path)
    for content in ("{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": "../model.safetensors"}}'):
        index.write_text(content)
        with pytest.raises(InputError, match=r"index\.json names (no weight files|'\.\./model)"):
            load_pretrained(tmp_path)


@pytest.mark.parametrize("value", ["x", None, [1]])
def test_a_config_with_a_value_of_another_type(value: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": value}))
    with pytest.raises(
        InputError, match=r"config\.json cannot be read: .*'vocab_size' expected int"
    ) as caught:
        load_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_dtype(tmp_path: Path) -> None:
    save_pretrained(GPT(CONFIG).bfloat16(), tmp_path)
    assert load_pretrained(tmp_path).wte.weight.dtype == torch.bfloat16
    assert load_pretrained(tmp_path, dtype=torch.float32).wte.weight.dtype == torch.float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(GPT(CONFIG), tmp_path)
    return tmp_path


def edit(folder: Path, change) -> None:  # type: ignore[no-untyped-def]
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_faults_name_the_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(InputError, match=r"lacks h\.1\.mlp\.c_fc\.weight"):
        load_pretrained(folder)
    edit(folder, lambda tensors: tensors.update({"transformer.h.1.mlp.c_fc.weight": torch.zeros(3, 4)}))
    with pytest.raises(InputError, match=r"h\.1\.mlp\.c_fc\.weight has shape \(3, 4\), expected \(32, 128\)"):
        load_pretrained(folder)
    edit(folder, lambda tensors: tensors.update({"transformer.h.2.ln_1.weight": torch.zeros(32)}))
    with pytest.raises(InputError, match=r"has h\.2\.ln_1\.weight, which ours has no place for"):
        load_pretrained(folder)


def test_damaged_and_missing_files(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged or no safetensors file"):
        load_pretrained(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"would be unpickled")
    with pytest.raises(InputError, match=r"no \.safetensors in .*they can run code"):
        load_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="model type 'bert' is not supported"):
        load_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_pretrained(folder)
    with pytest.raises(InputError, match="is no folder here, and not to be had from the hub") as caught:
        load_pretrained("no-one/no-such-model")
    assert "\n" not in str(caught.value)


def test_a_runs_folder_is_told_from_a_models(tmp_path: Path) -> None:
    save_checkpoint(GPT(CONFIG), tmp_path / "best.pt")
    with pytest.raises(InputError, match=f"no config.json in {tmp_path}: give {tmp_path}/best.pt"):
        load_pretrained(tmp_path)


def test_layers_that_are_not_plain_are_not_left_out() -> None:
    model = GPT(GPTConfig(vocab_size=32, block_size=8, n_layer=1, n_head=2, n_embd=16))
    adapted = copy.deepcopy(model)
    inject_lora(adapted, LoRAConfig(r=2))
    with pytest.raises(InputError, match=r"base_layer.weight is of a layer that is not as it was made"):
        to_hf(adapted)
    in_4_bits = copy.deepcopy(model)
    quantize_linears(in_4_bits)
    with pytest.raises(InputError, match="export before weights are made 4 bits"):
        to_hf(in_4_bits)
    model.h[0].mlp.c_fc = nn.Identity()
    with pytest.raises(InputError, match=r"h\.0\.mlp\.c_fc\.weight is of a layer that is not"):
        to_hf(model)


def test_no_counterpart() -> None:
    with pytest.raises(
        InputError, match=r"no architecture of transformers has .*activation='gelu', norm_first=False"
    ):
        config_to_hf(replace(CONFIG, norm_first=False, activation="gelu"))
    assert config_to_hf(preset("gpt1")).model_type == "openai-gpt"
    assert config_to_hf(preset("gpt2-xl")).n_embd == 1600


def test_loading_holds_little_more_than_the_model(tmp_path: Path) -> None:
    config = replace(CONFIG, n_embd=768, n_head=12, n_layer=6, vocab_size=20_000)
    save_pretrained(GPT(config), tmp_path)
    save_pretrained(GPT(CONFIG), tmp_path / "small")
    size = (tmp_path / "model.safetensors").stat().st_size
    code = f"""
import resource, torch, transformers, safetensors
from ai_learning.pretrained import load_pretrained
load_pretrained({str(tmp_path / "small")!r})  # what importing and the first call take
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
load_pretrained({str(tmp_path)!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / {size})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.15


def other_head(model: torch.nn.Module) -> torch.nn.Module:
    """The model, whose configuration ties embedding and head, with another head."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn(97, 32) * 0.02)
    return model.eval()


def test_a_head_that_is_not_tied_although_the_config_says_so(tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(config_to_hf(CONFIG))
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    loaded = load_pretrained(tmp_path)  # the same twice
    assert loaded.config.tie_weights and loaded.lm_head.weight is loaded.wte.weight
    save_file(weights | {"lm_head.weight": torch.randn(97, 32) * 0.02}, tmp_path / "model.safetensors")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for convert in (lambda: load_pretrained(tmp_path), lambda: from_hf(other_head(theirs))):
        with pytest.warns(UserWarning, match="they stay two"):
            ours = convert()
        assert not ours.config.tie_weights
        torch.testing.assert_close(ours(IDX), theirs(IDX).logits, atol=1e-6, rtol=1e-5)


def test_a_head_with_nothing_known_is_not_the_embedding(tmp_path: Path) -> None:
    theirs = transformers.GPT2LMHeadModel(config_to_hf(CONFIG))
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["transformer.wte.weight"]
    for hole, is_tied in ((embedding, True), (embedding.nan_to_num(0), False)):
        embedding[5, 3] = float("nan")
        save_file(weights | {"lm_head.weight": hole.clone()}, tmp_path / "model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_pretrained(tmp_path).config.tie_weights == is_tied
    save_file(weights | {"lm_head.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning), pytest.raises(InputError, match=r"lm_head\.weight has shape \(3,\)"):
        load_pretrained(tmp_path)


def test_our_head_that_is_not_tied_any_more(tmp_path: Path) -> None:
    ours = other_head(GPT(CONFIG))
    torch.testing.assert_close(to_hf(ours)(IDX).logits, ours(IDX), atol=1e-6, rtol=1e-5)
    save_pretrained(ours, tmp_path / "hf")
    torch.testing.assert_close(load_pretrained(tmp_path / "hf")(IDX), ours(IDX), atol=1e-6, rtol=1e-5)
    save_checkpoint(ours, tmp_path / "a.pt")
    assert torch.equal(load_gpt(tmp_path / "a.pt")[0].eval()(IDX), ours(IDX))


def test_dtypes_by_name(tmp_path: Path) -> None:
    save_pretrained(GPT(CONFIG), tmp_path)
    assert load_pretrained(tmp_path, dtype="bfloat16").wte.weight.dtype == torch.bfloat16
    for dtype in ("bf16", "Tensor", "int8", torch.int8):
        with pytest.raises(InputError, match="none that a model computes in"):
            load_pretrained(tmp_path, dtype=dtype)
    with pytest.raises(InputError, match="name of the model is empty"):
        load_pretrained("")


def test_a_tokenizer_with_more_ids_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer has 258 ids, the model 97"):
        save_pretrained(GPT(CONFIG), tmp_path / "out", ByteTokenizer())
    assert not (tmp_path / "out").exists()


def test_who_may_read_the_weights(tmp_path: Path) -> None:
    save_pretrained(GPT(CONFIG), tmp_path)
    modes = {file.name: file.stat().st_mode for file in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_models_that_are_taken_for_the_others() -> None:
    with pytest.raises(InputError, match="from_hf takes a model of transformers, not str"):
        from_hf("gpt2")
    with pytest.raises(InputError, match="from_hf takes a model of transformers, not GPT"):
        from_hf(GPT(CONFIG))
    with pytest.raises(InputError, match="to_hf takes a GPT of ours, not Linear"):
        to_hf(torch.nn.Linear(1, 1))
