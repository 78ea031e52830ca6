"""A call captures its network once for all that runs its graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mirabelle as mb
from mirabelle.base.data import Batch
from mirabelle.base.errors import InputError
from mirabelle.graph.open_graph import CapturedOnce, OpenGraph, open_graph


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(x + self.norm(self.conv(x)))


def network() -> nn.Module:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*stem, Block(), Block(), *head).eval()


@pytest.fixture(scope="module")
def data() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 3, 8, 8) for _ in range(3)]


@pytest.fixture
def exports(monkeypatch) -> list[int]:
    """A number for each call of `torch.export.export`."""
    calls, export = [], torch.export.export

    def counted(*args, **options):
        calls.append(len(calls))
        return export(*args, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    return calls


@pytest.mark.parametrize(
    ("verb", "options", "most"),
    [
        ("quantize", {}, 1),
        ("quantize", {"repair": "search"}, 1),
        ("quantize", {"accuracy_drop": 0.0}, 1),
        ("prune", {"macs": 0.6, "align": 1}, 2),  # for channels, and for any batch
        ("prune", {"macs": 0.6, "align": 1, "depth": True}, 2),
        ("prune", {"macs": 0.6, "align": 1, "rounds": 2}, 4),
        ("sparsify", {"sparsity": 0.8}, 1),  # of four rounds
    ],
)
def test_captures_of_a_call(verb, options, most, data, exports):
    if verb == "prune":
        mb.prune(network(), data[0][:1], data=data, **options)
    elif "accuracy_drop" in options:
        labeled = [(x, x.mean((1, 2, 3)).gt(0).long()) for x in data]
        mb.quantize(network(), data, validation=labeled, **options)
    else:
        getattr(mb, verb)(network(), data=data, **options)
    assert 0 < len(exports) <= most


def test_one_graph_for_several_cuts(data, exports):
    captured = CapturedOnce(network())
    example = Batch((data[0][:1],), {}, None)
    assert captured(example) is captured(example) and len(exports) == 1
    assert captured(example).fixed is None


def test_only_batches_of_the_size_that_it_takes():
    graph = open_graph(nn.Sequential(nn.Linear(3, 2)), Batch((torch.zeros(2, 3),), {}, None))
    batches = [Batch((torch.zeros(n, 3),), {}, None) for n in (5, 3)]
    assert [b.size for b in graph.pieces(batches)] == [5, 3]
    fixed = OpenGraph(graph.graph_module, 2)
    assert [b.size for b in fixed.pieces(batches)] == [2, 2, 2]
    with pytest.raises(InputError, match="takes batches of 9 alone"):
        OpenGraph(graph.graph_module, 9).pieces(batches)
