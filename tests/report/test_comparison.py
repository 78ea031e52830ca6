"""Runs side by side on one page."""

from __future__ import annotations

import copy
import json
import re

import pytest

from mirabelle import report as reports
from tests.report.pages import EXAMPLE, Page, drawings


@pytest.fixture(scope="module")
def runs() -> list[tuple[str, dict]]:
    """The example, and a run of it that cut less and asked for less."""
    first = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    second = copy.deepcopy(first)
    second["result"] |= {"speedup": 2.5, "accuracy_drop": 0.0007}
    second["limits"] = [v for v in second["limits"] if v["name"] == "speedup"]
    second["channels"] = [
        {**c, "after": c["before"]} for c in second["channels"] if c["layer"] != "stem.conv"
    ]
    return [("runs/a", first), ("runs/b", second)]


def test_both_runs_are_there_with_their_figures(runs):
    page = Page(reports.render_comparison(runs))
    assert "runs/a On ONNX Runtime, on an Intel Xeon Platinum 8375C core, not a phone" in page.text
    assert "speed-up 4.2× [4.07, 4.35] 2.5× [4.07, 4.35]" in page.text
    assert "accuracy lost 0.31 points [0.08, 0.54] 0.07 points" in page.text
    assert "the speed-up ✓ met: 4.2× asked 4× ✓ met: 4.2× asked 4×" in page.text
    assert "the size ratio ✗ missed: 10.8× asked 12× not asked" in page.text
    headings = re.findall(r"<h2>(.*?)</h2>", reports.render_comparison(runs))
    assert headings == [
        "What each run reached",
        "Limits",
        "What each step cost and bought",
        "Every layer",
    ]


def test_layers_are_paired_by_module(runs):
    page = reports.render_comparison(runs)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    found = {name: Page(cells).text.split() for name, cells in rows}
    assert found["layer1.0.conv1"][:3] == ["16", "of", "32"]
    stem = page.partition('scope="row">stem.conv</th>')[2].partition("</tr>")[0]
    assert stem.count("<td") == 4 and "channels, runs/b" not in stem  # the other has no such layer


def test_steps_of_runs_are_on_one_axis(runs):
    slow = copy.deepcopy(runs[1][1])
    for stage in slow["stages"]:
        for figures in stage["runtimes"].values():
            figures["latency"]["p50_ms"] *= 2
    page = reports.render_comparison([runs[0], ("slow", slow)])
    bars = {
        d.get("aria-label"): [float(r.get("width").rstrip("%")) for r in d.iter("rect")]
        for d in drawings(page)
    }
    one, other = bars["Latency, ms of runs/a"], bars["Latency, ms of slow"]
    assert one[1] == pytest.approx(other[1] / 2, rel=1e-3) and one[0] == other[0] == 100


def test_what_cannot_be_compared_is_said(runs):
    other = copy.deepcopy(runs[1][1])
    other["machine"]["cpu"] = "Cortex-A76"
    for stage in other["stages"]:
        for figures in stage["runtimes"].values():
            figures["accuracy"] |= {"metric": "psnr", "n": 7}
    text = Page(reports.render_comparison([runs[0], ("c", other)])).text
    assert "different machines. Compare ratios, and no milliseconds: Cortex-A76; Intel" in text
    assert "different metrics: psnr, top-1 accuracy." in text and "numbers of samples" in text
    assert "different" not in Page(reports.render_comparison(runs)).text


@pytest.mark.parametrize("other", [{}, {"stages": None, "limits": 3, "result": []}], ids=str)
def test_a_run_that_lacks_everything_leaves_its_column_empty(runs, other):
    for pair in ([runs[0], ("empty", other)], [("empty", other), runs[0]]):
        text = Page(reports.render_comparison(pair)).text
        assert "not asked" in text and "None" not in text


def test_names_are_escaped(runs):
    page = reports.render_comparison([("<script>", runs[0][1]), ("b", runs[1][1])])
    assert page.count("<script>") == 1
    Page(page)
