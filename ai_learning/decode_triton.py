"""One token at a time on a GPU: a GPT-2 as sixty kernels, started together as one CUDA graph.

At batch 1 a token costs what reading the weights costs, 80 µs for 124M parameters on an H100, if nothing else
is in the way. But it takes far longer to call PyTorch's kernels from Python; and of a graph of them, most of
the time goes into waiting for one kernel to end before the next asks for its weights. The kernels here ask
first (`decode_triton_kernels`). The model itself knows nothing of this.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from . import triton_use
from .gelu import gelu_form
from .linear import PLAIN
from .model import GPT, KVCache, fast_attention

_NARROW = {"qkv": 8, "attention": 8, "fc": 8, "proj": 4, "head": 8, "in_a_warp": 2048}
_WIDE = {"qkv": 8, "attention": 8, "fc": 4, "proj": 4, "head": 8, "in_a_warp": 4096}
"""Rows of each weight that a program takes, and elements for each of its warps: what was fastest with 768
features, and with 1,600."""
_CHUNK = 128
"""Keys of a program."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORTH_STEPS = 16
"""Tokens from which on it is worth recording a graph (some 20 ms)."""


def suits(model: nn.Module) -> bool:
    """Whether it is GPT-2 as published, whole on a GPU, in a dtype that Triton multiplies."""
    if type(model) is not GPT:
        return False
    config, weight = model.config, model.wte.weight
    published = (config.norm, config.positions, config.mlp) == ("layernorm", "learned", "plain")
    plain = published and config.norm_first and not config.qk_norm and config.kv_heads == config.n_head
    D = config.head_size
    if not plain or config.n_head * D != config.n_embd or D & (D - 1) or D < 16:
        return False
    blocks: list[Any] = list(model.h)
    layers = [layer for b in blocks for layer in (b.attn.c_attn, b.attn.c_proj, b.mlp.c_fc, b.mlp.c_proj)]
    if any(type(layer) not in PLAIN for layer in (*layers, model.lm_head)):  # an adapter, 4 bits
        return False
    if gelu_form(blocks[0].mlp.activation) is None or any(
        b.attn.attention is not fast_attention for b in blocks
    ):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return False
    parameters = list(model.parameters())
    alike = all(p.dtype == weight.dtype and p.is_contiguous() for p in parameters)
    return alike and weight.dtype in _DTYPES and triton_use.usable(*parameters)


