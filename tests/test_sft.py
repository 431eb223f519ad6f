"""Instruction data: every format, what is learned of it, and batches that give one loss in three layouts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.adapters import LoRAConfig, inject_lora
from ai_learning.adapters.qlora import checkpoint_blocks
from ai_learning.chat_template import CHATML
from ai_learning.errors import InputError
from ai_learning.loss import IGNORE_INDEX, next_token_loss
from ai_learning.model import GPT, GPTConfig
from ai_learning.sft import (
    LAYOUTS,
    BadRows,
    DocumentMask,
    Example,
    Message,
    SFTBatches,
    SFTData,
    Template,
    document_mask,
    encode_examples,
    encode_prompt,
    name_examples,
    names_training_text,
    read_examples,
    sft_loss,
    sft_metrics,
)
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer

BYTES = ByteTokenizer()
EOS = BYTES.eos_id
CHAT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
ROWS: dict[str, dict[str, Any]] = {
    "pair": {"prompt": "2 + 2?", "response": "4"},
    "completion": {"prompt": "2 + 2?", "completion": "4"},
    "alpaca": {"instruction": "2 + 2?", "input": "", "output": "4"},
    "question": {"question": "2 + 2?", "answer": "4"},
    "openai": {"messages": CHAT},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    "conversational pair": {"prompt": CHAT[:1], "completion": CHAT[1:]},
}


def gpt(**overrides: Any) -> GPT:
    torch.manual_seed(3)
    sizes = {"vocab_size": 64, "block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 32}
    return GPT(GPTConfig(**(sizes | overrides))).eval()


def random_data(lengths: list[int], seed: int = 0, vocab: int = 64) -> SFTData:
    """Examples of so many inputs, some of whose ids are targets."""
    generator = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum([n + 1 for n in lengths])])
    is_target = generator.random(starts[-1]) < 0.5
    is_target[starts[:-1]] = False
    is_target[starts[1:] - 1] = True
    return SFTData(generator.integers(0, vocab, starts[-1]).astype(np.int32), is_target, starts)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows in whichever format the ending says."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
            writer.writerows(cells)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


# --- reading ----------------------------------------------------------------------------------------------


# A table's cell is text: messages in two cells are not told from texts.
FILES = [
    (form, ending)
    for form in ROWS
    for ending in ("jsonl", "json", "csv", "tsv", "parquet")
    if form != "conversational pair" or ending not in ("csv", "tsv")
]


@pytest.mark.parametrize(("form", "ending"), FILES)
def test_every_form_in_every_file(form: str, ending: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"data.{ending}", [ROWS[form]] * 3)
    examples = read_examples(path)
    assert len(examples) == 3
    for example in examples:
        assert example.messages == (Message("user", "2 + 2?"), Message("assistant", "4"))
        assert str(path) in example.where


def test_a_hugging_face_dataset_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [ROWS["pair"]] * 2)
    assert len(read_examples(f"hf:{tmp_path}?split=train")) == 2
    with pytest.raises(InputError, match="unknown option column"):
        read_examples(f"hf:{tmp_path}?column=text")


def test_system_input_text_and_other_column_names() -> None:
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be brief."}
    (example,) = read_examples([row])
    assert [m.content for m in example.messages] == ["Be brief.", "Add.\n\n2 and 2", "4"]
    (example,) = read_examples([{"text": "once upon"}])
    assert example.text == "once upon" and example.response == "once upon" and not example.messages
    columns = {"prompt": "ask", "response": "say"}
    (example,) = read_examples([{"ask": "a", "say": "b", "text": "c"}], columns=columns)
    assert [m.content for m in example.messages] == ["a", "b"]
    with pytest.raises(InputError, match="field 'say' is missing; there are 'ask'"):
        read_examples([{"ask": "a"}], columns=columns)
    # What stands beside the renamed columns is not lost, unless it is one of them.
    (example,) = read_examples([row], columns={"prompt": "instruction", "response": "output"})
    assert [m.content for m in example.messages] == ["Be brief.", "Add.\n\n2 and 2", "4"]
    (example,) = read_examples([row], columns={"prompt": "input", "response": "output"})
    assert [m.content for m in example.messages] == ["Be brief.", "2 and 2", "4"]


@pytest.mark.parametrize("form", ["openai", "sharegpt", "conversational pair", "pair"])
def test_a_system_prompt_beside_the_messages_is_the_first_message(form: str) -> None:
    told = (Message("system", "Be brief."), Message("user", "2 + 2?"), Message("assistant", "4"))
    (example,) = read_examples([ROWS[form] | {"system": "Be brief."}])
    assert example.messages == told
    (example,) = read_examples([ROWS[form] | {"system": ""}])
    assert example.messages == told[1:]
    own = [{"role": "developer", "content": "Be brief."}, *CHAT]
    (example,) = read_examples([{"messages": own, "system": "Be verbose."}])
    assert example.messages == told
    with pytest.raises(InputError, match="field 'system' is no text"):
        read_examples([ROWS[form] | {"system": 5}])


CALL = {"id": "a1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": "é"}'}}
CALLED = '[{"name": "add", "arguments": {"a": 2, "b": "é"}}]'


@pytest.mark.parametrize(
    ("turns", "texts"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2"}]}],
         [("user", "2 + 2")]),
        ([{"role": "developer", "content": "Be brief."}], [("system", "Be brief.")]),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]},
          {"role": "tool", "tool_call_id": "a1", "content": "4"}], [("assistant", CALLED), ("tool", "4")]),
        ([{"role": "assistant", "content": "I add.", "tool_calls": [CALL], "weight": None}],
         [("assistant", "I add.\n" + CALLED)]),
        ([{"role": "assistant", "function_call": CALL["function"]},
          {"role": "function", "name": "add", "content": "4"}], [("assistant", CALLED), ("tool", "4")]),
        ([{"from": "function_call", "value": "add(2, 2)"}, {"from": "observation", "value": "4"}],
         [("assistant", "add(2, 2)"), ("tool", "4")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_else_a_message_may_be(
    ending: str, turns: list[dict[str, Any]], texts: list[tuple[str, str]], tmp_path: Path
) -> None:
    last: dict[str, Any] = {"from": "gpt", "value": "4"} if "from" in turns[0] else CHAT[1]
    if isinstance(turns[0].get("content"), list):  # Parquet has one type a field
        last = {"role": "assistant", "content": [{"type": "text", "text": "4"}]}
    for name in ("messages", "conversations"):  # with either's keys
        path = write(tmp_path / f"{name}.{ending}", [{name: [*turns, last]}])
        (example,) = read_examples(path)
        assert [(m.role, m.text) for m in example.messages] == [*texts, ("assistant", "4")]


def test_a_template_that_knows_tools_writes_the_calls_itself() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls %}"
        "<{{ c.function.name }} {{ c.function.arguments | tojson }}>{% endfor %}{{ m.tool_call_id }};"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    turns = [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    result = {"role": "tool", "content": "4", "tool_call_id": "a1"}
    (example,) = read_examples([{"messages": [*turns, result, CHAT[1]]}])
    assert Template(source).parts(example) == [
        ("[user]2 + 2?;[assistant]", False),
        ('<add {"a": 2, "b": "é"}>;', True),
        ("[tool]4a1;[assistant]", False),
        ("4;", True),
    ]
    (plain,) = read_examples([{"messages": turns}])  # ChatML does not
    assert Template().parts(plain)[-1] == (f"{CALLED}<|im_end|>", True)


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "int"}}}}}
AS_QWEN3 = (
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content is string %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }};{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
OTHER = {"type": "function", "function": {"name": "now", "description": "the time"}}


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_template_is_given_the_tools_and_the_reasoning_as_transformers_gives_them(
    ending: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    reasoned = CHAT[1] | {"reasoning_content": "two and two"}
    row: dict[str, Any] = {"messages": [CHAT[0], reasoned], "tools": [TOOL, OTHER]}
    if ending == "csv":
        row = {name: json.dumps(value) for name, value in row.items()}
    (example,) = read_examples(write(tmp_path / f"rows.{ending}", [row]))
    (asked, _), (answer, _) = Template(AS_QWEN3).parts(example)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    whole = tokenizer.apply_chat_template(
        [CHAT[0], reasoned], chat_template=AS_QWEN3, tokenize=False, tools=[TOOL, OTHER]
    )
    assert asked + answer == whole.rstrip()
    assert '"name": "add"' in asked and "null" not in asked and "two and two" in answer


def test_tools_of_other_forms() -> None:
    older = {"messages": CHAT, "functions": [TOOL["function"]]}
    sharegpt = {"conversations": ROWS["sharegpt"]["conversations"], "tools": json.dumps([TOOL["function"]])}
    for row in (older, sharegpt):
        (example,) = read_examples([row])
        assert example.tools == (TOOL,)
    for wrong in ("[", "hammer", ["hammer"], {"name": "add"}):
        with pytest.raises(InputError, match="row 0: field 'tools' is no list of functions"):
            read_examples([{"messages": CHAT, "tools": wrong}])


def test_what_follows_the_last_answer_is_left_out() -> None:
    (example,) = read_examples([{"messages": [*CHAT, {"role": "user", "content": "thanks"}]}])
    assert example.messages[-1].role == "assistant"


BAD = {
    "{not json": "it is not JSON",
    "[1, 2]": "it is no object with fields",
    '{"prompt": "a"}': "field 'response' is missing beside 'prompt'",
    '{"response": "a"}': "field 'prompt' is missing beside 'response'",
    '{"prompt": "a", "response": 5}': "field 'response' is no text",
    '{"prompt": "a", "response": null}': "field 'response' is missing",
    '{"prompt": "a", "response": "  "}': "field 'response' is empty",
    '{"prompt": "a", "response": "\\ud800"}': "field 'response' is not UTF-8",
    '{"messages": []}': "field 'messages' is empty",
    '{"messages": "hello"}': "field 'messages' is no list of messages",
    '{"messages": [{"role": "user"}]}': "messages[0] has no 'role' and 'content'",
    '{"messages": [{"role": "robot", "content": "x"}]}': "the role 'robot'; known are system, user",
    '{"messages": [{"role": "user", "content": "x"}]}': "no message is the assistant's",
    '{"messages": [{"role": "assistant", "content": " "}]}': "every answer is empty",
    '{"conversations": [{"from": "robot", "value": "x"}]}': "the from 'robot'",
    '{"messages": [{"role": "assistant", "content": "x", "weight": 0.5}]}': "has the weight 0.5: 0",
    '{"messages": [{"role": "assistant", "content": "x", "weight": true}]}': "has the weight True: 0",
    '{"messages": [{"role": "assistant", "content": "x", "weight": 0}]}': "every answer has the weight 0",
    '{"messages": [{"role": "assistant", "content": null}]}': "field 'messages[0].content' is missing",
    '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "[0] is of the type 'image_url'",
    '{"messages": [{"role": "user", "content": ["x"]}]}': "messages[0].content[0] is no part with a type",
    '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}': "content[0].text' is missing",
    '{"messages": [{"role": "assistant", "tool_calls": [{}]}]}': "messages[0].tool_calls[0] has no function",
    '{"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{"}}]}': "are not JSON",
    '{"messages": [{"role": "user", "function_call": {"name": "f"}}]}': "only an assistant does",
    '{"conversations": [{"from": "function", "value": "x"}]}': "the from 'function'",
    '{"title": "a", "chosen": "b"}': "among its fields ('title', 'chosen')",
    '{"text": ["a"]}': "field 'text' is no text",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_told_with_file_and_line(line: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps(ROWS["pair"])
    path.write_text(f"{good}\n\n{line}\n{good}\n")
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}, line 3: ") and BAD[line] in str(caught.value)
    assert "\n" not in str(caught.value)
    bad = BadRows(fatal=False)
    assert len(read_examples(path, bad)) == 2
    assert len(bad.found) == 1 and bad.found[0].startswith(f"{path}, line 3: ")
    assert bad.summary(3).startswith("skipped 1 of 3 rows: ")


def test_bad_bytes_and_bad_cells(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\n{"prompt": "\xff", "response": "b"}\n')
    with pytest.raises(InputError, match="line 2: it is not UTF-8"):
        read_examples(path)
    path = tmp_path / "data.csv"
    path.write_bytes(b'prompt,response\n"two\nlines",b\na,b,c\n\xff,b\na\nc,d\n')
    bad = BadRows(fatal=False)
    examples = read_examples(path, bad)
    assert [m.messages[0].content for m in examples] == ["two\nlines", "c"]
    assert [text.removeprefix(f"{path}, ") for text in bad.found] == [
        "line 4: it has 3 fields, the header 2",
        "line 5: field 'prompt' is not UTF-8",
        "line 6: it has 1 fields, the header 2",
    ]
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match="is damaged or no Parquet file"):
        read_examples(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text("prompt,response,,,prompt\na,b,,,c\n")
    parquet = tmp_path / "data.parquet"
    columns = [pyarrow.array([text]) for text in "abc"]
    pyarrow.parquet.write_table(pyarrow.table(columns, ["prompt", "response", "prompt"]), parquet)
    for path in (table, parquet):
        with pytest.raises(InputError, match="has two columns 'prompt'"):
            read_examples(path, BadRows(fatal=False))
    table.write_text("prompt,response,,\na,b,,\n")  # as spreadsheets leave them behind
    assert read_examples(table)[0].response == "b"


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    for name, message in (
        ("no.jsonl", "no such file"),
        ("a.txt", r"read from \.jsonl"),
        ("b.json", "not JSON"),
    ):
        if name != "no.jsonl":
            (tmp_path / name).write_text("x")
        with pytest.raises(InputError, match=message):
            read_examples(tmp_path / name)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="no usable example at all"):
        read_examples(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no usable example: skipped 1 of 1 rows: row 0"):
        read_examples([{"x": 1}], BadRows(fatal=False))


@pytest.mark.parametrize(
    ("whole", "count"),
    [
        ({"version": "1", "tags": ["x"], "data": [ROWS["pair"]] * 3}, 3),
        ({"data": [ROWS["openai"] | {"role": "x"}] * 2, "columns": ["messages"]}, 2),
        (ROWS["pair"], 1),
        (ROWS["openai"] | {"tools": [{"type": "function"}]}, 1),
        (ROWS["sharegpt"], 1),
        (ROWS["conversational pair"], 1),
    ],
    ids=["after a list of texts", "before one", "pair", "openai", "sharegpt", "conversational pair"],
)
def test_a_json_object_holds_the_rows_or_is_one(whole: dict[str, Any], count: int, tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(whole))
    examples = read_examples(path)
    assert len(examples) == count
    assert all(e.messages == (Message("user", "2 + 2?"), Message("assistant", "4")) for e in examples)


def test_a_json_object_whose_rows_cannot_be_told(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": [ROWS["pair"]], "test": [ROWS["pair"]], "tags": ["x"]}))
    with pytest.raises(InputError, match=r"several lists of objects \('train', 'test'\): keep the one"):
        read_examples(path)
    path.write_text(json.dumps({"tags": ["x"], "data": [ROWS["pair"], 5]}))
    bad = BadRows(fatal=False)
    assert len(read_examples(path, bad)) == 1
    assert bad.found == [f"{path}, item 1: it is no object with fields"]
    path.write_text(json.dumps({"tags": ["x"]}))
    with pytest.raises(InputError, match=r"item 0: no messages, .* among its fields \('tags'\)"):
        read_examples(path)


# --- what is learned --------------------------------------------------------------------------------------


def learned(example: Example, template: Template | None = None) -> tuple[str, str]:
    """(given text, learned text) of an example, by bytes; the end of the text shows as ∎."""
    data = encode_examples([example], BYTES, 500, template)
    ids, is_target = data[0]
    show = ["∎" if i == EOS else chr(i) for i in ids.tolist()]
    return "".join(c for c, t in zip(show, is_target, strict=True) if not t), "".join(
        c for c, t in zip(show, is_target, strict=True) if t
    )


def test_only_the_answer_is_learned() -> None:
    (example,) = read_examples([{"prompt": "2+2=", "response": "4"}])
    assert learned(example) == ("2+2=", "4∎")
    (text,) = read_examples([{"text": "abc"}])
    assert learned(text) == ("a", "bc∎")  # nothing comes before the first


def test_chat_without_a_template_is_chatml_and_each_answer_is_learned() -> None:
    turns = [("user", "hi"), ("assistant", "hello"), ("user", "bye"), ("assistant", "so long")]
    (example,) = read_examples([{"messages": [{"role": r, "content": c} for r, c in turns]}])
    given, answers = learned(example)
    assert answers == "hello<|im_end|>so long<|im_end|>∎"
    assert given == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        "\n<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_answer_of_weight_0_is_context_only() -> None:
    """OpenAI's format: the model sees it, and is not taught it."""
    said = [("hi", "wrong", 0), ("no", "right", 1), ("bye", "bad", 0)]
    turns = [
        {"role": role, "content": content} | ({"weight": weight} if role == "assistant" else {})
        for question, answer, weight in said
        for role, content in (("user", question), ("assistant", answer))
    ]
    (example,) = read_examples([{"messages": turns}])
    given, answers = learned(example)
    assert answers == "right<|im_end|>∎" and example.response == "right"
    assert given == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nwrong<|im_end|>\n"
        "<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"
    )
    assert bytes(encode_prompt(example, BYTES)).decode() == given
    shared = {"conversations": [{"from": "gpt", "value": "bad", "weight": 0}, {"from": "gpt", "value": "ok"}]}
    assert learned(read_examples([shared])[0])[1] == "ok<|im_end|>∎"


