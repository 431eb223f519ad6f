"""The training loop: one for pre-training and fine-tuning, on any model that has a ``config``.

It is the same loop on one process and on many (``torchrun``): what differs is in ``distributed.Team``.
A resumed run is the uninterrupted run, bit for bit on CPU (`run_state`).
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .adapters import make_optimizer
from .device import (
    autocast,
    checkpointed,
    compiled,
    flops_per_token,
    on_a_gpu,
    own_device,
    peak_flops,
    pick_device,
    pick_dtype,
    to_device,
)
from .distributed import PARALLEL, Team, latest, peers_in_reach, world
from .errors import InputError, whole_numbers
from .kernels.loops import COMPILING, before_compiling
from .optim import (
    OPTIMIZERS,
    SCHEDULES,
    Together,
    adamw,
    clip_and_step,
    lr_factor,
    muon_with_adamw,
    parameter_groups,
)
from .run_folder import RunFolder
from .run_state import RunState, seed_of

Batch = Any
Metrics = dict[str, Any]


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the model's own sizes are in its config."""

    steps: int = 2000
    """optimizer steps in all"""
    batch_size: int = 12
    """sequences in a batch, over all processes"""
    grad_accum: int = 1
    """batches added up before each optimizer step"""
    optimizer: str = "adamw"
    """adamw; muon (for the blocks' matrices, AdamW for the rest); or AdamW with a small state for GPUs:
    adamw8bit, paged_adamw, paged_adamw8bit (bitsandbytes), torchao_adamw8bit"""
    lr: float = 1e-3
    """peak learning rate"""
    muon_lr: float = 0.02
    """peak learning rate of what Muon trains"""
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
    """steps between samples, printed and kept with the metrics; 0 writes none"""
    log_every: int = 10
    """steps between lines of metrics"""
    seed: int = 1337
    """of the weights, the batches and dropout"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    dtype: str = "auto"
    """float32, bfloat16 (mixed precision), or auto: bfloat16 on a GPU that has it"""
    compile: bool = False
    """torch.compile the blocks: faster steps after a first one of half a minute or more"""
    checkpoint_activations: bool = False
    """compute each block again in the backward pass instead of keeping what it computed: less memory"""
    parallel: str = "auto"
    """under torchrun: ddp (whole model in each process), fsdp (shared out), or auto: ddp"""
    tensorboard: bool = False
    """also write TensorBoard events (needs the extra `tensorboard`)"""

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "grad_accum", "eval_every", "save_every", "log_every")
        whole_numbers(self, *counts, "warmup", "sample_every", "seed")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("lr", "muon_lr", "weight_decay", "grad_clip", "warmup", "sample_every"):
            value = getattr(self, name)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be a number, not negative")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative")
        if self.seed >= 2**63:  # PyTorch's take 64 bits, and other processes' are larger
            raise ValueError(f"seed={self.seed} must be below 2**63 = {2**63}")
        for name, low, high in (("beta1", 0, 1), ("beta2", 0, 1), ("lr_floor", 0, 1.0000001)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is not known; use {', '.join(SCHEDULES)}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is not known; use {', '.join(OPTIMIZERS)}")
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError("muon needs whole matrices, and parallel=fsdp cuts them: use ddp, or adamw")
        if self.parallel not in PARALLEL:
            raise ValueError(f"parallel={self.parallel!r} is not known; use {', '.join(PARALLEL)}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"dtype={self.dtype!r} is not known; use auto, float32 or bfloat16")


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


def _nobody(row: Metrics) -> None:
    """A listener that ignores every row."""


def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Batch], Tensor],
    batches: Callable[[int], Batch],
    config: TrainConfig,
    out: Path | str,
    *,
    evaluate: Callable[[nn.Module], Metrics] | None = None,
    sample: Callable[[nn.Module], str] | None = None,
    listener: Callable[[Metrics], None] = _nobody,
    on_start: Callable[[], None] = lambda: None,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    resume: bool = False,
    identity: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train ``model`` and leave ``last.pt``, ``best.pt`` and ``metrics.jsonl`` in ``out``.

    Under ``torchrun`` every process calls this alike. Rank 0 alone logs and samples; checkpoints on the way
    are distributed ones (``distributed.save_shards``), and ``last.pt`` is written at the end. Each restores
    on any number of processes; after FSDP the model's parameters stay shared out.

    Args:
        model: has a dataclass ``config``; moved to the device and trained in place.
        loss_fn: mean loss of a batch, a scalar tensor.
        batches: the n-th batch, n from 0; the same n must always give the same batch. For many processes
            this process's rows of it, as many on each, with its ``world_size`` to say so (``TokenBatches``).
            ``fixed_shapes``, if it has that and it is true, says that all are of one shape.
        config: how to train.
        out: the run's folder.
        evaluate: held-out metrics with a ``val_loss``, the same on every process; must not draw from the
            global generator.
        sample: a text to show now and then.
        listener: called with every row of metrics (progress bars, web pages), and with ``{"step", "note"}``
            where something is to be said in words.
        on_start: called once the folder is ours, before the first step (to put more files there).
        optimizer: makes another optimizer than ``config.optimizer`` names; every group's ``lr`` is its peak.
        resume: go on from ``out/last.pt``; without one (killed before the first), start. More ``steps`` than
            the run had extend it; on one process ``parallel`` is left aside.
        identity: what else decides the weights (a digest of the data, weights of losses): plain values; a
            run is resumed only where they are the same.
        options: what to write into ``run.json``, so that a command can be resumed.
        extra: what to add to every checkpoint (a tokenizer's reference, class labels).

    Returns:
        The last step's figures.

    Raises:
        Interrupted: SIGINT or SIGTERM; everything is saved.
        DivergedError: the loss is not finite; the last good checkpoint stays.
        InputError: the folder is in use, holds a run already, or that run was made otherwise; a model that
            ``torch.compile`` wraps.
        PeerLostError: another process died; what was saved stays.
    """
    if any("_orig_mod" in name for name, _ in model.named_modules()):  # its losses call what is inside
        raise InputError(
            "torch.compile wraps the model: give it unwrapped and set compile, or model.compile()"
        )
    here = world()
    device = own_device(pick_device(config.device), here)
    parallel = "auto" if resume and not here.launched else config.parallel  # its run had more processes
    if getattr(batches, "world_size", 1) != here.size:
        raise InputError(f"this training runs in one process, not in {here.size}: start it without torchrun")
    # Dropout draws from the global generator: seeded for the run, given back as it was.
    cards = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(cards),
        _stop_requests() as stop_requested,
        Team(parallel, device) as team,
        peers_in_reach(here, lambda: _saved(Path(out))),
        ExitStack() as stack,
    ):
        if listener is not _nobody and here.is_main:
            say = {"step": 0, "note": COMPILING}
            stack.enter_context(before_compiling(lambda: listener(say)))
        with team.agreed():
            folder = stack.enter_context(RunFolder(out, writes=here.is_main))
        torch.manual_seed(seed_of(config.seed, here.rank))
        model = model.to(device)
        if config.checkpoint_activations:
            stack.enter_context(checkpointed(model, compiles=config.compile))
        elif config.compile:
            fixed_shapes = device.type == "cpu" or getattr(batches, "fixed_shapes", False)
            stack.enter_context(compiled(model, as_one=fixed_shapes and not team.distributed))
        trainer = Trainer(
            model,
            loss_fn,
            batches,
            config,
            folder,
            team,
            evaluate=evaluate,
            sample=sample,
            listener=listener,
            optimizer=optimizer,
            identity=identity or {},
            extra=extra or {},
        )
        with team.agreed():
            restarted = team.highest(here.restarts) > 0  # torchrun started again what had failed
            trainer.state.start(resume or restarted)
        with team.agreed():
            if here.is_main:
                on_start()
                if options is not None:
                    folder.save_options(dict(options))
        for note in trainer.state.notes:
            trainer.say(note)
        try:
            return trainer.run(stop_requested)
        finally:
            if trainer.board:
                trainer.board.close()


