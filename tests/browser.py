"""Pages in Chromium by Playwright, and what axe-core says of them. Tests that need it skip, with
the reason, where one of them is missing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# WCAG 2.2 at levels A and AA, and that regions have names of their own.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
OWN = ["landmark-unique", "region", "heading-order"]


class Opened:
    """A browser that is running. axe: the script of axe-core."""

    def __init__(self, chromium: Any, axe: str):
        self.chromium, self.axe = chromium, axe

    def page(self, uri: str, width: int, scheme: str = "light", script: bool = True) -> Any:
        """A page at a width of so many pixels, for light or dark, with or without its script."""
        page = self.chromium.new_page(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=script,
        )
        page.goto(uri)
        return page

    def width(self, page: Any) -> int:
        """How wide the page is: more than its window where it is scrolled sideways."""
        return page.evaluate("document.documentElement.scrollWidth")

    def violations(self, page: Any, rules: list[str] | None = None) -> list[str]:
        """What axe finds: rule, place and remedy. rules: those that are asked; None for WCAG's."""
        page.evaluate(self.axe)
        asked: dict[str, Any] = {"runOnly": RULES} if rules is None else {"runOnly": rules}
        asked["resultTypes"] = ["violations"]
        found = page.evaluate("(o) => axe.run(o)", asked)
        return [
            f"{v['id']}: {node['target']} {node['html'][:120]} {node.get('failureSummary')}"
            for v in found["violations"]
            for node in v["nodes"]
        ]


@contextlib.contextmanager
def browser() -> Iterator[Opened]:
    """A browser for a test, which skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python, which holds axe-core, is not installed")
    axe = Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")
    with playwright.sync_playwright() as started:
        line = ["--no-sandbox", "--disable-gpu"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=line)
        try:
            yield Opened(chromium, axe)
        finally:
            chromium.close()
