"""A residual network, a small one, and its exported file."""

import os
import sys
import warnings

import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, inner: int, width: int, stride: int):
        super().__init__()
        shapes = [(inner, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        self.body = nn.Sequential(
            *[
                m
                for i, o, k, s in shapes
                for m in (nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU())
            ][:-1]
        )
        same = stride == 1 and inner == 4 * width
        self.skip = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(inner, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )
        )

    def forward(self, x):
        return torch.relu(self.body(x) + self.skip(x))


def resnet50() -> nn.Sequential:
    """He et al. 2015, table 1, with the stride on the 3x3 convolution."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inner = 64
    for width, depth, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(depth):
            layers.append(Bottleneck(inner, width, stride if i == 0 else 1))
            inner = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def small() -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(8, 10))


SMALL_MACS = 8 * 6 * 6 * 3 * 9 + 8 * 6 * 6 * 2 * 9 + 8 * 10


def export(model, x, path):
    """An ONNX file with an open batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        program.save(path)


def save(path, nodes, inputs, outputs, constants=(), domain=None):
    tensors = [numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    infos = [
        [helper.make_tensor_value_info(n, t, s) for n, t, s in group] for group in (inputs, outputs)
    ]
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(
        helper.make_model(
            helper.make_graph(nodes, "g", *infos, tensors), opset_imports=opsets, ir_version=10
        ),
        path,
    )
    return path


PATH = {"PYTHONPATH": os.pathsep.join(sys.path)}
