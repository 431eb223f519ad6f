"""Any language model as a LangChain chat model: ours, transformers', and by name everybody else's.

open_chat_model("ours:runs/mine/best.pt")        our GPT, and any Hugging Face folder that it can open
open_chat_model("hf:HuggingFaceTB/SmolLM2-135M-Instruct")        any causal model of transformers
open_chat_model("openai:gpt-5-mini")             LangChain's init_chat_model: anthropic:, ollama: …
open_chat_model("qwen3", base_url="http://localhost:8000/v1")    an OpenAI-compatible server (vLLM …)
"""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import generate_from_stream
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr

from .chat_template import apply_chat_template, end_of_answer
from .errors import InputError

ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class LocalChatModel(BaseChatModel):
    """What our GPT and transformers' models share: a conversation becomes a text, tokens become chunks.

    A model without a chat template is given the messages' texts, one after the other.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    max_tokens: int = Field(default=512, ge=1)
    """new tokens an answer may have"""
    temperature: float = Field(default=0.0, ge=0.0)
    """0 takes the likeliest token"""
    top_k: int | None = None
    """keep that many tokens"""
    top_p: float | None = None
    """keep the likeliest tokens that reach this probability"""
    stop: list[str] = Field(default_factory=list)
    """strings that end an answer; they are not in it"""
    seed: int | None = None
    """makes answers repeatable: each depends on the seed and on its prompt alone"""
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self._lock:  # one model, one answer at a time
            ids = self._prompt_ids(messages)
            written = _Counted(self._new_ids(ids, **kwargs))
            try:
                for text in self._texts(written, [*self.stop, *(stop or [])]):
                    chunk = ChatGenerationChunk(message=AIMessageChunk(content=text))
                    if run_manager:
                        run_manager.on_llm_new_token(text, chunk=chunk)
                    yield chunk
            finally:
                written.close()
            usage = UsageMetadata(
                input_tokens=len(ids), output_tokens=written.count, total_tokens=len(ids) + written.count
            )
            yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=usage))

    def _prompt_ids(self, messages: list[BaseMessage]) -> list[int]:
        raise NotImplementedError

    def _new_ids(self, ids: list[int], **kwargs: Any) -> Iterator[int]:
        raise NotImplementedError

    def _texts(self, ids: Iterator[int], stop: Sequence[str]) -> Iterator[str]:
        raise NotImplementedError

    def _sampling(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """How to draw: the fields, and what a single call says otherwise."""
        names = ("temperature", "top_k", "top_p", "max_tokens", "seed")
        return {name: kwargs.get(name, getattr(self, name)) for name in names}


class GPTChatModel(LocalChatModel):
    """Our own GPT as a chat model.

    Example:
        >>> GPTChatModel.open("runs/mine/best.pt").invoke("Once upon a time").text  # doctest: +SKIP
    """

    gpt: Any
    """a ``GPT``"""
    tokenizer: Any
    """the one it was trained with"""
    template: str | None = None
    """a chat template in Jinja; ``None`` gives the texts as they are"""
    special: dict[str, str] = Field(default_factory=dict)
    """the template's special tokens by name: ``eos_token`` …"""
    name_of_model: str = "gpt"

    @classmethod
    def open(cls, source: Path | str, device: str = "cpu", **options: Any) -> "GPTChatModel":
        """From a checkpoint, a Hugging Face folder, or a hub name.

        Raises:
            InputError: nothing there, or no tokenizer with it.
        """
        from .checkpoint import open_with_tokenizer

        gpt, tokenizer, found = open_with_tokenizer(source, device)
        return cls(
            gpt=gpt,
            tokenizer=tokenizer,
            template=found.get("chat_template"),
            special=found.get("special_tokens", {}),
            name_of_model=str(source),
            **options,
        )

    @property
    def _llm_type(self) -> str:
        return "ai-learning"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name_of_model, "temperature": self.temperature}

    def _prompt_ids(self, messages: list[BaseMessage]) -> list[int]:
        from .tokenizers import BPETokenizer

        if self.template is None:
            text = "\n".join(str(message.text) for message in messages)
        else:
            text = apply_chat_template(
                self.template, _as_dicts(messages), add_generation_prompt=True, **self.special
            )
        if isinstance(self.tokenizer, BPETokenizer):  # only a template's own tokens are special
            special = () if self.template is None else "all"
            ids = self.tokenizer.encode(text, allowed_special=special, disallowed_special=())
        else:
            ids = self.tokenizer.encode(text)
        return ids or [self.tokenizer.eos_id or 0]

    def _new_ids(self, ids: list[int], **kwargs: Any) -> Iterator[int]:
        import torch

        from .generate import Sampling, stream

        how = self._sampling(kwargs)
        sampling = Sampling(how["temperature"], how["top_k"], how["top_p"])
        idx = torch.tensor([ids], device=self.gpt.wte.weight.device)
        for chosen in stream(self.gpt, idx, how["max_tokens"], sampling, seed=how["seed"]):
            yield int(chosen)

    def _texts(self, ids: Iterator[int], stop: Sequence[str]) -> Iterator[str]:
        from .generate import decode_stream

        ends = [self.special[name] for name in ("eos_token",) if self.special.get(name)]
        if self.template is not None and (end := end_of_answer(self.template, **self.special)):
            ends.append(end)
        return decode_stream(ids, self.tokenizer, stop=[*stop, *ends])


