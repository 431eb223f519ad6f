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
from torch.nn.modules import module as torch_module

from .kernels import triton_use
from .kernels.gelu import gelu_form
from .kernels.linear import PLAIN
from .model import GPT, MLP, Block, CausalSelfAttention, KVCache, fast_attention

_ROWS = {"c_attn": 8, "attn.c_proj": 8, "c_fc": 8, "mlp.c_proj": 4, "lm_head": 8}
_ROWS_WIDE = {**_ROWS, "c_fc": 4}
"""Rows of each weight that a program takes: what was fastest with 768 features, and with 1,600."""
_IN_A_WARP, _IN_A_WARP_WIDE = 2048, 4096
"""Elements of a weight for each of a program's warps, likewise."""
_CHUNK, _CHUNKS = 128, 8
"""Keys of a program, and how many programs' results are put together at once."""
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORTH_STEPS = 16
"""Tokens from which on it is worth recording a graph (less than 16 ms with 124M parameters on an H200)."""


_MADE_OF = (
    GPT, Block, CausalSelfAttention, MLP, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.Identity, nn.ModuleList,
    *PLAIN,
)  # fmt: skip


def suits(model: nn.Module) -> bool:
    """Whether the model is GPT-2 as published, on a GPU, without hooks, in a dtype that Triton multiplies."""
    if type(model) is not GPT or torch_module._has_any_global_hook():
        return False
    config, D = model.config, model.config.head_size
    published = (config.norm, config.positions, config.mlp) == ("layernorm", "learned", "plain")
    plain = published and config.norm_first and not config.qk_norm and config.kv_heads == config.n_head
    if not plain or config.n_head * D != config.n_embd or D & (D - 1) or D < 16:
        return False
    for module in model.modules():
        watched = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if watched or type(module) not in _MADE_OF:  # an adapter, 4 bits, a subclass
            return False
        if isinstance(module, CausalSelfAttention) and module.attention is not fast_attention:
            return False
        if isinstance(module, MLP) and gelu_form(module.activation) is None:
            return False
    parameters = list(model.parameters())
    dtype = parameters[0].dtype
    alike = all(p.dtype == dtype and p.is_contiguous() for p in parameters)
    return alike and dtype in _DTYPES and triton_use.usable(*parameters)


