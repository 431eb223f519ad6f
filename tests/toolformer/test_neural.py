"""Tools that are models, with tiny random ones; tools by what stands on a command line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ai_learning.errors import InputError
from ai_learning.tokenizers import BPETokenizer
from ai_learning.toolformer import PipelineTool, Translator
from ai_learning.toolformer.toolbox import open_tools, read_facts
from ai_learning.toolformer.tools import is_error

CODES = ("</s>", "<pad>", "<unk>", "eng_Latn", "fra_Latn", "deu_Latn")
SMALL = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NLLB in small: its architecture with random weights, and a tokenizer that knows three languages."""
    path = tmp_path_factory.mktemp("nllb")
    ours = BPETokenizer.train(["sûreté nucléaire nuclear safety"], 270, special_tokens=CODES)
    ours.save(path / "t")
    PreTrainedTokenizerFast(
        tokenizer_file=str(path / "t" / "tokenizer.json"),
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(CODES[3:]),
    ).save_pretrained(path)
    torch.manual_seed(0)
    end, pad = ours.special_tokens["</s>"], ours.special_tokens["<pad>"]
    small = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in SMALL.items()}
    ids = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": pad, "decoder_start_token_id": end}
    config = M2M100Config(vocab_size=ours.vocab_size, d_model=16, max_position_embeddings=512, **small, **ids)
    M2M100ForConditionalGeneration(config).save_pretrained(path)
    return path


def test_translation_loads_and_asks_for_the_target_language(folder: Path) -> None:
    translator = Translator.load(str(folder), max_new_tokens=6)
    asked: list[dict[str, Any]] = []
    generate = translator.model.generate

    def spy(**options: Any) -> Any:
        asked.append(options)
        return generate(**options)

    translator.model.generate = spy
    answer = translator("sûreté nucléaire")
    assert isinstance(answer, str) and not is_error(answer) and "eng_Latn" not in answer
    assert asked[0]["forced_bos_token_id"] == translator.tokenizer.convert_tokens_to_ids("eng_Latn")
    assert asked[0]["max_new_tokens"] == 6
    assert is_error(translator("  "))
    with pytest.raises(ValueError, match="no language 'xxx_Latn'"):
        Translator.load(str(folder), target="xxx_Latn")
    with pytest.raises(ValueError, match="no translation model"):
        Translator.load(str(folder / "missing"))


def test_the_source_language_is_guessed_by_what_is_given(folder: Path) -> None:
    """As fastText does in the paper; the tokenizer is told."""
    translator = Translator.load(str(folder), detect=lambda text: "fra_Latn" if "é" in text else "deu_Latn")
    translator("sûreté")
    assert translator.tokenizer.src_lang == "fra_Latn"
    translator("Sicherheit")
    assert translator.tokenizer.src_lang == "deu_Latn"


def test_a_pipeline_by_its_name(folder: Path, tmp_path: Path) -> None:
    PreTrainedTokenizerFast.from_pretrained(folder).save_pretrained(tmp_path)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=280, n_positions=128, n_embd=16, n_layer=1, n_head=1)
    ).save_pretrained(tmp_path)
    (qa,) = open_tools([f"QA=model:{tmp_path}"])
    answer = qa("What is it?")
    assert not is_error(answer) and "Question:" not in answer and len(answer) <= 200
    with pytest.raises(ValueError, match="no text-generation pipeline"):
        PipelineTool.load(str(tmp_path / "missing"))


def test_tools_of_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text('{"capital of Zembla": "Onhava"}')
    (tmp_path / "facts.tsv").write_text("river of Zembla\tNitra\n")
    (tmp_path / "mine.py").write_text(
        "from langchain_core.tools import tool\n"
        "@tool\ndef shout(text: str) -> str:\n    'x'\n    return text.upper()\n"
    )
    (tmp_path / "a.txt").write_text("Bees make honey.")
    specs = ["Calculator", "Calendar=2023-01-30", f"WikiSearch={tmp_path}/a.txt", f"QA={tmp_path}/facts.json"]
    tools = {tool.name: tool for tool in open_tools([*specs, f"{tmp_path}/mine.py:shout"])}
    assert list(tools) == ["Calculator", "Calendar", "WikiSearch", "QA", "shout"]
    assert tools["QA"]("capital of Zembla?") == "Onhava" and tools["shout"]("a") == "A"
    assert tools["WikiSearch"]("honey") == "Bees make honey." and "Monday" in tools["Calendar"]("")
    assert read_facts(tmp_path / "facts.tsv") == {"river of Zembla": "Nitra"}
    (search,) = open_tools([f"QA=search:{tmp_path}/a.txt"])
    assert search("who makes honey") == "Bees make honey."


BAD = ["Nothing", "QA", "QA=missing.json", "no.such.module:x", "json:nothing", "json:dumps", "missing.py:x"]


@pytest.mark.parametrize("spec", [*BAD, "Calendar=soon", "Calculator=3", "WikiSearch=/no/such/folder"])
def test_bad_tools_are_one_line(spec: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_tools([spec])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("shuot", "NameError: name 'shuot' is not defined"),
        ("raise SystemExit(5)", "SystemExit: 5"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("from ai_learning.toolformer import Tool\nclass Mine(Tool): pass\nx = Mine()", "Mine has no name"),
    ],
)
def test_a_file_of_tools_may_end_in_anything(written: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(written)
    with pytest.raises(InputError, match=said):
        open_tools([f"{tmp_path}/mine.py:x"])


def test_bad_facts(tmp_path: Path) -> None:
    for name, content in (("a.json", "["), ("a.json", "[]"), ("a.tsv", "one column"), ("a.tsv", "a\tb\tc")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="a\\."):
            read_facts(tmp_path / name)
