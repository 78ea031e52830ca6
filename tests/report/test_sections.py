"""Each section says what its part of the report says."""

from __future__ import annotations

import re
from itertools import pairwise
from urllib.parse import unquote

import pytest

from mirabelle.report.schema import Check, Profile, QuantizedTensor, Report, Stage, Timing, Training
from mirabelle.report.sections.downloads import downloads
from mirabelle.report.sections.layers import layers
from mirabelle.report.sections.profile import layer_times, paired, reconciled
from mirabelle.report.sections.quantization import placed, thresholds
from mirabelle.report.sections.recipe import as_yaml
from mirabelle.report.sections.steps import waterfall_rows
from mirabelle.report.sections.training import training
from mirabelle.report.sections.verification import verification
from tests.report.pages import Page, text_of


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
        "On ONNX Runtime, on an Intel Xeon Platinum 8375C core, not a phone, the network is 4.2× "
        "faster (0.81 → 0.193 ms) and 10.8× smaller (2.48 MB → 230 kB), and loses 0.31 points of "
        "top-1 accuracy." in text
    )
    assert "95 % interval [0.08, 0.54]" in text
    assert "✗ Missed by 1.2×: the size ratio on ONNX Runtime is 10.8×, asked at least 12×" in text
    assert (
        "✓ Met with 0.19 points to spare: the loss of accuracy on ONNX Runtime is 0.31 points, "
        "asked at most 0.5 points" in text
    )
    spare = "✓ Met with 0.2× to spare: the speed-up on ONNX Runtime is 4.2×, asked at least 4×"
    assert spare in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"speedup": 0.8}, "core, not a phone, the network is 1.25× slower ("),
        ({"size_ratio": None}, "is 4.2× faster (0.81 → 0.193 ms), and loses 0.31 points"),
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
        (
            {"runtime": None},
            "On an Intel Xeon Platinum 8375C core, not a phone, the network is 4.2× faster and",
        ),
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
        thresholds(QuantizedTensor.of({"threshold": [0.5, 3.0, None], "levels": levels}))
        == expected
    )  # of many channels, the largest
    assert thresholds(QuantizedTensor.of({"threshold": None, "levels": levels})) == []


def test_profiles_keep_the_order_of_execution():
    before = [
        {"name": n, "milliseconds": 1.0, "operator": "Conv", "int8": False}
        for n in ("a", "b", "c", "c")
    ]
    after = [
        {"name": n, "milliseconds": 0.5, "operator": "QLinearConv", "int8": n != "q"}
        for n in ("q", "a", "r", "c")
    ]
    rows = layer_times(paired(Profile.of({"before": before, "after": after})))
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


def test_a_profile_adds_up_to_the_latency_of_the_headline(example):
    """Of 4 ms and 1 ms that the profiler saw, three quarters and a half belong to `a`."""
    example["profile"] = {
        "onnxruntime": {
            "layers": [
                {"layer": "a", "before_ms": 3.0, "after_ms": 0.5, "int8": True},
                {"layer": "(Add)", "before_ms": 1.0, "after_ms": 0.5, "int8": False},
            ],
            "advice": ["keep a in float"],
        }
    }
    ends = [s["runtimes"]["onnxruntime"]["latency"]["p50_ms"] for s in example["stages"]]
    rows = reconciled(Report.of(example), "onnxruntime")
    assert [rows[0].before_ms, rows[0].after_ms] == pytest.approx([0.75 * ends[0], 0.5 * ends[-1]])
    assert sum(r.after_ms or 0 for r in rows) == pytest.approx(ends[-1])
    text = text_of(example)
    assert f"{ends[0]:g} ms → {ends[-1]:g} ms a call, 50 % of it in int8" in text
    assert "keep a in float" in text


