"""The memory of a training step, predicted before it starts: weights, gradients, optimizer, activations.

Weights, gradients and optimizer state follow from the parameters. The activations that the forward pass keeps
for the backward pass are measured: one pass of the model over a short batch, scaled to the size of the real
one. So the prediction holds for every architecture, adapter and quantization without a formula for each.
"""

import ctypes
import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import gpt_config
from .kernels import cpu_attention, gelu, row_layers
from .kernels.loops import Loops, ready
from .loss import held_bytes
from .model import Block

# Bytes of optimizer state for a parameter: two moments in fp32, or in 8 bits and a scale for every 256.
_STATE = {"adamw": 8.0, "paged_adamw": 8.0, "muon": 8.0}  # muon: an upper bound, its matrices need half
_STATE_8BIT = 2 + 2 * 4 / 256
# What glibc holds beside the blocks in use, as fitted to runs of `finetune` from 1 M to 40 M parameters. An
# aligned block does not fit into the hole that one of its size has left: what comes and goes leaves holes
# (their share is that of a block's widest states), and so do kept states between them where adapters compute
# by PyTorch's own operations.
_UNUSED, _UNUSED_OF_WORKING, _UNUSED_OF_RECOMPUTED = 4 * 2**20, 1.2, 0.2
_UNUSED_SHARE_OF_MANY = 0.5
_SHARE_ADAPTERS, _SHARE_FROZEN, _SHARE_DROPOUT, _SHARE_16_BIT = 0.05, 0.35, 0.72, 0.8
# oneDNN keeps what it compiled for each shape of a 16-bit product, each time a little less that is new: bytes
# of the first and the power of their number, under autocast (attention's too), of a base in 16 bits, and of
# 4-bit weights alone (PyTorch 2.13's oneDNN; 2.11's keeps some 150 MB more of the latter).
# Where freed memory is given back, no holes lie around these: bytes of all, and of each.
_ONEDNN, _ONEDNN_NARROW, _ONEDNN_LAYERS = (57e6, 0.53), (57e6, 0.66), (32e6, 0.67)
_ONEDNN_ALONE, _ONEDNN_NARROW_ALONE, _ONEDNN_LAYERS_ALONE = (72e6, 6e6), (0, 6e6), (12e6, 4.7e6)
SIXTEEN_BITS = (torch.bfloat16, torch.float16)
_LOOPS_OF_A_STEP = ("unnormalised_softmax", "running_softmax", "sum_squares", "adamw")
_SMALL = 4096  # tensors below this size keep fp32 moments in the 8-bit optimizers


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each kind, and their peak: the most that is held at one time."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    unused: int
    """held by the C library between blocks in use; a GPU's figures do not count it"""
    peak: int

    def lines(self) -> list[tuple[str, int]]:
        """(name, bytes) of each kind, for a report."""
        return [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            *([("unused", self.unused)] if self.unused else []),
        ]


