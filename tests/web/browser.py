"""Headless Chromium for the tests of the page; skips, with the reason, where there is none."""

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
IMAGES = Path(__file__).parents[2] / "docs" / "images"
WIDE, PHONE = {"width": 1100, "height": 800}, {"width": 400, "height": 800}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser with a profile of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine (as root: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=[*FLAGS, f"--disk-cache-dir={profile}"]
        )
        yield browser
        browser.close()


class Visitor:
    """A page, as a person uses it; remembers whatever the browser complained about.

    Args:
        browser: of ``chromium``.
        port: of the server.
        dark: the system's colours.
        size: of the window.
    """

    def __init__(self, browser: Any, port: int, dark: bool = False, size: dict | None = None) -> None:
        self.base = f"http://127.0.0.1:{port}/"
        scheme = "dark" if dark else "light"
        self.context = browser.new_context(
            viewport=size or WIDE, color_scheme=scheme, reduced_motion="reduce"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(90_000)
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(f"{m.type}: {m.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._own_only)

    def _own_only(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:", "blob:")):
            self.complaints.append(f"loaded {request.url}")

    def go(self, address: str = "") -> Any:
        """Open the page at a view; give the page when it is ready."""
        self.page.goto("about:blank")
        self.page.goto(self.base + address)
        self.page.wait_for_selector("html[data-ready]")
        return self.page

    def text(self, selector: str, pattern: str = ".") -> str:
        """What ``selector`` says, once it matches ``pattern``."""
        self.page.wait_for_function(
            "([s, p]) => new RegExp(p, 's').test(document.querySelector(s)?.textContent ?? '')",
            arg=[selector, pattern],
        )
        return str(self.page.text_content(selector))

    def fits(self) -> None:
        """Nothing sticks out to the right."""
        wide = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{wide} pixels too wide at {self.page.url}"

    def photograph(self, name: str) -> None:
        """Keep a picture for the docs, where that was asked for (``AI_LEARNING_SCREENSHOTS=1``)."""
        if os.environ.get("AI_LEARNING_SCREENSHOTS"):
            assert re.fullmatch(r"[a-z_]+", name)
            from PIL import Image

            taken = Image.open(io.BytesIO(self.page.screenshot(full_page=True))).convert("RGB")
            taken.quantize(128, dither=Image.Dither.NONE).save(IMAGES / f"page_{name}.png", optimize=True)

    def leave(self) -> None:
        """Close the page; it must not have complained."""
        self.context.close()
        assert self.complaints == []
