"""The sections of a report that show pictures: of the data, and those whose class changed."""

from __future__ import annotations

import pytest

from mirabelle.report.schema import Report
from mirabelle.report.sections.changed import changed
from mirabelle.report.sections.data import data
from tests.report.pages import CHANGED, DOT, PICTURES, text_of


def test_pictures_are_shown_with_what_was_taken_and_what_was_asked(example):
    text = text_of({**example, "data": PICTURES})
    assert "preprocessing 24x24 RGB, 0..1, mean 0.5, std 0.25, what was asked for" in text
    assert (
        "looked at 18 of them in neighboring ways, and none is better. It is right about 94 %"
        in (text)
    )
    assert "Their classes, row by row: husky, wolf." in text
    doubt = {"warnings": ["the preprocessing may be wrong; try --color bgr"], "pictures": 18}
    text = text_of({**example, "data": {**PICTURES, "check": doubt}})
    assert "try --color bgr" in text and "none is better" not in text
    unchecked = {**PICTURES, "check": {"warnings": [], "pictures": 0}}
    assert "was not checked: the network gives no classes" in text_of({"data": unchecked})
    assert "was not checked" not in text_of({"data": {"text": "tests.tiny:data", "check": {}}})


@pytest.mark.parametrize("uri", ["https://x/y.png", 'data:image/png;base64,A" onload="', None, 3])
def test_only_pictures_inside_of_the_page_are_drawn(uri):
    sheet = {**PICTURES["sheet"], "picture": uri}
    assert "<img" not in data(Report.of({"data": {**PICTURES, "sheet": sheet}}))


def test_pictures_whose_class_changed_are_shown_with_both_classes(example):
    text = text_of({**example, "changed": CHANGED})
    assert (
        "12 of 2 000 test pictures (0.60 %) have another class on ONNX Runtime than with the "
        "original network: 4 became right, 7 wrong, 1 wrong both times. The first 2 are shown "
        "as the network sees them. Black is the smallest value of a picture, white the largest."
    ) in text
    assert "husky → wolf label husky: right before" in text
    assert "wolf → husky label husky: right after" in text
    unlabeled = {"index": 0, "before": "1", "after": "2", "label": None, "picture": DOT}
    shown = {"n": 5, "changed": 1, "gained": None, "examples": [unlabeled], "colors": True}
    text = text_of({"changed": shown})
    assert "1 of 5 test pictures (20.00 %) have another class than with the original" in text
    assert "1 → 2" in text and "label" not in text and "Black" not in text


@pytest.mark.parametrize("uri", ["https://x/y.png", None])
def test_an_example_without_a_picture_is_left_out(uri):
    examples = [{**CHANGED["examples"][0], "picture": uri}]
    assert changed(Report.of({"changed": {**CHANGED, "examples": examples}})) == ""
    assert changed(Report.of({"changed": None})) == "" == changed(Report.of({}))
