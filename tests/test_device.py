"""What is compiled, and what stays as it is."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from ai_learning.device import checkpointed, compiled, on_a_gpu
from ai_learning.loss import next_token_loss
from ai_learning.model import GPT


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
    for device in ("cuda", "cpu"):  # the first as if the model lay there: it only says whom the hooks are for
        with (
            on_a_gpu(tiny_gpt, torch.device(device), torch.bfloat16, fixed_shapes=False),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast_on),
        ):
            tiny_gpt(idx)
    narrow = training and autocast_on
    assert seen == [torch.bfloat16 if narrow else torch.float32, torch.float32]
    assert not tiny_gpt.drop._forward_hooks
