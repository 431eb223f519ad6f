"""One fine-tuning on instruction data: model, data, batches, the training itself, figures and answers."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..adapted import AdaptedConfig, AdaptedGPT, weights_digest
from ..adapters import lora_plus_groups, make_optimizer, save_peft, use_adapter
from ..chat_template import CHATML
from ..checkpoint import load_checkpoint, open_model, tokenizer_reference
from ..device import autocast, pick_device, pick_dtype
from ..errors import InputError
from ..generate import generate
from ..kernels.loops import COMPILING, before_compiling
from ..memory import (
    SIXTEEN_BITS,
    MemoryPlan,
    PeakMemory,
    give_back_freed_memory,
    megabytes,
    plan_memory,
    resident_bytes,
)
from ..model import GPT
from ..run_folder import absolute, read_metrics
from ..run_state import check_is_free
from ..sft import (
    BadRows,
    Example,
    SFTBatches,
    SFTData,
    Template,
    encode_examples,
    encode_prompt,
    name_examples,
    read_examples,
    sft_loss,
    sft_metrics,
    template_of,
)
from ..train import TrainResult, train
from .common import TrainingProgress, console, open_language_model, to_save
from .instruct_options import BUILTIN, Instruct
from .pretrain import loss_plot

_NOISE = 32e6  # bytes below which what the process does beside counts


class Run:
    """Model, data and batches of one training."""

    def __init__(self, options: Instruct) -> None:
        self.options = options
        if not options.resume:
            check_is_free(options.out)
        if options.train.checkpoint_activations:
            give_back_freed_memory()
        self.base, self.tokenizer, beside = open_language_model(options.checkpoint, options.tokenizer)
        if options.method == "full":
            self.base.float()  # small steps would be lost in 16 bits
        self.template = template_of(options.chat_template, beside)
        self.block_size = min(self.base.config.block_size, options.max_length)
        self.bad = BadRows(fatal=options.on_bad_row == "fatal")
        self.data, self.held_out, self.examples = self._read()
        how = options.train
        if options.epochs:
            per_step = min(how.batch_size, len(self.data)) * how.grad_accum
            how = replace(how, steps=max(1, round(options.epochs * len(self.data) / per_step)))
        self.how = replace(how, warmup=min(how.warmup, how.steps))
        self.device = pick_device(how.device)
        self.layout = self._layout()
        self.batches = self._batches(self.data)
        torch.manual_seed(how.seed)
        self.model: GPT | AdaptedGPT = self.base.train()
        self.digest, self.n_params = weights_digest(self.base), self.base.n_params()
        if options.method != "full":
            self.model = AdaptedGPT(
                AdaptedConfig(
                    gpt=self.base.config,
                    base=absolute(options.checkpoint),
                    base_digest=self.digest,
                    lora=options.lora,
                    quant_type=options.quant_type if options.method == "qlora" else None,
                    double_quant=options.double_quant,
                    compute_dtype=options.compute_dtype,
                ),
                self.base,
            )
        self.loss = partial(sft_loss, layout=self.layout)
        with before_compiling(lambda: console.print(COMPILING)):
            self.plan = self._plan()

    def _layout(self) -> str:
        options = self.options
        if options.layout != "auto":
            if options.layout == "stream" and options.train.compile:
                raise InputError("--layout stream cannot be compiled, its shapes change: use pack")
            return options.layout
        # The stream's mask is no tensor: only the fused attention takes it. And in 16 bits a CPU compiles
        # attention for each length of a document: a stream has many, and takes half as much memory again.
        streams = self.device.type == "cpu" and self.base.config.attention == "fast"
        return "stream" if streams and not (self._in_16_bits() or options.train.compile) else "pack"

    def _in_16_bits(self) -> bool:
        """Whether activations are: by ``--dtype``, or as a base in 16 bits makes them."""
        cast = pick_dtype(self.device, self.options.train.dtype)
        return any(dtype in SIXTEEN_BITS for dtype in (next(self.base.parameters()).dtype, cast))

    def _batches(self, data: SFTData) -> SFTBatches:
        how = self.options.train
        return SFTBatches(
            data,
            how.batch_size,
            self.block_size,
            layout=self.layout,
            seed=how.seed,
            grad_accum=how.grad_accum,
        )

    def _read(self) -> tuple[SFTData, SFTData, list[Example]]:
        """Encoded data to train on and held out, and the held-out examples."""
        options = self.options

        def encoded(examples: list[Example]) -> SFTData:
            return encode_examples(
                examples,
                self.tokenizer,
                self.block_size,
                self.template,
                bad=self.bad,
                too_long=options.too_long,
            )

        if options.data == BUILTIN:
            training, held_out = name_examples()
        elif options.data.startswith("builtin:"):
            raise InputError(f"no built-in data {options.data!r}: use {BUILTIN}, a file or hf:NAME")
        else:
            columns = (
                {"prompt": options.prompt_column, "response": options.response_column}
                if options.prompt_column and options.response_column
                else None
            )
            training = read_examples(options.data, self.bad, columns=columns)
            if options.eval_data is not None:
                held_out = read_examples(options.eval_data, self.bad, columns=columns)
            else:
                training, held_out = split(training, options.held_out, options.train.seed)
        seen = len(training) + len(held_out) + len(self.bad.found)
        if self.template.source is None and all(example.chat for example in training):
            self.template = Template(CHATML)  # as they are written anyway: now the checkpoint says so
        data, held = encoded(training), encoded(held_out)
        if self.bad.found:
            console.print(f"warning: {self.bad.summary(seen)}", markup=False, soft_wrap=True)
        return data, held, held_out

    def _plan(self) -> MemoryPlan:
        """For the largest of the first batches."""
        how = self.how
        short = SFTBatches(self.data, 2, self.block_size, layout=self.layout, seed=how.seed)
        numbers = range(min(how.steps * how.grad_accum, 20))
        sizes = [(b[0].numel(), int((b[1] >= 0).sum())) for b in map(self.batches, numbers)]
        return plan_memory(
            self.model,
            self.loss,
            short(0),
            tokens=max(tokens for tokens, _ in sizes),
            targets=max(targets for _, targets in sizes),
            optimizer=how.optimizer,
            grad_accum=how.grad_accum,
            recompute=how.checkpoint_activations,
            context=autocast(self.device, pick_dtype(self.device, how.dtype)),
            shapes=self._shapes(how.steps * how.grad_accum),
        )

    def _shapes(self, batches: int) -> int:
        """Hardly two batches have the same; in 16 bits so counts half of a stream's lengths of documents."""
        if self.layout != "stream" or not self._in_16_bits():
            return batches
        lengths = len(set(self.data.lengths.tolist()))
        return batches + min(lengths, batches * self.batches.batch_size) // 2

    def lora_plus(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """B's rate is a multiple of A's (Hayou et al. 2024)."""
        options, how = self.options, self.how
        assert isinstance(model, AdaptedGPT)
        groups = lora_plus_groups(model.gpt, how.lr, ratio=options.lora_plus, weight_decay=how.weight_decay)
        return make_optimizer(groups, how.optimizer, lr=how.lr, betas=(how.beta1, how.beta2))

    def fit(self) -> tuple[TrainResult, int | None]:
        """Train; leave the best weights on the model, and the adapter beside the checkpoint."""
        options, how = self.options, self.how
        self._announce()
        held_out = self._batches(self.held_out)
        paths = ("checkpoint", "data", "eval_data", "tokenizer", "chat_template")
        title = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA"}[options.method]
        start = (resident_bytes() or 0) - self.plan.weights  # they are there already
        with (
            TrainingProgress(how.steps, title) as progress,
            loss_plot(options.out, title, options.data),
            PeakMemory(self.device, start) as peak,
        ):
            result = train(
                self.model,
                self.loss,
                self.batches,
                how,
                options.out,
                evaluate=lambda model: sft_metrics(model, held_out),
                listener=progress,
                on_start=lambda: self.tokenizer.save(options.out / "tokenizer"),
                optimizer=self.lora_plus if options.lora_plus > 1 and options.method != "full" else None,
                resume=options.resume,
                options=to_save(replace(options, train=how, epochs=0.0), "finetune", *paths),
                identity={
                    "data_digest": self.data.digest(),
                    "held_out_digest": self.held_out.digest(),
                    "base_digest": self.digest,
                    "lora_plus": options.lora_plus,
                },
                extra={
                    "tokenizer": tokenizer_reference(self.tokenizer),
                    **self._template_to_save(),
                },
            )
        best = load_checkpoint(options.out / "best.pt", self.device)
        self.model.load_state_dict(best["state_dict"])
        self.model.eval()
        if isinstance(self.model, AdaptedGPT):
            save_peft(self.model.gpt, options.out / "adapter", base_model=absolute(options.checkpoint))
        return result, peak.bytes

    def _template_to_save(self) -> dict[str, Any]:
        if self.template.source is None:
            return {}
        found = {"chat_template": self.template.source}
        return found | {"special_tokens": dict(self.template.variables or {})}

    def _announce(self) -> None:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = self.n_params
        console.print(
            f"{len(self.data):,} examples with {self.data.n_targets:,} tokens to learn, "
            f"{len(self.held_out):,} held out; {trained:,} of {total:,} parameters trained "
            f"({trained / total:.1%}); {self.layout}",
            markup=False,
            soft_wrap=True,
        )
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.plan.lines())
        line = f"memory: about {megabytes(self.plan.peak)} at most ({parts})"
        if self.device.type == "cpu" and self.plan.peak < _NOISE:
            line += "; so little is told to a few MB only"
        console.print(line, markup=False, soft_wrap=True)

    def figures(self, result: TrainResult) -> dict[str, Any]:
        """Held-out figures at step 0 and of the best weights."""
        rows = [row for row in read_metrics(self.options.out / "metrics.jsonl") if "val_loss" in row]
        names = ("val_loss", "val_token_accuracy", "val_exact")
        before = {name: rows[0][name] for name in names}
        return {"before": before, "after": {name: result.best_metrics[name] for name in names}}

    def answers(self) -> list[tuple[str, str, str, str]]:
        """(prompt, right answer, answer before, answer after) of some held-out prompts."""
        chosen = [e for e in self.examples if e.messages][: self.options.samples]
        model: Any = self.model
        after = [self._answer(model.gpt if isinstance(model, AdaptedGPT) else model, e) for e in chosen]
        if isinstance(model, AdaptedGPT):
            with use_adapter(model.gpt, None):
                before = [self._answer(model.gpt, e) for e in chosen]
        else:
            given = None if self.options.tokenizer is None else self.tokenizer  # its own may not be there
            opened = open_model(self.options.checkpoint, self.device, tokenizer=given) if chosen else None
            base = None if opened is None else opened[0]
            before = [self._answer(base, e) for e in chosen]
        prompts = [e.prompt[-1].text if e.prompt else "" for e in chosen]
        return [(p, e.response, b, a) for p, e, b, a in zip(prompts, chosen, before, after, strict=True)]

    def _answer(self, model: Any, example: Example, longest: int = 64) -> str:
        ids = encode_prompt(example, self.tokenizer, self.template)[-(self.block_size - 1) :]
        if not ids:
            return ""
        idx = torch.tensor([ids], device=self.device)
        room = min(longest, self.base.config.block_size - len(ids))
        stop = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        written = generate(model, idx, room, temperature=0.0, stop=stop)[0, len(ids) :].tolist()
        return self.tokenizer.decode([i for i in written if i not in stop])


def split(examples: list[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Shuffle, and hold out a share: at least one example."""
    if len(examples) < 2:
        raise InputError(f"{len(examples)} example is too few: one to learn and one to hold out are needed")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = min(len(examples) - 1, max(1, round(held_out * len(examples))))
    return [examples[i] for i in order[cut:]], [examples[i] for i in order[:cut]]
