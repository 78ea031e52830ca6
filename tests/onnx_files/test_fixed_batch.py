"""Files that were written for one sample, as exporters do by default, and data in batches."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import mirabelle as mb
from mirabelle.base.errors import InputError


def written(path, reshape=None):
    """A file for one sample. reshape: sizes that stand in it before the last layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).eval()
    mb.export(net, path.parent, inputs=torch.randn(1, 1, 8, 8), name=path.stem)
    proto = onnx.load(path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    if reshape is not None:
        (node,) = (n for n in proto.graph.node if n.op_type in ("Flatten", "Reshape"))
        fixed = onnx.helper.make_node("Reshape", [node.input[0], "sizes"], list(node.output))
        node.CopyFrom(fixed)
        proto.graph.initializer.append(numpy_helper.from_array(np.array(reshape), "sizes"))
    onnx.save(proto, path)
    return path


@pytest.fixture
def data():
    return [torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_batches_run_and_the_file_keeps_its_sizes(tmp_path, data):
    path = written(tmp_path / "one.onnx")
    small = mb.prune(path, data[0], macs=0.6, criterion="l2", data=data)
    q = mb.quantize(small, data, repair=[])
    for network, close in ((small, 1e-5), (q, 0.1)):
        assert network(data[0]).shape == (6, 3)
        file = mb.export(network, tmp_path / "out", inputs=data[0][:1])
        (given,) = file.inputs
        assert given.shape == (1, 1, 8, 8)
        one = torch.as_tensor(file(data[0][:1].numpy()))
        torch.testing.assert_close(one, network(data[0][:1]).detach(), atol=close, rtol=0)
    own = mb.quantize(path, data, repair=[])
    assert own(data[0]).shape == (6, 3)


@pytest.mark.parametrize("sizes", [[1, 16], [1, -1]], ids=str)
def test_nodes_that_hold_the_batch_are_said(tmp_path, data, sizes):
    """Without the second size all samples would become one row."""
    path = written(tmp_path / "one.onnx", sizes)
    with pytest.raises(InputError, match="written for batches of 1.*--batch 1"):
        mb.prune(path, data[0], macs=0.6, criterion="l2")
    small = mb.prune(path, data[0][:1], macs=0.6, criterion="l2")
    assert small(data[0][:1]).shape == (1, 3)
