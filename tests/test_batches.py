"""Batches: a pure function of the step, shared out by rank without overlap."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ai_learning.batches import (
    Prefetched,
    TokenBatches,
    digest,
    evaluation_batches,
    open_tokens,
    split,
    tokenize,
)
from ai_learning.cli.data import main as data
from ai_learning.errors import InputError
from ai_learning.token_file import TokenFileWriter
from ai_learning.tokenizers import BPETokenizer, ByteTokenizer

TOKENS = np.arange(1000, dtype=np.uint16)


def test_windows_are_consecutive_and_targets_one_later() -> None:
    x, y = TokenBatches(TOKENS, block_size=16, batch_size=8)(0)
    assert x.shape == y.shape == (8, 16) and x.dtype == torch.int64
    assert torch.equal(y, x + 1)
    assert torch.equal(x.diff(dim=1), torch.ones(8, 15, dtype=torch.int64))


def test_any_step_without_the_ones_before() -> None:
    one, other = (TokenBatches(TOKENS, 16, 8, seed=3) for _ in range(2))
    for step in range(5):
        one(step)
    assert torch.equal(one(5)[0], other(5)[0])
    assert not torch.equal(one(5)[0], one(6)[0])
    assert not torch.equal(one(5)[0], TokenBatches(TOKENS, 16, 8, seed=4)(5)[0])


def test_ranks_share_the_global_batch() -> None:
    whole = TokenBatches(TOKENS, 16, 8)(2)[0]
    parts = [TokenBatches(TOKENS, 16, 8, rank=rank, world_size=2)(2)[0] for rank in range(2)]
    together = torch.stack(parts, dim=1).flatten(0, 1)
    assert torch.equal(together, whole)


def test_every_place_can_be_drawn() -> None:
    batches = TokenBatches(np.arange(6), block_size=4, batch_size=4)
    starts = {int(x) for step in range(20) for x in batches(step)[0][:, 0]}
    assert starts == {0, 1}
    assert max(int(batches(step)[1].max()) for step in range(20)) == 5


def test_too_few_tokens_and_odd_shares() -> None:
    with pytest.raises(InputError, match="5 tokens are too few: a window of block_size=5 needs 6"):
        TokenBatches(np.arange(5), 5, 2)
    with pytest.raises(InputError, match="batch_size=3 must be a positive multiple of world_size=2"):
        TokenBatches(TOKENS, 5, 3, world_size=2)
    with pytest.raises(InputError, match="held-out tokens are too few"):
        evaluation_batches(np.arange(5), 5, 2)


def test_evaluation_batches_cover_the_text_once() -> None:
    batches = evaluation_batches(TOKENS, block_size=16, batch_size=4)
    targets = torch.cat([y.flatten() for _, y in batches]).tolist()
    assert targets == list(range(1, 1 + 16 * (999 // 16)))
    few = evaluation_batches(TOKENS, 16, 4, max_batches=2)
    assert len(few) == 2 and int(few[-1][0].max()) > 950  # spread to the end


def test_digest_tells_corpora_apart() -> None:
    changed = TOKENS.copy()
    changed[777] += 1
    assert digest(TOKENS) == digest(TOKENS.copy())
    assert len({digest(x) for x in (TOKENS, changed, TOKENS[:-1], TOKENS.astype(np.uint32))}) == 4


def test_split() -> None:
    train, held_out = split(TOKENS, 0.1)
    assert len(train) == 900 and held_out[0] == 900


def test_documents_are_ended() -> None:
    assert tokenize(["a", "é"], ByteTokenizer()).tolist() == [97, 256, 195, 169, 256]
    assert tokenize("ab", ByteTokenizer()).tolist() == [97, 98, 256]  # one document, not two
    with pytest.raises(InputError, match="no documents to tokenize"):
        tokenize([], ByteTokenizer())


def test_a_model_refuses_anothers_tokens(tmp_path: Path) -> None:
    path = tmp_path / "x.tokens"
    with TokenFileWriter(path, 300, "theirs") as writer:
        writer.add_document([1, 2, 3])
    assert open_tokens(path, 300, "theirs").tokens.tolist() == [1, 2, 3]
    with pytest.raises(InputError, match="written by another tokenizer"):
        open_tokens(path, 300, "ours")
    with pytest.raises(InputError, match="has ids up to 299, the model only 258"):
        open_tokens(path, 258)


@given(
    world_size=st.integers(1, 8),
    rows=st.integers(1, 5),
    step=st.integers(0, 10**9),
    seed=st.integers(0, 10**9),
)
def test_ranks_share_out_one_global_batch(world_size: int, rows: int, step: int, seed: int) -> None:
    """Every row of the batch of one process is in exactly one of many, in the order of their ranks."""
    tokens, batch_size = np.arange(5000), rows * world_size  # a row is told by its first token
    whole, _ = TokenBatches(tokens, 7, batch_size, seed)(step)
    shares = [
        TokenBatches(tokens, 7, batch_size, seed, rank, world_size)(step)[0] for rank in range(world_size)
    ]
    assert all(len(share) == rows for share in shares)
    rebuilt = torch.empty_like(whole)
    for rank, share in enumerate(shares):
        rebuilt[rank::world_size] = share
    assert torch.equal(rebuilt, whole)
    starts = torch.cat([share[:, 0] for share in shares]).tolist()
    assert sorted(starts) == sorted(whole[:, 0].tolist())


def test_batches_read_ahead_are_the_same_whatever_the_order() -> None:
    batches = TokenBatches(np.arange(1000), 8, 4, seed=3)
    read: list[int] = []

    class Spy(TokenBatches):
        def __call__(self, step: int):  # type: ignore[no-untyped-def]
            read.append(step)
            return super().__call__(step)

    ahead = Prefetched(Spy(np.arange(1000), 8, 4, seed=3))
    for step in (0, 1, 1, 2, 7, 3):
        for mine, theirs in zip(ahead(step), batches(step), strict=True):
            assert torch.equal(mine, theirs)
    ahead._reader.shutdown()
    assert read == [0, 1, 2, 3, 7, 8, 3, 4]  # each once, while it is near


def test_an_error_in_reading_ahead_arrives() -> None:
    class Broken(TokenBatches):
        def __call__(self, step: int):  # type: ignore[no-untyped-def]
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        Prefetched(Broken(np.arange(100), 8, 4))(0)


def test_special_tokens_written_out_in_a_corpus_are_those_tokens(tmp_path: Path) -> None:
    """As ``data prepare`` takes them, so that both ways to train see the same ids."""
    tokenizer = BPETokenizer.train(["a b c a b c"] * 3, 260)
    text = "a b<|endoftext|>c"
    ids = tokenize([text], tokenizer)
    expected = tokenizer.encode(text, allowed_special="all")
    assert ids.tolist() == [*expected, tokenizer.eos_id] and tokenizer.eos_id in expected
    tokenizer.save(tmp_path / "bpe")
    (tmp_path / "a.txt").write_text(text)
    saved, out = str(tmp_path / "bpe"), str(tmp_path / "a.tokens")
    data(["prepare", "--data", str(tmp_path / "a.txt"), "--tokenizer", saved, "--out", out])
    assert np.array(open_tokens(out, tokenizer.vocab_size).tokens).tolist() == ids.tolist()


def test_a_folder_of_shards_trains_as_the_one_file(tmp_path: Path) -> None:
    """The same digest, batches on every rank and held-out windows: across the borders, too."""
    whole, ids = tmp_path / "one.tokens", np.arange(1000) % 258
    with TokenFileWriter(whole, 258, "print") as writer:
        writer.add(ids)
    for number, part in enumerate(np.split(ids, [7, 300, 301, 999])):
        with TokenFileWriter(tmp_path / "shards" / f"{number}.tokens", 258, "print") as writer:
            writer.add(part)
    one, many = (open_tokens(path, 258, "print").tokens for path in (whole, tmp_path / "shards"))
    assert digest(one) == digest(many)
    for rank in range(2):
        batches = [TokenBatches(split(tokens)[0], 16, 8, 3, rank, 2) for tokens in (one, many)]
        for step in range(20):
            assert all(map(torch.equal, batches[0](step), batches[1](step)))
    expected, found = (evaluation_batches(split(tokens)[1], 16, 2) for tokens in (one, many))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(expected, found, strict=True))
    with pytest.raises(InputError, match="written by another tokenizer"):
        open_tokens(tmp_path / "shards", 258, "ours")
