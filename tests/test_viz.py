"""Pictures: real files of the asked kind, drawn without a screen."""

from pathlib import Path

import pytest
import torch

from ai_learning.viz import plot_attention, plot_loss, visible


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_loss_plot(tmp_path: Path, name: str, magic: bytes) -> None:
    rows = [{"step": 0, "val_loss": 5.0}, {"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0, "lr": 1e-3}]
    plot_loss(rows, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    assert data.startswith(magic) and len(data) > 3000
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("n_head", [1, 5])
def test_attention_plot(tmp_path: Path, n_head: int) -> None:
    weights = torch.rand(n_head, 4, 4, requires_grad=True).softmax(-1)
    plot_attention(weights, ["a", " ", "\n", "d"], tmp_path / "a.png", "title")
    assert (tmp_path / "a.png").stat().st_size > 3000


def test_white_space_can_be_seen() -> None:
    assert visible("a b\n\t") == "a␣b⏎⇥"


def test_dollars_and_braces_are_only_text(tmp_path: Path) -> None:
    plot_loss([{"step": 1, "loss": 2.0}], tmp_path / "loss.png", "100$ and {$")
    labels = ["$", "{$", "$}_$", "a"]
    plot_attention(torch.rand(1, 4, 4), labels, tmp_path / "attention.png", "100$ and {$")
    assert {p.name for p in tmp_path.iterdir()} == {"loss.png", "attention.png"}


@pytest.mark.parametrize("place", ["title", "labels"])
def test_each_text_of_an_attention_plot_is_plain(tmp_path: Path, place: str) -> None:
    labels = ["$_{$"] * 2 if place == "labels" else ["a", "b"]
    plot_attention(torch.rand(1, 2, 2), labels, tmp_path / "a.png", "$_{$" if place == "title" else "")
    assert (tmp_path / "a.png").stat().st_size > 1000