class Decoder:
    """Steps of one token each, on a cache that the model itself has filled with a prompt.

    Args:
        model: that `suits`; its weights must not change, nor move.
        cache: of the model, for one row; read and extended.
        graph: replay all as one CUDA graph.
        early: start each kernel before the one before it ends; by default in a graph, on Hopper and later.

    Raises:
        ValueError: the cache is for several rows, or full.

    Attributes:
        logits: (1, V) float32, of the last step.
        likeliest: (1,) int64, the token with the largest of them.

    Example:
        >>> cache = KVCache(model.config, 1, dtype=torch.bfloat16, device="cuda")  # doctest: +SKIP
        >>> model.hidden(prompt, cache=cache)  # doctest: +SKIP
        >>> decoder = Decoder(model, cache)  # doctest: +SKIP
        >>> decoder.step(token)  # doctest: +SKIP
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, cache: KVCache, *, graph: bool = True, early: bool | None = None) -> None:
        config, device = model.config, model.wte.weight.device
        self._model, self._cache = model, cache
        if (rows := cache.layers[0].k.size(0)) != 1:
            raise ValueError(f"the cache is for {rows} rows: a decoder takes one")
        self._check_room()
        self._early = graph and (triton_use.starts_early(device) if early is None else early)
        wide = config.n_embd > 1024
        self._rows, self._in_a_warp = (_ROWS_WIDE, _IN_A_WARP_WIDE) if wide else (_ROWS, _IN_A_WARP)
        self._token = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._splits = -(-self._capacity // _CHUNK)
        C, V = config.n_embd, config.vocab_size

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self._x, self._qkv, self._wide = empty(C), empty(3 * C), empty(config.mlp_width)
        self._part = empty(2, self._splits, C)
        self.logits, self._best = empty(1, V), empty(-(-V // self._rows["lm_head"]), 2)
        self.likeliest = torch.zeros(1, dtype=torch.long, device=device)
        self._fixed = {linear: _of_norm(norm, linear) for norm, linear in _after_norms(model)}
        self._graph: torch.cuda.CUDAGraph | None = None
        if graph:
            with triton_use.current(device):
                self._graph = self._captured()

    @property
    def _capacity(self) -> int:
        return self._cache.layers[0].k.size(2)

    def _captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph. What the first run writes lies past the cache's end."""
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

    @torch.inference_mode()
    def step(self, token: Tensor) -> None:
        """Read one (1, 1) token after those in the cache; leave ``logits`` and ``likeliest``."""
        self._check_room()
        self._token.copy_(token)
        self._place.fill_(self._cache.length)
        if self._graph is None:
            self._run()
        else:
            with triton_use.current(self._token.device):
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
            self._norm_linear("c_attn", block.ln_1, attn.c_attn, qkv)
            given = (qkv, layer.k, layer.v, place, part, self._capacity, C, D**-0.5, splits)
            self._launch("attend", (H, splits), given, D=D, CHUNK=_CHUNK)
            at_once = min(_CHUNKS, _block(splits))
            self._linear(
                "project", "attn.c_proj", (part, place, splits), attn.c_proj, CHUNK=_CHUNK, MOST=at_once
            )
            self._norm_linear("c_fc", block.ln_2, mlp.c_fc, self._wide, gelu_form(mlp.activation) or "")
            self._linear("add_linear", "mlp.c_proj", (self._wide,), mlp.c_proj)
        self._norm_linear("lm_head", model.ln_f, model.lm_head, self.logits)
        best, V = self._best, config.vocab_size
        self._launch("choose", 1, (best, len(best), self.likeliest, V), 8, BLOCK=_block(len(best)))

    def _norm_linear(self, name: str, norm: Any, linear: Any, out: Tensor, gelu: str = "") -> None:
        """``out = W · norm(x) + bias``, or GELU of it."""
        given = (
            self._x,
            norm.weight,
            linear.weight,
            self._fixed[linear],
            out,
            self._best,
            *linear.weight.shape,
        )
        best = linear is self._model.lm_head
        self._by_rows("norm_linear", name, (*given, norm.eps), linear, GELU=gelu, BEST=best)

    def _linear(self, kernel: str, name: str, given: tuple[Any, ...], linear: Any, **how: int) -> None:
        """``x += W · (what the kernel makes of given) + bias``."""
        bias, x = linear.bias, self._x
        given = (*given, linear.weight, x if bias is None else bias, x, *linear.weight.shape)
        self._by_rows(kernel, name, given, linear, BIAS=bias is not None, **how)

    def _by_rows(self, kernel: str, name: str, given: tuple[Any, ...], linear: Any, **how: Any) -> None:
        """A kernel whose programs take some rows of a weight each."""
        n_out, n_in = linear.weight.shape
        rows, block = self._rows[name], _block(n_in)
        warps = min(16, max(1, rows * block // self._in_a_warp))
        self._launch(kernel, -(-n_out // rows), given, warps, ROWS=rows, BLOCK=block, **how)

    def _launch(
        self, name: str, grid: int | tuple[int, int], given: tuple[Any, ...], warps: int = 4, **how: Any
    ) -> None:
        if self._early:
            how["launch_pdl"] = True
        programs = grid if isinstance(grid, tuple) else (grid,)
        triton_use.launch(
            getattr(_kernels(), name), programs, *given, EARLY=self._early, num_warps=warps, **how
        )


def _after_norms(model: GPT) -> Iterator[tuple[Any, Any]]:
    """Each norm with the linear layer that reads it."""
    for block in model.h:
        of_block: Any = block
        yield of_block.ln_1, of_block.attn.c_attn
        yield of_block.ln_2, of_block.mlp.c_fc
    yield model.ln_f, model.lm_head


def _of_norm(norm: Any, linear: Any) -> Tensor:
    """Of a linear layer after a norm, what the norm's shift and the bias add: W · shift + bias (n_out,)."""
    fixed = torch.zeros(len(linear.weight), device=linear.weight.device)
    with torch.autocast(fixed.device.type, enabled=False):
        if norm.bias is not None:
            fixed += linear.weight.float() @ norm.bias.float()
    if linear.bias is not None:
        fixed += linear.bias.float()
    return fixed


def _block(n: int) -> int:
    """The power of two that holds n."""
    return 1 << max(0, n - 1).bit_length()


@cache
def _kernels() -> Any:
    """The compiled functions; Triton is imported at the first call."""
    from .kernels import decode_triton_kernels

    return decode_triton_kernels
