"""Sums of pairs in 16 bits: the emulated kernel by hand, the bound of the calibration, and that
limited weights never clip.
"""

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.integers import pair_sums
from mirabelle.measurement.machine import machine
from mirabelle.quantization import quantization, quantize
from mirabelle.quantization.calibration.pair_sums import limit_pairs
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.placement import contractions
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from mirabelle.quantization.targets import resolve_target
from mirabelle.runtimes.clipping import KERNELS, kernels_with_pairs
from mirabelle.verification import sqnr
from mirabelle.verification.integer_reference import IntegerReference
from tests.processors.__main__ import KINDS, native
from tests.quantized_networks import Network, batches, build, conv, head, needs


def test_pairs_by_hand():
    """Three channels at two places: MLAS pairs (0, 1), (2, 3), (4, 5) straight through; oneDNN ends
    each place with its odd channel alone.
    """
    read = np.arange(1, 7)
    assert pair_sums.paired(read, 3, "mlas", 0).tolist() == [1, 2, 3, 4, 5, 6]
    assert pair_sums.paired(read, 3, "onednn", 0).tolist() == [1, 2, 3, 0, 4, 5, 6, 0]
    assert pair_sums.paired(read[:3], 3, "mlas", 0).tolist() == [1, 2, 3, 0]
    assert pair_sums.paired(read[None], 2, "onednn", 1).tolist() == [[1, 2, 3, 4, 5, 6]]


def test_clipping_by_hand():
    """255 * 127 + 255 * 127 = 64770 is clipped to 32767; 255 * -127 + 255 * -127 = -64770 to
    -32768; a lone large product fits.
    """
    rows = np.array([[255, 255, 255, 0], [255, 0, 0, 255]])
    columns = np.array([[127, -127], [127, -127], [127, -127], [127, -127]])
    assert pair_sums.excess(rows, columns).tolist() == [[32767 - 64770, -32768 + 64770], [0, 0]]
    least, largest = pair_sums.reach(columns, np.zeros(4, int), np.full(4, 255))
    assert largest.tolist() == [[64770, 0], [64770, 0]] and least.tolist() == [
        [0, -64770],
        [0, -64770],
    ]


def test_excess_equals_clipping_every_pair():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 256, (40, 30)), rng.integers(-127, 128, (30, 7))
    pairs = (rows[:, :, None] * columns).reshape(40, 15, 2, 7).sum(2)
    assert (
        np.clip(pairs, -(2**15), 2**15 - 1).sum(1)
        == rows @ columns + pair_sums.excess(rows, columns)
    ).all()
    assert (pair_sums.excess(rows, columns) != 0).any()


def overflowing(groups: int = 1, channels: int = 6) -> torch.nn.Module:
    """Bright inputs, and filters whose weights are nearly all as large as the largest: their pairs
    leave 16 bits.
    """
    torch.manual_seed(0)
    network = Network(
        lambda n, x: head(n, F.relu(n.b(F.relu(n.a(x))))),
        a=conv(3, channels),
        b=conv(channels, 8, groups=groups),
        fc=torch.nn.Linear(8, 5),
    ).eval()
    with torch.no_grad():
        for layer in (network.a, network.b):
            layer.weight.copy_(layer.weight.sign() * (0.9 + 0.1 * torch.rand_like(layer.weight)))
        network.b.weight[0] *= torch.linspace(1, 0, network.b.weight[0].numel()).view_as(
            network.b.weight[0]
        )
    return network


@pytest.mark.parametrize("groups, channels", [(1, 6), (1, 5), (2, 6)])
def test_limited_weights_never_clip_and_others_keep_their_range(groups, channels):
    network, data = overflowing(groups, channels), [x.abs() for x in batches()]
    full, limited = (
        quantize(network, data, target=t, threshold="absmax", repair=None)
        for t in ("x86-vnni", "x86")
    )
    for layout in pair_sums.LAYOUTS:
        for q, clips in ((full, True), (limited, False)):
            reference = IntegerReference(q, pairs=layout)
            for x in data:
                reference.run(Batch((x,), {}, None))
                assert bool(reference.clipped) == clips
    found = quantization(limited).pair_sums
    assert set(found) == {"a", "b", "fc"} and all(
        f["largest"] > 32767 or f["least"] < -32768 for n, f in found.items() if f["limited"]
    )
    assert found["b"]["limited"] and all(63 <= f["levels"] <= 127 for f in found.values()), (
        "never worse than one bit"
    )
    scales = [q.get_submodule("quantizers.b_weight").scale for q in (full, limited)]
    assert ((scales[1] == scales[0]) | (scales[1] > scales[0])).all()
    assert int((scales[1] > scales[0]).sum()) == found["b"]["limited"] < 8, (
        "the fading filter keeps its range"
    )


