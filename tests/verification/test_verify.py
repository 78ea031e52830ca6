"""The integer reference against the simulation and the runtimes; and that what is wrong is
found.
"""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.quantization import quantize
from mirabelle.runtimes import RUNTIMES, load
from mirabelle.verification import sqnr
from mirabelle.verification.causes import diagnose
from mirabelle.verification.exposure import _WRITERS, run_in_float
from mirabelle.verification.integer_reference import IntegerReference
from tests.quantized_networks import NETWORKS, batches, build, needs

# Its float transposed convolution: ONNX Runtime quantizes the weights by itself.
ON_THE_RUNTIME = [n for n in NETWORKS if n != "transposed"]
AFFINE = {"symmetric": False, "weight_symmetric": False}


def ties(q, data) -> int:
    """Samples whose two largest outputs of the reference lie within half a percent of the range."""
    result = np.concatenate(
        [IntegerReference(q).run(Batch((x,), {}, None))[1].reshape(len(x), -1) for x in data]
    )
    best = np.sort(result, 1)
    return int((best[:, -1] - best[:, -2] < 0.005 * (result.max() - result.min())).sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_is_close_to_the_simulation(name):
    q, x = quantize(build(name), batches(name, 2)), batches(name, 1, seed=5)[0]
    sites, result = IntegerReference(q).run(Batch((x,), {}, None))
    simulated = q(x).detach().numpy()
    assert (result.shape == simulated.shape and sqnr(simulated, result) is None) or sqnr(
        simulated, result
    ) > 35
    for site in q.meta["quantization"].sites:
        grid = q.get_submodule(f"quantizers.{site.source or site.node}")
        assert sites[site.node].min() >= grid.low and sites[site.node].max() <= grid.high
        assert sites[site.node].dtype.kind == "i"


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2},
        {"bits": 4},
        {"bits": 12},
        {"bits": 16},
        {"bits": 16, "weight_bits": 4},
        {"per_channel": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["residual", "depthwise", "conv1d"])
def test_the_reference_takes_all_bits(name, options):
    q, x = (
        quantize(
            build(name),
            batches(name, 2),
            target="x86-vnni",
            threshold="mse",
            repair=None,
            **options,
        ),
        batches(name, 1, seed=5)[0],
    )
    _, result = IntegerReference(q).run(Batch((x,), {}, None))
    # Where steps are coarse, one value that is rounded the other way is a large difference; and the
    # reference's biases are integers of such steps too.
    assert sqnr(q(x).detach().numpy(), result) > {2: 8, 4: 20}.get(options.get("bits"), 35)


@pytest.mark.processor
@pytest.mark.parametrize(
    "options", [{"per_channel": False}, {"weight_bits": 4}, {"symmetric": False}], ids=str
)
def test_onnxruntime_takes_other_weights(options, tmp_path):
    q, data = (
        quantize(build("residual"), batches("residual", 2), **options),
        batches("residual", 2, seed=5),
    )
    found = mb.verify(q, mb.export(q, tmp_path, inputs=data[0][:1]), data)
    assert all(c.max_off_by <= 1 and c.exact >= 0.99 for c in found.layers)


@pytest.mark.processor
@pytest.mark.parametrize("name", ON_THE_RUNTIME)
def test_onnxruntime_equals_the_reference(name, tmp_path):
    q, data = quantize(build(name), batches(name, 2)), batches(name, 2, seed=5)
    found = mb.verify(q, mb.export(q, tmp_path, inputs=data[0][:1]), data)
    assert found.samples == 32 and len(found.layers) == len(q.meta["quantization"].sites)
    for check in found.layers:
        assert check.max_off_by <= 1 and check.exact >= 0.99, check
    assert found.first_departure is None
    assert (1 - found.agreement.value) * 32 <= ties(q, data)
    assert found.sqnr_db is None or found.sqnr_db > 35


@pytest.mark.processor
@pytest.mark.parametrize(
    "name", ["residual", "depthwise", "sequential", "ends_in_conv", "concatenation"]
)
def test_openvino_nearly_equals_the_reference(name, tmp_path):
    q, data = quantize(build(name), batches(name, 2)), batches(name, 2, seed=5)
    found = mb.verify(q, mb.export(q, tmp_path, runtime="openvino", inputs=data[0][:1]), data)
    assert len(found.layers) == len(q.meta["quantization"].sites)
    assert (
        max(c.max_off_by for c in found.layers) <= 2 and min(c.exact for c in found.layers) >= 0.97
    )
    assert found.sqnr_db is None or found.sqnr_db > 30