def test_verification_names_the_first_departure(example):
    text = text_of(example)
    assert (
        "First departure at layer3.0.conv2: fused with the addition of layer3.0.shortcut; the sum "
        "is rounded once. It is off by more than the 1 step that OpenVINO declares." in text
    )
    assert (
        "Same answer on 99.80 % of the samples [99.27, 99.95] n = 1 000; output SQNR 38.1 dB"
        in text
    )
    assert "✓ As declared" not in text  # ONNX Runtime is within, but 2 samples of 1000 differ
    assert "Within the tolerance : no layer is off by more than the 1 step that ONNX" in text
    assert "2 of 1 000 samples get another class." in text
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
    found = {"runtime": "onnxruntime", "layers": ["a.weight", "b.weight"], "milliseconds": times}
    said = placed(Timing.of(found))
    assert (
        "a.weight, b.weight stay in float. One call on ONNX Runtime: float 2 ms, all quantized "
        "2.5 ms, as it is 1.5 ms." in said.replace("\xa0", " ")
    )
    nothing = {"runtime": "onnxruntime", "layers": [], "milliseconds": None}
    assert "no layer stays in float" in placed(Timing.of(nothing)) and placed(Timing.of({})) == ""


@pytest.mark.parametrize(
    ("off_by", "tolerance", "same", "class_", "words"),
    [
        (2, 2, 1.0, "agrees", "✓ As declared : no layer is off by more than the 2 steps"),
        (1, 1, 1.0, "agrees", "✓ As declared : no layer is off by more than the 1 step that"),
        (2, 2, 0.75, "near", "1 of 4 samples get another class; 1 of them tie within one step."),
        (2, 1, 1.0, "departure", "First departure at a: why. It is off by more than the 1 step"),
    ],
)
def test_a_departure_within_the_declared_tolerance_is_no_alarm(
    off_by, tolerance, same, class_, words
):
    layer = {"layer": "a", "max_off_by": off_by, "exact": 0.9, "note": "why"}
    check = {
        "runtime": "openvino",
        "tolerance": tolerance,
        "agreement": {"value": same, "n": 4},
        "ties": 1,
        "first_departure": {"layer": "a", "why": "why"} if off_by > 1 else None,
        "layers": [layer],
    }
    page = verification([Check.of(check)])
    assert f'class="{class_}"' in page and words in Page(page).text
    assert sum(f'class="{c}"' in page for c in ("agrees", "near", "departure")) == 1


def test_every_layer_has_a_row_with_what_is_known_of_it(example):
    example["channels"] = [{"layer": "c", "before": 32, "after": 16, "macs": [7.2e6, 3.6e6]}]
    example["quantization"]["tensors"] = [
        {"name": "c", "kind": "weight", "bits": 4, "sqnr_db": 30.0},
        {
            "name": "c",
            "kind": "activation",
            "bits": 8,
            "sqnr_db": 28.0,
            "rule": "laplace",
            "chosen": True,
            "range": [0.0, 3.0],
            "maximum": 4.0,
            "unclipped": {"sqnr_db": 26.5},
        },
    ]
    seen = {"layer": "c", "max_off_by": 1, "exact": 0.5, "cause": "rounding", "float_sqnr_db": 22.0}
    example["verification"] = [{"runtime": "openvino", "layers": [seen]}]
    rows = [{"layer": "c", "before_ms": 2.0, "after_ms": 1.0, "int8": True, "advice": "keep it"}]
    example["profile"] = {"openvino": {"layers": rows}}
    for stage, ms in ((0, 1.0), (-1, 4.0)):
        example["stages"][stage]["runtimes"]["openvino"]["latency"]["p50_ms"] = ms
    page = layers(Report.of(example))
    (row,) = re.findall("<tbody>(.*?)</tbody>", page, re.S)
    assert (
        Page(row).text.split()
        == (
            "c 32 → 16 7.2 M → 3.6 M 1 → 4 0.25×, int8 4 / 8 weights / values 22.0 dB "
            "weights 30.0 dB 50.00 % off by 1 rounding laplace "
            "at 0.75 of the largest, +1.5 dB OpenVINO: keep it"
        ).split()
    )
    assert re.findall('data-v="(.*?)"', row) == ["16", "3.6e+06", "4", "4", "22", "0.5"]
    assert "Thresholds were chosen tensor by tensor: 1 by laplace." in text_of(example)
    example["stages"][-1]["runtimes"]["openvino"]["latency"]["p50_ms"] = 0.5
    assert "keep it" not in layers(Report.of(example))  # the call says that it is faster


