"""The training loop: one for pre-training and fine-tuning, on any model that has a ``config``.

A resumed run is the uninterrupted run, bit for bit on CPU: batches are a function of the step, and the
checkpoint holds weights, optimizer, random state and step.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint, model_config, previous_path, save_checkpoint
from .errors import InputError
from .model import Block
from .optim import SCHEDULES, adamw, lr_factor
from .run_folder import RunFolder

Batch = Any
Metrics = dict[str, Any]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the model's own sizes are in its config."""

    steps: int = 2000
    """optimizer steps in all"""
    batch_size: int = 12
    """sequences in a batch"""
    grad_accum: int = 1
    """batches added up before each optimizer step"""
    lr: float = 1e-3
    """peak learning rate"""
    schedule: str = "cosine"
    """cosine, wsd, linear or constant, after the warm-up"""
    warmup: int = 100
    """steps in which the learning rate rises"""
    lr_floor: float = 0.1
    """share of the peak learning rate left at the end"""
    weight_decay: float = 0.1
    """on matrices and embeddings only"""
    beta1: float = 0.9
    """AdamW's memory of the gradient"""
    beta2: float = 0.99
    """AdamW's memory of its square"""
    grad_clip: float = 1.0
    """largest gradient norm; 0 switches clipping off"""
    eval_every: int = 200
    """steps between evaluations on held-out data"""
    save_every: int = 200
    """steps between checkpoints"""
    sample_every: int = 0
    """steps between printed samples; 0 prints none"""
    log_every: int = 10
    """steps between lines of metrics"""
    seed: int = 1337
    """of the weights, the batches and dropout"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    dtype: str = "auto"
    """float32, bfloat16 (mixed precision), or auto: bfloat16 on a GPU that has it"""
    compile: bool = False
    """torch.compile each block: faster steps after a first one of half a minute or more"""
    tensorboard: bool = False
    """also write TensorBoard events (needs the extra `tensorboard`)"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "grad_accum", "eval_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("lr", "weight_decay", "grad_clip", "warmup", "sample_every"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be a number, not negative")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        for name, low, high in (("beta1", 0, 1), ("beta2", 0, 1), ("lr_floor", 0, 1.0000001)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is not known; use {', '.join(SCHEDULES)}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} is not known; use auto, float32 or bfloat16")