class TransformersChatModel(LocalChatModel):
    """Any causal language model of transformers as a chat model, with its tokenizer's chat template.

    Example:
        >>> TransformersChatModel.open("gpt2").invoke("Once upon a time").text  # doctest: +SKIP
    """

    model: Any
    """an ``AutoModelForCausalLM``"""
    tokenizer: Any
    """its ``AutoTokenizer``"""
    name_of_model: str = "transformers"

    @classmethod
    def open(cls, source: Path | str, device: str = "cpu", **options: Any) -> "TransformersChatModel":
        """From a folder or a hub name; weights from safetensors only, and no code that comes with them.

        Raises:
            InputError: nothing there that transformers can open.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from .pretrained.folders import no_progress_bar

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            with no_progress_bar():
                model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{source}: {' '.join(str(error).split())[:300]}") from None
        return cls(model=model.to(device).eval(), tokenizer=tokenizer, name_of_model=str(source), **options)

    @property
    def _llm_type(self) -> str:
        return "transformers"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.name_of_model, "temperature": self.temperature}

    def _prompt_ids(self, messages: list[BaseMessage]) -> list[int]:
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(
                _as_dicts(messages), add_generation_prompt=True, tokenize=False
            )
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        text = "\n".join(str(message.text) for message in messages)
        return list(self.tokenizer.encode(text)) or [self.tokenizer.eos_token_id or 0]

    def _new_ids(self, ids: list[int], **kwargs: Any) -> Iterator[int]:
        """transformers' own ``generate``, in a thread, so that every architecture and its cache is right."""
        import torch
        from transformers import StoppingCriteriaList

        how = self._sampling(kwargs)
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room:  # a prompt that is too long loses its beginning, but never more than half of the room
            how["max_tokens"] = min(how["max_tokens"], max(room - len(ids), room // 2))
            ids = ids[-(room - how["max_tokens"]) :]
        sampled: dict[str, Any] = {"do_sample": how["temperature"] > 0}
        if sampled["do_sample"]:
            sampled |= {"temperature": how["temperature"], "top_k": how["top_k"] or 0, "top_p": how["top_p"]}
            if how["seed"] is not None:
                torch.manual_seed(how["seed"])
        streamer = _IdStreamer()
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self.model.generate(
                    torch.tensor([ids], device=self.model.device),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=self.model.device),
                    max_new_tokens=how["max_tokens"],
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([lambda *_, **__: streamer.abandoned]),
                    pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                    **sampled,
                )
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            streamer.abandoned = True
            thread.join()
        if failure:
            raise failure[0]

    def _texts(self, ids: Iterator[int], stop: Sequence[str]) -> Iterator[str]:
        from .generate import cut_stream

        return cut_stream(self._pieces(ids), stop)

    def _pieces(self, ids: Iterator[int]) -> Iterator[str]:
        """Texts as tokens come: a token may end in the middle of a character, and then waits for the next."""
        found: list[int] = []
        shown = ""
        for token in ids:
            found.append(token)
            text = self.tokenizer.decode(found, skip_special_tokens=True)
            if not text.endswith("\ufffd") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        text = self.tokenizer.decode(found, skip_special_tokens=True)
        if len(text) > len(shown):
            yield text[len(shown) :]


class _Counted:
    """An iterator that knows how many it gave."""

    def __init__(self, items: Iterator[int]) -> None:
        self.items, self.count = items, 0

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> int:
        item = next(self.items)
        self.count += 1
        return item

    def close(self) -> None:
        """End what it comes from."""
        close = getattr(self.items, "close", None)
        if close:
            close()


class _IdStreamer:
    """transformers' streamer protocol: ``put`` gets the prompt, then each token; here they are a queue."""

    def __init__(self) -> None:
        import queue

        self.queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.prompt_seen = False
        self.abandoned = False

    def put(self, value: Any) -> None:
        """Called by ``generate``."""
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            self.queue.put(token)

    def end(self) -> None:
        """Called by ``generate``."""
        self.queue.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self.queue.get, None)


