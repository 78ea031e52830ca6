"""The section of a search: every trial, the front, and the plan of the best network."""

from __future__ import annotations

from mirabelle.report.schema import Report
from mirabelle.report.sections.front import front
from tests.report.pages import Page

POINTS = [
    {"name": "original", "accuracy": 0.94, "milliseconds": 4.0, "bytes": 4e6, "on_front": True},
    {
        "name": "half, int8",
        "accuracy": 0.93,
        "interval": [0.92, 0.94],
        "milliseconds": 1.0,
        "bytes": 5e5,
        "on_front": True,
        "plan": [
            {
                "layer": "conv1",
                "action": "32 to 16 channels",
                "predicted_ms": 0.25,
                "measured_ms": 0.3,
            },
            {"layer": "fc", "action": "int8", "predicted_ms": 0.01, "measured_ms": 0.02, "rank": 8},
        ],
    },
    {"name": "worse", "accuracy": 0.9, "milliseconds": 2.0, "on_front": False},
    {"name": "broken", "accuracy": None, "milliseconds": 2.0},
]


def test_a_front_shows_every_trial_and_the_plan_of_the_best():
    page = Page(front(Report.of({"front": POINTS})))
    text = page.text
    assert "half, int8: 93 %, 1 ms, 500 kB" in text and "worse: 90 %, 2 ms" in text
    assert "on the front, 2" in text and "other trials, 1" in text and "4 in all" in text
    assert "The plan of half, int8" in text
    assert "layer what was done ms, predicted ms, measured rank" in text
    assert "conv1 32 to 16 channels 0.25 0.3" in text and "fc int8 0.01 0.02 8" in text
    assert "half, int8 93 % [92 %, 94 %] 1 ms 500 kB" in text
    assert front(Report.of({})) == "" and front(Report.of({"front": [POINTS[3]]})) == ""


def test_a_plan_that_is_marked_best_is_the_best():
    other = {**POINTS[0], "plan": [{"layer": "x", "action": "kept"}], "best": True}
    assert "The plan of original" in Page(front(Report.of({"front": [other, POINTS[1]]}))).text


def test_the_form_of_a_search_is_drawn(example):
    """A point's interval is that of its drop, and the plan stands in `search`."""
    knobs = {"depth": 0.5}
    trials = [
        {**POINTS[0], "drop": 0.0, "interval": [0.0, 0.0]},
        {
            "name": "trial 3",
            "accuracy": 0.93,
            "drop": 0.01,
            "interval": [0.004, 0.016],
            "milliseconds": 1.0,
            "bytes": 5e5,
            "on_front": True,
            "best": True,
            "knobs": knobs,
            "test": {"drop": 0.012, "interval": [0.01, 0.014], "n": 100},
        },
    ]
    search = {
        "plan": [{"layer": "conv1", "before": 32, "after": 16, "form": "int8", "cost_after": 0.2}],
        "predicted": {"loss": 0.03, "costs": {"latency": 0.25}},
        "measured": {"loss": 0.05, "costs": {"latency": 0.3, "size": 0.1}},
    }
    text = Page(front(Report.of({**example, "front": trials, "search": search}))).text
    assert "trial 3 93 % [92.4 %, 93.6 %] 1 ms 500 kB 1.00 [0.40, 1.60] 1.20 [1.00, 1.40]" in text
    assert "squared error of the outputs 0.03 0.05 milliseconds 0.25 0.3" in text
    assert "The plan of trial 3" in text and "conv1 32 16 int8 0.2" in text
    assert "trial 3: 93 %, 1 ms, 500 kB, depth 0.5" in text
