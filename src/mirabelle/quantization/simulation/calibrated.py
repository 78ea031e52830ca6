"""From a calibrated float network to a quantized one: any layers of it, in any precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from mirabelle.base.checks import clone, tensors_of
from mirabelle.graph.capture import get_tensor, parameter_name
from mirabelle.graph.nodes import argument, target_name
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.calibration.observation import (
    activation_quantizer,
    fit_bias,
    weight_quantizer,
)
from mirabelle.quantization.calibration.pair_sums import limit_all
from mirabelle.quantization.calibration.thresholds import rules_for
from mirabelle.quantization.simulation.description import Quantization
from mirabelle.quantization.simulation.graph import insert, weight_keys
from mirabelle.quantization.simulation.operators import layer_input, weight_name
from mirabelle.quantization.simulation.placement import Site, contractions, float_operators, place
from mirabelle.quantization.simulation.quantizers import ActivationQuantizer, WeightQuantizer
from mirabelle.quantization.targets import TARGETS
from mirabelle.sparsity import masks


@dataclass(frozen=True)
class Calibrated:
    """A captured float network and what calibration saw in it.

    described: how it is to be quantized; its sites, float operators and what else depends on the
    layers are filled in by `quantized`. histograms: by node.
    choose, choose_weight: the rules for thresholds. meta: what the quantized network is to remember
    besides. sparse: its weights that are marked as sparse (`sparsify.masks`).
    """

    network: fx.GraphModule
    histograms: Mapping[str, Histogram]
    described: Quantization
    choose: Callable
    choose_weight: str | Callable
    meta: Mapping[str, object]
    sparse: Mapping[str, int]

    def quantized(
        self, keep: tuple[str, ...] = (), precision: Mapping[str, int] | None = None
    ) -> fx.GraphModule:
        """Quantized but for the layers that `keep` names beside those kept anyway. precision: bits
        by the name of a quantizer, where these are others.
        """
        bits = dict(precision or {})
        d = replace(self.described, keep=(*self.described.keep, *keep), precision=bits)
        network, goal = clone(self.network), TARGETS[d.target]
        sites, keys = place(network.graph, d.keep, goal), weight_keys(network, d.keep)
        activations = self._activations(d, sites)
        weights = self._weights(d, network, keys)
        grids = {s.node: activations[s.source or s.node] for s in sites}
        paired = []
        for node in contractions(network.graph, d.keep):
            grid, weight = grids[layer_input(node).name], weights[weight_name(node)]
            fit_bias(network, node, float(grid.scale.detach()), weight)
            if goal.pairs and grid.bits <= 8 and weight.bits <= 8:
                paired.append(node)
        d = replace(
            d,
            sites=tuple(sites),
            float_operators=float_operators(network.graph, sites, d.keep),
            pair_sums=limit_all(network, paired, weights, grids, self.histograms),
        )
        result = insert(network, activations, {keys[n]: q for n, q in weights.items()}, d)
        result.meta |= self.meta
        own = dict(result.named_parameters())
        masks.mark(
            result, {n: block for n, block in self.sparse.items() if n in own}
        )  # a zero is the integer 0
        return result

    def _activations(
        self, d: Quantization, sites: Sequence[Site]
    ) -> dict[str, ActivationQuantizer]:
        """By the name of each site that has a grid of its own."""
        goal, rules = TARGETS[d.target], rules_for(d.symmetric)
        return {
            s.node: activation_quantizer(
                self.histograms[s.node],
                rules[d.rules[s.node]] if s.node in d.rules else self.choose,
                d.precision.get(s.node, d.bits),
                goal,
                d.symmetric,
            )
            for s in sites
            if s.source is None
        }

    def _weights(
        self, d: Quantization, network: fx.GraphModule, keys: Mapping[str, str]
    ) -> dict[str, WeightQuantizer]:
        """By parameter. keys: `weight_keys`."""
        return {
            n: weight_quantizer(
                get_tensor(network, n),
                self.choose_weight,
                d.precision.get(k, d.weight_bits),
                n,
                d.per_channel,
                d.weight_symmetric,
            )
            for n, k in keys.items()
        }

    def fallen_back(self, weights: Sequence[str], precision: str | int) -> fx.GraphModule:
        """Quantized, with the layers of these weights in float, or with what they read and their
        weights in `precision` bits.
        """
        if precision == "float":
            return self.quantized(tuple(weights))
        keep = self.described.keep
        keys, sources = (
            weight_keys(self.network, keep),
            {
                s.node: s.source or s.node
                for s in place(self.network.graph, keep, TARGETS[self.described.target])
            },
        )
        readers = [n for n in contractions(self.network.graph, keep) if weight_name(n) in weights]
        return self.quantized(
            (),
            dict.fromkeys(
                (*(keys[w] for w in weights), *(sources[layer_input(n).name] for n in readers)),
                int(precision),
            ),
        )


def adopt_weights(network: fx.GraphModule, other: fx.GraphModule, without: Sequence[str]) -> None:
    """Gives `network` the weights of `other` and their steps, but for the weights of these
    names.
    """
    own, found = tensors_of(network), tensors_of(other)
    for node in other.graph.nodes:
        if node.op != "call_module" or (name := parameter_name(argument(node, 0))) is None:
            continue
        if name in without:
            continue
        for n in [n for n in found if n == name or n.startswith(f"{target_name(node)}.")]:
            own[n].copy_(found[n])