def _as_dicts(messages: list[BaseMessage]) -> list[dict[str, str]]:
    return [{"role": ROLES.get(m.type, m.type), "content": str(m.text)} for m in messages]


# --- by name ------------------------------------------------------------------------------------------------


def open_chat_model(
    name: str,
    *,
    base_url: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    timeout_s: float | None = None,
    device: str = "cpu",
) -> BaseChatModel:
    """A chat model by its name; see the module for the names.

    Clients do not retry by themselves: whoever calls decides on that.

    Args:
        name: ``ours:PATH``, ``hf:NAME_OR_FOLDER``, or what ``init_chat_model`` takes (``provider:model``).
        base_url: of an OpenAI-compatible server; other providers take theirs too.
        temperature: of the draw; the provider's own default when ``None``, and 0 for local models.
        max_tokens: of an answer.
        top_p: of the draw.
        seed: for local models and servers that take one.
        timeout_s: of a request to a server.
        device: of a local model.

    Raises:
        InputError: a name that nobody knows, a missing package or key, or nothing at the path.
    """
    wanted = {"temperature": temperature, "max_tokens": max_tokens, "top_p": top_p, "seed": seed}
    options: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    where, _, rest = name.partition(":")
    if where in ("ours", "hf"):
        if not rest:
            raise InputError(f"model {name!r} names no path: {where}:PATH")
        kind = GPTChatModel if where == "ours" else TransformersChatModel
        return kind.open(rest, device, **options)
    return _elsewhere(name, base_url, timeout_s, options)


def _elsewhere(
    name: str, base_url: str | None, timeout_s: float | None, options: dict[str, Any]
) -> BaseChatModel:
    from langchain.chat_models import init_chat_model

    provider = name.partition(":")[0] if ":" in name else None
    if base_url:
        options["base_url"] = base_url
        if provider is None or provider == "openai":
            provider = "openai"
            options["api_key"] = (
                os.environ.get("OPENAI_API_KEY") or "none"
            )  # servers of one's own ask for none
            name = name.removeprefix("openai:")
    if provider in ("openai", "anthropic", "azure_openai") or _looks_hosted(name):
        options["max_retries"] = 0
        if timeout_s is not None:
            options["timeout"] = timeout_s
    try:
        if base_url and provider == "openai":
            return init_chat_model(name, model_provider="openai", **options)
        return init_chat_model(name, **options)
    except ImportError as error:
        raise InputError(f"model {name!r}: {' '.join(str(error).split())}") from None
    except Exception as error:  # each provider has its own way to say that a key is missing
        reason = " ".join(str(error).split())[:300]
        hint = "; names are ours:PATH, hf:NAME_OR_FOLDER or PROVIDER:MODEL, or give --base-url"
        raise InputError(f"model {name!r} cannot be opened: {reason}{hint}") from None


def _looks_hosted(name: str) -> bool:
    return name.startswith(("gpt-", "o1", "o3", "o4", "chatgpt", "claude"))
