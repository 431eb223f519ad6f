"""What is compiled, and what stays as it is."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from ai_learning import device
from ai_learning.device import check_size, checkpointed, compiled, on_a_gpu, pick_device
from ai_learning.distributed import World
from ai_learning.errors import InputError
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT, matrix_params
from ai_learning.presets import preset


def test_the_only_cpu_is_the_first() -> None:
    assert pick_device("cpu:0") == pick_device("cpu") == torch.device("cpu")  # "cpu:0" reads no checkpoint
    with pytest.raises(InputError, match=r"device 'cpu:7' is not available here; use cpu$"):
        pick_device("cpu:7")


def test_blocks_as_one_are_compiled_for_training_only(tiny_gpt: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(1)
            return function(*args)

        return call

    monkeypatch.setattr(torch, "compile", counted)
    idx = torch.zeros(1, 4, dtype=torch.long)
    with compiled(tiny_gpt, as_one=True):
        tiny_gpt.train()(idx)
        assert len(calls) == 1
        tiny_gpt.eval()(idx)
        assert len(calls) == 1  # each of evaluation's and sampling's shapes would be compiled anew
    twin = copy.deepcopy(tiny_gpt)
    torch.nn.init.zeros_(tiny_gpt.ln_f.weight)
    assert not torch.equal(twin(idx), tiny_gpt(idx))  # a copy runs its own blocks


def test_recomputed_blocks_are_compiled_too_and_once_for_all(tiny_gpt: GPT) -> None:
    """`eager` hands the graph back as it is: it is seen that there is one, without waiting for its code."""
    from torch._dynamo.utils import counters

    real, idx = torch.compile, torch.arange(8)[None]
    torch._dynamo.reset()
    counters.clear()
    gradients = []
    for recompute in (False, True):
        tiny_gpt.zero_grad()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", lambda function: real(function, backend="eager"))
            with checkpointed(tiny_gpt, compiles=True) if recompute else nullcontext():
                next_token_loss(tiny_gpt.train(), idx, idx).backward()
        gradients.append([p.grad for p in tiny_gpt.parameters()])
        assert counters["stats"]["unique_graphs"] == recompute  # one for both blocks
    assert not counters["graph_break"] and "forward" not in vars(tiny_gpt.h[0])
    for plain, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast_on", [True, False])
def test_a_gpus_stream_is_narrow_in_training_under_autocast(
    tiny_gpt: GPT, training: bool, autocast_on: bool
) -> None:
    seen = []
    tiny_gpt.train(training).h[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    idx = torch.zeros(1, 3, dtype=torch.long)
    for name in ("cuda", "cpu"):  # the first as if the model lay there: it only says whom the hooks are for
        with (
            on_a_gpu(tiny_gpt, torch.device(name), torch.bfloat16, fixed_shapes=False),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast_on),
        ):
            tiny_gpt(idx)
    narrow = training and autocast_on
    assert seen == [torch.bfloat16 if narrow else torch.float32, torch.float32]
    assert not tiny_gpt.drop._forward_hooks


@pytest.mark.parametrize(
    "name", ["gpt1", "gpt2-tiny", "gpt2", "gpt2-xl", "llama3.2-1b", "qwen3-0.6b", "smollm2-135m"]
)
def test_matrices_are_nearly_all_parameters_and_never_more(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        n = GPT(config).n_params()
    assert 0.98 * n < matrix_params(config) <= n


def test_what_plainly_has_no_room_is_refused_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2, cpu, alone = preset("gpt2"), torch.device("cpu"), World()
    monkeypatch.setattr(device, "machine_memory", lambda: 21 * 10**8)  # 124 M parameters need 1.99
    check_size(gpt2, 1, cpu, alone, "adamw", False)
    for config, batch, message in (
        (
            preset("gpt2-medium"),
            1,
            r"a model of 35\d,\d{3},\d{3} parameters needs at least 5\.6 GB, .* has 2\.1 GB",
        ),
        (replace(gpt2, n_layer=10**14), 1, "choose a smaller n_layer"),
        (replace(gpt2, n_embd=12 * 10**400), 1, "choose a smaller n_layer"),
        (
            gpt2,
            10**8,
            r"a batch of 100,000,000 × 1,024 tokens and the model need at least .* lower batch_size",
        ),
    ):
        with pytest.raises(InputError, match=message):
            check_size(config, batch, cpu, alone, "adamw", False)
    check_size(preset("gpt2-medium"), 2, cpu, World(size=4), "adamw", True)  # a quarter in each process
    monkeypatch.setattr(device, "machine_memory", lambda: None)
    check_size(preset("gpt2-xl"), 10**8, cpu, alone, "adamw", False)


def test_the_machines_memory_is_what_the_system_says() -> None:
    found = device.machine_memory()
    assert found is None or 2**28 < found < 2**50
