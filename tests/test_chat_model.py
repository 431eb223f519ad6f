"""Our GPT and transformers' models as LangChain chat models; everybody else's by name."""

import threading
from pathlib import Path

import pytest
import torch
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage
from transformers import AutoTokenizer

from ai_learning.chat_model import GPTChatModel, TransformersChatModel, open_chat_model
from ai_learning.chat_template import end_of_answer
from ai_learning.checkpoint import save_checkpoint, tokenizer_reference
from ai_learning.cli.export import main as export
from ai_learning.errors import InputError
from ai_learning.generate import cut_stream, generate_text
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained
from ai_learning.tokenizers import ByteTokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=258, block_size=64, n_layer=2, n_head=2, n_embd=32)).eval()


@pytest.fixture(scope="module")
def checkpoint(gpt: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "best.pt"
    save_checkpoint(gpt, path, tokenizer=tokenizer_reference(ByteTokenizer()))
    return path


@pytest.fixture(scope="module")
def folder(gpt: GPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("theirs")
    save_pretrained(gpt, path, ByteTokenizer())
    return path


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> GPTChatModel:
    return GPTChatModel.open(checkpoint, max_tokens=40)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> TransformersChatModel:
    return TransformersChatModel.open(folder, max_tokens=40)


@pytest.fixture(params=["ours", "theirs"])
def model(request: pytest.FixtureRequest) -> GPTChatModel | TransformersChatModel:
    found: GPTChatModel | TransformersChatModel = request.getfixturevalue(request.param)
    return found


def test_ours_says_what_generate_says(ours: GPTChatModel, gpt: GPT) -> None:
    said = ours.invoke("Hello").text
    assert said == generate_text(gpt, ByteTokenizer(), "Hello", 40, temperature=0.0)
    sampled = ours.bind(temperature=1.0, seed=3, top_k=50).invoke("Hello").text
    assert sampled == generate_text(gpt, ByteTokenizer(), "Hello", 40, temperature=1.0, seed=3, top_k=50)
    assert sampled != said


def test_theirs_says_what_transformers_says(theirs: TransformersChatModel) -> None:
    ids = theirs.tokenizer("Hello", return_tensors="pt").input_ids
    whole = theirs.model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
    expected = theirs.tokenizer.decode(whole[0, ids.size(1) :], skip_special_tokens=True)
    assert theirs.invoke("Hello").text == expected != ""


def test_streaming_gives_the_same_in_pieces(model: GPTChatModel | TransformersChatModel) -> None:
    chunks = list(model.stream("Once upon a time"))
    assert len(chunks) > 5
    assert "".join(chunk.text for chunk in chunks) == model.invoke("Once upon a time").text
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)


def test_tokens_are_counted(model: GPTChatModel | TransformersChatModel) -> None:
    usage = model.invoke("Hello").usage_metadata
    assert usage is not None
    assert usage["input_tokens"] == 5
    assert 0 < usage["output_tokens"] <= 40
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_stop_words_end_the_answer_and_are_not_in_it(model: GPTChatModel | TransformersChatModel) -> None:
    whole = model.invoke("Hello")
    assert len(whole.text) > 8
    word = whole.text[4:7]
    expected = whole.text[: whole.text.index(word)]
    for answer in (
        model.invoke("Hello", stop=[word]),
        model.invoke("Hello", stop=["never there", word]),
        sum(model.stream("Hello", stop=[word]), AIMessageChunk(content="")),  # type: ignore[call-overload]
        model.model_copy(update={"stop": [word]}).invoke("Hello"),
    ):
        assert answer.text == expected
        assert answer.usage_metadata["output_tokens"] < whole.usage_metadata["output_tokens"]


def test_a_stream_that_is_left_ends_its_work(theirs: TransformersChatModel) -> None:
    before = threading.active_count()
    stream = theirs.stream("Hello")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert theirs.invoke("Hello").text  # and the model is free again


def test_messages_without_a_template_are_their_texts(ours: GPTChatModel) -> None:
    messages = [SystemMessage("be brief"), HumanMessage("Hello")]
    assert ours.invoke(messages).text == ours.invoke("be brief\nHello").text


def test_a_chat_template_is_used(ours: GPTChatModel, theirs: TransformersChatModel) -> None:
    messages = [SystemMessage("be brief"), HumanMessage("Hi")]
    plain = "<system>be brief\n<user>Hi\n<assistant>"
    templated = ours.model_copy(update={"template": TEMPLATE})
    assert templated.invoke(messages).text == ours.invoke(plain).text
    expected = theirs.invoke(plain).text
    theirs.tokenizer.chat_template = TEMPLATE
    try:
        assert theirs.invoke(messages).text == expected
    finally:
        theirs.tokenizer.chat_template = None


def test_a_template_beside_the_weights_is_found(folder: Path, gpt: GPT, tmp_path: Path) -> None:
    save_pretrained(gpt, tmp_path, ByteTokenizer())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    found = GPTChatModel.open(tmp_path, max_tokens=20)
    assert found.template == TEMPLATE
    ours = found.invoke("Hi").text
    theirs = TransformersChatModel.open(tmp_path, max_tokens=20).invoke("Hi").text
    assert ours.rstrip("\ufffd") == theirs.rstrip("\ufffd")
    assert GPTChatModel.open(folder).template is None


def test_what_is_too_long_loses_its_beginning(model: GPTChatModel | TransformersChatModel) -> None:
    assert model.invoke("x" * 500).text is not None
    assert model.invoke("").text is not None


def test_many_threads_get_the_answers_that_one_would(model: GPTChatModel | TransformersChatModel) -> None:
    prompts = ["a", "b", "c", "d"]
    hot = model.model_copy(
        update={"temperature": 1.0, "seed": 1}
    )  # transformers draws from a global generator
    expected = [hot.invoke(prompt).text for prompt in prompts]
    assert [answer.text for answer in hot.batch(list(prompts))] == expected


def test_seeds_repeat(model: GPTChatModel | TransformersChatModel) -> None:
    hot = model.model_copy(update={"temperature": 1.0, "seed": 1})
    assert hot.invoke("Hello").text == hot.invoke("Hello").text
    other = model.model_copy(update={"temperature": 1.0, "seed": 2})
    assert other.invoke("Hello").text != hot.invoke("Hello").text


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_cutting_a_stream(size: int) -> None:
    text = "one two\nObservation: three\nObs"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(cut_stream(pieces, [])) == text
    assert "".join(cut_stream(pieces, ["\nObservation"])) == "one two"
    assert "".join(cut_stream(pieces, ["three", "two"])) == "one "
    assert "".join(cut_stream(pieces, ["\nObservations"])) == text
    assert "".join(cut_stream(pieces, ["one"])) == ""


def test_by_name(checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = open_chat_model(f"ours:{checkpoint}", max_tokens=8, temperature=0.5, seed=1)
    assert isinstance(ours, GPTChatModel)
    assert (ours.max_tokens, ours.temperature, ours.seed) == (8, 0.5, 1)
    assert isinstance(open_chat_model(f"ours:{folder}"), GPTChatModel)
    assert isinstance(open_chat_model(f"hf:{folder}"), TransformersChatModel)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = open_chat_model("qwen3", base_url="http://127.0.0.1:1/v1", temperature=0.2, timeout_s=3.0)
    assert type(served).__name__ == "ChatOpenAI"
    assert (served.model_name, served.temperature, served.max_retries) == ("qwen3", 0.2, 0)  # type: ignore[attr-defined]
    assert served.openai_api_base == "http://127.0.0.1:1/v1"  # type: ignore[attr-defined]
    named = open_chat_model("openai:org/model:tag", base_url="http://127.0.0.1:1/v1")
    assert named.model_name == "org/model:tag"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ours:", "names no path"),
        ("ours:/nowhere/best.pt", "no checkpoint at|No such file|/nowhere/best.pt"),
        ("hf:/nowhere", "/nowhere"),
        ("nobody:knows", "cannot be opened"),
        ("mystery", "cannot be opened: Unable to infer"),
        ("ollama:llama3", "langchain-ollama"),
        ("openai:gpt-5-mini", "api_key|API key|credentials"),
    ],
)
def test_bad_names_are_one_line(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises((InputError, OSError), match=message) as caught:
        open_chat_model(name)
    assert "\n" not in str(caught.value)


def test_a_tuned_model_brings_its_template_along(gpt: GPT, tmp_path: Path) -> None:
    """From the checkpoint into the chat model, and through an export into a folder."""
    tokenizer = ByteTokenizer()
    tokenizer.save(tmp_path / "tokenizer")
    reference = tokenizer_reference(tokenizer)
    brought = {"chat_template": TEMPLATE, "special_tokens": {"bos_token": "<s>"}}
    save_checkpoint(gpt, tmp_path / "best.pt", tokenizer=reference, **brought)
    tuned = GPTChatModel.open(tmp_path / "best.pt")
    assert tuned.template == TEMPLATE and tuned.special == brought["special_tokens"]
    export([str(tmp_path / "best.pt"), "--out", str(tmp_path / "hf")])
    exported = GPTChatModel.open(tmp_path / "hf")
    assert exported.template == TEMPLATE and exported.special["bos_token"] == "<s>"
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.chat_template == TEMPLATE and theirs.bos_token == "<s>"


def test_what_the_template_writes_behind_an_answer_ends_it(ours: GPTChatModel) -> None:
    said = ours.invoke("<user>Hi\n<assistant>").text
    end = said[3]
    closing = f"{{% if messages[-1]['role'] == 'assistant' %}}{end}{{% endif %}}"
    template = TEMPLATE.replace("{% if", closing + "{% if")
    template = template.replace("\n", "{% if m['role'] == 'user' %}\n{% endif %}")
    assert end_of_answer(template) == end
    assert ours.model_copy(update={"template": template}).invoke("Hi").text == said.partition(end)[0]
