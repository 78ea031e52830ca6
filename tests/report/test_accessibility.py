"""WCAG 2.2 AA by axe-core in Chromium: a report with all its sections and a comparison of runs, on
narrow and wide pages, light, dark and in print.
"""

from __future__ import annotations

import json

import pytest

from mirabelle import report as reports
from tests.browser import OWN, browser
from tests.report.pages import CHANGED, EXAMPLE, PICTURES, small
from tests.report.test_front import POINTS


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[str]:
    example = small(json.loads(EXAMPLE.read_text(encoding="utf-8")), 5)
    files = {"model": ["model.safetensors"], "onnxruntime": ["model.onnx"]}
    whole = {**example, "files": files, "data": PICTURES, "changed": CHANGED}
    drawn = {
        "report": reports.render({**whole, "front": POINTS}),
        "comparison": reports.render_comparison([("runs/a", example), ("runs/b", example)]),
    }
    folder = tmp_path_factory.mktemp("pages")
    found = []
    for name, text in drawn.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
        found.append((folder / f"{name}.html").as_uri())
    return found


def test_pages_hold_wcag_by_axe(pages):
    with browser() as opened:
        for uri in pages:
            for width, scheme in ((390, "dark"), (1280, "light")):
                page = opened.page(uri, width, scheme)
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert opened.violations(page) == [], (uri, width, scheme)
                assert opened.violations(page, OWN) == []
                assert opened.width(page) <= width
                page.close()


def test_what_is_printed_is_readable(pages):
    with browser() as opened:
        page = opened.page(pages[0], 800, "dark")
        page.emulate_media(media="print")
        assert opened.violations(page, ["color-contrast"]) == []
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
        assert page.locator(".search").first.is_hidden()


def test_axe_finds_what_is_wrong(tmp_path):
    """A picture without words and gray on gray: what a page that is checked must not have."""
    bad = '<html lang="en"><title>t</title><main><h1>t</h1><img src="data:,">'
    bad += '<p style="color:#999;background:#aaa">hardly there</p></main>'
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    with browser() as opened:
        found = opened.violations(opened.page((tmp_path / "bad.html").as_uri(), 800))
    assert {f.partition(":")[0] for f in found} == {"image-alt", "color-contrast"}


def test_a_keyboard_sorts_and_reads_every_mark(pages):
    with browser() as opened:
        page = opened.page(pages[0], 1280)
        button = page.locator("#every-layer thead button").first
        button.focus()
        page.keyboard.press("Enter")
        head = page.locator("#every-layer thead th").first
        assert head.get_attribute("aria-sort") == "ascending"
        unnamed = "svg[role=img]:not([aria-label]), svg:not([role]):not([aria-hidden])"
        assert page.locator(unnamed).count() == 0
        assert page.locator("#training svg[role=img]").get_attribute("aria-label")