def plan_memory(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    probe: Any,
    *,
    tokens: int,
    targets: int,
    optimizer: str = "adamw",
    grad_accum: int = 1,
    recompute: bool = False,
    context: Callable[[], AbstractContextManager] = nullcontext,
    shapes: int = 1,
) -> MemoryPlan:
    """The memory that training needs on the model's device.

    Args:
        model: as it will be trained, adapters and all; put in training mode for the probe and back.
        loss_fn: as for ``train``.
        probe: a short batch; its first tensor holds the ids.
        tokens: positions in the largest batch.
        targets: positions in it that the output head is asked for.
        optimizer: by ``adapters.make_optimizer``'s names.
        grad_accum: batches before each optimizer step; from 2 on, gradients and activations coexist.
        recompute: each block keeps its input only; on a CPU, after `give_back_freed_memory`.
        context: makes what the forward pass runs in (``device.autocast``).
        shapes: how many shapes the batches will have; oneDNN compiles its 16-bit products for each.
    """
    _warm_up(next(model.parameters()).device)
    weights = _bytes_of([*model.parameters(), *model.buffers()])
    weights += sum(_bytes_of(_state_tensors(module)) for module in model.modules())
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = _bytes_of(trained)
    state = sum(_state_bytes(p, optimizer) for p in trained)

    config = gpt_config(model)
    width, head = config.n_embd, config.vocab_size * config.n_embd * 4
    kept, casts = _kept_per_token(model, loss_fn, probe, context)
    on_cpu = next(model.parameters()).device.type == "cpu"
    with context():
        cast = torch.is_autocast_enabled("cpu") and on_cpu
    narrow = on_cpu and next(model.parameters()).dtype in SIXTEEN_BITS
    share = _share_between_kept(model, cast)
    # In the backward pass of one block: the gradients of its widest states and of its input.
    wide = 4 * (2 * config.mlp_width + 3 * width)
    working: float = wide
    holes = _UNUSED_OF_WORKING * wide + share * kept  # for each token
    if recompute:  # the loss finds the blocks' inputs only; what a block computes comes back in its own turn
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        in_one = kept / max(1, len(blocks))
        working += in_one
        kept = len(blocks) * 4 * width
        if blocks and not max(blocks[0].parameters(), key=Tensor.numel).requires_grad:
            # Adapters: of the two wide gradients, the second takes the place of states that the first freed.
            working -= 4 * config.mlp_width
        share = min(share, _SHARE_FROZEN)  # with `give_back_freed_memory`
        holes = (_UNUSED_OF_RECOMPUTED + share) * wide + share * in_one
    trains_head = any(p.numel() * 4 == head and p.dim() == 2 for p in trained)
    table: Any = model.lm_head  # adapters on it need the gradient of its whole weight, too
    needs_gradient = any(p.requires_grad for p in table.parameters())
    like = torch.empty(0, dtype=next(model.parameters()).dtype, device=next(model.parameters()).device)
    logits = held_bytes(targets * config.vocab_size, needs_gradient, like)
    activations = round(tokens * kept + max(logits, tokens * working) + 4 * targets * width) + casts
    if needs_gradient and not trains_head:
        activations += 3 * head  # the update, the head with it, and the gradient of that
    # The head's gradient is made with the loss; a tied embedding's is added to it at the very end.
    at_loss = activations + (head if trains_head else 0)
    at_end = gradients + (head if trains_head and config.tie_weights else 0)
    moving = gradients + activations if grad_accum > 1 else max(at_loss, at_end)
    unused = 0
    if on_cpu:
        unused = round(min(_UNUSED, activations) + tokens * holes)
        if grad_accum > 1 and not recompute:
            # Gradients that wait for the next batch lie between what is freed and asked for again.
            unused = max(unused, round(_UNUSED_SHARE_OF_MANY * (activations + gradients + state)))
        if trains_head:
            unused += 2 * head  # autograd copies what the loss still holds
        if cast or narrow or _multiplies_in_16_bits(model):
            base, each = _ONEDNN_ALONE if cast else _ONEDNN_NARROW_ALONE if narrow else _ONEDNN_LAYERS_ALONE
            first, power = _ONEDNN if cast else _ONEDNN_NARROW if narrow else _ONEDNN_LAYERS
            unused += round(base + each * shapes if recompute else first * shapes**power)
        if cast:
            unused += round(2.5 * head)  # its cast, and what oneDNN makes of that
    return MemoryPlan(weights, gradients, state, activations, unused, weights + state + moving + unused)


def _warm_up(device: torch.device) -> None:
    """Load what a first step loads in any case, so that it is not taken for the model's memory.

    That is 25 MB of PyTorch with the first optimizer step, and 50 with a compiled loop (140 more, numba's,
    where this machine has not compiled the loops yet).
    """
    p = torch.zeros(1, device=device, requires_grad=True)
    p.grad = torch.zeros_like(p)
    torch.optim.AdamW([p]).step()
    if device.type == "cpu":
        loops = Loops("kernels.training_kernels")
        ready(*(getattr(loops, name) for name in _LOOPS_OF_A_STEP))
        cpu_attention.has_loops()
        gelu.load_loops()
        row_layers.has_loops()