# Fields that may differ between a run and its continuation: they change no weight.
_FREE_FIELDS = {"eval_every", "save_every", "sample_every", "log_every", "device", "compile", "tensorboard"}


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """SIGINT or SIGTERM arrived; the step was finished and saved."""

    def __init__(self, signum: int, step: int, checkpoint: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; saved {checkpoint}")
        self.exit_code = 128 + signum


class DivergedError(InputError):
    """The loss became NaN or infinite."""


@dataclass
class TrainResult:
    """What a finished run reached."""

    step: int
    loss: float
    best_val_loss: float | None
    seconds: float
    metrics: Metrics = field(default_factory=dict)
    """held-out figures at the end"""
    best_metrics: Metrics = field(default_factory=dict)
    """held-out figures of the weights in ``best.pt``"""


def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Batch], Tensor],
    batches: Callable[[int], Batch],
    config: TrainConfig,
    out: Path | str,
    *,
    evaluate: Callable[[nn.Module], Metrics] | None = None,
    sample: Callable[[nn.Module], str] | None = None,
    listener: Callable[[Metrics], None] = lambda row: None,
    on_start: Callable[[], None] = lambda: None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train ``model`` and leave ``last.pt``, ``best.pt`` and ``metrics.jsonl`` in ``out``.

    Args:
        model: has a dataclass ``config``; moved to the device and trained in place.
        loss_fn: mean loss of a batch, a scalar tensor.
        batches: the n-th batch, n from 0; the same n must always give the same batch.
        config: how to train.
        out: the run's folder.
        evaluate: held-out metrics with a ``val_loss``; must not draw from the global generator.
        sample: a text to show now and then.
        listener: called with every row of metrics (progress bars, web pages).
        on_start: called once the folder is ours, before the first step (to put more files there).
        resume: go on from ``out/last.pt``; without one (killed before the first), start.
        identity: what else decides the weights (a digest of the data, weights of losses): plain values; a
            run is resumed only where they are the same.
        options: what to write into ``run.json``, so that a command can be resumed.
        extra: what to add to every checkpoint (a tokenizer's reference, class labels).

    Returns:
        The last step's figures.

    Raises:
        Interrupted: SIGINT or SIGTERM; everything is saved.
        DivergedError: the loss is not finite; the last good checkpoint stays.
        InputError: the folder is in use, holds a run already, or that run was made otherwise.
    """
    device = pick_device(config.device)
    # Dropout draws from the global generator: seeded for the run, given back as it was.
    cards = [device] if device.type == "cuda" else []
    with RunFolder(out) as folder, torch.random.fork_rng(cards), _stop_requests() as stop_requested:
        torch.manual_seed(config.seed)
        trainer = _Trainer(model.to(device), loss_fn, batches, config, folder, evaluate, sample, listener)
        trainer.extra, trainer.identity = dict(extra or {}), dict(identity or {})
        if folder.last.exists() or previous_path(folder.last).exists():
            if not resume:
                raise InputError(f"{folder.path} already holds a run: --resume it, or choose another folder")
            trainer.resume()
        else:  # nothing saved yet: also what is left of a run killed before its first checkpoint
            folder.rewind(-1)
        on_start()
        if options is not None:
            folder.save_options(dict(options))
        try:
            return trainer.run(stop_requested)
        finally:
            if trainer.board:
                trainer.board.close()


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Batch], Tensor],
        batches: Callable[[int], Batch],
        config: TrainConfig,
        folder: RunFolder,
        evaluate: Callable[[nn.Module], Metrics] | None,
        sample: Callable[[nn.Module], str] | None,
        listener: Callable[[Metrics], None],
    ) -> None:
        self.model, self.loss_fn, self.batches, self.config = model, loss_fn, batches, config
        self.folder, self.evaluate, self.sample, self.listener = folder, evaluate, sample, listener
        self.device = next(model.parameters()).device
        self.optimizer = adamw(model, config.lr, config.weight_decay, (config.beta1, config.beta2))
        self.autocast = _autocast(self.device, config.dtype)
        self.step = 0
        self.loss = math.nan
        self.best: float | None = None
        self.metrics: Metrics = {}
        self.best_metrics: Metrics = {}
        self.elapsed = 0.0
        self.extra: dict[str, Any] = {}
        self.identity: dict[str, Any] = {}
        self.flops_per_token = flops_per_token(model)
        self.peak_flops = peak_flops(self.device)
        self.board = _tensorboard(folder.path) if config.tensorboard else None
        if config.compile:
            compile_blocks(model)

    def run(self, stop_requested: Callable[[], int | None]) -> TrainResult:
        config = self.config
        before, started = self.elapsed, time.perf_counter()
        if self.step == 0:
            self._evaluate()
        self.model.train()
        since, tokens = time.perf_counter(), 0  # of training alone: saving and the like are left out
        while self.step < config.steps:
            loss, grad_norm, n_tokens, lr = self._train_step()
            tokens += n_tokens
            done = self.step == config.steps
            signum = stop_requested()
            wants_save = done or signum is not None or self.step % config.save_every == 0
            wants_eval = done or self.step % config.eval_every == 0
            wants_log = done or self.step % config.log_every == 0 or self.step == 1
            if wants_log or wants_save or wants_eval or self.device.type == "cpu":
                self.loss = float(loss)  # on an accelerator this waits for it: not every step
                self._check_finite("loss", self.loss)
                self._check_finite("gradient norm", float(grad_norm))
            self.elapsed = before + time.perf_counter() - started
            if wants_log:
                rate = tokens / (time.perf_counter() - since)
                row = {"step": self.step, "loss": self.loss, "lr": lr, "grad_norm": float(grad_norm)}
                self._log({**row, **self._speed(rate), "elapsed_s": round(self.elapsed, 3)})
                since, tokens = time.perf_counter(), 0
            paused = time.perf_counter()
            if wants_eval:
                self._evaluate()
            if config.sample_every and self.sample and self.step % config.sample_every == 0:
                self.listener({"step": self.step, "sample": self._in_eval_mode(self.sample)})
            if wants_save:
                self.elapsed = before + time.perf_counter() - started
                self._save(self.folder.last, resumable=True)
            since += time.perf_counter() - paused
            if signum is not None and not done:
                raise Interrupted(signum, self.step, self.folder.last)
        return TrainResult(self.step, self.loss, self.best, self.elapsed, self.metrics, self.best_metrics)

    def _train_step(self) -> tuple[Tensor, Tensor, int, float]:
        config = self.config
        lr = config.lr * lr_factor(self.step, config.steps, config.schedule, config.warmup, config.lr_floor)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total, n_tokens = torch.zeros((), device=self.device), 0
        for micro in range(config.grad_accum):
            batch = _to_device(self.batches(self.step * config.grad_accum + micro), self.device)
            with self.autocast():
                loss = self.loss_fn(self.model, batch)
            (loss / config.grad_accum).backward()
            total += loss.detach() / config.grad_accum
            n_tokens += _first(batch).numel()
        limit = config.grad_clip or math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total, grad_norm, n_tokens, lr

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        last = self.folder.last
        where = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was saved yet"
        raise DivergedError(
            f"the {what} is {value} at step {self.step}; {where}; try a lower lr than {self.config.lr}"
        )

    def _in_eval_mode(self, function: Callable[[nn.Module], Any]) -> Any:
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast():
                return function(self.model)
        finally:
            self.model.train()

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        self.metrics = self._in_eval_mode(self.evaluate)
        self._check_finite("held-out loss", self.metrics["val_loss"])
        self._log({"step": self.step, **self.metrics})
        if self.best is None or self.metrics["val_loss"] < self.best:
            self.best, self.best_metrics = self.metrics["val_loss"], self.metrics
            self._save(self.folder.best, resumable=False)

    def _speed(self, tokens_per_s: float) -> Metrics:
        speed: Metrics = {"tokens_per_s": round(tokens_per_s, 1)}
        if self.peak_flops:
            speed["mfu"] = round(self.flops_per_token * tokens_per_s / self.peak_flops, 4)
        return speed

    def _log(self, row: Metrics) -> None:
        self.folder.log(row)
        self.listener(row)
        if self.board:
            for name, value in row.items():
                if name != "step" and isinstance(value, float):
                    self.board.add_scalar(name, value, row["step"])

    def _save(self, path: Path, resumable: bool) -> None:
        state: dict[str, Any] = {
            "step": self.step,
            "best_val_loss": self.best,
            "train_config": asdict(self.config),
            "best_metrics": self.best_metrics,
            "identity": self.identity,
            **self.extra,
        }
        if resumable:
            self._check_weights()
            state["loss"], state["metrics"] = self.loss, self.metrics
            state["optimizer"] = self.optimizer.state_dict()
            state["elapsed_s"] = self.elapsed
            # Batches are a function of (seed, number): this is the whole position in the data.
            state["next_batch"] = self.step * self.config.grad_accum
            state["rng"] = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                state["rng"]["cuda"] = torch.cuda.get_rng_state(self.device)
        save_checkpoint(self.model, path, **state)

    def _check_weights(self) -> None:
        """Weights that the last step ruined show only in the next loss: look before they are saved."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            batch = _to_device(self.batches(self.step * self.config.grad_accum), self.device)
            self._check_finite("next loss", float(self._in_eval_mode(lambda m: self.loss_fn(m, batch))))

    def resume(self) -> None:
        checkpoint = load_checkpoint(self.folder.last, self.device)
        if "optimizer" not in checkpoint:
            raise InputError(f"{self.folder.last} cannot be resumed: it holds weights only")
        if checkpoint["config"] != asdict(model_config(self.model)):
            raise InputError(
                f"{self.folder.last} is of a model with another config: resume with the run's own"
            )
        old = {**checkpoint["train_config"], **checkpoint["identity"]}
        new = {**asdict(self.config), **self.identity}
        changed = [name for name in new if name not in _FREE_FIELDS and old.get(name) != new[name]]
        if changed:
            name = changed[0]
            raise InputError(
                f"the run in {self.folder.path} was started with {name}={old.get(name)}, not {new[name]}: "
                "resume it unchanged, or start another"
            )
        self.model.load_state_dict(checkpoint["state_dict"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.step, self.best = checkpoint["step"], checkpoint["best_val_loss"]
        self.loss, self.metrics = checkpoint["loss"], checkpoint["metrics"]
        self.best_metrics, self.elapsed = checkpoint["best_metrics"], checkpoint["elapsed_s"]
        torch.set_rng_state(checkpoint["rng"]["cpu"].cpu())
        if "cuda" in checkpoint["rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["rng"]["cuda"].cpu(), self.device)
        self.folder.rewind(self.step)


# --- devices ----------------------------------------------------------------------------------------------


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is the best there is: cuda, then mps, then cpu.

    Raises:
        InputError: a device that this machine does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in available.items() if there))
    there = ", ".join(device for device, ok in available.items() if ok)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not available.get(device.type, False):
        raise InputError(f"device {name!r} is not available here; use {there} or auto")
    return device


def _autocast(device: torch.device, dtype: str) -> Callable[[], AbstractContextManager]:
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if dtype == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


# Dense bf16 peak of the maker's data sheet, in FLOP/s; H200 and H100 SXM are the same chip.
_PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of the device, or ``None`` where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for part, flops in _PEAK_BF16.items() if part in name), None)


