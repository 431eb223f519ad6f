"""Chat templates beside transformers' own rendering."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from ai_learning.chat_template import (
    CHATML,
    TemplateRefusalError,
    apply_chat_template,
    check_chat_template,
    end_of_answer,
    read_chat_template,
)
from ai_learning.checkpoint import open_model
from ai_learning.errors import InputError
from ai_learning.model import GPT, GPTConfig
from ai_learning.pretrained import save_pretrained
from ai_learning.tokenizers import ByteTokenizer

LLAMA3 = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception("unknown role " + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if loop.index0 < ns.last %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is <b>2 + 2</b>? é"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"},
    {"role": "user", "content": "Sure?"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, models

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


@pytest.mark.parametrize("template", [CHATML, LLAMA3, QWEN3], ids=["chatml", "llama3", "qwen3"])
@pytest.mark.parametrize("prompt", [False, True])
def test_renders_as_transformers_does(template: str, prompt: bool, tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "añadir", "parameters": {"a": [1, 2]}}}]
    for more in ({}, {"enable_thinking": False}, {"tools": tools}):
        expected = tokenizer.apply_chat_template(
            TALK, chat_template=template, tokenize=False, add_generation_prompt=prompt, **more
        )
        found = apply_chat_template(
            template,
            TALK,
            add_generation_prompt=prompt,
            bos_token="<|begin_of_text|>",
            eos_token="<|eot_id|>",
            **more,
        )
        assert found == expected


def test_what_is_not_given_is_none_as_in_transformers(tokenizer: Any) -> None:
    template = "{% if tools is not none or documents is not none %}You may call:{% endif %}" + TURNS
    expected = tokenizer.apply_chat_template(TALK, chat_template=template, tokenize=False)
    assert apply_chat_template(template, TALK) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "chat template: "),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
    ],
)
def test_a_bad_or_hostile_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        apply_chat_template(template, list(TALK))
    assert (caught.type is TemplateRefusalError) == ("raise_exception" in template)


TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        LLAMA3,
        QWEN3,
        TURNS,
        TURNS + "{% if today is defined %}{{ today() }}{% endif %}",
        TURNS + "{{ strftime_now('%Y') }}{% macro twice(x) %}{{ x }}{% endmacro %}{{ twice(1) }}",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS,
        "{{ raise_exception('not this either') }}",  # what it would take is not known: the rows will tell
    ],
)
def test_templates_that_work(template: str) -> None:
    check_chat_template(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}\n\n{{ m.content }\n{% endfor %}", r"unexpected '}' \(its line 3\)"),
        ("hello", "does not write what the user says"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "what the assistant says"),
        (TURNS + "{{ today() }}", "'today' is undefined"),
        (TURNS + "{% if messages[0].role == 'system' %}{{ today() }}{% endif %}", "'today' is undefined"),
        (TURNS + "{% if add_generation_prompt %}{{ today() }}{% endif %}", "'today' is undefined"),
        (TURNS + "{% if messages[0].role == 'tool' %}{{ today() }}{% endif %}", "'today' is undefined"),
        (TURNS + "{{ messages[0].content + 1 }}", "TypeError"),
    ],
)
def test_templates_that_do_not(template: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^chat template: .*{message}"):
        check_chat_template(template)


def test_found_beside_a_tokenizer(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    config = {"chat_template": "old", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_chat_template(tmp_path) == ("old", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("new")
    assert read_chat_template(tmp_path) == ("new", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"chat_template\.jinja is not UTF-8"):
        read_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert read_chat_template(tmp_path) == ("d", {})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_chat_template(tmp_path)


def test_where_an_answer_ends() -> None:
    assert end_of_answer(CHATML) == "<|im_end|>"
    strict = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHATML
    )
    assert end_of_answer(strict) == "<|im_end|>"
    tagged = CHATML.replace("{{ message['content'] }}", "<answer>{{ message['content'] }}</answer>")
    assert end_of_answer(tagged) == "</answer><|im_end|>"
    upper = CHATML.replace("message['content']", "message['content'] | upper")
    assert end_of_answer(upper) == "<|im_end|>"
    assert end_of_answer("{{ raise_exception('never') }}") == ""


@pytest.mark.parametrize("entry", [[{"template": "x"}], ["x"], {"default": "x"}, 3])
def test_a_malformed_template_beside_a_model_is_left_out_with_a_warning(
    entry: object, tmp_path: Path
) -> None:
    gpt = GPT(GPTConfig(vocab_size=258, block_size=8, n_layer=1, n_head=1, n_embd=8))
    save_pretrained(gpt, tmp_path, ByteTokenizer())
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": entry}))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _, _, found = open_model(tmp_path)
    assert "chat_template" not in found
    assert isinstance(entry, list) or any("left out" in str(warning.message) for warning in said)
