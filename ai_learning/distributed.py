"""Many processes, one training: DDP and FSDP2 around a model that knows nothing of them, and checkpoints.

``torchrun`` starts the processes and tells each its rank in the environment; everything here works on one
process too, so that the training loop has a single path. The processes see one file system.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.tensor import DTensor, distribute_tensor

from .errors import CheckpointError, InputError
from .files import write_text
from .model import BLOCKS

PARALLEL = ("auto", "ddp", "fsdp")
_TIMEOUT = timedelta(minutes=10)  # of a collective: a process that hangs longer than this is lost
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the others, as ``torchrun`` tells it in the environment."""

    rank: int = 0
    """its number over all machines"""
    size: int = 1
    """processes over all machines"""
    local_rank: int = 0
    """its number on this machine: which GPU it takes"""
    launched: bool = False
    """whether ``torchrun`` started it"""
    restarts: int = 0
    """how often this machine's processes were started again"""

    @property
    def is_main(self) -> bool:
        """Rank 0 alone prints, logs and writes single files."""
        return self.rank == 0


def world() -> World:
    """Read the environment; without ``torchrun`` this is the only process."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, size, local_rank = (int(os.environ.get(name, 0)) for name in names)
    return World(rank, size, local_rank, True, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of all processes' ``value``, CPU tensors of one shape; of a single process ``value`` itself."""
    if dist.is_initialized():
        value = value.clone()
        dist.all_reduce(value)
    return value


# Held until the end of the process: where DDP's reducer is the last owner of a gloo group, its destructor
# waits, holding the GIL, for a thread that waits for the GIL.
_groups: list[Any] = []


def leave() -> None:
    """Destroy the process group, so that the process can exit right after.

    A gloo thread needs the GIL to release the tensors of the last exchange. If it gets the GIL only while
    Python is shutting down, it aborts the process ("terminate called without an active exception"): the pause
    lets it run before.
    """
    time.sleep(0.2)
    dist.destroy_process_group()


class PeerLostError(RuntimeError):
    """Another process of the job died or cannot be reached."""

    exit_code = 1


