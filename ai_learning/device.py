"""Where a model runs, how precisely and how fast: devices, dtypes, FLOPs, recomputed and compiled blocks."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint as recomputed

from .checkpoint import gpt_config
from .distributed import World
from .errors import InputError
from .model import BLOCKS, GPT, GPTConfig, matrix_params


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
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        last = "" if count == 1 else f":0 to {device.type}:{count - 1}"
        raise InputError(f"device {name!r} is not available here; use {device.type}{last}")
    # The only one goes by its type: PyTorch's files are not read onto "cpu:0".
    return device if device.type == "cuda" else torch.device(device.type)


def own_device(device: torch.device, here: World) -> torch.device:
    """The GPU of this process, where ``torchrun`` started one process for each.

    Raises:
        InputError: more processes than GPUs.
    """
    if device.type != "cuda" or device.index is not None or not here.launched:
        return device
    if here.local_rank >= torch.cuda.device_count():
        raise InputError(
            f"more processes than this machine's {torch.cuda.device_count()} GPUs: lower --nproc-per-node"
        )
    return torch.device("cuda", here.local_rank)


def pick_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """The dtype of matrix products: ``auto`` is bfloat16 on a GPU that has it, float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> Callable[[], AbstractContextManager]:
    """A function that makes the context in which PyTorch computes products in ``dtype``."""
    if dtype == torch.float32:
        return nullcontext
    return lambda: torch.autocast(device.type, dtype=dtype)


