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

_TILES = {
    "c_attn": (2, 1, 4), "attn.c_proj": (1, 2, 4), "c_fc": (4, 1, 2), "mlp.c_proj": (1, 8, 4),
    "lm_head": (1, 1, 8),
}  # fmt: skip
_TILES_WIDE = {
    "c_attn": (1, 4, 8), "attn.c_proj": (1, 4, 4), "c_fc": (4, 1, 4), "mlp.c_proj": (1, 8, 4),
    "lm_head": (1, 4, 8),
}  # fmt: skip
"""A program's warps with rows of their own, those that share these rows' columns, and the rows of a warp: for
each weight what was fastest on an H200 with 768 features, and with 1,600. In float32 half the rows fit."""
_CHUNK, _CHUNK_WIDE = (64, 2, 4), (128, 4, 2)
"""Keys of a program, its warps, and how many programs' results are put together at once; likewise."""
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
    if not plain or config.n_head * D != config.n_embd or D & (D - 1) or D < 16 or config.mlp_width % 4:
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
    alike = all(p.dtype == dtype and p.is_contiguous() and p.data_ptr() % 16 == 0 for p in parameters)
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
        self._tiles = dict(_TILES_WIDE if wide else _TILES)
        if model.wte.weight.dtype == torch.float32:
            self._tiles = {name: (w, s, max(1, rows // 2)) for name, (w, s, rows) in self._tiles.items()}
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._place_is = 0
        self._chunk, self._chunk_warps, self._at_once = _CHUNK_WIDE if wide else _CHUNK
        self._splits = -(-self._capacity // self._chunk)
        C, V = config.n_embd, config.vocab_size

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        self._x, self._qkv, self._wide = empty(C), empty(3 * C), empty(config.mlp_width)
        self._part, self._log_sum = empty(self._splits, C), empty(self._splits, config.n_head)
        self.logits, self._best = empty(1, V), empty(self._programs("lm_head", V), 2)
        self.likeliest = torch.zeros(1, dtype=torch.long, device=device)
        self._token = self.likeliest[None]  # the same memory, so that nothing is copied where it comes next
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
        self._place_is = self._cache.length + 1
        return graph

    def _check_room(self) -> None:
        if self._cache.length >= self._capacity:
            raise ValueError(f"the cache's {self._capacity} positions are full: make a larger KVCache")

    @torch.inference_mode()
    def step(self, token: Tensor) -> None:
        """Read one (1, 1) token after those in the cache; leave ``logits`` and ``likeliest``."""
        self._check_room()
        self._token.copy_(token)
        if self._place_is != self._cache.length:
            self._place.fill_(self._cache.length)
        self._place_is = self._cache.length + 1
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
        x, qkv, splits = self._x, self._qkv, self._splits
        part, log_sum = self._part, self._log_sum
        self._launch("embed", 1, (self._token, place, model.wte.weight, wpe.weight, x, C), BLOCK=_block(C))
        for block, layer in zip(model.h, self._cache.layers, strict=True):
            attn: Any = block.attn
            mlp: Any = block.mlp
            self._norm_linear("c_attn", block.ln_1, attn.c_attn, qkv)
            given = (qkv, layer.k, layer.v, place, part, log_sum, self._capacity, D**-0.5)
            warps = min(self._chunk_warps, self._chunk * D * layer.k.element_size() // 512)
            self._launch("attend", (H, splits), given, warps, D=D, CHUNK=self._chunk, WARPS=warps)
            how = {"D": D, "CHUNK": self._chunk, "MOST": min(self._at_once, _block(splits))}
            self._linear("project", "attn.c_proj", (part, log_sum, place), attn.c_proj, **how)
            self._norm_linear("c_fc", block.ln_2, mlp.c_fc, self._wide, gelu_form(mlp.activation) or "")
            self._linear("add_linear", "mlp.c_proj", (self._wide,), mlp.c_proj)
        self._norm_linear("lm_head", model.ln_f, model.lm_head, self.logits)
        best, V = self._best, config.vocab_size
        self._launch("choose", 1, (best, len(best), self.likeliest, place, V), 8, BLOCK=_block(len(best)))

    def _norm_linear(self, name: str, norm: Any, linear: Any, out: Tensor, gelu: str = "") -> None:
        """``out = W · norm(x) + bias``, or GELU of it."""
        given = (self._x, norm.weight, linear.weight, self._fixed[linear], out, self._best)
        best = linear is self._model.lm_head
        self._by_rows("norm_linear", name, given, (norm.eps,), linear, GELU=gelu, BEST=best)

    def _linear(self, kernel: str, name: str, given: tuple[Any, ...], linear: Any, **how: int) -> None:
        """``x += W · (what the kernel makes of given) + bias``."""
        bias, x = linear.bias, self._x
        given = (*given, linear.weight, x if bias is None else bias, x)
        self._by_rows(kernel, name, given, (), linear, BIAS=bias is not None, **how)

    def _by_rows(
        self, kernel: str, name: str, given: tuple[Any, ...], more: tuple[Any, ...], linear: Any, **how: Any
    ) -> None:
        """A kernel whose programs take some rows of a weight each."""
        n_out, n_in = linear.weight.shape
        warps, shares, rows = self._tiles[name]
        how |= {"N": n_in, "WARPS": warps, "SHARES": shares, "ROWS": rows}
        self._launch(kernel, self._programs(name, n_out), (*given, n_out, *more), warps * shares, **how)

    def _programs(self, name: str, n_out: int) -> int:
        warps, _, rows = self._tiles[name]
        return -(-n_out // (warps * rows))

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
    """Of a linear layer after a norm, what is always the same: W · gain and W · shift + bias (2, n_out)."""
    fixed = torch.zeros(2, len(linear.weight), device=linear.weight.device)
    with torch.autocast(fixed.device.type, enabled=False):
        weight = linear.weight.float()
        fixed[0] = weight @ norm.weight.float()
        if norm.bias is not None:
            fixed[1] += weight @ norm.bias.float()
    if linear.bias is not None:
        fixed[1] += linear.bias.float()
    return fixed


def _block(n: int) -> int:
    """The power of two that holds n."""
    return 1 << max(0, n - 1).bit_length()


@cache
def _kernels() -> Any:
    """The compiled functions; Triton is imported at the first call."""
    from .kernels import decode_triton_kernels

    return decode_triton_kernels
