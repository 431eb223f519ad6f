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


_WORDS = {"system": "zebra", "user": "quince", "assistant": "walnut"}
"""what templates are tried with: words that none of them writes itself"""


class TemplateRefusalError(InputError):
    """The template works, and says itself that it does not write such a conversation."""


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
        variables: what else the template asks for: ``bos_token``, ``eos_token``, ``tools`` … (``tools`` and
            ``documents`` are none where they are not given, as in transformers: templates ask for that).

    Raises:
        TemplateRefusalError: the template refuses the conversation.
        InputError: the template cannot be read, or fails.

    Example:
        >>> print(apply_chat_template(CHATML, [{"role": "user", "content": "Hi"}]), end="")
        <|im_start|>user
        Hi<|im_end|>
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    variables = {"tools": None, "documents": None, **variables}
    try:
        return _compile(template).render(
            messages=messages, add_generation_prompt=add_generation_prompt, **variables
        )
    except TemplateSyntaxError as error:
        raise InputError(f"chat template: {_one_line(error.message)} (its line {error.lineno})") from None
    except TemplateError as error:
        refused = type(error) is TemplateError  # by raise_exception; Jinja's own errors are of its subclasses
        raise (TemplateRefusalError if refused else InputError)(
            f"chat template: {_one_line(error)}"
        ) from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
        # What stands in the template's expressions is Python's: 1 / 0, a text plus a number.
        raise InputError(f"chat template: {type(error).__name__}: {_one_line(error)}") from None


def check_chat_template(template: str, **variables: Any) -> None:
    """See that a template works, before a row of data is blamed for it.

    Tried on small conversations. It may refuse some of them, one with a system message for instance.

    Args:
        template: Jinja source.
        variables: see `apply_chat_template`.

    Raises:
        InputError: it cannot be read, fails, calls a function that there is not, or leaves out what is said.

    Example:
        >>> check_chat_template("{% for message in messages %}{{ message['role'] }}{% endfor %}")
        Traceback (most recent call last):
        ai_learning.errors.InputError: chat template: it does not write what the user says: ...
    """
    for roles in (("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2):
        messages = [{"role": role, "content": _WORDS[role]} for role in roles]
        try:
            apply_chat_template(template, messages[:-1], add_generation_prompt=True, **variables)
            text = apply_chat_template(template, messages, **variables).casefold()
        except TemplateRefusalError:
            continue
        for role in ("user", "assistant"):
            if _WORDS[role] not in text:
                raise InputError(
                    f"chat template: it does not write what the {role} says: "
                    "it must write each message's role and content"
                )
    unknown = _unknown_functions(template) - variables.keys()
    if unknown:  # in a branch that the conversations above do not reach
        raise InputError(f"chat template: {min(unknown)!r} is undefined")


def end_of_answer(template: str, **variables: Any) -> str:
    """What a template writes behind an assistant's answer, white space at its end aside: where to stop.

    Empty where it writes nothing, or refuses a question with its answer.

    Raises:
        InputError: see `apply_chat_template`.

    Example:
        >>> end_of_answer(CHATML)
        '<|im_end|>'
    """
    for roles in (("user", "assistant"), ("system", "user", "assistant")):  # some want a system message
        messages = [{"role": role, "content": _WORDS[role]} for role in roles]
        try:
            whole = apply_chat_template(template, messages, **variables)
        except TemplateRefusalError:
            continue
        place = whole.casefold().rfind(_WORDS["assistant"])
        return whole[place + len(_WORDS["assistant"]) :].rstrip() if place >= 0 else ""
    return ""


def read_chat_template(folder: Path | str) -> tuple[str, dict[str, str]] | None:
    """The template that lies beside a tokenizer, and its special tokens by name (``bos_token`` …).

    Looks for ``chat_template.jinja``, then for ``chat_template`` in ``tokenizer_config.json``; ``None`` where
    there is neither.

    Raises:
        InputError: a ``tokenizer_config.json`` or a template that cannot be read.
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
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = {entry.get("name"): entry.get("template") for entry in entries}.get("default")
    if (folder / "chat_template.jinja").is_file():
        template = read_template(folder / "chat_template.jinja")
    if template is None:
        return None
    if not isinstance(template, str):
        raise InputError(f"{path}: chat_template is {type(template).__name__}, not text")
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = config.get(name)
        if value is not None:
            tokens[name] = value["content"] if isinstance(value, dict) else value
    return template, tokens


def read_template(path: Path) -> str:
    """A template's file.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"chat template {path} is not UTF-8 ({error}): save it as UTF-8") from None


def write_chat_template(folder: Path | str, template: str, special_tokens: Mapping[str, str]) -> None:
    """Put a template beside a tokenizer, as `read_chat_template` and transformers find it.

    Args:
        folder: a tokenizer's, with its ``tokenizer_config.json``.
        template: Jinja source.
        special_tokens: by name, for ``tokenizer_config.json``: the template was written for these.
    """
    folder = Path(folder)
    write_text(folder / "chat_template.jinja", template)
    path = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_text(path, json.dumps({**config, **special_tokens}, indent=2) + "\n")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


def _unknown_functions(template: str) -> set[str]:
    """What a template calls by names that stand for nothing; where it asks first, it knows."""
    from jinja2 import meta, nodes

    environment = _compile(template).environment
    tree = environment.parse(template)
    called = {call.node.name for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Name)}
    tests = (test for test in tree.find_all(nodes.Test) if test.name in ("defined", "callable"))
    asked = {test.node.name for test in tests if isinstance(test.node, nodes.Name)}
    return (called & meta.find_undeclared_variables(tree)) - environment.globals.keys() - asked


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
