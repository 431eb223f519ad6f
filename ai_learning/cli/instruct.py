"""``ai-learning finetune --method full|lora|qlora``: a language model and instruction data."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from ..adapted import COMPUTE, AdaptedConfig, AdaptedGPT, weights_digest
from ..adapters import LoRAConfig, lora_plus_groups, make_optimizer, save_peft, use_adapter
from ..adapters.qlora import OPTIMIZERS
from ..chat_template import CHATML, read_chat_template
from ..checkpoint import load_checkpoint, open_model, tokenizer_reference
from ..errors import InputError
from ..files import write_text
from ..generate import generate
from ..memory import MemoryPlan, PeakMemory, megabytes, plan_memory, resident_bytes
from ..model import GPT
from ..optim import parameter_groups
from ..run_folder import read_metrics, read_options
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
)
from ..tokenizers import Tokenizer
from ..train import TrainConfig, TrainResult, pick_device, train
from ..viz import plot_bars
from .common import TrainingProgress, console, flag, parse, tokenizer_by_name
from .pretrain import loss_plot
from .report import Report

BUILTIN = "builtin:function-names"
LR = {"full": 1e-3, "lora": 4e-3, "qlora": 4e-3}


@dataclass(frozen=True)
class Instruct:
    """Fine-tune a language model on instruction data: all weights, an adapter, or an adapter on four bits.

    Data: rows with prompt and response, messages (OpenAI), conversations (ShareGPT) or text, from .jsonl,
    .json, .csv, .tsv, .parquet or hf:NAME. Only answers are learned. With --method head (GPT-1's task heads)
    the options are others: ai-learning finetune --method head --help.
    """

    method: Literal["full", "lora", "qlora"] = "lora"
    """full: all weights; lora: a low-rank adapter; qlora: the same on a base in four bits"""
    checkpoint: str = "runs/demo/gpt1_tiny_pretrain.pt"
    """the base: a .pt file, a folder of Hugging Face's, or a name on the hub"""
    data: str = BUILTIN
    """builtin:function-names (docstring → name, from the standard library), a file, or hf:NAME?split=train"""
    eval_data: str | None = None
    """held-out data; a share of --data when left out"""
    held_out: float = 0.1
    """that share"""
    out: Path = Path("runs/instruct")
    """folder for checkpoints, the adapter, metrics, plots and the report"""
    resume: bool = False
    """go on with the run in --out, with its own options"""
    epochs: float = 0.0
    """passes over the data; sets --steps when above 0"""
    tokenizer: str | None = None
    """bytes or a folder, where the checkpoint names none"""
    prompt_column: str | None = None
    """what the data calls the prompt, if not prompt, instruction or question"""
    response_column: str | None = None
    """what the data calls the response, if not response, completion, output or answer"""
    chat_template: str | None = None
    """chatml, none, or a Jinja file; the base's own where it brings one and the data are chats"""
    on_bad_row: Literal["fatal", "skip"] = "fatal"
    """a row that cannot be used ends the command with its file and line, or is left out and told"""
    too_long: Literal["skip", "cut"] = "skip"
    """a conversation longer than the model's input is a bad row, or is cut at its end"""
    max_length: int = 2048
    """longest example in tokens, at most the model's own longest input"""
    layout: Literal["auto", "stream", "pack", "pad"] = "auto"
    """stream: no padding; pack: masked rows; pad; auto: stream on a CPU, pack elsewhere"""
    optimizer: str = "adamw"
    """adamw; adamw8bit, paged_adamw, paged_adamw8bit (bitsandbytes); torchao_adamw8bit"""
    lora_r: int = 8
    """rank of the adapter"""
    lora_alpha: float = 16.0
    """the update is scaled by alpha / r"""
    lora_dropout: float = 0.0
    """probability of dropping an input of A"""
    lora_targets: str = "all-linear"
    """all-linear, or names with commas: c_attn,c_proj"""
    lora_plus: float = 1.0
    """how much faster B learns than A (LoRA+ suggests 16)"""
    use_dora: bool = False
    """learn the length of every weight row apart from its direction"""
    use_rslora: bool = False
    """scale by alpha / √r"""
    quant_type: Literal["nf4", "fp4", "int4"] = "nf4"
    """of the base, with qlora"""
    double_quant: bool = True
    """quantize the blocks' scales too"""
    compute_dtype: str | None = None
    """of products with 4-bit weights: float32, bfloat16, float16; the input's when left out"""
    compare: bool = False
    """also train all weights on the same batches, and say which share of that gain the adapter has"""
    samples: int = 4
    """held-out prompts to answer before and after"""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=300, batch_size=32, lr=LR["lora"], warmup=20, schedule="linear", lr_floor=0.0,
            weight_decay=0.0, beta2=0.999, eval_every=50, save_every=100,
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out} must be between 0 and 1")
        if not (self.epochs >= 0 and math.isfinite(self.epochs)):
            raise ValueError(f"epochs={self.epochs} must be a number, not negative")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is not known; use {', '.join(OPTIMIZERS)}")
        if self.compute_dtype is not None and self.compute_dtype not in COMPUTE:
            raise ValueError(f"compute_dtype={self.compute_dtype!r} is not known; use {', '.join(COMPUTE)}")
        if self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2")
        if self.samples < 0 or self.lora_plus < 1:
            raise ValueError(
                f"samples={self.samples} must be at least 0, lora_plus={self.lora_plus} at least 1"
            )
        if (self.prompt_column is None) != (self.response_column is None):
            raise ValueError("--prompt-column and --response-column go together")
        if self.compare and self.method == "full":
            raise ValueError("--compare trains all weights beside an adapter: use it with lora or qlora")

    @property
    def lora(self) -> LoRAConfig:
        """The adapter's config."""
        names = [name.strip() for name in self.lora_targets.split(",")]
        return LoRAConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=names if len(names) > 1 else names[0],
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )


def main(args: list[str]) -> None:
    """Entry point."""
    options = parse(Instruct, args, "finetune", default=_defaults(args))
    instruct(options)


def _defaults(args: list[str]) -> Instruct:
    """The defaults that ``--help`` shows: the method's, or those of the run to be resumed."""
    if "--resume" in args:
        saved = read_options(flag(args, "--out", str(Instruct.out)), "finetune")
        how = TrainConfig(**saved.pop("train"))
        return Instruct(**{**saved, "out": Path(saved["out"]), "train": how})
    defaults, method = Instruct(), flag(args, "--method", Instruct.method)
    if method not in LR:
        return defaults
    how = replace(defaults.train, lr=LR[method])
    return replace(defaults, method=method, train=how)  # type: ignore[arg-type]


def instruct(options: Instruct) -> dict[str, Any]:
    """Run it: the figures before and after, as they are written to ``results.json``."""
    run = _Run(options)
    result, peak = run.fit()
    figures = run.figures(result)
    if options.compare:
        console.print("the same with all weights:")
        full = replace(
            options,
            method="full",
            compare=False,
            samples=0,
            optimizer="adamw",
            out=options.out / "full",
            train=replace(options.train, lr=LR["full"]),
        )
        resumed = replace(full, resume=(full.out / "run.json").exists())
        other = _Run(resumed)
        figures["full"] = other.figures(other.fit()[0])["after"]
    figures["memory"] = {"estimated": run.plan.peak, "measured": peak}
    return report(options, run, figures)