@pytest.mark.processor
@pytest.mark.parametrize("runtime", [n for n in RUNTIMES if n in _WRITERS])
def test_one_changed_weight_is_found_where_it_is(runtime, tmp_path):
    needs(runtime)
    q, data = quantize(build("residual"), batches(), target="symmetric"), batches(count=1)
    changed = copy.deepcopy(q)
    with torch.no_grad():
        weight = changed.get_parameter("c1.weight")[3].view(-1)
        weight[weight.abs().argmax()] *= -1
    found = mb.verify(q, mb.export(changed, tmp_path, runtime=runtime, inputs=data[0][:1]), data)
    assert found.first_departure is not None and found.first_departure.layer == "c1"
    assert all(
        c.max_off_by <= 1 for c in found.layers[: [c.layer for c in found.layers].index("c1")]
    )
    assert found.to_dict()["first_departure"]["layer"] == "c1" and "c1" in str(found)


@pytest.mark.processor
@pytest.mark.parametrize(
    "runtime", [n for n, r in RUNTIMES.items() if r.int8 and r.save is not None]
)
def test_an_altered_scale_is_found(runtime, tmp_path):
    needs(runtime)
    q, data = quantize(build("residual"), batches(), target="symmetric"), batches(count=1)
    path = mb.export(q, tmp_path, inputs=data[0][:1]).path
    proto = onnx.load(path)
    quantizer = next(n for n in proto.graph.node if n.output[0] == "relu_1_quantized")
    for tensor in proto.graph.initializer:
        if tensor.name == quantizer.input[1]:
            tensor.CopyFrom(
                numpy_helper.from_array(
                    numpy_helper.to_array(tensor) * np.float32(1.05), tensor.name
                )
            )
    onnx.save(proto, path)
    found = mb.verify(q, mb.export(path, tmp_path / "again", runtime=runtime), data)
    assert (
        found.first_departure is not None and found.first_departure.layer == "c1"
    ) or "gives other outputs" in found.note


def test_artifacts_of_other_networks_are_refused(tmp_path):
    q, data = quantize(build("mean"), batches(count=1)), batches(count=1)
    other = quantize(build("residual"), data)
    with pytest.raises(InputError, match="another network"):
        mb.verify(other, mb.export(q, tmp_path / "a", inputs=data[0]), data)
    with pytest.raises(InputError, match="holds no quantized value"):
        mb.verify(q, mb.export(build("mean"), tmp_path / "b", inputs=data[0]), data)
    with pytest.raises(InputError, match="needs the quantized network"):
        mb.verify(build("mean"), mb.export(build("mean"), tmp_path / "b", inputs=data[0]), data)
    wide = build("mean")
    wide.fc = torch.nn.Linear(8, 7)
    with pytest.raises(InputError, match=r"output has shape \(16, 7\).*\(16, 5\)"):
        mb.verify(q, mb.export(quantize(wide, data), tmp_path / "c", inputs=data[0]), data)
    with pytest.raises(InputError, match="yielded no batch"):
        mb.verify(q, mb.export(q, tmp_path / "d", inputs=data[0]), [])


def test_samples_and_report(tmp_path):
    q, data = quantize(build("hardswish"), batches(count=1)), batches(count=3)
    artifact = load(mb.export(q, tmp_path, inputs=data[0]).path, "onnxruntime")
    found = mb.verify(q, artifact, [(x, None) for x in data], samples=20)
    assert found.samples == 20 and found.agreement.n == 20
    assert "hardswish" in found.float_operators
    assert "n = 20" in str(found) and found.to_dict()["layers"][0]["layer"] == found.layers[0].layer


