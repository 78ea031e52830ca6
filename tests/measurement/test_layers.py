"""The time of each layer in float and in integers, by the names of the network's own layers, and
what follows from it.
"""

import numpy as np
import pytest

import mirabelle as mb
from mirabelle.base.errors import InputError
from mirabelle.measurement.layers import (
    BETWEEN,
    LAYOUT,
    LayerRow,
    advice,
    attribute,
    compare_layers,
)
from mirabelle.quantization import quantize
from mirabelle.runtimes.artifact import LayerTime
from tests.quantized_networks import batches, build


@pytest.mark.parametrize("runtime, target", [("onnxruntime", "x86-vnni"), ("openvino", "openvino")])
@pytest.mark.parametrize(
    "name, layers",
    [("residual", {"c0", "c1", "c2", "fc"}), ("squeeze_excite", {"a", "b", "e1", "e2", "fc"})],
)
def test_both_files_are_laid_side_by_side_by_layer(name, layers, runtime, target, tmp_path):
    x = batches(name, 1)[0]
    before = mb.export(build(name), tmp_path / "float", runtime=runtime, inputs=x[:1])
    after = mb.export(
        quantize(build(name), [x], target=target), tmp_path / "int8", runtime=runtime, inputs=x[:1]
    )
    found = mb.measure(after, inputs=x, baseline=before, runs=5)
    rows = {r.layer: r for r in found.layers}
    assert {n for n in rows if not n.startswith("(")} == layers
    assert all(rows[n].int8 and rows[n].operators for n in layers)
    assert (
        sum(rows[n].before_ms for n in layers) > 0 and sum(rows[n].after_ms for n in layers) > 0
    )  # whole microseconds: a small layer may take none
    assert ("executed as" in str(found) and "c1" in str(found)) or name != "residual"
    assert found.to_dict()["layers"][0]["layer"] == found.layers[0].layer


def test_a_layer_that_fell_back_is_named(tmp_path):
    """ONNX Runtime has no kernel for a convolution whose result stays in float, as OpenVINO's files
    have them.
    """
    x = batches(count=1)[0]
    before = mb.export(build("residual"), tmp_path / "float", inputs=x[:1])
    after = mb.export(
        quantize(build("residual"), [x], target="openvino"), tmp_path / "int8", inputs=x[:1]
    )
    rows = {r.layer: r for r in compare_layers(before, after, x[:1].numpy(), runs=2)}
    assert rows["c2"].int8 is False and rows["c1"].int8 is True and rows[BETWEEN].int8 is False
    assert any(s.startswith("1 of 4 layers run in float: c2") for s in advice(list(rows.values())))


def test_without_a_second_file_there_are_no_layers(tmp_path):
    x = batches(count=1)[0]
    artifact = mb.export(build("mean"), tmp_path, inputs=x[:1])
    assert mb.measure(artifact, inputs=x[:1], runs=5).layers is None
    assert mb.measure(artifact, inputs=x[:1], runs=5, baseline=build("mean")).layers is None


def test_names_that_runtimes_make():
    names = {"a/Conv": "a/Conv", "relu": "a/Conv", "b/Conv": "b/Conv", "add": "b/Conv"}
    given = ["a/Conv_token_1", "relu_nchwc", "b/Conv_quant", "add_nchwc", "reorder"]
    times = [LayerTime(n, "Conv", 1.0, None) for n in given]
    assert [n for n, _ in attribute(times, names)] == ["a", "a", "b", "b", "reorder"]
    assert [
        n for n, _ in attribute([LayerTime("a.0/Conv/WithoutBiases", "Convolution", 1.0, True)], {})
    ] == ["a.0"]


def rows(**times: tuple) -> list[LayerRow]:
    return [
        LayerRow(name, before, after, int8, (operator,))
        for name, (before, after, int8, operator) in times.items()
    ]


def test_advice_by_hand():
    good = rows(a=(2.0, 1.0, True, "QLinearConv"), b=(1.0, 0.6, True, "QLinearConv"))
    assert advice(good, 1.9) == []
    losing = [*good, *rows(se=(0.1, 0.4, True, "QLinearConv"))]
    assert advice(losing) == [
        "1 layer is slower as integers, by 0.300 ms together: quantize with keep=[...] for se"
    ]
    fallen = [
        *good,
        *rows(c=(1.0, 1.1, False, "FusedConv")),
        LayerRow(BETWEEN, 0, 1.0, False, ("QuantizeLinear",)),
        LayerRow(LAYOUT, 0, 0.1, False, ("Transpose",)),
        LayerRow("(HardSwish)", 0.2, 0.2, False, ("HardSwish",)),
    ]
    said = advice(fallen, 0.9)
    assert (
        said[0] == "1 of 3 layers run in float: c"
        and "25 % of the time around HardSwish, which has no integer kernel" in said[1]
        and "slower than in float" in said[2]
    )
    assert np.isclose(losing[2].loss_ms, 0.3)


def test_runtimes_without_a_profiler_say_so(tmp_path, monkeypatch):
    x = batches(count=1)[0]
    artifact = mb.export(build("mean"), tmp_path, inputs=x[:1])

    def refuse(*arguments, **options):
        raise InputError("does not tell")

    monkeypatch.setattr(type(artifact), "profile", refuse)
    assert mb.measure(artifact, inputs=x[:1], runs=5, baseline=artifact).layers is None
