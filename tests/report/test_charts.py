"""Charts: marks where the numbers say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mirabelle.report import charts, histograms, svg
from mirabelle.report.curves import Line, Panel, stacked
from mirabelle.report.schema import LayerSize
from mirabelle.report.sections.channels import channels
from tests.report.pages import drawings


def test_bars_are_as_long_as_their_values():
    rows = [
        {
            "name": "a",
            "value": "",
            "bars": [{"value": v, "class": "s0"} for v in (8.0, 2.0, 0.0, None, -1.0)],
        }
    ]
    drawn = ElementTree.fromstring(charts.bars(rows, "label"))
    assert [r.get("width") for r in drawn.iter("rect") if "bar" in r.get("class")] == [
        "100%",
        "25%",
        "0%",
        "0%",
        "0%",
    ]
    to_scale = ElementTree.fromstring(charts.bars(rows, "label", most=16.0))
    assert [r.get("width") for r in to_scale.iter("rect") if "bar" in r.get("class")][:2] == [
        "50%",
        "12.5%",
    ]


def test_both_columns_of_bars_are_to_one_scale():
    sizes = [{"layer": f"l{i}", "before": 10 * (i + 1), "after": 5} for i in range(8)]
    page = channels(list(map(LayerSize.of, sizes)))
    assert page.count('class="bars"') == 2
    shares = [
        float(w) for w in re.findall(r'width="([\d.]+)%" height="8" class="bar before"', page)
    ]
    assert shares == pytest.approx([100 * (i + 1) / 8 for i in range(8)])


def test_scatter_puts_points_where_they_belong():
    point = {"label": "a", "x": 1.0, "y": 0.5, "low": 0.0, "high": 1.0, "title": "t"}
    other = {**point, "label": "b", "x": 0.5, "y": 0.25}
    drawn = ElementTree.fromstring(charts.scatter([[point, other]], "x", "y"))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in drawn.iter("circle")]
    # x: 0 ... 1.1 on 48 ... 350; y: -0.08 ... 1.08 on 212 ... 26
    assert circles[0] == pytest.approx((48 + 302 / 1.1, 212 - 186 * 0.58 / 1.16), abs=1e-3)
    assert circles[1] == pytest.approx((48 + 302 * 0.5 / 1.1, 212 - 186 * 0.33 / 1.16), abs=1e-3)
    whisker = next(p.get("d") for p in drawn.iter("path"))
    assert [float(v) for v in re.match(r"M\S+ (\S+)V([\d.]+)", whisker).groups()] == pytest.approx(
        [212 - 186 * 0.08 / 1.16, 212 - 186 * 1.08 / 1.16], abs=1e-3
    )


def test_labels_of_near_points_do_not_overlap():
    points = [
        {
            "label": f"label {i}",
            "x": 0.5 + 0.01 * i,
            "y": 0.9 + 0.001 * i,
            "low": None,
            "high": None,
            "title": "",
        }
        for i in range(5)
    ]
    far = {"label": "far", "x": 1.0, "y": 1.0, "low": None, "high": None, "title": ""}
    drawn = ElementTree.fromstring(charts.scatter([[*points, far]], "x", "y"))
    boxes = [
        (float(t.get("x")), float(t.get("y")), len(t.text) * charts.GLYPH)
        for t in drawn.iter("text")
        if t.get("class") == "name"
    ]
    assert len(boxes) == 6
    marks = {
        (round(float(c.get("cx")), 2), round(float(c.get("cy")), 2)) for c in drawn.iter("circle")
    }
    leaders = [line for line in drawn.iter("line") if line.get("class") == "leader"]
    assert (
        leaders
        and {(round(float(a.get("x1")), 2), round(float(a.get("y1")), 2)) for a in leaders} <= marks
    )
    for i, (x, y, w) in enumerate(boxes):
        assert x >= charts.LEFT and x + w <= svg.WIDTH
        for x2, y2, w2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or abs(y - y2) >= 13


def test_histogram_heights_thresholds_and_the_clipped_part():
    # 4 bins of [-2, 2] on 1 ... 159, so a unit is 39.5 wide; log(1 + c) is 0, ln 8, ln 2 (a third
    # of it), 0 on 74 ... 6
    drawn = ElementTree.fromstring(
        histograms.histogram([0, 7, 1, 0], -2.0, 2.0, [-0.5, 0.5], "label")
    )
    paths = {p.get("class"): p.get("d") for p in drawn.iter("path")}
    assert paths["kept"] == "M60.25 74V6H80V74ZM80 74V51.333H99.75V74Z"
    assert paths["clipped"] == "M40.5 74V6H60.25V74ZM99.75 74V51.333H119.5V74Z"
    assert [p.get("d") for p in drawn.iter("path") if p.get("class") == "threshold"] == [
        "M60.25 2V74",
        "M99.75 2V74",
    ]
    outside = [(float(r.get("x")), float(r.get("width"))) for r in drawn.iter("rect")]
    assert sorted(outside) == [(1.0, 59.25), (99.75, 59.25)]


def test_a_gap_in_a_curve_stays_a_gap():
    drawn = ElementTree.fromstring(
        charts.lines([{"name": "loss", "values": [1.0, 2.0, None, 3.0, 4.0]}], "epoch", "loss")
    )
    assert [len(p.get("points").split()) for p in drawn.iter("polyline")] == [2, 2]
    assert [float(c.get("cx")) for c in drawn.iter("circle")] == pytest.approx(
        [48, 48 + 302 / 4, 48 + 302 * 3 / 4, 350]
    )


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.89, [0, 0.2, 0.4, 0.6, 0.8]),
        (92.2, 94.8, [93, 94]),
        (-3, 3, [-2, 0, 2]),
        (5, 5, [5]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_limits_are_drawn_where_they_are():
    point = {"label": "a", "x": 1.0, "y": 0.5, "low": None, "high": None, "title": "t"}
    limits = [
        {"axis": "x", "value": 2.0, "title": "fast enough"},
        {"axis": "y", "value": 0.4, "title": "good enough"},
    ]
    drawn = ElementTree.fromstring(charts.scatter([[point]], "x", "y", limits=limits))
    paths = [p.get("d") for p in drawn.iter("path") if p.get("class") == "threshold"]
    # x: 0 ... 2.2 on 48 ... 350; y: 0.392 ... 0.508 on 212 ... 26
    assert float(re.match(r"M([\d.]+)", paths[0])[1]) == pytest.approx(48 + 302 * 2 / 2.2, abs=1e-3)
    at = float(re.match(r"M48 ([\d.]+)H350", paths[1])[1])
    assert at == pytest.approx(212 - 186 * 0.008 / 0.116, abs=1e-3)


def test_a_waterfall_goes_from_value_to_value():
    rows = [
        {"name": "a", "value": "", "start": 4.0, "end": 1.0, "class": "s2"},
        {"name": "b", "value": "", "start": 1.0, "end": 2.0, "class": "s1"},
    ]
    drawn = ElementTree.fromstring(charts.waterfall(rows, "label"))
    bars = [r for r in drawn.iter("rect") if "bar" in r.get("class")]
    assert [(b.get("x"), b.get("width")) for b in bars] == [("25%", "75%"), ("25%", "25%")]
    drawn = ElementTree.fromstring(charts.waterfall(rows, "label", from_zero=False))
    bar = next(r for r in drawn.iter("rect") if "bar" in r.get("class"))
    assert float(bar.get("width").rstrip("%")) == pytest.approx(100 / 1.16, abs=1e-3)


def test_curves_share_one_axis_and_show_single_points():
    loss = Line("loss", [(1, 2.0), (2, 1.0), (4, 0.5)])
    held = Line("held out", [(0, 2.5), (4, 0.75)], 1, marks=True)
    rate = Line("learning rate", [(1, 0.1), (4, 0.0)], 5)
    page = stacked([Panel("loss", [loss, held]), Panel("rate", [rate])], "step", "a training")
    (drawing,) = drawings(page)
    curves = drawing.findall(".//polyline")
    ends = [[p.split(",") for p in c.get("points").split()] for c in curves]
    assert [e[-1][0] for e in ends] == ["350"] * 3 and ends[1][0][0] == "48"
    assert len(drawing.findall(".//rect")) == 2  # the marks of what is held out
    assert "held out, step 4: 0.75" in page and drawing.get("aria-label") == "a training"
    heights = [float(y) for e in ends for _, y in e]
    assert max(heights[:5]) < min(heights[5:])  # panels do not overlap
    assert stacked([Panel("loss", [Line("loss", [])])], "step", "none") == ""
    assert "circle" in stacked([Panel("loss", [Line("loss", [(1, 1.0)])])], "step", "one point")
