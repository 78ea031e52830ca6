"""What is read of a report's JSON: by its keys, and never trusted."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from mirabelle.report.schema import NO_FIGURES, Report, unknown


def test_every_key_has_its_name(example):
    report = Report.of(example)
    assert unknown(Report, example) == []
    assert report.stages[-1].on("onnxruntime").accuracy.n == 10000
    assert report.result.speedup == example["result"]["speedup"]
    assert report.steps == ["prune", "distill", "quantize"]


def test_keys_that_nobody_knows_are_named():
    found = {"stages": [{"runtimes": {"onnxruntime": {"acuracy": {}}}}], "reslut": {}}
    assert unknown(Report, found) == ["stages.runtimes.acuracy", "reslut"]


@pytest.mark.parametrize("found", [None, [], 3, {}, {"stages": None, "result": []}])
def test_of_nothing_every_part_is_there_and_false(found):
    report = Report.of(found)
    assert (
        not report and not report.result and report.stages == [] and report.result.speedup is None
    )
    assert all(not getattr(report, f.name) for f in fields(report))


def test_what_is_of_another_kind_is_left_out():
    stage = {"name": 3, "macs": "many", "runtimes": {"a": {"bytes": True}, "b": []}}
    report = Report.of({"stages": [stage, "text", None], "timings": {"fit": float("nan")}})
    (found,) = report.stages
    assert found.name == "3" and found.macs is None and report.timings == {"fit": None}
    assert found.on("a").bytes is None and not found.on("b") and found.on("c") is NO_FIGURES


def test_a_shape_of_any_rank_is_none():
    inputs = Report.of({"network": {"inputs": [{"shape": None}, {"shape": []}]}}).network.inputs
    assert [i.shape for i in inputs] == [None, []]


def test_a_report_is_written_as_it_was_read(example):
    report = Report.of(example)
    written = report.to_dict()
    assert Report.of(written) == report
    assert written["recipe"] == example["recipe"]
    for key, value in example["result"].items():
        assert written["result"][key] == value


def test_of_what_is_unknown_a_report_has_no_key_and_a_part_none():
    written = Report.of({"title": "t", "stages": [{"name": "original", "macs": 3}]}).to_dict()
    assert "search" not in written and "stopped" not in written
    assert written["stages"] == [
        {"name": "original", "label": None, "parameters": None, "macs": 3, "runtimes": {}}
    ]
    assert NO_FIGURES.to_dict()["accuracy"] is None


def test_tuples_are_lists():
    read = Report.of({"advice": ("a", "b"), "network": {"inputs": ({"shape": (1, 2)},)}})
    assert read.advice == ["a", "b"] and read.network.inputs[0].shape == [1, 2]


def test_open_intervals_are_none_in_json():
    figures = replace(NO_FIGURES, accuracy_drop_interval=[-math.inf, 0.1])
    assert figures.to_dict()["accuracy_drop_interval"] == [None, 0.1]