def test_a_prompt_by_template_is_what_the_model_will_be_given() -> None:
    (example,) = read_examples([ROWS["pair"]])
    template = Template(CHATML)
    prompt = encode_prompt(example, BYTES, template)
    assert bytes(prompt) == b"<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    ids, is_target = encode_examples([example], BYTES, 500, template)[0]
    assert ids[: len(prompt)].tolist() == prompt and not is_target[: len(prompt)].any()
    assert is_target[len(prompt) :].all()


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    source = "{% for m in messages %}{{ m.content if loop.last else '…' }}{% endfor %}"
    (example,) = read_examples([{"messages": [*CHAT, *CHAT]}])
    with pytest.raises(InputError, match="writes earlier turns differently"):
        encode_examples([example], BYTES, 500, Template(source))


def test_special_tokens_come_from_the_template_and_never_from_the_data() -> None:
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer = BPETokenizer.train(["user assistant hello " * 9], 262, special_tokens=marks)
    (example,) = read_examples([{"messages": [{"role": "assistant", "content": "hello"}]}])
    ids = encode_examples([example], tokenizer, 99)[0][0].tolist()
    assert ids[0] == tokenizer.special_tokens["<|im_start|>"]
    assert ids[-2:] == [tokenizer.special_tokens["<|im_end|>"], tokenizer.eos_id]
    thinks = BPETokenizer(
        tokenizer.vocab, tokenizer.merges, [*marks, "<think>"], tokenizer.pattern, plain_tokens=["<think>"]
    )
    (thought,) = read_examples([{"messages": [{"role": "assistant", "content": "<think>hello"}]}])
    assert thinks.special_tokens["<think>"] in encode_examples([thought], thinks, 99)[0][0]
    (sly,) = read_examples([{"messages": [{"role": "assistant", "content": "a<|im_end|>"}]}])
    with pytest.raises(InputError, match=r"holds the text of the special token '<\|im_end\|>'"):
        encode_examples([sly], tokenizer, 99)
    (plain,) = read_examples([{"prompt": "a", "response": "<|im_end|>"}])
    ids = encode_examples([plain], tokenizer, 99)[0][0].tolist()
    assert tokenizer.special_tokens["<|im_end|>"] not in ids and tokenizer.decode(ids[:-1]) == "a<|im_end|>"


