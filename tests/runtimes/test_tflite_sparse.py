"""Weights of zeros in TFLite files: TFLite's format by hand, sizes, and the conditions of XNNPACK's
sparse kernels.
"""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import mirabelle as mb

pytest.importorskip("ai_edge_litert")
pytest.importorskip("litert_torch")

from mirabelle.runtimes import flatbuffer, tflite_sparse


def mobile(
    channels: int = 32,
    stem: int = 3,
    stride: int = 2,
    kernel: int = 1,
    depthwise: int = 3,
    activation: type[nn.Module] = nn.ReLU,
) -> nn.Module:
    torch.manual_seed(0)
    pad = kernel // 2
    return nn.Sequential(
        nn.Conv2d(stem, 8, 3, stride, 1),
        nn.ReLU6(),
        nn.Conv2d(8, 8, depthwise, padding=depthwise // 2, groups=8),
        activation(),
        nn.Conv2d(8, channels, kernel, padding=pad),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 2, 1, groups=channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * channels, 10),
    ).eval()


def without(network: nn.Module, share: float, block: int = 1, classifier: bool = True) -> nn.Module:
    """Zeros in the 1x1 convolutions and the linear layer, the same for each `block` of output
    channels.
    """
    generator = torch.Generator().manual_seed(1)
    for m in network.modules():
        if (isinstance(m, nn.Linear) and classifier) or (
            isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
        ):
            size = block if len(m.weight) % block == 0 else 1  # ten classes make no blocks of four
            rows = m.weight.data.view(-1, size, m.weight[0].numel())
            keep = torch.rand(len(rows), 1, rows.shape[2], generator=generator) >= share
            rows *= keep
    return network


def exported(network: nn.Module, folder, stem: int = 3):
    x = torch.randn(1, stem, 16, 16, generator=torch.Generator().manual_seed(2))
    artifact = mb.export(network, folder, runtime="litert", inputs=x)
    np.testing.assert_allclose(artifact(x), network(x).detach().numpy(), atol=1e-5)
    model = flatbuffer.read(artifact.path.read_bytes())
    return artifact, model, model.subgraphs[0]


def test_rows_by_hand():
    """[[0 5 0 0], [0 0 0 0], [1 0 0 2], [0 0 3 0]] as compressed rows."""
    sparsity, values, block = tflite_sparse._compressed(
        np.float32([[0, 5, 0, 0], [0, 0, 0, 0], [1, 0, 0, 2], [0, 0, 3, 0]])
    )
    assert block == 1 and values.tolist() == [5, 1, 2, 3]
    rows, columns = sparsity.dimMetadata
    assert (rows.format, rows.denseSize, columns.format) == (0, 4, 1)
    assert columns.arraySegments.values.tolist() == [
        0,
        1,
        1,
        3,
        4,
    ] and columns.arrayIndices.values.tolist() == [1, 0, 3, 2]
    assert list(sparsity.traversalOrder) == [0, 1] and list(sparsity.blockMap) == []


def test_blocks_by_hand():
    """Four rows that share columns 1 and 2: one row of blocks, each four values of a column."""
    weight = np.zeros((4, 1, 1, 3), np.float32)
    weight[:, 0, 0, 1], weight[:, 0, 0, 2] = [1, 2, 3, 4], [5, 6, 7, 8]
    sparsity, values, block = tflite_sparse._compressed(weight)
    assert block == 4 and values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [d.denseSize for d in sparsity.dimMetadata if d.format == 0] == [1, 1, 1, 4]
    columns = sparsity.dimMetadata[3]
    assert columns.arraySegments.values.tolist() == [
        0,
        2,
    ] and columns.arrayIndices.values.tolist() == [1, 2]
    assert list(sparsity.traversalOrder) == [0, 1, 2, 3, 4] and list(sparsity.blockMap) == [0]


@pytest.mark.parametrize("block", [1, 4])
def test_a_sparse_file(block, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse, model, graph = exported(without(mobile(128), 0.9, block), tmp_path / "sparse")
        dense, _, _ = exported(mobile(128), tmp_path / "dense")
    kinds = [flatbuffer.operator(model, op) for op in graph.operators]
    assert kinds.count("DENSIFY") == 3 and tflite_sparse.reasons_for_dense(model, graph) == []
    stored = [t for t in graph.tensors if t.sparsity is not None]
    assert [len(t.sparsity.blockMap) for t in stored].count(1) == (
        2 if block == 4 else 0
    )  # ten classes make no blocks
    assert sparse.bytes < dense.bytes * 0.35


@pytest.mark.parametrize(
    ("network", "share", "words"),
    [
        ({"stem": 1}, 0.9, "no 3x3 convolution with stride 2.*on 3 channels"),
        ({"stride": 1}, 0.9, "no 3x3 convolution with stride 2"),
        ({"kernel": 3}, 0.9, "a 3x3 convolution with stride 1; only 1x1 ones"),
        ({"depthwise": 7}, 0.9, "a 7x7 depthwise convolution"),
        ({"activation": nn.Tanh}, 0.9, "is a TANH, which does not fit"),
    ],
)
def test_where_xnnpack_would_compute_densely_export_warns(network, share, words, tmp_path):
    with pytest.warns(
        UserWarning, match=f"will run this sparse network densely, also on Arm: .*{words}"
    ):
        exported(without(mobile(**network), share), tmp_path, network.get("stem", 3))


def test_a_dense_classifier_counts(tmp_path):
    with pytest.warns(UserWarning, match="of the weights are zero, the classifier's included"):
        exported(without(mobile(16), 0.75, classifier=False), tmp_path)


def test_dense_networks_stay_as_they_are(tmp_path):
    _, model, graph = exported(without(mobile(), 0.3), tmp_path)
    assert "DENSIFY" not in {flatbuffer.operator(model, op) for op in graph.operators}