def _saved(out: Path) -> str:
    """For a run that broke off: which checkpoint is left, and how to go on from it."""
    found = latest(out)
    if found is None and not (out / "last.pt").exists():
        return "no checkpoint was saved yet: start again"
    return f"the last checkpoint is {found or out / 'last.pt'}: run the same command with --resume"


class _Clock:
    """Seconds of a run, and its speed, in which pauses for saving, evaluating and the like do not count.

    Args:
        elapsed: seconds that the run took before it was resumed.
    """

    def __init__(self, elapsed: float) -> None:
        self._run_began = time.perf_counter() - elapsed
        self.restart()

    def elapsed(self) -> float:
        """Seconds since the run began, pauses included."""
        return time.perf_counter() - self._run_began

    def restart(self) -> None:
        """Measure the speed from here on."""
        self._began, self._tokens = time.perf_counter(), 0

    def count(self, tokens: int) -> None:
        """Tokens that were trained on since the last call."""
        self._tokens += tokens

    def tokens_per_s(self) -> float:
        """Since the last ``restart``."""
        return self._tokens / (time.perf_counter() - self._began)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside the ``with`` block out of the speed."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began


class Trainer:
    """The loop of ``train``, once device, folder and processes are set up; see there for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[nn.Module, Batch], Tensor],
        batches: Callable[[int], Batch],
        config: TrainConfig,
        folder: RunFolder,
        team: Team,
        *,
        evaluate: Callable[[nn.Module], Metrics] | None,
        sample: Callable[[nn.Module], str] | None,
        listener: Callable[[Metrics], None],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None,
        identity: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> None:
        self.model, self.loss_fn, self.batches, self.config = model, loss_fn, batches, config
        self.folder, self.evaluate, self.sample, self.listener = folder, evaluate, sample, listener
        self.team = team
        self.device = next(model.parameters()).device
        self.flops_per_token = flops_per_token(model)
        self.dtype = dtype = pick_dtype(self.device, config.dtype)
        self.fixed_shapes: bool = getattr(batches, "fixed_shapes", False)
        self.root = team.wrap(model, dtype)  # before the optimizer: FSDP replaces the parameters
        self.optimizer: torch.optim.Optimizer | Together = (
            optimizer_of(model, config) if optimizer is None else optimizer(model)
        )
        self.peak_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.autocast = autocast(self.device, dtype)
        self.state = RunState(
            model, self.optimizer, config, folder, team, self.device, dict(identity), dict(extra)
        )
        self.progress = self.state.progress
        self.peak_flops = peak_flops(self.device)
        self.board = _tensorboard(folder.path) if config.tensorboard and team.world.is_main else None
        self._first_steps: list[float] = []  # seconds of the first two, in a compiled run

    def run(self, stop_requested: Callable[[], int | None]) -> TrainResult:
        """Train up to step ``config.steps``, and log, evaluate, sample and save on the way.

        Args:
            stop_requested: asked after every step; the number of the signal that asks to stop, if one came.
        """
        at, config = self.progress, self.config
        clock = _Clock(at.elapsed)
        if at.step == 0:
            self._evaluate()
        self.model.train()
        clock.restart()
        while at.step < config.steps:
            step_began = time.perf_counter()
            loss, grad_norm, n_tokens, lr = self.train_step()
            clock.count(n_tokens)
            signum = self.team.highest(stop_requested() or 0)  # every process stops after the same step
            is_last = at.step == config.steps
            wants_save = is_last or signum != 0 or at.step % config.save_every == 0
            wants_eval = is_last or at.step % config.eval_every == 0
            wants_log = is_last or at.step % config.log_every == 0 or at.step == 1
            if wants_log or wants_save or wants_eval or self.device.type == "cpu":
                at.loss = float(self.team.mean(loss))  # waits for an accelerator: not every step
                self._check_finite("loss", at.loss)
                self._check_finite("gradient norm", float(grad_norm))
            at.elapsed = clock.elapsed()
            compile_s = self._compile_seconds(step_began)
            if wants_log:
                row = {"step": at.step, "loss": at.loss, "lr": lr, "grad_norm": float(grad_norm)}
                self._log({**row, **self._speed(clock.tokens_per_s()), "elapsed_s": round(at.elapsed, 3)})
                clock.restart()
            if compile_s is not None:
                self._log({"step": at.step, "compile_s": round(compile_s, 2)})
                clock.restart()
            with clock.paused():
                if wants_eval:
                    self._evaluate()
                if config.sample_every and self.sample and at.step % config.sample_every == 0:
                    self._log({"step": at.step, "sample": self._in_eval_mode(self.sample)})
                if wants_save:
                    at.elapsed = clock.elapsed()
                    self._check_weights()
                    saved = self.state.save(self.folder.last, resumable=True)
            if signum and not is_last:
                raise Interrupted(signum, at.step, saved)
        return TrainResult(at.step, at.loss, at.best, at.elapsed, at.metrics, at.best_metrics)

    def train_step(self) -> tuple[Tensor, Tensor, int, float]:
        """One optimizer step, on the mean gradient of ``grad_accum`` batches.

        Returns:
            This process's mean loss, the gradient norm before clipping, the tokens of all processes, and the
            learning rate.
        """
        at, config = self.progress, self.config
        factor = lr_factor(at.step, config.steps, config.schedule, config.warmup, config.lr_floor)
        for group, peak in zip(self.optimizer.param_groups, self.peak_lrs, strict=True):
            group["lr"] = peak * factor
        total, n_tokens = torch.zeros((), device=self.device), 0
        for micro in range(config.grad_accum):
            batch = to_device(self.batches(at.step * config.grad_accum + micro), self.device)
            with (
                self.team.synchronised(self.root, last=micro == config.grad_accum - 1),
                on_a_gpu(self.model, self.device, self.dtype, self.fixed_shapes),
            ):
                with self.autocast():
                    loss = self.root(self.loss_fn, batch)
                (loss / config.grad_accum).backward()
            total += loss.detach() / config.grad_accum
            n_tokens += _first_tensor(batch).numel() * self.team.world.size
        grad_norm = clip_and_step(self.optimizer, config.grad_clip or math.inf)
        if isinstance(grad_norm, DTensor):  # each process has the norm of its share
            grad_norm = grad_norm.full_tensor()
        self.optimizer.zero_grad(set_to_none=True)
        at.step += 1
        return total, grad_norm, n_tokens, config.lr * factor

    def _compile_seconds(self, step_began: float) -> float | None:
        """After the second step of a compiled run: how much longer the first one took, which compiled."""
        if not self.config.compile or len(self._first_steps) == 2:
            return None
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._first_steps.append(time.perf_counter() - step_began)
        return self._first_steps[0] - self._first_steps[1] if len(self._first_steps) == 2 else None

    def _check_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        last = latest(self.folder.path) or self.folder.last
        where = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was saved yet"
        raise DivergedError(
            f"the {what} is {value} at step {self.progress.step}; {where}; "
            f"try a lower lr than {self.config.lr}"
        )

    def _in_eval_mode(self, function: Callable[[nn.Module], Any]) -> Any:
        self.model.eval()
        try:
            with torch.no_grad(), self.autocast():
                return self.root(function)
        finally:
            self.model.train()
            self.team.settle(self.root)

    def _evaluate(self) -> None:
        at = self.progress
        if self.evaluate is None:
            return
        found = self._in_eval_mode(self.evaluate)
        if "val_loss" not in found:
            raise ValueError(f"evaluate must give val_loss, which chooses the best model; it gave {found}")
        # NumPy scalars and one-element tensors become plain Python numbers.
        at.metrics = {name: v.item() if hasattr(v, "item") else v for name, v in found.items()}
        self._check_finite("held-out loss", at.metrics["val_loss"])
        self._log({"step": at.step, **at.metrics})
        if at.best is None or at.metrics["val_loss"] < at.best:
            at.best, at.best_metrics = at.metrics["val_loss"], at.metrics
            self.state.save(self.folder.best, resumable=False)

    def _speed(self, tokens_per_s: float) -> Metrics:
        speed: Metrics = {"tokens_per_s": round(tokens_per_s, 1)}
        if self.peak_flops:
            peak = self.peak_flops * self.team.world.size
            speed["mfu"] = round(self.flops_per_token * tokens_per_s / peak, 4)
        return speed

    def _log(self, row: Metrics) -> None:
        if not self.team.world.is_main:
            return
        self.folder.log(row)
        self.listener(row)
        if self.board:
            for name, value in row.items():
                if name != "step" and isinstance(value, float):
                    self.board.add_scalar(name, value, row["step"])

    def say(self, note: str) -> None:
        """Tell the listener something in words; it does not go into the metrics."""
        if self.team.world.is_main:
            self.listener({"step": self.progress.step, "note": note})

    def _check_weights(self) -> None:
        """Compute the next batch's loss: only there it shows that the last step ruined the weights."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            batch = to_device(self.batches(self.progress.step * self.config.grad_accum), self.device)
            loss = self._in_eval_mode(lambda model: self.loss_fn(model, batch))
            self._check_finite("next loss", float(self.team.mean(loss)))


def optimizer_of(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer | Together:
    """The optimizer that ``config.optimizer`` names; every group's ``lr`` is its peak."""
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw":
        return adamw(model, config.lr, config.weight_decay, betas)
    if config.optimizer == "muon":
        return Together(
            muon_with_adamw(
                model, lr=config.lr, muon_lr=config.muon_lr, betas=betas, weight_decay=config.weight_decay
            )
        )
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    return make_optimizer(groups, config.optimizer, lr=config.lr, betas=betas)


def _first_tensor(batch: Batch) -> Tensor:
    """The ids of a batch, however nested: their number is that of its tokens."""
    if isinstance(batch, Tensor):
        return batch
    return _first_tensor(next(iter(batch.values())) if isinstance(batch, Mapping) else batch[0])


def _tensorboard(path: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the extra: pip install 'ai-learning[tensorboard]'") from None
    return SummaryWriter(str(path / "tensorboard"))


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int | None]]:
    """Note SIGINT and SIGTERM instead of dying, so that the step can be finished; a second SIGINT interrupts.

    Yields:
        A function that gives the first signal's number, or ``None``.
    """
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
