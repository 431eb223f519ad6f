"""EleutherAI's lm-evaluation-harness on our models: its tasks, its prompts, its metrics; our forward pass.

    import lm_eval
    from ai_learning.lm_harness import HarnessModel

    lm_eval.simple_evaluate(HarnessModel.open("runs/mine/best.pt"), tasks=["hellaswag"])

Needs the extra ``lm-eval`` (``pip install "ai-learning[lm-eval]"``).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from .checkpoint import open_with_tokenizer
from .errors import InputError
from .generate import generate_text
from .model import GPT
from .multiple_choice import encode_pair, score_choices
from .tokenizers import Tokenizer, encode_own


@register_model("ai-learning")
class HarnessModel(LM):
    """The harness's model interface over a ``GPT`` and its tokenizer.

    Args:
        model: put in evaluation mode.
        tokenizer: the model's.
        max_gen_toks: tokens that a generation may have where a task does not say.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, max_gen_toks: int = 256) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_gen_toks = model.eval(), tokenizer, max_gen_toks

    @classmethod
    def open(cls, source: Path | str, device: str = "cpu", **options: Any) -> "HarnessModel":
        """From a checkpoint, a Hugging Face folder or a hub name.

        Raises:
            InputError: it names no tokenizer.
        """
        model, tokenizer, _ = open_with_tokenizer(source, device)
        return cls(model, tokenizer, **options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "HarnessModel":
        """From the harness's command line: ``--model ai-learning --model_args checkpoint=best.pt``."""
        found = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        if "checkpoint" not in found:
            raise InputError(f"model_args {arg_string!r} names no checkpoint: give checkpoint=PATH")
        return cls.open(found["checkpoint"], found.get("device", "cpu"))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each (context, continuation)."""
        pairs = [encode_pair(self.tokenizer, *request.args) for request in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        by_context: dict[tuple[int, ...], list[int]] = {}
        for i, (context, _) in enumerate(pairs):
            by_context.setdefault(tuple(context), []).append(i)
        for shared, places in by_context.items():  # the choices of a question are scored together
            scores = score_choices(self.model, shared, [pairs[i][1] for i in places])
            for i, score in zip(places, scores, strict=True):
                found[i] = (score.log_likelihood, score.is_greedy)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of whole texts, in windows of ``block_size`` side by side.

        The last one, where it is shorter, is filled up by what comes before it, as in the harness.
        """
        found, size = [], self.model.config.block_size
        for request in requests:
            ids = encode_own(self.tokenizer, request.args[0])
            total = 0.0
            for start in range(0, len(ids), size):
                # of what is before it, `score_choices` takes as much as there is room for
                context = ids[max(0, start - size) : start] or [self.tokenizer.eos_id or 0]
                total += score_choices(self.model, context, [ids[start : start + size]])[0].log_likelihood
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string."""
        texts = []
        for request in requests:
            prompt, options = request.args
            stop = options.get("until") or []
            sampled = options.get("do_sample", False)
            texts.append(
                generate_text(
                    self.model,
                    self.tokenizer,
                    prompt,
                    int(options.get("max_gen_toks", self.max_gen_toks)),
                    stop=[stop] if isinstance(stop, str) else list(stop),
                    temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
                )
            )
        return texts
