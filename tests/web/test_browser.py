"""The page in a real browser, each panel used as a person would."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ai_learning.adapters import LoRAConfig, inject_lora, save_peft
from ai_learning.checkpoint import open_model
from ai_learning.generate import Sampling, probabilities
from ai_learning.web.app import create_app
from ai_learning.web.bench import Bench, Opened

from .agent_files import write_annotated, write_trace
from .browser import PHONE, Visitor, chromium
from .conftest import serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page finds: a run that was stopped, an adapter, a Toolformer corpus, a Reflexion run."""
    runs = tmp_path_factory.mktemp("runs")
    write_annotated(runs / "toolformer")
    write_trace(runs / "reflexion")
    model, _, _ = open_model(checkpoint)
    inject_lora(model, LoRAConfig(r=4))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    save_peft(model, runs / "adapter")
    own = runs / "web"
    (own / "run-1").mkdir(parents=True)
    about = {"steps": 200, "module": "ai_learning.cli", "arguments": ["pretrain", "--steps", "200"]}
    (own / "run-1.json").write_text(json.dumps(about))
    rows: list[dict] = [{"step": 0, "val_loss": 5.5}]
    for step in range(1, 101):
        rows.append(
            {"step": step, "loss": 2 + 3.5 * 0.96**step, "tokens_per_s": 30000.0, "elapsed_s": step / 10}
        )
        if step % 20 == 0:
            rows += [
                {"step": step, "val_loss": 2.1 + 3.4 * 0.96**step},
                {"step": step, "sample": f"text {step}"},
            ]
    (own / "run-1" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (own / "run-1" / "last.pt").write_bytes(b"")
    return runs


@pytest.fixture(scope="module")
def port(checkpoint: Path, runs: Path) -> Iterator[int]:
    model, tokenizer, _ = open_model(checkpoint)
    assert tokenizer is not None
    served = Opened(f"runs/demo/{checkpoint.name}", model, tokenizer, str(checkpoint))
    with serving(create_app(Bench(served, runs=runs, adapters={"mine": runs / "adapter"}))) as port:
        yield port


@pytest.fixture
def visit(browser: Any, port: int) -> Iterator[Callable]:
    visitors: list[Visitor] = []

    def come(**how: Any) -> Visitor:
        visitors.append(Visitor(browser, port, **how))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.leave()


def test_tokens(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go()
    visitor.text("#token-cards", "44 tokens")
    page.fill("#text", "low lower lowest, né 😀")
    visitor.text("#token-cards", "26 tokens")
    assert page.locator("#token-cards article").count() == 3
    page.hover("#token-cards article:nth-child(1) .token:nth-of-type(1)")
    assert "id 108 · bytes 6c" in visitor.text("#token-cards article:nth-child(1) p[role=status]", "id 108")
    page.check("#token-view input[value=bytes]")
    visitor.text("#token-cards article:nth-child(1)", "6c")
    page.check("#token-view input[value=text]")

    before = visitor.text("#token-cards article:nth-child(3)", r"\d+ tokens")
    page.fill("#n-merges", "0")  # nothing learned: a token a byte
    assert visitor.text("#token-cards article:nth-child(3)", "26 tokens") != before
    page.fill("#n-merges", "40")
    visitor.text("#token-cards article:nth-child(3)", "[^2][0-9] tokens")
    page.select_option("#replay-tokenizer", "this text")
    page.fill("#replay-text", "lowest")
    visitor.text("#replay-words", "^lowest$")
    page.fill("#replay-step", "0")
    assert visitor.text("#replay-caption", "^0 of") and page.text_content("#replay-words") == "lowest"
    assert page.locator("#replay-words .token").count() == 6
    page.click("#replay-next")
    assert "l + o → lo" in visitor.text("#replay-caption", "^1 of")
    assert page.text_content("#replay-words .joined") == "lo"
    page.click("#replay-play")
    visitor.text("#replay-caption", r"^(\d+) of \1 ")
    page.uncheck("#tokenizers input[value='this text']")
    assert page.is_hidden("#learn-merges")
    page.check("#tokenizers input[value='this text']")
    visitor.fits()
    page.fill("#text", "def tokenize(text):\n    return text.split()\n")
    visitor.text("#token-cards", "44 tokens")
    visitor.photograph("tokens")


def test_attention(visit: Callable, checkpoint: Path) -> None:
    visitor = visit()
    page = visitor.go("#panel=attention&text=" + "The%20statement%20is%20an%20expression.")
    visitor.text("#attention-caption", "looks at")
    config = open_model(checkpoint)[0].config
    assert page.locator("#heads .head").count() == config.n_layer * config.n_head
    page.click("#heads [aria-label='layer 1, head 2']")
    assert visitor.text("#head-title", "Layer 1, head 2") and "layer=1&head=2" in page.url
    page.hover("#attention-text .token:nth-child(5)")
    assert visitor.text("#attention-caption", r"“s” \(4\) looks at")
    page.hover("#attention-text .token:nth-child(1)")
    assert visitor.text("#attention-caption", r"“T” \(0\) looks at “T” \(0\) 100 %$")  # there is nothing else
    page.check("#direction input[value=to]")
    visitor.text("#attention-caption", "is looked at by")
    page.check("#direction input[value=from]")
    page.locator("#matrix").scroll_into_view_if_needed()
    box = page.locator("#matrix").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 3)
    visitor.text("#attention-caption", r"takes .* from “T” \(0\)")
    page.mouse.move(2, 2)
    page.click("#attention-text .token:nth-child(30)")
    visitor.fits()
    visitor.photograph("attention")


def test_next_token(visit: Callable, checkpoint: Path) -> None:
    visitor = visit()
    page = visitor.go("#panel=next&text=The%20statement%20is%20")
    visitor.text("#next-figures", "258 of 258 tokens")
    first = visitor.text("#bars .share", "%")
    page.fill("#temperature", "0.5")
    assert visitor.text("#bars .share", "%") != first
    page.fill("#top_k", "3")
    visitor.text("#next-figures", "^3 of 258")
    assert page.locator("#bars .bar:not(.cut)").count() == 3
    page.fill("#temperature", "0")
    assert visitor.text("#bars .share", "100 %")
    layers = open_model(checkpoint)[0].config.n_layer
    assert page.locator("#lens tr").count() == layers + 1  # the embedding, and after each layer
    page.click("#next-text .token:nth-child(3)")
    assert "at=2" in page.url
    page.fill("#write-n", "12")
    page.click("#write")
    page.wait_for_selector("#write:enabled")
    assert len(page.input_value("#text")) > len("The statement is ")
    page.fill("#text", "The statement is ")
    visitor.text("#next-text", "^The·statement·is·$")
    page.fill("#temperature", "0.8")
    page.fill("#top_k", "10")
    visitor.text("#next-figures", "^10 of 258")
    visitor.fits()
    visitor.photograph("next")


def test_a_long_text_can_be_stopped(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go("#panel=next")
    page.fill("#write-n", "2000")
    before = len(page.input_value("#text"))
    page.click("#write")
    page.wait_for_function("n => document.getElementById('text').value.length > n", arg=before)
    page.click("#write-stop")
    page.wait_for_selector("#write:enabled")
    assert len(page.input_value("#text")) < 2000


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.6),
    Sampling(temperature=0),
    Sampling(temperature=1.7, top_k=20),
    Sampling(top_p=0.9),
    Sampling(temperature=0.8, top_k=50, top_p=0.7, min_p=0.05),
    Sampling(min_p=0.2),
    Sampling(top_k=1, top_p=0.01),
]