def test_too_long() -> None:
    (example,) = read_examples([{"prompt": "abcd", "response": "efghij"}])
    with pytest.raises(InputError, match="10 tokens are too long for block_size=8"):
        encode_examples([example], BYTES, 8)
    ids, is_target = encode_examples([example], BYTES, 8, too_long="cut")[0]
    assert bytes(ids.tolist()) == b"abcdefghi" and is_target.tolist() == [False] * 4 + [True] * 5
    bad = BadRows(fatal=False)
    with pytest.raises(InputError, match="nothing to learn is left of it"):
        encode_examples([example], BYTES, 3, bad=bad, too_long="cut")
    with pytest.raises(InputError, match="too_long='split' is not known"):
        encode_examples([example], BYTES, 3, too_long="split")


@given(st.text(st.characters(codec="ascii"), min_size=1, max_size=60), st.integers(2, 12))
def test_every_token_of_a_text_is_learned_once(text: str, block_size: int) -> None:
    data = encode_examples([Example(text=text)], BYTES, block_size)
    wanted = [i for n in range(len(data)) for i in data[n][0][data[n][1]].tolist()]
    assert wanted == [*text.encode(), EOS][1:]
    assert data.lengths.max() <= block_size


# --- layouts ----------------------------------------------------------------------------------------------