class Team:
    """The processes of one training: how the model is shared and what they tell each other.

    With a single process every method returns at once.

    Args:
        parallel: ``ddp`` (each process holds the whole model; Li et al. 2020), ``fsdp`` (each holds a share
            of every parameter, gradient and moment; Rajbhandari et al. 2020, Zhao et al. 2023), or ``auto``:
            ddp where ``torchrun`` started several processes.
        device: of this process.

    Raises:
        InputError: ``fsdp`` or ``ddp`` without ``torchrun``.
    """

    def __init__(self, parallel: str, device: torch.device) -> None:
        self.world, self.device = world(), device
        if not self.world.launched and parallel != "auto":
            raise InputError(
                f"parallel={parallel!r} needs several processes: start with "
                f"`torchrun --nproc-per-node=2 -m ai_learning.cli …`, or leave it out"
            )
        self.kind = "ddp" if parallel == "auto" else parallel
        self.sharded = self.kind == "fsdp"
        self.distributed = self.world.size > 1 or self.sharded
        self._opened = False

    def __enter__(self) -> "Team":
        if self.world.launched and not dist.is_initialized():
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            # gloo besides nccl: numbers that live on the CPU travel without waiting for the GPU's queue.
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            here, store = self.world, _agents_store(self.world.restarts)
            with peers_in_reach(here, lambda: "nothing was trained yet"):
                dist.init_process_group(
                    backend, store=store, rank=here.rank, world_size=here.size, timeout=_TIMEOUT
                )
            _groups.append(dist.group.WORLD)
            self._opened = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self._opened and kind is None:  # after an error the others may be gone: waiting would hang
            leave()

    # --- the model -----------------------------------------------------------------------------------------

    def wrap(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A module that runs a function of ``model`` where gradients are shared: ``root(function, *args)``.

        Under FSDP the parameters become shares (DTensors) in place, so an optimizer is made after this; each
        block is a unit that is gathered when its turn comes.

        Args:
            model: on the device, the same on every process (rank 0's weights are taken).
            dtype: of the matrix products: FSDP gathers the weights in it; sums of gradients stay float32.
        """
        root = _Root(model)
        if not self.world.launched:
            return root
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor.detach(), src=0)
        if not self.sharded:
            if self.world.size == 1:
                return root
            with warnings.catch_warnings():  # torch 2.13 has a new name for it, 2.11 only this one
                warnings.filterwarnings("ignore", message=".*broadcast_buffers")
                return nn.parallel.DistributedDataParallel(
                    root, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        # Autocast decides what is computed in bfloat16; here only what travels is halved.
        low = dtype if dtype != torch.float32 else None
        policy = MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=torch.float32 if low else None, cast_forward_inputs=False
        )
        mesh = dist.device_mesh.init_device_mesh(self.device.type, (self.world.size,))
        for module in list(model.modules()):
            if isinstance(module, BLOCKS):
                fully_shard(module, mesh=mesh, mp_policy=policy)
        fully_shard(root, mesh=mesh, mp_policy=policy)
        return root

    def synchronised(self, root: nn.Module, last: bool) -> AbstractContextManager:
        """The context of one of several batches whose gradients add up: only the last exchanges them."""
        if self.sharded:
            root.set_requires_gradient_sync(last)  # type: ignore[operator]
        elif isinstance(root, nn.parallel.DistributedDataParallel) and not last:
            return root.no_sync()
        return nullcontext()

    def settle(self, root: nn.Module) -> None:
        """After a forward pass without a backward pass: free the whole parameters that FSDP has gathered."""
        if self.sharded:
            root.reshard()  # type: ignore[operator]

    # --- numbers -------------------------------------------------------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """Mean over the processes; NaN anywhere is NaN everywhere."""
        if self.world.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world.size

    def highest(self, value: int) -> int:
        """The largest ``value`` of all processes (exchanged on the CPU, which does not wait for the GPU)."""
        if self.world.size == 1:
            return value
        tensor = torch.tensor(value)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise one process's ``InputError`` (rank 0's folder is in use) in all, so that none waits."""
        error = None
        try:
            yield
        except InputError as caught:
            error = caught
        if self.world.size > 1:
            errors: list[InputError | None] = [None] * self.world.size
            dist.all_gather_object(errors, error)
            error = next((e for e in errors if e is not None), None)
        if error is not None:
            raise error

    def from_main(self, value: T) -> T:
        """Rank 0's value."""
        if self.world.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def union(self, values: dict[str, T]) -> dict[str, T]:
        """One dict with the entries of every process."""
        if self.world.size == 1:
            return values
        found: list[dict[str, T]] = [{} for _ in range(self.world.size)]
        dist.all_gather_object(found, values)
        return {name: value for part in found for name, value in part.items()}

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.highest(0)

    def whole(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """A nested dict with every share gathered into a whole tensor on rank 0's CPU; elsewhere dropped."""

        def gather(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: gather(part) for name, part in value.items()}
            if isinstance(value, DTensor):
                full = value.full_tensor()
                return full.cpu() if self.world.is_main else None
            return value

        return {name: gather(value) for name, value in tensors.items()}


def _agents_store(restarts: int) -> dist.Store:
    """The store through which the processes find each other, free of what an earlier attempt left there.

    torchrun keeps one store over restarts, old addresses included. On one machine the attempt's number keeps
    them apart; on several each machine counts for itself, and only torchrun can make a fresh store.

    Raises:
        InputError: several machines, restarts allowed, and the store kept: a restart would wait for ever.
    """
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1
    if kept and several and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0:
        raise InputError(
            "restarts on several machines need a fresh store each time: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every machine, or --max-restarts=0"
        )
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    here = world()
    store = dist.TCPStore(
        host, port, here.size, is_master=here.is_main and not kept, timeout=_TIMEOUT, multi_tenant=True
    )
    return dist.PrefixStore(f"attempt-{restarts}" if not several else "attempt", store)


class _Root(nn.Module):
    """Calls any function of the model inside ``forward``, since the hooks of DDP and FSDP act there."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.model, *args)


# What PyTorch says when the other end of a connection is gone; it has no exception of its own for that.
_LOST = re.compile(r"(?i)gloo|nccl|socket|connection|by peer|timed out|tcpstore|failed to (recv|send)")


@contextmanager
def peers_in_reach(here: World, state: Callable[[], str]) -> Iterator[None]:
    """Raise ``PeerLostError`` where communication fails in the ``with`` block.

    Args:
        here: this process.
        state: gives the end of the message: what was saved, and how to go on.

    Raises:
        PeerLostError: another process is gone.
    """
    try:
        yield
    except (RuntimeError, dcp.CheckpointException) as error:
        if here.size == 1 or isinstance(error, PeerLostError) or not _LOST.search(str(error)):
            raise
        raise PeerLostError(f"a process of this job is gone; {state()}") from error


def first_to_say(message: str) -> bool:
    """Whether this process is the first of its job to print ``message``: a shared error is printed once."""
    here = world()
    if here.size == 1:
        return True
    key = f"said/{here.restarts}/{hashlib.sha256(message.encode()).hexdigest()[:16]}"
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=3),
        )
        return store.add(key, 1) == 1
    except (RuntimeError, KeyError, ValueError):  # nobody left to ask
        return True


# --- distributed checkpoints ------------------------------------------------------------------------------
#
# checkpoints/latest            the name of the newest whole one, written last and atomically
# checkpoints/step-00000100/    tensors, each process its share (torch.distributed.checkpoint)
#              state.json       the plain values, and checksums of all files


def latest(folder: Path) -> Path | None:
    """The newest whole distributed checkpoint of the run in ``folder``."""
    pointer = folder / "checkpoints" / "latest"
    with suppress(FileNotFoundError):
        path = folder / "checkpoints" / pointer.read_text(encoding="utf-8").strip()
        if _is_whole(path):
            return path
        raise CheckpointError(f"{pointer} names {path.name}, which is not there or not whole")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """The run's distributed checkpoints, newest first: the one that ``latest`` names, and whole older ones.

    A newer one than ``latest`` names is left out: the run died while writing it. The one that is named may be
    damaged.
    """
    home = folder / "checkpoints"
    try:
        newest = home / (home / "latest").read_text(encoding="utf-8").strip()
        step_of(newest)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise CheckpointError(f"{home}/latest is damaged: {error}") from None
    older = (path for path in home.glob("step-*") if path.name < newest.name and _is_whole(path))
    return [newest, *sorted(older, reverse=True)]


def _is_whole(path: Path) -> bool:
    return (path / ".metadata").exists() and (path / "state.json").exists()


def step_of(path: Path) -> int:
    """The step after which a distributed checkpoint was saved, from its folder's name."""
    return int(path.name.removeprefix("step-"))


def save_shards(
    team: Team,
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    previous: Path | None = None,
) -> Path:
    """Write a distributed checkpoint; after a crash at any moment ``latest`` still names the one before.

    Args:
        team: every process of it calls this.
        folder: the run's folder.
        step: the step that was finished; it names the checkpoint.
        tensors: by name; shares (DTensors) are written by their owners, tensors that all hold only once.
        state: plain values for ``state.json``; those of rank 0 are written.
        previous: an older checkpoint to keep; all others are deleted in the end.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission).
    """
    home = folder / "checkpoints"
    path = home / f"step-{step:08d}"
    if team.world.is_main and path.exists():  # left by a run that died while writing it, or damaged
        shutil.rmtree(path)
    team.barrier()
    try:
        with team.agreed(), _told_in_one_line(path):
            dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(path))
            own = path.glob(f"__{team.world.rank}_*.distcp")  # each looks at what it wrote itself
            own_sums = {file.name: _crc32(file) for file in own}
        sums = team.union(own_sums)
        with team.agreed(), _told_in_one_line(path):
            if team.world.is_main:
                sums[".metadata"] = _crc32(path / ".metadata")
                write_text(path / "state.json", json.dumps(_sealed({**state, _SUMS: sums})))
                write_text(home / "latest", path.name + "\n")
    except CheckpointError:
        if team.world.is_main:
            shutil.rmtree(path, ignore_errors=True)
        raise
    if team.world.is_main:
        for old in set(home.glob("step-*")) - {path, previous}:
            shutil.rmtree(old, ignore_errors=True)
    team.barrier()
    return path


@contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into a ``CheckpointError``; a lost process stays what it is."""
    try:
        yield
    except (OSError, RuntimeError, dcp.CheckpointException) as error:
        if _LOST.search(_last_line(error)):
            raise
        raise CheckpointError(
            f"cannot write {path}: {_last_line(error)}; the previous checkpoint is untouched"
        ) from error


_SUMS, _SEAL = "checksums", "crc32"  # keys in state.json: checksums of the other files, and its own


def _sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` with a checksum of its other entries."""
    plain = {name: value for name, value in state.items() if name != _SEAL}
    return {**plain, _SEAL: f"{zlib.crc32(json.dumps(plain).encode()):08x}"}


def _crc32(file: Path) -> str:
    """CRC-32 of a file's bytes, as eight hexadecimal digits."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def read_state(path: Path) -> dict[str, Any]:
    """The plain values of a distributed checkpoint.

    Raises:
        CheckpointError: damaged.
    """
    try:
        state = dict(json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}/state.json is damaged: {error}") from None
    if _SEAL in state and _sealed(state) != state:  # older ones have none
        raise CheckpointError(f"{path}/state.json is damaged: its checksum does not match")
    return state


def check_shards(team: Team, path: Path) -> None:
    """Compare the files with their checksums, which reading them does not: a flipped bit is a wrong weight.

    Args:
        team: every process of it calls this, and reads its share of the files.
        path: the checkpoint's folder; an old one that has no checksums passes.

    Raises:
        CheckpointError: damaged, or not whole; on every process.
    """
    with team.agreed():
        if not _is_whole(path):
            raise CheckpointError(f"{path} is not there or not whole")
        sums = sorted(read_state(path).get(_SUMS, {}).items())
        for name, expected in sums[team.world.rank :: team.world.size]:
            try:
                found = _crc32(path / name)
            except OSError as error:
                raise CheckpointError(f"cannot read {path / name}: {error.strerror}") from None
            if found != expected:
                raise CheckpointError(f"{path / name} is damaged: its checksum does not match")


def load_shards(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill ``tensors`` in place, whatever number of processes wrote them and read them.

    Raises:
        CheckpointError: damaged, or of other shapes.
    """
    reader = _SafeReader(path)
    try:
        index = reader.read_metadata().state_dict_metadata  # read first, for an error that names it
        for name, tensor in tensors.items():
            if getattr(index.get(name), "size", None) != tensor.size():
                raise ValueError(f"it has no {name} of shape {tuple(tensor.size())}")
        with warnings.catch_warnings():  # reading in a single process is meant
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=reader)
    except (dcp.CheckpointException, pickle.UnpicklingError, EOFError, *_DAMAGE) as error:
        if _LOST.search(str(error)):
            raise
        raise CheckpointError(f"cannot read {path}: {_last_line(error)}") from error


# What reading a damaged index can raise.
_DAMAGE = (RuntimeError, ValueError, OSError, KeyError, AttributeError, TypeError, IndexError, AssertionError)


def _last_line(error: BaseException) -> str:
    """The reason in one line; of a ``CheckpointException``, which carries tracebacks, the first failure's."""
    for failure, _ in getattr(error, "failures", {}).values():
        return _last_line(failure)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join((str(error).strip() or type(error).__name__).splitlines()[-1].split())


class _SafeReader(dcp.FileSystemReader):
    """Reads the index without executing anything: PyTorch's own reader would run what a pickle asks for."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with self.fs.create_stream(self._get_metadata_path(kwargs.get("rank")), "rb") as file:
            metadata: Metadata = _IndexUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Loads only the types that an index of tensors consists of, and refuses all others."""

    _names = frozenset(
        {
            *(f"torch.distributed.checkpoint.metadata.{name}" for name in (
                "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
                "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
            )),
            "torch.distributed.checkpoint.filesystem._StorageInfo",
            "torch.Size", "torch.serialization._get_layout",
            "pathlib.Path", "pathlib.PosixPath", "pathlib._local.PosixPath",
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" == "builtins.getattr":  # Python 3.11.0 to 3.11.3 name members of an Enum so
            return _member
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and f"{module}.{name}" not in self._names:
            raise pickle.UnpicklingError(f"it asks to run code ({module}.{name})")
        return super().find_class(module, name)


def _member(kind: Any, name: str) -> Any:
    """``getattr`` for members of an ``Enum`` only, which is all that an index needs it for."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise pickle.UnpicklingError(f"it asks to run code ({kind!r}.{name})")
    return kind[name]


def spread(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in the form of ``like``: sharded or whole as that is, on its device, of its dtype."""
    full = full.to(like.device, like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements)
    return full
