"""The commands and the Python of docs/start.md, as they are written, in one folder."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import mirabelle as mb
from mirabelle.base.files import write_tensors
from mirabelle.cli import main
from mirabelle.sources.data import read
from mirabelle.sources.torchvision import torchvision
from tests.documents.test_docs import FENCE
from tests.sources.pictures import folder

pytest.importorskip("PIL")
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
COMMANDS = [
    (section.partition("\n")[0], line)
    for section in SECTIONS
    for name, text in FENCE.findall(section)
    if name == "sh"
    for line in text.splitlines()
]
# What a command needs that may not be installed.
NEEDS = {
    "timm:": "timm",
    "torchvision:": "torchvision",
    "hf:": "transformers",
    "openvino": "openvino",
    "litert": "litert_torch",
}
NETWORK = """
import torch
from torch import nn


def build():
    layers = [nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(*layers, *head)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = build()[:5]
        self.head = nn.Conv2d(16, 6, 1)

    def forward(self, x):
        scores = self.head(self.backbone(x)).flatten(2)
        return [s[:, s[0] > 0] for s in scores]  # as many as there are
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A network that was trained on pictures, as a file, a checkpoint and code."""
    where = tmp_path_factory.mktemp("start")
    (where / "network.py").write_text(NETWORK)
    photos = folder(where / "photos", 12)
    folder(where / "flat", 8, classes=False)
    names: dict = {}
    exec(NETWORK, names)
    torch.manual_seed(0)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    data = read(photos, size=32, mean=mean, std=std).loaders.train
    network = mb.fit(names["build"](), data, epochs=15, lr=5e-3).eval()
    mb.export(network, where, runtime="onnxruntime", inputs=torch.randn(1, 3, 32, 32), name="net")
    torch.save(network.state_dict(), where / "checkpoint.pt")
    _of_packages(where)
    return where


def _of_packages(where: Path) -> None:
    """Files of weights of the packages that are installed."""
    with contextlib.suppress(ImportError):
        torchvision()  # as both import it, whatever build it is of
    with contextlib.suppress(ImportError):
        from timm import create_model

        made = create_model("mobilenetv3_small_100").state_dict()
        write_tensors(where / "mobilenetv3.safetensors", made)
    with contextlib.suppress(ImportError):
        from transformers import BertConfig, BertForSequenceClassification

        small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = BertConfig(vocab_size=50, intermediate_size=64, num_labels=3, **small)
        BertForSequenceClassification(config).save_pretrained(where / "encoder")
        ids = np.random.default_rng(0).integers(1, 50, (64, 8))
        np.savez(where / "tokens.npz", input_ids=ids, attention_mask=np.ones_like(ids))


def test_each_start_has_something_to_call():
    starts = [s for s in SECTIONS if re.match(r"\d", s)]
    assert len(starts) == 10 and all(FENCE.findall(s) for s in starts)


@pytest.mark.parametrize(("start", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_commands_do_as_they_are_written(start, line, place, monkeypatch, capsys):
    """One after the other: later ones take what earlier ones left."""
    for word, package in NEEDS.items():
        if word in line and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    if line.startswith("mirabelle init"):
        (place / "recipe.yaml").unlink(missing_ok=True)
    words = shlex.split(line)
    assert words[0] == "mirabelle"
    status = main(words[1:])
    seen = capsys.readouterr()
    assert status == 0, f"{start}: {line}\n{seen.err}"
    assert "warning" not in seen.err


CODES = [text for name, text in FENCE.findall(TEXT) if name == "python"]


@pytest.mark.parametrize("code", CODES, ids=["file" if "net.onnx" in c else "part" for c in CODES])
def test_the_python_runs(code, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    names: dict = {}
    exec(code, names)
    if "net.onnx" in code:
        from mirabelle.sources.networks import with_example

        before, after = with_example("net.onnx")[0], names["small"]
    else:
        before, after = names["detector"].backbone, names["small"].backbone
    size = [sum(p.numel() for p in network.parameters()) for network in (before, after)]
    assert size[1] < size[0]
