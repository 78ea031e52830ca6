"""What the tests of the page share: the example, and reading a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mirabelle import report as reports
from mirabelle.base.png import encode, uri

EXAMPLE = Path(__file__).parent / "data" / "report_example.json"
DOT = uri(encode(np.full((8, 8, 3), 200, np.uint8)))
PICTURES = {
    "text": "photos/: 36 samples, 2 classes",
    "pictures": "24x24 RGB, 0..1, mean 0.5, std 0.25, what was asked for",
    "check": {"warnings": [], "pictures": 18, "right": 0.944, "steady": 1.0},
    "sheet": {"picture": DOT, "columns": 6, "captions": ["husky", "wolf"]},
}
CHANGED = {
    "stage": "quantize",
    "runtime": "onnxruntime",
    "n": 2000,
    "changed": 12,
    "gained": 4,
    "lost": 7,
    "colors": False,
    "examples": [
        {"index": 3, "before": "husky", "after": "wolf", "label": "husky", "picture": DOT},
        {"index": 1041, "before": "wolf", "after": "husky", "label": "husky", "picture": DOT},
    ],
}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects the visible text, the tags and the attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))  # a no-break space is white space too


def text_of(report: dict) -> str:
    return Page(reports.render(report)).text


def headings(report: dict) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", reports.render(report))


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.S)]


def small(value, most: int = 2):
    """The same report with so many entries in each list."""
    if isinstance(value, dict):
        return {k: small(v, most) for k, v in value.items()}
    return [small(v, most) for v in value[:most]] if isinstance(value, list) else value