def _bytes_of(tensors: Any) -> int:
    """Bytes of the storages, each counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _state_tensors(module: nn.Module) -> Iterator[Tensor]:
    """What a 4-bit layer holds beside its parameters."""
    state = getattr(module, "state", None)
    if state is not None:
        yield from (value for value in vars(state).values() if isinstance(value, Tensor))


def _state_bytes(parameter: Tensor, optimizer: str) -> int:
    n = parameter.numel()
    if optimizer in _STATE or n < _SMALL:
        return 8 * n
    return round(_STATE_8BIT * n)


def _share_between_kept(model: nn.Module, cast: bool) -> float:
    """Unused memory between the activations that are kept, as a share of those."""
    if _multiplies_in_16_bits(model) and not cast:
        return _SHARE_16_BIT
    adapters = [a for module in model.modules() for a in getattr(module, "adapters", {}).values()]
    if any(getattr(adapter, "dropout", 0) for adapter in adapters):
        return _SHARE_DROPOUT
    layers = [
        m for b in model.modules() if isinstance(b, Block) for n, m in b.named_modules() if "base" not in n
    ]
    frozen = any(isinstance(m, nn.Linear) and not m.weight.requires_grad for m in layers)
    return _SHARE_FROZEN if frozen or cast else _SHARE_ADAPTERS if adapters else 0.0


def _multiplies_in_16_bits(model: nn.Module) -> bool:
    kinds = (getattr(module, "compute_dtype", None) for module in model.modules())
    return any(kind in SIXTEEN_BITS for kind in kinds)


def _kept_per_token(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    probe: Any,
    context: Callable[[], AbstractContextManager],
) -> tuple[float, int]:
    """Bytes that autograd keeps for the backward pass.

    Returns:
        Bytes for each position of the probe, and bytes of weights that autocast has cast, which do not grow
        with the batch.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    matrices: set[int] = set()  # in 16 bits
    alive: list[Tensor] = []  # else a freed storage's address could come again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage.nbytes()
            if tensor.dim() == 2 and tensor.dtype in SIXTEEN_BITS:
                matrices.add(storage._cdata)
            alive.append(tensor)
        return tensor

    was_training = model.training
    devices = [torch.cuda.current_device()] if next(model.parameters()).is_cuda else []
    with (
        torch.random.fork_rng(devices),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        model.train()
        with context():
            loss = loss_fn(model, probe)
    loss.backward()  # lets the saved tensors go, and warms up what a first step would allocate
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    head = sum(size for size in storages.values() if size == _head_bytes(model))
    # Autocast's copies of frozen weights are kept, too, and do not grow with the batch.
    narrow = {2 * p.numel() for p in model.parameters() if p.dim() == 2}
    casts = sum(size for key, size in storages.items() if size in narrow and key in matrices)
    return (sum(storages.values()) - head - casts) / probe[0].numel(), casts


def _head_bytes(model: nn.Module) -> int:
    """Of the head's gradient, which the loss keeps: it does not grow with the batch."""
    config = gpt_config(model)
    return int(config.vocab_size * config.n_embd * 4)


class PeakMemory:
    """The peak of memory inside a ``with`` block, in ``bytes``, above what was held at ``start``.

    On a GPU it is what PyTorch allocated; on a CPU the process's resident set (Linux; ``None`` elsewhere).

    Example:
        >>> with PeakMemory() as peak:
        ...     x = torch.ones(2**22)
        >>> peak.bytes is None or peak.bytes >= 0
        True
    """

    def __init__(self, device: torch.device | str = "cpu", start: int | None = None) -> None:
        self.device = torch.device(device)
        self.start = start
        self.bytes: int | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = 0
            return self
        if self.start is None:
            self.start = resident_bytes()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the mark begins anew
        except OSError:
            self.start = None
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
            return
        mark = _status("VmHWM")
        if mark is not None and self.start is not None:
            self.bytes = max(0, mark - self.start)


def resident_bytes() -> int | None:
    """Resident memory of this process, without what it has freed; ``None`` where the system does not say."""
    gc.collect()
    # Return freed memory first: what is allocated next would reuse it, and seem to need none.
    _glibc("malloc_trim", 0)
    return _status("VmRSS")


def give_back_freed_memory() -> None:
    """Let glibc give every freed block of 1 MB or more back to the system at once, from now on.

    By default glibc keeps freed blocks of up to 32 MB, in pieces that the next allocation may not fit into:
    a process that recomputed its activations block by block held 410 MB, of which 178 were in use; after this
    call it held 202. The price is time: fresh memory made those steps a third slower.
    """
    _glibc("mallopt", -3, 2**20)  # M_MMAP_THRESHOLD


def _glibc(function: str, *arguments: int) -> None:
    """Call a function of glibc's; nothing where there is another C library."""
    if sys.platform == "linux" and (found := getattr(ctypes.CDLL(None), function, None)) is not None:
        found(*arguments)


def _status(name: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def megabytes(size: int) -> str:
    """A number of bytes for people: 12.3 MB, 4.56 GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