class _Run:
    """Model, data and batches of one training."""

    def __init__(self, options: Instruct) -> None:
        self.options = options
        self.base, found, extra = open_model(options.checkpoint)
        if options.method == "full":
            self.base.float()  # small steps would be lost in 16 bits
        if options.tokenizer is not None:
            found = tokenizer_by_name(options.tokenizer)
        if found is None:
            raise InputError(f"{options.checkpoint} names no tokenizer: give one with --tokenizer")
        self.tokenizer: Tokenizer = found
        self.template = template_of(options, extra)
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
        self.digest = weights_digest(self.base)
        if options.method != "full":
            self.model = AdaptedGPT(
                AdaptedConfig(
                    gpt=self.base.config,
                    base=_absolute(options.checkpoint),
                    base_digest=self.digest,
                    lora=options.lora,
                    quant_type=options.quant_type if options.method == "qlora" else None,
                    double_quant=options.double_quant,
                    compute_dtype=options.compute_dtype,
                ),
                self.base,
            )
        self.loss = partial(sft_loss, layout=self.layout)
        self.plan = self._plan()

    def _layout(self) -> str:
        options = self.options
        if options.layout != "auto":
            if options.layout == "stream" and options.train.compile:
                raise InputError("--layout stream cannot be compiled, its shapes change: use pack")
            return options.layout
        return "stream" if self.device.type == "cpu" and not options.train.compile else "pack"

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
        seen = 0

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
        data, held = encoded(training), encoded(held_out)
        if self.bad.found:
            console.print(f"warning: {self.bad.summary(seen)}", markup=False)
        return data, held, held_out

    def _plan(self) -> MemoryPlan:
        """For the largest of the first batches."""
        options, how = self.options, self.how
        short = SFTBatches(self.data, 2, self.block_size, layout=self.layout, seed=how.seed)
        numbers = range(min(how.steps * how.grad_accum, 20))
        sizes = [(b[0].numel(), int((b[1] >= 0).sum())) for b in map(self.batches, numbers)]
        return plan_memory(
            self.model,
            self.loss,
            short(0),
            tokens=max(tokens for tokens, _ in sizes),
            targets=max(targets for _, targets in sizes),
            optimizer=options.optimizer,
            grad_accum=how.grad_accum,
            recompute=how.checkpoint_activations,
        )

    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """Of the trained parameters; with LoRA+, B's rate is a multiple of A's."""
        options, how = self.options, self.how
        if options.lora_plus > 1 and isinstance(model, AdaptedGPT):
            groups = lora_plus_groups(
                model.gpt, how.lr, ratio=options.lora_plus, weight_decay=how.weight_decay
            )
        else:
            groups = [g for g in parameter_groups(model, how.weight_decay) if g["params"]]
        settings: dict[str, Any] = {"lr": how.lr, "betas": (how.beta1, how.beta2)}
        if options.optimizer == "adamw":
            settings["fused"] = True
        return make_optimizer(groups, options.optimizer, **settings)

    def fit(self) -> tuple[TrainResult, int | None]:
        """Train; leave the best weights on the model, and the adapter beside the checkpoint."""
        options, how = self.options, self.how
        self._announce()
        held_out = self._batches(self.held_out)
        record = asdict(replace(options, train=how, resume=False, epochs=0.0))
        record |= {"command": "finetune", "out": str(options.out)}
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
                make_optimizer=self.optimizer,
                resume=options.resume,
                options=record,
                identity={
                    "data_digest": self.data.digest(),
                    "held_out_digest": self.held_out.digest(),
                    "base_digest": self.digest,
                    "optimizer": options.optimizer,
                    "lora_plus": options.lora_plus,
                },
                extra={
                    "tokenizer": tokenizer_reference(self.tokenizer),
                    **({"chat_template": self.template.source} if self.template.source else {}),
                },
            )
        best = load_checkpoint(options.out / "best.pt", self.device)
        self.model.load_state_dict(best["state_dict"])
        self.model.eval()
        if isinstance(self.model, AdaptedGPT):
            save_peft(self.model.gpt, options.out / "adapter", base_model=_absolute(options.checkpoint))
        return result, peak.bytes

    def _announce(self) -> None:
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = self.base.n_params()
        console.print(
            f"{len(self.data):,} examples with {self.data.n_targets:,} tokens to learn, "
            f"{len(self.held_out):,} held out; {trained:,} of {total:,} parameters trained "
            f"({trained / total:.1%}); {self.layout}",
            markup=False,
        )
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in self.plan.lines())
        console.print(f"memory: about {megabytes(self.plan.peak)} at most ({parts})", markup=False)

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
            base = open_model(self.options.checkpoint, self.device)[0] if chosen else None
            before = [self._answer(base, e) for e in chosen]
        prompts = [e.prompt[-1].content if e.prompt else "" for e in chosen]
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