def flops_per_token(model: nn.Module) -> float:
    """6·N + 12·n_layer·n_embd·block_size: forward and backward (Chowdhery et al. 2022, appendix B).

    N leaves out position embeddings, whose look-up multiplies nothing; a tied token embedding counts once,
    as the output head's product.
    """
    config = model_config(model)
    config = getattr(config, "gpt", config)  # a task model's config holds the GPT's
    n = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("wpe.weight"))
    if not config.tie_weights:
        n -= config.vocab_size * config.n_embd
    return 6 * n + 12 * config.n_layer * config.n_embd * config.block_size


def compile_blocks(model: nn.Module) -> None:
    """``torch.compile`` every block in place: alike, they share one compilation."""
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()


def _to_device(batch: Batch, device: torch.device) -> Batch:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    return type(batch)(_to_device(part, device) for part in batch)


def _first(batch: Batch) -> Tensor:
    return batch if isinstance(batch, Tensor) else _first(batch[0])


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the extra: pip install 'ai-learning[tensorboard]'") from None
    return SummaryWriter(str(path / "tensorboard"))


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int | None]]:
    """Turn SIGINT and SIGTERM into a question asked after every step; a second SIGINT interrupts at once."""
    received: list[int] = []

    def note(signum: int, frame: Any) -> None:
        if received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(signum)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: None
        return
    old = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for signum, handler in old.items():
            signal.signal(signum, handler)
