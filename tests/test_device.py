"""What is compiled, and what stays as it is."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ai_learning.device import compiled
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