def test_only_as_far_as_the_data_reach():
    """Two channels with weights of 127: at 255 and 255 the pair makes 64770, at 255 and 2 only
    32639, which fits.
    """
    node = contractions(captured(overflowing(), Batch((batches(count=1)[0],), {}, None)).graph)[0]
    weight = torch.ones(1, 2, 1, 1)
    activation = ActivationQuantizer(1.0, 0, 0, 255)

    def limited(high: list[float]) -> tuple:
        quantizer = WeightQuantizer(torch.tensor([1 / 127]), 0, 127)
        found = limit_pairs(node, weight, quantizer, activation, np.zeros(2), np.array(high))
        return found.largest, found.limited, int(quantizer.integers(weight).max())

    assert limited([255.0, 2.0]) == (32639, 0, 127)
    assert limited([255.0, 255.0]) == (64770, 1, 64), "64 * 510 = 32640"
    assert limited([1000.0, 3.0]) == (32766, 0, 127), "inputs beyond the grid are clipped to it"
    signed = ActivationQuantizer(1.0, 128, 0, 255)
    quantizer = WeightQuantizer(torch.tensor([1 / 127]), 0, 127)
    assert (
        limit_pairs(
            node, weight, quantizer, signed, np.array([1.0, 1.0]), np.array([2.0, 2.0])
        ).largest
        == 260 * 127
    ), "stored with the zero point"


def test_depthwise_layers_and_signed_bytes_are_left_alone():
    network = build("depthwise")
    q = quantize(network, batches(), target="x86")
    assert set(quantization(q).pair_sums) == {"c", "pw", "fc"}
    assert not quantization(quantize(network, batches(), target="arm")).pair_sums


@pytest.mark.processor
@pytest.mark.parametrize("runtime", sorted(KERNELS))
def test_kernels_are_known_by_what_they_compute(runtime):
    """`PROCESSOR` names the kind that this processor was made (`tests/processors`); without it the
    flags of the processor tell.
    """
    needs(runtime)
    kind = os.environ.get("PROCESSOR") or native(set(machine()["features"]) - {"amx_int8"})
    assert (kernels_with_pairs(runtime) is not None) == (kind in KINDS and KINDS[kind].clips)
    if runtime == "onnxruntime" and kind in KINDS:
        assert resolve_target("auto").name == ("x86" if KINDS[kind].clips else "x86-vnni")


@pytest.mark.processor
@pytest.mark.parametrize("name", ["residual", "sequential"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_what_saturates_here_is_said(runtime, name, tmp_path):
    """Files for processors with VNNI, and files of signed bytes: on others the layers that clip are
    named, and are those of the emulated kernels.
    """
    data = [3 * x.abs() for x in batches()]
    for target in ("x86-vnni", "arm"):
        q = quantize(build(name), data, target=target, threshold="absmax")
        found = mb.verify(
            q, mb.export(q, tmp_path / target, runtime=runtime, inputs=data[0][:1]), data[:1]
        )
        assert max(c.max_off_by for c in found.layers) <= 1 + (runtime == "openvino")
        assert bool(found.saturated or (found.shipped or {}).get("cause") == "saturation") == (
            kernels_with_pairs(runtime) is not None
        )
        assert not found.saturated or (
            "saturation" in str(found) and "saturation" in {c.cause for c in found.layers}
        )


@pytest.mark.processor
@pytest.mark.parametrize("name", ["residual", "sequential", "depthwise"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_for_this_machine_are_as_good_as_simulated(runtime, name, tmp_path):
    """On the data of the calibration nothing clips, and the outputs are those of the simulation, on
    every processor.
    """
    network, data = build(name), [3 * x.abs() for x in batches()]
    q = quantize(network, data)
    artifact = mb.export(q, tmp_path, runtime=runtime, inputs=data[0][:1])
    assert not mb.verify(q, artifact, data).saturated
    x = torch.cat(data)
    with torch.no_grad():
        exact, simulated = network(x).numpy(), q(x).numpy()
    assert sqnr(exact, artifact(x.numpy())) > sqnr(exact, simulated) - 0.5
