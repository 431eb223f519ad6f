"""The state of a training run: how it is saved in the run's folder, and restored from there.

Besides the weights it holds the optimizer's state, the random state, the step and the metrics. Batches are a
function of the step, so nothing else is needed to find the position in the data. One process writes
``last.pt``; several write distributed checkpoints on the way, which open on any number of processes.
"""

import json
import math
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint, model_config, previous_path, save_checkpoint
from .distributed import (
    Team,
    check_shards,
    checkpoints,
    load_shards,
    read_state,
    save_shards,
    spread,
    step_of,
    world,
)
from .errors import CheckpointError, InputError
from .optim import Together
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .train import TrainConfig

# Fields of TrainConfig that may differ between a run and its continuation: they change no weight.
_FREE_FIELDS = {
    "eval_every", "save_every", "sample_every", "log_every", "device", "compile", "checkpoint_activations",
    "parallel", "tensorboard",
}  # fmt: skip


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    """optimizer steps taken"""
    loss: float = math.nan
    """training loss of the last step"""
    best: float | None = None
    """lowest held-out loss"""
    metrics: dict[str, Any] = field(default_factory=dict)
    """held-out metrics, as last evaluated"""
    best_metrics: dict[str, Any] = field(default_factory=dict)
    """held-out metrics of the weights in ``best.pt``"""
    elapsed: float = 0.0
    """seconds, summed over interruptions"""


