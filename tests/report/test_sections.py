"""Each section says what its part of the report says."""

from __future__ import annotations

import pytest

from mirabelle.report.sections.profile import layer_times
from mirabelle.report.sections.quantization import placed, thresholds
from mirabelle.report.sections.recipe import as_yaml
from tests.report.pages import text_of


def test_every_stage_is_there_with_its_figures(example):
    text = text_of(example)
    for stage in example["stages"]:
        assert stage["label"] in text
        for figures in stage["runtimes"].values():
            score, latency, speed = figures["accuracy"], figures["latency"], figures["speedup"]
            assert (
                f"{100 * score['value']:.2f} % [{100 * score['low']:.2f}, "
                f"{100 * score['high']:.2f}] n = 10 000" in text
            )
            assert f"{latency['p50_ms']:g} ms" in text and f"{latency['p95_ms']:g} ms" in text
            assert f"{speed['value']:g}×" in text
    for figure in (
        "2.48 MB",
        "911 kB",
        "230 kB",
        "51.6 M",
        "20.1 M",
        "619 k",
        "226 k",
        "98 MB",
        "18 MB for the network",
        "[4.07, 4.35]",
    ):
        assert figure in text


def test_the_headline_and_its_limits(example):
    text = text_of(example)
    assert (
        "On ONNX Runtime the network is 4.2× faster and 10.8× smaller, and loses 0.31 points of "
        "top-1 accuracy." in text
    )
    assert "95 % interval [0.08, 0.54]" in text
    assert "✗ Missed by 1.2×: the size ratio on ONNX Runtime is 10.8×, asked at least 12×" in text
    assert (
        "✓ Met : the loss of accuracy on ONNX Runtime is 0.31 points, asked at most 0.5 points"
        in text
    )
    assert "✓ Met : the speed-up on ONNX Runtime is 4.2×, asked at least 4×" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"speedup": 0.8}, "is 1.25× slower and 10.8× smaller, and loses"),
        ({"size_ratio": None}, "is 4.2× faster, and loses 0.31 points"),
        (
            {"accuracy_drop": -0.002, "accuracy_drop_interval": [-0.003, -0.001]},
            "and gains 0.20 points of top-1 accuracy.",
        ),
        (
            {"accuracy_drop": 0.001, "accuracy_drop_interval": [-0.001, 0.003]},
            "loses 0.10 points of top-1 accuracy, a difference within the noise of the test.",
        ),
        (
            {"accuracy_drop": 0.0, "accuracy_drop_interval": [0.0, 0.0]},
            "and loses no top-1 accuracy.",
        ),
        ({"speedup": None, "size_ratio": None}, "the network loses 0.31 points"),
        ({"runtime": None}, "The network is 4.2× faster"),
    ],
)
def test_the_headline_says_what_the_figures_say(example, change, sentence):
    example["result"].update(change)
    assert sentence in text_of(example)


def test_a_near_miss_is_not_rounded_away(example):
    example["limits"] = [
        {"name": "accuracy_drop", "limit": 0.005, "value": 0.00503, "met": False, "runtime": None}
    ]
    assert (
        "Missed by 0.003 points: the loss of accuracy is 0.503 points, asked at most 0.5 points"
        in text_of(example)
    )


def test_a_limit_that_was_not_measured_is_neither_met_nor_missed(example):
    example["limits"] = [
        {"name": "speedup", "limit": 4, "value": None, "met": None, "runtime": "openvino"}
    ]
    text = text_of(example)
    assert "Not measured : the speed-up on OpenVINO, asked 4×" in text
    assert "Met" not in text and "Missed" not in text


def test_a_metric_that_is_no_share_is_not_a_percentage(example):
    for stage in example["stages"]:
        for figures in stage["runtimes"].values():
            figures["accuracy"].update(
                metric="psnr", binary=False, value=31.24, low=31.1, high=31.38
            )
    text = text_of(example)
    assert (
        "31.24 [31.1, 31.38] n = 10 000" in text
        and "loses 0.0031 psnr" in text
        and "3124" not in text
    )


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0, 255], [3.0]),
        ([0, 127], [3.0]),
        ([-127, 127], [-3.0, 3.0]),
        ([-128, 127], [-3.0, 3.0]),
        ([], [-3.0, 3.0]),
        (None, [-3.0, 3.0]),
    ],
)
def test_integers_from_zero_have_one_threshold(levels, expected):
    assert (
        thresholds({"threshold": [0.5, 3.0, None], "levels": levels}) == expected
    )  # of many channels, the largest
    assert thresholds({"threshold": None, "levels": levels}) == []


def test_profiles_keep_the_order_of_execution():
    before = [
        {"name": n, "milliseconds": 1.0, "operator": "Conv", "int8": False}
        for n in ("a", "b", "c", "c")
    ]
    after = [
        {"name": n, "milliseconds": 0.5, "operator": "QLinearConv", "int8": n != "q"}
        for n in ("q", "a", "r", "c")
    ]
    rows = layer_times(before, after)
    assert [r["name"] for r in rows] == ["q", "a", "r", "b", "c", "c"]
    assert (
        rows[1]["value"].replace("\u00a0", " ") == "1 → 0.5 ms int8"
        and rows[1]["bars"][1]["class"] == "s2"
    )
    assert (
        rows[0]["value"].replace("\u00a0", " ") == "– → 0.5 ms float"
        and rows[0]["bars"][1]["class"] == "s1"
    )
    assert rows[5]["bars"][1]["value"] is None


def test_verification_names_the_first_departure(example):
    text = text_of(example)
    assert (
        "First departure at layer3.0.conv2: the runtime fuses the addition and rounds once" in text
    )
    assert (
        "Same answer on 99.80 % of the samples [99.27, 99.95] n = 1 000; output SQNR 38.1 dB"
        in text
    )
    assert "13 layers, off by at most 1" in text and "13 layers, off by at most 3" in text


@pytest.mark.parametrize(
    ("saturated", "expected"),
    [
        ({"c0": 0.001, "c1": 0.042}, "in 2 layers, most in c1 (4.2 % of its sums)."),
        ({"c0": 0.5}, "in 1 layer, most in c0 (50 % of its sums)."),
    ],
)
def test_verification_names_what_the_processors_kernels_clip(example, saturated, expected):
    assert "kernels clip" not in text_of(example)
    example["verification"][0]["saturated"] = saturated
    assert f"This processor's kernels clip pairs of products {expected}" in text_of(example)


def test_the_recipe_reads_back(example):
    yaml = pytest.importorskip("yaml")
    tricky = {
        "a": ["no", 1, None, {"b": "1.0", "c": {}}],
        "on": "yes",
        "d: e": "f: g",
        "h": "a:b",
        "i": {"j": [[1, 2], []]},
        "k": "",
        "l": "x#y",
        "m": "dots...",
    }
    for recipe in (example["recipe"], tricky):
        assert yaml.safe_load(as_yaml(recipe)) == recipe


def test_what_placement_by_time_found_is_said():
    times = {"float": 2.0, "all_quantized": 2.5, "placed": 1.5}
    said = placed(
        {"runtime": "onnxruntime", "layers": ["a.weight", "b.weight"], "milliseconds": times}
    )
    assert (
        "a.weight, b.weight stay in float. One call on ONNX Runtime: float 2 ms, all quantised "
        "2.5 ms, as it is 1.5 ms." in said.replace("\xa0", " ")
    )
    assert (
        "no layer stays in float"
        in placed({"runtime": "onnxruntime", "layers": [], "milliseconds": None})
        and placed({}) == ""
    )