def test_nodes_of_another_name_pair_by_their_layer(example):
    """The report shows what `pair_layers` found, not names of nodes."""
    nodes = [{"name": "getitem_21_nchwc", "milliseconds": 0.216, "operator": "Conv"}]
    rows = [{"layer": "layer3.0.conv2", "before_ms": 0.216, "after_ms": 0.05, "int8": True}]
    example["profile"] = {"onnxruntime": {"before": nodes, "after": [], "layers": rows}}
    assert "getitem" not in text_of(example)


def test_steps_say_what_each_cost_and_bought(example):
    text = text_of(example)
    values = [s["runtimes"]["onnxruntime"]["latency"]["p50_ms"] for s in example["stages"]]
    for before, after in pairwise(values):
        assert f"{before:g} ms → {after:g} ms (" in text
    stages = [Stage.of({"name": n, "label": n}) for n in "ab"]
    (row,) = waterfall_rows(stages, [4.0, 1.0], str, -1, {"b": 71})
    assert row["value"] == "4.0 → 1.0 (−3.0)" and row["class"] == "s2"
    assert row["name"].replace("\u00a0", " ") == "b in 71 s"
    (row,) = waterfall_rows(stages, [0.9, 0.8], str, 1, {})
    assert row["class"] == "s1" and row["name"] == "b"


def test_downloads_name_the_files_and_how_to_use_them(example):
    assert "Downloads" not in text_of(example)
    example["files"] = {
        "model": ["model.safetensors", "model.json"],
        "onnxruntime": ["model.onnx"],
        "litert": ["model.tflite"],
    }
    example["network"] |= {"name": "examples.fashion:resnet"}
    example["network"]["inputs"] = [{"name": "x", "shape": [1, 1, 28, 28], "dtype": "float32"}]
    text = text_of(example)
    for code in (
        "from examples.fashion import resnet",
        'network = mb.load("model", resnet())',
        'InferenceSession("onnxruntime/model.onnx")',
        'assets.open("model.onnx")',
        "longArrayOf(1, 1, 28, 28)",
        'assets.open("model.tflite")',
        'forResource: "model", ofType: "tflite"',
        "elementType: .float, shape: [1, 1, 28, 28]",
    ):
        assert code in text
    specs = [{"name": "x", "shape": [None, 1, 28, 28], "dtype": "float32"}]
    example["handoff"] = {"onnxruntime": {"inputs": specs, "outputs": [{**specs[0], "shape": []}]}}
    example["data"] = {"pictures": "28 × 28, mean 0.5", "preprocessing": {"layout": "nchw"}}
    text = text_of(example)
    assert "float32, any × 1 × 28 × 28: samples, channels, height, width" in text
    assert "float32, a scalar" in text and "28 × 28, mean 0.5" in text
    example["network"]["name"] = "timm:mobilenetv3_small_100"
    page = downloads(Report.of(example))
    assert "from timm import" not in page
    (data,) = re.findall('href="data:text/yaml;charset=utf-8,(.*?)"', page)
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(unquote(data)) == example["recipe"]


def test_a_training_is_drawn_by_step_with_its_scores(example):
    text = text_of(example)
    assert "distill: 3 600 steps, 100 steps a point, 71.2 s" in text
    assert "sum" in text and "validation top1, step 300: 91.97 %" in text
    held = {"name": "held_out", "step": [0, 2], "value": [2.0, 1.5]}
    curve = {"each": 1, "step": [1, 2], "lr": [0.1, 0.0], "loss": {"labels": [1.5, 1.25]}}
    fit = {"stage": "fit", "curve": {**curve, "score": held}, "seconds": None}
    page = training([Training.of(fit)])
    assert "fit: labels from 1.5 to 1.25, held out from 2 to 1.5" in page
    assert page.count('class="axis"') == 3 and page.count("<polyline") == 3  # on one axis: loss
    assert training([Training.of({"stage": "fit", "curve": {}})]) == "" == training([])


def test_what_stays_in_float_is_named(example):
    example["quantization"]["float_operators"] = {"softplus": 3, "<mean>": 1}
    page = text_of(example)
    assert "operators in float: softplus (3 times), <mean>" in page
