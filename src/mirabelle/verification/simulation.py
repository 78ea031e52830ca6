"""The values of a quantized network's sites in float: with its grids, and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.base.data import Batch, device_of
from mirabelle.graph.capture import inputs_in_order, sample_elements
from mirabelle.graph.nodes import argument
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, Quantizer


class _Watch(fx.Interpreter):
    """Runs the graph and keeps what every site holds. rounded: on its grid; else quantizers let
    everything through as it is.
    """

    def __init__(self, model: fx.GraphModule, rounded: bool):
        super().__init__(model)
        self.extra_traceback = False
        self.rounded = rounded
        self.sites: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_module":
            return super().run_node(n)
        quantizer = self.module.get_submodule(str(n.target))
        value = (
            super().run_node(n)
            if self.rounded or not isinstance(quantizer, Quantizer)
            else self.env[argument(n, 0)]
        )
        if isinstance(quantizer, ActivationQuantizer):
            self.sites[argument(n, 0).name] = value.clone()  # what follows may write into it
        return value


def simulate(
    model: fx.GraphModule, batch: Batch, rounded: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What each site holds and the network's first output, float32: simulated on the grids, or
    (`rounded` False) the same network in float.
    """
    watch = _Watch(model, rounded)
    device = device_of(model)
    with torch.no_grad():
        result = watch.run(*inputs_in_order(model.graph, batch.to(device)))
    output = pytree.tree_leaves(result)[0]
    return {n: v.cpu().numpy() for n, v in watch.sites.items()}, output.cpu().numpy()


def elements(model: fx.GraphModule) -> int:
    """Numbers that the sites of one sample hold together."""
    count = sample_elements(model.graph)
    return sum(count(node) for node in model.graph.nodes if node.op == "call_module")