def alone(model: GPT, data: SFTData) -> tuple[float, list[torch.Tensor]]:
    """The definition: each example by itself, its targets' losses added, divided by all targets."""
    total = torch.zeros(())
    for number in range(len(data)):
        ids, is_target = (torch.from_numpy(a.copy()) for a in data[number])
        targets = torch.where(is_target[1:], ids[1:].long(), IGNORE_INDEX)
        loss = next_token_loss(model, ids[None, :-1].long(), targets[None])
        total = total + loss * int(is_target[1:].sum())
    total = total / data.n_targets
    trained = [p for p in model.parameters() if p.requires_grad]
    return total.item(), list(torch.autograd.grad(total, trained))


FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "reference attention": {"attention": "reference"},
    "rotary, shared keys": {"positions": "rotary", "n_head": 4, "n_kv_head": 2, "qk_norm": True},
    "post-norm": {"norm_first": False},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_equals_each_example_alone(layout: str, family: str) -> None:
    model = gpt(**FAMILIES[family])
    if layout == "stream" and family == "reference attention":
        with pytest.raises(ValueError, match="needs attention='fast'; use layout='pack'"):
            sft_loss(model, SFTBatches(random_data([5, 9]), 2, 24)(0))
        return
    data = random_data([24, 1, 7, 13, 2, 19, 5, 5])
    want, gradients = alone(model, data)
    loss = sft_loss(model, SFTBatches(data, 8, 24, layout=layout)(0), layout)
    assert loss.item() == pytest.approx(want, abs=1e-5)
    for got, right in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(got, right, atol=1e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 24), min_size=1, max_size=12), st.sampled_from(LAYOUTS), st.integers(0, 99))
