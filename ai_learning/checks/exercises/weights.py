"""Day 6: published weights, and why some of them must be turned."""

from typing import Any

import torch
from torch import Tensor

from ...pretrained import from_hf
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day6.to_linear -----------------------------------------------------------------------------------------

TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def _to_linear(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        short = name.removeprefix("transformer.")
        if short.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        found[short] = tensor.T.clone() if short.endswith(TURNED) else tensor.clone()
    return found


def _state(C: int, layers: int, prefix: str = "transformer.", buffers: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(C)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    state = {f"{prefix}wte.weight": randn(7, C), f"{prefix}wpe.weight": randn(5, C)}
    for i in range(layers):
        block = f"{prefix}h.{i}."
        shapes = {
            "ln_1.weight": (C,),
            "attn.c_attn.weight": (C, 3 * C),
            "attn.c_attn.bias": (3 * C,),
            "attn.c_proj.weight": (C, C),
            "mlp.c_fc.weight": (C, 4 * C),
            "mlp.c_proj.weight": (4 * C, C),
        }
        state |= {block + name: randn(*shape) for name, shape in shapes.items()}
        if buffers:
            state[f"{block}attn.bias"] = torch.ones(1, 1, 5, 5).tril()
            state[f"{block}attn.masked_bias"] = torch.tensor(-1e4)
    state[f"{prefix}ln_f.weight"] = randn(C)
    return state


def _state_cases() -> list[tuple[Any, ...]]:
    return [(_state(4, 2),), (_state(2, 1, prefix="", buffers=False),), (_state(3, 12),)]


def _names_and_shapes(fn: Any) -> None:
    got, expected = fn(_state(4, 2)), _to_linear(_state(4, 2))
    extra, missing = sorted(got.keys() - expected.keys()), sorted(expected.keys() - got.keys())
    if extra or missing:
        raise Wrong(
            "other names than GPT's: drop the prefix `transformer.` and the mask buffers, keep all else",
            f"extra {extra[:3]}, missing {missing[:3]}",
        )
    for name in expected:
        if got[name].shape != expected[name].shape:
            raise Wrong(
                "Conv1D keeps (in, out), nn.Linear (out, in): turn the four matrices of a block, and nothing else",
                f"{name} is {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}",
            )


def _map(
    turn: Any,
    keep: Any = lambda name: not name.endswith((".attn.bias", ".attn.masked_bias")),
    rename: Any = lambda name: name.removeprefix("transformer."),
) -> Any:
    return lambda state: {
        rename(n): t.T.clone() if t.dim() == 2 and turn(rename(n)) else t.clone()
        for n, t in state.items()
        if keep(n)
    }


def _is_turned(name: str) -> bool:
    return name.endswith(TURNED)


def _turn_in_place(state: dict[str, Tensor]) -> dict[str, Tensor]:
    right = _to_linear(state)
    state.clear()
    state.update(right)
    return state


TO_LINEAR = Exercise(
    name="day6.to_linear",
    title="a published GPT-2 state dict with our names and shapes",
    stub='''
def to_linear(state):
    """GPT-2's published state dict (name → tensor) as nn.Linear layers need it.

    - names lose the prefix "transformer." where they have it;
    - attn.c_attn, attn.c_proj, mlp.c_fc and mlp.c_proj weights are stored (in, out): turn them;
    - the mask buffers "….attn.bias" (4-dimensional) and "….attn.masked_bias" are no weights: drop them.
    """
    raise NotImplementedError
''',
    solution=from_hf,
    reference=_to_linear,
    steps=(
        same_form(_to_linear, _state_cases, "a dict"),
        leaves_inputs(_state_cases),
        Step("has GPT's names and shapes", _names_and_shapes),
        equals(_to_linear, _state_cases, 0, "has every value in its place"),
    ),
    hints=(
        "Look at one name of each kind. Which end in .bias and are no bias?",
        'name.removeprefix("transformer."); str.endswith takes a tuple of endings.',
        "tensor.T for the four weights; square c_proj too: its shape does not show that it is turned.",
    ),
    cases=_state_cases,
    mutants=(
        Mutant("nothing is turned", "Conv1D stores (in, out)", _map(lambda n: False)),
        Mutant("embeddings turned", "wte and wpe are tables, a row an id: leave them", _map(lambda n: True)),
        Mutant(
            "the square c_proj is forgotten",
            "its shape is the same both ways, its values are not",
            _map(lambda n: _is_turned(n) and "attn.c_proj" not in n),
        ),
        Mutant(
            "c_attn is forgotten",
            "it is a Conv1D as well",
            _map(lambda n: _is_turned(n) and "c_attn" not in n),
        ),
        Mutant(
            "only attention",
            "the MLP's two matrices are Conv1D as well",
            _map(lambda n: _is_turned(n) and "attn" in n),
        ),
        Mutant(
            "only the MLP",
            "attention's two matrices are Conv1D as well",
            _map(lambda n: _is_turned(n) and "mlp" in n),
        ),
        Mutant(
            "mask buffers kept",
            "attn.bias and attn.masked_bias are no weights",
            _map(_is_turned, keep=lambda n: True),
        ),
        Mutant(
            "c_attn.bias dropped",
            "only the buffers of the mask go: `.attn.bias`, not `.c_attn.bias`",
            _map(_is_turned, keep=lambda n: not n.endswith(("attn.bias", "masked_bias"))),
        ),
        Mutant("prefix kept", "our names begin with wte, wpe, h, ln_f", _map(_is_turned, rename=lambda n: n)),
        Mutant("input mutated", "return a new dict", _turn_in_place),
    ),
    alternatives=(
        _map(_is_turned),
        lambda state: {
            n.split("transformer.")[-1]: (
                t.transpose(0, 1)
                if n.split(".")[-2] in ("c_attn", "c_proj", "c_fc") and n.endswith("weight")
                else t
            )
            for n, t in state.items()
            if t.dim() in (1, 2)
        },
    ),
)

EXERCISES = (TO_LINEAR,)
