"""Chat templates: a conversation as one text, by the Jinja template that a tokenizer brings along."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import write_text

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The plainest template in wide use (Qwen's, SmolLM's), for tokenizers that bring none"""


def apply_chat_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """Render a conversation.

    The template runs in Jinja's immutable sandbox: it came with a download and may do nothing but make text.

    Args:
        template: Jinja source.
        messages: each with ``role`` and ``content``.
        add_generation_prompt: end with what begins the assistant's answer.
        variables: what else the template asks for: ``bos_token``, ``eos_token``, ``tools`` …

    Raises:
        InputError: the template cannot be read, or refuses the conversation.

    Example:
        >>> print(apply_chat_template(CHATML, [{"role": "user", "content": "Hi"}]), end="")
        <|im_start|>user
        Hi<|im_end|>
    """
    from jinja2 import TemplateError

    try:
        return _compile(template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **variables
        )
    except TemplateError as error:
        raise InputError(f"chat template: {' '.join(str(error).split())}") from None


def end_of_answer(template: str, **variables: Any) -> str:
    """What a template writes behind an assistant's answer, white space at its end aside: where to stop.

    Raises:
        InputError: see `apply_chat_template`.

    Example:
        >>> end_of_answer(CHATML)
        '<|im_end|>'
    """
    question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}
    given = apply_chat_template(template, [question], add_generation_prompt=True, **variables)
    whole = apply_chat_template(template, [question, answer], **variables)
    return whole.removeprefix(given).rpartition("answer")[2].rstrip()


def read_chat_template(folder: Path | str) -> tuple[str, dict[str, str]] | None:
    """The template that lies beside a tokenizer, and its special tokens by name (``bos_token`` …).

    Looks for ``chat_template.jinja``, then for ``chat_template`` in ``tokenizer_config.json``; ``None`` where
    there is neither.

    Raises:
        InputError: an unreadable ``tokenizer_config.json``.
    """
    folder = Path(folder)
    config: dict[str, Any] = {}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if template is None:
        return None
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if value is not None:
            tokens[name] = value["content"] if isinstance(value, dict) else value
    return template, tokens


def write_chat_template(folder: Path | str, template: str, special_tokens: Mapping[str, str]) -> None:
    """Put a template beside a tokenizer, as `read_chat_template` and transformers find it.

    Args:
        folder: a tokenizer's, with its ``tokenizer_config.json``.
        template: Jinja source.
        special_tokens: by name; those that ``tokenizer_config.json`` does not name yet are added there.
    """
    folder = Path(folder)
    write_text(folder / "chat_template.jinja", template)
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_text(path, json.dumps({**special_tokens, **config}, indent=2) + "\n")


@lru_cache(maxsize=16)
def _compile(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)