def template_of(options: Instruct, checkpoint: dict[str, Any]) -> Template:
    """The chat template asked for, or the base's own."""
    asked = options.chat_template
    if asked == "none":
        return Template()
    if asked == "chatml":
        return Template(CHATML)
    if asked is not None:
        path = Path(asked)
        if not path.is_file():
            raise InputError(f"chat_template={asked!r} is no file; use chatml, none, or a Jinja file")
        return Template(path.read_text(encoding="utf-8"))
    if checkpoint.get("chat_template"):
        return Template(checkpoint["chat_template"])
    found = read_chat_template(options.checkpoint) if Path(options.checkpoint).is_dir() else None
    return Template() if found is None else Template(*found)


def split(examples: list[Example], held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Shuffle, and hold out a share: at least one example."""
    if len(examples) < 2:
        raise InputError(f"{len(examples)} example is too few: one to learn and one to hold out are needed")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = min(len(examples) - 1, max(1, round(held_out * len(examples))))
    return [examples[i] for i in order[cut:]], [examples[i] for i in order[:cut]]


def report(options: Instruct, run: _Run, figures: dict[str, Any]) -> dict[str, Any]:
    """Print the table of before and after, and write ``results.json``, ``report.html`` and a plot."""
    before, after, full = figures["before"], figures["after"], figures.get("full")
    columns = {
        "before": before,
        f"after ({options.method})": after,
        **({"all weights": full} if full else {}),
    }
    names = {
        "val_loss": ("loss (nats a token)", "{:.4f}"),
        "val_token_accuracy": ("tokens right", "{:.1%}"),
        "val_exact": ("answers right", "{:.1%}"),
    }
    rows = [[label, *(form.format(c[key]) for c in columns.values())] for key, (label, form) in names.items()]
    table = Table("held out", *columns)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    gain = before["val_loss"] - after["val_loss"]
    says = f"the held-out loss fell by {gain:.4f} nats a token"
    if full:
        figures["share_of_full_gain"] = gain / (before["val_loss"] - full["val_loss"] or math.nan)
        says += f", {figures['share_of_full_gain']:.0%} of what training all weights gains"
    memory = figures["memory"]
    used = f"memory: estimated {megabytes(memory['estimated'])}"
    if memory["measured"] is not None:
        used += f", measured {megabytes(memory['measured'])}"
    console.print(f"{says}\n{used}", markup=False)
    answers = run.answers()
    figures["samples"] = [
        dict(zip(("prompt", "right", "before", "after"), answer, strict=True)) for answer in answers
    ]
    write_text(options.out / "results.json", json.dumps(figures, indent=2) + "\n")
    shares = {label: {c: columns[c][key] for c in columns} for key, (label, _) in names.items()}
    plot_bars(shares, options.out / "before_after.png", "", "held out")
    page = Report(f"Fine-tuning: {options.method}")
    page.text(f"{options.checkpoint} on {options.data}: {says}; {used}.")
    page.table(["held out", *columns], rows)
    page.image(options.out / "before_after.png", "held-out figures before and after")
    page.heading("Training")
    page.image(options.out / "loss.png", "loss by step")
    if answers:
        page.heading("Answers to held-out prompts")
        page.table(["prompt", "right", "before", "after"], answers)
    page.write(options.out / "report.html")
    _goodbye(options)
    return figures


def _goodbye(options: Instruct) -> None:
    best = options.out / "best.pt"
    lines = [f"report: {options.out}/report.html; checkpoint: {best}"]
    if options.method != "full":
        lines.append(f"adapter in PEFT's format: {options.out}/adapter")
        lines.append(f"try: ai-learning export {best} --merge --out {options.out}/merged")
    for line in lines:
        console.print(line, markup=False)


def _absolute(source: str) -> str:
    """A path that holds from any folder; a hub name as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source
