"""From a calibrated float network to a quantised one: any layers of it, in any precision."""

# torch.fx types an argument of a node as the union of all that it may be; which of them it is
# depends on the operator. pyright: reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportUnhashable=false, reportReturnType=false pyright:
# reportIndexIssue=false, reportOptionalSubscript=false, reportCallIssue=false,
# reportOperatorIssue=false, reportGeneralTypeIssues=false pyright: reportOptionalIterable=false,
# reportAssignmentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import fx

from mirabelle.base.checks import clone
from mirabelle.graph.capture import get_tensor, parameter_name
from mirabelle.quantization.calibration.histograms import Histogram
from mirabelle.quantization.calibration.observation import (
    activation_quantizer,
    fit_bias,
    weight_quantizer,
)
from mirabelle.quantization.calibration.pair_sums import limit_all
from mirabelle.quantization.simulation.description import Quantization
from mirabelle.quantization.simulation.graph import insert, weight_keys
from mirabelle.quantization.simulation.placement import (
    contractions,
    float_operators,
    layer_input,
    place,
)
from mirabelle.quantization.targets import TARGETS
from mirabelle.sparsity import masks


@dataclass(frozen=True)
class Calibrated:
    """A captured float network and what calibration saw in it.

    described: how it is to be quantised; its sites, float operators and what else depends on the
    layers are filled in by `quantized`. histograms: by node.
    choose, choose_weight: the rules for thresholds. meta: what the quantised network is to remember
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
        """Quantised but for the layers that `keep` names beside those kept anyway. precision: bits
        by the name of a quantiser, where these are others.
        """
        d, bits = replace(self.described, keep=(*self.described.keep, *keep)), precision or {}
        network, goal = clone(self.network), TARGETS[d.target]
        sites, layers, keys = (
            place(network.graph, d.keep, goal),
            contractions(network.graph, d.keep),
            weight_keys(network, d.keep),
        )
        activations = {
            s.node: activation_quantizer(
                self.histograms[s.node], self.choose, bits.get(s.node, d.bits), goal, d.symmetric
            )
            for s in sites
            if s.source is None
        }
        weights = {
            n: weight_quantizer(
                get_tensor(network, n),
                self.choose_weight,
                bits.get(k, d.weight_bits),
                n,
                d.per_channel,
                d.weight_symmetric,
            )
            for n, k in keys.items()
        }
        grids = {s.node: activations[s.source or s.node] for s in sites}
        for node in layers:
            fit_bias(
                network,
                node,
                float(grids[layer_input(node).name].scale.detach()),
                weights[str(node.args[1].target)],
            )
        paired = [
            n
            for n in layers
            if goal.pairs
            and grids[layer_input(n).name].bits <= 8
            and weights[str(n.args[1].target)].bits <= 8
        ]
        sums = limit_all(network, paired, weights, grids, self.histograms)
        d = replace(
            d,
            sites=tuple(sites),
            float_operators=float_operators(network.graph, sites, d.keep),
            precision=dict(bits),
            pair_sums=sums,
        )
        result = insert(network, activations, {keys[n]: q for n, q in weights.items()}, d)
        result.meta |= self.meta
        own = dict(result.named_parameters())
        masks.mark(
            result, {n: block for n, block in self.sparse.items() if n in own}
        )  # a zero is the integer 0
        return result

    def fallen_back(self, weights: Sequence[str], precision: str | int) -> fx.GraphModule:
        """Quantised, with the layers of these weights in float, or with what they read and their
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
        readers = [
            n
            for n in contractions(self.network.graph, keep)
            if str(parameter_name(n.args[1])) in weights
        ]
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
    own, found = network.state_dict(), other.state_dict()
    for node in other.graph.nodes:
        if (
            node.op != "call_module"
            or node.args[0].op != "get_attr"
            or node.args[0].target in without
        ):
            continue
        for name in [
            n for n in found if n == node.args[0].target or n.startswith(f"{node.target}.")
        ]:
            own[name].copy_(found[name])
