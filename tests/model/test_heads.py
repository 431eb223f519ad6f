"""GPT-1's input transformations and task head (Radford et al. 2018, section 3.3)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.model import GPT, GPTConfig
from ai_learning.model.heads import TaskConfig, TaskModel, TaskTokens, task_sequences, with_extra_tokens

TOKENS = TaskTokens(100, 101, 102)


def test_input_transformations_of_figure_1() -> None:
    a, b, c = [1, 2], [3], [4, 5]
    assert task_sequences("classification", [a], TOKENS, 16) == [[100, 1, 2, 102]]
    assert task_sequences("entailment", [a, b], TOKENS, 16) == [[100, 1, 2, 101, 3, 102]]
    assert task_sequences("similarity", [a, b], TOKENS, 16) == [
        [100, 1, 2, 101, 3, 102],
        [100, 3, 101, 1, 2, 102],
    ]
    assert task_sequences("multiple_choice", [a, b, c], TOKENS, 16) == [
        [100, 1, 2, 101, 3, 102],
        [100, 1, 2, 101, 4, 5, 102],
    ]


@given(st.lists(st.lists(st.integers(0, 99), max_size=30), min_size=2, max_size=2), st.integers(5, 40))
def test_long_parts_are_cut_to_fit(parts: list[list[int]], block_size: int) -> None:
    (sequence,) = task_sequences("entailment", parts, TOKENS, block_size)
    assert len(sequence) <= block_size
    assert sequence[0] == 100 and sequence[-1] == 102 and sequence.count(101) == 1
    middle = sequence.index(101)
    kept = [sequence[1:middle], sequence[middle + 1 : -1]]
    assert all(part[: len(k)] == k for part, k in zip(parts, kept, strict=True))
    if sum(map(len, parts)) + 3 <= block_size:
        assert kept == parts
    else:
        assert len(sequence) >= block_size - 1  # nothing is cut that had room


@pytest.mark.parametrize(
    ("task", "parts", "message"),
    [
        ("classification", [[1], [2]], "classification takes 1 parts, got 2"),
        ("similarity", [[1]], "similarity takes 2 parts, got 1"),
        ("multiple_choice", [[1], [2]], "takes 3 or more parts, got 2"),
        ("sorting", [[1]], "task='sorting' is not known"),
    ],
)
def test_wrong_parts(task: str, parts: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_sequences(task, parts, TOKENS, 16)


def test_no_room() -> None:
    with pytest.raises(ValueError, match="block_size=3 leaves no room"):
        task_sequences("entailment", [[1], [2]], TOKENS, 3)


def model_for(task: str, n_classes: int = 3) -> TaskModel:
    gpt = GPTConfig(vocab_size=103, block_size=16, n_layer=2, n_head=2, n_embd=16)
    return TaskModel(TaskConfig(gpt=gpt, task=task, n_classes=n_classes)).eval()


def test_scores_come_from_the_extract_token_and_ignore_padding() -> None:
    model = model_for("classification")
    short = torch.tensor([[[100, 1, 2, 102]]])
    padded = torch.tensor([[[100, 1, 2, 102, 7, 7, 7]]])
    at = torch.tensor([[3]])
    torch.testing.assert_close(model(short, at)[0], model(padded, at)[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model(padded, at)[0], model(padded, torch.tensor([[4]]))[0])


def test_similarity_does_not_depend_on_the_order() -> None:
    model = model_for("similarity")
    both = [task_sequences("similarity", parts, TOKENS, 16) for parts in ([[1, 2], [3]], [[3], [1, 2]])]
    ends = torch.tensor([[5, 5], [5, 5]])
    scores, _ = model(torch.tensor(both), ends)
    torch.testing.assert_close(scores[0], scores[1])


def test_multiple_choice_scores_each_answer_by_itself() -> None:
    model = model_for("multiple_choice")
    rows = task_sequences("multiple_choice", [[1, 2], [3], [4], [5]], TOKENS, 16)
    scores, _ = model(torch.tensor([rows]), torch.full((1, 3), 5))
    assert scores.shape == (1, 3)
    swapped, _ = model(torch.tensor([[rows[1], rows[0], rows[2]]]), torch.full((1, 3), 5))
    torch.testing.assert_close(swapped, scores[:, [1, 0, 2]])


def test_extra_tokens_leave_the_others_alone() -> None:
    gpt = GPT(GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16)).eval()
    larger = with_extra_tokens(gpt, 3).eval()
    idx = torch.randint(0, 50, (2, 8))
    torch.testing.assert_close(larger(idx)[..., :50], gpt(idx))
    assert larger(torch.tensor([[50, 51, 52]])).shape == (1, 3, 53)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_extra_tokens_keep_dtype_and_mode(dtype: torch.dtype, training: bool) -> None:
    config = GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16)
    gpt = GPT(config).to(dtype).train(training)
    larger = with_extra_tokens(gpt)
    assert {p.dtype for p in larger.parameters()} == {dtype}
    assert all(module.training is training for module in larger.modules())
    assert larger.lm_head.weight is larger.wte.weight
    assert torch.equal(larger.wte.weight[:50], gpt.wte.weight)


def test_bad_shapes_and_configs() -> None:
    with pytest.raises(ValueError, match=r"expected idx \(B, K, T\)"):
        model_for("classification")(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="task='ranking' is not known"):
        model_for("ranking")
    with pytest.raises(ValueError, match="n_classes=1 must be at least 2"):
        model_for("classification", 1)
