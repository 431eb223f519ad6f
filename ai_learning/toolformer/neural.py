"""Tools that are models themselves: question answering by any pipeline, translation by NLLB (section 3)."""

from collections.abc import Callable
from typing import Any

from ..errors import InputError
from .hub import quiet_hub
from .search import WikiSearch, shorten
from .tools import Tool


class PipelineTool(Tool):
    """A transformers pipeline, or any function of one text, as a tool.

    Args:
        pipeline: called with a text; a string, or what transformers' pipelines give (a dict or a list of
            them).
        name: as it is written in calls.
        description: one sentence.
        template: what the pipeline is given, with ``{text}`` for the argument.
        max_characters: of the answer.
        timeout: seconds to wait for an answer.
        options: given to the pipeline with each text (``max_new_tokens=32``).

    Example:
        >>> qa = PipelineTool(lambda prompt: [{"generated_text": prompt + " Paris"}], template="Q: {text} A:")
        >>> qa("capital of France?")
        'Paris'
    """

    def __init__(
        self,
        pipeline: Callable[[str], Any],
        name: str = "QA",
        description: str = "QA(Where was the Declaration of Independence signed?) answers a question.",
        *,
        template: str = "{text}",
        max_characters: int = 200,
        timeout: float | None = 60.0,
        **options: Any,
    ) -> None:
        self.pipeline, self.name, self.description, self.options = pipeline, name, description, options
        self.template, self.max_characters, self.timeout = template, max_characters, timeout

    @classmethod
    def load(cls, model: str, task: str = "text-generation", **options: Any) -> "PipelineTool":
        """A pipeline of transformers by its model's name or folder.

        Raises:
            InputError: it cannot be had.
        """
        from transformers import pipeline

        try:
            with quiet_hub():
                made = pipeline(task, model=model)
        except Exception as error:  # the libraries' errors share no base class
            raise InputError(
                f"no {task} pipeline of {model!r}: {' '.join(str(error).split())[:300]}"
            ) from None
        return cls(made, **options)

    def answer(self, argument: str) -> str:
        """The pipeline's text, without the prompt and of one line."""
        prompt = self.template.replace("{text}", argument)
        return shorten(
            _text_of(self.pipeline(prompt, **self.options)).removeprefix(prompt), self.max_characters
        )


class RetrievalQA(Tool):
    """A question answered from what a search finds: Atlas in small (Izacard et al. 2022).

    Args:
        search: finds passages.
        reader: given ``question`` and ``context`` (as transformers' question-answering pipelines are); its
            answer's text. Without one the answer is the best passage.
        timeout: seconds to wait for an answer.

    Example:
        >>> qa = RetrievalQA(WikiSearch(["Paris is the capital of France.", "Oslo is cold."]))
        >>> qa("What is the capital of France?")
        'Paris is the capital of France.'
    """

    name = "QA"
    description = "QA(Where was the Declaration of Independence signed?) answers a question."

    def __init__(self, search: WikiSearch, reader: Any = None, timeout: float | None = 60.0) -> None:
        self.search, self.reader, self.timeout = search, reader, timeout

    def answer(self, argument: str) -> str:
        """See the class."""
        context = self.search.answer(argument)
        return context if self.reader is None else _text_of(self.reader(question=argument, context=context))


def _text_of(found: Any) -> str:
    """The text in what a pipeline returned."""
    while isinstance(found, list | tuple) and found:
        found = found[0]
    if isinstance(found, dict):
        for key in ("answer", "generated_text", "translation_text", "summary_text", "text"):
            if key in found:
                return _text_of(found[key])
        raise ValueError(f"the pipeline gave no text, only {', '.join(map(str, found))}")
    return str(found)


class Translator(Tool):
    """Translation into English by NLLB (Costa-jussà et al. 2022), the paper's machine translation tool.

    Args:
        model: an encoder-decoder of transformers.
        tokenizer: its tokenizer, which knows the target's code (``eng_Latn``).
        source: code of the language translated from; ``None`` leaves it to the tokenizer. The paper guesses
            the language with fastText: give such a function as ``detect``.
        target: code of the language translated to.
        detect: text → code of its language.
        max_new_tokens: of a translation.
        timeout: seconds to wait for an answer.
    """

    name = "MT"
    description = "MT(sûreté nucléaire) translates into English."

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        source: str | None = None,
        target: str = "eng_Latn",
        detect: Callable[[str], str] | None = None,
        max_new_tokens: int = 64,
        timeout: float | None = 60.0,
    ) -> None:
        known = tokenizer.convert_tokens_to_ids(target)
        if known is None or known == tokenizer.unk_token_id:
            raise InputError(
                f"the tokenizer knows no language {target!r}: NLLB's are written eng_Latn, fra_Latn"
            )
        self.model, self.tokenizer, self.target_id = model.eval(), tokenizer, known
        self.source, self.detect = source, detect
        self.max_new_tokens, self.timeout = max_new_tokens, timeout

    @classmethod
    def load(cls, name: str = "facebook/nllb-200-distilled-600M", **options: Any) -> "Translator":
        """By name on the hub or folder; the paper's is the default (600 million parameters, 200 languages).

        Raises:
            InputError: it cannot be had.
        """
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        try:
            with quiet_hub():
                model = AutoModelForSeq2SeqLM.from_pretrained(name)
                tokenizer = AutoTokenizer.from_pretrained(name)
            return cls(model, tokenizer, **options)
        except InputError:
            raise
        except Exception as error:  # the libraries' errors share no base class
            raise InputError(f"no translation model {name!r}: {' '.join(str(error).split())[:300]}") from None

    def answer(self, argument: str) -> str:
        """The translation."""
        import torch

        if not argument.strip():
            raise ValueError("there is nothing to translate")
        source = self.detect(argument) if self.detect else self.source
        if source is not None:
            self.tokenizer.src_lang = source
        given = self.tokenizer(argument, return_tensors="pt", truncation=True).to(self.model.device)
        with torch.inference_mode():
            ids = self.model.generate(
                **given, forced_bos_token_id=self.target_id, max_new_tokens=self.max_new_tokens
            )
        return " ".join(self.tokenizer.decode(ids[0], skip_special_tokens=True).split())