@dataclass
class RunState:
    """Everything that a run is made of, and its saving and restoring.

    Attributes:
        model: the model in training; under FSDP each process holds a share of its parameters.
        optimizer: of the model's parameters.
        config: how the model is trained.
        folder: the run's folder.
        team: the processes of the run.
        device: this process's device.
        identity: what else decides the weights; a run is resumed only where it is the same.
        extra: what to add to every checkpoint.
        progress: how far the run has come.
        notes: messages for the user that ``start`` leaves.
        shards: the last distributed checkpoint that is known to be good.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | Together
    config: "TrainConfig"
    folder: RunFolder
    team: Team
    device: torch.device
    identity: dict[str, Any]
    extra: dict[str, Any]
    progress: Progress = field(default_factory=Progress)
    notes: list[str] = field(default_factory=list)
    shards: Path | None = None

    def save(self, path: Path, resumable: bool) -> Path:
        """Write a checkpoint.

        Args:
            path: the file; many processes write a folder of shards instead until the last step.
            resumable: with the optimizer's and the random state, not only the weights.

        Returns:
            Where the checkpoint is.
        """
        at = self.progress
        state: dict[str, Any] = {
            "step": at.step,
            "best_val_loss": at.best,
            "train_config": asdict(self.config),
            "best_metrics": at.best_metrics,
            "identity": self.identity,
            **self.extra,
        }
        if not resumable:
            self._write(path, state)
            return path
        state |= {"loss": at.loss, "metrics": at.metrics, "elapsed_s": at.elapsed}
        # Batches are a function of the seed and this number: the whole position in the data.
        state["next_batch"] = at.step * self.config.grad_accum
        state["world_size"] = self.team.world.size
        if self.team.distributed:
            plain = {**state, "config": asdict(model_config(self.model))}
            tensors = {**self._tensors(), **_random_state(self.device, self._rank_key)}
            self.shards = save_shards(
                self.team, self.folder.path, at.step, tensors, plain, previous=self.shards
            )
            if at.step < self.config.steps:
                return self.shards
        state["optimizer"] = self.optimizer.state_dict()
        state["rng"] = _random_state(self.device)
        self._write(path, state)
        return path

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        """One file with whole tensors, by rank 0."""
        weights = self.model.state_dict()
        if self.team.distributed:
            weights, state = self.team.whole(weights), self.team.whole(state)
        with self.team.agreed():
            if self.team.world.is_main:
                save_checkpoint(self.model, path, state_dict=weights, **state)

    @property
    def _rank_key(self) -> str:
        return f"rng.{self.team.world.rank}."

    def _tensors(self) -> dict[str, Tensor]:
        """Weights and optimizer state by name, not copied: to be saved, or to be overwritten in place."""
        aliases = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        aliases -= {name for name, _ in self.model.named_parameters()}  # tied weights stand once
        tensors = {
            f"model.{name}": value for name, value in self.model.state_dict().items() if name not in aliases
        }
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer.{number}.{name}": v for name, v in values.items() if isinstance(v, Tensor)
            }
        return tensors

    def start(self, resume: bool) -> None:
        """Begin a new run, or restore the one that the folder holds.

        The newest of ``last.pt`` and the distributed checkpoints is taken; if it is damaged, the one before,
        with a warning.

        Raises:
            InputError: the folder holds a run and ``resume`` is off, or that run has other settings.
            CheckpointError: no checkpoint in the folder can be read.
        """
        file, shards = self.folder.last, checkpoints(self.folder.path)
        has_file = file.exists() or previous_path(file).exists()
        has_file, shards = self.team.from_main((has_file, shards))
        if not has_file and not shards:  # also what is left of a run killed before its first checkpoint
            self.folder.rewind(-1)
            return
        if not resume:
            raise _taken(self.folder.path)
        checkpoint: dict[str, Any] = {}
        if has_file:
            try:
                checkpoint = load_checkpoint(file, "cpu" if self.team.distributed else self.device)
            except CheckpointError as error:
                if not shards:
                    raise
                has_file = False
                self._warn(f"{error}; using {shards[0]}")
        newer = [path for path in shards if step_of(path) > checkpoint.get("step", -1)]
        for number, path in enumerate(newer):
            try:
                check_shards(self.team, path)
                self._resume_from_shards(path)
                return
            except CheckpointError as error:
                older = newer[number + 1] if number + 1 < len(newer) else file if has_file else None
                if older is None:
                    raise
                self._warn(f"{error}; using the previous one, {older}")
                self.notes.clear()
        self._resume_from_file(checkpoint)

    def _warn(self, message: str) -> None:
        if self.team.world.is_main:
            warnings.warn(message, stacklevel=3)

    def _resume_from_file(self, checkpoint: dict[str, Any]) -> None:
        if "optimizer" not in checkpoint:
            raise InputError(f"{self.folder.last} cannot be resumed: it holds weights only")
        self._check_same_run(checkpoint, self.folder.last)
        weights, optimizer = checkpoint["state_dict"], checkpoint["optimizer"]
        if self.team.distributed:
            self._allocate_optimizer_state()
            own = self.model.state_dict()
            weights = {name: spread(value, own[name]) for name, value in weights.items()}
            like = self.optimizer.state_dict()["state"]
            for number, values in optimizer["state"].items():
                for name, value in values.items():
                    if isinstance(value, Tensor):
                        values[name] = spread(value, like[number][name])
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)
        rng = {name: state.cpu() for name, state in checkpoint["rng"].items()}
        self._go_on(checkpoint, rng if self.team.world.size == checkpoint.get("world_size", 1) == 1 else None)

    def _resume_from_shards(self, path: Path) -> None:
        state = read_state(path)
        self._check_same_run(state, path)
        self._allocate_optimizer_state()
        same_ranks = state["world_size"] == self.team.world.size
        rng = _random_state(self.device, self._rank_key) if same_ranks else {}
        load_shards(path, {**self._tensors(), **rng})
        rng = {name.removeprefix(self._rank_key): value for name, value in rng.items()}
        self.shards = path
        self._go_on(state, rng if same_ranks else None)

    def _check_same_run(self, saved: dict[str, Any], path: Path) -> None:
        # Through JSON, as distributed checkpoints are: tuples become lists.
        config = model_config(self.model)
        if _plain(_as_now(saved["config"], type(config))) != _plain(asdict(config)):
            raise InputError(f"{path} is of a model with another config: resume with the run's own")
        # A checkpoint from before a field existed was made as its default says.
        old = _plain({**asdict(type(self.config)()), **saved["train_config"], **saved["identity"]})
        new = _plain({**asdict(self.config), **self.identity})
        old |= {
            name: {**new[name], **part}
            for name, part in old.items()
            if isinstance(part, dict) and new.get(name)
        }
        changed = [name for name in new if name not in _FREE_FIELDS and old.get(name) != new[name]]
        if "steps" in changed and new["steps"] > old["steps"]:
            changed.remove("steps")
            self.notes.append(
                f"going on to step {new['steps']}, not {old['steps']}: the learning rate follows the new "
                f"total from here (schedule={new['schedule']})"
            )
        if changed:
            name = changed[0]
            raise InputError(
                f"the run in {self.folder.path} was started with {name}={old.get(name)}, not {new[name]}: "
                "resume it unchanged, or start another"
            )

    def _allocate_optimizer_state(self) -> None:
        """Make the optimizer allocate its state, which it does at its first step: one with a rate of 0."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _has_best(self) -> bool:
        return self.folder.best.exists() or previous_path(self.folder.best).exists()

    def _go_on(self, saved: dict[str, Any], rng: dict[str, Tensor] | None) -> None:
        at = self.progress
        at.step, at.best = saved["step"], saved["best_val_loss"]
        at.loss, at.metrics = saved["loss"], saved["metrics"]
        at.best_metrics, at.elapsed = saved["best_metrics"], saved["elapsed_s"]
        if at.step == self.config.steps:
            self.notes.append(
                f"the run was finished at step {at.step}; to go on from there, give more --steps"
            )
        elif at.best is not None and not self.team.from_main(self._has_best()):  # only last.pt was moved here
            at.best, at.best_metrics = None, {}
            self.notes.append(f"{self.folder.best} is gone: the best weights are chosen from here on")
        if rng is None:  # saved by another number of processes: dropout cannot go on where it was
            torch.manual_seed(seed_of(self.config.seed, self.team.world.rank, at.step))
        else:
            torch.set_rng_state(rng["cpu"])
            if "cuda" in rng and self.device.type == "cuda":
                torch.cuda.set_rng_state(rng["cuda"], self.device)
        self.folder.rewind(at.step)


def seed_of(seed: int, rank: int, step: int = 0) -> int:
    """The seed of dropout: another on each process; rank 0's, at step 0, is the run's ``seed`` itself."""
    return seed + 1_000_003 * rank + 7_919 * step


def _as_now(saved: dict[str, Any], config: type[Any]) -> dict[str, Any]:
    """A saved config, completed by the defaults of fields that are newer than the checkpoint."""
    try:
        return asdict(config(**saved))
    except (TypeError, ValueError):  # of another kind of model
        return saved


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(values)))


def _random_state(device: torch.device, prefix: str = "") -> dict[str, Tensor]:
    states = {f"{prefix}cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{prefix}cuda"] = torch.cuda.get_rng_state(device)
    return states


def check_is_free(path: Path) -> None:
    """Refuse what `RunState.start` would, but before long preparations: a folder that holds a run, or a file.

    Raises:
        InputError: the folder holds a run, or is a file.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, not a folder: choose another")
    if world().launched:  # torchrun may have restarted this job, which then resumes
        return
    file = RunFolder(path).last
    if file.exists() or previous_path(file).exists() or checkpoints(path):
        raise _taken(path)


def _taken(path: Path) -> InputError:
    return InputError(f"{path} already holds a run: --resume it, or choose another folder")
