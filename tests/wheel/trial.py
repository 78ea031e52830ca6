"""What `python -m tests.wheel` runs with the installed wheel: its data, and a tiny network."""

import sys
from importlib import metadata, resources

import numpy as np
import torch
from torch import nn

import mirabelle as mb

assert "site-packages" in mb.__file__, mb.__file__
assert mb.__version__ == metadata.version("mirabelle")
for name in ("report/style.css", "devices/count.c", "py.typed"):
    assert resources.files("mirabelle").joinpath(name).is_file(), f"the wheel lacks {name}"

torch.manual_seed(0)
network = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(8, 4),
).eval()
x = torch.randn(16, 3, 8, 8)
quantized = mb.quantize(network, [x])
file = mb.export(quantized, "int8", runtime="onnxruntime", inputs=x[:1])
with torch.no_grad():
    difference = np.abs(file(x.numpy()) - quantized(x).numpy()).max()
assert difference < 0.05, difference
print(f"Mirabelle {mb.__version__} on Python {sys.version.split()[0]}: the file runs")
