"""The values of a quantized network's sites as files give them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import fx
from torch.utils import _pytree as pytree

from mirabelle.graph.nodes import argument, module
from mirabelle.quantization.simulation.placement import Site
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer


class SiteGrid(NamedTuple):
    """Scale, zero point and smallest integer of a site."""

    scale: np.float32
    zero_point: int
    low: int

    def steps(self, values: np.ndarray) -> np.ndarray:
        """Integers as they are, but for those of a grid of uint8 that a file holds as int8, all
        lower by 128; floats on the grid as integers.
        """
        if values.dtype.kind in "iu":
            return values.astype(np.int64) + 128 * int(values.dtype == np.int8 and self.low == 0)
        return np.rint(values / self.scale).astype(np.int64) + self.zero_point


def grid_of(model: fx.GraphModule, site: Site) -> SiteGrid:
    quantizer = module(model, f"quantizers.{site.source or site.node}", ActivationQuantizer)
    return SiteGrid(np.float32(quantizer.scale.item()), quantizer.zero_point, quantizer.low)


def sites_among_outputs(model: fx.GraphModule) -> dict[str, int]:
    """The sites that are outputs of the network: files give these as floats only. The index of the
    output.
    """
    results = pytree.tree_leaves(model.graph.output_node().args)
    return {
        argument(r, 0).name: i
        for i, r in enumerate(results)
        if isinstance(r, fx.Node) and r.op == "call_module"
    }


def reshaped(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Runtimes add and drop dimensions of size 1."""
    same = [s for s in values.shape if s != 1] == [s for s in like.shape if s != 1]
    return values.reshape(like.shape) if same else values
