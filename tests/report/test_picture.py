"""The picture of a threshold: an SVG where its path ends in .svg, else a page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

import mirabelle as mb
from mirabelle.base.errors import InputError
from tests.quantized_networks import batches, build

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def network():
    return mb.quantize(build("residual"), batches(count=1), threshold="mse")


def test_an_svg_is_an_svg(network, tmp_path):
    said = mb.picture(network, path=tmp_path / "threshold.svg")
    root = ElementTree.parse(tmp_path / "threshold.svg").getroot()
    assert (tmp_path / "threshold.svg").read_text(encoding="utf-8") == said
    assert root.tag == f"{SVG}svg" and not said.lower().count("<html")
    drawings = root.findall(f"{SVG}svg")
    words = "".join(root.itertext())
    assert len(drawings) == 2 and "Before clipping: SQNR" in words and "After clipping" in words
    tops = [float(d.get("y")) for d in drawings]
    height = float(root.get("viewBox").split()[3])
    assert tops[0] < tops[1] and tops[1] + 190 < height
    for drawing in drawings:
        assert drawing.findall(f".//{SVG}path[@class='column']")


def test_a_page_is_a_page(network, tmp_path):
    said = mb.picture(network, path=tmp_path / "threshold.html")
    assert said.startswith("<!doctype html>") and said == mb.picture(network)
    assert (tmp_path / "threshold.html").read_text(encoding="utf-8") == said


def test_another_ending_is_refused_before_anything_is_written(network, tmp_path):
    with pytest.raises(InputError, match=r"unknown ending of a picture '\.png'.*\.html, \.svg"):
        mb.picture(network, path=tmp_path / "threshold.png")
    assert not list(tmp_path.iterdir())
