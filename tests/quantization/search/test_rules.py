"""The rule of each threshold is the one that changes the outputs least."""

from typing import Any

import torch
from torch import nn

from mirabelle.base.data import Batch
from mirabelle.quantization import quantization, quantize
from mirabelle.quantization.search.rules import SIGNED, best_rules, held_out
from mirabelle.quantization.simulation.graph import captured
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer
from tests.quantized_networks import batches, build


def _batches(*arrays: torch.Tensor) -> list[Batch]:
    return [Batch((a,), {}, None) for a in arrays]


def _grid(step: float) -> ActivationQuantizer:
    return ActivationQuantizer(step, 128, 0, 255)


def test_the_grid_whose_errors_reach_the_outputs_least_by_hand():
    """Both inputs are rounded; only the first reaches the output. A step of 1 is exact for whole
    numbers, one of 0.7 is not.
    """
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[1.0, 0.0]])
    x = torch.stack([torch.arange(64.0), torch.randn(64)], 1)
    graph = captured(network, _batches(x)[0])
    (site,) = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    assert best_rules(graph, {site: [_grid(0.7), _grid(1.0)]}, _batches(x)) == {site: 1}
    assert best_rules(graph, {site: [_grid(1.0), _grid(0.7)]}, _batches(x)) == {site: 0}


def test_what_outputs_do_not_depend_on_keeps_its_first_grid():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x).argmax(1)

    x = torch.randn(8, 2)
    graph = captured(Cut(), _batches(x)[0])
    (site,) = [n.name for n in graph.graph.nodes if n.op == "placeholder"]
    assert best_rules(graph, {site: [_grid(9.0), _grid(0.01)]}, _batches(x)) == {site: 0}


def test_what_chooses_fits_nothing():
    many = _batches(*(torch.full((1, 2), float(i)) for i in range(256)))
    held, shown = held_out(many)
    values: Any = [{float(b.args[0][0, 0]) for b in part} for part in (held, shown)]
    assert len(values[0]) == 32 and not values[0] & values[1] and len(values[0] | values[1]) == 256
    assert max(values[0]) > 200  # from all of the data, not from its start
    few = many[:20]
    assert held_out(few) == (few, few)


def test_a_call_says_which_rules_it_took():
    network, data = build("residual"), batches(count=4, size=64)
    q = quantize(network, data, samples=256)
    rules = quantization(q).rules
    assert rules and set(rules.values()) <= set(SIGNED) and quantization(q).samples == 256
    assert quantization(quantize(network, data, threshold="mse")).rules == {}