def test_sqnr_by_hand():
    assert sqnr(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr(np.ones(3), np.ones(3)) is None and sqnr(np.zeros(3), np.ones(3)) is None


def test_a_rounding_that_a_runtime_leaves_out_is_recognized():
    q, x = quantize(build("residual"), batches()), batches(count=1)[0]
    batch, names = Batch((x,), {}, None), {s.node: s.layer for s in q.meta["quantization"].sites}
    fused, _ = IntegerReference(q).run(batch, unrounded={"conv2d_2"})
    exact = IntegerReference(q).run(batch)[0]
    seen = {
        n: fused[n] if n in list(names)[list(names).index("relu_2") :] else exact[n] for n in names
    }
    causes = diagnose(q, None, batch, seen, {}, names)
    assert (
        list(causes) == ["relu_2"]
        and causes["relu_2"].name == "fusion"
        and "c2 is not rounded" in str(causes["relu_2"])
    )


@pytest.mark.processor
def test_what_the_file_as_shipped_does_otherwise_is_found(tmp_path):
    """OpenVINO adds a convolution's sums to the residual before it rounds, unless the convolution's
    own value is asked for.
    """
    q, data = quantize(build("residual"), batches(), target="x86-vnni"), batches(count=1)
    found = mb.verify(q, mb.export(q, tmp_path, runtime="openvino", inputs=data[0][:1]), data)
    assert found.shipped is None or (
        found.shipped["cause"] == "fusion" and found.shipped["layer"] == "network (add)"
    )
    assert found.shipped is not None or found.sqnr_db is None or found.sqnr_db > 50


def test_a_layer_in_float_is_named(tmp_path):
    """ONNX Runtime fuses no convolution whose float result is asked for."""
    q, data = quantize(build("residual"), batches()), batches(count=1)
    path = mb.export(q, tmp_path, inputs=data[0][:1]).path
    proto = onnx.load(path)
    node = next(n for n in proto.graph.node if n.name == "c1/Conv")
    proto.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], 1, None))
    onnx.save(proto, path)
    artifact = load(path, "onnxruntime")
    assert run_in_float(
        artifact, Batch((data[0][:1],), {}, None), {s.node: s for s in q.meta["quantization"].sites}
    ) == {"relu_1": "Conv"}


@pytest.mark.parametrize(
    "name", ["residual", "depthwise", "concatenation", "sequential", "two_readers", "mean"]
)
def test_the_reference_without_floats_differs_by_rounding_alone(name):
    q, batch = (
        quantize(build(name), batches(name, 2)),
        Batch((batches(name, 1, seed=5)[0],), {}, None),
    )
    floats, _ = IntegerReference(q).run(batch)
    fixed, _ = IntegerReference(q, requantization="fixed").run(
        batch, floats
    )  # each layer from the same integers before it
    for site, expected in floats.items():
        off = np.abs(expected - fixed[site])
        assert off.max() <= 1 and (off == 0).mean() > 0.99, site
    with pytest.raises(InputError, match="did you mean 'fixed'"):
        IntegerReference(q, requantization="fixd")


def test_rectifiers_with_a_ceiling_stay_integers():
    q, batch = quantize(build("depthwise"), batches()), Batch((3 * batches(count=1)[0],), {}, None)
    reference = IntegerReference(q)
    sites, _ = reference.run(batch)
    assert not reference.floats and max(int(v.max()) for v in sites.values()) == 255


class Fills(torch.nn.Module):
    """Writes a number of no dimension, which the reference has as an array of none."""

    def __init__(self, whole: bool):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.whole = torch.nn.Conv2d(3, 8, 3), whole

    def forward(self, x):
        x = x.clone()
        x[:, 0] = 3.0
        y = torch.relu(self.conv(x))
        return y.mean() if self.whole else y.mean((2, 3))


@pytest.mark.parametrize("whole", [False, True], ids=["written", "one number comes out"])
def test_numbers_without_a_dimension(whole, tmp_path):
    data = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    q = mb.quantize(Fills(whole), data)
    found = mb.verify(q, mb.export(q, tmp_path, inputs=data[0]), data, samples=8)
    assert found.first_departure is None and found.layers


def test_states_of_another_length_than_the_batch(tmp_path):
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.leave = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

        def forward(self, x, state):
            hidden = torch.relu(self.enter(x) + state[0] - state[1])
            return self.leave(hidden), torch.stack([hidden, state[0]])

    torch.manual_seed(0)
    network = Step().eval()
    data = [{"x": torch.randn(1, 6), "state": torch.randn(2, 1, 8)} for _ in range(16)]
    q = quantize(network, data)
    found = mb.verify(q, mb.export(q, tmp_path, inputs=data[0]), data, original=network)
    assert found.agreement.n == 16 and all(layer.max_off_by == 0 for layer in found.layers)
