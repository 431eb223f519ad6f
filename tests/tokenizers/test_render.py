"""Tokens to look at."""

import html.parser

import pytest

from ai_learning.tokenizers import BPETokenizer, render


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(["low lower lowest; the slow <b> né 👍\n" * 5], 290)


def test_visible():
    assert render.visible(" a\n\t\r\u00a0\x00".encode()) == "·a⏎→␍⍽‹U+0000›"
    assert render.visible("👍".encode()[:2]) == "‹f0›‹9f›"
    assert render.visible(b"\x8d n") == "‹8d›·n"
    assert render.visible(b"a\\xb") == "a\\xb"


def test_terminal_shows_every_token(tokenizer):
    ids = tokenizer.encode("low né\n<|endoftext|>", allowed_special="all")
    plain = render.terminal(tokenizer, ids, show_ids=True).plain
    for i in ids:
        assert f"{render.visible(tokenizer.vocab[i])}{i}" in plain


def test_page_holds_the_text_ids_and_bytes(tokenizer):
    text = "slow <b>\n né 👍"
    ids = tokenizer.encode(text)

    class Reader(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.titles, self.text, self.inside = [], [], False

        def handle_starttag(self, tag, attributes):
            self.inside = tag == "span"
            if self.inside:
                self.titles.append(dict(attributes)["title"])

        def handle_endtag(self, tag):
            self.inside = False

        def handle_data(self, data):
            if self.inside:
                self.text.append(data)

    page = render.page(tokenizer, ids, title="<x>")
    reader = Reader()
    reader.feed(page)
    assert reader.text == [render.visible(tokenizer.vocab[i]) for i in ids]
    for i, title in zip(ids, reader.titles, strict=True):
        assert f"id {i} " in title and tokenizer.vocab[i].hex(" ") in title
    assert "<title>&lt;x&gt;</title>" in page and "http" not in page


def test_steps_end_at_the_tokens(tokenizer):
    words = render.merge_steps(tokenizer, "lowest slow né")
    assert [token for steps in words for token in steps[-1].tokens] == tokenizer.decode_tokens_bytes(
        tokenizer.encode("lowest slow né")
    )
    ranks = [step.rank for step in words[0]]
    assert ranks[0] == -1 and ranks[1:] == sorted(ranks[1:]) and len(ranks) > 2
    for steps in words:
        assert all(b"".join(step.tokens) == b"".join(steps[0].tokens) for step in steps)
    assert render.steps_table(tokenizer, "low").row_count == 3


def test_side_by_side_and_statistics(tokenizer):
    other = BPETokenizer(tokenizer.vocab, tokenizer.merges[:3])
    assert render.side_by_side({"a": tokenizer, "b": other}, "low").row_count == 2
    found = render.statistics(tokenizer, {"en": "low low low", "zh": "日本"}, top=3)
    n = len(tokenizer.encode("low low low")), len(tokenizer.encode("日本"))
    assert found.n_tokens == sum(n) and found.n_bytes == 17
    assert found.fertility == {"en": n[0] / 3, "zh": n[1]}
    assert found.bytes_per_token_of["zh"] == 6 / n[1] and found.bytes_per_token == 17 / sum(n)
    used = set(tokenizer.encode("low low low") + tokenizer.encode("日本"))
    assert set(found.unused) == tokenizer.vocab.keys() - used - {tokenizer.eos_id}
    longest = max(len(token) for i, token in tokenizer.vocab.items() if i != tokenizer.eos_id)
    assert len(found.longest[0][1]) == longest and len(found.longest) == 3
    assert found.most_used[0][2] == 2
    assert render.statistics_table(found).row_count > 5