def test_batches_of_any_lengths_hold_each_example_whole(lengths: list[int], layout: str, seed: int) -> None:
    data = random_data(lengths, seed)
    idx, targets, positions, documents, shares = SFTBatches(data, 99, 24, layout=layout, seed=seed)(0)
    assert idx.shape == targets.shape and idx.size(1) <= 24
    found = []
    for document in range(len(lengths)):
        here = (documents == document).flatten()
        assert positions.flatten()[here].tolist() == list(range(int(here.sum())))
        found.append((idx.flatten()[here].tolist(), targets.flatten()[here].tolist()))
    wanted = []
    for number in range(len(lengths)):
        ids, is_target = data[number]
        wanted.append((ids[:-1].tolist(), np.where(is_target[1:], ids[1:], IGNORE_INDEX).tolist()))
    assert sorted(found) == sorted(wanted)
    assert shares.sum().item() == pytest.approx(1, abs=1e-5)
    assert bool((shares[targets == IGNORE_INDEX] == 0).all())
    if layout == "stream":
        assert idx.numel() - sum(lengths) < idx.size(0)  # at most one filler a row


@pytest.mark.parametrize("layout", ["stream", "pack"])
def test_no_example_sees_another(layout: str) -> None:
    model = gpt()
    data = random_data([9, 6, 8, 10])
    batches = SFTBatches(data, 4, 24, layout=layout)
    idx, _, positions, documents, _ = batches(0)
    changed = torch.where(documents == 1, (idx + 5) % 64, idx)
    mask = DocumentMask.of(documents) if layout == "stream" else document_mask(documents)
    a, b = (model.hidden(x, positions=positions, mask=mask) for x in (idx, changed))
    same = (a == b).all(-1)
    assert bool(same[documents != 1].all()) and not bool(same[documents == 1].any())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_the_stream_mask_is_the_dense_one(lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    n = sum(lengths)
    q, k, v = torch.randn(3, 1, 2, n, 4)
    mask = DocumentMask(lengths)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask.dense())
    got = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(got, dense, atol=1e-6, rtol=1e-5)
    rows = next(r for r in (3, 2, 1) if n % r == 0)  # folded into rows it is the same stream
    folded = [x.view(2, rows, n // rows, 4).transpose(0, 1) for x in (q[0], k[0], v[0])]
    got = torch.nn.functional.scaled_dot_product_attention(*folded, mask)
    torch.testing.assert_close(got.transpose(0, 1).reshape(1, 2, n, 4), dense, atol=1e-6, rtol=1e-5)


def test_documents_must_fill_the_rows() -> None:
    q = torch.zeros(1, 1, 4, 2)
    with pytest.raises(ValueError, match="documents of 3 positions in all do not fill 1 rows of 4"):
        torch.nn.functional.scaled_dot_product_attention(q, q, q, DocumentMask([1, 2]))


def test_gradient_checkpointing_computes_the_same_stream_again() -> None:
    """The mask is an argument of each block: it is there when a block is computed a second time."""
    data = random_data([24, 9, 17, 3])
    batch = SFTBatches(data, 4, 24)(0)
    plain, again = gpt().train(), gpt().train()
    checkpoint_blocks(again)
    sft_loss(plain, batch).backward()
    sft_loss(again, batch).backward()
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_accumulated_batches_equal_one_large_batch(layout: str) -> None:
    """Each token counts the same, however the answers are spread over the small batches."""
    model, data = gpt(), random_data([20, 1, 2, 3, 15, 6, 1, 9])
    whole = SFTBatches(data, 8, 24, layout=layout, seed=4)
    parts = SFTBatches(data, 2, 24, layout=layout, seed=4, grad_accum=4)
    sft_loss(model, whole(0), layout).backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for number in range(4):
        (sft_loss(model, parts(number), layout) / 4).backward()
    for p, right in zip(model.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, right, atol=1e-6, rtol=1e-4)


def test_batches_are_a_function_of_their_number_and_each_epoch_holds_all() -> None:
    data = random_data(list(range(1, 13)))
    one, two = (SFTBatches(data, 4, 24, seed=9) for _ in range(2))
    for number in (5, 0, 3):
        assert all(torch.equal(a, b) for a, b in zip(one(number), two(number), strict=True))
    seen = [sorted(n for i in range(3) for n in one._chosen(3 * e + i)) for e in range(2)]
    assert seen == [list(range(12))] * 2
    assert one._chosen(0) != one._chosen(3)
    with pytest.raises(InputError, match="layout='ragged' is not known; use stream, pack, pad"):
        SFTBatches(data, 4, 24, layout="ragged")
    with pytest.raises(InputError, match="an example of 12 tokens exceeds block_size=8"):
        SFTBatches(data, 4, 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_metrics_count_tokens_and_whole_answers(layout: str) -> None:
    model, data = gpt(), random_data([24, 1, 7, 13, 2])
    want, _ = alone(model, data)
    right, whole = 0, 0
    for number in range(len(data)):
        ids, is_target = data[number]
        guess = model(torch.from_numpy(ids[None, :-1].astype(np.int64)))[0].argmax(-1).numpy()
        hits = (guess == ids[1:])[is_target[1:]]
        right, whole = right + hits.sum(), whole + hits.all()
    got = sft_metrics(model, SFTBatches(data, 2, 24, layout=layout))
    assert got["val_loss"] == pytest.approx(want, abs=1e-5)
    assert got["val_token_accuracy"] == pytest.approx(right / data.n_targets)
    assert got["val_exact"] == pytest.approx(whole / 5)


def test_equal_to_peft_on_padded_batches(tmp_path: Path) -> None:
    """The same adapter on transformers' GPT-2, fed as its users do: padded, masked, labels of −100."""
    peft = pytest.importorskip("peft")
    from ai_learning.adapters import save_peft
    from ai_learning.pretrained import to_hf

    model = gpt()
    theirs = to_hf(model).eval()
    inject_lora(model, LoRAConfig(r=4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    save_peft(model, tmp_path)
    opened = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
    data = random_data([24, 3, 11, 8, 16])
    loss = sft_loss(model, SFTBatches(data, 5, 24)(0))
    idx, targets, _, documents, _ = SFTBatches(data, 5, 24, layout="pad")(0)
    labels = torch.full((5, 25), IGNORE_INDEX)
    labels[:, 1:] = targets
    ids = torch.nn.functional.pad(idx, (0, 1))
    seen = torch.nn.functional.pad((documents >= 0).long(), (0, 1))
    other = opened(input_ids=ids[:, :24], attention_mask=seen[:, :24], labels=idx, shift_labels=targets).loss
    assert loss.item() == pytest.approx(other.item(), abs=1e-5)
    loss.backward(), other.backward()
    mine = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    peers = {n: p.grad for n, p in opened.named_parameters() if p.grad is not None}
    assert len(mine) == len(peers) > 0
    for name, grad in mine.items():
        peer = next(g for n, g in peers.items() if n.replace(".weight", "").endswith(name))
        torch.testing.assert_close(grad, peer, atol=1e-5, rtol=1e-3)


# --- the built-in task ------------------------------------------------------------------------------------


def test_function_names_of_the_standard_library() -> None:
    train, held_out = name_examples()
    assert len(train) > 3000 and len(held_out) > 300
    for example in (*train[:50], *held_out[:50]):
        assert example.response.isidentifier() and example.messages[0].content.endswith("\ndef ")
    asked = [e.messages[0].content for e in (*train, *held_out)]
    assert len(set(asked)) == len(asked)
    files = [{e.where.rpartition(", line")[0] for e in part} for part in (train, held_out)]
    assert not files[0] & files[1]
    text = "\n".join(names_training_text())
    held = Path(next(iter(files[1]))).read_text()
    assert held not in text and Path(next(iter(files[0]))).read_text() in text
    assert encode_examples([*train, *held_out], BYTES, 128).lengths.max() <= 128