def test_the_sliders_compute_what_the_library_does(visit: Callable) -> None:
    page = visit().go()
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1)).mul(3).sort(descending=True).values
    logits[19:22] = logits[19]  # ties where top-k cuts
    for how in SETTINGS:
        asked = {"temperature": how.temperature, "top_k": how.top_k or 0}
        asked |= {"top_p": how.top_p or 1, "min_p": how.min_p or 0}
        found = page.evaluate(
            "async ([logits, how]) => { const { distribution } = await import('/static/sampling.js');"
            " return Array.from(distribution(Float32Array.from(logits), how).p); }",
            [logits.tolist(), asked],
        )
        expected = probabilities(logits[None], how)[0].numpy()
        assert int((expected > 0).sum()) == len(found), how
        assert np.abs(expected[: len(found)] - found).max() < 1e-6, how


def test_a_stopped_run_can_go_on(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go("#panel=training")
    visitor.text("#training-title", "run-1 was stopped and can go on")
    assert "100 / 200" in visitor.text("#training-figures")
    label = page.get_attribute("#training-chart svg", "aria-label")
    assert label.startswith("Loss after 100 of 200 steps: training 2.0")
    assert page.locator("#training-chart circle").count() == 6
    assert page.text_content("#training-samples .sample pre") == "text 100"  # the newest first
    assert page.is_enabled("#training-resume") and page.is_disabled("#training-stop")
    page.select_option("#training-form [name=source]", "own")
    page.fill("#training-form textarea", "too short")
    page.click("#training-start")
    assert "9 characters are too few" in visitor.text("#message")
    page.set_input_files(
        "#training-form input[type=file]",
        {"name": "mine.txt", "mimeType": "text/plain", "buffer": b"from a file"},
    )
    page.wait_for_function("() => document.querySelector('#training-form textarea').value === 'from a file'")
    visitor.complaints = [c for c in visitor.complaints if "422" not in c]  # the browser notes the refusal
    visitor.fits()


def test_adapters(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go("#panel=adapters&temperature=0")
    visitor.text("#adapter", "mine")
    page.fill("#adapter-prompt", "The statement ")
    page.click("#adapter-write")
    page.wait_for_selector("#adapter-write:enabled")
    texts = {
        name: page.text_content(f"#variant-{name} pre") for name in ("base", "lora", "merged", "nf4", "qlora")
    }
    assert all(text.startswith("The statement ") and len(text) > 20 for text in texts.values())
    assert texts["lora"] == texts["merged"]
    assert "100.0 %" in page.text_content("#variant-base dl")
    visitor.fits()
    visitor.photograph("adapters")


def test_agents(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go("#panel=agents")
    file = page.locator("#agent-file option", has_text="toolformer:").get_attribute("value")
    page.select_option("#agent-file", file)
    assert "1 of 4 calls kept" in visitor.text("#agents", "calls kept")
    assert page.text_content(".call.kept") == "Calculator(12 + 30) → 42"
    page.fill("#tau", "0.1")
    visitor.text("#agents", "2 of 4 calls kept at τ = 0.1")
    page.fill("#tau", "1")
    visitor.text("#agents", "1 of 4")
    visitor.fits()
    visitor.photograph("toolformer")
    file = page.locator("#agent-file option", has_text="reflexion:").get_attribute("value")
    page.select_option("#agent-file", file)
    visitor.text("#agents", "Trial 2 solved")
    assert page.locator(".trial.failed, .trial.solved").count() == 2
    assert "even number" in page.text_content(".reflection")
    visitor.fits()
    visitor.photograph("reflexion")


def test_with_nothing_there_the_agents_say_what_to_run(
    browser: Any, checkpoint: Path, bench: Bench, serve: Callable
) -> None:
    with serve(create_app(bench)) as port:
        visitor = Visitor(browser, port)
        visitor.go("#panel=agents")
        assert "ai-learning toolformer demo" in visitor.text("#agents", "ai-learning")
        visitor.go("#panel=training")
        visitor.text("#training-title", "No run yet")
        visitor.leave()


def test_a_view_can_be_shared(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go("#panel=attention")
    page.fill("#text", "a, b & c = 100 %")
    visitor.text("#attention-text", "100")
    page.click("#heads [aria-label='layer 1, head 3']")
    page.click("#attention-text .token:nth-child(4)")
    address = page.url.removeprefix(visitor.base)
    other = visit()
    there = other.go(address)
    other.text("#head-title", "Layer 1, head 3")
    assert there.input_value("#text") == "a, b & c = 100 %"
    assert there.get_attribute("#attention-text .token:nth-child(4)", "aria-selected") == "true"
    there.click("#tab-next")
    there.go_back()
    other.text("#head-title", "Layer 1, head 3")
    assert there.is_visible("#panel-attention") and there.is_hidden("#panel-next")


def test_with_the_keyboard_alone(visit: Callable) -> None:
    visitor = visit()
    page = visitor.go("#panel=tokens")
    press = page.keyboard.press

    def focused() -> str:
        return str(page.evaluate("document.activeElement.id || document.activeElement.className"))

    for _ in range(20):
        if focused() == "tab-tokens":
            break
        press("Tab")
    assert focused() == "tab-tokens"
    press("ArrowRight")
    assert focused() == "tab-attention" and page.is_visible("#panel-attention")
    press("Tab")
    assert focused() == "text"
    page.keyboard.type("x = 1")
    visitor.text("#attention-text", "x·=·1")
    press("Tab")  # the first head
    for _ in range(3):
        press("Tab")
    press("Enter")
    visitor.text("#head-title", "Layer 0, head 3")
    for _ in range(40):  # the other heads, the direction
        if "token" in focused():
            break
        press("Tab")
    press("Home")
    visitor.text("#attention-caption", r"\(0\) looks at")
    press("ArrowRight")
    visitor.text("#attention-caption", r"\(1\) looks at")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # it can be seen


def test_dark_and_light(visit: Callable) -> None:
    def paper(page: Any) -> int:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(n) for n in colour.removeprefix("rgb(").removesuffix(")").split(","))

    light, dark = visit(), visit(dark=True)
    assert paper(light.go("#panel=next")) > 700
    page = dark.go("#panel=next")
    assert paper(page) < 100
    dark.text("#next-figures", "tokens")
    dark.photograph("dark")
    page.click("#theme")  # light, whatever the system says
    assert paper(page) > 700
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert paper(page) > 700


READY = {
    "tokens": "#token-cards article", "attention": "#heads canvas", "next": "#bars .bar",
    "training": "#training-chart svg", "adapters": "#variants article", "agents": "#agents .card",
}  # fmt: skip


def test_on_a_phone(visit: Callable) -> None:
    visitor = visit(size=PHONE)
    page = visitor.go()
    for panel, something in READY.items():
        page.click(f"#tab-{panel}")
        page.wait_for_selector(something)
        visitor.fits()
        if panel == "attention":
            visitor.text("#attention-caption", "looks at")
            visitor.photograph("phone")


def test_hostile_texts_are_text(visit: Callable) -> None:
    """What a model or a person writes is never taken for HTML."""
    visitor = visit()
    page = visitor.go()
    text = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    for panel, seen in (("tokens", "#token-cards"), ("attention", "#attention-text"), ("next", "#next-text")):
        page.click(f"#tab-{panel}")
        page.fill("#text", text)
        visitor.text(seen, "onerror")
    assert page.locator("img, main script").count() == 0


def test_a_server_that_is_gone(browser: Any, bench: Bench, serve: Callable) -> None:
    with serve(create_app(bench)) as port:
        visitor = Visitor(browser, port)
        page = visitor.go()
    page.fill("#text", "something else")
    assert "does not answer" in visitor.text("#message")
    visitor.context.close()


@pytest.mark.slow
def test_training_from_the_first_click_to_the_model(browser: Any, bench: Bench, serve: Callable) -> None:
    with serve(create_app(bench)) as port:
        visitor = Visitor(browser, port)
        visitor.page.set_default_timeout(120_000)
        page = visitor.go("#panel=training")
        page.select_option("#training-form [name=source]", "own")
        page.fill("#training-form textarea", "the cat sat on the mat, and the dog sat on the log. " * 100)
        page.fill("#training-form [name=steps]", "400")
        page.click("#training-start")
        visitor.text("#training-title", "run-1 is learning")
        page.wait_for_selector("#training-samples .sample")
        page.click("#training-stop")
        visitor.text("#training-title", "can go on")
        page.reload()  # nothing is lost with the page
        visitor.text("#training-title", "can go on")
        page.click("#training-resume")
        visitor.text("#training-title", "is done")
        assert "400 / 400" in visitor.text("#training-figures")
        held = [r["val_loss"] for r in bench_rows(bench) if "val_loss" in r]
        assert held[-1] < held[0] / 2
        visitor.fits()
        visitor.photograph("training")
        page.click("#training-look")
        page.fill("#text", "the cat ")
        visitor.text("#bars .name", "s")  # sat
        visitor.leave()


def bench_rows(bench: Bench) -> list[dict]:
    lines = (bench.own_runs / "run-1" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_an_adapter_from_the_first_click_to_the_text(browser: Any, bench: Bench, serve: Callable) -> None:
    with serve(create_app(bench)) as port:
        visitor = Visitor(browser, port)
        visitor.page.set_default_timeout(120_000)
        page = visitor.go("#panel=adapters")
        visitor.text("#adapter-note", "No adapter yet")
        page.fill("#adapter-form [name=steps]", "20")
        page.click("#adapter-train")
        visitor.text("#adapter-title", "lora-1 is done")
        visitor.text("#adapter", "lora-1")
        page.click("#adapter-write")
        page.wait_for_selector("#adapter-write:enabled")
        assert page.text_content("#variant-lora pre") == page.text_content("#variant-merged pre")
        visitor.leave()