def machine_memory() -> int | None:
    """Bytes of main memory and swap that this process may use; ``None`` where the system does not say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # a container's, cgroups v2 and v1
        with suppress(OSError, ValueError):
            total = min(total, int((Path("/sys/fs/cgroup") / limit).read_text()))
    with suppress(OSError, ValueError, IndexError):
        total += 1024 * int(Path("/proc/meminfo").read_text().split("SwapTotal:")[1].split()[0])
    return total


# Bytes a parameter needs at least with each optimizer: weight, gradient and the optimizer's state.
_BYTES_A_PARAMETER = {"adamw": 16, "muon": 12, "paged_adamw": 8, "paged_adamw8bit": 8}


def check_size(
    config: GPTConfig, batch_size: int, device: torch.device, here: World, optimizer: str, sharded: bool
) -> None:
    """Refuse a run that cannot fit into memory, before anything is built: it would hang, or be killed.

    The estimate is a lower bound (weights, gradients, optimizer state, and each block's input, which is all
    that recomputation keeps), so a run that passes may still be too large.

    Raises:
        InputError: it needs more than the device has, or the model more than main memory.
    """
    n = matrix_params(config)
    machine = machine_memory()
    on_gpu = device.type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory if on_gpu else machine
    model = n * _BYTES_A_PARAMETER.get(optimizer, 10) // (here.size if sharded else 1)
    rows, T = -(-batch_size // here.size), config.block_size
    batch = rows * T * (16 + config.n_layer * config.n_embd * (2 if on_gpu else 4))
    where = torch.cuda.get_device_name(device) if on_gpu else "this machine"
    if machine is not None and 4 * n > machine:  # each process builds all of it there
        room, model, where = machine, 4 * n if on_gpu else max(4 * n, model), "this machine"
    if room is None:
        return
    if model > room:
        raise InputError(
            f"a model of {n:,} parameters needs at least {_gigabytes(model)}, and {where} has "
            f"{_gigabytes(room)}: choose a smaller n_layer, n_embd, vocab_size or block_size"
        )
    if model + batch > room:
        raise InputError(
            f"a batch of {rows:,} × {T:,} tokens and the model need at least {_gigabytes(batch)} and "
            f"{_gigabytes(model)}, and {where} has {_gigabytes(room)}: lower batch_size and raise grad_accum"
        )


def _gigabytes(size: int) -> str:
    """1.5 GB, by integer arithmetic: a mistyped size can be too large for a float."""
    return f"{size // 10**9:,}.{size % 10**9 // 10**8} GB"


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
    config = gpt_config(model)
    n = sum(p.numel() for name, p in model.named_parameters() if not name.endswith("wpe.weight"))
    if not config.tie_weights:
        n -= config.vocab_size * config.n_embd
    return 6 * n + 12 * config.n_layer * config.n_embd * config.block_size


@contextmanager
def checkpointed(model: nn.Module, compiles: bool = False) -> Iterator[None]:
    """Activation checkpointing (Chen et al. 2016): keep only each block's input, recompute the rest backward.

    Args:
        model: the ``forward`` of its blocks is replaced inside the ``with`` block.
        compiles: also ``torch.compile`` each block's forward pass. That must happen in here: compiled from
            outside, a block would compile nothing, as its ``forward`` is the recomputing one.

    Raises:
        InputError: it has no blocks.

    Example:
        >>> with checkpointed(model):  # doctest: +SKIP
        ...     next_token_loss(model, x, y).backward()
    """
    blocks = _blocks(model, "checkpoint_activations")
    for block in blocks:
        forward = torch.compile(block.forward) if compiles else block.forward
        setattr(block, "forward", partial(recomputed, forward, use_reentrant=False))  # noqa: B010
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the instance's attribute: the class's method shows again


def compile_blocks(model: nn.Module) -> None:
    """``torch.compile`` every block in place; as they are alike, they share one compilation.

    Raises:
        InputError: it has none.
    """
    for block in _blocks(model, "compile"):
        block.compile()


def _blocks(model: nn.Module, option: str) -> list[nn.Module]:
    """What an option acts on: where there is none, it would be on and do nothing."""
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, BLOCKS)]
    if not found:
        names = " or ".join(kind.__name__ for kind in BLOCKS)
        raise InputError(f"{option} acts on blocks, and {type(model).__name__} has no {names}: leave it off")
    return found


def compile_as_one(model: nn.Module) -> list[GPT]:
    """``torch.compile`` all blocks of a GPT together, for training; sampling and evaluation stay as they are.

    One call of compiled code instead of one for each block: 1.09 times as fast on a CPU, 1.015 times on an
    H100. Compiling takes 1.4 (4 blocks) to 2 times (12) as long, once for every shape of input.

    Returns:
        The GPTs that were compiled; ``del gpt.run_blocks`` undoes it.
    """
    found = [module for module in model.modules() if isinstance(module, GPT)]
    for gpt in found:
        plain, compiled = gpt.run_blocks, torch.compile(gpt.run_blocks)

        def run_blocks(*args: Any, gpt: GPT = gpt, plain: Any = plain, compiled: Any = compiled) -> Tensor:
            hidden: Tensor = (compiled if gpt.training else plain)(*args)
            return hidden

        setattr(gpt, "run_blocks", run_blocks)  # noqa: B010
    return found


@contextmanager
def compiled(model: nn.Module, as_one: bool) -> Iterator[None]:
    """Compile a model block by block, or with ``as_one`` all blocks of each GPT together."""
    found = compile_as_one(model) if as_one else []
    if not found:
        compile_blocks(model)
    try:
        yield
    finally:
        for gpt in found:  # a copy of the model would go on calling the blocks of this one
            del gpt.run_blocks


_ATTENTION_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@contextmanager
def on_a_gpu(
    model: nn.Module, device: torch.device, dtype: torch.dtype, fixed_shapes: bool
) -> Iterator[None]:
    """Make training steps on a GPU faster, without the model knowing of it.

    Under autocast the residual stream is kept in 16 bits too, as under FSDP, which halves the traffic of all
    that happens between the matrix products (5 % of a step of GPT-2 124M on an H100). Evaluation does not
    change.

    Args:
        model: any; the GPTs in it have a hook inside the ``with`` block.
        device: on anything but a GPU nothing happens.
        dtype: of the products.
        fixed_shapes: whether every batch has the same shape. Attention is then cuDNN's where possible: on
            Hopper and later 1.3 times as fast as FlashAttention 2, but slow to prepare for each new shape.
    """

    def narrow(module: nn.Module, args: Any, x: Tensor) -> Tensor:
        return x.to(dtype) if module.training and torch.is_autocast_enabled(x.device.type) else x

    with ExitStack() as stack:
        if device.type == "cuda" and dtype != torch.float32:
            for gpt in (module for module in model.modules() if isinstance(module, GPT)):
                stack.callback(gpt.drop.register_forward_hook(narrow).remove)
            if fixed_shapes and torch.cuda.get_device_capability(device) >= (9, 0):
                stack.enter_context(sdpa_kernel(_ATTENTION_BACKENDS, set_priority=True))
        yield


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a batch, in dicts, lists and tuples however nested, to ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    parts = [to_device(part, device) for part in batch]
    return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
