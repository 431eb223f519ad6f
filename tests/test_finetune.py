"""GPT-1's fine-tuning: the loss of section 3.2, batches, JSONL tasks, and that it learns."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ai_learning.errors import InputError
from ai_learning.finetune import (
    Example,
    TaskBatches,
    package_task,
    read_examples,
    read_task,
    task_loss,
    task_metrics,
)
from ai_learning.model import GPTConfig
from ai_learning.model.heads import TaskConfig, TaskModel, TaskTokens
from ai_learning.tokenizers import ByteTokenizer
from ai_learning.train import TrainConfig, train

GPT_CONFIG = GPTConfig(vocab_size=261, block_size=32, n_layer=1, n_head=2, n_embd=32)
TOKENS = TaskTokens.after(258)


def batches(examples: list[Example], task: str = "classification", batch_size: int = 4) -> TaskBatches:
    return TaskBatches(examples, task, ByteTokenizer(), TOKENS, 32, batch_size)


EXAMPLES = [
    Example((word,), label)
    for label, words in enumerate(("cat dog ox", "oak elm fir"))
    for word in words.split()
]


def test_loss_is_task_plus_lambda_times_language_model() -> None:
    """L3 = L2 + 0.5·L1 with L1 averaged over each sequence, then over the sequences."""
    model = TaskModel(TaskConfig(GPT_CONFIG)).eval()
    idx, extract_at, labels = batches(EXAMPLES)(0)
    scores, _ = model(idx, extract_at)
    expected_task = F.cross_entropy(scores, labels)
    per_sequence = []
    for row, end in zip(idx[:, 0], extract_at[:, 0].tolist(), strict=True):
        logits = model.gpt(row[None, :end])[0]
        per_sequence.append(F.cross_entropy(logits, row[1 : end + 1]))
    expected = expected_task + 0.5 * torch.stack(per_sequence).mean()
    torch.testing.assert_close(task_loss(model, (idx, extract_at, labels)), expected)
    torch.testing.assert_close(task_loss(model, (idx, extract_at, labels), lm_coef=0), expected_task)


def test_batches_go_through_every_example_each_epoch() -> None:
    source = batches(EXAMPLES, batch_size=3)
    for epoch in range(3):
        rows = [tuple(row) for step in range(2) for row in source(2 * epoch + step)[0][:, 0].tolist()]
        assert len(set(rows)) == 6
    assert not torch.equal(source(0)[0], source(2)[0])  # another order
    assert torch.equal(source(3)[0], batches(EXAMPLES, batch_size=3)(3)[0])  # a function of the step


@pytest.mark.parametrize("task", ["classification", "entailment", "similarity", "multiple_choice"])
def test_every_task_is_learned(task: str, tmp_path: Path) -> None:
    if task == "classification":
        examples = EXAMPLES
    elif task == "multiple_choice":
        examples = [
            Example(("animal?", *choices), choices.index("cat"))
            for choices in (("cat", "oak"), ("elm", "cat"), ("cat", "fir"))
        ]
    else:
        examples = [Example((a, b), int(a == b == "cat")) for a in ("cat", "oak") for b in ("cat", "oak")]
    torch.manual_seed(0)
    model = TaskModel(TaskConfig(GPT_CONFIG, task))
    source = batches(examples, task)
    result = train(
        model,
        lambda model, batch: task_loss(model, batch),
        source,
        TrainConfig(
            steps=120, batch_size=4, lr=3e-3, warmup=5, eval_every=120, schedule="linear", device="cpu"
        ),
        tmp_path,
        evaluate=lambda model: task_metrics(model, source),
    )
    assert result.metrics["val_accuracy"] == 1.0


def test_the_builtin_task() -> None:
    data = package_task()
    assert data.majority_accuracy() == pytest.approx(1 / 8, abs=1e-9)
    assert len(data.train) > 3000 and len(data.held_out) > 1000


ROWS = {
    "classification": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
    "entailment": [
        {"premise": "p", "hypothesis": "h", "label": 0},
        {"premise": "p", "hypothesis": "g", "label": 1},
    ],
    "similarity": [{"a": "p", "b": "h", "label": "yes"}, {"a": "p", "b": "g", "label": "no"}],
    "multiple_choice": [{"context": "c", "choices": ["p", "q"], "label": 1}] * 2,
}


@pytest.mark.parametrize("task", ROWS)
def test_jsonl_tasks(task: str, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS[task])) + "\n\n")
    data = read_task(path, task)
    assert len(data.train) == len(data.held_out) == 1
    if task == "multiple_choice":
        assert data.train[0] == Example(("c", "p", "q"), 1)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("classification", '{"text": "a"', "line 3: "),
        ("classification", '{"text": "a"}', "line 3: field 'label' is missing"),
        ("classification", '{"text": 5, "label": "x"}', "line 3: a text is not a string"),
        ("entailment", '{"premise": "a", "label": "x"}', "line 3: field 'hypothesis' is missing"),
        ("multiple_choice", '{"context": "c", "choices": ["p", "q"], "label": 2}', "line 3: label 2 is not"),
        ("multiple_choice", '{"context": "c", "choices": "pq", "label": 1}', "line 3: choices is not a list"),
        (
            "multiple_choice",
            '{"context": "c", "choices": ["p", "q", "r"], "label": 2}',
            "the same number of choices",
        ),
    ],
)
def test_bad_rows_name_file_and_line(task: str, line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS[task])) + "\n" + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        read_task(path, task)
    assert str(path) in str(caught.value)


def test_line_separators_inside_a_text_end_no_row(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(
        '{"text": "a\u2028b", "label": "x"}\n{"text": "c\x85d", "label": "y"}\n', encoding="utf-8"
    )
    data = read_task(path, "classification")
    assert {x.parts[0] for x in data.train + data.held_out} == {"a\u2028b", "c\x85d"}


def test_examples_are_numbered_by_the_models_classes(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text('{"text": "a", "label": "y"}\n')
    assert read_examples(path, "classification", ["x", "y"]) == [Example(("a",), 1)]
    with pytest.raises(InputError, match="line 1: label 'y' is none of p, q"):
        read_examples(path, "classification", ["p", "q"])


def test_too_little_to_learn_from(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n')
    with pytest.raises(InputError, match="holds 1 examples: at least 2"):
        read_task(path, "classification")
    path.write_text('{"text": "a", "label": "x"}\n' * 3)
    with pytest.raises(InputError, match="all rows have the label 'x'"):
        read_task(path, "classification")
    with pytest.raises(InputError, match="no such file"):
        read_task(tmp_path / "none.jsonl", "classification")
    with pytest.raises(InputError, match="task='ranking' is not known"):
        read_task(path, "ranking")