class Decoder:
    """Steps of one token each, on a cache that the model itself has filled with a prompt.

    Args:
        model: that `suits`; its weights must not change, nor move.
        cache: of the model, for one row, not empty and not full; read and extended.
        graph: replay all as one CUDA graph.
        early: start each kernel before the one before it ends; by default in a graph, on Hopper and later.

    Attributes:
        logits: (1, V) float32, of the last step.
        likeliest: (1,) int64, the token with the largest of them.

    Example:
        >>> cache = KVCache(model.config, 1, dtype=torch.bfloat16, device="cuda")  # doctest: +SKIP
        >>> model.hidden(prompt, cache=cache)  # doctest: +SKIP
        >>> decoder = Decoder(model, cache)  # doctest: +SKIP
        >>> decoder.step(token)  # doctest: +SKIP
    """

    def __init__(self, model: GPT, cache: KVCache, *, graph: bool = True, early: bool | None = None) -> None:
        config, weight = model.config, model.wte.weight
        device = weight.device
        if early is None:
            early = graph and torch.cuda.get_device_capability(device) >= (9, 0)
        self._early, self._model, self._cache = early, model, cache
        self._rows = _NARROW if config.n_embd <= 1024 else _WIDE
        self._token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._splits = -(-self._capacity // _CHUNK)
        C, wide, V = config.n_embd, config.mlp_width, config.vocab_size

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self._x, self._qkv, self._wide, self._part = (
            empty(C), empty(3 * C), empty(wide), empty(2, self._splits, C),
        )  # fmt: skip
        self.logits, self._best = empty(1, V), empty(-(-V // self._rows["head"]), 2)
        self.likeliest = torch.zeros(1, dtype=torch.long, device=device)
        self._of_norms = {linear: _of_norm(norm, linear) for norm, linear in _after_norms(model)}
        self._graph: torch.cuda.CUDAGraph | None = None
        if graph:
            self._graph = self._captured()

    @property
    def _capacity(self) -> int:
        return self._cache.layers[0].k.size(2)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph. What the first run writes lies past the cache's end."""
        self._check_room()
        self._place.fill_(self._cache.length)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._run()  # compiles; while a graph is recorded nothing may be loaded
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._run()
        return graph

    def _check_room(self) -> None:
        if self._cache.length >= self._capacity:
            raise ValueError(f"the cache's {self._capacity} positions are full: make a larger KVCache")

    def step(self, token: Tensor) -> None:
        """Read one (1, 1) token after those in the cache; leave ``logits`` and ``likeliest``."""
        self._check_room()
        self._token.copy_(token)
        self._place.fill_(self._cache.length)
        if self._graph is None:
            self._run()
        else:
            self._graph.replay()
        for layer in self._cache.layers:
            layer.length += 1

    def _run(self) -> None:
        model, config, place = self._model, self._model.config, self._place
        wpe: Any = model.wpe
        C, H, D = config.n_embd, config.n_head, config.head_size
        x, qkv, part, splits = self._x, self._qkv, self._part, self._splits
        self._launch("embed", 1, (self._token, place, model.wte.weight, wpe.weight, x, C), BLOCK=_block(C))
        for block, layer in zip(model.h, self._cache.layers, strict=True):
            attn: Any = block.attn
            mlp: Any = block.mlp
            self._norm_linear("qkv", block.ln_1, attn.c_attn, qkv)
            given = (qkv, layer.k, layer.v, place, part, self._capacity, C, D**-0.5, splits)
            self._launch("attend", (H, splits), given, D=D, CHUNK=_CHUNK)
            self._add_linear("project", "attention", (part, place), attn.c_proj, (splits,), CHUNK=_CHUNK,
                             MOST=_block(splits))  # fmt: skip
            self._norm_linear("fc", block.ln_2, mlp.c_fc, self._wide, gelu_form(mlp.activation) or "")
            self._add_linear("add_linear", "proj", (self._wide,), mlp.c_proj)
        self._norm_linear("head", model.ln_f, model.lm_head, self.logits)
        best = self._best
        self._launch("choose", 1, (best, len(best), self.likeliest), 8, BLOCK=_block(len(best)))

    def _norm_linear(self, name: str, norm: Any, linear: Any, out: Tensor, gelu: str = "") -> None:
        n_out, n_in = linear.weight.shape
        of_norm = self._of_norms[linear]
        self._launch(
            "norm_linear",
            -(-n_out // self._rows[name]),
            (self._x, norm.weight, linear.weight, *of_norm, out, self._best, n_out, n_in, norm.eps),
            self._warps(name, n_in),
            GELU=gelu, BEST=name == "head", ROWS=self._rows[name], BLOCK=_block(n_in),
        )  # fmt: skip

    def _add_linear(
        self, kernel: str, name: str, given: tuple[Any, ...], linear: Any, more: tuple[int, ...] = (),
        **how: int,
    ) -> None:  # fmt: skip
        """``x += W · given + bias``."""
        n_out, n_in = linear.weight.shape
        bias = linear.bias
        self._launch(
            kernel,
            -(-n_out // self._rows[name]),
            (*given, linear.weight, self._x if bias is None else bias, self._x, n_out, n_in, *more),
            self._warps(name, n_in),
            BIAS=bias is not None, ROWS=self._rows[name], BLOCK=_block(n_in), **how,
        )  # fmt: skip

    def _warps(self, name: str, n_in: int) -> int:
        return min(16, max(1, self._rows[name] * _block(n_in) // self._rows["in_a_warp"]))

    def _launch(
        self, name: str, grid: int | tuple[int, int], given: tuple[Any, ...], warps: int = 4, **how: Any
    ) -> None:
        if self._early:
            how["launch_pdl"] = True
        programs = grid if isinstance(grid, tuple) else (grid,)
        getattr(_kernels(), name)[programs](*given, EARLY=self._early, num_warps=warps, **how)


def _after_norms(model: GPT) -> Iterator[tuple[Any, Any]]:
    """Each norm with the linear layer that reads it."""
    for block in model.h:
        of_block: Any = block
        yield of_block.ln_1, of_block.attn.c_attn
        yield of_block.ln_2, of_block.mlp.c_fc
    yield model.ln_f, model.lm_head


def _of_norm(norm: Any, linear: Any) -> tuple[Tensor, Tensor]:
    """Of a linear layer after a norm, W · gain (n_out,) and W · shift + bias (n_out,), in float32."""
    weight = linear.weight.float()
    fixed = torch.zeros(len(weight), device=weight.device)
    if norm.bias is not None:
        fixed += weight @ norm.bias.float()
    if linear.bias is not None:
        fixed += linear.bias.float()
    return weight @ norm.weight.float(), fixed


def _block(n: int) -> int:
    """The power of two that holds n."""
    return 1 << max(0, n - 1).bit_length()


@cache
def _kernels() -> Any:
    """The compiled functions; importing Triton waits until somebody needs them."""
    from . import decode_triton_kernels

    return decode_triton_kernels
