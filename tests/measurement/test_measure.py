"""`mb.measure` of files and of modules."""

import json
import math

import pytest
import torch

from mirabelle.base.errors import InputError
from mirabelle.measurement import Measurement, count_parameters, measure
from tests.measurement.files import SMALL_MACS


def labeled(n=30, batch=8):
    x = torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    y = torch.arange(n) % 10
    return [(x[i : i + batch], y[i : i + batch]) for i in range(0, n, batch)]


def test_measure_a_file_against_its_module(exported):
    model, path = exported
    loader = labeled()
    model.train()
    threads = torch.get_num_threads()
    result = measure(path, loader, runs=7, baseline=model)
    assert isinstance(result, Measurement) and model.training and torch.get_num_threads() == threads
    assert (result.name, result.runtime, result.threads, result.inputs) == (
        "small.onnx",
        "onnxruntime",
        1,
        [[1, 3, 12, 12]],
    )
    assert (result.macs, result.parameters, result.bytes) == (
        SMALL_MACS,
        count_parameters(model) - 16,
        path.stat().st_size,
    )
    assert result.latency.runs == result.baseline_latency.runs == result.speedup.rounds == 7
    assert result.memory.total > result.memory.before_loading > 0
    model.eval()
    hits = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    assert result.score.value == pytest.approx(hits / 30) and result.score.n == 30
    plain = result.to_dict()
    assert (
        json.loads(json.dumps(plain, allow_nan=False)) == plain
        and "samples" not in plain["latency"]
    )
    text = str(result)
    for word in (
        "small.onnx",
        "onnxruntime",
        "1 thread",
        "parameters",
        "1x3x12x12",
        "p50",
        "top1",
        "peak memory",
        "Sequential",
        "n = 30",
    ):
        assert word in text


def test_measure_a_module(exported):
    model = exported[0]
    result = measure(model, inputs=torch.randn(4, 3, 12, 12), runs=3)
    assert (result.runtime, result.macs, result.parameters) == (
        "torch",
        SMALL_MACS,
        count_parameters(model),
    )
    assert (
        result.bytes == 4 * (count_parameters(model) + 16) + 8
    )  # running means and variances, and an int64 counter
    assert (result.memory, result.score, result.speedup, result.inputs) == (
        None,
        None,
        None,
        [[4, 3, 12, 12]],
    )
    generator = iter(labeled())
    result = measure(
        model, generator, lambda output, target: -(output[:, 0] - target).abs(), runs=1
    )
    assert result.score.n == 30 and not result.score.binary
    lone = measure(model, labeled(1, 1), lambda output, target: output[:, 0] + 0.5, runs=1)
    assert math.isinf(lone.score.high) and lone.to_dict()["score"]["high"] is None
    assert measure(model, [x for x, _ in labeled()], runs=1).score is None


def test_measure_refuses(exported, tmp_path):
    model = exported[0]
    for wrong, words in (
        ((3,), "cannot measure a int"),
        (("net.pt",), "ends in '.pt'"),
        ((model,), "data= or inputs"),
        ((model, []), "no batch"),
    ):
        with pytest.raises(InputError, match=words):
            measure(*wrong)
    with pytest.raises(InputError, match="does not run"):
        measure(model, inputs=torch.randn(1, 4, 12, 12))
    with pytest.raises(InputError, match="metric is .top2.; did you mean"):
        measure(model, labeled(), "top2", runs=1)
    with pytest.raises(InputError, match="not there"):
        measure(tmp_path / "none.onnx", inputs=torch.randn(1, 3, 12, 12))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_wrapped_networks_are_measured_as_what_they_wrap(exported):
    """torch.compile's and DataParallel's wrappers would compile in the time, or scatter."""
    model, _ = exported
    x = torch.randn(1, 3, 12, 12)
    plain = measure(model, inputs=x, runs=2)
    for wrapped in (torch.compile(model), torch.nn.DataParallel(model)):
        found = measure(wrapped, inputs=x, runs=2, baseline=wrapped)
        assert found.name == plain.name == found.baseline
        assert (found.macs, found.parameters, found.bytes) == (
            plain.macs,
            plain.parameters,
            plain.bytes,
        )
