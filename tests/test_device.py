"""What is compiled, and what stays as it is."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ai_learning.device import compiled, on_a_gpu, pick_device
from ai_learning.errors import InputError
from ai_learning.model import GPT


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
